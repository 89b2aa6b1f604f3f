"""The colors of the classes: one list for drawn images, charts, pages and the demo page."""

from __future__ import annotations

Color = tuple[int, int, int]

# Class i has color i, and again from the first one after the last. Each color lies as far as possible from all before
# it, in OKLab and as people without red, green or blue cones see it, and apart from wood, cloth, sky, sea, sand and
# grass. tests/test_palette.py holds the distances; the first twelve are the brightest.
PALETTE = (
    *("#ff5ad2", "#ffff3c", "#00e187", "#e10000", "#c300e1", "#e1a500", "#00f0ff", "#b4e100", "#3c96ff", "#e16900"),
    *("#0f69ff", "#e12d87", "#b4ffc3", "#d2a5ff", "#a55ab4", "#4ba55a", "#69c396", "#ffa5d2", "#ffe178", "#c34b5a"),
    *("#c378a5", "#d269ff", "#e13cd2", "#a5c35a", "#f087c3", "#87e1b4", "#a569e1", "#87ff96", "#789600", "#d2c30f"),
    *("#78b45a", "#ff4ba5", "#ffc369", "#e1f000", "#4b78c3", "#b496ff", "#e16987", "#d20096", "#69f0a5", "#3cc32d"),
    *("#f000b4", "#b41eff", "#d278c3", "#ffc3ff", "#e14b78", "#a587e1", "#96a53c", "#96e169", "#ff7878", "#69d2c3"),
    *("#b45a87", "#87f0d2", "#e1b4ff", "#b4d24b", "#5aff78", "#4bd287", "#8787f0", "#c33cd2", "#b4f05a", "#d25a96"),
    *("#e15ad2", "#9669a5", "#c3ff5a", "#ff1e4b", "#9678c3", "#e187e1", "#c3e196", "#6969e1", "#f096b4", "#d287b4"),
    *("#a54bf0", "#b4b44b", "#9669ff", "#f0870f", "#d23c78", "#ff0096", "#e11e69", "#b44bc3", "#f096f0", "#4bf03c"),
)


def class_hex(index: int) -> str:
    """The color of a class as '#rrggbb'."""
    return PALETTE[index % len(PALETTE)]


def class_color(index: int) -> Color:
    """The color of a class as RGB in 0..255."""
    code = class_hex(index)
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def luminance(color: Color) -> float:
    """Relative luminance in 0..1 of an sRGB color, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def text_color(background: Color) -> Color:
    """Black or white, whichever has the higher contrast on `background`; it is at least 4.5 by WCAG 2."""
    return (0, 0, 0) if luminance(background) > 0.179 else (255, 255, 255)
