"""Configuration: frozen dataclasses whose fields are the flags of a script, with help text and allowed range."""

from __future__ import annotations

import argparse
import io
import logging
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from utils.text import clean, visible

T = TypeVar("T")
MAX_ERROR = 380  # characters of an error that a script prints


@dataclass(frozen=True)
class Bounds:
    """The numbers allowed for a setting: from `low` to `high`, more than `above`, less than `below`; `also` others."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    also: tuple[float, ...] = ()

    def allow(self, value: float) -> bool:
        """Whether `value` is allowed; NaN and infinity never are."""
        inside = self.low <= value <= self.high and self.above < value < self.below
        return value in self.also or (inside and math.isfinite(value))

    def __str__(self) -> str:
        words = {"at least": self.low, "more than": self.above, "at most": self.high, "below": self.below}
        text = ", ".join(f"{word} {value:g}" for word, value in words.items() if math.isfinite(value))
        return " or ".join([text or "a finite number", *(f"{value:g}" for value in self.also)])

    def check(self, value: Any, what: str) -> None:
        """Raise a ValueError that starts with `what` unless `value` is a number within the bounds."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.allow(value):
            raise ValueError(f"{what} {value}: expected {self}")


AT_LEAST_0, AT_LEAST_1 = Bounds(low=0), Bounds(low=1)
ZERO_TO_ONE = Bounds(low=0, high=1)


def flag(
    default: Any,
    help: str,
    *aliases: str,
    choices: Sequence[str] | None = None,
    bare: Any = None,
    bounds: Bounds | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag; `aliases` are further spellings such as '--img'.

    Args:
        bare: value of the flag when it is given without one; None: a value is required.
        bounds: allowed numbers, also of each item of a tuple.
    """
    about = {"help": help, "aliases": aliases, "choices": choices, "bare": bare, "bounds": bounds}
    return field(default=default, metadata=about)


def known_fields(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The items of `values` whose keys are fields of the dataclass `cls`: a file may be of another version."""
    return {f.name: values[f.name] for f in fields(cls) if f.name in values}


def argument(help: str) -> Any:
    """A required dataclass field that is a positional argument of the command line."""
    return field(metadata={"help": help, "positional": True})


@dataclass(frozen=True)
class Config:
    """The base class of every script's flags; creating one checks the range of each value.

    Raises:
        ValueError: names the flag, its value and what was expected.
    """

    def __post_init__(self) -> None:
        for f in fields(self):
            value, bounds, choices = getattr(self, f.name), f.metadata.get("bounds"), f.metadata.get("choices")
            if isinstance(bounds, Bounds) and value is not None:
                for number in value if isinstance(value, tuple) else (value,):
                    bounds.check(number, spelling(f.name))
            if choices and value not in (*choices, f.default):
                raise ValueError(f"{spelling(f.name)} {value}: expected one of {', '.join(filter(None, choices))}")


def spelling(name: str) -> str:
    """The flag of a field: 'conf_thres' -> '--conf-thres'."""
    return "--" + name.replace("_", "-")


def parse_cli(cls: type[T], argv: Sequence[str] | None = None) -> T:
    """An instance of the dataclass `cls` from command-line arguments (default: sys.argv); exits with 2 on invalid ones.

    A flag may be written with underscores, or abbreviated as long as it is unambiguous: --conf_thres, --conf.

    Raises:
        ValueError: a value out of range, see Config.
    """
    parser = argparse.ArgumentParser(description=cls.__doc__)
    hints = typing.get_type_hints(cls)
    for f in fields(cls):  # type: ignore[arg-type]
        if f.metadata.get("positional"):
            parser.add_argument(f.name, type=hints[f.name], help=f.metadata["help"])
            continue
        names = dict.fromkeys([spelling(f.name), *f.metadata["aliases"]])
        shown = "" if f.default is False or f.default in ("", (), None) else f" (default: {f.default})"
        options: dict[str, Any] = {"dest": f.name, "default": f.default, "help": f.metadata["help"] + shown}
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
    """'--conf_thres=0.1' -> '--conf-thres=0.1'; a word that is not a flag is unchanged."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else word


def printable(text: str) -> str:
    """Text with bytes of file names that are not UTF-8 as escapes, so that they stay recognizable."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class CleanFormatter(logging.Formatter):
    """Log records without control characters but line ends and tabs: names of files and classes may hold escapes."""

    def format(self, record: logging.LogRecord) -> str:
        text = printable(super().format(record))
        if text.isascii() and text.isprintable():
            return text
        return "".join(character if character in "\n\t" or visible(character) else " " for character in text)


def run_script(main: Callable[[T], object], cls: type[T]) -> None:
    """Parse the command line into `cls` and call `main`; an error that a user can cause is one line, exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # names that the terminal's encoding lacks are printed with escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(CleanFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    try:
        main(parse_cli(cls))
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        print(f"error: {clean(printable(str(error)), MAX_ERROR)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
