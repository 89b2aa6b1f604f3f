"""Drawing: boxes and labels on images, sheets of images, and saved charts."""

from __future__ import annotations

import colorsys
import io
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from utils.boxes import Boxes, Targets, xywhn2xyxy
from utils.files import write_atomic
from utils.images import imwrite

COLORS = 80
TILE = 320  # pixels; smaller images are enlarged to this in sheets, so that labels can be read
GAP = 2  # pixels between the images of a sheet
MIN_FONT = 9  # pixels; below, letters run together
DEJAVU = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
LOGGER = logging.getLogger(__name__)

Color = tuple[int, int, int]


@lru_cache(maxsize=1)
def palette() -> list[Color]:
    """COLORS RGB colors, each as far as possible from all before it in CIELAB."""
    tones = [
        (h / 36, s, v) for s, v in ((0.85, 1.0), (1.0, 0.65), (0.45, 1.0), (0.5, 0.6), (1.0, 0.4)) for h in range(36)
    ]
    rgb = np.array([colorsys.hsv_to_rgb(*tone) for tone in tones], dtype=np.float32)
    lab = cv2.cvtColor(rgb[None], cv2.COLOR_RGB2LAB)[0]
    chosen, distance = [0], np.linalg.norm(lab - lab[0], axis=1)
    while len(chosen) < COLORS:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return [(int(r), int(g), int(b)) for r, g, b in (rgb[chosen] * 255).round()]


def class_color(index: int) -> Color:
    """The RGB color of a class; those of the first COLORS classes differ visibly."""
    return palette()[index % COLORS]


def text_color(background: Color) -> Color:
    """Black or white, whichever reads better on `background`."""
    brightness = np.dot(background, (0.299, 0.587, 0.114))
    return (0, 0, 0) if brightness > 140 else (255, 255, 255)


@lru_cache(maxsize=64)
def label_font(size: int, file: str = DEJAVU) -> ImageFont.FreeTypeFont:
    """The font in `file` at `size` pixels; the default is DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(file, size)


@lru_cache(maxsize=512)
def characters(file: str) -> frozenset[int]:
    """The code points in a font file; none if it cannot be read."""
    try:
        with TTFont(file, fontNumber=0, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (TTLibError, OSError, AssertionError):
        return frozenset()


@lru_cache(maxsize=512)
def font_file(text: str) -> str:
    """DejaVu Sans if it has all characters of `text`, else an installed font that has them, else DejaVu Sans."""
    wanted = {ord(c) for c in text if not c.isspace()}
    if wanted <= characters(DEJAVU):
        return DEJAVU
    shipped = sorted(map(str, Path(DEJAVU).parent.glob("*.ttf")))
    for file in (*sorted(font_manager.findSystemFonts()), *shipped):
        if "LastResort" not in file and wanted <= characters(file):  # that font has a box for every character
            return file
    LOGGER.warning(f"no installed font has all characters of '{text}'; they are drawn as boxes")
    return DEJAVU


def fit_text(name: str, score: str, size: int, room: float, box_width: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """'name score' and a font of at most `size` in which it is at most `room` pixels wide.

    A label wider than its box shrinks to half of `size`, so that small boxes in large images stay visible. Text
    wider than `room` shrinks to MIN_FONT, then the name is cut.
    """
    text, file = f"{name} {score}".strip(), font_file(name)
    width = label_font(size, file).getlength(text)
    if width > box_width:
        size = max(int(size * box_width / width), size // 2, MIN_FONT)
        width = label_font(size, file).getlength(text)
    if width > room:
        size = max(int(size * room / width), MIN_FONT)
    font = label_font(size, file)
    while name and font.getlength(text) > room:
        name = name[:-1]
        text = f"{name}… {score}".strip()
    return text, font


def draw_label(draw: ImageDraw.ImageDraw, box: np.ndarray, name: str, score: str, size: int, color: Color) -> None:
    """Text on a filled patch above the box (x1, y1, x2, y2 pixels), else inside it; never outside the image."""
    w, h = draw.im.size
    pad = max(size // 6, 1)
    text, font = fit_text(name, score, size, w - 2 * pad, float(box[2] - box[0]))
    ascent, descent = font.getmetrics()
    wide, high = font.getlength(text) + 2 * pad, ascent + descent + pad
    x = min(max(float(box[0]), 0), max(w - wide, 0))
    y = box[1] - high if box[1] >= high else max(float(box[1]), 0)
    y = min(y, max(h - high, 0))
    draw.rectangle([x, y, x + wide - 1, y + high - 1], fill=color)
    draw.text((x + pad, y + pad / 2), text, fill=text_color(color), font=font)


def draw_boxes(
    image: np.ndarray,
    boxes: Boxes,
    names: Mapping[int, str],
    thickness: int | None = None,
    hide_labels: bool = False,
    hide_conf: bool = False,
) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 RGB with boxes and labels, the first ones on top.

    Args:
        boxes: in pixels of the image. names: class index -> name; a class that is not in it shows its index.
        thickness: of lines, in pixels; None chooses it by the size of the image.
        hide_conf: labels without scores, as for ground truth.
    """
    h, w = image.shape[:2]
    line = thickness or max(round(max(h, w) / 320), 1)
    size = max(round(max(h, w) / 45), 12)
    drawn = Image.fromarray(image.copy())
    draw = ImageDraw.Draw(drawn)
    rows = list(zip(boxes.xyxy, boxes.label.tolist(), boxes.score.tolist(), strict=True))[::-1]
    for xyxy, label, _ in rows:
        x1, y1, x2, y2 = np.clip(xyxy.round(), 0, [w - 1, h - 1, w, h]).tolist()
        draw.rectangle([x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)], outline=class_color(label), width=line)
    for xyxy, label, score in rows if not hide_labels else ():
        text = "" if hide_conf else f"{score:.2f}"
        draw_label(draw, xyxy, names.get(label, str(label)), text, size, class_color(label))
    return np.array(drawn)


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
    sheet = np.full((math.ceil(count / columns) * (high + GAP), columns * (wide + GAP), 3), 255, np.uint8)
    for i in range(count):
        image = cv2.resize(images[i].cpu().numpy().transpose(1, 2, 0), (wide, high), interpolation=interpolation)
        own = boxes[i].at(boxes[i].xyxy * [wide / w, high / h, wide / w, high / h])
        image = draw_boxes(image, own, names, hide_conf=hide_conf)
        top, left = i // columns * (high + GAP), i % columns * (wide + GAP)
        sheet[top : top + high, left : left + wide] = _titled(image, titles[i]) if i < len(titles) else image
    imwrite(path, sheet)


def _titled(image: np.ndarray, title: str) -> np.ndarray:
    """A copy of `image` (H, W, 3) with `title` in its lower left corner."""
    drawn = Image.fromarray(image)
    h, w = image.shape[:2]
    draw_label(ImageDraw.Draw(drawn), np.array([0, h, w, h]), title, "", 12, (255, 255, 255))
    return np.array(drawn)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a chart in the format of the suffix."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # such characters are drawn as boxes
        figure.savefig(buffer, format=path.suffix[1:], dpi=120)
    write_atomic(path, buffer.getvalue())
