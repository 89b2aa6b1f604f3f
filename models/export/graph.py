"""The network in the form a runtime wants: raw maps, decoded rows, or final boxes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from models.common import Attention, Conv, Focus
from models.export.metadata import Metadata
from models.yolo import Detect, DetectionModel


@dataclass(frozen=True)
class NmsSettings:
    """Constants of the NMS in a graph. `max_det` rows come out whatever is found."""

    conf_thres: float = 0.25
    iou_thres: float = 0.45
    max_det: int = 300


class ExportHead(nn.Module):
    """Detect with one chosen output and nothing above rank 4.

    `form` "raw": the maps (B, A*(5+nc), h, w) of each level. "decoded": (B, N, 5+nc), see Detect.forward.
    "nms": boxes (B, D, 4) xyxy pixels, scores (B, D), classes (B, D) int64, count (B,) int64; D is `max_det`, rows
    from `count` on are zeros. A box has its best class only; boxes of different classes do not suppress each other.
    """

    joins = True  # takes a list of maps

    def __init__(self, detect: Detect, form: str = "decoded", settings: NmsSettings | None = None):
        super().__init__()
        self.detect, self.form = detect, form
        self.settings = settings or NmsSettings()

    @property
    def stride(self) -> Tensor:
        return self.detect.stride

    def forward(self, x: list[Tensor]) -> Tensor | tuple[Tensor, ...]:
        maps = [conv(level) for conv, level in zip(self.detect.m, x, strict=True)]
        if self.form == "raw":
            return tuple(maps)
        decoded = decode(self.detect, maps)
        if self.form == "decoded":
            return decoded
        images = [self.suppress(rows) for rows in decoded]
        return tuple(torch.stack(part) for part in zip(*images, strict=True))

    def suppress(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, 5+nc) of one image -> boxes, scores, classes, count, as in the class's text without B."""
        limits, most = self.settings, self.settings.max_det
        score, label = (rows[:, 5:] * rows[:, 4:5]).max(dim=1)
        likely = (score > limits.conf_thres).nonzero().flatten()
        score, label, rows = score[likely], label[likely], rows[likely]
        centre, half = rows[:, 0:2], rows[:, 2:4] / 2
        xyxy = torch.cat([centre - half, centre + half], dim=1)
        apart = label.to(xyxy.dtype)[:, None] * 1e4  # pixels; puts each class on a plane of its own
        kept = nms(xyxy + apart, score, limits.iou_thres)[:most]
        parts = xyxy[kept], score[kept], label[kept]
        filled = [torch.cat([part, part.new_zeros((most, *part.shape[1:]))])[:most] for part in parts]
        return filled[0], filled[1], filled[2], torch.ones_like(kept).sum()


def decode(detect: Detect, maps: list[Tensor]) -> Tensor:
    """Raw maps (B, A*(5+nc), h, w) of each level -> (B, N, 5+nc), see Detect.forward."""
    return torch.cat([detect.decode(level, i) for i, level in enumerate(maps)], dim=1)


def export_form(
    model: DetectionModel, form: str = "decoded", settings: NmsSettings | None = None, fused_attention: bool = True
) -> DetectionModel:
    """A fused copy of `model` in eval mode whose forward returns what ExportHead tells; `model` is not modified.

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


def decoder(meta: Metadata) -> Detect:
    """A Detect that can `decode` the raw maps of the file that `meta` describes; its own convolutions are not used."""
    levels = len(meta.strides)
    flat = [[side for anchor in level for side in anchor] for level in meta.anchors]
    detect = Detect(len(meta.names), flat, [1] * levels).eval()
    detect.stride.copy_(torch.tensor(meta.strides))
    return detect


def rows_of_final(boxes: Tensor, scores: Tensor, classes: Tensor, nc: int) -> Tensor:
    """The "nms" form as decoded rows (B, D, 5+nc): objectness is the score, its class has probability 1.

    A second NMS with thresholds at least as strict finds the same boxes.
    """
    centre, size = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
    which = torch.nn.functional.one_hot(classes.long(), nc).to(boxes.dtype)
    return torch.cat([centre, size, scores[..., None], which], dim=-1)
