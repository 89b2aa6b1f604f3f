"""What the images of the built-in data set show: objects of six classes, backgrounds, light and noise.

While an image is drawn it is float32 RGB in 0..1; sizes are (height, width); x runs right and y down, in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator

NAMES = ("ball", "star", "cup", "fish", "house", "arrow")
HUES = (0, 60, 230, 180, 300, 120)  # degrees, of each class; +/- HUE_SPREAD
HUE_SPREAD, TYPICAL = 22, 0.9  # the share of objects in the hue of their class
FRAMES = ((320, 320), (240, 320), (320, 240), (180, 320), (320, 180), (256, 320), (320, 256))  # image sizes
MIN_SIDE, MAX_SIDE = 8, 200  # long side of a labeled box, pixels
MIN_VISIBLE = 0.3  # share of an object's area that must be visible, or the object is left out
TYPICAL_SIDE = 75  # long side of a labeled box, pixels: the median before it is fitted into the image

Polygons = list[tuple[Any, float]]  # polygons and a value each, drawn in order
Drawing = tuple[
    Polygons, Polygons
]  # the silhouette: polygons to add (1) or cut out (0); inside: polygons and their tone


@dataclass
class Layer:
    """One thing to paint: float32 (h, w) rasters with their top left corner at (x, y), maybe outside the image."""

    label: int  # index into NAMES, -1 for a bar that only covers others
    alpha: np.ndarray  # coverage, 0..1
    tone: np.ndarray  # inner drawing, -1 (black) .. 1 (white)
    edge: np.ndarray  # outline, 0..1
    x: int = 0
    y: int = 0

    def on_canvas(self, raster: np.ndarray, h: int, w: int) -> np.ndarray:
        """`raster` at the layer's place on an empty canvas of (h, w)."""
        shift = np.array([[1.0, 0, self.x], [0, 1, self.y]])
        return cv2.warpAffine(raster, shift, (w, h), flags=cv2.INTER_NEAREST)

    def mask(self, h: int, w: int) -> np.ndarray:
        """The silhouette inside an image of (h, w), 0 or 1 as uint8, whether something covers it or not."""
        return (self.on_canvas(self.alpha, h, w) >= 0.5).astype(np.uint8)


def rectangle(x1: float, y1: float, x2: float, y2: float) -> list[tuple[float, float]]:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, 49))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


# One function for each class, in units of about -1..1.


def ball(rng: Generator) -> Drawing:
    disk, tone = ellipse(0, 0, 1, 1), float(rng.choice([-0.45, 0.6]))
    panels = [(np.vstack([ellipse(0, 0, 1, 1, a, a + 60), [(0, 0)]]), tone) for a in (0, 120, 240)]
    seams = [(rectangle(-1, -0.05, 1, 0.05), tone), (rectangle(-0.05, -1, 0.05, 1), tone)]
    band = [(rectangle(-1, -0.3, 1, 0.3), tone), (ellipse(0, 0, 0.2, 0.2), -tone)]
    return [(disk, 1)], ([], panels, seams, band[:1], band)[rng.integers(5)]


def star(rng: Generator) -> Drawing:
    angle, radius = np.radians(np.arange(10) * 36 - 90), np.tile([1.0, rng.uniform(0.4, 0.52)], 5)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    facets = [(np.vstack([points[[i, i + 1]], [(0, 0)]]), -0.3) for i in range(0, 10, 2)]
    inner = [(points * 0.5, rng.choice([-0.4, 0.5]))]
    return [(points, 1)], ([], facets, inner)[rng.integers(3)]


def cup(rng: Generator) -> Drawing:
    top, tall = rng.uniform((0.55, 0.6), (0.72, 0.85))
    foot, reach, grip = rng.uniform((0.65, 0.42, 0.55), (1.0, 0.52, 0.7)) * (top, 1, tall)
    outer, hole = (ellipse(0.9 * top, -0.08, reach - d, grip - d) for d in (0, 0.17))  # the handle
    body = [(-top, -tall), (top, -tall), (foot, tall), (-foot, tall)]
    rims = [(ellipse(0, -tall, top, 0.15), 1), (ellipse(0, tall, foot, 0.1), 1)]
    details: Polygons = [(ellipse(0, -tall, top * 0.86, 0.1), rng.choice([-0.6, 0.6]))]
    if rng.random() < 0.5:
        side = (top + foot) / 2
        details.append((rectangle(-side, -0.12, side, rng.uniform(0.05, 0.3)), rng.choice([-0.4, 0.5])))
    return [(outer, 1), (hole, 0), (body, 1), *rims], details


def fish(rng: Generator) -> Drawing:
    fat, tail = rng.uniform((0.38, 0.4), 0.55)
    body = ellipse(-0.22, 0, 0.75, fat)
    fin = [(-0.45, -0.7 * fat), (0.05, -fat - rng.uniform(0.12, 0.3)), (0.3, -0.6 * fat)]
    fan = [(0.35, 0), (1.0, -tail), (rng.uniform(0.75, 0.9), 0), (1.0, tail)]
    stripes = [(rectangle(x, -fat * 0.75, x + 0.09, fat * 0.75), -0.4) for x in (-0.25, 0.0, 0.25)[: rng.integers(4)]]
    eye = [(ellipse(-0.62, -0.1, 0.13, 0.13), 0.9), (ellipse(-0.64, -0.1, 0.06, 0.06), -0.9)]
    return [(body, 1), (fin, 1), (fan, 1)], [(fin, -0.3), (fan, -0.3), (body, 0), *stripes, *eye]


def house(rng: Generator) -> Drawing:
    wide, peak, eave = rng.uniform((0.55, 0.7, 0.12), (0.75, 1.0, 0.25))
    roof = [(-wide - eave, -0.1), (0, -peak), (wide + eave, -0.1)]
    chimney = rectangle(0.5 * wide, -peak * 0.95, 0.5 * wide + 0.2, -0.1)
    glass, door = rng.choice([-0.6, 0.75]), rng.uniform(-0.3, 0.2)
    details = [(chimney, -0.5), (roof, rng.choice([-0.45, 0.5]))]
    details.append((rectangle(door - 0.14, 0.3, door + 0.14, 0.8), rng.choice([-0.65, 0.7])))
    if rng.random() < 0.7:
        details += [(rectangle(x - 0.12, 0.02, x + 0.12, 0.24), glass) for x in (-0.6 * wide, 0.6 * wide)]
    return [(rectangle(-wide, -0.1, wide, 0.8), 1), (chimney, 1), (roof, 1)], details


def arrow(rng: Generator) -> Drawing:
    shaft, head, neck = rng.uniform((0.2, 0.55, -0.1), (0.3, 0.7, 0.2))
    barb = neck - rng.choice([0.0, rng.uniform(0.1, 0.25)])  # straight or swept-back head
    upper = np.array([(-1, -shaft), (neck, -shaft), (barb, -head), (1, 0)])
    details = [(rectangle(x, -shaft, x + 0.12, shaft), -0.4) for x in (-0.85, -0.55)]
    return [(np.vstack([upper, upper[-2::-1] * (1, -1)]), 1)], details if rng.random() < 0.4 else []


SHAPES = (ball, star, cup, fish, house, arrow)  # in the order of NAMES
ANY_POSE = (ball, star)  # the others have an upright pose and only tilt


def draw_object(rng: Generator, label: int, size: float) -> Layer:
    """An object of class `label` in a random pose, the long side of its box about `size` pixels."""
    silhouette, details = SHAPES[label](rng)
    limit = np.pi if SHAPES[label] in ANY_POSE else 0.5
    turn, mirror, stretch = rng.uniform(-limit, limit), rng.choice([-1, 1]), rng.uniform(0.92, 1.08)
    cos, sin = np.cos(turn), np.sin(turn)
    pose = np.array([[cos, -sin], [sin, cos]]) @ np.diag([mirror * stretch, 1.0])
    points = np.vstack([polygon for polygon, add in silhouette if add]) @ pose.T
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    scale, fine = size / span.max(), 4 if size < 80 else 2  # drawn `fine` times as large, then averaged
    w, h = (np.ceil(span * scale).astype(int) + 2) * fine

    def fill(polygons: Polygons, ground: int, contrast: int) -> np.ndarray:
        raster = np.full((h, w), ground, np.uint8)
        for polygon, value in polygons:
            pixels = ((polygon @ pose.T - low) * scale + 1) * fine
            cv2.fillPoly(raster, [np.round(pixels * 16).astype(np.int32)], ground + contrast * value, shift=4)
        return raster

    alpha, tone = fill(silhouette, 0, 255), fill(details, 127, 127)
    edge = np.zeros_like(alpha)
    if rng.random() < 0.45:
        reach = 2 * round(max(0.8, size * rng.uniform(0.02, 0.045)) * fine) + 1
        edge = alpha - cv2.erode(alpha, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    small = cv2.resize(np.dstack([alpha, tone, edge]), (w // fine, h // fine), interpolation=cv2.INTER_AREA)
    alpha, tone, edge = small.astype(np.float32).transpose(2, 0, 1)
    return Layer(label, alpha / 255, (tone - 127) / 127, edge / 255)


def draw_bar(rng: Generator, h: int, w: int) -> Layer:
    """A bar across the image that may cover objects and has no label."""
    alpha, none = np.zeros((h, w), np.uint8), np.zeros((h, w), np.float32)
    start, end = (rng.uniform(-0.2, 1.2, (2, 2)) * (w, h)).astype(int).tolist()
    cv2.line(alpha, start, end, 255, int(rng.integers(3, 12)), cv2.LINE_AA)
    return Layer(-1, alpha.astype(np.float32) / 255, none, none)


def random_color(rng: Generator, low: Sequence, high: Sequence, hue: float = 0) -> np.ndarray:
    """An RGB color (3,) whose hue in degrees (counted from `hue`), saturation and value lie in low..high."""
    turn, saturation, value = rng.uniform(low, high)
    hsv = np.array([[[(hue + turn) % 360, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def noise(rng: Generator, h: int, w: int, cell: float) -> np.ndarray:
    """(h, w) float32 in 0..1: smooth noise of three scales, the coarsest of `cell` pixels."""
    total = np.zeros((h, w), np.float32)
    for octave in range(3):
        step = max(1.0, cell / 2**octave)
        grid = rng.random((int(h / step) + 2, int(w / step) + 2), np.float32)
        total += cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC) / 2**octave
    return cv2.normalize(total, total, 0, 1, cv2.NORM_MINMAX)


def texture(rng: Generator, h: int, w: int, period: float, kinds: int) -> np.ndarray:
    """(h, w) float32 in 0..1, one of the first `kinds` of: flat, slope, stripes, checks, noise, dots."""
    kind, turn, phase = rng.integers(kinds), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 2)
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    cos, sin = np.array([np.cos(turn), np.sin(turn)], np.float32)
    u, v = x * cos + y * sin, y * cos - x * sin
    if kind < 2:
        return cv2.normalize(u * int(kind), u, 0, 1, cv2.NORM_MINMAX)
    if kind == 4:
        return noise(rng, h, w, period)
    pitch, (p, q) = np.float32(2 * np.pi / period), phase.astype(np.float32)
    a, b = np.sin(u * pitch + p), np.sin(v * pitch + q)
    wave = {2: a, 3: a * b * 2, 5: a + b - 1}[int(kind)]
    return np.clip(wave * np.float32(period / 4) + np.float32(0.5), 0, 1)  # edges about one pixel wide


def colorize(rng: Generator, layer: Layer, backdrop: np.ndarray) -> np.ndarray:
    """A layer in color: float32 (h, w, 3) RGB; its main color keeps away from the mean `backdrop` color."""
    colors: tuple = (0, 0.03, 0.1), (360, 1, 1)
    if layer.label >= 0 and rng.random() < TYPICAL:
        colors = (-HUE_SPREAD, 0.5, 0.4), (HUE_SPREAD, 1, 1), HUES[layer.label]
    options = [random_color(rng, *colors) for _ in range(12)]
    base = max(options, key=lambda c: min(np.linalg.norm(c - backdrop), 0.6))  # the first that stands out enough
    other = np.clip(base + rng.uniform(-0.3, 0.3, 3), 0, 1).astype(np.float32)
    h, w = layer.alpha.shape
    field = texture(rng, h, w, max(h, w) * rng.uniform(0.12, 0.4), 6)[..., None]
    x, y = (np.arange(n, dtype=np.float32) / max(h, w) for n in (w, h))
    slope = rng.uniform(-0.6, 0.6, 2).astype(np.float32)
    light = 1 + slope[0] * (x - 0.5) + slope[1] * (y[:, None] - 0.5)
    rgb = (base + (other - base) * field) * light[..., None]
    if rng.random() < 0.4:  # a soft highlight
        left, top, strength = rng.uniform((0.25, 0.2, 0.2), (0.6, 0.5, 0.5)).tolist()
        gap = (x - left) ** 2 + (y[:, None] - top) ** 2
        rgb += strength * np.exp(gap / -0.03)[..., None].astype(np.float32)
    rgb, tone = np.clip(rgb, 0, 1), layer.tone[..., None]
    rgb = np.where(tone < 0, rgb * (1 + tone), rgb + (1 - rgb) * tone)
    line = (np.full(3, 0.05), np.full(3, 0.95), 1 - base)[rng.integers(3)].astype(np.float32)
    return rgb + (line - rgb) * layer.edge[..., None]


def paint(rng: Generator, canvas: np.ndarray, layer: Layer, shadow: float = 0.35) -> None:
    """Paint `layer` over the float32 (h, w, 3) `canvas` in place, with a soft shadow below it by chance `shadow`."""
    h, w = canvas.shape[:2]
    rgb = colorize(rng, layer, np.array(cv2.mean(canvas, layer.mask(h, w))[:3]))
    alpha, rgb = (layer.on_canvas(raster, h, w) for raster in (layer.alpha, rgb))
    if rng.random() < shadow:
        x, y = max(layer.alpha.shape) * rng.uniform(0.03, 0.1, 2) + 1
        move = np.array([[1, 0, x * rng.choice([-1, 1])], [0, 1, y]])
        soft = cv2.GaussianBlur(cv2.warpAffine(alpha, move, (w, h)), (0, 0), (x + y) / 2)
        canvas *= 1 - np.float32(rng.uniform(0.3, 0.6)) * soft[..., None]
    canvas += (rgb - canvas) * alpha[..., None]


def place_objects(rng: Generator, h: int, w: int, side: int = TYPICAL_SIDE) -> list[Layer]:
    """The objects and bars of an image of (h, w), front to back: when one is placed, all that covers it is known.

    Args:
        side: typical long side of an object, pixels.
    """
    layers, covered = [], np.zeros((h, w), np.uint8)
    count = 0 if rng.random() < 0.04 else min(12, 1 + rng.poisson(rng.choice([1.5, 3.0, 5.0])))
    labels = rng.integers(len(NAMES), size=count).tolist()
    for _ in range(int(rng.random() < 0.25) * int(rng.integers(1, 3))):
        labels.insert(int(rng.integers(len(labels) + 1)), -1)
    for label in labels:
        size = np.clip(np.exp(rng.normal(np.log(side), 0.6)), MIN_SIDE + 1, min(MAX_SIDE - 2, 0.9 * min(h, w)))
        layer = draw_bar(rng, h, w) if label < 0 else draw_object(rng, label, size)
        need = MIN_VISIBLE if rng.random() < 0.2 else 0.9
        half = np.array(layer.alpha.shape[::-1]) / 2
        for _ in range(12):  # tries
            if label >= 0:
                layer.x, layer.y = rng.uniform(-half, (w, h) - half).astype(int).tolist()
            mask = layer.mask(h, w)
            visible = (mask & ~covered).sum() / max(1, (layer.alpha >= 0.5).sum())
            if label < 0 or (visible >= need and MIN_SIDE <= max(cv2.boundingRect(mask)[2:]) <= MAX_SIDE):
                layers.append(layer)
                covered |= mask
                break
    return layers


def background(rng: Generator, h: int, w: int) -> np.ndarray:
    """A background without objects, float32 (h, w, 3) RGB in 0..1: texture and clutter."""
    first = random_color(rng, (0, 0.03, 0.1), (360, 0.65, 1))
    second = np.clip(first + rng.uniform(-0.25, 0.25, 3), 0, 1).astype(np.float32)
    field = texture(rng, h, w, rng.uniform(12, 120), 5)[..., None]  # no dots: large ones would be balls
    grain = noise(rng, h, w, rng.uniform(8, 90))[..., None] - np.float32(0.5)
    canvas = np.clip(first + (second - first) * field + np.float32(rng.uniform(0, 0.25)) * grain, 0, 1)
    mean = np.array(cv2.mean(canvas)[:3])
    for _ in range(int(rng.integers(0, 10))):
        layer, color = canvas.copy(), np.clip(mean + rng.uniform(-0.35, 0.35, 3), 0, 1).tolist()
        kind, thick, at = rng.integers(4), int(rng.integers(1, 4)), rng.uniform((0, 0), (w, h))
        reach, opacity = rng.uniform((10, 0.3), (70, 0.9))
        if kind == 1:
            axes, turn = (int(reach), int(reach * rng.uniform(0.15, 0.45))), rng.uniform(0, 180)
            cv2.ellipse(layer, at.astype(int).tolist(), axes, turn, 0, 360, color, -1, cv2.LINE_AA)
        elif kind == 2:
            angle = np.sort(rng.uniform(0, 2 * np.pi, 4))
            arms = np.stack([np.cos(angle), np.sin(angle)], axis=1) * rng.uniform(0.3, 1, (4, 1))
            cv2.fillPoly(layer, [(at + arms * reach).astype(np.int32)], color, cv2.LINE_AA)
        else:
            line = rng.uniform(0, 1, (2, 2)) * (w, h) if kind == 0 else at + rng.normal(0, reach / 5, (14, 2)).cumsum(0)
            cv2.polylines(layer, [line.astype(np.int32)], False, color, thick, cv2.LINE_AA)
        canvas = cv2.addWeighted(canvas, 1 - opacity, layer, opacity, 0)
    return canvas


def camera(rng: Generator, canvas: np.ndarray) -> np.ndarray:
    """`canvas` as a camera would see it, with exposure, slight blur and noise: uint8 (h, w, 3)."""
    canvas = cv2.addWeighted(canvas, rng.uniform(0.75, 1.15), canvas, 0, rng.uniform(-0.05, 0.08))
    if rng.random() < 0.35:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.1))
    if rng.random() < 0.5:
        canvas = canvas + np.float32(rng.uniform(0.01, 0.05)) * rng.standard_normal(canvas.shape, np.float32)
    return to_bytes(canvas)


def to_bytes(canvas: np.ndarray) -> np.ndarray:
    return np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def draw_image(seed: int, split: int, index: int, side: int = TYPICAL_SIDE) -> tuple[np.ndarray, list[Layer], int]:
    """Image (h, w, 3) uint8 RGB, its layers front to back, its JPEG quality; they depend on these numbers only."""
    rng = np.random.default_rng((seed, split, index))
    h, w = FRAMES[rng.integers(len(FRAMES))]
    canvas = background(rng, h, w)
    layers = place_objects(rng, h, w, side)
    for layer in reversed(layers):
        paint(rng, canvas, layer)
    return camera(rng, canvas), layers, int(rng.integers(60, 96))
