"""Text in images: a font that has the characters of a name, and labels cut to a width."""

from __future__ import annotations

import importlib.util
import logging
import math
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.palette import Color, text_color
from utils.text import clean

MIN_FONT = 10  # pixels; below, letters run together
LONGEST_LABEL = 20  # sizes of the font
LONGEST_NAME = 300  # characters that are looked at; more never fit into a label
OUTLINES = {"glyf", "CFF ", "CFF2"}  # tables of fonts that fit every size; some of emoji have only bitmaps
LOGGER = logging.getLogger(__name__)


def shipped_font() -> str:
    """The file of DejaVu Sans, which comes with matplotlib; found without importing that, which is slow."""
    found = importlib.util.find_spec("matplotlib")
    folders = (found.submodule_search_locations if found else None) or []
    files = [Path(folder, "mpl-data", "fonts", "ttf", "DejaVuSans.ttf") for folder in folders]
    file = next((file for file in files if file.is_file()), None)
    if file is None:  # its data are elsewhere, as in some packages of Linux distributions
        import matplotlib

        file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return str(file)


DEJAVU = shipped_font()


def font_size(height: int, width: int) -> int:
    """The size of all text in an image, in pixels: 10 at 200 px, 14 at 416, 20 at 800, 56 at 4000 of 4:3.

    It depends on nothing but the size of the image, so it is steady over the frames of a video. It grows less than the
    side, since images are shown on screens of about one size.
    """
    return max(round(0.278 * (height * width) ** 0.325), MIN_FONT)


def label_width(size: int) -> int:
    """The widest label in pixels where the box is not wider, for a font of `size` pixels: about 40 characters."""
    return LONGEST_LABEL * size


@lru_cache(maxsize=64)
def label_font(size: int, file: str = DEJAVU) -> ImageFont.FreeTypeFont:
    """The font in `file` at `size` pixels; the default is DejaVu Sans, which comes with matplotlib."""
    return ImageFont.truetype(file, size)


@lru_cache(maxsize=512)
def characters(file: str) -> frozenset[int]:
    """The code points in a font file; none if it cannot be read, or has only bitmaps of some sizes."""
    from fontTools.ttLib import TTFont, TTLibError  # slow to import, and not needed for Latin letters

    try:
        with TTFont(file, fontNumber=0, lazy=True) as font:
            return frozenset(font.getBestCmap() or ()) if OUTLINES & set(font.keys()) else frozenset()
    except (TTLibError, OSError, AssertionError):
        return frozenset()


@lru_cache(maxsize=512)
def font_file(text: str) -> str:
    """DejaVu Sans if it has all characters of `text`, else the installed font that has the most of them."""
    if text.isascii():
        return DEJAVU
    from matplotlib import font_manager

    wanted = {ord(c) for c in text if not c.isspace()}
    best, missing = DEJAVU, wanted - characters(DEJAVU)
    if not missing:
        return DEJAVU
    shipped = sorted(map(str, Path(DEJAVU).parent.glob("*.ttf")))
    for file in (*sorted(font_manager.findSystemFonts()), *shipped):
        left = wanted - characters(file)
        if len(left) < len(missing) and "LastResort" not in file:  # that font has a box for every character
            best, missing = file, left
        if not missing:
            return best
    LOGGER.warning(f"no installed font has all characters of '{clean(text, 40)}'; some are drawn as boxes")
    return best


class Label:
    """The text of a box: a name, of which as much is shown as fits, and a score, which is never cut.

    The score has a font of its own, since a font for other scripts may lack digits, and stands after the name, also
    after one that is read from right to left.

    Args:
        name: of any characters; may be empty. score: may be empty. size: of the font, pixels. room: widest label,
            pixels.

    Attributes:
        width, height: of the label, pixels. It is wider than `room` only if the score does not fit.
    """

    def __init__(self, name: str, score: str, size: int, room: float):
        name = clean(name, LONGEST_NAME)
        self.font, self.name_font = label_font(size), label_font(size, font_file(name))
        self.pad = max(round(size / 5), 2)
        tail = f" {score}" if name and score else score
        length = self.font.getlength
        self.name, self.tail = name, tail
        if self.name_font.getlength(name) + length(tail) + 2 * self.pad > room - 2:  # both are rounded up
            self.name = cut(name, self.name_font, room - 2 - length(f"…{tail}") - 2 * self.pad)
            self.tail = f"…{tail}" if self.name else score
        self.name_width = math.ceil(self.name_font.getlength(self.name))
        self.width = self.name_width + math.ceil(length(self.tail)) + 2 * self.pad
        self.ascent, descent = self.font.getmetrics()
        self.height = self.ascent + descent + 2

    def draw(self, color: Color, edge: Color) -> np.ndarray:
        """(height, width, 3) uint8 RGB: the text on a patch of `color` with an edge of one pixel."""
        patch = Image.new("RGB", (self.width, self.height), color)
        draw, ink = ImageDraw.Draw(patch), text_color(color)
        base = 1 + self.ascent
        draw.text((self.pad, base), self.name, fill=ink, font=self.name_font, anchor="ls")
        draw.text((self.pad + self.name_width, base), self.tail, fill=ink, font=self.font, anchor="ls")
        draw.rectangle((0, 0, self.width - 1, self.height - 1), outline=edge)
        return np.asarray(patch)


def cut(text: str, font: ImageFont.FreeTypeFont, room: float) -> str:
    """As much of the start of `text` as fits into `room` pixels; may be empty."""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= room else (low, middle - 1)
    return text[:low].rstrip()
