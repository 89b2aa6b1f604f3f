"""Two processes train every head without anchors as one process does; the last epoch is one without mosaic."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import MODEL
from test_distributed import HYP, TOLERANCE, torchrun
from torch.testing import assert_close

from models.weights.checkpoint import load_checkpoint
from utils.files import REPO

LAST = {
    "yolox": "Decoupled, [nc, {l1: true}]",
    "v8": "DetectV8, [nc, {reg_max: 4, depthwise: true}]",
}


def losses(run: Path) -> np.ndarray:
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return np.array([[float(row[key]) for key in row if key.endswith("_loss")] for row in rows])


@pytest.mark.parametrize("head", LAST)
def test_two_processes_train_as_one_does(head: str, small_set: Path, tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text(MODEL.replace("Detect, [nc, anchors]", LAST[head]))
    (tmp_path / "hyp.yaml").write_text(HYP)
    flags = ["--data", str(small_set), "--project", str(tmp_path), "--cfg", str(tmp_path / "model.yaml"), "--sync-bn"]
    flags += ["--hyp", str(tmp_path / "hyp.yaml"), "--optimizer", "SGD", "--epochs", "2", "--close-mosaic", "1"]
    flags += ["--imgsz", "64", "--batch-size", "4", "--workers", "0", "--device", "cpu", "--noplots"]
    one = [sys.executable, str(REPO / "train.py"), *flags, "--name", "one"]
    for command in (one, torchrun(REPO / "train.py", *flags, "--name", "two")):
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert (losses(tmp_path / "one")[:, 0] > 0).all()
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=TOLERANCE)
    states = [load_checkpoint(tmp_path / name / "weights" / "last.pt").model for name in ("one", "two")]
    for key, value in states[0].items():
        assert_close(states[1][key], value, rtol=TOLERANCE, atol=1e-5)
