"""MobileViT image classifiers XXS, XS and S, as published and in the widely pasted form.

`python models/mobilevit.py` prints output shape and parameters of each.

Source: Mehta and Rastegari 2022, arXiv:2110.02178, Table 4.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

if __name__ == "__main__":  # run as a file: the project's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).parents[1]))

from models.common import PUBLISHED, Conv, MobileViTBlock, MV2Block
from utils.text import counted

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


# Module names of the published layouts, as `name here: (name in CVNets, name in timm)`. The full name of a module is
# that of its stage, of the part of the stage and of the layer in it, joined by dots.
LAYOUTS = ("cvnets", "timm")
STAGES = {
    "features.0": ("conv_1.block", "stem"),
    "features.1": ("layer_1.0.block", "stages.0.0"),
    "features.2": ("layer_2.0.block", "stages.1.0"),
    "features.3.0": ("layer_2.1.block", "stages.1.1"),
    "features.3.1": ("layer_2.2.block", "stages.1.2"),
    "features.4": ("layer_3.0.block", "stages.2.0"),
    "features.5": ("layer_3.1", "stages.2.1"),
    "features.6": ("layer_4.0.block", "stages.3.0"),
    "features.7": ("layer_4.1", "stages.3.1"),
    "features.8": ("layer_5.0.block", "stages.4.0"),
    "features.9": ("layer_5.1", "stages.4.1"),
    "last": ("conv_1x1_exp.block", "final_conv"),
    "classifier": ("classifier.fc", "head.fc"),
}
MV2_PARTS = {
    "expand": ("exp_1x1.block", "conv1_1x1"),
    "depthwise": ("conv_3x3.block", "conv2_kxk"),
    "project": ("red_1x1.block", "conv3_1x1"),
}
VIT_PARTS = {
    "local": ("local_rep.conv_3x3.block", "conv_kxk"),
    "expand": ("local_rep.conv_1x1.block.conv", "conv_1x1"),
    "transformer": ("global_rep", "transformer"),
    "project": ("conv_proj.block", "conv_proj"),
    "fusion": ("fusion.block", "conv_fusion"),
}
LAYER_PARTS = {
    "norm1": ("pre_norm_mha.0", "norm1"),
    "attention.qkv": ("pre_norm_mha.1.qkv_proj", "attn.qkv"),
    "attention.out": ("pre_norm_mha.1.out_proj", "attn.proj"),
    "norm2": ("pre_norm_ffn.0", "norm2"),
    "mlp.0": ("pre_norm_ffn.1", "mlp.fc1"),
    "mlp.2": ("pre_norm_ffn.4", "mlp.fc2"),
}
CONV_PARTS = {"conv": ("conv", "conv"), "bn": ("norm", "bn")}


class MobileViT(nn.Module):
    """Classifier: (B, 3, H, W) in 0..1, H and W multiples of 64, to (B, classes) logits.

    `features` has the ten rows of the backbone in `models/yolov5-mobilevit-{size}.yaml`, in the same order.

    Args:
        size: a key of SIZES. classes: outputs.
        published: the paper's blocks, else the pasted recipe's (4 heads of 8, feed-forward of 2d, 4d, 4d, no biases
            in qkv and classifier).

    `color_order` is the channel order that the weights were trained with, "RGB" or "BGR".

    Raises:
        ValueError: an unknown size.
    """

    def __init__(self, size: str, classes: int = 1000, published: bool = True):
        super().__init__()
        self.color_order = "RGB"
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
    return MobileViTBlock(width, width, dim, depth, form=PUBLISHED)


def published_names(layout: str) -> dict[str, str]:
    """Name of each module with weights here -> its name in `layout` ("cvnets" or "timm"); the same for all sizes."""
    column = LAYOUTS.index(layout)
    names: dict[str, str] = {}

    def add(here: str, there: str, parts: Mapping[str, tuple[str, str]]) -> None:
        names.update({f"{here}.{part}": f"{there}.{columns[column]}" for part, columns in parts.items()})

    for stage, columns in STAGES.items():
        there = columns[column]
        if stage == "classifier":
            names[stage] = there
        elif stage in ("features.0", "last"):
            add(stage, there, CONV_PARTS)
        elif stage in ("features.5", "features.7", "features.9"):
            for part, places in VIT_PARTS.items():
                inner = f"{there}.{places[column]}"
                if part == "expand":
                    names[f"{stage}.{part}"] = inner
                elif part != "transformer":
                    add(f"{stage}.{part}", inner, CONV_PARTS)
            depth = DEPTHS[(int(stage[-1]) - 5) // 2]
            inner = f"{there}.{VIT_PARTS['transformer'][column]}"
            for i in range(depth):
                add(f"{stage}.transformer.{i}", f"{inner}.{i}", LAYER_PARTS)
            names[f"{stage}.transformer.{depth}"] = f"{there}.norm" if layout == "timm" else f"{inner}.{depth}"
        else:
            for part, places in MV2_PARTS.items():
                add(f"{stage}.{part}", f"{there}.{places[column]}", CONV_PARTS)
    return names


def rename(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """`state` with the module's part of each key replaced by `names`, without keys of other modules."""
    split = {key: key.rpartition(".") for key in state}
    return {f"{names[m]}.{leaf}": state[key] for key, (m, _, leaf) in split.items() if m in names}


def layout_of(state: Mapping[str, Tensor]) -> str:
    """The published layout that the names of `state` follow.

    Raises:
        ValueError: neither.
    """
    for layout in LAYOUTS:
        if f"{STAGES['features.0'][LAYOUTS.index(layout)]}.conv.weight" in state:
            return layout
    raise ValueError("neither CVNets' nor timm's names of a MobileViT (conv_1.block.conv.weight, stem.conv.weight)")


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A CVNets or timm state dict -> under the names of MobileViT's modules; the tensors are the same objects.

    Raises:
        ValueError: neither layout, or a tensor that a MobileViT does not have.
    """
    names = published_names(layout_of(state))
    renamed = rename(state, {there: here for here, there in names.items()})
    if len(renamed) != len(state):
        known = set(names.values())
        unknown = [key for key in state if key.rpartition(".")[0] not in known]
        raise ValueError(
            f"{counted(len(unknown), 'tensor does', 'tensors do')} not belong to a MobileViT, the first is {unknown[0]}"
        )
    return renamed


def to_published(state: Mapping[str, Tensor], layout: str) -> dict[str, Tensor]:
    """The state dict of a MobileViT -> under the names of `layout` (see LAYOUTS); the inverse of from_published."""
    return rename(state, published_names(layout))


def from_checkpoint(size: str, state_dict: Mapping[str, Tensor]) -> MobileViT:
    """The paper's classifier with published weights, in eval mode; as many classes as the weights have.

    CVNets' networks read BGR images, timm's RGB: see `color_order` of the model. Values are 0..1, not normalized.

    Args:
        size: a key of SIZES. state_dict: in CVNets' or timm's layout.

    Raises:
        ValueError: an unknown size or layout, or weights that do not fit.
    """
    state = from_published(state_dict)
    head = state.get("classifier.weight")
    model = MobileViT(size, classes=len(head) if head is not None else 1000)
    own = model.state_dict()
    shapes = {name: tuple(t.shape) for name, t in state.items()}
    wrong = [n for n in sorted(own.keys() | shapes.keys()) if n not in own or shapes.get(n) != tuple(own[n].shape)]
    if wrong:
        found, wanted = shapes.get(wrong[0]), tuple(own[wrong[0]].shape) if wrong[0] in own else None
        raise ValueError(
            f"{counted(len(wrong), 'tensor does', 'tensors do')} not fit mobilevit-{size}, "
            f"the first is {wrong[0]}: {found}, expected {wanted}"
        )
    model.load_state_dict(state)
    model.color_order = "BGR" if layout_of(state_dict) == "cvnets" else "RGB"
    return model.eval()


def main() -> None:
    """Print output shape and parameters of every size in both forms."""
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
