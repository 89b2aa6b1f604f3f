"""The colors of classes: apart from each other and from common backgrounds, also for people who see fewer colors."""

from __future__ import annotations

import numpy as np
import pytest

from utils.palette import PALETTE, class_color, class_hex, luminance, text_color

# Linear RGB as people see it without cones of one kind: Machado, Oliveira and Fernandes 2009, severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
# OKLab by Ottosson 2020, from linear sRGB.
LMS = np.array(
    [[0.41222147, 0.53633254, 0.05144599], [0.21190350, 0.68069955, 0.10739696], [0.08830246, 0.28171884, 0.62997870]]
)
LAB = np.array(
    [
        [0.21045426, 0.79361779, -0.00407205],
        [1.97799850, -2.42859221, 0.45059371],
        [0.02590404, 0.78277177, -0.80867577],
    ]
)
BACKGROUNDS = {  # mean colors
    "light wood": (184, 140, 95),
    "wood": (145, 101, 54),
    "dark wood": (92, 62, 45),
    "felt": (36, 98, 62),
    "jeans": (66, 86, 120),
    "linen": (200, 190, 175),
    "red cloth": (150, 35, 40),
    "sky": (120, 170, 220),
    "pale sky": (185, 210, 230),
    "sea": (35, 85, 115),
    "lagoon": (70, 150, 155),
    "sand": (177, 159, 133),
    "asphalt": (88, 88, 85),
    "grass": (90, 120, 55),
    "paper": (240, 240, 240),
    "night": (20, 20, 20),
}
COLORS = [class_color(i) for i in range(len(PALETTE))]


def oklab(colors: list[tuple[int, int, int]], vision: str) -> np.ndarray:
    """(n, 3) lightness 0..1, green to red, blue to yellow, as seen with a vision."""
    values = np.array(colors) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return np.cbrt(np.clip(linear @ VISION[vision].T, 0, 1) @ LMS.T) @ LAB.T


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.linalg.norm(a[:, None] - b[None], axis=2)


@pytest.mark.parametrize(
    ("count", "normal", "fewer"),
    [(2, 0.46, 0.31), (3, 0.22, 0.14), (6, 0.16, 0.09), (12, 0.11, 0.06), (80, 0.038, 0.02)],
)
@pytest.mark.parametrize("vision", VISION)
def test_the_first_colors_differ(count: int, normal: float, fewer: float, vision: str) -> None:
    seen = oklab(COLORS[:count], vision)
    assert (distances(seen, seen) + 9 * np.eye(count)).min() >= (normal if vision == "normal" else fewer)


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_colors_hold_on_a_background(background: str) -> None:
    for vision, least in zip(VISION, (0.1, 0.03, 0.03, 0.03), strict=True):
        assert distances(oklab(COLORS, vision), oklab([BACKGROUNDS[background]], vision)).min() >= least


def test_the_first_twelve_are_bright() -> None:
    """Saturated and nearly as bright as their hue can be; none of the others is dark."""
    for r, g, b in COLORS[:12]:
        assert max(r, g, b) >= 225 and max(r, g, b) - min(r, g, b) >= 0.6 * 255
    assert oklab(COLORS, "normal")[:, 0].min() >= 0.55


def test_text_on_every_color_has_the_contrast_of_wcag() -> None:
    for color in COLORS:
        low, high = sorted((luminance(color), luminance(text_color(color))))
        assert (high + 0.05) / (low + 0.05) >= 4.5
    assert luminance((255, 255, 255)) == pytest.approx(1) and luminance((0, 0, 0)) == 0


def test_a_class_keeps_its_color() -> None:
    assert len(set(PALETTE)) == len(PALETTE) == 80
    assert class_color(80) == class_color(0) and class_hex(81) == class_hex(1)
    assert ["#{:02x}{:02x}{:02x}".format(*color) for color in COLORS] == list(PALETTE)
