"""Several processes on the CPU: the same training as in one, and an end for all when one dies."""

from __future__ import annotations

import csv
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from models.weights.checkpoint import load_checkpoint
from utils.config import REPO
from utils.data.loader import EpochBatches

LOSSES = ("train/box_loss", "train/obj_loss", "train/cls_loss", "val/box_loss")
TOLERANCE = 2e-3  # relative; the processes add in another order, and a step multiplies what differs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    for i in range(11):  # batches of 4, 4 and 3: the last one cannot be halved
        image = rng.integers(0, 90, (64, 64, 3), np.uint8)
        lines = []
        for label in range(int(rng.integers(0, 3))):
            x, y = rng.integers(5, 30, 2).tolist()
            cv2.rectangle(image, (x, y), (x + 25, y + 20), (0, 255 * label, 255), -1)
            lines.append(f"{label} {(x + 12.5) / 64} {(y + 10) / 64} {25 / 64} {20 / 64}\n")
        for folder in ("images", "labels"):
            (root / folder / "all").mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"images/all/{i}.png"), image)
        (root / f"labels/all/{i}.txt").write_text("".join(lines))
    (root / "data.yaml").write_text("path: .\ntrain: images/all\nval: images/all\nnames: [a, b]\n")
    return root / "data.yaml"


def words(data: Path, project: Path, name: str, epochs: int) -> list[str]:
    flags = ["--data", str(data), "--project", str(project), "--name", name, "--epochs", str(epochs), "--sync-bn"]
    flags += ["--cfg", "yolov5n.yaml", "--imgsz", "64", "--batch-size", "4", "--workers", "0", "--device", "cpu"]
    return [*flags, "--noplots", "--noautoanchor", "--hyp", "hyp.scratch-low.yaml"]  # Adam magnifies rounding


def torchrun(*flags: str) -> list[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    return [*launch, str(REPO / "train.py"), *flags]


def losses(run: Path) -> np.ndarray:
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        return np.array([[float(row[key]) for key in LOSSES] for row in csv.DictReader(file)])


def test_two_processes_train_as_one_does(data: Path, tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    one = [sys.executable, str(REPO / "train.py"), *words(data, tmp_path, "one", 3)]
    two = torchrun(*words(data, tmp_path, "two", 3))
    for command in (one, two):
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("best weights:") == 1  # rank 0 speaks for all
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=TOLERANCE)
    states = [load_checkpoint(tmp_path / name / "weights" / "last.pt") for name in ("one", "two")]
    assert states[0]["training"]["ema_updates"] == states[1]["training"]["ema_updates"] > 0
    for key, value in states[0]["model"].items():
        torch.testing.assert_close(states[1]["model"][key], value, rtol=1e-2, atol=1e-3)


def children(parent: int) -> list[int]:
    """Process numbers of the children of `parent`."""
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes by ps")
def test_a_rank_that_dies_ends_the_others(data: Path, tmp_path: Path) -> None:
    command = torchrun(*words(data, tmp_path, "run", 500))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as main:
        try:
            deadline = time.monotonic() + 120
            while not (tmp_path / "run/results.csv").exists() and time.monotonic() < deadline:
                time.sleep(0.2)
            ranks = children(main.pid)
            assert len(ranks) == 2
            os.kill(ranks[1], signal.SIGKILL)
            main.communicate(timeout=60)
        finally:
            main.kill()
    assert main.returncode != 0
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


def test_a_rank_that_raises_ends_the_others(data: Path, tmp_path: Path) -> None:
    """An error on one rank alone: the other waits in an all-reduce at that time."""
    code = (
        "import os, sys; sys.path.insert(0, '.'); import train\n"
        "whole = train.to_input\n"
        "def broken(images, device):\n"
        "    if os.environ['RANK'] == '1': raise FloatingPointError('rank 1 is done for')\n"
        "    return whole(images, device)\n"
        "train.to_input = broken\n"
        "from utils.config import run_script; run_script(train.main, train.TrainConfig)\n"
    )
    script = tmp_path / "broken.py"
    script.write_text(code)
    command = [
        str(script) if word.endswith("train.py") else word for word in torchrun(*words(data, tmp_path, "run", 9))
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "error: rank 1 is done for" in done.stderr


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_a_batch_make_the_batch(length: int, world: int) -> None:
    whole = [list(batch) for batch in EpochBatches(length, 4, shuffle=True, seed=1)]
    shares = [list(EpochBatches(length, 4, shuffle=True, seed=1, rank=r, world=world)) for r in range(world)]
    assert all(len(own) == len(whole) and all(own) for own in shares)
    for batch, *parts in zip(whole, *shares, strict=True):
        together = [key for part in parts for key in part]
        assert together[: len(batch)] == batch and set(together) == set(batch)
        assert len(together) == max(len(batch), world)
