"""Kill a training run with SIGKILL at random moments, resume it, and compare with a run that was left alone.

    python tools/kill_and_resume.py --trials 20

Draws a small set, trains on it once undisturbed, then `trials` times with a kill (or several) in between. Every trial
must end with the same weights, averages, optimizer state and results.csv, bit for bit. Exit code 1 if one does not.
"""

from __future__ import annotations

import csv
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from models.weights.checkpoint import load_checkpoint
from utils.config import REPO, flag, run_script

WALL_CLOCK = {"seconds"}  # columns and keys that differ from run to run


@dataclass(frozen=True)
class KillConfig:
    """Kill and resume training runs; compare each with one that was never interrupted."""

    trials: int = flag(20, "runs to kill")
    cfg: str = flag("yolov5-mobilevit.yaml", "model YAML")
    epochs: int = flag(4, "epochs of a run")
    images: int = flag(32, "training pictures")
    workers: int = flag(2, "loader processes of the undisturbed run; the trials take 0 to this many in turn")
    seed: int = flag(0, "seed of the moments")


def train_command(data: Path, folder: Path, cfg: KillConfig, workers: int) -> list[str]:
    return [
        *(sys.executable, str(REPO / "train.py"), "--cfg", cfg.cfg, "--data", str(data), "--device", "cpu"),
        *("--imgsz", "64", "--batch-size", "8", "--epochs", str(cfg.epochs), "--workers", str(workers), "--noplots"),
        *("--project", str(folder.parent), "--name", folder.name),
    ]


def same(a: Any, b: Any) -> bool:
    """Whether two nests of tensors and plain data are equal to the bit, wall clocks left out."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a if k not in WALL_CLOCK)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b or (a != a and b != b)


def table(folder: Path) -> list[dict[str, str]]:
    """results.csv without the columns of wall clocks."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k not in WALL_CLOCK} for row in csv.DictReader(file)]


def differences(one: Path, other: Path) -> list[str]:
    """The parts in which two run folders differ."""
    a, b = (load_checkpoint(folder / "weights" / "last.pt") for folder in (one, other))
    found = [
        key for key in ("model", "ema", "epoch", "fitness", "training", "names", "yaml") if not same(a[key], b[key])
    ]
    best = [load_checkpoint(folder / "weights" / "best.pt")["model"] for folder in (one, other)]
    found += [] if same(*best) else ["best.pt"]
    return found + ([] if table(one) == table(other) else ["results.csv"])


def killed_run(command: list[str], folder: Path, length: float, rng: random.Random) -> list[float]:
    """Run `command`, kill it at a random moment, resume, maybe kill again, until it ends; returns the moments."""
    moments, kills = [], rng.choice([1, 1, 2])
    while True:
        moment = rng.uniform(0.3, 1.0) * length if len(moments) < kills else None
        log = folder.with_suffix(".log")
        with log.open("w") as errors, subprocess.Popen(command, stdout=errors, stderr=errors) as process:
            try:
                process.wait(moment)
            except subprocess.TimeoutExpired:
                moments.append(moment)
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
    rng = random.Random(cfg.seed)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        draw = [sys.executable, str(REPO / "data" / "make_shapes.py"), "--out", str(root / "set")]
        numbers = ["--train", str(cfg.images), "--val", "8", "--clip-frames", "0"]
        subprocess.run([*draw, *numbers], check=True, capture_output=True)
        data, whole = root / "set" / "data.yaml", root / "whole"
        began = time.monotonic()
        subprocess.run(train_command(data, whole, cfg, cfg.workers), check=True, stdout=subprocess.DEVNULL)
        length = time.monotonic() - began
        print(f"undisturbed: {cfg.epochs} epochs in {length:.1f} s")
        failed = 0
        for trial in range(cfg.trials):
            folder, workers = root / f"trial{trial}", trial % (cfg.workers + 1)
            moments = killed_run(train_command(data, folder, cfg, workers), folder, length, rng)
            unlike = differences(whole, folder)
            failed += bool(unlike)
            at = ", ".join(f"{moment:.1f}" for moment in moments) or "not at all, it was faster"
            print(
                f"trial {trial + 1:>2}: workers {workers}, killed at {at} s: {', '.join(unlike) or 'equal'}", flush=True
            )
        print(f"{cfg.trials - failed} of {cfg.trials} equal to the bit")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    run_script(main, KillConfig)
