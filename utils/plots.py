"""Drawing boxes with labels on pictures, and batches of pictures."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

GOLDEN = (5**0.5 - 1) / 2  # steps of this fraction of the hue circle never come close to an earlier hue soon
MIN_FONT = 9  # pixels; below, letters run together

Colour = tuple[int, int, int]


def class_colour(index: int) -> Colour:
    """A saturated RGB colour, unlike those of the neighbouring classes."""
    r, g, b = colorsys.hsv_to_rgb((0.02 + index * GOLDEN) % 1, 0.85, 0.95)
    return round(r * 255), round(g * 255), round(b * 255)


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever reads better on `background`."""
    brightness = np.dot(background, (0.299, 0.587, 0.114))
    return (0, 0, 0) if brightness > 140 else (255, 255, 255)


@lru_cache(maxsize=32)
def label_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, at `size` pixels."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), size)


def fit_text(name: str, score: str, size: int, room: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """'name score' and a font of at most `size` in which it is at most `room` pixels wide.

    The font shrinks down to MIN_FONT, then the name is cut.
    """
    text = f"{name} {score}".strip()
    width = label_font(size).getlength(text)
    if width > room:
        size = max(int(size * room / width), MIN_FONT)
    font = label_font(size)
    while name and font.getlength(text) > room:
        name = name[:-1]
        text = f"{name}… {score}".strip()
    return text, font


def draw_label(draw: ImageDraw.ImageDraw, box: np.ndarray, name: str, score: str, size: int, colour: Colour) -> None:
    """Text on a filled patch above the box (x1, y1, x2, y2 pixels), else inside it; never outside the picture."""
    w, h = draw.im.size
    pad = max(size // 6, 1)
    text, font = fit_text(name, score, size, w - 2 * pad)
    ascent, descent = font.getmetrics()
    wide, high = font.getlength(text) + 2 * pad, ascent + descent + pad
    x = min(max(float(box[0]), 0), max(w - wide, 0))
    y = box[1] - high if box[1] >= high else max(float(box[1]), 0)
    y = min(y, max(h - high, 0))
    draw.rectangle([x, y, x + wide - 1, y + high - 1], fill=colour)
    draw.text((x + pad, y + pad / 2), text, fill=text_colour(colour), font=font)


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    names: Mapping[int, str],
    thickness: int | None = None,
    hide_labels: bool = False,
    hide_conf: bool = False,
) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 RGB with boxes and labels, the first rows on top.

    Args:
        boxes: (n, 6) x1, y1, x2, y2 in pixels, score, class; or (n, 5) without the score; n may be 0.
        names: class index -> name; a class that is not there shows its number.
        thickness: of lines, in pixels; None goes by the picture's size.

    Raises:
        ValueError: boxes of another shape.
    """
    boxes = np.asarray(boxes, dtype=np.float64)
    if boxes.ndim != 2 or boxes.shape[1] not in (5, 6):
        raise ValueError(f"boxes of shape {boxes.shape}, expected (n, 6) xyxy, score, class or (n, 5) xyxy, class")
    h, w = image.shape[:2]
    line = thickness or max(round(max(h, w) / 320), 1)
    size = max(round(max(h, w) / 45), 12)
    picture = Image.fromarray(image.copy())
    draw = ImageDraw.Draw(picture)
    scored = boxes.shape[1] == 6 and not hide_conf
    for row in boxes[::-1]:
        x1, y1, x2, y2 = np.clip(row[:4].round(), 0, [w - 1, h - 1, w, h]).tolist()
        draw.rectangle([x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)], outline=class_colour(int(row[-1])), width=line)
    for row in boxes[::-1] if not hide_labels else ():
        index = int(row[-1])
        score = f"{row[4]:.2f}" if scored else ""
        draw_label(draw, row[:4], names.get(index, str(index)), score, size, class_colour(index))
    return np.array(picture)


def draw_batch(
    images: np.ndarray, boxes: Sequence[np.ndarray], names: Mapping[int, str], most: int = 16, side: int = 1920
) -> np.ndarray:
    """The first `most` images with their boxes in a square of rows, (H, W, 3) uint8 RGB, its long side at most `side`.

    Args:
        images: (B, h, w, 3) uint8 RGB. boxes: for each image as in draw_boxes.
    """
    count = min(len(images), most)
    columns = int(np.ceil(count**0.5))
    h, w = images.shape[1:3]
    scale = min(side / (columns * max(h, w)), 1.0)
    small = max(int(h * scale), 1), max(int(w * scale), 1)
    out = np.full((-(-count // columns) * small[0], columns * small[1], 3), 255, np.uint8)
    for i in range(count):
        rows = np.array(boxes[i], dtype=np.float64)
        rows[:, :4] *= np.array([small[1] / w, small[0] / h] * 2)
        image = images[i] if scale == 1 else cv2.resize(images[i], small[::-1], interpolation=cv2.INTER_AREA)
        top, left = i // columns * small[0], i % columns * small[1]
        out[top : top + small[0], left : left + small[1]] = draw_boxes(np.ascontiguousarray(image), rows, names)
    return out
