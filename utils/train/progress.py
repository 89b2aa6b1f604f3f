"""Progress of training: the columns of an epoch, its row of results.csv, and how to resume."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from utils.commands import command
from utils.evaluate.metrics import Metrics
from utils.loss import LossParts
from utils.progress import clock
from utils.text import counted
from utils.train.memory import peak_memory


def epoch_header(names: Iterable[str], left: float | None = None) -> str:
    """The columns of epoch_row, as YOLOv5 has them, and the time left of the run in seconds if it is known.

    Args:
        names: of the loss parts.
    """
    memory = "GPU_mem" if torch.cuda.is_available() else "RAM"
    losses = "".join(f"{name:>8}" for name in names)
    return f"{'Epoch':>9}{memory:>9}{losses}{'Instances':>11}{'Size':>8}" + (f"  {clock(left)} left" if left else "")


def epoch_row(epoch: int, epochs: int, losses: LossParts, boxes: int, images: Tensor) -> str:
    """Under epoch_header: peak memory, mean loss parts so far, boxes and size of the last batch."""
    height, width = images.shape[-2:]
    size = str(height) if height == width else f"{height}x{width}"
    parts = "".join(f"{float(value):>8.4f}" for value in losses.values())
    return f"{f'{epoch + 1}/{epochs}':>9}{f'{peak_memory():.2f}G':>9}{parts}{boxes:>11}{size:>8}"


def result_row(
    epoch: int, losses: LossParts, metrics: Metrics | None, rates: Iterable[float], seconds: float
) -> dict[str, float | int]:
    """One row of results.csv under YOLOv5's column names; NaN where nothing was measured.

    Args:
        metrics: None if the epoch was not validated. rates: learning rate of each parameter group.
        seconds: duration of the epoch.
    """
    nan = math.nan
    scores = (metrics.precision, metrics.recall, metrics.map50, metrics.map50_95) if metrics else (nan,) * 4
    val = metrics.loss if metrics and metrics.loss else dict.fromkeys(losses, nan)
    columns = ("metrics/precision", "metrics/recall", "metrics/mAP_0.5", "metrics/mAP_0.5:0.95")
    return (
        {"epoch": epoch}
        | {f"train/{k}_loss": float(v) for k, v in losses.items()}
        | dict(zip(columns, scores, strict=True))
        | {f"val/{k}_loss": float(v) for k, v in val.items()}
        | {f"x/lr{i}": rate for i, rate in enumerate(rates)}
        | {"seconds": seconds}
    )


def resume_line(last: Path, saved: int) -> str:
    """What is left of an interrupted run, of which `saved` epochs were saved in `last`, and how to resume it."""
    if not saved or not last.exists():
        return "no epoch was saved yet" if last.parent.parent.exists() else f"{last.parent.parent}: nothing is left"
    return f"{counted(saved, 'epoch is', 'epochs are')} saved; resume with: {command('train', '--resume', last)}"
