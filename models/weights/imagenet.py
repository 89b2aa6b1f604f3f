"""Published ImageNet weights of MobileViT, MobileNetV4 and V3: reading them, loading them into a backbone."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from models.mobilevit import SIZES
from models.weights.backbones import BACKBONES, backbone_of
from models.weights.checkpoint import check_header
from models.weights.torch_file import read
from models.weights.transfer import TransferReport, part_of, shape_in, transfer
from models.yolo import DetectionModel
from utils.plain_data import state_dict
from utils.text import clean, first

LOGGER = logging.getLogger(__name__)
TIMM = "timm:"
# Keys under which training checkpoints hold a state dict, averaged ones first.
WRAPPERS = ("ema_state_dict", "state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")


def read_published(source: str) -> dict[str, Tensor]:
    """The state dict in a .pt, .pth or .safetensors file, or of 'timm:NAME', which timm downloads or has in its cache.

    Nothing in a file is run. The file may be a training checkpoint; its averaged weights come first.

    Raises:
        FileNotFoundError, ValueError: no such file; no state dict in it; timm failed.
        ImportError: timm is not installed.
    """
    if source.startswith(TIMM):
        return from_timm(source.removeprefix(TIMM))
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(
            f"weights '{source}' not found, expected a .pt, .pth or .safetensors file or {TIMM}NAME"
        )
    try:
        if path.suffix == ".safetensors":
            check_header(path, "it")
            return unwrap(safetensors.torch.load_file(path))
        return unwrap(read(path))
    except (ValueError, safetensors.SafetensorError) as error:
        reason = clean(error, 240)
        raise ValueError(f"{first([path])}: no weights that can be read, nothing in it was run: {reason}") from error


def unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict in the content of a file, without the prefix of parallel training.

    Raises:
        ValueError: there is none.
    """
    for _ in range(3):
        if isinstance(content, Mapping) and content and all(isinstance(v, Tensor) for v in content.values()):
            state = state_dict(dict(content), "it", "state_dict")
            return {key.removeprefix("module."): value for key, value in state.items()}
        found = next((content[key] for key in WRAPPERS if key in content), None) if isinstance(content, dict) else None
        content = found
    raise ValueError(f"expected a state dict (name -> tensor) as it is or under one of the keys {', '.join(WRAPPERS)}")


def from_timm(name: str) -> dict[str, Tensor]:
    """The pretrained state dict of a timm model whose layout is in BACKBONES.

    Raises:
        ImportError, ValueError: no timm; not one of these models, or it failed.
    """
    known = [name for backbone in BACKBONES for name in backbone.timm]
    if name.partition(".")[0] not in known:
        raise ValueError(
            f"{TIMM}{name}: expected {TIMM} and one of {', '.join(known)}, as {TIMM}{known[0]}.cvnets_in1k"
        )
    try:
        import timm
    except ImportError as error:
        raise ImportError(f"{TIMM}{name} needs timm: pip install timm") from error
    LOGGER.info(f"{TIMM}{name}: timm downloads the weights from the Hugging Face Hub unless they are in its cache")
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{TIMM}{name}: timm could not load it ({reason})") from error


def load_backbone(model: DetectionModel, source: str, partial: bool = False) -> TransferReport:
    """Put the weights of `source` (see read_published), one of BACKBONES, into the backbone of `model`, in place.

    A detector here reads RGB images in 0..1; the first convolution is changed where the weights were trained on others.

    Args:
        partial: copy what fits; else the backbone and the file must have the same tensors.

    Raises:
        FileNotFoundError, ImportError, ValueError: see read_published; the weights do not fit.
    """
    weights = read_published(source)
    try:
        backbone = backbone_of(weights)
        state = backbone.as_detector(weights)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    own = {name: t for name, t in model.state_dict().items() if part_of(model, name) == "backbone"}
    fitting = {name for name, t in state.items() if name in own and own[name].shape == t.shape}
    unmatched = sorted((own.keys() | state.keys()) - fitting)
    rows = model.model[: len(model.yaml["backbone"])]
    if not any(isinstance(module, backbone.block) for module in rows.modules()):
        raise ValueError(f"{source}: {model.where} has no {backbone.family} backbone, expected a {backbone.yaml}")
    if not fitting or (unmatched and not partial):
        first = unmatched[0]
        advice = "; --partial transfers what fits" if fitting else ""
        raise ValueError(
            f"{source}{size_label(state)}: {len(unmatched)} tensors of the backbone do not match {model.where}, "
            f"the first is {first}: {shape_in(state, first)} in the file, {shape_in(own, first)} in the model{advice}"
        )
    report = transfer(model, {name: t for name, t in state.items() if name in own})
    other_eps = {m.eps for m in rows.modules() if isinstance(m, nn.BatchNorm2d)} - {backbone.eps}
    if other_eps:
        text = f"{backbone.eps:.1e}".replace("e-0", "e-")
        LOGGER.warning(
            f"{model.where} has batch norms of eps {max(other_eps):g}, the published weights were trained with "
            f"{backbone.eps:g}: put 'norm_eps: {text}' into the YAML"
        )
    return replace(report, skipped={name: why for name, why in report.skipped.items() if name in own})


def size_label(state: Mapping[str, Tensor]) -> str:
    """' (MobileViT-XXS)' or another size, by the width of the last row; '' for other widths."""
    fusion = state.get("model.9.fusion.conv.weight")
    width = len(fusion) if fusion is not None and fusion.ndim else 0
    return next((f" (MobileViT-{size.upper()})" for size, spec in SIZES.items() if spec.widths[-1] == width), "")
