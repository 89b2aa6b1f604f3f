"""The detection model: a YAML of rows becomes a network that ends in a detection head.

A new block: write the class in `models/common.py`, add its name to `BLOCKS`, name it in a YAML row.
"""

from __future__ import annotations

import ast
import inspect
import logging
import math
import re
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

if __name__ == "__main__":  # run as a file: the project's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).parents[1]))

from models import common
from models.heads import HEADS, Head
from utils.files import find, read_yaml
from utils.images import POSITIONS
from utils.text import counted

LOGGER = logging.getLogger(__name__)
NORM_EPS, NORM_MOMENTUM = 1e-3, 0.03  # YOLOv5's constants for batch norms: steadier statistics at small batches


BLOCKS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        common.Bottleneck,
        common.BottleneckCSP,
        common.C3,
        common.C3Ghost,
        common.C3Separable,
        common.C3SPP,
        common.C3TR,
        common.C3x,
        common.Concat,
        common.Contract,
        common.Conv,
        common.CrossConv,
        common.DWConv,
        common.Expand,
        common.Focus,
        common.GhostBottleneck,
        common.GhostConv,
        common.MobileViTBlock,
        common.MV2Block,
        common.MV3Block,
        common.SeparableConv,
        common.SPP,
        common.SPPF,
        common.UIB,
        *HEADS.values(),
    )
} | {"nn.Upsample": nn.Upsample, "nn.MaxPool2d": nn.MaxPool2d, "nn.ZeroPad2d": nn.ZeroPad2d}

ACTIVATIONS = {
    f"nn.{cls.__name__}": cls for cls in (nn.SiLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Mish, nn.GELU)
}


def make_divisible(width: float, divisor: int = 8) -> int:
    """`width` rounded up to a multiple of `divisor`."""
    return math.ceil(width / divisor) * divisor


class Row(NamedTuple):
    """A YAML row as it is built.

    Attributes:
        sources: absolute indices of the rows that it reads; -1 is the image. width: channels of its output.
        block: the class, built `repeats` times with `keywords`; scaled by the model's multiples.
    """

    sources: tuple[int, ...]
    width: int
    block: type[nn.Module]
    repeats: int
    keywords: dict[str, Any]

    def text(self) -> tuple[str, str]:
        """The number of repeats, inside the block or of it, and the arguments, for a table."""
        n = self.keywords.get("n", self.repeats)
        return str(n), ", ".join(str(value) for name, value in self.keywords.items() if name != "n")


def read_row(row: Any, cfg: Mapping, widths: list[int]) -> Row:
    """One YAML row [from, repeats, block, args], not built yet.

    Args:
        cfg: the whole model mapping (nc, anchors, multiples). widths: input channels, then the output of each row.

    Raises:
        ValueError: what is wrong with the row, without its place.
    """
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], list):
        raise ValueError(f"{row!r}, expected [from, repeats, block, [args]]")
    source, repeats, name, args = row
    if not isinstance(name, str) or name not in BLOCKS:
        raise ValueError(f"unknown block {name!r}, expected one of: {', '.join(sorted(BLOCKS))}")
    if type(repeats) is not int or repeats < 1:
        raise ValueError(f"repeats is {repeats!r}, expected an int of at least 1")
    here = len(widths) - 1
    sources = source if isinstance(source, list) else [source]
    if not sources or any(type(s) is not int for s in sources):
        raise ValueError(f"'from' is {source!r}, expected an int or a list of them")
    routes = tuple(s if s >= 0 else here + s for s in sources)
    if any(not -1 <= s < here for s in routes):
        raise ValueError(f"'from' is {source}, expected rows before this one")
    inputs = [widths[s + 1] for s in routes]

    cls = BLOCKS[name]
    if len(inputs) > 1 and not hasattr(cls, "joins"):
        raise ValueError(f"{name} takes one input, not {len(inputs)}")
    accepted = [p for p in inspect.signature(cls).parameters if p not in ("n", "ch")]
    args, keywords = resolve_args(args, cfg)
    out = inputs[0]
    if "c2" in accepted:
        if not args or type(args[0]) is not int or args[0] < 1:
            raise ValueError(f"the first argument of {name} must be its width, an int of at least 1")
        out = make_divisible(args[0] * cfg.get("width_multiple", 1.0))
        args = [inputs[0], out, *args[1:]]
    elif hasattr(cls, "out_channels"):
        out = cls.out_channels(inputs if len(inputs) > 1 else inputs[0], *args)
    if len(args) > len(accepted):
        raise ValueError(
            f"{name} takes {', '.join(accepted)}: {counted(len(args) - len(accepted), 'argument')} too many"
        )
    keywords = dict(zip(accepted, args, strict=False)) | keywords

    if repeats > 1:
        repeats = max(round(repeats * cfg.get("depth_multiple", 1.0)), 1)
    parameters = inspect.signature(cls).parameters
    if "n" in parameters:
        keywords["n"], repeats = repeats, 1
    if "ch" in parameters:
        keywords["ch"] = inputs
    return Row(routes, out, cls, repeats, keywords)


def parse_row(row: Any, cfg: Mapping, widths: list[int]) -> tuple[nn.Module, tuple[int, ...], int]:
    """One YAML row [from, repeats, block, args] -> (module, absolute sources, output width).

    Raises:
        ValueError: see read_row; arguments that the block refuses.
    """
    routes, out, cls, repeats, keywords = read_row(row, cfg, widths)
    try:
        layers = [cls(**keywords)]
        for _ in range(repeats - 1):  # a stacked layer feeds the next one
            layers.append(cls(**(keywords | {"c1": out} if "c1" in keywords else keywords)))
    except TypeError as error:
        raise ValueError(f"{row[2]}: {error}") from error
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers), routes, out


def resolve_args(args: list, cfg: Mapping) -> tuple[list, dict]:
    """Replace the words nc, anchors, None; split off a trailing mapping of keyword arguments.

    Raises:
        ValueError: another word.
    """
    args, keywords = list(args), {}
    if args and isinstance(args[-1], Mapping):
        keywords = dict(args.pop())
    words = {"nc": cfg["nc"], "anchors": cfg.get("anchors"), "None": None}
    literals = ("nearest", "bilinear", "bicubic", "area")  # modes of nn.Upsample
    for i, arg in enumerate(args):
        if isinstance(arg, str) and arg not in literals:
            if arg not in words:
                raise ValueError(f"unknown word {arg!r}, expected one of: {', '.join([*words, *literals])}")
            args[i] = words[arg]
    return args, keywords


def parse_activation(text: str) -> nn.Module:
    """'nn.LeakyReLU(0.1)' -> the module. Only names in ACTIVATIONS, only literal positional arguments."""
    match = re.fullmatch(r"\s*(nn\.\w+)\((.*)\)\s*", str(text))
    if not match or match[1] not in ACTIVATIONS:
        raise ValueError(
            f"activation {text!r}, expected one of {', '.join(ACTIVATIONS)} with its arguments, as nn.SiLU()"
        )
    try:
        return ACTIVATIONS[match[1]](*ast.literal_eval(f"({match[2]},)" if match[2].strip() else "()"))
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"activation {text!r}: arguments must be plain numbers ({error})") from error


def parse_model(cfg: Mapping, where: str = "model") -> tuple[nn.Sequential, list[tuple[int, ...]]]:
    """Build the rows of `backbone` and `head` -> (layers, for each the indices of the rows it reads; -1 is the image).

    Args:
        cfg: nc, anchors, depth_multiple, width_multiple, optional ch, activation and norm_eps, backbone, head.
        where: names the source in errors.

    Raises:
        ValueError: `where`, the row's number and what was expected.
    """
    widths, layers, routes = [3], [], []
    rows = [*cfg["backbone"], *cfg["head"]]
    for i, row in enumerate(rows):
        try:
            layer, sources, width = parse_row(row, cfg, widths)
            if isinstance(layer, Head) and i + 1 < len(rows):
                raise ValueError(f"{type(layer).__name__} must be the last row")
        except ValueError as error:
            raise ValueError(f"{where}: row {i}: {error}") from error
        layers.append(layer)
        routes.append(sources)
        widths.append(width)
    model = nn.Sequential(*layers)
    if cfg.get("activation"):
        try:
            act = parse_activation(cfg["activation"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        for module in model.modules():
            if isinstance(module, common.Conv) and isinstance(module.act, nn.SiLU):
                module.act = deepcopy(act)
    return model, routes


def read_model_yaml(cfg: str | Path | Mapping, nc: int | None = None) -> tuple[dict, str]:
    """(model mapping with `nc` put in, name for messages) from a path, a name in models/, or a mapping.

    Raises:
        FileNotFoundError, ValueError: no such file; keys missing or of the wrong type.
    """
    if isinstance(cfg, Mapping):
        data, where = dict(cfg), str(cfg.get("name", "model"))
    else:
        path = find(str(cfg), "models")
        data, where = read_yaml(path), path.name
    data = deepcopy(data) if nc is None else deepcopy(data) | {"nc": nc}
    for key in ("nc", "backbone", "head"):
        if key not in data:
            raise ValueError(f"{where}: key '{key}' is missing, expected nc, anchors, backbone, head")
    for key in ("backbone", "head"):
        if not isinstance(data[key], list):
            raise ValueError(f"{where}: {key} is {data[key]!r}, expected a list of rows")
    for key in ("depth_multiple", "width_multiple", "norm_eps"):
        value = data.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{where}: {key} is {value!r}, expected a positive number")
    if data.get("letterbox", "center") not in POSITIONS:
        raise ValueError(f"{where}: letterbox is {data['letterbox']!r}, expected one of {', '.join(POSITIONS)}")
    if data.get("ch", 3) != 3:
        raise ValueError(f"{where}: ch is {data['ch']!r:.20}, expected 3: every image is read as RGB, gray ones too")
    if isinstance(data["nc"], bool) or not isinstance(data["nc"], int) or data["nc"] < 1:
        raise ValueError(f"{where}: nc is {data['nc']!r}, expected an int of at least 1")
    return data, where


class DetectionModel(nn.Module):
    """A detector built from YAML rows; train mode returns raw maps, eval mode decoded rows first (see Head).

    Attributes:
        stride: (levels,) pixels per cell.
        grid: the least number that both sides of an input must be multiples of.
        names: class index -> name.
        letterbox: where an image lies on its canvas, one of utils.images.POSITIONS.
        yaml: the mapping it was built from; with the state dict it rebuilds the model.
    """

    model: nn.Sequential

    def __init__(self, cfg: str | Path | Mapping = "yolov5-mobilevit.yaml", nc: int | None = None):
        super().__init__()
        self.yaml, self.where = read_model_yaml(cfg, nc)
        self.model, self.routes = parse_model(self.yaml, self.where)
        if not isinstance(self.head, Head):
            raise ValueError(f"{self.where}: the last row must be Detect or another head")
        self.save = {s for i, sources in enumerate(self.routes) for s in sources if s != i - 1 and s >= 0}
        self.nc: int = self.yaml["nc"]
        self.names: dict[int, str] = {i: str(i) for i in range(self.nc)}
        self.letterbox: str = self.yaml.get("letterbox", "center")
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = self.yaml.get("norm_eps", NORM_EPS), NORM_MOMENTUM
        self.grid = 1
        self.grid, strides = self.measure()
        self.head.stride.copy_(torch.tensor(strides))
        self.head.prior_bias()

    @property
    def head(self) -> Head:
        return cast(Head, self.model[-1])

    @property
    def stride(self) -> Tensor:
        return self.head.stride

    def forward(self, x: Tensor) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """(B, 3, H, W) in 0..1, H and W multiples of `grid` -> see Head.forward.

        Raises:
            ValueError: a side that is not a multiple of `grid`.
        """
        h, w = x.shape[-2:]
        if h % self.grid or w % self.grid:
            fits = [(side // self.grid * self.grid or self.grid, -(-side // self.grid) * self.grid) for side in (h, w)]
            raise ValueError(
                f"{self.where}: an input of {h}x{w} does not fit, both sides must be multiples of {self.grid}: "
                f"height {fits[0][0]} or {fits[0][1]}, width {fits[1][0]} or {fits[1][1]}"
            )
        kept: dict[int, Any] = {-1: x}
        last: Any = x
        for i, (layer, sources) in enumerate(zip(self.model, self.routes, strict=True)):
            inputs = [last if s == i - 1 else kept[s] for s in sources]
            last = layer(inputs if hasattr(layer, "joins") else inputs[0])
            if i in self.save:
                kept[i] = last
        return last

    def measure(self) -> tuple[int, list[float]]:
        """(grid, stride of each level), from one pass over a shape-only image that is large enough for every layer."""
        dividing: list[Any] = [m for m in self.modules() if hasattr(m, "divides")]
        probe = 128 * math.lcm(*[side for m in dividing for side in m.divides])
        multiples: list[int] = []
        strides: list[float] = []

        def record(module: Any, inputs: tuple) -> None:
            if module is self.head:
                strides.extend(probe / level.shape[-2] for level in inputs[0])
            else:
                stride = probe // inputs[0].shape[-2]
                multiples.extend(stride * side for side in module.divides)

        hooks = [m.register_forward_pre_hook(record) for m in [*dividing, self.head]]
        self.forward_shapes(probe)
        for hook in hooks:
            hook.remove()
        return math.lcm(*multiples, *[math.ceil(s) for s in strides]), strides

    def forward_shapes(self, imgsz: int) -> None:
        """A forward pass in eval mode on shapes alone (meta tensors): no arithmetic is done, nothing is changed."""
        state = {name: t.to("meta") for name, t in [*self.named_parameters(), *self.named_buffers()]}
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        functional_call(self, state, (torch.empty(1, 3, imgsz, imgsz, device="meta"),))
        for module, training in modes:
            module.training = training

    def gflops(self, imgsz: int = 640) -> float:
        """Billions of multiplications and additions of one forward pass at (imgsz, imgsz), attention included."""
        attentions = [m for m in self.modules() if isinstance(m, common.Attention)]
        before = [m.fused for m in attentions]
        for m in attentions:
            m.fused = False  # the counter counts matmuls, but not fused attention
        with FlopCounterMode(display=False) as counter:
            self.forward_shapes(imgsz)
        for m, fused in zip(attentions, before, strict=True):
            m.fused = fused
        return counter.get_total_flops() / 1e9

    def fuse(self) -> DetectionModel:
        """Fold every batch norm into its convolution, in place, and go to eval mode; returns self."""
        self.eval()
        for module in self.modules():
            if isinstance(module, common.Conv):
                module.fold_norm()
        return self

    def summary(self, imgsz: int = 640) -> str:
        """A table of the rows as they are built (from, repeats, parameters, block, arguments) and a line of totals."""
        rows, widths = [*self.yaml["backbone"], *self.yaml["head"]], [3]
        lines = [f"{'row':>4} {'from':>16} {'n':>3} {'params':>10}  {'block':<16} arguments"]
        for i, (layer, row) in enumerate(zip(self.model, rows, strict=True)):
            parameters, built = sum(p.numel() for p in layer.parameters()), read_row(row, self.yaml, widths)
            repeats, arguments = built.text()
            lines.append(f"{i:>4} {row[0]!s:>16} {repeats:>3} {parameters:>10,}  {row[2]:<16} {arguments}")
            widths.append(built.width)
        total = sum(p.numel() for p in self.parameters())
        lines.append(
            f"{self.where}: {len(rows)} rows, {total:,} parameters, {self.gflops(imgsz):.1f} GFLOPs at {imgsz}, "
            f"stride {[int(s) for s in self.stride]}, grid {self.grid}"
        )
        return "\n".join(lines)


def main() -> None:
    """Print the summary of each model YAML named on the command line (default: yolov5-mobilevit.yaml)."""
    import argparse

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument(
        "cfg", nargs="*", default=["yolov5-mobilevit.yaml"], help="model YAMLs: paths, or names in models/"
    )
    parser.add_argument("--imgsz", type=int, default=640, help="image size for which GFLOPs are counted, pixels")
    args = parser.parse_args()
    for cfg in args.cfg:
        print(DetectionModel(cfg).summary(args.imgsz))


if __name__ == "__main__":
    main()
