"""Timing of the stages of a validation."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STAGES = ("pre", "inference", "nms")


class Stopwatch:
    """Seconds spent in each of STAGES, the work of a GPU included."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def now(self) -> float:
        """Seconds, once the GPU has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time of the `with` block to stage `name`."""
        start = self.now()
        yield
        self.seconds[name] += self.now() - start

    def per_image(self, images: int) -> dict[str, float]:
        """Milliseconds per image of each stage."""
        return {name: 1000 * seconds / max(images, 1) for name, seconds in self.seconds.items()}
