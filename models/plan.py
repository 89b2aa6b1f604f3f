"""A network before its weights are allocated: built on shapes, and its cost within the limits of `models.cost`."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.cost import MAX_GRID, SIDE, Cost, measure_cost
from models.rows import Row, shown
from models.shapes import ShapeRules
from utils.text import clean


@dataclass(frozen=True)
class ModelPlan:
    """The rows of a network, parsed and built once on shapes, and what it costs.

    Attributes:
        yaml: the model mapping, checked. where: its name for messages.
        layers: its modules, without values. grid: see DetectionModel. strides: of each level.
        cost: of one image of cost.SIDE pixels, or of the grid where that is larger.
    """

    yaml: dict[str, Any]
    where: str
    rows: list[Row]
    layers: nn.Sequential
    grid: int
    strides: list[float]
    cost: Cost

    @property
    def routes(self) -> list[tuple[int, ...]]:
        return [row.routes for row in self.rows]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each tensor of the state dict."""
        return {f"model.{name}": tuple(t.shape) for name, t in self.layers.state_dict().items()}


def measure(layers: nn.Sequential, routes: list[tuple[int, ...]], where: str) -> tuple[int, list[float], Cost]:
    """(grid, stride of each level, cost) from one pass over a shape-only image that is large enough for every layer.

    Args:
        layers: on the device "meta", in eval mode.

    Raises:
        ValueError: a grid or a cost above the limits.
    """
    dividing: list[Any] = [m for m in layers.modules() if hasattr(m, "divides")]
    unit = math.lcm(*[side for m in dividing for side in m.divides])
    if unit > MAX_GRID:
        raise ValueError(f"{where}: its grid is {unit:,} pixels or more, expected at most {MAX_GRID:,}")
    probe = 128 * unit
    multiples: list[int] = []
    strides: list[float] = []

    def record(module: Any, inputs: tuple) -> None:
        if module is layers[-1]:
            strides.extend(probe / level.shape[-2] for level in inputs[0])
        else:
            stride = probe // inputs[0].shape[-2]
            multiples.extend(stride * side for side in module.divides)

    hooks = [m.register_forward_pre_hook(record) for m in [*dividing, layers[-1]]]
    layers[-1].training = True  # the head alone: its raw maps, whose decoding has no part in the cost
    with ShapeRules():
        cost = measure_cost(layers, lambda: run_rows(layers, routes, torch.empty(1, 3, probe, probe, device="meta")))
    layers[-1].training = False
    for hook in hooks:
        hook.remove()
    if not all(math.isfinite(s) and 0 < s <= MAX_GRID for s in strides):
        raise ValueError(f"{where}: strides {shown(strides)}, expected more than 0 and at most {MAX_GRID:,} pixels")
    grid = math.lcm(*multiples, *[math.ceil(s) for s in strides])
    if grid > MAX_GRID:
        raise ValueError(f"{where}: its grid is {clean(grid, 40)} pixels, expected at most {MAX_GRID:,}")
    cost = cost.scaled((max(SIDE, grid) / probe) ** 2)
    cost.check(where)
    return grid, strides, cost


def run_rows(
    layers: nn.Sequential,
    routes: list[tuple[int, ...]],
    x: Tensor,
    kept_rows: Collection[int] | None = None,
    least: float | None = None,
) -> Any:
    """The output of the last row for images (B, 3, H, W).

    Args:
        kept_rows: rows that others than the next one read; None: all are kept. least: of the head, see Head.forward.
    """
    kept: dict[int, Any] = {-1: x}
    last: Any = x
    for i, (layer, sources) in enumerate(zip(layers, routes, strict=True)):
        inputs = [last if s == i - 1 else kept[s] for s in sources]
        if least is not None and i == len(layers) - 1:
            return layer(inputs, least)
        last = layer(inputs if hasattr(layer, "joins") else inputs[0])
        if kept_rows is None or i in kept_rows:
            kept[i] = last
    return last
