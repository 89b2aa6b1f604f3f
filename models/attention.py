"""Attention over tokens and the layers around it, for the blocks in `models/common.py`."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TransformerLayer(nn.Module):
    """Self-attention and a two-layer MLP, both residual, without norms; tokens (N, B, C)."""

    def __init__(self, c: int, num_heads: int):
        super().__init__()
        self.q, self.k, self.v, self.fc1, self.fc2 = (nn.Linear(c, c, bias=False) for _ in range(5))
        self.ma = nn.MultiheadAttention(c, num_heads)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.ma(self.q(x), self.k(x), self.v(x), need_weights=False)
        x = x + attended
        return x + self.fc2(self.fc1(x))


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, dim); B may hold patches as well as images.

    `fused` chooses scaled_dot_product_attention, which never builds the N x N map; otherwise matmul and softmax, for
    runtimes and FLOP counters that support only those.
    """

    def __init__(self, dim: int, heads: int = 4, head_dim: int | None = 8, qkv_bias: bool = False):
        super().__init__()
        if head_dim is None and dim % heads:
            raise ValueError(f"Attention: {heads} heads cannot share a dim of {dim} evenly")
        self.heads = heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.fused = True
        inner = self.heads * self.head_dim
        self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        self.out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(t, "b n (h d) -> b h n d", h=self.heads) for t in self.qkv(x).chunk(3, dim=-1))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            y = weights.softmax(dim=-1) @ v
        return self.out(rearrange(y, "b h n d -> b n (h d)"))


class SeparableAttention(nn.Module):
    """Self-attention over tokens (B, N, dim) by way of one context vector: time and memory linear in N.

    A softmax over the tokens weighs their keys; the sum gates the values of every token.

    Source: Mehta and Rastegari 2022, arXiv:2206.02680, section 3.
    """

    def __init__(self, dim: int, qkv_bias: bool = False):
        super().__init__()
        self.dim = dim
        self.qkv = nn.Linear(dim, 2 * dim + 1, bias=qkv_bias)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        key, value, query = self.qkv(x).split([self.dim, self.dim, 1], dim=-1)
        context = query.softmax(dim=1).transpose(1, 2) @ key  # (B, 1, dim)
        return self.out(F.relu(value) * context)


class FeedForward(nn.Sequential):
    """Token-wise MLP dim -> hidden -> dim with SiLU."""

    def __init__(self, dim: int, hidden: int):
        super().__init__(nn.Linear(dim, hidden), nn.SiLU(), nn.Linear(hidden, dim))


class TransformerEncoderLayer(nn.Module):
    """Pre-norm layer: x + attention(norm(x)), then x + mlp(norm(x)); without heads the attention is separable."""

    def __init__(self, dim: int, heads: int, head_dim: int | None, mlp_dim: int, qkv_bias: bool):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention: nn.Module = (
            Attention(dim, heads, head_dim, qkv_bias) if heads else SeparableAttention(dim, qkv_bias)
        )
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, mlp_dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Sequential):
    """`depth` pre-norm layers over tokens (B, N, dim), then a LayerNorm if `closing_norm`."""

    def __init__(
        self,
        dim: int,
        depth: int,
        heads: int,
        head_dim: int | None,
        mlp_dim: int,
        qkv_bias: bool = False,
        closing_norm: bool = False,
    ):
        layers: list[nn.Module] = [
            TransformerEncoderLayer(dim, heads, head_dim, mlp_dim, qkv_bias) for _ in range(depth)
        ]
        if closing_norm:
            layers.append(nn.LayerNorm(dim))
        super().__init__(*layers)
