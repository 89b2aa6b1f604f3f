"""Run the hostile model files of the tests through detect.py and print a table: `python tools/hostile_table.py`.

Each file is given to detect.py in a process of its own. The table has the exit code, the seconds, the memory above a
run with a healthy file and what was printed. Exit code 1 if anything was executed, one took more than 5 s or 1 GB, or
printed anything but one clean line of error. POSIX only (it forks, so that imports are not measured).
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import detect
from utils.config import Config, flag, run_script
from utils.files import REPO
from utils.text import clean, visible

SECONDS, MEMORY, LINE = 5.0, 1.0, 400


@dataclass(frozen=True)
class TableConfig(Config):
    """Run the hostile model files of the tests through detect.py and print a table."""

    only: tuple[str, ...] = flag((), "names of the files to run, all without it")
    limit: float = flag(60.0, "seconds after which a run is ended")


@dataclass(frozen=True)
class Run:
    """One run of detect.py: exit code, seconds of CPU time, peak memory in GB, what it printed on stderr."""

    code: int
    seconds: float
    memory: float
    text: str

    def breach(self, plain: Run) -> str:
        """What was promised and not kept; empty: nothing."""
        if self.code != 2:
            return f"exit code {self.code}"
        if self.seconds > plain.seconds + SECONDS:
            return "slow"
        if self.memory > plain.memory + MEMORY:
            return "memory"
        lines = self.text.rstrip("\n")
        if len(lines) >= LINE or not all(map(visible, lines)) or not lines.startswith("error: "):
            return "not one clean line"
        return ""


def run_detect(weights: Path, source: Path, project: Path, limit: float) -> Run:
    """detect.py with these weights, in a forked process."""
    printed = project.with_suffix(".stderr")
    child = os.fork()
    if child == 0:
        os.dup2(os.open(printed, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.argv = ["detect.py", "--weights", str(weights), "--source", str(source), "--device", "cpu"]
        sys.argv += ["--project", str(project)]
        code = 99  # of what a traceback would be printed for
        try:
            run_script(detect.main, detect.DetectConfig)
            code = 0
        except SystemExit as ended:
            sys.stderr.flush()
            code = int(ended.code or 0)
        finally:
            os._exit(code)
    ends = time.monotonic() + limit
    while True:
        pid, status, usage = os.wait4(child, os.WNOHANG)
        if pid:
            break
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    text = printed.read_text(encoding="utf-8", errors="replace") if printed.exists() else ""
    unit = 1 if sys.platform == "darwin" else 1024
    return Run(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e9, text)


def files(left: Path) -> dict[str, tuple[str, Callable[[Path], object]]]:
    """Name -> (suffix, what writes it) of all files; those that would run something would make the file `left`."""
    from hostile import CORPUS  # of tests/, which are in a clone only
    from hostile_plain import PLAIN

    command = f"touch '{left}'"
    running = {title: (".pt", lambda path, w=write: w(path, command)) for title, write in CORPUS.items()}
    return running | PLAIN


def main(cfg: TableConfig) -> Counter[str]:
    """Print the table and the totals."""
    sys.path.insert(0, str(REPO / "tests"))
    from tiny import write_tiny

    counts: Counter[str] = Counter()
    slowest, largest = 0.0, 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        healthy, left = write_tiny(folder), folder / "left"
        plain = run_detect(healthy, folder / "images", folder / "plain", cfg.limit)
        if plain.code:
            raise ValueError(f"the healthy file ended with {plain.code}: {clean(plain.text)}")
        for title, (suffix, write) in files(left).items():
            if cfg.only and title not in cfg.only:
                continue
            path = folder / f"weights{suffix}"
            write(path)
            run = run_detect(path, folder / "images", folder / "run", cfg.limit)
            path.unlink()
            breach = "executed" if left.exists() else run.breach(plain)
            left.unlink(missing_ok=True)
            counts["breach" if breach else "refused"] += 1
            slowest, largest = max(slowest, run.seconds), max(largest, run.memory - plain.memory)
            shown = clean(run.text.replace(str(folder), ""), 110)
            print(
                f"{title:<42} {run.code:>3} {run.seconds:>5.1f} s {run.memory - plain.memory:>6.2f} GB "
                f"{breach or shown}"
            )
    print(
        f"{counts.total()} files: {counts['refused']} refused in one line, {counts['breach']} not; "
        f"slowest {slowest:.1f} s, largest {largest:.2f} GB above a plain run"
    )
    if counts["breach"]:
        sys.exit(1)
    return counts


if __name__ == "__main__":
    run_script(main, TableConfig)
