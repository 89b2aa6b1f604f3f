"""Shapes of the usual layers on the device "meta", without torch's own rules, which import its compiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

SAME = {  # functions whose output has the shape and type of their first argument
    *(F.silu, F.relu, F.relu6, F.hardswish, F.hardsigmoid, F.gelu, F.leaky_relu, F.mish, F.sigmoid, F.softmax),
    *(torch.sigmoid, torch.relu, torch.softmax, torch.exp, torch.neg),
    *(Tensor.sigmoid, Tensor.relu, Tensor.softmax, Tensor.exp, Tensor.neg, Tensor.__neg__),
}
PAIRED = {  # functions of two arguments that are broadcast
    *(torch.add, torch.sub, torch.mul, torch.div, Tensor.add, Tensor.sub, Tensor.mul, Tensor.div),
    *(Tensor.__add__, Tensor.__radd__, Tensor.__sub__, Tensor.__mul__, Tensor.__rmul__, Tensor.__truediv__),
}


class ShapeRules(TorchFunctionMode):
    """While active, common layers on the device "meta" give outputs of the right shape by the rules of this module.

    The first call of torch's own rules imports torch._dynamo and sympy, which takes as long as importing torch. Calls
    that do not fit, or of another form, are left to torch and its errors.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        shape: Sequence[int] | None = None
        if func is torch.cat and args:
            shape = joined(args[0], named.get("dim", args[1] if len(args) > 1 else 0))
            return func(*args, **named) if shape is None else torch.empty(shape, dtype=args[0][0].dtype, device="meta")
        if not args or not isinstance(args[0], Tensor) or args[0].device.type != "meta":
            return func(*args, **named)
        if func is torch.conv2d and len(args) == 7 and not named:
            shape = convolved(*args)
        elif func in (F.max_pool2d, torch.max_pool2d):
            shape = pooled(*args, **named)
        elif func is F.interpolate and len(args) <= 3:
            shape = resized(*args, **named)
        elif func is F.adaptive_avg_pool2d and args[1] in (1, (1, 1)) and args[0].dim() == 4:
            shape = (*args[0].shape[:2], 1, 1)
        elif func is F.batch_norm:
            shape = normed(args, named)
        elif func in SAME and args[0].is_floating_point() and named.get("dtype") is None:
            if named.get("inplace"):
                return args[0]
            shape = args[0].shape
        elif func in PAIRED and len(args) == 2 and not named:
            shape = broadcast(*args)
        elif func is F.layer_norm and args[0].shape[-len(args[1]) :] == tuple(args[1]):
            shape = args[0].shape
        elif func is F.linear and args[0].shape[-1] == args[1].shape[1]:
            shape = (*args[0].shape[:-1], args[1].shape[0])
        elif func in (Tensor.__matmul__, Tensor.matmul, torch.matmul) and not named:
            shape = multiplied(*args)
        elif func is F.scaled_dot_product_attention and len(args) == 3 and not named:
            shape = (*args[0].shape[:-1], args[2].shape[-1]) if args[0].shape == args[1].shape else None
        if shape is not None:
            return torch.empty(shape, dtype=args[0].dtype, device="meta")
        return func(*args, **named)


def convolved(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
) -> tuple[int, ...] | None:
    """The shape of a convolution (B, C, H, W); None: padding in words, or it does not fit."""
    if x.dim() != 4 or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups or x.dtype != weight.dtype:
        return None
    return windows(x, weight.shape[0], tuple(weight.shape[2:]), stride, padding, dilation)


def pooled(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> tuple[int, ...] | None:
    """The shape of a pool (B, C, H, W); None: of another form."""
    if ceil_mode or return_indices or x.dim() != 4:
        return None
    return windows(x, x.shape[1], *map(pair_of, (kernel_size, stride or kernel_size, padding, dilation)))


def resized(
    x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", **other: Any
) -> tuple[int, ...] | None:
    """The shape of a map enlarged by a whole number; None: of another form."""
    if x.dim() != 4 or size is not None or mode not in ("nearest", "bilinear") or other.get("antialias"):
        return None
    if not isinstance(scale_factor, int | float) or scale_factor < 1 or scale_factor % 1:
        return None
    return (*x.shape[:2], *(side * int(scale_factor) for side in x.shape[2:]))


def pair_of(value: Any) -> Any:
    """A number as a pair of it."""
    return (value, value) if isinstance(value, int) else value


def windows(x: Tensor, channels: int, kernel: Any, stride: Any, padding: Any, dilation: Any) -> tuple[int, ...] | None:
    """The shape of `channels` maps, of which each number is made of a window of `x`; None: it does not fit."""
    pairs = (kernel, stride, padding, dilation)
    if x.dim() != 4 or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in pairs):
        return None
    if min(*kernel, *stride, *dilation) < 1 or min(padding) < 0:
        return None
    sides = [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in zip(x.shape[2:], *pairs, strict=True)]
    return (x.shape[0], channels, *sides) if min(sides) > 0 else None


def normed(args: Sequence[Any], named: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape of a batch norm; None: in training mode, or it does not fit."""
    x, mean = args[0], args[1] if len(args) > 1 else named.get("running_mean")
    training = args[5] if len(args) > 5 else named.get("training", False)
    if x.dim() != 4 or training or mean is None or mean.numel() != x.shape[1]:
        return None
    return tuple(x.shape)


def broadcast(x: Tensor, other: Any) -> Sequence[int] | None:
    """The shape of both together; None: of different types, or it does not fit."""
    if isinstance(other, int | float) and x.is_floating_point():
        return x.shape
    if not isinstance(other, Tensor) or other.dtype != x.dtype or not x.is_floating_point():
        return None
    pairs = list(zip_longest(x.shape[::-1], other.shape[::-1], fillvalue=1))
    return [max(pair) for pair in pairs[::-1]] if all(a == b or 1 in (a, b) for a, b in pairs) else None


def joined(parts: Sequence[Tensor], dim: int) -> list[int] | None:
    """The shape of `parts` one after another along `dim`; None: not on "meta", of several types, or they do not fit."""
    if not all(isinstance(part, Tensor) and part.device.type == "meta" and part.dim() for part in parts):
        return None
    if len({(part.dim(), part.dtype) for part in parts}) != 1 or not -parts[0].dim() <= dim < parts[0].dim():
        return None
    shapes = [list(part.shape) for part in parts]
    total = sum(shape[dim] for shape in shapes)
    for shape in shapes:
        shape[dim] = total
    return shapes[0] if all(shape == shapes[0] for shape in shapes) else None


def multiplied(x: Tensor, other: Tensor) -> tuple[int, ...] | None:
    """The shape of a product of two stacks of matrices (..., n, k) and (..., k, m); None: it does not fit."""
    if x.dim() < 2 or x.shape[:-2] != other.shape[:-2] or x.shape[-1] != other.shape[-2] or x.dtype != other.dtype:
        return None
    return (*x.shape[:-1], other.shape[-1])
