"""Files: finding them, reading YAML, atomic writing."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import secrets
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
PARTIAL = "*.[0-9]*-????????.part"  # the names that partial_path makes


def find(name: str, folder: str = "") -> Path:
    """The path of `name`: as given, below the repository, or below its `folder` (such as 'models' or 'data/hyps').

    Raises:
        FileNotFoundError: names the paths that were tried.
    """
    tries = [Path(name), REPO / name, REPO / folder / name]
    for path in tries:
        if path.is_file():
            return path
    places = {path.absolute(): path for path in reversed(tries)}  # the working folder may be the repository
    known = [path.stem for path in (REPO / folder).glob("*.yaml")] if folder else []
    near = difflib.get_close_matches(Path(name).name.removesuffix(".yaml"), known, 1, 0.8)
    meant = f" (did you mean {near[0]}.yaml?)" if near else ""
    raise FileNotFoundError(f"'{name}' not found{meant}, tried: {', '.join(map(str, reversed(places.values())))}")


def missing_weights(path: Path) -> str:
    """The message for weights that are not there; for a published file's name, where such a file comes from."""
    published = path.stem.startswith(("yolov5", "yolox", "mobilevit", "mobilenet"))
    origin = "a published file, which is never downloaded by itself: docs/weights.md says where it comes from"
    return f"weights '{path}' not found" + (f"; {origin}" if published else "")


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


def partial_path(path: Path) -> Path:
    """A path beside `path` for a file that is being written; no other process chooses it, on any machine."""
    name = os.fsencode(path.name)[:200].decode(errors="ignore")  # the longest name that a disk takes has 255 bytes
    return path.with_name(f"{name}.{os.getpid()}-{secrets.token_hex(4)}.part")


def write_atomic(
    path: Path, content: str | bytes | memoryview, sync: bool = True, previous: Path | None = None
) -> None:
    """Write a file, text as UTF-8: readers see the old file or the new one, even after a kill or on a full disk.

    If several processes write the same file, the last one wins.

    Args:
        sync: wait until the file is on the disk, so that it survives a power failure; takes some milliseconds.
        previous: where the earlier file is kept, once the new one was read back and is as it was written.

    Raises:
        OSError: the file could not be written; an earlier one is unchanged.
    """
    partial = partial_path(path)
    written = content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content
    try:
        with partial.open("wb") as file:
            file.write(written)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if previous is not None:
            if partial.read_bytes() != written:
                raise OSError(errno.EIO, "it is read back otherwise than it was written")
            keep_as(path, previous)
        os.replace(partial, path)
    except OSError as error:
        there = "an earlier file is unchanged" if path.parent.is_dir() else "its folder was deleted or moved"
        raise OSError(error.errno, f"{error.strerror}; not saved, {there}", str(path)) from error
    finally:  # after Ctrl-C too
        with contextlib.suppress(OSError):
            partial.unlink()


def keep_as(path: Path, other: Path) -> None:
    """Give a file, if it exists, the second name `other`, in place of the file that had it."""
    if path.exists():
        other.unlink(missing_ok=True)
        try:
            os.link(path, other)
        except OSError:  # a disk without hard links
            os.replace(path, other)


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
