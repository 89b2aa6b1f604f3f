"""Configuration: frozen dataclasses whose fields are the flags of a script, with help text and allowed range."""

from __future__ import annotations

import argparse
import difflib
import inspect
import io
import logging
import math
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NoReturn, TypeVar

from utils.allocator import keep_freed_memory
from utils.commands import program
from utils.interrupts import Terminated, interruptible, quit_on_interrupt
from utils.text import ErrorList, clean, visible

T = TypeVar("T")
WIDEST = 110  # columns of the help
EXAMPLE = "\n\nExample: "  # in the docstring of a Config, before the words of a command line
MAX_ERROR = 380  # characters of an error that a script prints


@dataclass(frozen=True)
class Bounds:
    """The numbers allowed for a setting: from `low` to `high`, more than `above`, less than `below`.

    `also` others, and words in place of a number.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    also: tuple[float | str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The words that are allowed in place of a number."""
        return tuple(value for value in self.also if isinstance(value, str))

    def allow(self, value: float) -> bool:
        """Whether a number is allowed; NaN and infinity never are."""
        inside = self.low <= value <= self.high and self.above < value < self.below
        return value in self.also or (inside and math.isfinite(value))

    def __str__(self) -> str:
        words = {"at least": self.low, "more than": self.above, "at most": self.high, "below": self.below}
        text = ", ".join(f"{word} {value:g}" for word, value in words.items() if math.isfinite(value))
        return " or ".join([text or "a finite number", *(v if isinstance(v, str) else f"{v:g}" for v in self.also)])

    def check(self, value: Any, what: str) -> None:
        """Raise a ValueError that starts with `what` unless `value` is an allowed number or word."""
        if isinstance(value, str) and value in self.words:
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not self.allow(value):
            raise ValueError(f"{what} {value}: expected {self}")


AT_LEAST_0, AT_LEAST_1 = Bounds(low=0), Bounds(low=1)
ZERO_TO_ONE = Bounds(low=0, high=1)
ZERO_TO_ONE_OR_AUTO = Bounds(low=0, high=1, also=("auto",))


def flag(
    default: Any,
    help: str,
    *aliases: str,
    choices: Sequence[str] | None = None,
    bare: Any = None,
    bounds: Bounds | None = None,
    group: str = "",
    shown: str | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag; `aliases` are further spellings such as '--img'.

    Args:
        bare: value of the flag when it is given without one; None: a value is required.
        bounds: allowed numbers, also of each item of a tuple.
        group: heading in the help, for this flag and the following ones up to the next group.
        shown: the default in words, for the help; None: the value, if it says something.
    """
    about = {"help": help, "aliases": aliases, "choices": choices, "bare": bare, "bounds": bounds}
    return field(default=default, metadata=about | {"group": group, "shown": shown})


def known_fields(cls: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """The items of `values` whose keys are fields of the dataclass `cls`: a file may be of another version."""
    return {f.name: values[f.name] for f in fields(cls) if f.name in values}


def argument(help: str) -> Any:
    """A required dataclass field that is a positional argument of the command line."""
    return field(metadata={"help": help, "positional": True})


@dataclass(frozen=True)
class Config:
    """The base class of every script's flags; creating one checks the range of each value.

    Attributes:
        script: the module that reads the flags, for --help; empty: that of the class.

    Raises:
        ValueError: names the flag, its value and what was expected.
    """

    script: ClassVar[str] = ""

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
    parser = build_parser(cls)
    words = sys.argv[1:] if argv is None else argv
    values = vars(parser.parse_args([dashed(word) for word in words]))
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def build_parser(cls: type) -> argparse.ArgumentParser:
    """The parser of the flags of the dataclass `cls`; its help has them in groups, and the docstring's example last."""
    about, _, example = inspect.cleandoc(cls.__doc__ or "").partition(EXAMPLE)
    name = program(getattr(cls, "script", "") or cls.__module__)
    positional = "".join(f" {f.name.upper()}" for f in fields(cls) if f.metadata.get("positional"))
    parser = Parser(
        name,
        usage=f"{name}{positional} [flags]",
        description=about,
        epilog=f"example:\n  {name} {example}" if example else None,
        formatter_class=HelpText,
    )
    hints, groups = typing.get_type_hints(cls), dict[str, Any]()
    group: Any = parser
    for f in fields(cls):
        if f.metadata.get("positional"):
            several = typing.get_origin(hints[f.name]) is tuple
            parser.add_argument(
                f.name,
                type=typing.get_args(hints[f.name])[0] if several else hints[f.name],
                nargs="+" if several else None,
                help=f.metadata["help"],
                metavar=f.name.upper(),
            )
            continue
        if title := f.metadata["group"]:
            group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        names = dict.fromkeys([spelling(f.name), *f.metadata["aliases"]])
        group.add_argument(*names, dest=f.name, help=help_text(f), **flag_options(f.name, hints[f.name], f))
    parser.set_defaults(**{f.name: f.default for f in fields(cls) if not f.metadata.get("positional")})
    return parser


def flag_options(name: str, kind: Any, f: Any) -> dict[str, Any]:
    """How argparse reads the flag of a field: its type, the number of its words, the words that are allowed."""
    if isinstance(kind, types.UnionType):  # "int | None" is parsed as an int, "str | tuple[str, ...]" as a tuple
        kind = [k for k in typing.get_args(kind) if k is not type(None)][-1]
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction if f.default in (True, None) else "store_true"}
    several = typing.get_origin(kind) is tuple
    kind = typing.get_args(kind)[0] if several else kind
    bounds = f.metadata["bounds"]
    choices, bare = f.metadata["choices"], f.metadata["bare"]
    word = {int: "N", float: "X"}.get(kind, name.rpartition("_")[2].upper())
    options = {
        "type": number_or_word(kind, bounds.words) if bounds and bounds.words else kind,
        "choices": choices,
        "metavar": f"{{{','.join(filter(None, choices))}}}" if choices else word,
    }
    if several:
        options["nargs"] = "+"
    elif bare is not None:
        options |= {"nargs": "?", "const": bare}
    return options


def number_or_word(kind: Callable[[str], float], words: Sequence[str]) -> Callable[[str], float | str]:
    """A reader of a number of that kind, or of one of the words."""

    def read(text: str) -> float | str:
        if text in words:
            return text
        try:
            return kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}': expected a number or {' or '.join(words)}") from None

    return read


def help_text(f: Any) -> str:
    """The help of a field with its default, which is marked where the help explains it: '0: off, the default'."""
    help, shown = f.metadata["help"], f.metadata["shown"]
    text = default_text(f.default) if shown is None else shown
    explained = re.search(rf"(?<![\w.-]){re.escape(text)}: [^;()]*", help) if text else None
    if explained:
        return f"{help[: explained.end()]}, the default{help[explained.end() :]}"
    return f"{help} (default: {text})" if text else help


def default_text(value: Any) -> str:
    """A default as a person writes it; empty if it is nothing: False, '', () or None."""
    if isinstance(value, tuple):
        return " ".join(map(default_text, value))
    if isinstance(value, bool) or value is None:
        return "on" if value else ""
    return f"{value:g}" if isinstance(value, float) else str(value)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the flag that was probably meant."""

    def error(self, message: str) -> NoReturn:
        known = [name for action in self._actions for name in action.option_strings]
        words = [word.partition("=")[0] for word in message.split() if word.startswith("--")]
        unknown = words[0] if message.startswith("unrecognized") and words else ""
        close = difflib.get_close_matches(unknown, known, 1) if unknown else []
        meant = f" (did you mean {close[0]}?)" if close else ""
        print(f"error: {message.removeprefix('argument ')}{meant}; {self.prog} --help lists the flags", file=sys.stderr)
        sys.exit(2)


class HelpText(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, in which a flag with several spellings has its value once."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=min(shutil.get_terminal_size().columns - 2, WIDEST))

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Lines of a help text, broken at spaces only: a flag or 'built-in' stays whole."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        word = "" if action.nargs == 0 else str(action.metavar)
        word = {"+": f"{word} ...", "?": f"[{word}]"}.get(str(action.nargs), word)
        return f"{', '.join(action.option_strings)} {word}".rstrip()


def check_cli(cls: type) -> None:
    """Answer --help and mistakes on the command line of `cls`; else return. Ctrl-C later is one line, too.

    Scripts call it before the imports that take seconds; `run_script` follows when they are done.
    """
    with one_line_errors():
        parse_cli(cls)
    quit_on_interrupt()


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


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Exit with 2 and one line for an error that a user can cause, with 130 for an interruption."""
    for stream in (sys.stdout, sys.stderr):  # names that the terminal's encoding lacks are printed with escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with interruptible():
        try:
            yield
        except (ValueError, OSError, ImportError, FloatingPointError) as error:
            lines = error.lines if isinstance(error, ErrorList) else [str(error)]
            for number, line in enumerate(lines):
                print(("  " if number else "error: ") + clean(printable(line), MAX_ERROR), file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            print("interrupted", file=sys.stderr)
            sys.exit(143 if isinstance(stop, Terminated) else 130)


def run_script(main: Callable[[T], object], cls: type[T]) -> None:
    """Parse the command line into `cls` and call `main`; an error that a user can cause is one line, exit code 2."""
    with one_line_errors():
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(CleanFormatter("%(message)s"))
        logging.basicConfig(level=logging.INFO, handlers=[handler])
        cfg = parse_cli(cls)
        keep_freed_memory()
        main(cfg)
