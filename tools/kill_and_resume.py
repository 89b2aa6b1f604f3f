"""Kill training runs with SIGKILL at random moments, resume them, and compare them with an uninterrupted run.

    python tools/kill_and_resume.py --trials 20

Generates a small data set and trains on it once without interruption, then `trials` times with one or two kills. Every
trial must end with the same weights, averages, optimizer state and results.csv, bit for bit; else the exit code is 1.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import check_cli, flag, run_script


@dataclass(frozen=True)
class KillConfig:
    """Kill and resume training runs, and compare each with an uninterrupted one.

    Example: --trials 20
    """

    trials: int = flag(20, "number of runs to kill")
    cfg: str = flag("yolov5-mobilevit.yaml", "model YAML")
    epochs: int = flag(4, "epochs of each run")
    images: int = flag(32, "training images")
    workers: int = flag(2, "data loader processes of the uninterrupted run; the trials have 0 to this many in turn")
    seed: int = flag(0, "random seed of the moments")


if __name__ == "__main__":
    check_cli(KillConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import csv
import random
import signal
import subprocess
import tempfile
import time
from typing import Any

import torch

from models.weights.checkpoint import load_checkpoint
from utils.files import REPO

WALL_CLOCK = {"seconds"}  # columns and keys of measured time, which are not compared


def train_command(data: Path, folder: Path, cfg: KillConfig, workers: int) -> list[str]:
    """The command line that trains into `folder`."""
    return [
        *(sys.executable, str(REPO / "train.py"), "--cfg", cfg.cfg, "--data", str(data), "--device", "cpu"),
        *("--imgsz", "64", "--batch-size", "8", "--epochs", str(cfg.epochs), "--workers", str(workers), "--noplots"),
        *("--project", str(folder.parent), "--name", folder.name),
    ]


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


def killed_run(command: list[str], folder: Path, length: float, rng: random.Random) -> list[float]:
    """Run `command`, kill it once or twice at random moments, resume it until it ends; returns the moments in seconds.

    Args:
        length: duration of an uninterrupted run, seconds.
    """
    moments, kills = list[float](), rng.choice([1, 1, 2])
    while True:
        moment = rng.uniform(0.3, 1.0) * length if len(moments) < kills else None
        log = folder.with_suffix(".log")
        with log.open("w") as errors, subprocess.Popen(command, stdout=errors, stderr=errors) as process:
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired as expired:
                moments.append(expired.timeout)
                process.send_signal(signal.SIGKILL)
                process.wait()
            else:
                if process.returncode:
                    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {log.read_text()}")
                return moments
        if (folder / "weights" / "last.pt").exists():
            command = [sys.executable, str(REPO / "train.py"), "--resume", str(folder), "--device", "cpu"]
        elif "--exist-ok" not in command:
            command = [*command, "--exist-ok"]


def main(cfg: KillConfig) -> None:
    """Run all trials and print their differences."""
    rng = random.Random(cfg.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        generate = [sys.executable, str(REPO / "data" / "make_shapes.py"), "--out", str(root / "set")]
        numbers = ["--train", str(cfg.images), "--val", "8", "--clip-frames", "0"]
        subprocess.run([*generate, *numbers], check=True, capture_output=True)
        data, whole = root / "set" / "data.yaml", root / "whole"
        began = time.monotonic()
        subprocess.run(train_command(data, whole, cfg, cfg.workers), check=True, stdout=subprocess.DEVNULL)
        length = time.monotonic() - began
        print(f"uninterrupted: {cfg.epochs} epochs in {length:.1f} s")
        failed = 0
        for trial in range(cfg.trials):
            folder, workers = root / f"trial{trial}", trial % (cfg.workers + 1)
            moments = killed_run(train_command(data, folder, cfg, workers), folder, length, rng)
            found = differences(whole, folder)
            failed += bool(found)
            at = (
                f"killed at {', '.join(f'{moment:.1f}' for moment in moments)} s"
                if moments
                else "ended before the kill"
            )
            print(f"trial {trial + 1:>2}: workers {workers}, {at}: {', '.join(found) or 'equal'}", flush=True)
        print(f"{cfg.trials - failed} of {cfg.trials} are equal bit for bit")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_script(main, KillConfig)
