"""Run folders: making them, finding them, and the files in them."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from utils.commands import command
from utils.files import PARTIAL, REPO, read_yaml, write_atomic
from utils.locks import FolderLock
from utils.text import counted

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
        self._lock: FolderLock | None = None
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

    def lock(self) -> None:
        """Keep other runs out of the folder until `release`; files that killed ones left half written are removed.

        Raises:
            ValueError: another run writes into it.
        """
        if self.rank == 0:
            self._lock = FolderLock(self.dir)
            for partial in (*self.dir.glob(PARTIAL), *self.dir.glob(f"weights/{PARTIAL}")):
                partial.unlink(missing_ok=True)

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def clear(self) -> None:
        """Remove what marks an earlier run as finished; its weights stay until they are replaced."""
        for name in ("metrics.json", "report.html") if self.rank == 0 else ():
            (self.dir / name).unlink(missing_ok=True)

    def dump(self, name: str, values: Mapping[str, Any]) -> None:
        """Write `values` as the YAML file `name`."""
        if self.rank == 0:
            write_atomic(self.dir / name, yaml.safe_dump(dict(values), sort_keys=False))

    def log(self, row: Mapping[str, float | int]) -> None:
        """Append a row to results.csv, with a header before the first.

        Rows of the same and of later epochs are removed: a resumed run repeats them. So are those that are damaged.
        """
        if self.rank:
            return
        path = self.dir / "results.csv"
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(row.keys())
        if path.exists():
            lines = path.read_text(encoding="utf-8", errors="replace").replace("\0", "?").splitlines()
            rows = [old for old in list(csv.reader(lines))[1:] if len(old) == len(row) and old[0].isdecimal()]
            if len(rows) < len(lines) - 1:
                LOGGER.warning(f"{path}: {counted(len(lines) - 1 - len(rows), 'damaged line')} left out")
            writer.writerows(old for old in rows if int(old[0]) < row["epoch"])
        writer.writerow(v if isinstance(v, int) else f"{v:.6g}" for v in row.values())
        write_atomic(path, text.getvalue())


LIST_OF_FILES = ".outputs"  # in a folder: the files that this program wrote there


class OutputFiles:
    """The files that this program writes into a folder. Their list is `.outputs` in it, with sizes and times.

    Only a file on the list that was not changed since is replaced by a later run. Any other file is somebody's own: it
    is neither deleted nor overwritten.

    Raises:
        ValueError: `.outputs` is not such a list.
    """

    def __init__(self, folder: Path):
        self.folder, self.list = folder, folder / LIST_OF_FILES
        self.known: dict[str, tuple[int, int]] = {}
        if self.list.is_file():
            try:
                rows = [json.loads(line) for line in self.list.read_text(encoding="utf-8").splitlines()]
                self.known = {str(name): (int(size), int(time)) for name, size, time in rows}
            except (ValueError, TypeError) as error:
                raise ValueError(f"{self.list}: not the list of a run's files; choose another --name") from error

    def is_own(self, path: Path) -> bool:
        """Whether this program wrote `path` and nobody changed it since; never true of a link."""
        try:
            stat, known = path.lstat(), self.known.get(self.key(path))
        except OSError:
            return False
        return known == (stat.st_size, stat.st_mtime_ns) and not path.is_symlink()

    def key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def remove_earlier(self, sources: Iterable[Path] = ()) -> None:
        """Delete the files of earlier runs, which a new run replaces; those changed since are kept and named.

        Raises:
            ValueError: one of them is also one of `sources`; then nothing is deleted.
        """
        paths = [self.folder / name for name in self.known]
        own = [path for path in paths if self.is_own(path)]
        read = {identity for path in sources if (identity := file_identity(path))}
        for path in own:
            if file_identity(path) in read:
                raise ValueError(f"{path} is a source, and a result that this run would replace; choose another --name")
        changed = [path for path in paths if path not in own and os.path.lexists(path)]
        if changed:
            kept = counted(len(changed), "changed result of an earlier run is", "changed results of earlier runs are")
            LOGGER.warning(f"{kept} kept: {changed[0]}")
        for path in own:
            path.unlink()
        for folder in sorted({parent for path in own for parent in path.parents}, reverse=True):
            if self.folder in folder.parents:
                with suppress(OSError):  # not empty
                    folder.rmdir()
        self.known = {}
        self.list.unlink(missing_ok=True)

    def check(self, path: Path) -> Path:
        """`path`, which may be written.

        Raises:
            FileExistsError: there is a file that is not this program's.
        """
        if os.path.lexists(path) and not self.is_own(path):
            raise FileExistsError(f"{path} exists and is not a result of an earlier run: not overwritten")
        return path

    def add(self, path: Path) -> None:
        """Put a file that was written on the list."""
        stat = path.lstat()
        self.known[self.key(path)] = (stat.st_size, stat.st_mtime_ns)
        try:
            with self.list.open("a", encoding="utf-8") as file:
                file.write(json.dumps([self.key(path), stat.st_size, stat.st_mtime_ns]) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.list)) from error

    @contextmanager
    def writing(self, path: Path) -> Iterator[Path]:
        """Check `path`, make its folder, and after the block, which writes it, put it on the list."""
        self.check(path).parent.mkdir(parents=True, exist_ok=True)
        yield path
        self.add(path)


def file_identity(path: Path) -> tuple[int, int] | None:
    """Device and number of the file that `path` is, or links to; None if there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def newest_checkpoint(project: Path, name: str = "last.pt") -> Path | None:
    """The checkpoint `name` that was written last in a run below `project`, however nested; None if there is none."""
    found = project.rglob(f"weights/{name}")
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def newest_to_resume(project: Path) -> Path:
    """The last.pt that was written last below `project`; a newer run that has none yet is named in a warning.

    Raises:
        FileNotFoundError: there is none.
    """
    path = newest_checkpoint(project)
    if path is None:
        raise FileNotFoundError(f"{project}: no run to resume, expected a folder with weights/last.pt below it")
    newer = [o for o in project.rglob("opt.yaml") if not (o.parent / "weights" / "last.pt").exists()]
    newer = [options.parent for options in newer if options.stat().st_mtime > path.stat().st_mtime]
    if newer:
        LOGGER.warning(
            f"{newer[0]}: a newer run, which ended before its first checkpoint; "
            f"resuming {path}, the newest one that can be"
        )
    return path


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
        f"train one with: {command('train', '--cfg', 'yolov5-mobilevit.yaml')}"
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
