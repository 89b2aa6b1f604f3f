"""What a network may cost: limits of the numbers in its rows, and its parameters and work before it is allocated."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.attention import Attention
from utils.text import clean

LOGGER = logging.getLogger(__name__)
SIDE = 640  # pixels: costs are those of one image of this size, or of the grid where that is larger


@dataclass(frozen=True)
class Range:
    """The numbers that an argument of a block may have, and why no others."""

    low: float
    high: float
    reason: str


# The yardstick is yolov5x: 86.7 million parameters, 103 billion multiply-adds and maps of 0.4 billion numbers at 640
# pixels, 1,280 channels, kernels up to 13, 25 rows. Ten times that is allowed.
CHANNELS = Range(1, 16_384, "channels, 1,280 in yolov5x")
KERNEL = Range(1, 129, "pixels of a kernel, 13 in yolov5x")
STRIDE = Range(1, 32, "pixels of a stride, 2 in yolov5x")
PADDING = Range(-128, 128, "pixels of padding, half of the largest kernel")
FACTOR = Range(0, 16, "times as many channels, 6 in MobileNet")
ARGUMENTS: dict[str, Range] = {  # by the name of the parameter in a block's __init__
    **dict.fromkeys(("c1", "c2", "ch", "hidden", "dim", "mlp_dim", "width", "g"), CHANNELS),
    **dict.fromkeys(("k", "kernel_size"), KERNEL),
    **dict.fromkeys(("start", "middle", "fusion_kernel"), Range(0, 129, KERNEL.reason)),
    **dict.fromkeys(("s", "stride"), STRIDE),
    **dict.fromkeys(("p", "padding"), PADDING),
    **dict.fromkeys(("e", "expansion"), FACTOR),
    **dict.fromkeys(("d", "dilation"), Range(1, 64, "pixels between the points of a kernel, 1 in yolov5x")),
    "scale_factor": Range(0, 16, "times as large, 2 in yolov5x"),
    "size": Range(1, 4_096, "pixels of a map, 160 in yolov5x"),
    "patch_size": Range(0, 32, "pixels of a patch, 2 in MobileViT"),
    "depth": Range(0, 64, "transformer layers, 4 in MobileViT"),
    "heads": Range(0, 128, "heads, 4 in MobileViT"),
    "head_dim": Range(1, 1_024, "channels of a head, 8 in MobileViT"),
    "gain": Range(1, 16, "pixels that become channels, 2 in YOLOv5"),
    "dimension": Range(-4, 3, "of the four dimensions of a map"),
    "n": Range(1, 200, "repeats, 12 in yolov5x"),
    "nc": Range(1, 50_000, "classes, 80 in COCO, 22,000 in ImageNet"),
    "anchors": Range(-1e6, 1e6, "pixels of an anchor, 373 at most in yolov5x"),
    "reg_max": Range(-1, 256, "bins, 16 in YOLOv8"),
    "enlarge": Range(-1, 1_000, "strides"),
    "depth_multiple": Range(0, 16, "times as many repeats, 1.33 in yolov5x"),
    "width_multiple": Range(0, 16, "times as many channels, 1.25 in yolov5x"),
    "norm_eps": Range(0, 1, "added to a variance, 0.001 in yolov5x"),
}
ANY = Range(-1e6, 1e6, "of an argument")
MAX_ROWS = 400  # 25 in yolov5x, 40 with a level more
MAX_LAYERS = 1_000  # repeats, transformer layers and pools of all rows; 87 in yolov5x
MAX_INPUTS = 64  # maps that one row joins, and pools or numbers in one argument; 4 in YOLOv5
MAX_GRID = 1_024  # pixels: the smallest image; 64 in yolov5x6
MAX_PARAMETERS = 900_000_000
MAX_WORK = 1_100_000_000_000  # multiply-adds of one image
FREE_WORK = 150_000_000_000  # a little more than yolox-x; beyond it each parameter may do MAX_REUSE of it
MAX_REUSE = 12_000  # multiply-adds for each parameter, 1,200 in yolov5n to yolov5x
MAX_PAIRS = 250_000_000_000  # multiply-adds of attention, 3 billion in yolov5-mobilevit
MAX_MAP = 100_000_000  # numbers in one map, 8 million in yolov5x
MAX_MAPS = 6_000_000_000  # numbers in all maps of an image, 0.6 billion in yolox-x


def check_arguments(block: str, values: Mapping[str, Any]) -> None:
    """Raise ValueError where a number among the arguments of a block is out of its range; names both."""
    for name, value in values.items():
        check_number(f"{block}: {name}", value, ARGUMENTS.get(name, ANY), 2)


def check_number(what: str, value: Any, allowed: Range, levels: int = 0) -> None:
    """Raise ValueError unless every number in `value` is within a range; words, booleans and None are left to others.

    Args:
        levels: lists in lists that are looked into.
    """
    if isinstance(value, list | tuple) and levels:
        if len(value) > MAX_INPUTS:
            raise ValueError(f"{what} has {len(value):,} entries, expected at most {MAX_INPUTS}")
        for item in value:
            check_number(what, item, allowed, levels - 1)
    elif isinstance(value, Mapping | list | tuple):
        raise ValueError(f"{what} is a {type(value).__name__}, expected a number")
    elif isinstance(value, int | float) and not isinstance(value, bool) and not allowed.low <= value <= allowed.high:
        low, high = f"{allowed.low:,.0f}", f"{allowed.high:,.0f}"
        raise ValueError(f"{what} is {clean(repr(value), 40)}, expected {low} to {high} ({allowed.reason})")


@dataclass
class Cost:
    """The cost of one image.

    Attributes:
        work: multiply-adds that grow with the area. pairs: those of attention, which grow with its square.
        largest: numbers in the largest map. maps: in all of them.
    """

    parameters: int = 0
    work: float = 0
    pairs: float = 0
    largest: float = 0
    maps: float = 0

    def scaled(self, ratio: float) -> Cost:
        """The cost of an image whose area is `ratio` times as large."""
        return Cost(self.parameters, self.work * ratio, self.pairs * ratio**2, self.largest * ratio, self.maps * ratio)

    def check(self, where: str) -> None:
        """Raise ValueError where it is above a limit, or more than this machine has memory for."""
        most = max(FREE_WORK, min(MAX_WORK, MAX_REUSE * self.parameters))
        for value, highest, what in (
            (self.parameters, MAX_PARAMETERS, "parameters"),
            (self.pairs, MAX_PAIRS, "multiply-adds of attention for an image"),
            (self.work, most, f"multiply-adds for an image, with {self.parameters:,} parameters"),
            (self.largest, MAX_MAP, "numbers in one map"),
            (self.maps, MAX_MAPS, "numbers in the maps of an image"),
        ):
            if value > highest:
                raise ValueError(
                    f"{where}: the rows build a network of {value:,.0f} {what}, expected at most {highest:,.0f}"
                )
        needed, free = 4 * (self.parameters + 4 * self.largest), free_memory()
        if free is not None and needed > free:
            raise ValueError(
                f"{where}: the rows build a network that needs {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free"
            )


def free_memory() -> int | None:
    """Bytes of memory that a process can still get; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def measure_cost(layers: nn.Module, run: Callable[[], object]) -> Cost:
    """The cost of `run()`, which passes an image of shape only through `layers`."""
    cost = Cost(sum(p.numel() for p in layers.parameters()))

    def record(module: nn.Module, inputs: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output
        if isinstance(found, list):  # the raw maps of a head, which are decoded to as many numbers
            size = sum(level.numel() for level in found)
        elif isinstance(found, Tensor):
            size = found.numel()
        else:
            return
        cost.largest, cost.maps = max(cost.largest, size), cost.maps + size
        if isinstance(module, nn.Conv2d):
            cost.work += module.weight.numel() // module.out_channels * size
        elif isinstance(module, nn.Linear):
            cost.work += module.in_features * size
        elif isinstance(module, nn.MaxPool2d):
            sides = module.kernel_size if isinstance(module.kernel_size, tuple) else (module.kernel_size,) * 2
            cost.work += math.prod(sides) * size
        elif isinstance(module, nn.MultiheadAttention):  # tokens (N, B, C)
            cost.pairs += 2 * size * found.shape[0]
            cost.work += 4 * size * found.shape[2]
        elif isinstance(module, Attention):  # tokens (B, N, C)
            tokens = inputs[0].shape
            cost.pairs += 2 * tokens[0] * tokens[1] ** 2 * module.heads * module.head_dim
        else:
            cost.work += size

    hooks = [m.register_forward_hook(record) for m in layers.modules()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return cost
