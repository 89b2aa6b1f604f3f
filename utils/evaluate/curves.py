"""Charts of metrics: precision, recall and F1 curves, the confusion matrix, the image size study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, Stroke

from utils.drawing import save_figure
from utils.evaluate.matching import Curves
from utils.evaluate.thresholds import BINS, Calibration
from utils.palette import class_hex
from utils.text import clean

NAMED = 100  # classes; the names of more, and their numbers in a confusion matrix, could not be read
LETTERS = 24  # of a name in a chart
EDGE = "#707070"  # of colored lines, since bright ones are lost on white
LARGEST_CELL = 1.4  # inches, of a confusion matrix
SMALLEST = 6.0  # points, of text
DIGIT = 0.72  # width of a digit, as a fraction of the font size, and some room
MATRIX = 9.0  # inches, side of a confusion matrix, where the cells allow it
WIDEST = 18.0  # inches, of one without numbers


def chart(width: float = 9, height: float = 6) -> tuple[Figure, Axes]:
    """An empty chart of `width` x `height` inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def plot_curves(curves: Curves, folder: Path) -> None:
    """PR_curve.png, P_curve.png, R_curve.png and F1_curve.png in `folder`; nothing without labels."""
    if not curves.names:
        return
    average = curves.envelope.mean(axis=1)
    names = [clean(name, LETTERS) for name in curves.names]
    labels = [f"{name} {ap:.3f}" for name, ap in zip(names, average, strict=True)]
    whole = f"all classes {average.mean():.3f} mAP@0.5"
    colors = [class_hex(index) for index in curves.classes]
    axes = ("Recall", "Precision")
    draw_lines(curves.recall_points, curves.envelope, labels, colors, whole, axes, folder / "PR_curve.png")
    for key, word in (("precision", "Precision"), ("recall", "Recall"), ("f1", "F1")):
        values = getattr(curves, key)
        mean = mean_line(values)
        best = int(mean.argmax())
        whole = f"all classes {mean[best]:.2f} at {curves.confidence[best]:.3f}"
        path = folder / f"{ {'precision': 'P', 'recall': 'R', 'f1': 'F1'}[key] }_curve.png"
        draw_lines(curves.confidence, values, names, colors, whole, ("Confidence", word), path)


def draw_lines(
    x: np.ndarray,
    rows: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[str],
    whole: str,
    axes: tuple[str, str],
    path: Path,
) -> None:
    """A line for each of `rows` (k, n) over `x` (n,) in its color, and their mean in black, labeled `whole`.

    The chart is as wide as the image; the names are in columns below it, so that many make the image higher.
    """
    shown = len(rows) <= NAMED
    columns = 4 if len(rows) <= 20 else 6
    lines = -(-(len(rows) + 1) // columns) if shown else 1
    figure, ax = chart(9 if columns == 4 else 12, (5.6 if columns == 4 else 7.2) + 0.2 * lines)
    width = 5.0 if len(rows) == 1 else 2.0 if len(rows) <= 20 else 1.3  # one is below the mean
    for label, row, color in zip(labels, rows, colors, strict=True):
        (line,) = ax.plot(x, row, linewidth=width, color=color, alpha=1 if shown else 0.5)
        if shown:
            line.set_label(label)
            line.set_path_effects([Stroke(linewidth=width + 0.6, foreground=EDGE), Normal()])
    mean = mean_line(rows)
    ax.plot(x, mean, linewidth=3, color="black", label=whole)
    if axes[0] == "Confidence":
        best = int(mean.argmax())
        ax.plot(x[best], mean[best], "o", color="black", markersize=8)
    ax.set(xlabel=axes[0], ylabel=axes[1], xlim=(0, 1), ylim=(0, 1), title=f"{axes[1]}-{axes[0]} curve")
    ax.grid(alpha=0.3)
    legend = figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_figure(figure, path)


def mean_line(rows: np.ndarray) -> np.ndarray:
    """(n,) mean over classes of `rows` (k, n) without NaN; 1 where all are NaN: precision without detections."""
    return np.nanmean(np.where(np.isnan(rows).all(axis=0), 1.0, rows), axis=0)


def plot_confusion(matrix: np.ndarray, names: Sequence[str], path: Path) -> None:
    """Draw a confusion matrix (nc+1, nc+1): in each cell its share of its column, and below that its count.

    Args:
        names: of the classes, by index.
    """
    count = len(matrix)
    numbers = count <= NAMED + 1
    digits = max(len(f"{matrix.max():.0f}"), 4)
    least = digits * DIGIT * SMALLEST / 72
    cell = max(min(MATRIX / count, LARGEST_CELL), least) if numbers else WIDEST / count
    points = min(72 * cell / (digits * DIGIT), 72 * cell / 3, 12)  # two lines fit into a cell
    ticks = [*(clean(name, LETTERS) for name in names), "background"]
    size = max(points, 8) if numbers else SMALLEST
    longest = max(map(len, ticks)) * size * 0.6 / 72  # inches
    upright = longest > cell
    figure, ax = chart(count * cell + longest + 1.5, count * cell + (longest + 0.8 if upright else 1.1))
    parts = matrix / np.maximum(matrix.sum(axis=0, keepdims=True), 1)
    image = ax.imshow(np.where(matrix > 0, parts, np.nan), cmap="Blues", vmin=0, vmax=1, aspect="equal")
    figure.colorbar(image, ax=ax, shrink=0.6, aspect=30, pad=0.02, fraction=0.03, label="share of the column")
    every = max(-int(-8 // (72 * cell)), 1)  # names that have room
    rotation = 90 if upright else 0
    ax.set_xticks(range(0, count, every), ticks[::every], rotation=rotation, fontsize=size, parse_math=False)
    ax.set_yticks(range(0, count, every), ticks[::every], fontsize=size, parse_math=False)
    mark_classes(ax, count - 1, cell)
    title = "Confusion matrix: share of the column, and count" if numbers else "Confusion matrix"
    ax.set(xlabel="Label", ylabel="Prediction", title=title)
    for row, column in np.argwhere(matrix > 0) if numbers else ():
        text = f"{parts[row, column]:.2f}\n{matrix[row, column]:.0f}"
        color = "white" if parts[row, column] > 0.5 else "black"
        drawn = ax.text(column, row, text, ha="center", va="center", color=color, fontsize=points, linespacing=1.1)
        drawn.set_in_layout(False)  # it needs no room outside: much faster for many cells
    save_figure(figure, path)


def mark_classes(ax: Axes, count: int, cell: float) -> None:
    """The color of each of `count` classes at the left and lower edge of a matrix, and lines between its cells."""
    colors = [class_hex(index) for index in range(count)]
    side = 0.07 / (cell * (count + 1))  # of the matrix: 0.07 inches
    ax.barh(range(count), side, 1, -1.5 * side, color=colors, transform=ax.get_yaxis_transform(), clip_on=False)
    ax.bar(range(count), side, 1, -1.5 * side, color=colors, transform=ax.get_xaxis_transform(), clip_on=False)
    ax.set(xlim=(-0.5, count + 0.5), ylim=(count + 0.5, -0.5))
    ax.tick_params(length=0, pad=72 * 0.13)
    ax.hlines(np.arange(count) + 0.5, -0.5, count + 0.5, color="0.85", linewidth=0.5)
    ax.vlines(np.arange(count) + 0.5, -0.5, count + 0.5, color="0.85", linewidth=0.5)


def plot_reliability(found: Calibration, path: Path) -> None:
    """The share of right detections over their confidence, and below it how many there are."""
    figure = Figure(figsize=(7, 7.6), layout="constrained")
    ax, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    ax.plot([0, 1], [0, 1], "--", color="0.5", label="as it should be")
    known = found.count > 0
    label = f"expected calibration error {found.error:.3f}"
    ax.plot(found.confidence[known], found.share[known], "o-", color="black", label=label)
    ax.set(ylabel="Share of right detections", xlim=(0, 1), ylim=(0, 1), title="Reliability curve")
    ax.plot([], [], " ", label=f"{found.error_after:.3f} with a temperature of {found.temperature:.2f}")
    ax.legend(loc="upper left")
    below.bar((np.arange(BINS) + 0.5) / BINS, found.count, 0.9 / BINS, color="0.5")
    below.set(xlabel="Confidence", ylabel="Detections", yscale="log")
    for each in (ax, below):
        each.grid(alpha=0.3)
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
