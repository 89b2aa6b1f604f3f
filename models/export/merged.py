"""MobileViT blocks in the form that ncnn runs fastest: the same sums, of one image, without batches of sequences."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.attention import Attention, SeparableAttention, TransformerEncoderLayer
from models.common import MobileViTBlock


class MergedBlock(MobileViTBlock):
    """`block` with the tokens of all positions in a patch in one sequence (1, P*N, C) in place of P sequences.

    ncnn has no batches: it emulates those of sequences by copies that take as long as a convolution. Norms and linear
    layers do not see the difference; attention knows P.
    """

    def __init__(self, block: MobileViTBlock):
        nn.Module.__init__(self)
        self.__dict__.update(block.__dict__)  # the same layers and settings
        positions = self.divides[0] * self.divides[1]
        for layer in self.transformer:
            if isinstance(layer, TransformerEncoderLayer):
                if isinstance(layer.attention, Attention):
                    layer.attention = MergedAttention(layer.attention, positions)
                elif isinstance(layer.attention, SeparableAttention):
                    layer.attention = MergedSeparable(layer.attention, positions)

    def unfold(self, x: Tensor) -> Tensor:
        """(1, C, H, W) -> (1, P*N, C), the tokens of one position after another."""
        b, c, h, w = x.shape
        return F.pixel_unshuffle(x, self.divides[0]).reshape(b, c, h * w).transpose(1, 2)

    def fold(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """(1, P*N, C) -> `shape` (1, C, H, W): the inverse of unfold."""
        (b, c, h, w), side = shape, self.divides[0]
        maps = tokens.transpose(1, 2).reshape(b, c * side * side, h // side, w // side)
        return F.pixel_shuffle(maps, side)


class MergedAttention(nn.Module):
    """Attention over tokens (1, P*N, dim), in which a token sees the N of its own position only."""

    def __init__(self, attention: Attention, positions: int):
        super().__init__()
        self.positions, self.heads, self.head_dim = positions, attention.heads, attention.head_dim
        self.fused, self.qkv, self.out = attention.fused, attention.qkv, attention.out

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        split, groups = (b, n, self.heads, self.head_dim), (b, self.heads * self.positions, -1, self.head_dim)
        q, k, v = (t.reshape(split).transpose(1, 2).reshape(groups) for t in self.qkv(x).chunk(3, dim=-1))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.out(y.reshape(b, self.heads, n, self.head_dim).transpose(1, 2).reshape(b, n, -1))


class MergedSeparable(nn.Module):
    """Separable attention over tokens (1, P*N, dim) with a context vector for each of the P positions.

    Key, value and query are three layers: one of 2*dim + 1 outputs fits no vector width, and is slow.
    """

    def __init__(self, attention: SeparableAttention, positions: int):
        super().__init__()
        self.positions, self.out = positions, attention.out
        widths = [attention.dim, attention.dim, 1]
        weights = attention.qkv.weight.split(widths)
        biases = [None] * 3 if attention.qkv.bias is None else attention.qkv.bias.split(widths)
        self.key, self.value, self.query = (linear(w, b) for w, b in zip(weights, biases, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        each = (b, self.positions, n // self.positions, c)
        weights = self.query(x).reshape(b, self.positions, 1, -1).softmax(dim=-1)
        context = weights @ self.key(x).reshape(each)  # (1, P, 1, dim)
        return self.out((F.relu(self.value(x)).reshape(each) * context).reshape(b, n, c))


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer with these parameters."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer


def merge_blocks(model: nn.Module) -> None:
    """Replace the MobileViT blocks in `model` by MergedBlock, in place, where the patch is a square of 2 or more."""
    for name, block in list(model.named_modules()):
        if isinstance(block, MobileViTBlock) and block.divides[0] == block.divides[1] > 1:
            model.set_submodule(name, MergedBlock(block).eval())
