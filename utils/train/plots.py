"""Charts of a training run: results.png, the curves of the report, labels.jpg."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.drawing import save_figure
from utils.palette import class_hex
from utils.text import clean

LOSSES = {  # of all heads: column of results.csv without train/ or val/ -> title of its chart
    "box_loss": "Box loss",
    "obj_loss": "Objectness loss",
    "dfl_loss": "Distribution loss",
    "l1_loss": "Distance loss",
    "cls_loss": "Class loss",
}
TOPICS: dict[str, dict[str, str]] = {  # of the report: title -> name of a curve -> column of results.csv
    **{title: {"training": f"train/{loss}", "validation": f"val/{loss}"} for loss, title in LOSSES.items()},
    "Mean average precision": {"mAP50": "metrics/mAP_0.5", "mAP50-95": "metrics/mAP_0.5:0.95"},
    "Precision and recall": {"precision": "metrics/precision", "recall": "metrics/recall"},
    "Learning rate": {"weights": "x/lr2", "biases": "x/lr0"},
}
STYLES = (("#1f6feb", "-"), ("#c2410c", "--"))  # color and line style of the first and the second curve of a chart
MAX_NAMED = 120  # classes; the names of more would not be readable
MAX_OUTLINES = 1000  # boxes drawn on top of each other


def read_results(path: Path) -> dict[str, np.ndarray]:
    """The columns of a results.csv, each (epochs,), NaN where nothing was measured; incomplete rows are left out."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = [[word.strip() for word in row] for row in csv.reader(file) if row] or [[]]
    complete = [row for row in rows if len(row) == len(header)]
    return {name: np.array([_number(row[i]) for row in complete]) for i, name in enumerate(header)}


def _number(word: str) -> float:
    """The number in `word`; NaN if it is none."""
    try:
        return float(word)
    except ValueError:
        return math.nan


def panels(columns: Collection[str]) -> list[str]:
    """The columns of a results.csv that results.png shows, in two rows: of training and of validation."""
    losses = [loss for loss in LOSSES if f"train/{loss}" in columns]
    above = [*(f"train/{loss}" for loss in losses), "metrics/precision", "metrics/recall"]
    return [*above, *(f"val/{loss}" for loss in losses), "metrics/mAP_0.5", "metrics/mAP_0.5:0.95"]


def plot_results(results: Path, path: Path) -> None:
    """Draw the losses and metrics of a results.csv over the epochs, and a smoothed line over each."""
    columns = read_results(results)
    names = panels(columns)
    figure = Figure(figsize=(15, 6), layout="constrained")
    for axes, name in zip(figure.subplots(2, len(names) // 2).flat, names, strict=True):
        draw_curves(axes, name, {name: name}, columns, smoothed=True)
    figure.supxlabel("epoch; bold lines are smoothed", fontsize=11)
    save_figure(figure, path)


class Chart(NamedTuple):
    """A chart as an SVG file, and the last value of each of its curves by name."""

    title: str
    svg: bytes
    last: dict[str, float]


def topic_charts(columns: Mapping[str, np.ndarray]) -> list[Chart]:
    """A chart for each of TOPICS of which something was measured, from the columns of results.csv."""
    charts = []
    for title, curves in TOPICS.items():
        figure = Figure(figsize=(4, 2.6), layout="constrained")
        axes = figure.subplots()
        last = draw_curves(axes, title, curves, columns)
        axes.set_xlabel("epoch")
        if last:
            svg = io.BytesIO()
            figure.savefig(svg, format="svg", metadata={"Date": None})
            charts.append(Chart(title, svg.getvalue(), last))
    return charts


def draw_curves(
    axes: Axes, title: str, curves: Mapping[str, str], columns: Mapping[str, np.ndarray], smoothed: bool = False
) -> dict[str, float]:
    """Draw columns of results.csv over the epochs, and return the last value of each by name.

    Args:
        curves: name -> column, at most two; one that is missing or was never measured is left out.
        smoothed: draw the values thin and pale, and a smoothed line over them.
    """
    axes.set_title(title, fontsize=11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    last: dict[str, float] = {}
    for (name, column), (color, line) in zip(curves.items(), STYLES, strict=False):
        values = columns.get(column, np.empty(0))
        measured = np.isfinite(values)
        if not measured.any():
            continue
        epochs = columns.get("epoch", np.arange(len(values)))[measured] + 1  # counted from 1 for people
        pale = {"lw": 1, "alpha": 0.4} if smoothed else {"label": name}
        axes.plot(epochs, values[measured], color=color, ls=line, marker="." if len(epochs) <= 50 else "", **pale)
        if smoothed:
            axes.plot(epochs, smooth(values[measured]), color=color, ls=line, lw=2.2, label=name)
        last[name] = float(values[measured][-1])
    if not last:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="gray")
    elif len(curves) > 1:
        axes.legend()
    if last and all(column.startswith("metrics/") for column in curves.values()):
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, 0), min(high, 1))  # nothing lies outside 0..1
    return last


def smooth(values: np.ndarray) -> np.ndarray:
    """(n,) means of `values` (n,) weighted by a Gaussian, whose deviation is 1/40 of the length, at least one step."""
    deviation = max(len(values) / 40, 1)
    reach = int(3 * deviation)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    sums, weights = (np.convolve(row, kernel)[reach:][: len(values)] for row in (values, np.ones(len(values))))
    return sums / weights


def plot_labels(label: np.ndarray, xywhn: np.ndarray, names: Mapping[int, str], path: Path) -> None:
    """Draw the labels of a data set: boxes per class, outlines, centers and sizes.

    Args:
        label: (M,) class index. xywhn: (M, 4) center and size in 0..1. M may be 0. names: class index -> name.
    """
    figure = Figure(figsize=(15, 10), layout="constrained")
    top, bottom = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.1)).flat
    _class_counts(top.subplots(), label, names)
    outlines, centers, sizes = bottom.subplots(1, 3).flat
    _outlines(outlines, label, xywhn)
    _density(centers, xywhn[:, 0], xywhn[:, 1], "centers of the boxes", ("x", "y"))
    centers.invert_yaxis()  # as in an image, y points down
    _density(sizes, xywhn[:, 2], xywhn[:, 3], "sizes of the boxes", ("width", "height"))
    save_figure(figure, path)


def _class_counts(axes: Axes, label: np.ndarray, names: Mapping[int, str]) -> None:
    """Draw the number of boxes per class as bars, in the colors of the classes in drawn images."""
    classes = list(names)
    counts = [int((label == c).sum()) for c in classes]
    positions = range(len(classes))
    axes.bar(positions, counts, color=[class_hex(c) for c in classes], edgecolor="#707070", linewidth=0.5)
    axes.set(title=f"{len(label)} boxes of {len(classes)} classes", ylabel="boxes", xlim=(-0.6, len(classes) - 0.4))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(classes) > MAX_NAMED:
        axes.set_xlabel("class index")
        return
    shown = [clean(name, 24) for name in names.values()]
    horizontal = len(shown) * max(len(name) for name in shown) <= 140  # letters that fit side by side
    angle, size = (0, 11) if horizontal else (90, 9)
    axes.set_xticks(positions, shown, rotation=angle, fontsize=size, parse_math=False)
    if len(classes) <= 30:
        for position, count in zip(positions, counts, strict=True):
            axes.annotate(f"{count}", (position, count), ha="center", va="bottom", fontsize=9)


def _outlines(axes: Axes, label: np.ndarray, xywhn: np.ndarray) -> None:
    """Draw up to MAX_OUTLINES boxes, evenly chosen from the data set, around one center."""
    chosen = np.linspace(0, len(label) - 1, min(len(label), MAX_OUTLINES)).astype(int)
    half = xywhn[chosen, 2:] / 2
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    colors = [class_hex(c) for c in label[chosen].tolist()]
    axes.add_collection(LineCollection(list(0.5 + half[:, None] * corners), colors=colors, linewidths=0.6, alpha=0.7))
    axes.set_facecolor("#202020")  # bright colors show on it
    axes.set(title="boxes around one center", xlim=(0, 1), ylim=(1, 0), aspect="equal")
    axes.set(xlabel="width, fraction of the image", ylabel="height")


def _density(axes: Axes, x: np.ndarray, y: np.ndarray, title: str, axis_names: tuple[str, str]) -> None:
    """Draw a histogram of points (x, y) in 0..1; the color is the root of the count, so that small counts show."""
    counts, _, _ = np.histogram2d(x, y, bins=50, range=[[0, 1], [0, 1]])
    image = axes.imshow(
        np.ma.masked_equal(counts.T, 0),
        origin="lower",
        extent=(0, 1, 0, 1),
        cmap="viridis",
        norm=PowerNorm(0.5, vmin=0, vmax=max(counts.max(), 1)),
    )
    axes.set(title=title, xlabel=f"{axis_names[0]}, fraction of the image", ylabel=axis_names[1])
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="boxes", ticks=MaxNLocator(8, integer=True))
