"""The rows of a large JSON file one after another, in the memory of one row."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from utils.reading import PIECE, check_file
from utils.text import clean

MAX_ROW = 64 << 20  # characters of one row, or of a value beside the lists; a segmented image has some 100,000
SPACE = re.compile(r"[ \t\r\n]*")


class TwiceGiven(dict[str, Any]):
    """A mapping in which a key is given twice, `key`."""

    key = ""


def json_rows(path: Path, lists: Collection[str]) -> Iterator[tuple[str, Any]]:
    """(key, row) for each row of the outer lists named in `lists`, and (key, value) for every other outer value.

    Each list is announced by (key, None), also if it is empty.

    Raises:
        OSError, ValueError: not a file; not JSON; not a mapping; a list that is none; a key twice; a row too long.
    """
    check_file(path, "COCO file")
    text = _Text(path)
    try:
        yield from _rows(text, path, lists)
    except json.JSONDecodeError as error:
        line = text.line + text.buffer.count("\n", 0, min(error.pos, len(text.buffer)))
        raise ValueError(f"{path}: not JSON: line {line}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError(f"{path}: not JSON: near line {text.line}: lists or mappings in too many levels") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not JSON: near line {text.line}: not UTF-8 text ({error.reason})") from error
    finally:
        text.close()


def _rows(text: _Text, path: Path, lists: Collection[str]) -> Iterator[tuple[str, Any]]:
    seen = set[str]()
    if text.peek() != "{":
        found = type(text.value()).__name__
        raise ValueError(f"{path}: not a COCO annotation file: a {found}, expected a mapping")
    text.take("{")
    while text.peek() != "}":
        if seen:
            text.take(",")
        key = text.value() if text.peek() == '"' else text.fail("Expecting property name enclosed in double quotes")
        if key in seen:
            raise ValueError(f"{path}: not a COCO annotation file: the key '{clean(key, 60)}' is given twice")
        seen.add(key)
        text.take(":")
        if key not in lists:
            yield key, text.value()
            continue
        if text.peek() != "[":
            text.value()
            raise ValueError(f"{path}: not a COCO annotation file: {key} is not a list of mappings")
        yield key, None
        text.take("[")
        first = True
        while text.peek() != "]":
            if not first:
                text.take(",")
            first, row = False, text.value()
            if not isinstance(row, dict):
                raise ValueError(f"{path}: not a COCO annotation file: {key} is not a list of mappings")
            yield key, row
        text.take("]")
    text.take("}")
    if text.peek():
        text.fail("Extra data")


class _Text:
    """The text of a JSON file, read in pieces; `buffer[at:]` is what is not used yet, `line` that of its start."""

    def __init__(self, path: Path):
        self.path, self.file = path, path.open("rb")
        self.decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self.json = json.JSONDecoder(object_pairs_hook=_mapping)
        self.buffer, self.at, self.line, self.ended = "", 0, 1, False

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def fill(self, size: int = PIECE) -> None:
        """Forget what is used, and read `size` bytes more."""
        data = self.file.read(size)
        self.ended = not data
        self.line += self.buffer.count("\n", 0, self.at)
        self.buffer = self.buffer[self.at :] + self.decoder.decode(data, self.ended)
        self.at = 0

    def peek(self) -> str:
        """The next character that is no white space; '' at the end."""
        while True:
            match = SPACE.match(self.buffer, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.buffer) or self.ended:
                return self.buffer[self.at : self.at + 1]
            self.fill()

    def take(self, character: str) -> None:
        """Step over a character; raises JSONDecodeError if another one is there."""
        if self.peek() != character:
            self.fail(f"Expecting '{character}'")
        self.at += 1

    def value(self) -> Any:
        """The next value, read on until it is complete."""
        self.peek()
        while True:
            try:
                value, end = self.json.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError:
                if self.ended:
                    raise
            except ValueError as error:  # thousands of digits
                self.fail(f"a number of too many digits ({clean(error, 90)})")
            else:
                if end < len(self.buffer) or self.ended:  # else a number may go on
                    self.at = end
                    return value
            if len(self.buffer) - self.at > MAX_ROW:
                self.fail(f"not JSON, or a value of more than {MAX_ROW >> 20} million characters")
            self.fill(max(PIECE, len(self.buffer) - self.at))

    def fail(self, message: str) -> Any:
        """Raise JSONDecodeError at this place."""
        raise json.JSONDecodeError(message, self.buffer, self.at)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) == len(pairs):
        return content
    twice, seen = TwiceGiven(content), set[str]()
    twice.key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
    return twice
