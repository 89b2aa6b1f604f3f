"""Activations of a model for one image: feature maps of every row, attention weights of MobileViT blocks."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.common import Attention, MobileViTBlock
from models.yolo import DetectionModel


class Activations(NamedTuple):
    """What a model computed for one image; keys are 'row_Block', as '05_MobileViTBlock'.

    Attributes:
        features: (C, h, w) output of each row but the head.
        attention: (layers, h, w) attention of one token to all tokens, averaged over heads and over positions in a
            patch; each layer sums to 1.
    """

    features: dict[str, Tensor]
    attention: dict[str, Tensor]


@torch.inference_mode()
def record_activations(model: DetectionModel, image: Tensor, at: tuple[float, float]) -> Activations:
    """The activations of `model` for `image` (1, 3, H, W).

    Args:
        at: x, y in 0..1 of the image: the token whose attention is recorded.
    """
    features: dict[str, Tensor] = {}
    attention: dict[str, Tensor] = {}
    hooks = []
    for i, layer in enumerate(model.model[:-1]):
        name = f"{i:02}_{type(layer).__name__}"
        hooks.append(layer.register_forward_hook(_record_output(features, name)))
        if isinstance(layer, MobileViTBlock) and any(isinstance(m, Attention) for m in layer.modules()):
            hooks += _record_attention(layer, name, at, attention)
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return Activations(features, attention)


def _record_output(features: dict[str, Tensor], name: str) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        features[name] = output[0].float().cpu()

    return hook


def _record_attention(block: MobileViTBlock, name: str, at: tuple[float, float], attention: dict[str, Tensor]) -> list:
    """Hooks that write the attention of each layer of `block` to `attention[name]`."""
    cells: list[int] = []

    def measure(module: nn.Module, inputs: tuple) -> None:
        cells[:] = [side // p for side, p in zip(inputs[0].shape[-2:], block.divides, strict=True)]
        attention[name] = torch.empty(0, *cells)

    def add(module: Attention, inputs: tuple) -> None:
        rows, columns = cells
        query = min(int(at[1] * rows), rows - 1) * columns + min(int(at[0] * columns), columns - 1)
        weights = attention_of(module, inputs[0], query).mean(dim=(0, 1)).view(1, rows, columns)
        attention[name] = torch.cat([attention[name], weights.cpu()])

    watched = [module for module in block.modules() if isinstance(module, Attention)]
    return [block.register_forward_pre_hook(measure), *(m.register_forward_pre_hook(add) for m in watched)]


def attention_of(module: Attention, tokens: Tensor, query: int) -> Tensor:
    """(B, heads, N) attention weights of token `query` of `tokens` (B, N, dim); their sum over N is 1."""
    q, k, _ = (t.unflatten(-1, (module.heads, module.head_dim)) for t in module.qkv(tokens).chunk(3, dim=-1))
    scores = torch.einsum("bhd,bnhd->bhn", q[:, query] * module.head_dim**-0.5, k)
    return scores.float().softmax(dim=-1)
