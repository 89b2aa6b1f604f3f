"""The interface of everything that runs a detector: checkpoints, exported files, ensembles."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Backend(Protocol):
    """A detector as a callable: images (B, 3, H, W), float in 0..1 -> decoded rows (B, N, 5+nc), see Head.forward.

    Attributes:
        names: class index -> name. nc: number of classes.
        stride: pixels per cell of the coarsest level. grid: both sides of an input must be multiples of it.
        letterbox: where an image lies on its canvas, one of utils.images.POSITIONS.
    """

    names: dict[int, str]
    nc: int
    stride: int
    grid: int
    letterbox: str

    def __call__(self, images: Tensor) -> Tensor: ...
