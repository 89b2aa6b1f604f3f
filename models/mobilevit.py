"""MobileViT image classifiers XXS, XS and S, as published and in the widely pasted form.

`python models/mobilevit.py` prints output shape and parameters of each.

Source: Mehta and Rastegari 2022, arXiv:2110.02178, Table 4.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

if __name__ == "__main__":  # run as a file: the project's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).parents[1]))

from models.common import Conv, MobileViTBlock, MV2Block

STEM = 16
DEPTHS = (2, 4, 3)  # transformer layers at strides 8, 16, 32


@dataclass(frozen=True)
class Size:
    """One column of the paper's Table 4."""

    widths: tuple[int, int, int, int, int]  # channels of the five stages
    dims: tuple[int, int, int]  # token widths of the three MobileViT blocks
    expansion: int  # of every MV2Block
    last: int  # channels before the classifier


SIZES = {
    "xxs": Size((16, 24, 48, 64, 80), (64, 80, 96), 2, 320),
    "xs": Size((32, 48, 64, 80, 96), (96, 120, 144), 4, 384),
    "s": Size((32, 64, 96, 128, 160), (144, 192, 240), 4, 640),
}


class MobileViT(nn.Module):
    """Classifier: (B, 3, H, W) in 0..1, H and W multiples of 64, to (B, classes) logits.

    `features` has the ten rows of the backbone in `models/yolov5-mobilevit-{size}.yaml`, in the same order.

    Args:
        size: a key of SIZES. classes: outputs.
        published: the paper's blocks, else the pasted recipe's (4 heads of 8, feed-forward of 2d, 4d, 4d, no biases
            in qkv and classifier).

    Raises:
        ValueError: an unknown size.
    """

    def __init__(self, size: str, classes: int = 1000, published: bool = True):
        super().__init__()
        if size not in SIZES:
            raise ValueError(f"MobileViT size {size!r}, expected one of {', '.join(SIZES)}")
        spec = SIZES[size]
        w1, w2, w3, w4, w5 = spec.widths
        e = spec.expansion
        self.features = nn.Sequential(
            Conv(3, STEM, 3, 2),
            MV2Block(STEM, w1, 1, e),
            MV2Block(w1, w2, 2, e),
            nn.Sequential(MV2Block(w2, w2, 1, e), MV2Block(w2, w2, 1, e)),
            MV2Block(w2, w3, 2, e),
            block(w3, 0, spec, published),
            MV2Block(w3, w4, 2, e),
            block(w4, 1, spec, published),
            MV2Block(w4, w5, 2, e),
            block(w5, 2, spec, published),
        )
        self.last = Conv(w5, spec.last, 1)
        self.classifier = nn.Linear(spec.last, classes, bias=published)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.last(self.features(x)).mean(dim=(2, 3)))


def block(width: int, stage: int, spec: Size, published: bool) -> MobileViTBlock:
    """The MobileViT block of `stage` (0..2) in one of the two forms."""
    dim, depth = spec.dims[stage], DEPTHS[stage]
    if not published:
        return MobileViTBlock(width, width, dim, depth, mlp_dim=dim * (2, 4, 4)[stage])
    return MobileViTBlock(
        width,
        width,
        dim,
        depth,
        head_dim=None,
        qkv_bias=True,
        closing_norm=True,
        bare_expand=True,
        input_first=True,
    )


def main() -> None:
    images = torch.rand(5, 3, 256, 256)
    for published in (False, True):
        for size in SIZES:
            model = MobileViT(size, published=published).eval()
            with torch.inference_mode():
                shape = tuple(model(images).shape)
            parameters = sum(p.numel() for p in model.parameters())
            form = "published" if published else "pasted"
            print(f"mobilevit-{size:<3} {form:<9} output {shape}  {parameters:,} parameters")


if __name__ == "__main__":
    main()
