"""Pictures of a training run: results.png, labels.jpg and train_batch*.jpg."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw
from torch import Tensor

from utils.boxes import xywhn2xyxy
from utils.drawing import class_colour, draw_boxes, draw_label
from utils.runs import write_atomic

LOSSES = ("box_loss", "obj_loss", "cls_loss")
PANELS = (  # the columns of results.csv that are drawn, row by row
    *(f"train/{loss}" for loss in LOSSES),
    *("metrics/precision", "metrics/recall"),
    *(f"val/{loss}" for loss in LOSSES),
    *("metrics/mAP_0.5", "metrics/mAP_0.5:0.95"),
)
LINE = "#1f6feb"
NAMED = 120  # classes; with more their names would not be readable
OUTLINES = 1000  # boxes drawn on top of each other
TILE = 320  # pixels; smaller pictures are enlarged to this so that labels can be read
GAP = 2  # pixels between pictures


def read_results(path: Path) -> dict[str, np.ndarray]:
    """The columns of a results.csv, each (epochs,), NaN where nothing was measured; a row cut short is left out."""
    with path.open(newline="", encoding="utf-8") as file:
        header, *rows = [[word.strip() for word in row] for row in csv.reader(file) if row] or [[]]
    whole = [row for row in rows if len(row) == len(header)]
    return {name: np.array([_number(row[i]) for row in whole]) for i, name in enumerate(header)}


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` in the format of the suffix."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in another script is drawn as boxes
        figure.savefig(buffer, format=path.suffix[1:], dpi=120)
    write_atomic(path, buffer.getvalue())


def plot_results(results: Path, path: Path) -> None:
    """Draw the losses and metrics of a results.csv over the epochs; a column that is missing leaves its panel empty."""
    columns = read_results(results)
    figure = Figure(figsize=(15, 6), layout="constrained")
    for axes, name in zip(figure.subplots(2, 5).flat, PANELS, strict=True):
        axes.set_title(name, fontsize=11)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        values = columns.get(name, np.empty(0))
        measured = np.isfinite(values)
        epochs = columns.get("epoch", np.arange(len(values)))[measured] + 1  # people count epochs from 1
        axes.plot(epochs, values[measured], color=LINE, marker="." if len(epochs) <= 50 else "")
        if not measured.any():
            axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="grey")
    figure.supxlabel("epoch", fontsize=11)
    save_figure(figure, path)


def plot_labels(labels: np.ndarray, names: Mapping[int, str], path: Path) -> None:
    """Draw what a data set teaches: boxes a class, their outlines, places and sizes.

    Args:
        labels: (M, 5) class, cx, cy, w, h in 0..1; M may be 0. names: class index -> name.
    """
    figure = Figure(figsize=(15, 10), layout="constrained")
    top, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1, 1.1)).flat
    _class_counts(top.subplots(), labels, names)
    outlines, places, sizes = below.subplots(1, 3).flat
    _outlines(outlines, labels)
    _density(places, labels[:, 1], labels[:, 2], "centres of the boxes", ("x", "y"))
    places.invert_yaxis()  # as in a picture, y points down
    _density(sizes, labels[:, 3], labels[:, 4], "sizes of the boxes", ("width", "height"))
    save_figure(figure, path)


def _class_counts(axes: Axes, labels: np.ndarray, names: Mapping[int, str]) -> None:
    """Bars of boxes a class, in the colours that the classes have in pictures."""
    classes = list(names)
    counts = [int((labels[:, 0] == c).sum()) for c in classes]
    places = range(len(classes))
    axes.bar(places, counts, color=[tuple(v / 255 for v in class_colour(c)) for c in classes])
    axes.set(title=f"{len(labels)} boxes of {len(classes)} classes", ylabel="boxes", xlim=(-0.6, len(classes) - 0.4))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    if len(classes) > NAMED:
        axes.set_xlabel("class number")
        return
    shown = [name if len(name) <= 24 else name[:23] + "…" for name in names.values()]
    level = len(shown) * max(len(name) for name in shown) <= 140  # letters that fit side by side
    axes.set_xticks(places, shown, rotation=0 if level else 90, fontsize=11 if level else 9, parse_math=False)
    if len(classes) <= 30:
        for place, count in zip(places, counts, strict=True):
            axes.annotate(f"{count}", (place, count), ha="center", va="bottom", fontsize=9)


def _outlines(axes: Axes, labels: np.ndarray) -> None:
    """Up to OUTLINES boxes, evenly taken from the set, around one centre."""
    chosen = labels[np.linspace(0, len(labels) - 1, min(len(labels), OUTLINES)).astype(int)]
    half = chosen[:, 3:5] / 2
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
    colours = [tuple(v / 255 for v in class_colour(int(c))) for c in chosen[:, 0]]
    axes.add_collection(LineCollection(list(0.5 + half[:, None] * corners), colors=colours, linewidths=0.6, alpha=0.5))
    axes.set(title="boxes around one centre", xlim=(0, 1), ylim=(1, 0), aspect="equal")
    axes.set(xlabel="width, fraction of the picture", ylabel="height")


def _density(axes: Axes, x: np.ndarray, y: np.ndarray, title: str, axis_names: tuple[str, str]) -> None:
    """How many of the points (x, y) in 0..1 lie where; the root of the count is the colour, so that few show too."""
    counts, _, _ = np.histogram2d(x, y, bins=50, range=[[0, 1], [0, 1]])
    image = axes.imshow(
        np.ma.masked_equal(counts.T, 0),
        origin="lower",
        extent=(0, 1, 0, 1),
        cmap="viridis",
        norm=PowerNorm(0.5, vmin=0, vmax=max(counts.max(), 1)),
    )
    axes.set(title=title, xlabel=f"{axis_names[0]}, fraction of the picture", ylabel=axis_names[1])
    axes.figure.colorbar(image, ax=axes, shrink=0.8, label="boxes", ticks=MaxNLocator(8, integer=True))


def plot_batch(
    images: Tensor, targets: Tensor, names: Mapping[int, str], path: Path, titles: Sequence[str] = (), side: int = 1920
) -> None:
    """Write the first pictures of a batch with their labels, see plot_boxes.

    Args:
        images: (B, 3, H, W) uint8 RGB. targets: (M, 6) image, class, cx, cy, w, h in 0..1; M may be 0.
    """
    rows, size = targets.cpu().double().numpy(), (images.shape[-2], images.shape[-1])
    boxes = []
    for i in range(len(images)):
        mine = rows[rows[:, 0] == i]
        boxes.append(np.concatenate([xywhn2xyxy(mine[:, 2:6], size), mine[:, 1:2]], axis=1))
    plot_boxes(images, boxes, names, path, titles, side)


def plot_boxes(
    images: Tensor,
    boxes: Sequence[np.ndarray],
    names: Mapping[int, str],
    path: Path,
    titles: Sequence[str] = (),
    side: int = 1920,
) -> None:
    """Write the first 16 pictures of a batch with boxes on them, in a grid of at most about `side` pixels.

    Args:
        images: (B, 3, H, W) uint8 RGB. boxes: for each of them (n, 6) xyxy in its pixels, score, class, or (n, 5)
            without the score. names: class index -> name.
        titles: a line for each picture, such as its file; may be left out.
    """
    count = min(len(images), 16)
    columns = math.ceil(count**0.5)
    h, w = images.shape[-2:]
    scale = min(side / (columns * max(h, w)), max(TILE / max(h, w), 1.0))
    high, wide = max(round(h * scale), 1), max(round(w * scale), 1)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    sheet = np.full((math.ceil(count / columns) * (high + GAP), columns * (wide + GAP), 3), 255, np.uint8)
    for i in range(count):
        picture = cv2.resize(images[i].cpu().numpy().transpose(1, 2, 0), (wide, high), interpolation=interpolation)
        own = np.array(boxes[i], dtype=np.float64)
        own[:, :4] *= [wide / w, high / h, wide / w, high / h]
        picture = draw_boxes(picture, own, names)
        top, left = i // columns * (high + GAP), i % columns * (wide + GAP)
        sheet[top : top + high, left : left + wide] = _titled(picture, titles[i]) if i < len(titles) else picture
    ok, data = cv2.imencode(path.suffix, cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    if not ok:
        raise OSError(f"{path}: could not encode the picture")
    write_atomic(path, data.tobytes())


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    """A copy of `picture` (H, W, 3) with `title` in its lower left corner."""
    drawn = Image.fromarray(picture)
    h, w = picture.shape[:2]
    draw_label(ImageDraw.Draw(drawn), np.array([0, h, w, h]), title, "", 12, (255, 255, 255))
    return np.array(drawn)
