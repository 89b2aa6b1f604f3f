"""Building blocks: one feature map in, one map out, `cls(c1, c2, *args)`.

A block becomes usable in a YAML by adding its name to `BLOCKS` in `models/yolo.py`. What the parser reads from a class:

* a parameter `n` in `__init__` receives the row's repeats (otherwise the layer is stacked);
* a parameter whose default is a dataclass receives the row's keywords that are its fields (see MobileViTForm);
* `joins = True`: the block takes a list of maps;
* a class without `c1`/`c2` (Concat, Contract, Expand) computes its output width in `out_channels`;
* an attribute `divides = (h, w)` on a module: the height and width of its input map must be multiples of these.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.attention import Attention as Attention  # imported from here by the rest of the project
from models.attention import SeparableAttention as SeparableAttention
from models.attention import Transformer, TransformerLayer


def same_padding(k: int | tuple[int, int], d: int = 1) -> int | tuple[int, int]:
    """Padding that keeps the map size at stride 1, for odd kernels and dilation `d`."""
    if isinstance(k, int):
        return d * (k - 1) // 2
    return d * (k[0] - 1) // 2, d * (k[1] - 1) // 2


ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish}  # of published backbones, by name in a YAML's arguments


def activation(act: bool | str | nn.Module) -> nn.Module:
    """SiLU for True, nothing for False, an activation by name, or the module itself.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(act, nn.Module):
        return act
    if isinstance(act, str):
        if act not in ACTIVATIONS:
            raise ValueError(f"act {act!r}, expected true, false or one of {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[act](inplace=True)
    return nn.SiLU(inplace=True) if act else nn.Identity()


class Conv(nn.Module):
    """Convolution without bias, batch norm, SiLU."""

    def __init__(
        self,
        c1: int,
        c2: int,
        k: int | tuple[int, int] = 1,
        s: int | tuple[int, int] = 1,
        p: int | tuple[int, int] | None = None,
        g: int = 1,
        d: int = 1,
        act: bool | str | nn.Module = True,
    ):
        super().__init__()
        padding = same_padding(k, d) if p is None else p
        self.conv = nn.Conv2d(c1, c2, k, s, padding, groups=g, dilation=d, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(c2)
        self.act = activation(act)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))

    def fold_norm(self) -> None:
        """Fold the batch norm into the convolution, which then has a bias; for eval mode only."""
        if isinstance(self.bn, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.bn)
            self.bn = nn.Identity()


class DWConv(Conv):
    """Depthwise Conv: as many groups as `c1` and `c2` allow."""

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, d: int = 1, act: bool | nn.Module = True):
        super().__init__(c1, c2, k, s, g=math.gcd(c1, c2), d=d, act=act)


class SeparableConv(nn.Sequential):
    """A depthwise Conv, then a 1x1 Conv: a cheaper form of Conv.

    Source: Howard et al. 2017, arXiv:1704.04861.
    """

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1):
        super().__init__(Conv(c1, c1, k, s, g=c1), Conv(c1, c2, 1))


class Focus(nn.Module):
    """Space to depth by 2, then Conv: (B, c1, H, W) -> (B, c2, H/2, W/2)."""

    divides = (2, 2)

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, p: int | None = None, g: int = 1):
        super().__init__()
        self.conv = Conv(4 * c1, c2, k, s, p, g)

    def forward(self, x: Tensor) -> Tensor:
        even_columns, odd_columns = x[..., 0::2], x[..., 1::2]
        corners = [columns[:, :, row::2] for columns in (even_columns, odd_columns) for row in (0, 1)]
        return self.conv(torch.cat(corners, dim=1))


class Bottleneck(nn.Module):
    """1x1 then 3x3 Conv, with a skip where the widths agree."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, g: int = 1, e: float = 0.5):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1)
        self.cv2: nn.Module = Conv(hidden, c2, 3, g=g)
        self.skip = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.skip else y


class BottleneckCSP(nn.Module):
    """CSP stage with plain side convolutions and one batch norm over both branches.

    Source: Wang et al. 2019, arXiv:1911.11929.
    """

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1)
        self.cv2 = nn.Conv2d(c1, hidden, 1, bias=False)
        self.cv3 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.cv4 = Conv(2 * hidden, c2, 1)
        self.bn = nn.BatchNorm2d(2 * hidden)
        self.act = nn.SiLU()
        self.m = nn.Sequential(*[Bottleneck(hidden, hidden, shortcut, g, e=1.0) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        deep = self.cv3(self.m(self.cv1(x)))
        return self.cv4(self.act(self.bn(torch.cat([deep, self.cv2(x)], dim=1))))


class C3(nn.Module):
    """CSP stage of three convolutions: half of the width passes `inner`, half goes around it."""

    def __init__(self, c1: int, c2: int, n: int = 1, shortcut: bool = True, g: int = 1, e: float = 0.5):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, 1)
        self.cv2 = Conv(c1, hidden, 1)
        self.cv3 = Conv(2 * hidden, c2, 1)
        self.m = self.inner(hidden, n, shortcut, g)

    def inner(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        """The `n` layers of the deep branch; subclasses replace them."""
        return nn.Sequential(*[Bottleneck(width, width, shortcut, g, e=1.0) for _ in range(n)])

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], dim=1))


class CrossConv(nn.Module):
    """A kxk convolution split into 1xk and kx1."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1, g: int = 1, e: float = 1.0, shortcut: bool = False):
        super().__init__()
        hidden = int(c2 * e)
        self.cv1 = Conv(c1, hidden, (1, k), (1, s))
        self.cv2 = Conv(hidden, c2, (k, 1), (s, 1), g=g)
        self.skip = shortcut and c1 == c2 and s == 1

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.skip else y


class SeparableBottleneck(Bottleneck):
    """Bottleneck whose 3x3 Conv is a SeparableConv."""

    def __init__(self, c1: int, c2: int, shortcut: bool = True, e: float = 0.5):
        super().__init__(c1, c2, shortcut, e=e)
        self.cv2 = SeparableConv(int(c2 * e), c2, 3)


class C3Separable(C3):
    """C3 with SeparableBottleneck inside."""

    def inner(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*[SeparableBottleneck(width, width, shortcut, e=1.0) for _ in range(n)])


class C3x(C3):
    """C3 with CrossConv inside."""

    def inner(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*[CrossConv(width, width, 3, 1, g, 1.0, shortcut) for _ in range(n)])


class SPP(nn.Module):
    """Spatial pyramid pooling: max pools of several sizes side by side.

    Source: He et al. 2014, arXiv:1406.4729.
    """

    def __init__(self, c1: int, c2: int, k: tuple[int, ...] = (5, 9, 13)):
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1)
        self.cv2 = Conv(hidden * (len(k) + 1), c2, 1)
        self.m = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in k)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        return self.cv2(torch.cat([x, *(pool(x) for pool in self.m)], dim=1))


class SPPF(nn.Module):
    """SPP of sizes k, 2k-1, 3k-2 from one pool applied three times: the same result, faster."""

    def __init__(self, c1: int, c2: int, k: int = 5):
        super().__init__()
        hidden = c1 // 2
        self.cv1 = Conv(c1, hidden, 1)
        self.cv2 = Conv(hidden * 4, c2, 1)
        self.m = nn.MaxPool2d(k, 1, k // 2)

    def forward(self, x: Tensor) -> Tensor:
        pyramid = [self.cv1(x)]
        while len(pyramid) < 4:
            pyramid.append(self.m(pyramid[-1]))
        return self.cv2(torch.cat(pyramid, dim=1))


class C3SPP(C3):
    """C3 with SPP inside."""

    def __init__(self, c1: int, c2: int, k: tuple[int, ...] = (5, 9, 13), n: int = 1, e: float = 0.5):
        super().__init__(c1, c2, n=0, e=e)
        hidden = int(c2 * e)
        self.m = SPP(hidden, hidden, k)


class GhostConv(nn.Module):
    """Half of the maps from a convolution, half from a cheap 5x5 depthwise one on top of it.

    Source: Han et al. 2020, arXiv:1911.11907.
    """

    def __init__(self, c1: int, c2: int, k: int = 1, s: int = 1, g: int = 1, act: bool | nn.Module = True):
        super().__init__()
        half = c2 // 2
        self.cv1 = Conv(c1, half, k, s, g=g, act=act)
        self.cv2 = Conv(half, half, 5, 1, g=half, act=act)

    def forward(self, x: Tensor) -> Tensor:
        primary = self.cv1(x)
        return torch.cat([primary, self.cv2(primary)], dim=1)


class GhostBottleneck(nn.Module):
    """Two GhostConvs around an optional strided depthwise convolution, with a skip."""

    def __init__(self, c1: int, c2: int, k: int = 3, s: int = 1):
        super().__init__()
        half = c2 // 2
        down = s == 2
        if not down and c1 != c2:
            raise ValueError(f"GhostBottleneck: {c1} channels in, {c2} out; with stride 1 they must be equal")
        self.conv = nn.Sequential(
            GhostConv(c1, half),
            DWConv(half, half, k, s, act=False) if down else nn.Identity(),
            GhostConv(half, c2, act=False),
        )
        around = [DWConv(c1, c1, k, s, act=False), Conv(c1, c2, act=False)] if down else []
        self.shortcut = nn.Sequential(*around)

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.conv(x)


class C3Ghost(C3):
    """C3 with GhostBottleneck inside."""

    def inner(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return nn.Sequential(*[GhostBottleneck(width, width) for _ in range(n)])


class TransformerBlock(nn.Module):
    """A stack of TransformerLayers over all cells of a map, with a learned linear position term."""

    def __init__(self, c1: int, c2: int, num_heads: int, num_layers: int):
        super().__init__()
        self.conv = Conv(c1, c2) if c1 != c2 else nn.Identity()
        self.linear = nn.Linear(c2, c2)
        self.tr = nn.Sequential(*[TransformerLayer(c2, num_heads) for _ in range(num_layers)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        tokens = rearrange(x, "b c h w -> (h w) b c")
        tokens = self.tr(tokens + self.linear(tokens))
        return tokens.permute(1, 2, 0).reshape(x.shape)


class C3TR(C3):
    """C3 with a TransformerBlock of 4 heads inside."""

    def inner(self, width: int, n: int, shortcut: bool, g: int) -> nn.Module:
        return TransformerBlock(width, width, 4, n)


class Contract(nn.Module):
    """Space to depth: (B, C, H, W) -> (B, C*gain^2, H/gain, W/gain), the offset being the slower channel index."""

    def __init__(self, gain: int = 2):
        super().__init__()
        self.gain = gain
        self.divides = (gain, gain)

    @staticmethod
    def out_channels(c1: int, gain: int = 2) -> int:
        return c1 * gain**2

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "b c (h i) (w j) -> b (i j c) h w", i=self.gain, j=self.gain)


class Expand(nn.Module):
    """Depth to space, the inverse of Contract: (B, C, H, W) -> (B, C/gain^2, H*gain, W*gain)."""

    def __init__(self, gain: int = 2):
        super().__init__()
        self.gain = gain

    @staticmethod
    def out_channels(c1: int, gain: int = 2) -> int:
        if c1 % gain**2:
            raise ValueError(f"Expand: {c1} channels cannot be spread over {gain}x{gain} pixels")
        return c1 // gain**2

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "b (i j c) h w -> b c (h i) (w j)", i=self.gain, j=self.gain)


class Concat(nn.Module):
    """Several maps side by side along `dimension`."""

    joins = True  # takes a list of maps

    def __init__(self, dimension: int = 1):
        super().__init__()
        self.d = dimension

    @staticmethod
    def out_channels(c1: int | list[int], dimension: int = 1) -> int:
        widths = c1 if isinstance(c1, list) else [c1]
        return sum(widths) if dimension == 1 else widths[0]

    def forward(self, x: list[Tensor]) -> Tensor:
        """Raises ValueError where the maps differ in size."""
        checks = self.d == 1 and not torch.jit.is_tracing()  # sizes are tensors when traced
        if checks and any(level.shape[-2:] != x[0].shape[-2:] for level in x):  # no set: open sizes have no hash
            sizes = ", ".join("x".join(str(side) for side in level.shape[-2:]) for level in x)
            raise ValueError(f"Concat: maps of {sizes}, expected one height and width; look at the strides of its rows")
        return torch.cat(x, self.d)


class MV2Block(nn.Module):
    """Inverted residual of MobileNetV2: 1x1 expand, 3x3 depthwise, 1x1 linear; residual where shapes agree.

    Expansion 1 has no first 1x1.

    Source: Sandler et al. 2018, arXiv:1801.04381, section 3.3; SiLU as in MobileViT.
    """

    def __init__(self, c1: int, c2: int, stride: int = 1, expansion: int = 4):
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"MV2Block: stride {stride}, expected 1 or 2")
        hidden = int(c1 * expansion)
        self.expand = Conv(c1, hidden, 1) if expansion != 1 else nn.Identity()
        self.depthwise = Conv(hidden, hidden, 3, stride, g=hidden)
        self.project = Conv(hidden, c2, 1, act=False)
        self.residual = stride == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class UIB(nn.Module):
    """Universal inverted bottleneck: depthwise, 1x1 expand, depthwise, 1x1 linear; residual where shapes agree.

    Either depthwise convolution is left out where its kernel is 0; only the second one has an activation. With `start`
    0 and `middle` 3 it is an MV2Block, with `start` and no `middle` a ConvNeXt-like block, without both a feed-forward.

    Args:
        start, middle: kernels of the depthwise convolutions. stride: of the second one, or of the first if there is no
            second.

    Raises:
        ValueError: a stride that is not 1 or 2, or a stride without a depthwise convolution.

    Source: Qin et al. 2024, arXiv:2404.10518, section 3.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        start: int = 0,
        middle: int = 3,
        stride: int = 1,
        expansion: int = 4,
        act: bool | str | nn.Module = True,
    ):
        super().__init__()
        if stride not in (1, 2) or (stride == 2 and not (start or middle)):
            raise ValueError(f"UIB: stride {stride} with kernels {start} and {middle}, expected 1, or 2 with a kernel")
        hidden = int(c1 * expansion)
        first = 1 if middle else stride
        self.start = Conv(c1, c1, start, first, g=c1, act=False) if start else nn.Identity()
        self.expand = Conv(c1, hidden, 1, act=act)
        self.middle = Conv(hidden, hidden, middle, stride, g=hidden, act=act) if middle else nn.Identity()
        self.project = Conv(hidden, c2, 1, act=False)
        self.residual = stride == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.middle(self.expand(self.start(x))))
        return x + y if self.residual else y


class MV3Block(nn.Module):
    """Inverted residual of MobileNetV3: expand, depthwise, squeeze and excite, project; residual where shapes agree.

    Args:
        hidden: channels between the two 1x1 convolutions; where it is c1, the first is left out.
        squeeze: weigh each channel by what its mean over the map says (a bottleneck of about a quarter, hard sigmoid).

    Raises:
        ValueError: a stride that is not 1 or 2.

    Source: Howard et al. 2019, arXiv:1905.02244, section 4.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        hidden: int,
        k: int = 3,
        stride: int = 1,
        squeeze: bool = True,
        act: bool | str | nn.Module = "hardswish",
    ):
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"MV3Block: stride {stride}, expected 1 or 2")
        self.expand = Conv(c1, hidden, 1, act=act) if hidden != c1 else nn.Identity()
        self.depthwise = Conv(hidden, hidden, k, stride, g=hidden, act=act)
        self.squeeze: nn.Module | None = None
        if squeeze:
            fewer = max(8, (hidden // 4 + 4) // 8 * 8)  # the nearest multiple of 8
            fewer += 8 if fewer < 0.9 * (hidden // 4) else 0
            self.squeeze = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(hidden, fewer, 1),
                nn.ReLU(inplace=True),
                nn.Conv2d(fewer, hidden, 1),
                nn.Hardsigmoid(inplace=True),
            )
        self.project = Conv(hidden, c2, 1, act=False)
        self.residual = stride == 1 and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(self.expand(x))
        if self.squeeze is not None:
            y = y * self.squeeze(y)
        y = self.project(y)
        return x + y if self.residual else y


@dataclass(frozen=True)
class MobileViTForm:
    """What makes one MobileViTBlock another than the widely pasted recipe, which the defaults are.

    In a YAML row they are keywords of the block: {heads: 2, head_dim: null}.

    Attributes:
        heads: of the attention; 0 makes it MobileViTv2's separable one, whose time is linear in tokens.
        head_dim: channels of a head; None: the heads share the token width.
        bare_expand: no norm and activation after the 1x1 to the token width.
        input_first: the input comes first in the concatenation.
        depthwise: the local convolution is depthwise.
        fusion_kernel: of the fusing convolution; None: `kernel_size`.
        fuse_local: the tokens before the transformer are fused with those after it, in place of the input.
        residual: the input is added to the output, c1 and c2 being equal.
        zero_start: the norm of the fusing convolution starts at 0, so that a residual block first passes its input on.

    Raises:
        ValueError: zero_start without residual.
    """

    heads: int = 4
    head_dim: int | None = 8
    qkv_bias: bool = False
    closing_norm: bool = False
    bare_expand: bool = False
    input_first: bool = False
    depthwise: bool = False
    fusion_kernel: int | None = None
    fuse_local: bool = False
    residual: bool = False
    zero_start: bool = False

    def __post_init__(self) -> None:
        if self.zero_start and not self.residual:
            raise ValueError("MobileViTBlock: zero_start without residual would pass nothing on, expected residual")


PASTED = MobileViTForm()
PUBLISHED = MobileViTForm(head_dim=None, qkv_bias=True, closing_norm=True, bare_expand=True, input_first=True)


class MobileViTBlock(nn.Module):
    """Local convolution, then a transformer across patches, fused with the input.

    Every map is cut into patches of ph x pw pixels; the pixels at one position of all patches are the tokens of one
    sequence, so each pixel attends to the whole map through the others at its position.

    The defaults are the widely pasted recipe; PUBLISHED is the network of the first paper. MobileViTv3 is `depthwise`,
    `fusion_kernel=1`, `fuse_local`, `residual`.

    Args:
        dim: token width. depth: transformer layers, at least 1. patch_size: pixels, one number or (h, w).
        mlp_dim: hidden width of the feed-forward; None is 2 * dim. form: see MobileViTForm.

    Raises:
        ValueError: an argument out of range, or (in forward) a map that the patch does not divide.

    Source: Mehta and Rastegari 2022, arXiv:2110.02178, section 3.1; Wadekar and Chaurasia 2022, arXiv:2209.15159.
    """

    def __init__(
        self,
        c1: int,
        c2: int,
        dim: int,
        depth: int,
        kernel_size: int = 3,
        patch_size: int | tuple[int, int] = 2,
        mlp_dim: int | None = None,
        form: MobileViTForm = PASTED,
    ):
        super().__init__()
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
            raise ValueError(f"MobileViTBlock: depth {depth!r}, expected an int of at least 1 (transformer layers)")
        patch = tuple(patch_size) if isinstance(patch_size, list | tuple) else (patch_size, patch_size)
        if len(patch) != 2 or any(isinstance(p, bool) or not isinstance(p, int) or p < 1 for p in patch):
            raise ValueError(f"MobileViTBlock: patch_size {patch_size!r}, expected an int >= 1 or a pair of them")
        if form.residual and c1 != c2:
            raise ValueError(f"MobileViTBlock: residual with {c1} channels in and {c2} out, expected the same")
        self.divides = (patch[0], patch[1])
        self.input_first, self.fuse_local, self.residual = form.input_first, form.fuse_local, form.residual
        self.local = Conv(c1, c1, kernel_size, g=c1 if form.depthwise else 1)
        self.expand = nn.Conv2d(c1, dim, 1, bias=False) if form.bare_expand else Conv(c1, dim, 1)
        hidden = 2 * dim if mlp_dim is None else mlp_dim
        self.transformer = Transformer(dim, depth, form.heads, form.head_dim, hidden, form.qkv_bias, form.closing_norm)
        self.project = Conv(dim, c1, 1)
        other = dim if form.fuse_local else c1
        self.fusion = Conv(c1 + other, c2, kernel_size if form.fusion_kernel is None else form.fusion_kernel)
        if form.zero_start:
            nn.init.zeros_(cast(nn.BatchNorm2d, self.fusion.bn).weight)

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        local = self.expand(self.local(x))
        y = self.fold(self.transformer(self.unfold(local)), local.shape)
        y = self.project(y)
        other = local if self.fuse_local else x
        y = self.fusion(torch.cat([other, y] if self.input_first else [y, other], dim=1))
        return x + y if self.residual else y

    def check(self, x: Tensor) -> None:
        """Raise ValueError unless the patch divides the map."""
        size, patch = tuple(x.shape[-2:]), self.divides
        if any(side % p for side, p in zip(size, patch, strict=True)):
            below = [side // p * p for side, p in zip(size, patch, strict=True)]
            above = [-(-side // p) * p for side, p in zip(size, patch, strict=True)]
            raise ValueError(
                f"MobileViTBlock: a map of {size[0]}x{size[1]} cannot be cut into patches of {patch[0]}x{patch[1]}; "
                f"height must be a multiple of {patch[0]} ({below[0]} or {above[0]}), "
                f"width of {patch[1]} ({below[1]} or {above[1]})"
            )

    # Both ways stay at rank 4 or less: mobile runtimes refuse more.
    def unfold(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B*P, N, C), P = ph*pw positions in a patch, N = H*W/P patches."""
        (b, c, h, w), (ph, pw) = x.shape, self.divides
        if ph * pw == 1:  # the same with one transposition
            return x.reshape(b, c, h * w).transpose(1, 2)
        rows, columns = h // ph, w // pw
        x = x.reshape(b * c * rows, ph, columns, pw).transpose(1, 2)  # (.., columns, ph, pw)
        x = x.reshape(b, c, rows * columns, ph * pw).transpose(1, 3)  # (B, P, N, C)
        return x.reshape(b * ph * pw, rows * columns, c)

    def fold(self, tokens: Tensor, shape: torch.Size) -> Tensor:
        """(B*P, N, C) -> `shape` (B, C, H, W): the inverse of unfold."""
        (b, c, h, w), (ph, pw) = shape, self.divides
        if ph * pw == 1:
            return tokens.transpose(1, 2).reshape(b, c, h, w)
        rows, columns = h // ph, w // pw
        x = tokens.reshape(b, ph * pw, rows * columns, c).transpose(1, 3)  # (B, C, N, P)
        x = x.reshape(b * c * rows, columns, ph, pw).transpose(1, 2)  # (.., ph, columns, pw)
        return x.reshape(b, c, h, w)
