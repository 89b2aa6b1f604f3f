"""Plain data of files, checked against a table of limits before anything is built, copied, printed or hashed."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any

from utils.text import clean

if TYPE_CHECKING:  # importing torch takes a second, and --help reads files too
    from torch import Tensor

# name -> (highest value, what it is counted in, why that much). The yardstick is yolov5x, times ten.
LIMITS: dict[str, tuple[int, str, str]] = {
    "depth": (16, "levels of lists", "a YAML of rows has 5, the state of an optimizer 6"),
    "values": (200_000, "values, shared ones counted each time", "the state of a run of yolov5x has 15,000"),
    "characters": (4_000_000, "characters of all words", "names of 20,000 classes have 300,000"),
    "word": (10_000, "characters of one word", "a path has at most 4,096"),
    "key": (300, "characters of a key", "names of yolov5x's tensors have 40"),
    "bits": (128, "bits of an integer", "states of random generators are that long"),
    "tensors": (20_000, "tensors", "yolov5x has 1,000"),
    "index": (10**9, "of a number as a key", "classes and parameters are numbered from 0"),
    "json": (16_000_000, "characters of JSON", "the run's content of yolov5x has 20,000"),
}
Path = tuple[Any, ...]  # keys and places, outermost first


def limit(name: str) -> int:
    """The highest value of a limit."""
    return LIMITS[name][0]


def plain_data(value: Any, where: str, *, finite: bool = True, tensors: bool = False) -> Any:
    """A copy of words, numbers, lists, tuples and mappings that shares nothing with `value`.

    Args:
        where: the file, and what of it, for messages.
        finite: numbers are neither infinite nor NaN. tensors: they are plain data too, and are not copied.

    Raises:
        ValueError: something else, or more than the limits allow; names the place, the limit and the value.
    """
    check_size(value, where, set(), {}, ())
    return copy(value, where, finite, tensors, ())


def refusal(where: str, path: Path, found: str, expected: str) -> ValueError:
    """The error of one place in a file."""
    place = "".join(f"[{key}]" if type(key) is int else f".{clean(key, 40)}" for key in path[:4]).lstrip(".")
    place += "..." if len(path) > 4 else ""
    return ValueError(f"{where}: {clean(place, 120) or 'its content'} {found}, expected {expected}")


def over(where: str, path: Path, name: str, found: str) -> ValueError:
    """The error of a value above a limit."""
    highest, unit, why = LIMITS[name]
    return refusal(where, path, found, f"at most {highest:,} {unit} ({why})")


def check_size(
    value: Any, where: str, above: set[int], known: dict[int, tuple[int, int, int]], path: Path
) -> tuple[int, int, int]:
    """(values, characters, depth) of plain data, shared parts counted each time; no part is looked at twice.

    Raises:
        ValueError: above a limit, or a list that holds itself.
    """
    if type(value) is str:
        if len(value) > limit("word"):
            raise over(where, path, "word", f"has {len(value):,} characters")
        return 1, len(value), 0
    if type(value) not in (list, tuple, dict):
        return 1, 0, 0
    if id(value) in above:
        raise refusal(where, path, f"is a {type(value).__name__} that holds itself", "lists that end")
    if id(value) in known:
        return known[id(value)]
    if len(path) >= limit("depth"):
        raise over(where, path, "depth", f"is {len(path)} levels deep or deeper")
    above.add(id(value))
    values, characters, depth = 1, 0, 0
    for key, item in value.items() if type(value) is dict else enumerate(value):
        if type(value) is dict:
            check_key(key, where, path)
            characters += len(key) if type(key) is str else 0
        more, letters, below = check_size(item, where, above, known, (*path, key))
        values, characters, depth = values + more, characters + letters, max(depth, below + 1)
        if values > limit("values"):
            raise over(where, path, "values", f"has more than {limit('values'):,} values")
        if characters > limit("characters"):
            raise over(where, path, "characters", f"has more than {limit('characters'):,} characters")
        if len(path) + depth > limit("depth"):
            raise over(where, path, "depth", f"is {len(path) + depth} levels deep or deeper")
    above.discard(id(value))
    known[id(value)] = values, characters, depth
    return known[id(value)]


def check_key(key: Any, where: str, path: Path) -> None:
    """Raise ValueError unless a mapping's key is a word or a small number."""
    if type(key) is str:
        if len(key) > limit("key"):
            raise over(where, path, "key", f"has a key of {len(key):,} characters")
    elif type(key) is not int:
        raise refusal(where, path, f"has a key of type {type(key).__name__}", "words or small numbers as keys")
    elif not 0 <= key <= limit("index"):
        raise over(where, path, "index", "has a number as a key that is negative or too large")


def copy(value: Any, where: str, finite: bool, tensors: bool, path: Path) -> Any:
    """The copy that `plain_data` returns, of data that `check_size` let pass."""
    kind = type(value)
    if value is None or kind in (str, bool):
        return value
    if kind is int:
        if value.bit_length() > limit("bits"):
            raise over(where, path, "bits", f"is an integer of {value.bit_length():,} bits")
        return value
    if kind is float:
        if finite and not math.isfinite(value):
            raise refusal(where, path, f"is {value}", "a finite number")
        return value
    if kind is dict:
        return {key: copy(item, where, finite, tensors, (*path, key)) for key, item in value.items()}
    if kind in (list, tuple):
        return kind(copy(item, where, finite, tensors, (*path, i)) for i, item in enumerate(value))
    if tensors and is_tensor(value):
        return value
    words = "numbers, words, lists and mappings" + (" and tensors" if tensors else "")
    raise refusal(where, path, f"is a {clean(kind.__name__, 40)}", words)


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor; torch is not imported for it, since a script answers --help without torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def state_dict(value: Any, where: str, name: str) -> dict[str, Tensor]:
    """A checked mapping of names to tensors that do not repeat their bytes.

    Raises:
        ValueError: something else.
    """

    if type(value) is not dict:
        raise refusal(where, (name,), f"is a {type(value).__name__}", "a mapping of names to tensors")
    if len(value) > limit("tensors"):
        raise over(where, (name,), "tensors", f"has {len(value):,} tensors")
    for key, tensor in value.items():
        if type(key) is not str or len(key) > limit("key"):
            raise refusal(where, (name,), "has a key that is no word or a long one", "the names of tensors")
        if not is_tensor(tensor):
            raise refusal(where, (name, key), f"is a {clean(type(tensor).__name__, 40)}", "a tensor")
        if tensor.is_complex():
            raise refusal(where, (name, key), "holds complex numbers", "real ones")
        if any(step == 0 and side > 1 for side, step in zip(tensor.shape, tensor.stride(), strict=True)):
            raise refusal(where, (name, key), "repeats its bytes", "a tensor that is stored whole")
    return value


def load_json(text: str | bytes, where: str) -> Any:
    """The content of a JSON text.

    Raises:
        ValueError: not JSON, or too long, or with an integer of too many digits; without `where`.
    """
    if len(text) > limit("json"):
        raise over(where, (), "json", f"has {len(text):,} characters")
    try:
        return json.loads(text, parse_int=parse_int)
    except RecursionError:
        raise ValueError(f"{where}: lists in too many levels") from None
    except UnicodeDecodeError:
        raise ValueError(f"{where}: not UTF-8") from None


def parse_int(digits: str) -> int:
    """A whole number of JSON; raises ValueError for one of more digits than a limit allows."""
    if len(digits) > limit("bits") // 3:
        raise ValueError(f"an integer of {len(digits):,} digits, expected at most {limit('bits')} bits")
    return int(digits)
