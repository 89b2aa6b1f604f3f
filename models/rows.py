"""Rows of a model YAML: checked against the limits of `models.cost`, then built into modules."""

from __future__ import annotations

import ast
import inspect
import math
import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from torch import nn

from models import common
from models.cost import ARGUMENTS, CHANNELS, MAX_INPUTS, MAX_LAYERS, MAX_ROWS, check_arguments, check_number
from models.heads import Head
from utils.text import clean, counted

Blocks = Mapping[str, type[nn.Module]]
ACTIVATIONS = {
    f"nn.{cls.__name__}": cls for cls in (nn.SiLU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Hardswish, nn.Mish, nn.GELU)
}


def make_divisible(width: float, divisor: int = 8) -> int:
    """`width` rounded up to a multiple of `divisor`."""
    return math.ceil(width / divisor) * divisor


@dataclass(frozen=True)
class Row:
    """A checked row of a model YAML.

    Attributes:
        keywords: arguments of the block's `__init__`. repeats: modules one after another; a block with a parameter `n`
            repeats inside. routes: indices of the rows that it reads, -1 is the image. width: channels of its output.
    """

    block: type[nn.Module]
    keywords: dict[str, Any]
    repeats: int
    routes: tuple[int, ...]
    width: int

    @property
    def layers(self) -> int:
        """How many layers it builds: repeats, transformer layers, pools."""
        pools = self.keywords.get("k", 1)
        inside = [self.keywords.get("n", 1), self.keywords.get("depth", 1)]
        inside.append(len(pools) if isinstance(pools, list | tuple) else 1)
        return self.repeats * math.prod(n for n in inside if type(n) is int)

    def text(self) -> tuple[str, str]:
        """The number of repeats, inside the block or of it, and the arguments, for a table."""
        n = self.keywords.get("n", self.repeats)
        return str(n), ", ".join(str(value) for name, value in self.keywords.items() if name != "n")

    def build(self) -> nn.Module:
        """Its modules.

        Raises:
            ValueError: the block does not take these arguments.
        """
        cls = self.block
        try:
            keywords = grouped(cls, self.keywords)
            layers = [cls(**keywords)]
            for _ in range(self.repeats - 1):  # a stacked layer feeds the next one
                layers.append(cls(**(keywords | {"c1": self.width} if "c1" in keywords else keywords)))
        except (TypeError, RuntimeError, OverflowError, ZeroDivisionError, IndexError, AttributeError) as error:
            raise ValueError(f"{self.block.__name__}: {clean(error)}") from error
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


def parse_row(row: Any, cfg: Mapping, widths: list[int], blocks: Blocks) -> Row:
    """One YAML row [from, repeats, block, args], checked.

    Args:
        cfg: the whole model mapping (nc, anchors, multiples). widths: input channels, then the output of each row.
        blocks: name -> class of each block that a row may name.

    Raises:
        ValueError: what is wrong with the row, without its place.
    """
    if not isinstance(row, list) or len(row) != 4 or not isinstance(row[3], list):
        raise ValueError(f"{shown(row)}, expected [from, repeats, block, [args]]")
    source, repeats, name, args = row
    if not isinstance(name, str) or name not in blocks:
        raise ValueError(f"unknown block {shown(name, 40)}, expected one of: {', '.join(sorted(blocks))}")
    if type(repeats) is not int or repeats < 1:
        raise ValueError(f"repeats is {shown(repeats)}, expected an int of at least 1")
    check_number("repeats", repeats, ARGUMENTS["n"])
    routes = parse_routes(source, len(widths) - 1)
    inputs = [widths[s + 1] for s in routes]

    cls = blocks[name]
    if len(inputs) > 1 and not hasattr(cls, "joins"):
        raise ValueError(f"{name} takes one input, not {len(inputs)}")
    parameters = inspect.signature(cls).parameters
    accepted = accepted_arguments(cls)
    args, keywords = resolve_args(args, cfg)
    own = [p for p in accepted if p != "c1"]
    check_arguments(name, dict(zip(own, args, strict=False)) | keywords)
    out = inputs[0]
    if "c2" in accepted:
        if not args or type(args[0]) is not int or args[0] < 1:
            raise ValueError(f"the first argument of {name} must be its width, an int of at least 1")
        out = make_divisible(args[0] * cfg.get("width_multiple", 1.0))
        args = [inputs[0], out, *args[1:]]
    elif hasattr(cls, "out_channels"):
        out = out_channels(cls, inputs, args)
    check_number(f"{name}: its output", out, CHANNELS)
    if len(args) > len(accepted):
        raise ValueError(
            f"{name} takes {', '.join(accepted)}: {counted(len(args) - len(accepted), 'argument')} too many"
        )
    keywords = dict(zip(accepted, args, strict=False)) | keywords

    if repeats > 1:
        repeats = max(round(repeats * cfg.get("depth_multiple", 1.0)), 1)
    check_number("repeats times depth_multiple", repeats, ARGUMENTS["n"])
    if "n" in parameters:
        keywords["n"], repeats = repeats, 1
    if "ch" in parameters:
        keywords["ch"] = inputs
    return Row(cls, keywords, repeats, routes, out)


def settings_of(cls: type[nn.Module]) -> dict[str, type]:
    """The parameters of a block whose default is a dataclass, with its class: a row gives its fields as keywords."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: type(p.default) for p in parameters if is_dataclass(p.default)}


def grouped(cls: type[nn.Module], keywords: dict[str, Any]) -> dict[str, Any]:
    """Keywords of a row as a block takes them: those that are fields of a parameter in settings_of in one object.

    Raises:
        TypeError: the parameter itself is given.
    """
    for name, settings in settings_of(cls).items():
        if name in keywords:
            raise TypeError(f"{name} is no argument of a row, expected: {', '.join(f.name for f in fields(settings))}")
        own = {f.name: keywords[f.name] for f in fields(settings) if f.name in keywords}
        keywords = {key: value for key, value in keywords.items() if key not in own} | {name: settings(**own)}
    return keywords


def accepted_arguments(cls: type[nn.Module]) -> list[str]:
    """The names of the arguments that a row can give to a block, in order."""
    settings, names = settings_of(cls), list[str]()
    for name in inspect.signature(cls).parameters:
        names += [f.name for f in fields(settings[name])] if name in settings else [name]
    return [name for name in names if name not in ("n", "ch")]


def parse_routes(source: Any, here: int) -> tuple[int, ...]:
    """The 'from' of row `here` as absolute indices of rows; -1 is the image.

    Raises:
        ValueError: not a row before this one, or too many.
    """
    sources = source if isinstance(source, list) else [source]
    if not sources or len(sources) > MAX_INPUTS or any(type(s) is not int for s in sources):
        raise ValueError(f"'from' is {shown(source)}, expected an int or a list of at most {MAX_INPUTS}")
    routes = tuple(s if s >= 0 else here + s for s in sources)
    if any(not -1 <= s < here for s in routes):
        raise ValueError(f"'from' is {shown(source)}, expected rows before this one")
    return routes


def out_channels(cls: Any, inputs: list[int], args: list) -> int:
    """The channels that a block without `c2` puts out.

    Raises:
        ValueError: arguments that it does not take.
    """
    try:
        return cls.out_channels(inputs if len(inputs) > 1 else inputs[0], *args)
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"{cls.__name__}: {clean(error)}") from error


def shown(value: Any, length: int = 80) -> str:
    """A value of a YAML for a message; it is small, see plain_data, but its text may be long."""
    return clean(repr(value), length)


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
                raise ValueError(f"unknown word {shown(arg)}, expected one of: {', '.join([*words, *literals])}")
            args[i] = words[arg]
    return args, keywords


def parse_activation(text: str) -> nn.Module:
    """'nn.LeakyReLU(0.1)' -> the module. Only names in ACTIVATIONS, only literal positional arguments."""
    match = re.fullmatch(r"\s*(nn\.\w{1,20})\(([\w\s.,+'-]{,60})\)\s*", str(text)[:200])
    if not match or match[1] not in ACTIVATIONS:
        raise ValueError(
            f"activation {shown(text)}, expected one of {', '.join(ACTIVATIONS)} with its arguments, as nn.SiLU()"
        )
    try:
        return ACTIVATIONS[match[1]](*ast.literal_eval(f"({match[2]},)" if match[2].strip() else "()"))
    except (SyntaxError, ValueError, TypeError) as error:
        raise ValueError(f"activation {shown(text)}: arguments must be plain numbers ({clean(error)})") from error


def parse_rows(cfg: Mapping, where: str, blocks: Blocks) -> list[Row]:
    """The rows of `backbone` and `head`, checked; nothing is built.

    Raises:
        ValueError: `where`, the row's number and what was expected; more layers than a network may have.
    """
    widths, rows = [3], []
    given = [*cfg["backbone"], *cfg["head"]]
    if len(given) > MAX_ROWS:
        raise ValueError(f"{where}: {len(given):,} rows, expected at most {MAX_ROWS}")
    for i, entry in enumerate(given):
        try:
            row = parse_row(entry, cfg, widths, blocks)
            if issubclass(row.block, Head) and i + 1 < len(given):
                raise ValueError(f"{row.block.__name__} must be the last row")
        except ValueError as error:
            raise ValueError(f"{where}: row {i}: {error}") from error
        rows.append(row)
        widths.append(row.width)
    layers = sum(row.layers for row in rows)
    if layers > MAX_LAYERS:
        raise ValueError(f"{where}: its rows build {layers:,} layers, expected at most {MAX_LAYERS:,}")
    return rows


def build_rows(rows: list[Row], cfg: Mapping, where: str) -> nn.Sequential:
    """The modules of checked rows, with the activation that `cfg` names.

    Raises:
        ValueError: `where`, the row's number and what a block does not take.
    """
    layers = []
    for i, row in enumerate(rows):
        try:
            layers.append(row.build())
        except ValueError as error:
            raise ValueError(f"{where}: row {i}: {error}") from error
    model = nn.Sequential(*layers)
    if cfg.get("activation"):
        try:
            act = parse_activation(cfg["activation"])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        for module in model.modules():
            if isinstance(module, common.Conv) and isinstance(module.act, nn.SiLU):
                module.act = deepcopy(act)
    return model
