"""Detection heads: feature maps to raw predictions, and raw predictions to boxes."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn


class Detect(nn.Module):
    """Anchor head: a 1x1 convolution per level; in eval mode the boxes are decoded in the graph.

    Args:
        nc: classes. anchors: per level a flat list w, h, w, h, ... in pixels of the input image.
        ch: input channels of each level.

    `stride` (pixels per cell of each level) is set by `DetectionModel`.
    """

    joins = True  # takes a list of maps
    anchors: Tensor
    stride: Tensor

    def __init__(self, nc: int, anchors: list[list[float]], ch: list[int]):
        super().__init__()
        wrong = f"Detect: anchors {anchors}, expected {len(ch)} rows of positive w, h, w, h, ... pixels"
        try:
            sizes = torch.tensor(anchors, dtype=torch.float32, device="cpu")  # values are needed even on "meta"
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(wrong) from error
        if sizes.ndim != 2 or sizes.shape[1] % 2 or len(sizes) != len(ch) or (sizes <= 0).any():
            raise ValueError(wrong)
        self.nc = nc
        self.no = nc + 5
        self.register_buffer("anchors", sizes.view(len(ch), -1, 2))  # (levels, A, 2) pixels
        self.register_buffer("stride", torch.zeros(len(ch)))
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in ch)

    @property
    def na(self) -> int:
        """Anchors per cell."""
        return self.anchors.shape[1]

    def forward(self, x: list[Tensor]) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Training: raw maps (B, A, h, w, 5+nc) per level. Eval: (decoded (B, N, 5+nc), the raw maps).

        A decoded row is cx, cy, w, h in pixels of the input, objectness, class probabilities.
        """
        maps = [conv(level) for conv, level in zip(self.m, x, strict=True)]
        raw = [self.rows(m).view(m.shape[0], self.na, *m.shape[-2:], self.no) for m in maps]
        if self.training:
            return raw
        return self.decode_all(maps), raw

    def rows(self, level: Tensor) -> Tensor:
        """(B, A*(5+nc), h, w) -> (B, A, h*w, 5+nc)."""
        return level.reshape(level.shape[0], self.na, self.no, -1).transpose(2, 3)

    def decode(self, level: Tensor, i: int) -> Tensor:
        """Raw map of level `i` -> (B, A*h*w, 5+nc) in pixels and probabilities; rank 4 at most, for exporters."""
        h, w = level.shape[-2:]
        y = self.rows(level).float().sigmoid()  # half precision would round coordinates beyond 512 to 0.5 px
        center = (y[..., 0:2] * 2 + self.cells(h, w, y)) * self.stride[i]
        half = y[..., 2:4] * 2
        size = half * half * self.anchors[i].unsqueeze(1)  # q*q, not **2: mobile converters refuse pow
        return torch.cat([center, size, y[..., 4:]], dim=-1).flatten(1, 2)

    def decode_all(self, maps: list[Tensor]) -> Tensor:
        """Raw maps (B, A*(5+nc), h, w) of all levels -> (B, N, 5+nc), the levels one after another."""
        return torch.cat([self.decode(level, i) for i, level in enumerate(maps)], dim=1)

    @staticmethod
    def cells(h: int, w: int, like: Tensor) -> Tensor:
        """(h*w, 2) x, y of each cell's corner less one half, row by row."""
        y, x = torch.meshgrid(
            torch.arange(h, device=like.device, dtype=like.dtype),
            torch.arange(w, device=like.device, dtype=like.dtype),
            indexing="ij",
        )
        return torch.stack([x, y], dim=-1).view(-1, 2) - 0.5

    def prior_bias(self) -> None:
        """Set biases so that training starts from rare objects: about 8 in a 640 px image, 0.6 spread over classes."""
        with torch.no_grad():
            for conv, stride in zip(self.m, self.stride.tolist(), strict=True):
                bias = cast(Tensor, conv.bias).view(self.na, self.no)
                bias[:, 4] += math.log(8 / (640 / stride) ** 2)
                bias[:, 5:] += math.log(0.6 / (self.nc - 0.99999))
