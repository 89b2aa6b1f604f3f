"""Long fuzzing runs: random and damaged inputs, each of which must be read or refused in one line, soon and small.

    python tools/fuzz.py --minutes 30
    python tools/fuzz.py --minutes 5 --only checkpoint yaml
    python tools/fuzz.py --only yaml --seed 1234 --count 1      # one input again

A fuzzer is a function of (random.Random, folder) that makes one input, reads it and raises on a breach of what is
promised; `refused_or_read` holds the promise. To add one, write it in a module with a dict FUZZERS, named in MODULES.
POSIX only (it forks).
"""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_0, Config, flag, run_script
from utils.files import REPO
from utils.text import visible

LOGGER = logging.getLogger(__name__)
Fuzzer = Callable[[random.Random, Path], None]
HANG = 10.0  # seconds for one input
MEMORY = 1.0  # GB that inputs may add to what the first one needed
LINE = 400  # characters of an error

FUZZERS: dict[str, Fuzzer] = {}  # filled from MODULES when this file is run
# Each has a dict FUZZERS; some import this module, so it imports them late. Those of tests/ are in a clone only.
MODULES = ("tools.fuzz_models", "fuzz_data", "fuzz_http")


@dataclass(frozen=True)
class FuzzConfig(Config):
    """Run the fuzzers of all inputs, or some of them, and count the outcomes; exit code 1 on a breach.

    Example: --minutes 5 --only labels yaml
    """

    minutes: float = flag(1.0, "time for all fuzzers together", bounds=AT_LEAST_0)
    only: tuple[str, ...] = flag((), "names of the fuzzers to run, all without it")
    seed: int = flag(0, "seed of the first input; each next one is one higher")
    count: int = flag(0, "inputs of each fuzzer, 0: until the time is over", bounds=AT_LEAST_0)
    out: str = flag("runs/fuzz", "folder for the files of inputs that caused a breach")


def refused_or_read(read: Callable[[], object]) -> bool:
    """Whether `read()` returned; it may raise an error that scripts show, of one clean line.

    Raises:
        AssertionError: the error has several lines, is long or holds control characters. Other errors pass through.
    """
    try:
        read()
    except (ValueError, OSError) as error:
        text = str(error)
        assert len(text) < LINE, f"an error of {len(text)} characters: {text[:200]!r}"
        assert all(map(visible, text)), f"an error with control characters: {text[:200]!r}"
        return False
    return True


def run_inputs(fuzzer: Fuzzer, first: int, count: int, folder: Path, results: Connection) -> None:
    """In a process of its own: one input after another; sends (seed, breach or "", GB of memory) for each."""
    logging.disable(logging.CRITICAL)
    with ThreadPoolExecutor(1) as pool:
        for seed in range(first, first + count) if count else iter_from(first):
            for path in folder.iterdir():
                path.unlink() if not path.is_dir() or path.is_symlink() else None
            error = pool.submit(fuzzer, random.Random(seed), folder).exception()  # whatever it raises is looked for
            breach = "".join(traceback.format_exception(error, limit=-4)) if error else ""
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
            results.send((seed, breach, peak))


def iter_from(first: int) -> Iterator[int]:
    """first, first + 1, ... without end."""
    while True:
        yield first
        first += 1


def run_fuzzer(name: str, seconds: float, cfg: FuzzConfig) -> Counter[str]:
    """Run one fuzzer for a time; counts inputs, breaches, hangs and crashes, and prints each that is not fine."""
    counts: Counter[str] = Counter()
    ends, seed, base = time.monotonic() + seconds, cfg.seed, 0.0
    context = multiprocessing.get_context("fork")
    while (time.monotonic() < ends or cfg.count) and (not cfg.count or seed < cfg.seed + cfg.count):
        with tempfile.TemporaryDirectory() as scratch:
            receiver, sender = context.Pipe(duplex=False)
            left = cfg.seed + cfg.count - seed if cfg.count else 0
            child = context.Process(target=run_inputs, args=(FUZZERS[name], seed, left, Path(scratch), sender))
            child.start()
            sender.close()
            while (time.monotonic() < ends or cfg.count) and (not cfg.count or seed < cfg.seed + cfg.count):
                outcome, detail = "hang", f"no end after {HANG:g} s"
                if receiver.poll(HANG):
                    try:
                        _, detail, peak = receiver.recv()
                        base = base or peak
                        outcome = "breach" if detail else "fine"
                        if peak > base + MEMORY:
                            outcome, detail = "memory", f"{peak - base:.1f} GB more than the first input needed"
                    except EOFError:
                        child.join()
                        outcome, detail = "crash", f"exit code {child.exitcode}"
                counts[outcome] += 1
                if outcome != "fine":
                    LOGGER.error(f"{name}: {outcome} at seed {seed}: {detail}")
                    keep_files(Path(scratch), Path(cfg.out) / f"{name}-{seed}")
                seed += 1
                if outcome in ("hang", "crash", "memory"):
                    base = 0.0
                    break
            child.kill()
            child.join()
    return counts


def keep_files(folder: Path, to: Path) -> None:
    """Copy the plain files of a folder."""
    to.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and not path.is_symlink():
            (to / path.name).write_bytes(path.read_bytes())


def main(cfg: FuzzConfig) -> Counter[str]:
    """Run the fuzzers and print their counts; returns the sums, exits with 1 on a breach."""
    sys.path.append(str(REPO / "tests"))
    for module in MODULES:
        FUZZERS.update(importlib.import_module(module).FUZZERS)
    unknown = sorted(set(cfg.only) - FUZZERS.keys())
    if unknown:
        raise ValueError(f"--only {unknown[0]}: no such fuzzer, expected one of: {', '.join(FUZZERS)}")
    names = [name for name in FUZZERS if not cfg.only or name in cfg.only]
    total: Counter[str] = Counter()
    for name in names:
        began = time.monotonic()
        counts = run_fuzzer(name, 60 * cfg.minutes / len(names), cfg)
        total += counts
        bad = ", ".join(f"{counts[kind]} {kind}" for kind in ("breach", "hang", "crash", "memory"))
        LOGGER.info(f"{name:<16} {counts.total():>8,} inputs in {time.monotonic() - began:>6.1f} s: {bad}")
    if total.total() > total["fine"]:
        sys.exit(1)
    return total


if __name__ == "__main__":
    run_script(main, FuzzConfig)
