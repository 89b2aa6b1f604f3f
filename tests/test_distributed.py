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

import numpy as np
import pytest
import torch
from runs import MODEL  # without max pooling, where rounding may change which cell is the maximum

from models.weights.checkpoint import load_checkpoint
from utils.data.loader import EpochBatchSampler
from utils.files import REPO

LOSSES = ("train/box_loss", "train/obj_loss", "train/cls_loss", "val/box_loss")
TOLERANCE = 1e-4  # relative; the processes add in another order
HYP = """nominal_batch: 8
warmup_epochs: 1
warmup_min_steps: 0
warmup_bias_lr: 0.02
"""  # from 1 to 2 batches of 4 for each update


def words(data: Path, project: Path, name: str, epochs: int) -> list[str]:
    """The flags of a run; SGD, because Adam magnifies rounding errors."""
    (project / "model.yaml").write_text(MODEL)
    (project / "hyp.yaml").write_text(HYP)
    flags = ["--data", str(data), "--project", str(project), "--name", name, "--epochs", str(epochs), "--sync-bn"]
    flags += ["--cfg", str(project / "model.yaml"), "--hyp", str(project / "hyp.yaml")]
    flags += ["--imgsz", "64", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--noplots"]
    return [*flags, "--noautoanchor", "--optimizer", "SGD"]


def torchrun(script: Path, *flags: str) -> list[str]:
    """The command line that runs a script in two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    return [*launch, str(script), *flags]


def losses(run: Path) -> np.ndarray:
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        return np.array([[float(row[key]) for key in LOSSES] for row in csv.DictReader(file)])


def script(folder: Path, patch: str) -> Path:
    """A train.py that runs `patch` after its imports."""
    path = folder / "patched.py"
    path.write_text(
        "import os, sys; sys.path.insert(0, '.'); import train\n"
        f"{patch}\n"
        "from utils.config import run_script; run_script(train.main, train.TrainConfig)\n"
    )
    return path


COUNT_REDUCTIONS = r"""
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from utils.distributed import Dist
wrap = Dist.wrap
def counted(group, bucket):
    with open(__file__ + os.environ["RANK"], "a") as file:
        file.write("all-reduce\n" if bucket.is_last() else "")
    return allreduce_hook(group, bucket)
def wrap_and_count(self, model, sync_bn=False):
    parallel = wrap(self, model, sync_bn)
    parallel.register_comm_hook(None, counted)
    return parallel
Dist.wrap = wrap_and_count
"""


def test_two_processes_train_as_one_does_and_reduce_gradients_once_per_update(small_set: Path, tmp_path: Path) -> None:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    one = [sys.executable, str(REPO / "train.py"), *words(small_set, tmp_path, "one", 3)]
    counting = script(tmp_path, COUNT_REDUCTIONS)
    two = torchrun(counting, *words(small_set, tmp_path, "two", 3))
    for command in (one, two):
        done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("best weights:") == 1  # only rank 0 logs
    updates = load_checkpoint(tmp_path / "two" / "weights" / "last.pt").training["ema_updates"]
    assert 0 < updates < 9  # of 9 batches
    reductions = [Path(f"{counting}{rank}").read_text().count("all-reduce") for rank in (0, 1)]
    assert reductions == [updates, updates]
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=TOLERANCE)
    states = [load_checkpoint(tmp_path / name / "weights" / "last.pt") for name in ("one", "two")]
    assert states[0].training["ema_updates"] == states[1].training["ema_updates"]
    for key, value in states[0].model.items():
        torch.testing.assert_close(states[1].model[key], value, rtol=TOLERANCE, atol=1e-5)


def children(parent: int) -> list[int]:
    """Process numbers of the children of `parent`."""
    done = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True)
    return [int(word) for word in done.stdout.split()]


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the processes by ps")
def test_a_rank_that_dies_ends_the_others(small_set: Path, tmp_path: Path) -> None:
    command = torchrun(REPO / "train.py", *words(small_set, tmp_path, "run", 5000))
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


def test_a_rank_that_raises_ends_the_others(small_set: Path, tmp_path: Path) -> None:
    """An error on one rank only: the other waits in an all-reduce at that time."""
    patch = (
        "to_input = train.to_input\n"
        "def broken(images, device):\n"
        "    if os.environ['RANK'] == '1': raise FloatingPointError('rank 1 is broken')\n"
        "    return to_input(images, device)\n"
        "train.to_input = broken"
    )
    command = torchrun(script(tmp_path, patch), *words(small_set, tmp_path, "run", 9))
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "error: rank 1 is broken" in done.stderr


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_a_batch_make_the_batch(length: int, world: int) -> None:
    whole = [list(batch) for batch in EpochBatchSampler(length, 4, shuffle=True, seed=1)]
    shares = [list(EpochBatchSampler(length, 4, shuffle=True, seed=1, rank=r, world=world)) for r in range(world)]
    assert all(len(own) == len(whole) and all(own) for own in shares)
    for batch, *parts in zip(whole, *shares, strict=True):
        together = [key for part in parts for key in part]
        assert together[: len(batch)] == batch and set(together) == set(batch)
        assert len(together) == max(len(batch), world)
