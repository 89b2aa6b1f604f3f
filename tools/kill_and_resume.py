"""Kill training runs in an epoch, a save, a validation or at any time, resume them, and compare them bit for bit.

    python tools/kill_and_resume.py --kills 2

Every cell of a matrix (two networks x settings x loader processes) is trained once without interruption, then killed
with SIGKILL at random calls of each place and resumed. Each must end with the weights, averages, optimizer state and
results.csv of the uninterrupted run; else the exit code is 1. It prints a table in Markdown. Linux only.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_1, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class KillConfig(Config):
    """Kill and resume training runs, and compare each with an uninterrupted one.

    Example: --kills 2 --only mosaic
    """

    kills: int = flag(1, "kills at each place of each cell", bounds=AT_LEAST_1)
    only: str = flag("", "only settings with this in their name, such as mosaic")
    epochs: int = flag(3, "epochs of each run", bounds=AT_LEAST_1)
    images: int = flag(16, "training images", bounds=AT_LEAST_1)
    seed: int = flag(0, "random seed of the places")


if __name__ == "__main__":
    check_cli(KillConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import csv
import json
import multiprocessing
import os
import random
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

import train
from data.make_shapes import ensure_shapes
from models.weights.checkpoint import load_checkpoint
from utils.evaluate import evaluation

WALL_CLOCK = {"seconds"}  # columns and keys of measured time, which are not compared
PLACES = ("epoch", "save", "validation", "any time")
WORKERS = (0, 2)
TIMEOUT = 300.0  # seconds for one run
NETWORK = """nc: 6
depth_multiple: 1.0
width_multiple: 1.0
anchors: [[10, 12, 24, 20], [40, 30, 50, 64]]
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - {0}
  - {1}
  - {2}
head:
  - [[3, 4], 1, Detect, [nc, anchors]]
"""
LAYERS = {
    "convolutions": ("[-1, 1, C3, [16]]", "[-1, 1, Conv, [24, 3, 2]]", "[-1, 1, Conv, [32, 3, 2]]"),
    "MobileViT": (
        "[-1, 1, MV2Block, [16, 2, 2]]",
        "[-1, 1, MobileViTBlock, [24, 16, 1]]",
        "[-1, 1, MV2Block, [32, 2, 2]]",
    ),
}
MOSAIC = {"hyp": "hyp.scratch-low.yaml"}
CACHE, SCALES, WEIGHTS = {"cache": "disk"}, {"multi_scale": True}, {"image_weights": True}
SETTINGS: dict[str, dict[str, Any]] = {
    "fitted recipe": {},
    "mosaic": MOSAIC,
    "disk cache": CACHE,
    "multi-scale": SCALES,
    "image weights": WEIGHTS,
    "these four": MOSAIC | CACHE | SCALES | WEIGHTS,
    "two processes": {"processes": 2, "sync_bn": True},
}


@dataclass(frozen=True)
class Kill:
    """Where a run kills itself: at the `call`th call of `place`, of which it is in the middle."""

    place: str
    call: int


def same(a: Any, b: Any) -> bool:
    """Whether nested tensors and plain data are equal bit for bit, without measured time."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a if k not in WALL_CLOCK)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def table(folder: Path) -> list[dict[str, str]]:
    """The rows of results.csv without measured time."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in csv.DictReader(file)]


def differences(one: Path, other: Path) -> list[str]:
    """The names of the parts in which two run folders differ."""
    a, b = (load_checkpoint(folder / "weights" / "last.pt") for folder in (one, other))
    keys = ("model", "ema", "epoch", "fitness", "training", "names", "yaml")
    found = [key for key in keys if not same(getattr(a, key), getattr(b, key))]
    best = [load_checkpoint(folder / "weights" / "best.pt").model for folder in (one, other)]
    found += [] if same(*best) else ["best.pt"]
    return found + ([] if table(one) == table(other) else ["results.csv"])


class Counter:
    """Counts the calls of each place in this process, and kills it in the middle of one."""

    def __init__(self, kill: Kill | None):
        self.kill, self.calls, self.saving = kill, dict.fromkeys(PLACES[:3], 0), False

    def reached(self, place: str) -> bool:
        """Count a call; whether it is the one to be killed in."""
        self.calls[place] += 1
        return self.kill == Kill(place, self.calls[place])

    def watch(self) -> None:
        """Put the counting into train, evaluation and os."""
        train.to_input = self.before(train.to_input, "epoch")
        evaluation.non_max_suppression = self.before(evaluation.non_max_suppression, "validation")
        os.replace = self.after(self.before(os.replace, "save"))  # type: ignore[assignment]
        os.link, os.fsync = self.after(os.link), self.half(os.fsync)  # type: ignore[assignment]
        save = train.save

        def save_and_count(*args: Any) -> None:
            self.saving = True
            save(*args)
            self.saving = False

        train.save = save_and_count  # type: ignore[assignment]

    def before(self, function: Callable, place: str) -> Callable:
        def counted(*args: Any, **kwargs: Any) -> Any:
            if (place != "save" or self.saving) and self.reached(place):
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    def after(self, function: Callable) -> Callable:
        def counted(*args: Any) -> None:
            function(*args)
            if self.saving and self.reached("save"):
                os.kill(os.getpid(), signal.SIGKILL)

        return counted

    def half(self, function: Callable) -> Callable:
        """In a save: the file is half written."""

        def counted(file: int) -> None:
            if self.saving and self.reached("save"):
                os.ftruncate(file, os.fstat(file).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            function(file)

        return counted


def train_here(settings: dict[str, Any], kill: Kill | None, log: Path, env: dict[str, str]) -> None:
    """Train in this process, whose output goes to a log; its number of calls is in a JSON file beside that."""
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ |= env
    counter = Counter(kill)
    counter.watch()
    train.main(train.TrainConfig(**settings))
    if env.get("RANK", "0") == "0":
        log.with_suffix(".json").write_text(json.dumps(counter.calls))


def run(settings: dict[str, Any], processes: int, log: Path, kill: Kill | None = None, after: float = TIMEOUT) -> bool:
    """Train in new processes; whether they came to their end. When the first is killed, the others are too.

    Args:
        after: seconds after which they are killed.

    Raises:
        RuntimeError: one failed, with its output.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    shared |= {"LOCAL_WORLD_SIZE": str(processes)}
    group = []
    for rank in range(processes):
        env = shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {}
        arguments = (settings, None if rank else kill, log, env)
        group.append(multiprocessing.get_context("fork").Process(target=train_here, args=arguments))
        group[-1].start()
    group[0].join(after)
    if group[0].exitcode != 0:
        for process in group:
            process.kill()
    for process in group:
        process.join()
    first, others = group[0].exitcode, {process.exitcode for process in group[1:]}
    may_be_killed = kill is not None or after != TIMEOUT
    if (first == 0 and others - {0}) or (first != 0 and not (may_be_killed and first == -signal.SIGKILL)):
        raise RuntimeError(f"{settings} ended with {first}, {others}: {log.read_text()[-4000:]}")
    return first == 0


def killed_and_resumed(settings: dict[str, Any], processes: int, kill: Kill, length: float) -> bool:
    """Run with a kill, then to the end; whether it was killed at all.

    Args:
        kill: of the place 'any time' at `call` thousandths of `length`, the seconds of a whole run.
    """
    folder = Path(settings["project"], settings["name"])
    log, timed = folder.with_suffix(".log"), kill.place == PLACES[-1]
    moment = length * kill.call / 1000 if timed else TIMEOUT
    if run(settings, processes, log, None if timed else kill, moment):
        return False
    resumed = {"resume": str(folder), "device": "cpu", "workers": settings["workers"]}
    saved = any((folder / "weights" / name).exists() for name in ("last.pt", "last.prev.pt"))
    run(resumed if saved else settings | {"exist_ok": True}, processes, log)
    return True


def try_cell(base: dict[str, Any], processes: int, cfg: KillConfig, rng: random.Random) -> dict[tuple[int, str], str]:
    """'equal/runs' by (workers, place) of one network with one setting; prints each run that differs."""
    name, began = base["name"], time.monotonic()
    whole = Path(base["project"], name)
    run(base | {"workers": 0}, processes, whole.with_suffix(".log"))
    length, calls = time.monotonic() - began, json.loads(whole.with_suffix(".json").read_text())
    results = {}
    for workers in WORKERS:
        for place in PLACES:
            equal = 0
            for number in range(cfg.kills):
                kill = Kill(place, rng.randint(100, 1000) if place == PLACES[-1] else rng.randint(1, calls[place]))
                trial = base | {"name": f"{name}-{workers}-{place}-{number}".replace(" ", "_"), "workers": workers}
                killed = killed_and_resumed(trial, processes, kill, length)
                found = differences(whole, Path(base["project"], trial["name"]))
                equal += not found
                if found or not (killed or place == PLACES[-1]):
                    print(f"{trial['name']}: call {kill.call}: {', '.join(found) or 'not killed'}", flush=True)
            results[workers, place] = f"{equal}/{cfg.kills}"
    return results


def main(cfg: KillConfig) -> None:
    """Try all cells and print the table; exits with 1 if a run differs."""
    torch.set_num_threads(1)  # a process with threads cannot be forked
    rng, began, total, equal = random.Random(cfg.seed), time.monotonic(), 0, 0
    columns = [(workers, place) for workers in WORKERS for place in PLACES]
    with tempfile.TemporaryDirectory() as place:
        data = ensure_shapes(Path(place, "set"), train=cfg.images, val=8, clip_frames=0)
        print(
            "| network | settings | " + " | ".join(f"{place}, {workers} workers" for workers, place in columns) + " |"
        )
        print("|---" * (2 + len(columns)) + "|", flush=True)
        for network, layers in LAYERS.items():
            Path(place, f"{network}.yaml").write_text(NETWORK.format(*layers))
            for setting, flags in SETTINGS.items():
                if cfg.only not in setting:
                    continue
                own = {key: value for key, value in flags.items() if key != "processes"}
                base = own | {"cfg": f"{place}/{network}.yaml", "data": str(data), "device": "cpu", "imgsz": 64}
                base |= {"batch_size": 4, "epochs": cfg.epochs, "noplots": True, "project": place}
                base |= {"name": f"{network}-{setting}".replace(" ", "_")}
                results = try_cell(base, flags.get("processes", 1), cfg, rng)
                print(f"| {network} | {setting} | {' | '.join(results[column] for column in columns)} |", flush=True)
                total += cfg.kills * len(columns)
                equal += sum(int(text.partition("/")[0]) for text in results.values())
    print(f"{equal} of {total} killed runs are equal bit for bit, in {(time.monotonic() - began) / 60:.0f} minutes")
    sys.exit(0 if equal == total else 1)


if __name__ == "__main__":
    run_script(main, KillConfig)
