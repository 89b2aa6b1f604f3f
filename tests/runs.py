"""Training runs of about a second, on a network of five layers, for tests of what happens to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import train

MODEL = """nc: 2
depth_multiple: 1.0
width_multiple: 1.0
anchors: [[10, 12, 24, 20], [40, 30, 50, 64]]
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, C3, [16]]
  - [-1, 1, Conv, [24, 3, 2]]
  - [-1, 1, Conv, [32, 3, 2]]
head:
  - [[3, 4], 1, Detect, [nc, anchors]]
"""


def config(data: Path, project: Path, **changes: Any) -> train.TrainConfig:
    """Of a run of three epochs in `project`/run, without loader processes and plots."""
    project.mkdir(exist_ok=True)
    (project / "model.yaml").write_text(MODEL)
    base = {"cfg": str(project / "model.yaml"), "data": str(data), "project": str(project), "name": "run"}
    base |= {"imgsz": 64, "epochs": 3, "batch_size": 4, "workers": 0, "device": "cpu", "noplots": True}
    return train.TrainConfig(**(base | changes))


def stop_after(patch: pytest.MonkeyPatch, epochs: int) -> None:
    """Let a training raise a RuntimeError when so many epochs are done and saved."""
    original = train.end_epoch

    def end_epoch(job: train.Job, *rest: Any) -> Any:
        if job.state.epoch == epochs:
            raise RuntimeError("stopped by the test")
        return original(job, *rest)

    patch.setattr(train, "end_epoch", end_epoch)


def resume(run: Path, **changes: Any) -> None:
    """Continue a run to its end."""
    train.main(train.TrainConfig(**({"resume": str(run), "device": "cpu", "workers": 0} | changes)))
