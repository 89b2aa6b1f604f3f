"""Drawing boxes with labels on pictures."""

from __future__ import annotations

import colorsys
import logging
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from fontTools.ttLib import TTFont, TTLibError
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

COLOURS = 80
MIN_FONT = 9  # pixels; below, letters run together
DEJAVU = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
LOGGER = logging.getLogger(__name__)

Colour = tuple[int, int, int]


@lru_cache(maxsize=1)
def palette() -> list[Colour]:
    """COLOURS RGB colours, each as far as possible from all before it in CIELAB."""
    tones = [
        (h / 36, s, v) for s, v in ((0.85, 1.0), (1.0, 0.65), (0.45, 1.0), (0.5, 0.6), (1.0, 0.4)) for h in range(36)
    ]
    rgb = np.array([colorsys.hsv_to_rgb(*tone) for tone in tones], dtype=np.float32)
    lab = cv2.cvtColor(rgb[None], cv2.COLOR_RGB2LAB)[0]
    chosen, distance = [0], np.linalg.norm(lab - lab[0], axis=1)
    while len(chosen) < COLOURS:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(lab - lab[chosen[-1]], axis=1))
    return [(int(r), int(g), int(b)) for r, g, b in (rgb[chosen] * 255).round()]


def class_colour(index: int) -> Colour:
    """The RGB colour of a class; those of the first COLOURS classes differ visibly."""
    return palette()[index % COLOURS]


def text_colour(background: Colour) -> Colour:
    """Black or white, whichever reads better on `background`."""
    brightness = np.dot(background, (0.299, 0.587, 0.114))
    return (0, 0, 0) if brightness > 140 else (255, 255, 255)


@lru_cache(maxsize=64)
def label_font(size: int, file: str = DEJAVU) -> ImageFont.FreeTypeFont:
    """A font at `size` pixels; without `file` DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(file, size)


@lru_cache(maxsize=512)
def characters(file: str) -> frozenset[int]:
    """The code points that a font file draws; none of a file that cannot be read."""
    try:
        with TTFont(file, fontNumber=0, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except (TTLibError, OSError, AssertionError):
        return frozenset()


@lru_cache(maxsize=512)
def font_file(text: str) -> str:
    """DejaVu Sans if it has all characters of `text`, else an installed font that has, else DejaVu Sans after all."""
    wanted = {ord(c) for c in text if not c.isspace()}
    if wanted <= characters(DEJAVU):
        return DEJAVU
    shipped = sorted(map(str, Path(DEJAVU).parent.glob("*.ttf")))
    for file in (*sorted(font_manager.findSystemFonts()), *shipped):
        if "LastResort" not in file and wanted <= characters(file):  # that one draws boxes for everything
            return file
    LOGGER.warning(f"no installed font has all characters of '{text}'; they are drawn as boxes")
    return DEJAVU


def fit_text(name: str, score: str, size: int, room: float, box_width: float) -> tuple[str, ImageFont.FreeTypeFont]:
    """'name score' and a font of at most `size` in which it is at most `room` pixels wide.

    A label wider than its box shrinks to half of `size`, so that small boxes in large pictures stay visible. If `room`
    asks for it the font shrinks down to MIN_FONT, then the name is cut.
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


def draw_label(draw: ImageDraw.ImageDraw, box: np.ndarray, name: str, score: str, size: int, colour: Colour) -> None:
    """Text on a filled patch above the box (x1, y1, x2, y2 pixels), else inside it; never outside the picture."""
    w, h = draw.im.size
    pad = max(size // 6, 1)
    text, font = fit_text(name, score, size, w - 2 * pad, float(box[2] - box[0]))
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
