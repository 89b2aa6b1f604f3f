"""Backends made of backends: several models at once, and test-time augmentation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from models.runtimes.load import Backend, load_backend

PAD = 114 / 255  # the grey of letterbox borders
VIEWS = ((1.0, False), (0.83, True), (0.67, False))  # scale, mirrored: those of YOLOv5


class Ensemble:
    """The rows of several models side by side; NMS then merges what they agree on.

    Raises:
        ValueError: the models differ in their classes.
    """

    def __init__(self, backends: Sequence[Backend]):
        self.backends = list(backends)
        self.names, self.nc = backends[0].names, backends[0].nc
        for other in backends[1:]:
            if other.names != self.names:
                raise ValueError(f"--weights: models of other classes: {self.names} and {other.names}")
        self.stride = max(b.stride for b in backends)
        self.grid = math.lcm(*(b.grid for b in backends))

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N1 + N2 + ..., 5+nc)."""
        return torch.cat([backend(images) for backend in self.backends], dim=1)


class Augmented:
    """A model that looks at each image three times, scaled and mirrored (VIEWS); the rows of all views side by side."""

    def __init__(self, backend: Backend):
        self.backend = backend
        self.names, self.nc, self.stride, self.grid = backend.names, backend.nc, backend.stride, backend.grid

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1 -> decoded (B, N1 + N2 + N3, 5+nc) in pixels of `images`."""
        return torch.cat([self.look(images, scale, mirrored) for scale, mirrored in VIEWS], dim=1)

    def look(self, images: Tensor, scale: float, mirrored: bool) -> Tensor:
        """Decoded rows of one view, brought back to the pixels of `images`."""
        h, w = images.shape[-2:]
        small = max(round(h * scale), 1), max(round(w * scale), 1)
        view = images.flip(-1) if mirrored else images
        if small != (h, w):
            view = F.interpolate(view, small, mode="bilinear", align_corners=False)
        pad_h, pad_w = (-side % self.grid for side in small)
        rows = self.backend(F.pad(view, (0, pad_w, 0, pad_h), value=PAD))
        x, y = rows.new_tensor(w / small[1]), rows.new_tensor(h / small[0])
        xywh = rows[..., :4] * torch.stack([x, y, x, y])
        if mirrored:
            xywh = torch.cat([w - xywh[..., :1], xywh[..., 1:]], dim=-1)
        return torch.cat([xywh, rows[..., 4:]], dim=-1)


def load_model(
    weights: str | Path | Sequence[str],
    device: torch.device,
    half: bool = False,
    augment: bool = False,
    threads: int = 0,
    compiled: bool = False,
) -> Backend:
    """One weights file, or several as an ensemble, with test-time augmentation if `augment`; see load_backend.

    Raises:
        ValueError: no weights.
    """
    paths = [weights] if isinstance(weights, str | Path) else list(weights)
    if not paths or not all(str(path) for path in paths):
        raise ValueError("--weights is missing, expected a checkpoint such as runs/train/exp/weights/best.pt")
    backends = [load_backend(path, device, half, threads, compiled) for path in paths]
    model: Backend = backends[0] if len(backends) == 1 else Ensemble(backends)
    return Augmented(model) if augment else model
