"""Rows of tools/bench.py, and the process that measures one part of it in one version of the project.

A part is a function of a module tools/bench_*.py that returns rows. To measure another version, `overlay` makes a
folder with that version's files and the bench modules of this one; the part runs there as a process of its own.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MARK = "ROWS "  # before the JSON in the output of a process


@dataclass(frozen=True)
class Row:
    """A line of the table: what was measured, in which unit, and the number."""

    name: str
    unit: str
    value: float


def overlay(checkout: Path, folder: Path) -> Path:
    """`folder` as the top of `checkout`: links to its files, and in tools/ also this version's bench modules.

    Raises:
        FileNotFoundError: it is no checkout of this project.
    """
    if not (checkout / "models" / "yolo.py").is_file() or not (checkout / "utils" / "config.py").is_file():
        raise FileNotFoundError(f"--before {checkout}: no checkout of this project, models/yolo.py is missing")
    (folder / "tools").mkdir(parents=True)
    for path in checkout.iterdir():
        if path.name != "tools":
            (folder / path.name).symlink_to(path)
    own = sorted(Path(__file__).resolve().parent.glob("bench_*.py"))
    for path in [*(checkout / "tools").glob("*.py"), *own]:
        shutil.copyfile(path, folder / "tools" / path.name)  # not a link: modules look for the project beside them
    return folder


def measure(folder: Path, module: str, function: str, settings: Mapping[str, Any], threads: int = 1) -> list[Row]:
    """The rows of tools/<module>.py's `function`, called with `settings` in a process in `folder`.

    Raises:
        ValueError: it failed; its last line is the reason.
    """
    words = [sys.executable, str(folder / "tools" / Path(__file__).name), module, function, json.dumps(settings)]
    result = subprocess.run(words, cwd=folder, env=environment(threads), capture_output=True, text=True)
    line = next((line for line in result.stdout.splitlines() if line.startswith(MARK)), "")
    if result.returncode or not line:
        reason = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        raise ValueError(f"{module}.{function} in {folder}: {reason[-1] if reason else result.returncode!s:.300}")
    return [Row(**row) for row in json.loads(line.removeprefix(MARK))]


def environment(threads: int) -> dict[str, str]:
    """The environment of a process with so many CPU threads."""
    return os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONDONTWRITEBYTECODE": ""}


def as_rows(found: Iterable[Any]) -> list[Row]:
    """Rows of any type that has the same attributes, or the milliseconds of a part and of a plain form of it."""
    rows = []
    for row in found:
        if hasattr(row, "plain_ms"):
            rows += [
                Row(row.name, "ms, CPU", float(row.now_ms)),
                Row(f"{row.name}, plain", "ms, CPU", float(row.plain_ms)),
            ]
        else:
            rows.append(Row(row.name, row.unit, float(row.value)))
    return rows


def children_seconds() -> float:
    """Seconds of CPU time of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(words: Sequence[str]) -> None:
    """Call a function of a module beside this file, and print its rows as JSON."""
    module, function, settings = words
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    found = getattr(importlib.import_module(f"tools.{module}"), function)(**json.loads(settings))
    print(MARK + json.dumps([asdict(row) for row in as_rows(found)]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
