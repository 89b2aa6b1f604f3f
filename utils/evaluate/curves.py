"""Charts of metrics: precision, recall and F1 curves, the confusion matrix, the image size study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.drawing import save_figure
from utils.evaluate.matching import Curves

LEGEND_CLASSES = 20  # with more classes, each is a thin gray line without a name
NUMBER_CLASSES = 30  # with more classes and background, a confusion matrix shows no numbers


def chart(width: float = 9, height: float = 6) -> tuple[Figure, Axes]:
    """An empty chart of `width` x `height` inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def plot_curves(curves: Curves, folder: Path) -> None:
    """PR_curve.png, P_curve.png, R_curve.png and F1_curve.png in `folder`; nothing without labels."""
    if not curves.names:
        return
    average = curves.envelope.mean(axis=1)
    labels = [f"{name} {ap:.3f}" for name, ap in zip(curves.names, average, strict=True)]
    whole = f"all classes {average.mean():.3f} mAP@0.5"
    draw_lines(curves.recall_points, curves.envelope, labels, whole, ("Recall", "Precision"), folder / "PR_curve.png")
    for key, word in (("precision", "Precision"), ("recall", "Recall"), ("f1", "F1")):
        values = getattr(curves, key)
        mean = mean_line(values)
        best = int(mean.argmax())
        whole = f"all classes {mean[best]:.2f} at {curves.confidence[best]:.3f}"
        name = {"precision": "P", "recall": "R", "f1": "F1"}[key]
        draw_lines(curves.confidence, values, curves.names, whole, ("Confidence", word), folder / f"{name}_curve.png")


def draw_lines(
    x: np.ndarray, rows: np.ndarray, labels: Sequence[str], whole: str, axes: tuple[str, str], path: Path
) -> None:
    """A line for each of `rows` (k, n) over `x` (n,), and their mean in bold, labeled `whole`."""
    figure, ax = chart()
    few = len(rows) <= LEGEND_CLASSES
    for label, row in zip(labels, rows, strict=True):
        ax.plot(x, row, linewidth=1, **({"label": label} if few else {"color": "gray", "alpha": 0.4}))
    ax.plot(x, mean_line(rows), linewidth=3, color="blue", label=whole)
    ax.set(xlabel=axes[0], ylabel=axes[1], xlim=(0, 1), ylim=(0, 1), title=f"{axes[1]}-{axes[0]} curve")
    figure.legend(loc="outside right upper")
    save_figure(figure, path)


def mean_line(rows: np.ndarray) -> np.ndarray:
    """(n,) mean over classes of `rows` (k, n) without NaN; 1 where all are NaN: precision without detections."""
    return np.nanmean(np.where(np.isnan(rows).all(axis=0), 1.0, rows), axis=0)


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix (nc+1, nc+1), each column as fractions of its ground-truth class."""
    figure, ax = chart(12, 9)
    parts = matrix / np.maximum(matrix.sum(axis=0, keepdims=True), 1)
    shown = np.where(matrix > 0, parts, np.nan)
    image = ax.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(image, ax=ax)
    ticks = [*names, "background"]
    ax.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=8 if len(ticks) < 50 else 5)
    ax.set_yticks(range(len(ticks)), ticks, fontsize=8 if len(ticks) < 50 else 5)
    ax.set(xlabel="True", ylabel="Predicted", title="Confusion matrix")
    if len(ticks) <= NUMBER_CLASSES:
        for row, column in np.argwhere(matrix > 0):
            color = "white" if parts[row, column] > 0.5 else "black"
            text = f"{parts[row, column]:.2f}"
            ax.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    save_figure(figure, path)


def plot_study(studies: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """mAP50-95 over milliseconds per image, a line for each model; rows have imgsz, map50_95 and ms."""
    figure, ax = chart()
    for name, rows in studies.items():
        ax.plot([r["ms"] for r in rows], [r["map50_95"] for r in rows], marker="o", label=name)
        for r in rows:
            ax.annotate(
                f"{r['imgsz']:.0f}", (r["ms"], r["map50_95"]), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    ax.set(xlabel="ms per image (network and NMS)", ylabel="mAP50-95", title="Image size study")
    ax.grid(alpha=0.3)
    ax.legend()
    save_figure(figure, path)
