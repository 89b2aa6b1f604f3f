"""How long the stages of a validation take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STAGES = ("pre", "inference", "nms")


class Stopwatch:
    """Seconds spent in each of STAGES; on a GPU it waits for the work to be done."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] += self.now() - start

    def per_image(self, images: int) -> dict[str, float]:
        """Milliseconds an image."""
        return {name: 1000 * seconds / max(images, 1) for name, seconds in self.seconds.items()}
