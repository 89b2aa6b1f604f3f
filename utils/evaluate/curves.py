"""Pictures of metrics (curves, confusion matrix, study) and of what is inside a model (maps, attention)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.evaluate.matching import Curves
from utils.images import imwrite
from utils.train.plots import save_figure

MANY_CLASSES = 21  # from here on classes are thin grey lines without a legend
READABLE = 30  # classes up to which a confusion matrix shows its numbers
MOST_MAPS = 64  # channels of a row that are shown


def chart(width: float = 9, height: float = 6) -> tuple[Figure, Axes]:
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
        mean = np.nanmean(np.where(np.isnan(values).all(axis=0), 1.0, values), axis=0)  # no detections left: precise
        best = int(mean.argmax())
        whole = f"all classes {mean[best]:.2f} at {curves.confidence[best]:.3f}"
        name = {"precision": "P", "recall": "R", "f1": "F1"}[key]
        draw_lines(curves.confidence, values, curves.names, whole, ("Confidence", word), folder / f"{name}_curve.png")


def draw_lines(
    x: np.ndarray, rows: np.ndarray, labels: Sequence[str], whole: str, axes: tuple[str, str], path: Path
) -> None:
    """A line for each of `rows` (k, n) over `x` (n,), and their mean in bold."""
    figure, ax = chart()
    few = len(rows) < MANY_CLASSES
    for label, row in zip(labels, rows, strict=True):
        ax.plot(x, row, linewidth=1, **({"label": label} if few else {"color": "grey", "alpha": 0.4}))
    mean = np.nanmean(np.where(np.isnan(rows).all(axis=0), 1.0, rows), axis=0)
    ax.plot(x, mean, linewidth=3, color="blue", label=whole)
    ax.set(xlabel=axes[0], ylabel=axes[1], xlim=(0, 1), ylim=(0, 1), title=f"{axes[1]}-{axes[0]} curve")
    figure.legend(loc="outside right upper")
    save_figure(figure, path)


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A confusion matrix (nc+1, nc+1) as parts of each labelled class (column), the counts of background as they are
    distributed over the detected classes."""
    figure, ax = chart(12, 9)
    parts = matrix / np.maximum(matrix.sum(axis=0, keepdims=True), 1)
    shown = np.where(matrix > 0, parts, np.nan)
    picture = ax.imshow(shown, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    figure.colorbar(picture, ax=ax)
    ticks = [*names, "background"]
    ax.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=8 if len(ticks) < 50 else 5)
    ax.set_yticks(range(len(ticks)), ticks, fontsize=8 if len(ticks) < 50 else 5)
    ax.set(xlabel="True", ylabel="Predicted", title="Confusion matrix")
    if len(ticks) <= READABLE:
        for row, column in np.argwhere(matrix > 0):
            colour = "white" if parts[row, column] > 0.5 else "black"
            text = f"{parts[row, column]:.2f}"
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    save_figure(figure, path)


def plot_study(studies: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """mAP over the time an image takes, a line for each model; rows have imgsz, map50_95 and ms."""
    figure, ax = chart()
    for name, rows in studies.items():
        ax.plot([r["ms"] for r in rows], [r["map50_95"] for r in rows], marker="o", label=name)
        for r in rows:
            ax.annotate(
                f"{r['imgsz']:.0f}", (r["ms"], r["map50_95"]), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    ax.set(xlabel="ms an image (network and NMS)", ylabel="mAP50-95", title="Image size study")
    ax.grid(alpha=0.3)
    ax.legend()
    save_figure(figure, path)


def colourise(values: np.ndarray) -> np.ndarray:
    """(h, w) of any range -> (h, w, 3) uint8 RGB, dark for the least value and yellow for the largest."""
    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return (matplotlib.colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)


def tile_pictures(pictures: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Pictures (h, w, 3) of one size side by side, row after row, on white."""
    h, w = pictures[0].shape[:2]
    rows = -(-len(pictures) // columns)
    out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        out[top : top + h, left : left + w] = picture
    return out


def save_features(features: Mapping[str, np.ndarray], folder: Path) -> None:
    """<name>_features.png for each map (C, h, w): its first MOST_MAPS channels, each on its own scale."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, maps in features.items():
        zoom = max(1, round(80 / max(maps.shape[1:])))
        pictures = [colourise(channel).repeat(zoom, axis=0).repeat(zoom, axis=1) for channel in maps[:MOST_MAPS]]
        imwrite(folder / f"{name}_features.png", tile_pictures(pictures, columns=8))


def save_attention(
    attention: Mapping[str, np.ndarray], image: np.ndarray, at: tuple[float, float], folder: Path
) -> None:
    """<name>_attention.png for each block: `image` (H, W, 3), then the weights (layers, h, w) of each layer over it.

    Args:
        at: x, y in 0..1 of the image, marked by a cross: where the attention starts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    h, w = image.shape[:2]
    marked = draw_cross(image, at)
    for name, layers in attention.items():
        pictures = [marked]
        for weights in layers:
            heat = colourise(cv2.resize(weights.astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC))
            mixed = (0.35 * image + 0.65 * heat).astype(np.uint8)
            pictures.append(draw_cross(mixed, at))
        imwrite(folder / f"{name}_attention.png", tile_pictures(pictures, columns=len(pictures)))


def draw_cross(image: np.ndarray, at: tuple[float, float]) -> np.ndarray:
    """A copy of `image` with a red cross at x, y in 0..1."""
    h, w = image.shape[:2]
    centre = min(int(at[0] * w), w - 1), min(int(at[1] * h), h - 1)
    size = max(max(h, w) // 25, 5)
    return cv2.drawMarker(image.copy(), centre, (255, 0, 0), cv2.MARKER_CROSS, size, max(size // 8, 1))
