"""Files: finding them, reading YAML, atomic writing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml

from utils.plain_data import plain_data
from utils.text import clean, first
from utils.yaml_text import MAX_TEXT, load_yaml

REPO = Path(__file__).resolve().parents[1]
VERSION = "0.1.0"  # of the project; pyproject.toml and the metadata of exported files take it from here


def find(name: str, folder: str = "") -> Path:
    """The path of `name`: as given, below the repository, or below its `folder` (such as 'models' or 'data/hyps').

    Raises:
        FileNotFoundError: names the paths that were tried.
    """
    tries = [Path(name), REPO / name, REPO / folder / name]
    for path in tries:
        if path.is_file():
            return path
    raise FileNotFoundError(f"'{name}' not found, tried: {', '.join(str(p) for p in dict.fromkeys(tries))}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file; see load_yaml for what is read as a number.

    Raises:
        ValueError: not YAML, or not a mapping; a key twice.
    """
    return read_yaml_lines(path)[0]


def read_yaml_lines(
    path: str | Path, as_text: Collection[str] = ()
) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The mapping in a YAML file, and the line of each key, see load_yaml.

    Raises:
        ValueError: see read_yaml.
    """
    where = first([path])
    try:
        with Path(path).open(encoding="utf-8") as file:
            data, lines = load_yaml(file.read(MAX_TEXT + 1), as_text)
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = clean(f"{error.context or ''} {error.problem or ''}")
        raise ValueError(f"{where}{line}: not valid YAML: {reason}") from error
    except RecursionError as error:
        raise ValueError(f"{where}: not valid YAML: lists or mappings in too many levels") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{where}: not valid YAML: {clean(error)}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{where}: expected a mapping of keys to values, found {type(data).__name__}")
    return plain_data(data, where, finite=False), lines


def write_atomic(path: Path, content: str | bytes | memoryview, sync: bool = True) -> None:
    """Write a file, text as UTF-8: readers see the old file or the new one, even after a kill or on a full disk.

    If several processes write the same file, the last one wins.

    Args:
        sync: wait until the file is on the disk, so that it survives a power failure; takes some milliseconds.

    Raises:
        OSError: the file could not be written; an earlier one is unchanged.
    """
    name = os.fsencode(path.name)[:200].decode(errors="ignore")  # the longest name that a disk takes has 255 bytes
    partial = path.with_name(f"{name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        reason = f"{error.strerror}; not saved, an earlier file is unchanged"
        raise OSError(error.errno, reason, str(path)) from error


def remove(path: Path) -> None:
    """Delete a file or folder, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Rename a complete file or folder to `target` on the same disk; replacing a file is atomic."""
    if source.is_dir() or target.is_dir():
        remove(target)
    os.replace(source, target)


def size_of(path: Path) -> int:
    """The size of a file, or of all files in a folder, in bytes."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
