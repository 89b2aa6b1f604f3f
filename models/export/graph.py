"""The network to export: a fused copy whose output is raw maps, decoded rows or final boxes."""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from models.common import Attention, Conv, Focus
from models.heads import Head
from models.yolo import DetectionModel
from utils.nms import NmsSettings


class ExportHead(nn.Module):
    """A head with one chosen output and nothing above rank 4.

    `form` "raw": the maps (B, C, h, w) of each level. "decoded": (B, N, 5+nc), see Head.forward.
    "nms": boxes (B, D, 4) xyxy pixels, scores (B, D), classes (B, D) int64, count (B,) int64; D is `max_det`, rows
    from `count` on are zeros. A box has its best class only; boxes of different classes do not suppress each other.
    """

    joins = True  # takes a list of maps

    def __init__(self, detect: Head, form: str = "decoded", settings: NmsSettings | None = None):
        super().__init__()
        self.detect, self.form = detect, form
        self.settings = settings or NmsSettings()

    @property
    def stride(self) -> Tensor:
        return self.detect.stride

    def forward(self, x: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        maps = self.detect.maps(x)
        if self.form == "raw":
            return tuple(maps)
        decoded = self.detect.decode_all(maps)
        if self.form == "decoded":
            return decoded
        images = [self.suppress(rows) for rows in decoded]
        return tuple(torch.stack(part) for part in zip(*images, strict=True))

    def suppress(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Decoded rows (N, 5+nc) of one image -> its boxes, scores, classes and count, see the class, without B."""
        max_det = self.settings.max_det
        score, label = (rows[:, 5:] * rows[:, 4:5]).max(dim=1)
        candidates = (score > self.settings.conf_thres).nonzero().flatten()
        score, label, rows = score[candidates], label[candidates], rows[candidates]
        center, half = rows[:, 0:2], rows[:, 2:4] / 2
        xyxy = torch.cat([center - half, center + half], dim=1)
        kept = nms(xyxy + self.class_offsets(xyxy, label), score, self.settings.iou_thres)[:max_det]
        parts = xyxy[kept], score[kept], label[kept]
        filled = [torch.cat([part, part.new_zeros((max_det, *part.shape[1:]))])[:max_det] for part in parts]
        return filled[0], filled[1], filled[2], torch.ones_like(kept).sum()

    def class_offsets(self, xyxy: Tensor, label: Tensor) -> Tensor:
        """(n, 4) shifts in pixels after which boxes (n, 4) of different classes cannot overlap.

        The classes lie side by side on a square, each on a tile that holds all boxes. In one long row the shift of
        class 1000 would round float32 coordinates to a quarter of a pixel.
        """
        columns = math.ceil(math.sqrt(self.detect.nc))
        corners = torch.cat([xyxy.flatten(), xyxy.new_zeros(1)])  # not empty, even without boxes
        tile = corners.max() - corners.min() + 1
        shift = torch.stack([label % columns, label // columns], dim=1).to(xyxy.dtype) * tile
        return torch.cat([shift, shift], dim=1)


def export_form(
    model: DetectionModel, form: str = "decoded", settings: NmsSettings | None = None, fused_attention: bool = True
) -> DetectionModel:
    """A fused copy of `model` in eval mode with the output of ExportHead; `model` is not modified.

    Args:
        fused_attention: False writes attention as matmul and softmax, for runtimes slow at the fused operator.
    """
    copy = deepcopy(model).fuse().requires_grad_(False)
    for i, layer in enumerate(copy.model):
        if isinstance(layer, Focus):
            copy.model[i] = focus_as_convolution(layer)
    for module in copy.modules():
        if isinstance(module, Attention):
            module.fused = fused_attention
    copy.model[-1] = ExportHead(copy.head, form, settings).eval()
    return copy


def focus_as_convolution(focus: Focus) -> nn.Sequential:
    """A fused Focus as one convolution of twice the kernel at stride 2: the same sums, no strided slices.

    ncnn's converter drops the step of a slice without an error.
    """
    inner: Conv = focus.conv
    old = inner.conv
    c1, kernel = old.in_channels // 4, (2 * old.kernel_size[0], 2 * old.kernel_size[1])
    padding = tuple(2 * int(side) for side in old.padding)
    if old.groups != 1 or old.stride != (1, 1):
        raise ValueError(
            f"Focus with stride {old.stride} and {old.groups} groups cannot be exported, expected 1 of each"
        )
    new = nn.Conv2d(c1, old.out_channels, kernel, 2, padding)  # type: ignore[arg-type]
    weight = torch.zeros_like(new.weight)
    for corner in range(4):  # in the order in which Focus joins them
        column, row = divmod(corner, 2)
        weight[:, :, row::2, column::2] = old.weight[:, corner * c1 : (corner + 1) * c1]
    new.weight = nn.Parameter(weight, requires_grad=False)
    assert old.bias is not None  # it is fused
    new.bias = nn.Parameter(old.bias.detach().clone(), requires_grad=False)
    return nn.Sequential(new, inner.act).eval()
