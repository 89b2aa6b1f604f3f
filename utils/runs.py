"""A run's folder and what is written there."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that a reader sees the old one or the new one, never half of it.

    Several processes may write the same file: the last one wins.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


class Run:
    """A folder `project/name`, or `name2`, `name3`, ... if that exists and `exist_ok` is not set.

    Args:
        rank: of this process; only rank 0 makes folders and writes files.

    Raises:
        ValueError: the place is taken by a file.
    """

    def __init__(self, project: str | Path, name: str, exist_ok: bool = False, rank: int = 0):
        self.dir, self.rank = Path(project) / name, rank
        if self.dir.is_file():
            raise ValueError(f"{self.dir}: a file is in the way, expected a folder or a free name")
        number = 2
        while rank == 0:
            try:
                self.dir.mkdir(parents=True, exist_ok=exist_ok)
                break
            except FileExistsError:
                self.dir = Path(project) / f"{name}{number}"
                number += 1

    @property
    def weights(self) -> Path:
        """The folder of checkpoints, made when first asked for."""
        folder = self.dir / "weights"
        if self.rank == 0:
            folder.mkdir(exist_ok=True)
        return folder

    def clear(self) -> None:
        """Remove an earlier run's mark that it was finished; its weights stay until new ones replace them."""
        if self.rank == 0:
            (self.dir / "metrics.json").unlink(missing_ok=True)

    def dump(self, name: str, values: Mapping[str, Any]) -> None:
        """Write `values` as YAML."""
        if self.rank == 0:
            write_atomic(self.dir / name, yaml.safe_dump(dict(values), sort_keys=False))

    def log(self, row: Mapping[str, float | int]) -> None:
        """Append a row to results.csv; the first one writes the header, and a row of an earlier run of the same or a
        later epoch goes: a resumed run writes it again.
        """
        if self.rank:
            return
        path = self.dir / "results.csv"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(row.keys())
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                writer.writerows(old for old in list(csv.reader(file))[1:] if int(old[0]) < row["epoch"])
        writer.writerow(v if isinstance(v, int) else f"{v:.6g}" for v in row.values())
        write_atomic(path, text.getvalue())


def newest_checkpoint(project: Path) -> Path:
    """The last.pt below `project` that was written last.

    Raises:
        FileNotFoundError: there is none.
    """
    found = list(project.glob("*/weights/last.pt"))
    if not found:
        raise FileNotFoundError(f"{project}: no run to resume, looked for {project / '*' / 'weights' / 'last.pt'}")
    return max(found, key=lambda path: path.stat().st_mtime)


class EarlyStopping:
    """Tells when the fitness has not risen for `patience` epochs (0: never)."""

    def __init__(self, patience: int):
        self.patience = patience or math.inf
        self.best, self.best_epoch = -math.inf, 0

    def improved(self, fitness: float, epoch: int) -> bool:
        """Record an epoch; True if it is the best so far (a tie counts, NaN does not)."""
        if not fitness >= self.best:
            return False
        self.best, self.best_epoch = fitness, epoch
        return True

    def should_stop(self, epoch: int) -> bool:
        """Never before an epoch was measured."""
        return self.best > -math.inf and epoch - self.best_epoch >= self.patience

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best, self.best_epoch = state["best"], int(state["best_epoch"])
