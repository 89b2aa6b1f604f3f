"""The detection model: a YAML of rows becomes a network that ends in a detection head.

A new block: write the class in `models/common.py`, add its name to `BLOCKS`, name it in a YAML row.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

if __name__ == "__main__":  # run as a file: the project's root is not on the path yet
    sys.path.insert(0, str(Path(__file__).parents[1]))

from models import common
from models.cost import ARGUMENTS, check_number
from models.heads import HEADS, Head
from models.plan import ModelPlan, measure, run_rows
from models.rows import Row, build_rows, parse_rows, shown
from utils.config import one_line_errors
from utils.files import find, read_yaml
from utils.images import POSITIONS
from utils.plain_data import plain_data
from utils.text import clean

LOGGER = logging.getLogger(__name__)
# Of torch and of blocks, for rows that fit no network.
BUILD_ERRORS = (
    RuntimeError,
    OverflowError,
    TypeError,
    ZeroDivisionError,
    AssertionError,
    AttributeError,
    IndexError,
)
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


def read_model_yaml(cfg: str | Path | Mapping, nc: int | None = None) -> tuple[dict, str]:
    """(model mapping with `nc` put in, name for messages) from a path, a name in models/, or a mapping; a copy.

    Raises:
        FileNotFoundError, ValueError: no such file; keys missing or of the wrong type; more than plain_data allows.
    """
    if isinstance(cfg, Mapping):
        name = cfg.get("name", "model")
        data, where = dict(cfg), clean(name, 80) if isinstance(name, str) else "model"
    else:
        path = find(str(cfg), "models")
        data, where = read_yaml(path), clean(path.name, 80)
    data = plain_data(data if nc is None else data | {"nc": nc}, where)
    for key in ("nc", "backbone", "head"):
        if key not in data:
            raise ValueError(f"{where}: key '{key}' is missing, expected nc, anchors, backbone, head")
    for key in ("backbone", "head"):
        if not isinstance(data[key], list):
            raise ValueError(f"{where}: {key} is {shown(data[key])}, expected a list of rows")
    for key in ("depth_multiple", "width_multiple", "norm_eps"):
        value = data.get(key, 1.0)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise ValueError(f"{where}: {key} is {shown(value)}, expected a positive number")
        check_number(f"{where}: {key}", value, ARGUMENTS[key])
    if not isinstance(data.get("letterbox", "center"), str) or data.get("letterbox", "center") not in POSITIONS:
        raise ValueError(f"{where}: letterbox is {shown(data['letterbox'])}, expected one of {', '.join(POSITIONS)}")
    if data.get("ch", 3) != 3:
        raise ValueError(f"{where}: ch is {shown(data['ch'])}, expected 3: every image is read as RGB, gray ones too")
    if isinstance(data["nc"], bool) or not isinstance(data["nc"], int) or data["nc"] < 1:
        raise ValueError(f"{where}: nc is {shown(data['nc'])}, expected an int of at least 1")
    check_number(f"{where}: nc", data["nc"], ARGUMENTS["nc"])
    return data, where


def parse_model(cfg: Mapping, where: str = "model") -> tuple[list[Row], nn.Sequential]:
    """The rows of a model mapping, checked, and the modules that they build; a row may name what is in BLOCKS.

    Raises:
        ValueError: `where`, the row's number and what was expected.
    """
    rows = parse_rows(cfg, where, BLOCKS)
    return rows, build_rows(rows, cfg, where)


def plan_model(cfg: str | Path | Mapping, nc: int | None = None) -> ModelPlan:
    """The plan of a network from a path, a name in models/, or a mapping.

    Raises:
        FileNotFoundError, ValueError: no such file; rows that build no network, or one above the limits of models.cost.
    """
    yaml, where = read_model_yaml(cfg, nc)
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers without channels, which are refused below
            rows, layers = parse_model(yaml, where)
            layers = layers.to("meta").eval()
            if not len(layers) or not isinstance(layers[-1], Head):
                raise ValueError(f"{where}: the last row must be Detect or another head")
            empty = [name for name, t in layers.state_dict().items() if not t.numel()]
            if empty:
                raise ValueError(f"{where}: layer {clean(empty[0], 80)} has no channels, expected at least 1")
            grid, strides, cost = measure(layers, [row.routes for row in rows], where)
    except ValueError as error:
        raise ValueError(f"{where}: {clean(str(error).removeprefix(f'{where}: '), 280)}") from error
    except BUILD_ERRORS as error:
        raise ValueError(f"{where}: its rows cannot be built ({clean(str(error).partition(chr(10))[0])})") from error
    return ModelPlan(yaml, where, rows, layers, grid, strides, cost)


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

    def __init__(self, cfg: str | Path | Mapping | ModelPlan = "yolov5-mobilevit.yaml", nc: int | None = None):
        super().__init__()
        plan = cfg if isinstance(cfg, ModelPlan) else plan_model(cfg, nc)
        self.yaml, self.where, self.routes = deepcopy(plan.yaml), plan.where, plan.routes
        self.model = build_rows(plan.rows, plan.yaml, plan.where)
        self.save = {s for i, sources in enumerate(self.routes) for s in sources if s != i - 1 and s >= 0}
        self.nc: int = self.yaml["nc"]
        self.names: dict[int, str] = {i: str(i) for i in range(self.nc)}
        self.letterbox: str = self.yaml.get("letterbox", "center")
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps, module.momentum = self.yaml.get("norm_eps", NORM_EPS), NORM_MOMENTUM
        self.grid = plan.grid
        self.head.stride.copy_(torch.tensor(plan.strides))
        self.head.prior_bias()

    @property
    def head(self) -> Head:
        return cast(Head, self.model[-1])

    @property
    def stride(self) -> Tensor:
        return self.head.stride

    def forward(self, x: Tensor, least: float | None = None) -> list[Tensor] | tuple[Any, list[Tensor]]:
        """(B, 3, H, W) in 0..1, H and W multiples of `grid` -> see Head.forward, also for `least`.

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
        return run_rows(self.model, self.routes, x, self.save, least)

    def forward_above(self, images: Tensor, least: float) -> tuple[list[Tensor], list[Tensor]]:
        """See SparseModel; in eval mode."""
        return cast(tuple[list[Tensor], list[Tensor]], self(images, least))

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
        from torch.utils.flop_counter import FlopCounterMode  # slow to import, and only reports need it

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
        given = [*self.yaml["backbone"], *self.yaml["head"]]
        rows = parse_rows(self.yaml, self.where, BLOCKS)
        lines = [f"{'row':>4} {'from':>16} {'n':>3} {'params':>10}  {'block':<16} arguments"]
        for i, (layer, row, (source, _, block, _)) in enumerate(zip(self.model, rows, given, strict=True)):
            parameters, (repeats, arguments) = sum(p.numel() for p in layer.parameters()), row.text()
            lines.append(f"{i:>4} {source!s:>16} {repeats:>3} {parameters:>10,}  {block:<16} {arguments}")
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
    with one_line_errors():
        for cfg in args.cfg:
            print(DetectionModel(cfg).summary(args.imgsz))


if __name__ == "__main__":
    main()
