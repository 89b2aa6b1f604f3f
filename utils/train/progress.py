"""What a person reads while a model is trained: the progress bar, a line and a row of results.csv for each epoch."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from utils.device import peak_memory
from utils.evaluate.metrics import Metrics
from utils.loss import LossParts


def show_progress(bar: tqdm, losses: Tensor, boxes: int, images: Tensor, rate: float) -> None:
    """Write behind the bar: mean losses (3,) so far, boxes and size of the batch, images a second, peak memory."""
    size, memory = "x".join(str(side) for side in images.shape[-2:]), f"{peak_memory():.1f}G"
    bar.set_postfix(loss_text(losses), boxes=boxes, size=size, img_s=f"{rate:.1f}", mem=memory, refresh=False)


def loss_text(parts: Iterable[Tensor]) -> dict[str, str]:
    """The loss parts by name, rounded."""
    return {name: f"{float(value):.4f}" for name, value in zip(LossParts._fields, parts, strict=True)}


def result_row(
    epoch: int, losses: LossParts, metrics: Metrics, rates: Iterable[float], seconds: float
) -> dict[str, float | int]:
    """One row of results.csv, under YOLOv5's column names."""
    val = metrics.loss or LossParts(*[torch.tensor(math.nan)] * 3)
    return (
        {"epoch": epoch}
        | {f"train/{k}_loss": float(v) for k, v in losses._asdict().items()}
        | {"metrics/precision": metrics.precision, "metrics/recall": metrics.recall}
        | {"metrics/mAP_0.5": metrics.map50, "metrics/mAP_0.5:0.95": metrics.map50_95}
        | {f"val/{k}_loss": float(v) for k, v in val._asdict().items()}
        | {f"x/lr{i}": rate for i, rate in enumerate(rates)}
        | {"seconds": seconds}
    )


def epoch_line(epoch: int, epochs: int, losses: LossParts, metrics: Metrics, seconds: float) -> str:
    """What a person reads about an epoch."""
    text = " ".join(f"{k} {v}" for k, v in loss_text(losses).items())
    return (
        f"{epoch + 1:>4}/{epochs}  {text}  P {metrics.precision:.3f} R {metrics.recall:.3f} "
        f"mAP50 {metrics.map50:.3f} mAP50-95 {metrics.map50_95:.3f}  {seconds:.1f} s, {peak_memory():.2f} GB"
    )
