"""Configuration: a script's flags are the fields of one frozen dataclass; hyperparameters are another."""

from __future__ import annotations

import argparse
import logging
import math
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import yaml

REPO = Path(__file__).resolve().parents[1]
T = TypeVar("T")


def flag(default: Any, help: str, *aliases: str, choices: Sequence[str] | None = None, bare: Any = None) -> Any:
    """A dataclass field that is also a command-line flag; `aliases` are further spellings such as '--img'.

    With `bare` the flag's value may be left out on the command line and is `bare` then.
    """
    return field(default=default, metadata={"help": help, "aliases": aliases, "choices": choices, "bare": bare})


def argument(help: str) -> Any:
    """A dataclass field without a default that is a word of the command line, not a flag."""
    return field(metadata={"help": help, "positional": True})


def parse_cli(cls: type[T], argv: Sequence[str] | None = None) -> T:
    """An instance of the dataclass `cls` from command-line words (default: sys.argv); exits with 2 on bad ones.

    A flag may be written with underscores, or cut short while it stays unambiguous: --conf_thres, --conf.
    """
    parser = argparse.ArgumentParser(description=cls.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    hints = typing.get_type_hints(cls)
    for f in fields(cls):  # type: ignore[arg-type]
        if f.metadata.get("positional"):
            parser.add_argument(f.name, type=hints[f.name], help=f.metadata["help"])
            continue
        spelling = "--" + f.name.replace("_", "-")
        names = dict.fromkeys([spelling, *f.metadata["aliases"]])
        options: dict[str, Any] = {"dest": f.name, "default": f.default, "help": f.metadata["help"]}
        kinds = [k for k in typing.get_args(hints[f.name]) if k is not type(None)]
        kind = hints[f.name]
        if isinstance(kind, types.UnionType):  # "int | None" is parsed as an int, "str | tuple[str, ...]" as a tuple
            kind = kinds[-1]
        if kind is bool:
            options["action"] = argparse.BooleanOptionalAction if f.default in (True, None) else "store_true"
        elif typing.get_origin(kind) is tuple:
            options |= {"type": typing.get_args(kind)[0], "nargs": "+"}
        else:
            options |= {"type": kind, "choices": f.metadata["choices"]}
            if f.metadata["bare"] is not None:
                options |= {"nargs": "?", "const": f.metadata["bare"]}
        parser.add_argument(*names, **options)
    words = sys.argv[1:] if argv is None else argv
    values = vars(parser.parse_args([dashed(word) for word in words]))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def dashed(word: str) -> str:
    """'--conf_thres=0.1' -> '--conf-thres=0.1'; words that are no flags stay as they are."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def run_script(main: Callable[[T], Any], cls: type[T]) -> None:
    """Parse the command line into `cls` and call `main`; what a user can cause ends as one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    cfg = parse_cli(cls)
    try:
        main(cfg)
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def find(name: str, folder: str = "") -> Path:
    """The file `name`: as given, below the repository, below its `folder` (as 'models' or 'data/hyps').

    Raises:
        FileNotFoundError: lists the places tried.
    """
    tries = [Path(name), REPO / name, REPO / folder / name]
    for path in tries:
        if path.is_file():
            return path
    raise FileNotFoundError(f"'{name}' not found, tried: {', '.join(str(p) for p in dict.fromkeys(tries))}")


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, found {type(data).__name__}")
    return data


# Hyp keys that go from 0 to 1, and those that something is divided by.
SHARES = {"momentum", "warmup_momentum", "ema_decay", "norm_momentum", "hsv_h", "hsv_s", "hsv_v", "translate"}
SHARES |= {"scale", "flipud", "fliplr", "mosaic", "mixup", "copy_paste"}
DIVISORS = {"ema_ramp", "nominal_batch", "anchor_t"}


@dataclass(frozen=True)
class Hyp:
    """Hyperparameters under YOLOv5's names; the defaults are those of `hyp.scratch-low.yaml`."""

    lr0: float = 0.01  # learning rate after warm-up (SGD 1e-2, Adam 1e-3)
    lrf: float = 0.01  # the last learning rate is lr0 * lrf
    momentum: float = 0.937  # SGD momentum, Adam beta1
    weight_decay: float = 0.0005
    warmup_epochs: float = 3.0
    warmup_min_steps: int = 100  # warm-up lasts at least this many batches
    warmup_momentum: float = 0.8
    warmup_bias_lr: float = 0.1  # biases start here and come down
    ema_decay: float = 0.9999  # of the averaged weights at every update, once it has risen
    ema_ramp: float = 2000.0  # updates in which it rises to 63 % of that
    nominal_batch: int = 64  # gradients are accumulated up to about this many images
    norm_momentum: float = 0.03  # share of each batch in the running statistics of batch norms
    box: float = 0.05  # box loss gain, for 3 levels
    cls: float = 0.5  # class loss gain, for 80 classes and 3 levels
    cls_pw: float = 1.0  # weight of positives in the class loss
    obj: float = 1.0  # objectness loss gain, for 640 px and 3 levels
    obj_pw: float = 1.0  # weight of positives in the objectness loss
    iou_t: float = 0.20  # read for compatibility; nothing uses it
    anchor_t: float = 4.0  # a box matches an anchor when no side differs by more than this factor
    fl_gamma: float = 0.0  # focal loss gamma; 0 is plain BCE
    hsv_h: float = 0.015  # hue, fraction of the circle
    hsv_s: float = 0.7  # saturation, fraction
    hsv_v: float = 0.4  # value, fraction
    degrees: float = 0.0  # rotation, +/- degrees
    translate: float = 0.1  # shift, +/- fraction of the side
    scale: float = 0.5  # zoom, 1 +/- fraction
    shear: float = 0.0  # +/- degrees
    perspective: float = 0.0  # +/- fraction, at most 0.001
    flipud: float = 0.0  # probability
    fliplr: float = 0.5  # probability
    mosaic: float = 1.0  # probability
    mixup: float = 0.0  # probability, of mosaics
    copy_paste: float = 0.0  # probability that a box is pasted once more, mirrored

    def __post_init__(self) -> None:
        """Raise ValueError for a value that is not a number or out of range."""
        for key, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ValueError(f"{key} is {value!r}, expected a number")
            high = 1 if key in SHARES else math.inf
            above = key in DIVISORS
            if not (math.isfinite(value) and 0 <= value <= high) or (above and not value):
                expected = "0 to 1" if high == 1 else "more than 0" if above else "0 or more"
                raise ValueError(f"{key} is {value}, expected {expected}")

    @classmethod
    def from_yaml(cls, path: str | Path) -> Hyp:
        """Read a hyp YAML; keys left out keep their defaults.

        Raises:
            ValueError: an unknown key, a value that is not a number or out of range, with the file's name.
        """
        values, known = read_yaml(path), {f.name for f in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"{path}: unknown key(s) {', '.join(unknown)}, expected: {', '.join(sorted(known))}")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def as_dict(self) -> dict[str, float]:
        return asdict(self)
