"""Published backbones that a YAML here has row by row: the names of their tensors, the images they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from models.common import UIB, MobileViTBlock, MV3Block
from models.mobilevit import SIZES, published_names, rename

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and deviation of the channels R, G, B
CONV = {"conv": "conv", "bn": "bn"}


@dataclass(frozen=True)
class Backbone:
    """A published network in one of its layouts.

    Attributes:
        family: its name. source: whose layout. yaml: the YAMLs that have it. block: what every one of these has.
        mark: name of a tensor by which the layout is known.
        names: module of a detector's rows ("5.expand.conv") -> published module.
        beyond: first parts of the names of what comes after the backbone: layers before the classifier, and itself.
        timm: names of timm's models in this layout. eps: of its batch norms.
        bgr: it was trained on BGR images. normalization: mean and deviation of each channel of the images that it was
            trained on; None for images in 0..1.
    """

    family: str
    source: str
    yaml: str
    block: type[nn.Module]
    mark: str
    names: Mapping[str, str]
    beyond: tuple[str, ...]
    timm: tuple[str, ...] = ()
    eps: float = 1e-5
    bgr: bool = False
    normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def to_rows(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A published state dict -> under a detector's names, without what is beyond the backbone; the same tensors.

        Raises:
            ValueError: a tensor that has no place in the network.
        """
        inside = {key: t for key, t in state.items() if not key.startswith(tuple(f"{part}." for part in self.beyond))}
        renamed = rename(inside, {there: f"model.{here}" for here, there in self.names.items()})
        if len(renamed) != len(inside):
            known = set(self.names.values())
            odd = [key for key in inside if key.rpartition(".")[0] not in known]
            raise ValueError(f"{len(odd)} tensors have no place in a {self.family}, the first is {odd[0]}")
        return renamed

    def to_published(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of a detector -> its backbone under the published names: to_rows backwards."""
        return rename(state, {f"model.{here}": there for here, there in self.names.items()})

    def as_detector(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """to_rows, for RGB images in 0..1: what differs in the images is put into the first convolution and its norm.

        With a normalization this is exact but for the border of the image, where the padding is black in place of the
        mean color.
        """
        rows = self.to_rows(state)
        weight = rows.get("model.0.conv.weight")
        if weight is None or weight.ndim != 4 or weight.shape[1] != 3:  # said by the caller, who compares shapes
            return rows
        if self.bgr:
            rows["model.0.conv.weight"] = weight.flip(1)
        if self.normalization:
            mean, deviation = (weight.new_tensor(values).view(1, 3, 1, 1) for values in self.normalization)
            rows["model.0.conv.weight"] = weight / deviation
            shift = (weight / deviation * mean).sum(dim=(1, 2, 3))
            rows["model.0.bn.running_mean"] = rows["model.0.bn.running_mean"] + shift
        return rows


def mobilevit(layout: str, source: str, mark: str, bgr: bool, timm: tuple[str, ...] = ()) -> Backbone:
    """The MobileViTs in one of their two layouts."""
    every = published_names(layout)
    names = {here.removeprefix("features."): there for here, there in every.items() if here.startswith("features.")}
    beyond = tuple(there for here, there in every.items() if not here.startswith("features."))
    return Backbone("MobileViT", source, "yolov5-mobilevit-*.yaml", MobileViTBlock, mark, names, beyond, timm, bgr=bgr)


def mobilenetv4_names() -> dict[str, str]:
    """The rows of MobileNetV4-Conv-Small -> timm's names."""
    names = {"0.conv": "conv_stem", "0.bn": "bn1"}
    plain = {"1": "blocks.0.0", "2": "blocks.0.1", "3": "blocks.1.0", "4": "blocks.1.1"}
    for row, place in plain.items():
        names |= {f"{row}.conv": f"{place}.conv", f"{row}.bn": f"{place}.bn1"}
    blocks = {"5": "2.0", "6.0": "2.1", "6.1": "2.2", "6.2": "2.3", "6.3": "2.4", "7": "2.5"}
    blocks |= {"8": "3.0", "9": "3.1", "10": "3.2", "11": "3.3", "12.0": "3.4", "12.1": "3.5"}
    parts = {"start": "dw_start", "expand": "pw_exp", "middle": "dw_mid", "project": "pw_proj"}
    for row, place in blocks.items():
        for here, there in parts.items():
            names |= {f"{row}.{here}.{part}": f"blocks.{place}.{there}.{part}" for part in CONV}
    return names


# The layers of each MV3Block, in order: e(xpand), d(epthwise), s(queeze and excite), p(roject).
MOBILENETV3 = {
    "Small": ("dsp", "edp", "edp", *["edsp"] * 8),
    "Large": ("dp", "edp", "edp", *["edsp"] * 3, *["edp"] * 4, *["edsp"] * 5),
}


def mobilenetv3_names(blocks: tuple[str, ...]) -> dict[str, str]:
    """The rows of a MobileNetV3 -> torchvision's names."""
    names = {"0.conv": "features.0.0", "0.bn": "features.0.1"}
    parts = {"e": "expand", "d": "depthwise", "p": "project"}
    for row, layers in enumerate(blocks, 1):
        for i, layer in enumerate(layers):
            place = f"features.{row}.block.{i}"
            if layer == "s":
                names |= {f"{row}.squeeze.1": f"{place}.fc1", f"{row}.squeeze.3": f"{place}.fc2"}
            else:
                names |= {f"{row}.{parts[layer]}.conv": f"{place}.0", f"{row}.{parts[layer]}.bn": f"{place}.1"}
    return names


def mobilenetv3(size: str, yaml: str) -> Backbone:
    blocks = MOBILENETV3[size]
    last = f"features.{len(blocks) + 1}"
    return Backbone(
        f"MobileNetV3-{size}",
        "torchvision",
        yaml,
        MV3Block,
        f"{last}.0.weight",
        mobilenetv3_names(blocks),
        (last, "classifier"),
        eps=1e-3,
        normalization=IMAGENET,
    )


BACKBONES = (
    mobilevit("cvnets", "CVNets", "conv_1.block.conv.weight", bgr=True),
    mobilevit("timm", "timm", "stem.conv.weight", bgr=False, timm=tuple(f"mobilevit_{size}" for size in SIZES)),
    Backbone(
        "MobileNetV4-Conv-Small",
        "timm",
        "yolov5-mobilenetv4-vit.yaml",
        UIB,
        "conv_stem.weight",
        mobilenetv4_names(),
        ("blocks.4", "conv_head", "norm_head", "classifier"),
        ("mobilenetv4_conv_small",),
        normalization=IMAGENET,
    ),
    mobilenetv3("Large", "yolov5-mobilenetv3-large.yaml"),  # before Small: it has features.12, too
    mobilenetv3("Small", "yolov5-mobilenetv3.yaml"),
)


def backbone_of(state: Mapping[str, Tensor]) -> Backbone:
    """The published network and layout that the names of `state` follow.

    Raises:
        ValueError: none of BACKBONES.
    """
    found = next((backbone for backbone in BACKBONES if backbone.mark in state), None)
    if found is None:
        others = ", ".join(f"{b.source}'s {b.family}" for b in BACKBONES if b.block is not MobileViTBlock)
        raise ValueError(f"neither CVNets' nor timm's names of a MobileViT, nor of another known network ({others})")
    return found
