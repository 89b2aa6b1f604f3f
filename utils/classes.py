"""Class names: reading a list of them, and comparing those of a model with those of data."""

from __future__ import annotations

import logging
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from utils.text import clean

LOGGER = logging.getLogger(__name__)
SHOWN = 4  # names in a message
LETTERS = 24  # of a name in a message
MAX_DIGITS = 9  # of the number of a class
Agreement = Literal["equal", "reordered", "partial", "different"]


@dataclass(frozen=True)
class ClassMatch:
    """How the classes of a model and of data agree: by name, whatever their numbers.

    Attributes:
        model, data: class index -> name.
    """

    model: Mapping[int, str]
    data: Mapping[int, str]

    @cached_property
    def index(self) -> dict[int, int]:
        """Class index in the data -> class index in the model, of each name that both have exactly once."""
        model, data = ({i: plain(name) for i, name in names.items()} for names in (self.model, self.data))
        if model == data:
            return {i: i for i in sorted(data)}
        once = [{name for name, count in Counter(names.values()).items() if count == 1} for names in (model, data)]
        place = {name: i for i, name in model.items() if name in once[0] & once[1]}
        return {i: place[data[i]] for i in sorted(data) if data[i] in place}

    @property
    def agreement(self) -> Agreement:
        """equal; reordered: the same names in another order; partial: some names are in both; different: none is."""
        if len(self.index) == len(self.data) == len(self.model):
            return "equal" if all(i == j for i, j in self.index.items()) else "reordered"
        return "partial" if self.index else "different"

    @property
    def order(self) -> tuple[int, ...]:
        """For each class of the data its index in the model, of equal and reordered classes."""
        return tuple(self.index.values())

    def difference(self, model: str, data: str) -> str:
        """Both lists in short, and names that only one has; `model` and `data` say whose they are."""
        unmatched = [name for i, name in self.data.items() if i not in self.index]
        unmatched += [name for i, name in self.model.items() if i not in self.index.values()]
        return (
            f"{model} has {len(self.model)} classes ({short(self.model.values())}), but {data} has {len(self.data)} "
            f"({short(self.data.values())}); not in both: {short(unmatched)}"
        )


def class_order(
    model_names: Mapping[int, str], data_names: Mapping[int, str], model: str, data: str, by_number: bool = False
) -> tuple[int, ...]:
    """For each class of the data the index of the class of the same name in the model; another order is logged.

    Args:
        model, data: whose the names are, for messages.
        by_number: where the counts agree and no name does, classes of the same number are the same, with a warning.

    Raises:
        ValueError: the names are not the same.
    """
    match = ClassMatch(model_names, data_names)
    if match.agreement in ("equal", "reordered"):
        if match.agreement == "reordered":
            LOGGER.info(f"{data} has the classes of {model} in another order: they are matched by name")
        return match.order
    if by_number and match.agreement == "different" and len(model_names) == len(data_names):
        names = f"{short(model_names.values())} in {model}, {short(data_names.values())} in {data}"
        LOGGER.warning(f"no class has the same name ({names}): classes are matched by number, which may be wrong")
        return tuple(range(len(data_names)))
    raise ValueError(f"{match.difference(model, data)}; expected the same names, in any order")


def plain(name: str) -> str:
    """A name for comparison: accents in one of the two ways in which Unicode writes them, no space around."""
    return unicodedata.normalize("NFC", name).strip()


def short(names: Iterable[str]) -> str:
    """The first names, for a message: 'cat, dog, cow, ant, and 76 more'."""
    words = [clean(name, LETTERS) for name in names]
    more = [f"and {len(words) - SHOWN} more"] if len(words) > SHOWN else []
    return ", ".join([*words[:SHOWN], *more]) or "none"


def shown(value: Any) -> str:
    """A value in a message; of lists and mappings only the kind and the length, they may be huge."""
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    if len(items) > SHOWN or not all(map(is_plain, items)):
        return f"a {type(value).__name__} of {len(value):,}"
    if not isinstance(value, list | tuple | dict) and not is_plain(value):
        return f"a {clean(type(value).__name__, 40)}"
    if type(value) is int and value.bit_length() > 64:
        return f"an integer of {value.bit_length():,} bits"
    return clean(value if isinstance(value, list | tuple | dict) else repr(value), 80)


def is_plain(value: Any) -> bool:
    """Whether a value is one word or number."""
    return value is None or isinstance(value, str | int | float)


def class_names(
    names: Any, where: str, lines: Mapping[tuple[str, ...], int] | None = None, strict: bool = True
) -> dict[int, str]:
    """Class index -> name, in order, from a list of names or from a mapping of indices in any order.

    Args:
        where: the file, for messages. lines: line of ("names", key), see load_yaml.
        strict: an empty name and two equal names are errors.

    Raises:
        ValueError: neither of the two; indices other than 0..n-1; an empty name; equal names.
    """
    lines = lines or {}

    def place(key: Any) -> str:
        line = lines.get(("names", str(key)), lines.get(("names",)))
        return f"{where}:{line}" if line else where

    if not isinstance(names, list | tuple | dict) or not names:
        raise ValueError(
            f"{place('')}: names is {shown(names)}, expected a list of class names or a mapping 0: name, 1: ..."
        )
    given = names if isinstance(names, dict) else dict(enumerate(names))
    found: dict[int, str] = {}
    for key, name in given.items():
        digits = isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= MAX_DIGITS
        index = int(key) if digits else key
        if type(index) is not int or not 0 <= index < len(given):
            raise ValueError(
                f"{place(key)}: names has {len(given)} entries and the key {shown(index)}, expected 0..{len(given) - 1}"
            )
        if index in found:
            raise ValueError(f"{place(key)}: names has the key {index} twice, expected 0..{len(given) - 1} once each")
        text = "" if isinstance(name, list | tuple | dict) else str(name).strip()
        if isinstance(name, list | tuple | dict) or (strict and (not text or name is None)):
            raise ValueError(f"{place(key)}: the name of class {index} is {shown(name)}, expected a word")
        found[index] = text
    earlier: dict[str, int] = {}
    for index in sorted(found):
        first = earlier.setdefault(plain(found[index]), index)
        if strict and first != index:
            both = clean(found[index], 40)
            raise ValueError(f"{place(index)}: classes {first} and {index} are both '{both}', expected different names")
    return {index: found[index] for index in sorted(found)}
