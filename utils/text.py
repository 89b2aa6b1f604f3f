"""Text from files made safe to show: short, without control characters; counts and names in sentences; CSV cells."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

LENGTH = 200  # characters of one value in a message
SHOWN = 3  # names in a message
NAME = 90  # characters of a name in a list of names
# Cc: newlines, escapes of a terminal; Cf: marks that reverse the reading direction; Cs: halves of characters;
# Zl, Zp: line breaks of Unicode. Joiners of emoji and of some scripts are Cf too, but change nothing around them.
CONTROL = {"Cc", "Cf", "Cs", "Zl", "Zp"}
JOINERS = {"\u200c", "\u200d"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a cell that starts so is computed by spreadsheets


class ErrorList(ValueError):
    """Several mistakes at once: a line that counts them, and a line for each.

    Attributes:
        lines: the first line, and the others indented.
    """

    def __init__(self, title: str, lines: Sequence[str]):
        self.lines = [f"{title}:", *(f"  {line}" for line in lines)]
        super().__init__("\n".join(self.lines))


def clean(value: object, length: int = LENGTH) -> str:
    """A value that came from a file, for a message: one line, no control characters, at most `length` characters.

    The value is only turned into text, so huge lists must be cut before.
    """
    text = value if isinstance(value, str) else str(value)
    cut = text[: 4 * length]  # enough to find `length` characters, however long the text is
    line = " ".join("".join(character if visible(character) else " " for character in cut).split())
    return line if len(line) <= length and len(cut) == len(text) else f"{line[: length - 3]}..."


def visible(character: str) -> bool:
    """Whether a character is shown as it is: no control character and no mark that changes the text around it."""
    if character.isascii():
        return character.isprintable()
    return character in JOINERS or unicodedata.category(character) not in CONTROL


def cell(value: str) -> str:
    """Text for a CSV cell: a formula is preceded by an apostrophe, so that no spreadsheet computes it."""
    return f"'{value}" if value.startswith(FORMULA) else value


def counted(count: int, one: str, many: str = "") -> str:
    """`count` things in words: '1 image', '3 images'."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def first(names: Sequence[object], shown: int = SHOWN) -> str:
    """The first names of a list, and ', ...' if there are more; of a long one the end is kept."""
    lines = [clean(name, 4096) for name in names[:shown]]
    texts = [line if len(line) <= NAME else f"...{line[3 - NAME :]}" for line in lines]
    return ", ".join(texts) + (", ..." if len(names) > shown else "")
