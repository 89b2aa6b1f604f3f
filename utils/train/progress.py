"""Progress of training: its bar, the log line and the row of results.csv of each epoch, how to resume it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from utils.evaluate.metrics import Metrics
from utils.loss import LossParts
from utils.train.memory import peak_memory


def show_progress(bar: tqdm, losses: LossParts, boxes: int, images: Tensor, rate: float) -> None:
    """Show on the bar: mean loss parts so far, boxes and size of the batch, images per second, peak memory."""
    size, memory = "x".join(str(side) for side in images.shape[-2:]), f"{peak_memory():.1f}G"
    bar.set_postfix(loss_text(losses), boxes=boxes, size=size, img_s=f"{rate:.1f}", mem=memory, refresh=False)


def loss_text(parts: LossParts) -> dict[str, str]:
    """The loss parts by name, as text."""
    return {name: f"{float(value):.4f}" for name, value in parts.items()}


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


def epoch_line(epoch: int, epochs: int, losses: LossParts, metrics: Metrics | None, seconds: float) -> str:
    """The log line of an epoch: losses, metrics, duration and peak memory."""
    text = " ".join(f"{k} {v}" for k, v in loss_text(losses).items())
    scores = "not validated"
    if metrics:
        scores = f"P {metrics.precision:.3f} R {metrics.recall:.3f} mAP50 {metrics.map50:.3f}"
        scores += f" mAP50-95 {metrics.map50_95:.3f}"
    return f"{epoch + 1:>4}/{epochs}  {text}  {scores}  {seconds:.1f} s, {peak_memory():.2f} GB"


def resume_line(last: Path, saved: int) -> str:
    """What is left of an interrupted run, of which `saved` epochs were saved in `last`, and how to resume it."""
    if not saved or not last.exists():
        return "no epoch was saved yet" if last.parent.parent.exists() else f"{last.parent.parent}: nothing is left"
    return f"epochs saved: {saved}; resume with: python train.py --resume {last}"
