"""Draw the built-in detection data set: objects on varied backgrounds, in YOLO format, nothing downloaded.

    python data/make_shapes.py --out datasets/shapes --train 480 --val 120 --seed 0

A class is told by its silhouette and, mostly, by its hue: of ten objects nine wear the hue of their class, as real
things do, the tenth any colour; textures, light and outlines are drawn without looking at the class.
Drawing happens in float32 RGB in 0..1; sizes are (height, width); x runs right and y runs down, in pixels.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

NAMES = ("ball", "star", "cup", "fish", "house", "arrow")
FREE_TO_TURN = {"ball", "star"}  # the others have an upright pose and only tilt
HUES = dict(zip(NAMES, (0, 60, 230, 180, 300, 120), strict=True))  # degrees; +/- HUE_SPREAD
HUE_SPREAD, FAITHFUL = 22, 0.9  # the share of objects in the hue of their class
VERSION = 2  # raise it whenever the same arguments would draw other files
SPLITS = {"train": 0, "val": 1}
SAMPLES, CLIP = 2, 3  # split ids of the sample pictures and of the clip
FRAMES = ((320, 320), (240, 320), (320, 240), (180, 320), (320, 180), (256, 320), (320, 256))
MIN_SIDE, MAX_SIDE = 8, 200  # long side of a labelled box, pixels
MIN_VISIBLE = 0.3  # share of an object's area that must be seen, or the object is left out


@dataclass
class Shape:
    """An object in its own units, about -1..1; the polygons are drawn in order."""

    parts: list[tuple[np.ndarray, bool]]  # silhouette: polygons to add (True) or to cut out (False)
    details: list[tuple[np.ndarray, float]]  # inner drawing: polygons and their tone, -1..1


@dataclass
class Layer:
    """One thing to paint: float32 (h, w) rasters with their top left corner at (x, y), maybe off frame."""

    label: int  # index into NAMES, -1 for a distractor
    alpha: np.ndarray  # coverage, 0..1
    tone: np.ndarray  # inner drawing, -1 (black) .. 1 (white)
    edge: np.ndarray  # outline, 0..1
    x: int = 0
    y: int = 0


@dataclass
class Picture:
    """A drawn picture and its truth; `n` objects, front to back."""

    image: np.ndarray  # (h, w, 3) uint8 RGB
    labels: np.ndarray  # (n,) int64, index into NAMES
    boxes: np.ndarray  # (n, 4) int64 x1, y1, x2, y2, pixel edges of the silhouette inside the frame
    masks: np.ndarray  # (n, h, w) bool, that silhouette, covered or not
    visible: np.ndarray  # (n,) float64 share of the whole object's area that is seen, 0..1
    quality: int  # JPEG quality to store it with, 1..100


def _poly(*points: tuple[float, float]) -> np.ndarray:
    return np.array(points, np.float64)


def _rect(x1: float, y1: float, x2: float, y2: float) -> np.ndarray:
    return _poly((x1, y1), (x2, y1), (x2, y2), (x1, y2))


def _ellipse(x: float, y: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0) -> np.ndarray:
    angle = np.radians(np.linspace(start, stop, 49))
    return np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], axis=1)


def _ball(rng: np.random.Generator) -> Shape:
    tone = float(rng.choice([-0.45, 0.6]))
    panels = [(np.vstack([_ellipse(0, 0, 1, 1, a, a + 60), [(0.0, 0.0)]]), tone) for a in (0, 120, 240)]
    seams = [(_rect(-1, -0.05, 1, 0.05), tone), (_rect(-0.05, -1, 0.05, 1), tone)]
    band = [(_rect(-1, -0.3, 1, 0.3), tone), (_ellipse(0, 0, 0.2, 0.2), -tone)]
    return Shape([(_ellipse(0, 0, 1, 1), True)], ([], panels, seams, band[:1], band)[rng.integers(5)])


def _star(rng: np.random.Generator) -> Shape:
    angle = np.radians(np.arange(10) * 36 - 90)
    radius = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.4, 0.52))
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    facets = [(np.vstack([points[[i, (i + 1) % 10]], [(0.0, 0.0)]]), -0.3) for i in range(0, 10, 2)]
    inner = [(points * 0.5, rng.choice([-0.4, 0.5]))]
    return Shape([(points, True)], ([], facets, inner)[rng.integers(3)])


def _cup(rng: np.random.Generator) -> Shape:
    top, tall = rng.uniform(0.55, 0.72), rng.uniform(0.6, 0.85)
    foot = top * rng.uniform(0.65, 1.0)
    reach, grip = rng.uniform(0.42, 0.52), tall * rng.uniform(0.55, 0.7)
    body = _poly((-top, -tall), (top, -tall), (foot, tall), (-foot, tall))
    parts = [
        (_ellipse(0.9 * top, -0.08, reach, grip), True),
        (_ellipse(0.9 * top, -0.08, reach - 0.17, grip - 0.17), False),
        (body, True),
        (_ellipse(0, -tall, top, 0.15), True),
        (_ellipse(0, tall, foot, 0.1), True),
    ]
    details = [(_ellipse(0, -tall, top * 0.86, 0.1), rng.choice([-0.6, 0.6]))]
    if rng.random() < 0.5:
        side = (top + foot) / 2
        details.append((_rect(-side, -0.12, side, rng.uniform(0.05, 0.3)), rng.choice([-0.4, 0.5])))
    return Shape(parts, details)


def _fish(rng: np.random.Generator) -> Shape:
    fat, tail = rng.uniform(0.38, 0.55), rng.uniform(0.4, 0.55)
    fin = _poly((-0.45, -0.7 * fat), (0.05, -fat - rng.uniform(0.12, 0.3)), (0.3, -0.6 * fat))
    fan = _poly((0.35, 0), (1.0, -tail), (rng.uniform(0.75, 0.9), 0), (1.0, tail))
    details = [(fin, -0.3), (fan, -0.3), (_ellipse(-0.22, 0, 0.75, fat), 0.0)]
    for x in (-0.25, 0.0, 0.25)[: rng.integers(4)]:
        details.append((_rect(x, -fat * 0.75, x + 0.09, fat * 0.75), -0.4))
    details += [(_ellipse(-0.62, -0.1, 0.13, 0.13), 0.9), (_ellipse(-0.64, -0.1, 0.06, 0.06), -0.9)]
    return Shape([(_ellipse(-0.22, 0, 0.75, fat), True), (fin, True), (fan, True)], details)


def _house(rng: np.random.Generator) -> Shape:
    wide, peak, eave = rng.uniform(0.55, 0.75), rng.uniform(0.7, 1.0), rng.uniform(0.12, 0.25)
    roof = _poly((-wide - eave, -0.1), (0, -peak), (wide + eave, -0.1))
    chimney = _rect(0.5 * wide, -peak * 0.95, 0.5 * wide + 0.2, -0.1)
    glass, door = rng.choice([-0.6, 0.75]), rng.uniform(-0.3, 0.2)
    details = [
        (chimney, -0.5),
        (roof, rng.choice([-0.45, 0.5])),
        (_rect(door - 0.14, 0.3, door + 0.14, 0.8), rng.choice([-0.65, 0.7])),
    ]
    if rng.random() < 0.7:
        details += [(_rect(x - 0.12, 0.02, x + 0.12, 0.24), glass) for x in (-0.6 * wide, 0.6 * wide)]
    return Shape([(_rect(-wide, -0.1, wide, 0.8), True), (chimney, True), (roof, True)], details)


def _arrow(rng: np.random.Generator) -> Shape:
    shaft, head, neck = rng.uniform(0.2, 0.3), rng.uniform(0.55, 0.7), rng.uniform(-0.1, 0.2)
    barb = neck - rng.choice([0.0, rng.uniform(0.1, 0.25)])  # straight or swept-back head
    upper = _poly((-1, -shaft), (neck, -shaft), (barb, -head), (1, 0))
    points = np.vstack([upper, upper[-2::-1] * (1, -1)])
    details = [(_rect(x, -shaft, x + 0.12, shaft), -0.4) for x in (-0.85, -0.55)]
    return Shape([(points, True)], details if rng.random() < 0.4 else [])


MAKERS = dict(zip(NAMES, (_ball, _star, _cup, _fish, _house, _arrow), strict=True))


def make_layer(rng: np.random.Generator, label: int, size: float) -> Layer:
    """Rasterise one object of class `label` in a random pose, its box's long side about `size` pixels."""
    shape = MAKERS[NAMES[label]](rng)
    turn = rng.uniform(-np.pi, np.pi) if NAMES[label] in FREE_TO_TURN else rng.uniform(-0.5, 0.5)
    stretch = np.diag([rng.choice([-1, 1]) * rng.uniform(0.92, 1.08), 1.0])
    cos, sin = np.cos(turn), np.sin(turn)
    pose = np.array([[cos, -sin], [sin, cos]]) @ stretch
    points = np.vstack([p for p, add in shape.parts if add]) @ pose.T
    low, span = points.min(axis=0), np.ptp(points, axis=0)
    scale, fine = size / span.max(), 4 if size < 80 else 2
    w, h = (np.ceil(span * scale).astype(int) + 2) * fine
    alpha, tone = np.zeros((h, w), np.uint8), np.full((h, w), 127, np.uint8)

    def fill(target: np.ndarray, polygon: np.ndarray, value: float) -> None:
        pixels = ((polygon @ pose.T - low) * scale + 1) * fine
        cv2.fillPoly(target, [np.round(pixels * 16).astype(np.int32)], value, shift=4)

    for polygon, add in shape.parts:
        fill(alpha, polygon, 255 * add)
    for polygon, value in shape.details:
        fill(tone, polygon, 127 + 127 * value)
    edge = np.zeros_like(alpha)
    if rng.random() < 0.45:
        reach = 2 * round(max(0.8, size * rng.uniform(0.02, 0.045)) * fine) + 1
        edge = alpha - cv2.erode(alpha, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (reach, reach)))
    small = [cv2.resize(a, (w // fine, h // fine), interpolation=cv2.INTER_AREA) for a in (alpha, tone, edge)]
    alpha, tone, edge = (a.astype(np.float32) for a in small)
    return Layer(label, alpha / 255, (tone - 127) / 127, edge / 255)


def _colour(rng: np.random.Generator, vivid: float = 1.0) -> np.ndarray:
    return _rgb(rng.uniform(0, 360), rng.uniform(0.03, vivid), rng.uniform(0.1, 1.0))


def _class_colour(rng: np.random.Generator, label: int) -> np.ndarray:
    hue = HUES[NAMES[label]] + rng.uniform(-HUE_SPREAD, HUE_SPREAD)
    return _rgb(hue % 360, rng.uniform(0.5, 1.0), rng.uniform(0.4, 1.0))


def _rgb(hue: float, saturation: float, value: float) -> np.ndarray:
    hsv = np.array([[[hue, saturation, value]]], np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _fractal(rng: np.random.Generator, h: int, w: int, cell: float) -> np.ndarray:
    total = np.zeros((h, w), np.float32)
    for octave in range(3):
        step = max(1.0, cell / 2**octave)
        grid = rng.random((int(h / step) + 2, int(w / step) + 2), np.float32)
        total += cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC) / 2**octave
    return cv2.normalize(total, None, 0, 1, cv2.NORM_MINMAX)


def _pattern(rng: np.random.Generator, h: int, w: int, period: float, kinds: int) -> np.ndarray:
    """(h, w) float32 texture in 0..1, of the first `kinds` of: flat, slope, stripes, checks, noise, dots."""
    kind, turn, phase = rng.integers(kinds), rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi, 2)
    x, y = np.arange(w, dtype=np.float32), np.arange(h, dtype=np.float32)[:, None]
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    u, v = x * cos + y * sin, y * cos - x * sin
    if kind == 0:
        return np.zeros((h, w), np.float32)
    if kind == 1:
        return cv2.normalize(u, None, 0, 1, cv2.NORM_MINMAX)
    if kind == 4:
        return _fractal(rng, h, w, period)
    pitch = np.float32(2 * np.pi / period)
    a, b = np.sin(u * pitch + np.float32(phase[0])), np.sin(v * pitch + np.float32(phase[1]))
    wave = {2: a, 3: a * b * 2, 5: a + b - 1}[int(kind)]
    return np.clip(wave * np.float32(period / 4) + np.float32(0.5), 0, 1)  # edges about one pixel wide


def _fill(rng: np.random.Generator, layer: Layer, backdrop: np.ndarray) -> np.ndarray:
    """Colour a layer: float32 (h, w, 3) RGB; its main colour keeps away from the mean `backdrop` colour."""
    own = layer.label >= 0 and rng.random() < FAITHFUL
    options = [_class_colour(rng, layer.label) if own else _colour(rng) for _ in range(12)]
    base = max(options, key=lambda c: min(np.linalg.norm(c - backdrop), 0.6))  # the first that stands out enough
    other = np.clip(base + rng.uniform(-0.3, 0.3, 3), 0, 1).astype(np.float32)
    h, w = layer.alpha.shape
    texture = _pattern(rng, h, w, max(h, w) * rng.uniform(0.12, 0.4), 6)[..., None]
    x, y = (np.arange(n, dtype=np.float32) / max(h, w) for n in (w, h))
    slope = rng.uniform(-0.6, 0.6, 2).astype(np.float32)
    light = 1 + slope[0] * (x - 0.5) + slope[1] * (y[:, None] - 0.5)
    rgb = (base + (other - base) * texture) * light[..., None]
    if rng.random() < 0.4:  # a soft highlight
        gap = (x - rng.uniform(0.25, 0.6)) ** 2 + (y[:, None] - rng.uniform(0.2, 0.5)) ** 2
        rgb += np.float32(rng.uniform(0.2, 0.5)) * np.exp(gap / -0.03)[..., None].astype(np.float32)
    rgb, tone = np.clip(rgb, 0, 1), layer.tone[..., None]
    rgb = np.where(tone < 0, rgb * (1 + tone), rgb + (1 - rgb) * tone)
    line = (np.full(3, 0.05), np.full(3, 0.95), 1 - base)[rng.integers(3)].astype(np.float32)
    return rgb + (line - rgb) * layer.edge[..., None]


def _overlap(layer: Layer, h: int, w: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where layer and (h, w) frame meet: rows and columns of the frame, rows and columns of the layer."""
    (tall, wide), x, y = layer.alpha.shape, layer.x, layer.y
    y1, x1 = min(max(y, 0), h), min(max(x, 0), w)
    y2, x2 = max(y1, min(y + tall, h)), max(x1, min(x + wide, w))
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - y, y2 - y), slice(x1 - x, x2 - x))


def _silhouette(layer: Layer, h: int, w: int) -> np.ndarray:
    mask = np.zeros((h, w), bool)
    there, here = _overlap(layer, h, w)
    mask[there] = layer.alpha[here] >= 0.5
    return mask


def paint(rng: np.random.Generator, canvas: np.ndarray, layer: Layer, shadow: float = 0.35) -> None:
    """Paint `layer` over the float32 (h, w, 3) `canvas` in place, on a soft shadow with chance `shadow`."""
    h, w = canvas.shape[:2]
    there, here = _overlap(layer, h, w)
    alpha = layer.alpha[here][..., None]
    backdrop = np.array(cv2.mean(canvas[there], (alpha >= 0.5).astype(np.uint8))[:3])
    rgb = _fill(rng, layer, backdrop)[here]
    if rng.random() < shadow:
        reach = max(layer.alpha.shape) * rng.uniform(0.03, 0.1, 2) + 1
        whole = np.zeros((h, w), np.float32)
        whole[there] = layer.alpha[here]
        move = np.array([[1, 0, reach[0] * rng.choice([-1, 1])], [0, 1, reach[1]]])
        soft = cv2.GaussianBlur(cv2.warpAffine(whole, move, (w, h)), (0, 0), float(reach.mean()))
        canvas *= 1 - np.float32(rng.uniform(0.3, 0.6)) * soft[..., None]
    canvas[there] += (rgb - canvas[there]) * alpha


def mask_box(mask: np.ndarray) -> np.ndarray:
    """Tight box of a non-empty bool (h, w) mask: int64 (4,) x1, y1, x2, y2 in pixel edges."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def _bar(rng: np.random.Generator, h: int, w: int) -> Layer:
    alpha = np.zeros((h, w), np.uint8)
    ends = rng.uniform(-0.2, 1.2, (2, 2)) * (w, h)
    cv2.line(alpha, *ends.astype(int).tolist(), 255, int(rng.integers(3, 12)), cv2.LINE_AA)
    plain = np.zeros((h, w), np.float32)
    return Layer(-1, alpha.astype(np.float32) / 255, plain, plain)


def lay_out(rng: np.random.Generator, h: int, w: int) -> tuple[list[Layer], list[np.ndarray], list[float]]:
    """Layers front to back; for each, its bool (h, w) silhouette and the share of its area that is seen.

    Going front to back, what an object will be covered by is known before it is placed.
    """
    layers, masks, seen = [], [], []
    taken = np.zeros((h, w), bool)
    count = 0 if rng.random() < 0.04 else int(min(12, 1 + rng.poisson(rng.choice([1.5, 3.0, 5.0]))))
    todo = [int(rng.integers(len(NAMES))) for _ in range(count)]
    for _ in range(int(rng.random() < 0.25) * int(rng.integers(1, 3))):
        todo.insert(int(rng.integers(len(todo) + 1)), -1)
    for label in todo:
        size = np.clip(np.exp(rng.normal(np.log(75), 0.6)), MIN_SIDE + 1, min(MAX_SIDE - 2, 0.9 * min(h, w)))
        layer = _bar(rng, h, w) if label < 0 else make_layer(rng, label, size)
        need = MIN_VISIBLE if rng.random() < 0.2 else 0.9
        for _ in range(12):
            if label >= 0:
                layer.x, layer.y = (
                    int(rng.uniform(-0.5 * a, b - 0.5 * a))
                    for a, b in zip(layer.alpha.shape[::-1], (w, h), strict=True)
                )
            mask = _silhouette(layer, h, w)
            share = (mask & ~taken).sum() / max(1, (layer.alpha >= 0.5).sum())
            side = np.ptp(mask_box(mask).reshape(2, 2), axis=0).max() if mask.any() else 0
            if label < 0 or (share >= need and MIN_SIDE <= side <= MAX_SIDE):
                layers.append(layer)
                masks.append(mask)
                seen.append(float(share))
                taken |= mask
                break
    return layers, masks, seen


def background(rng: np.random.Generator, h: int, w: int) -> np.ndarray:
    """A background without objects, float32 (h, w, 3) RGB in 0..1: textures under clutter."""
    first = _colour(rng, vivid=0.65)
    second = np.clip(first + rng.uniform(-0.25, 0.25, 3), 0, 1).astype(np.float32)
    field = _pattern(rng, h, w, rng.uniform(12, 120), 5)[..., None]  # no dots: big ones would be balls
    grain = _fractal(rng, h, w, rng.uniform(8, 90))[..., None] - np.float32(0.5)
    canvas = np.clip(first + (second - first) * field + np.float32(rng.uniform(0, 0.25)) * grain, 0, 1)
    mean = np.array(cv2.mean(canvas)[:3])
    for _ in range(int(rng.integers(0, 10))):
        layer, colour = canvas.copy(), np.clip(mean + rng.uniform(-0.35, 0.35, 3), 0, 1)
        kind, thick = rng.integers(4), int(rng.integers(1, 4))
        at, reach, share = rng.uniform((0, 0), (w, h)), rng.uniform(10, 70), rng.uniform(0.3, 0.9)
        if kind == 0:
            ends = rng.uniform(0, 1, (2, 2)) * (w, h)
            cv2.line(layer, *ends.astype(int).tolist(), colour.tolist(), thick, cv2.LINE_AA)
        elif kind == 1:  # an elongated blob
            axes = (int(reach), int(reach * rng.uniform(0.15, 0.45)))
            turn = rng.uniform(0, 180)
            cv2.ellipse(layer, at.astype(int).tolist(), axes, turn, 0, 360, colour.tolist(), -1, cv2.LINE_AA)
        elif kind == 2:  # a torn scrap
            angle = np.sort(rng.uniform(0, 2 * np.pi, 4))
            arms = np.stack([np.cos(angle), np.sin(angle)], axis=1) * rng.uniform(0.3, 1, (4, 1))
            points = at + arms * reach
            cv2.fillPoly(layer, [points.astype(np.int32)], colour.tolist(), cv2.LINE_AA)
        else:  # a scribble
            points = at + np.cumsum(rng.normal(0, reach / 5, (14, 2)), axis=0)
            cv2.polylines(layer, [points.astype(np.int32)], False, colour.tolist(), thick, cv2.LINE_AA)
        canvas = cv2.addWeighted(canvas, 1 - share, layer, share, 0)
    return canvas


def _develop(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """What a camera would add: exposure, slight blur and noise; uint8 (h, w, 3)."""
    canvas = cv2.addWeighted(canvas, rng.uniform(0.75, 1.15), canvas, 0, rng.uniform(-0.05, 0.08))
    if rng.random() < 0.35:
        canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 1.1))
    if rng.random() < 0.5:
        canvas += np.float32(rng.uniform(0.01, 0.05)) * rng.standard_normal(canvas.shape, np.float32)
    return np.round(np.clip(canvas, 0, 1) * 255).astype(np.uint8)


def draw_picture(seed: int, split: int, index: int) -> Picture:
    """Picture `index` of a split; it depends on these three numbers alone."""
    rng = np.random.default_rng((seed, split, index))
    h, w = FRAMES[rng.integers(len(FRAMES))]
    canvas = background(rng, h, w)
    layers, masks, seen = lay_out(rng, h, w)
    for layer in reversed(layers):
        paint(rng, canvas, layer)
    keep = [i for i, layer in enumerate(layers) if layer.label >= 0]
    labels = np.array([layers[i].label for i in keep], np.int64)
    boxes = np.array([mask_box(masks[i]) for i in keep], np.int64).reshape(-1, 4)
    stack = np.array([masks[i] for i in keep], bool).reshape(-1, h, w)
    image, quality = _develop(rng, canvas), int(rng.integers(60, 96))
    return Picture(image, labels, boxes, stack, np.array([seen[i] for i in keep]), quality)


def _write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def jpeg(picture: Picture) -> bytes:
    """The picture as a JPEG file."""
    bgr = picture.image[..., ::-1]
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, picture.quality])[1].tobytes()


def label_text(picture: Picture) -> str:
    """YOLO label lines: class, then box centre x, y, width, height as shares (0..1) of the picture's size."""
    h, w = picture.image.shape[:2]
    corners = picture.boxes / (w, h, w, h)
    rows = np.hstack([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]])
    return "".join(
        f"{c} {x:.6f} {y:.6f} {bw:.6f} {bh:.6f}\n" for c, (x, y, bw, bh) in zip(picture.labels, rows, strict=True)
    )


def draw_clip(path: Path, seed: int, frames: int) -> None:
    """Write an mp4 of `frames` frames, 320x240 at 15 a second: objects bounce about, the background pans."""
    rng, (h, w) = np.random.default_rng((seed, CLIP)), (240, 320)
    wide = background(rng, h, w + 120)
    movers = []
    for label in rng.permutation(len(NAMES)):
        layer = make_layer(rng, int(label), rng.uniform(40, 95))
        rgb = _fill(rng, layer, np.array(cv2.mean(wide)[:3]))
        movers.append((rgb, layer.alpha, rng.uniform(0, 640, 2), rng.uniform(2, 5, 2), rng.uniform(0, 6)))
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 15, (w, h))
    if not video.isOpened():
        raise OSError(f"OpenCV cannot write {path} as mp4v")
    for frame in range(frames):
        pan = abs(frame % 240 - 120)
        canvas = wide[:, pan : pan + w].copy()
        for rgb, alpha, start, speed, phase in movers:
            room = (w, h) - np.array(alpha.shape[::-1]) * 0.8  # they may leave by a tenth on every side
            at = np.abs((start + speed * frame) % (2 * room) - room)  # to and fro between the walls
            turn = cv2.getRotationMatrix2D((alpha.shape[1] / 2, alpha.shape[0] / 2), 12 * np.sin(phase + frame / 8), 1)
            turn[:, 2] += at - np.array(alpha.shape[::-1]) * 0.1
            cover = cv2.warpAffine(alpha, turn, (w, h))[..., None]
            canvas += (cv2.warpAffine(rgb, turn, (w, h)) - canvas) * cover
        video.write(np.round(np.clip(canvas[..., ::-1], 0, 1) * 255).astype(np.uint8))
    video.release()


def write_set(root: Path, args: argparse.Namespace) -> list[str]:
    """Draw the whole set into the empty folder `root`; returns one summary line for each split."""
    lines = []
    for split, number in SPLITS.items():
        counts, empty = np.zeros(len(NAMES), int), 0
        for index in tqdm(range(getattr(args, split)), desc=split, unit="picture"):
            picture = draw_picture(args.seed, number, index)
            _write(root / f"images/{split}/{index:06d}.jpg", jpeg(picture))
            _write(root / f"labels/{split}/{index:06d}.txt", label_text(picture))
            counts += np.bincount(picture.labels, minlength=len(NAMES))
            empty += len(picture.labels) == 0
        classes = ", ".join(f"{name} {count}" for name, count in zip(NAMES, counts, strict=True))
        lines.append(f"{split}: {index + 1} pictures ({empty} empty), {counts.sum()} boxes ({classes})")
    if args.clip_frames:
        draw_clip(root / "clip.mp4", args.seed, args.clip_frames)
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
    _write(root / "data.yaml", f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}")
    _write(root / "made.json", json.dumps(recipe(args), indent=2) + "\n")
    return lines


def recipe(args: argparse.Namespace) -> dict[str, int]:
    """All that a set's content depends on."""
    keys = ("train", "val", "seed", "clip_frames")
    return {"version": VERSION, **{key: getattr(args, key) for key in keys}}


def _expected(made: dict[str, int]) -> set[str]:
    names = {
        f"{kind}/{split}/{i:06d}.{suffix}"
        for split in SPLITS
        for i in range(made[split])
        for kind, suffix in (("images", "jpg"), ("labels", "txt"))
    }
    return names | {"data.yaml", "made.json"} | ({"clip.mp4"} if made["clip_frames"] else set())


def check_folder(out: Path, wanted: dict[str, int]) -> bool:
    """Whether `out` holds the wanted set, complete; FileExistsError if it holds anything of others."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    try:
        made = json.loads((out / "made.json").read_text())
        expected = _expected(made)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileExistsError(f"{out} exists and was not made by this script; nothing was changed") from error
    present = {p.relative_to(out).as_posix() for p in out.rglob("*") if not p.is_dir()}
    foreign = {name for name in present - expected if not name.endswith(".cache.npz")}  # loaders leave caches
    if foreign:
        raise FileExistsError(f"{out} also holds files of others ({min(foreign)}); nothing was changed")
    return made == wanted and expected <= present


def make_set(out: Path, args: argparse.Namespace) -> None:
    """Draw the set beside `out` and rename it into place, so that no interruption leaves half a set."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
        fresh = Path(scratch, "new")  # a folder inside, for the scratch folder is private to its user
        fresh.mkdir()
        lines = write_set(fresh, args)
        if out.exists():
            out.rename(Path(scratch, "old"))
        fresh.rename(out)
    for split, line in zip(SPLITS, lines, strict=True):
        print(f"{line} in {out / 'images' / split}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"make_shapes: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: returns 0, or exits with 2 and one line on stderr for a bad argument or folder."""
    parser = _Parser(description="Draw the built-in detection data set in YOLO format.")
    parser.add_argument("--out", type=Path, default=Path("datasets/shapes"), help="folder of the set")
    parser.add_argument("--train", type=int, default=480, help="pictures to train on")
    parser.add_argument("--val", type=int, default=120, help="pictures to validate on")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files")
    parser.add_argument("--clip-frames", type=int, default=60, help="frames of clip.mp4; 0: no clip")
    parser.add_argument("--samples", type=Path, metavar="DIR", help="only write two sample pictures into DIR")
    args = parser.parse_args(argv)
    for key, least in (("train", 1), ("val", 1), ("seed", 0), ("clip_frames", 0)):
        if getattr(args, key) < least:
            parser.error(f"--{key.replace('_', '-')} must be at least {least}, not {getattr(args, key)}")
    out = args.out.resolve()
    try:
        if args.samples:
            for index in range(2):
                _write(args.samples / f"shapes{index}.jpg", jpeg(draw_picture(args.seed, SAMPLES, index)))
        elif check_folder(out, recipe(args)):
            print(f"{out} already holds this set")
        else:
            make_set(out, args)
    except OSError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
