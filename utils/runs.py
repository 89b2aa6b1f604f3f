"""Run folders: making them, finding them, and the files in them."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from utils.files import REPO, read_yaml, write_atomic

LOGGER = logging.getLogger(__name__)


class Run:
    """A folder `project/name`, or `name2`, `name3`, ... if that exists and `exist_ok` is not set.

    Args:
        rank: of this process; only rank 0 makes folders and writes files.

    Raises:
        ValueError: a file has this path.
    """

    def __init__(self, project: str | Path, name: str, exist_ok: bool = False, rank: int = 0):
        self.dir, self.rank = Path(project) / name, rank
        if self.dir.is_file():
            raise ValueError(f"{self.dir}: is a file, expected a folder or an unused name")
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
        """The folder of checkpoints, which is made if it does not exist."""
        folder = self.dir / "weights"
        if self.rank == 0:
            folder.mkdir(exist_ok=True)
        return folder

    def clear(self) -> None:
        """Remove metrics.json, which marks an earlier run as finished; its weights stay until they are replaced."""
        if self.rank == 0:
            (self.dir / "metrics.json").unlink(missing_ok=True)

    def dump(self, name: str, values: Mapping[str, Any]) -> None:
        """Write `values` as the YAML file `name`."""
        if self.rank == 0:
            write_atomic(self.dir / name, yaml.safe_dump(dict(values), sort_keys=False))

    def log(self, row: Mapping[str, float | int]) -> None:
        """Append a row to results.csv, with a header before the first.

        Rows of the same and of later epochs are removed: a resumed run repeats them.
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


def newest_checkpoint(project: Path, name: str = "last.pt") -> Path | None:
    """The checkpoint `name` that was written last in a run below `project`, however nested; None if there is none."""
    found = project.rglob(f"weights/{name}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def weights_or_newest(weights: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """`weights`, or if empty best.pt of the newest training run, here or in the repository, which is logged.

    Raises:
        FileNotFoundError: empty, and there is no run; says which command makes one.
    """
    if weights and all(weights):
        return weights
    for root in dict.fromkeys((Path.cwd(), REPO)):
        best = newest_checkpoint(root / "runs", "best.pt")
        if best is not None:
            path = best.relative_to(root) if root == Path.cwd() else best
            LOGGER.info(f"--weights not given: using {path}, the newest training run")
            return str(path)
    raise FileNotFoundError(
        "--weights not given, and no training run found in ./runs; "
        "train one with: python train.py --cfg yolov5-mobilevit.yaml"
    )


def training_data(weights: str | tuple[str, ...], builtin: str = "data/shapes.yaml") -> str:
    """The data YAML of the run that wrote `weights`, from opt.yaml in its folder; `builtin` for weights of no run.

    A relative name is also looked for in the folders above the run, one of which is where it was trained. The choice
    is logged.

    Raises:
        FileNotFoundError: the YAML of the run is not there any more.
    """
    first = weights if isinstance(weights, str) else weights[0]
    options = Path(first).resolve().parent.parent / "opt.yaml"
    data = read_yaml(options).get("data") if options.is_file() else None
    if not isinstance(data, str):
        LOGGER.info(f"--data not given: using the built-in set, {builtin}")
        return builtin
    tries = [Path(data), *(folder / data for folder in options.parent.parents), REPO / data, REPO / "data" / data]
    path = next((path for path in tries if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"--data not given, and {data}, on which {first} was trained, not found; pass --data")
    LOGGER.info(f"--data not given: using {path}, on which {first} was trained")
    return str(path)
