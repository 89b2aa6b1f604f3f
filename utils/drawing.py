"""Drawing: boxes and labels on images, sheets of images, and saved charts."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from torch import Tensor

from utils.boxes import Boxes, Targets, xywhn2xyxy
from utils.files import write_atomic
from utils.fonts import Label, font_size, label_width
from utils.images import imwrite
from utils.label_places import place_labels
from utils.palette import Color, class_color

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE = 320  # pixels; smaller images are enlarged to this in sheets, so that labels can be read
GAP = 2  # pixels between the images of a sheet
PAPER = (255, 255, 255)  # RGB between the images of a sheet
EDGE = (24, 24, 24)  # RGB of the thin edges of lines and labels, which all colors of classes stand out from
EDGE_SHARE = 0.45  # of EDGE in the pixels beside a line
MIN_LINE = 2  # pixels


def draw_boxes(
    image: np.ndarray,
    boxes: Boxes,
    names: Mapping[int, str],
    thickness: int | None = None,
    hide_labels: bool = False,
    hide_conf: bool = False,
) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 RGB with boxes and labels, the first ones on top.

    All labels lie above all boxes, inside the image, and none on another one: they move, and the last ones are left
    out where there is no room. The size of text and lines depends on the size of the image only.

    Args:
        boxes: in pixels of the image. names: class index -> name; a class that is not in it shows its index.
        thickness: of lines, in pixels; None chooses it by the size of the image.
        hide_conf: labels without scores, as for ground truth.
    """
    h, w = image.shape[:2]
    size = font_size(h, w)
    line = thickness or max(round(size / 6), MIN_LINE)
    drawn = image.copy()
    corners = np.clip(boxes.xyxy.round(), 0, [w - 1, h - 1, w, h]).astype(int)
    corners[:, 2:] = np.maximum(corners[:, 2:], corners[:, :2] + 1)
    colors = [class_color(label) for label in boxes.label.tolist()]
    for xyxy, color in reversed(list(zip(corners, colors, strict=True))):
        draw_box(drawn, xyxy, line, color)
    if hide_labels:
        return drawn
    scores = ["" if hide_conf else f"{score:.2f}" for score in boxes.score.tolist()]
    labels = [
        Label(names.get(label, str(label)), score, size, min(w, max(label_width(size), x2 - x1)))
        for label, score, (x1, _, x2, _) in zip(boxes.label.tolist(), scores, corners.tolist(), strict=True)
    ]
    sizes = np.array([(label.width, label.height) for label in labels], int).reshape(-1, 2)
    places = place_labels(corners, sizes, (h, w))
    shown = [i for i in range(len(labels)) if places[i, 0] >= 0]
    for i in shown:
        patch = np.concatenate([places[i], places[i] + sizes[i]])
        draw_leader(drawn, corners[i], patch, max(line // 2, MIN_LINE), colors[i])
    for i in shown:
        (x, y), (wide, high) = places[i], sizes[i]
        drawn[y : y + high, x : x + wide] = labels[i].draw(colors[i], EDGE)
    return drawn


def draw_box(image: np.ndarray, xyxy: np.ndarray, line: int, color: Color) -> None:
    """A frame of `line` pixels inside the box (x1, y1, x2, y2 whole pixels), with a thin dark edge on both sides."""
    x1, y1, x2, y2 = xyxy.tolist()
    shade_frame(image, (x1 - 1, y1 - 1, x2 + 1, y2 + 1))
    if min(x2 - x1, y2 - y1) > 6 * line:  # else the edge would fill the box
        shade_frame(image, (x1 + line, y1 + line, x2 - line, y2 - line))
    for rows, columns in sides(x1, y1, x2, y2, line):
        image[rows, columns] = color


def shade_frame(image: np.ndarray, box: tuple[int, int, int, int]) -> None:
    """Darken the outermost pixels of a box, as far as they are in the image."""
    for rows, columns in sides(*box, 1):
        part = image[rows, columns]
        part[:] = (part * (1 - EDGE_SHARE) + np.array(EDGE) * EDGE_SHARE).astype(np.uint8)


def sides(x1: int, y1: int, x2: int, y2: int, line: int) -> list[tuple[slice, slice]]:
    """Rows and columns of the four sides, `line` pixels wide, of a box; each pixel of the frame is in one side."""

    def span(start: int, stop: int) -> slice:
        return slice(max(start, 0), max(stop, 0))

    top, bottom = min(y1 + line, y2), max(y2 - line, y1 + line)
    left, right = min(x1 + line, x2), max(x2 - line, x1 + line)
    across, down = span(x1, x2), span(top, min(bottom, y2))
    return [
        *((span(y1, top), across), (span(bottom, y2), across)),
        *((down, span(x1, left)), (down, span(right, x2))),
    ]


def draw_leader(image: np.ndarray, box: np.ndarray, label: np.ndarray, width: int, color: Color) -> None:
    """A line of `width` pixels between a box and its label, xyxy whole pixels, unless they touch."""
    gap = np.maximum(label[:2] - box[2:], box[:2] - label[2:])
    if gap.max() <= 0:
        return
    low, high = np.maximum(box[:2], label[:2]), np.minimum(box[2:], label[2:])  # low > high where they are apart
    middle = (low + high) // 2
    start = np.where(low <= high, middle, np.where(label[:2] >= box[2:], box[2:] - 1, box[:2]))
    end = np.where(low <= high, middle, np.where(label[:2] >= box[2:], label[:2], label[2:] - 1))
    cv2.line(image, start.tolist(), end.tolist(), color, width)


def plot_batch(
    images: Tensor, targets: Targets, names: Mapping[int, str], path: Path, titles: Sequence[str] = (), side: int = 1920
) -> None:
    """Write the first images of a batch (B, 3, H, W) uint8 RGB with their ground truth, see plot_boxes."""
    size = images.shape[-2], images.shape[-1]
    boxes = []
    for i in range(len(images)):
        own = targets[targets.image == i]
        boxes.append(Boxes.labeled(xywhn2xyxy(own.xywhn.double().numpy(), size), own.label.numpy()))
    plot_boxes(images, boxes, names, path, titles, side, hide_conf=True)


def plot_boxes(
    images: Tensor,
    boxes: Sequence[Boxes],
    names: Mapping[int, str],
    path: Path,
    titles: Sequence[str] = (),
    side: int = 1920,
    hide_conf: bool = False,
) -> None:
    """Write the first 16 images of a batch with boxes on them, in a sheet of at most about `side` pixels.

    Args:
        images: (B, 3, H, W) uint8 RGB. boxes: of each image, in its pixels. names: class index -> name.
        titles: a line for each image, such as its file; may be left out.
    """
    count = min(len(images), 16)
    columns = math.ceil(count**0.5)
    h, w = images.shape[-2:]
    scale = min(side / (columns * max(h, w)), max(TILE / max(h, w), 1.0))
    high, wide = max(round(h * scale), 1), max(round(w * scale), 1)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    captions = [Label(title, "", font_size(high, wide), wide) for title in titles[:count]]
    strip = max((caption.height for caption in captions), default=0)  # below each image
    pitch = high + strip + GAP
    sheet = np.full((math.ceil(count / columns) * pitch, columns * (wide + GAP), 3), 255, np.uint8)
    for i in range(count):
        image = cv2.resize(images[i].cpu().numpy().transpose(1, 2, 0), (wide, high), interpolation=interpolation)
        own = boxes[i].at(boxes[i].xyxy * [wide / w, high / h, wide / w, high / h])
        top, left = i // columns * pitch, i % columns * (wide + GAP)
        sheet[top : top + high, left : left + wide] = draw_boxes(image, own, names, hide_conf=hide_conf)
        if i < len(captions) and captions[i].width <= wide:
            patch = captions[i].draw(PAPER, PAPER)
            sheet[top + high : top + high + strip, left : left + patch.shape[1]] = patch
    imwrite(path, sheet)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a chart in the format of the suffix."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # such characters are drawn as boxes
        figure.savefig(buffer, format=path.suffix[1:], dpi=120)
    write_atomic(path, buffer.getvalue())
