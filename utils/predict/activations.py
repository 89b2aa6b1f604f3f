"""Images of activations: the feature maps of a model's rows, the attention of its MobileViT blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from utils.images import imwrite

MAX_CHANNELS = 64  # of a row that are shown


def colorize(values: np.ndarray) -> np.ndarray:
    """(h, w) of any range -> (h, w, 3) uint8 RGB, dark for the smallest value and yellow for the largest."""
    import matplotlib  # takes half a second, and few runs draw maps

    low, high = float(values.min()), float(values.max())
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return (matplotlib.colormaps["viridis"](scaled)[..., :3] * 255).astype(np.uint8)


def tile_images(images: Sequence[np.ndarray], columns: int, gap: int = 2) -> np.ndarray:
    """Images (h, w, 3) of one size side by side, row after row, on white."""
    h, w = images[0].shape[:2]
    rows = -(-len(images) // columns)
    out = np.full((rows * (h + gap) - gap, columns * (w + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (h + gap), i % columns * (w + gap)
        out[top : top + h, left : left + w] = image
    return out


def save_features(features: Mapping[str, np.ndarray], folder: Path) -> None:
    """<name>_features.png for each map (C, h, w): its first MAX_CHANNELS channels, each on its own scale."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, maps in features.items():
        zoom = max(1, round(80 / max(maps.shape[1:])))
        images = [colorize(channel).repeat(zoom, axis=0).repeat(zoom, axis=1) for channel in maps[:MAX_CHANNELS]]
        imwrite(folder / f"{name}_features.png", tile_images(images, columns=8))


def save_attention(
    attention: Mapping[str, np.ndarray], image: np.ndarray, at: tuple[float, float], folder: Path
) -> None:
    """<name>_attention.png for each block: `image` (H, W, 3), then the weights (layers, h, w) of each layer over it.

    Args:
        at: x, y in 0..1 of the image, marked by a cross: the position whose attention is shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    h, w = image.shape[:2]
    marked = draw_cross(image, at)
    for name, layers in attention.items():
        images = [marked]
        for weights in layers:
            heat = colorize(cv2.resize(weights.astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC))
            mixed = (0.35 * image + 0.65 * heat).astype(np.uint8)
            images.append(draw_cross(mixed, at))
        imwrite(folder / f"{name}_attention.png", tile_images(images, columns=len(images)))


def draw_cross(image: np.ndarray, at: tuple[float, float]) -> np.ndarray:
    """A copy of `image` with a red cross at x, y in 0..1."""
    h, w = image.shape[:2]
    center = min(int(at[0] * w), w - 1), min(int(at[1] * h), h - 1)
    size = max(max(h, w) // 25, 5)
    return cv2.drawMarker(image.copy(), center, (255, 0, 0), cv2.MARKER_CROSS, size, max(size // 8, 1))
