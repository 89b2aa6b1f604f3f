"""A run's folder and what is written there."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8, so that a reader sees the old one or the new one, never half of it."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(partial, path)


class Run:
    """A folder `project/name`, or `name2`, `name3`, ... if that exists and `exist_ok` is not set.

    Raises:
        ValueError: the place is taken by a file.
    """

    def __init__(self, project: str | Path, name: str, exist_ok: bool = False):
        self.dir = Path(project) / name
        if self.dir.is_file():
            raise ValueError(f"{self.dir}: a file is in the way, expected a folder or a free name")
        number = 2
        while True:
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
        folder.mkdir(exist_ok=True)
        return folder

    def dump(self, name: str, values: Mapping[str, Any]) -> None:
        """Write `values` as YAML."""
        write_atomic(self.dir / name, yaml.safe_dump(dict(values), sort_keys=False))

    def log(self, row: Mapping[str, float | int]) -> None:
        """Append a row to results.csv; the first one writes the header."""
        path = self.dir / "results.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(row.keys())
            writer.writerow(v if isinstance(v, int) else f"{v:.6g}" for v in row.values())


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
        return epoch - self.best_epoch >= self.patience
