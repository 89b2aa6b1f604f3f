"""Findings of the doctor: what was found, how bad it is, what to do, and examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

MAX_EXAMPLES = 6  # of a finding, on the page
ERROR, WARNING, NOTE = "error", "warning", "note"
LEVELS = {ERROR: "Training would be wrong", WARNING: "Warnings", NOTE: "Notes"}  # in this order on the page


@dataclass(frozen=True)
class Example:
    """One place where a finding shows.

    Attributes:
        text: a line. images: the files to show, one or two. marked: (k, 4) xyxy in pixels of the first one.
    """

    text: str
    images: tuple[Path, ...] = ()
    marked: np.ndarray | None = None


@dataclass(frozen=True)
class Finding:
    """The result of a check that found something.

    Attributes:
        check: its name. level: a key of LEVELS. text: a sentence with the count. advice: what to do.
        count: of images, boxes or files. examples: the first few.
    """

    check: str
    level: str
    text: str
    advice: str
    count: int
    examples: tuple[Example, ...] = ()


def finding(
    check: str, level: str, text: str, advice: str, examples: Iterable[Example] = (), count: int | None = None
) -> Finding:
    """A finding with the first of `examples`; without `count` it is the number of all of them."""
    kept = list(islice(examples, MAX_EXAMPLES)) if count is not None else list(examples)
    return Finding(check, level, text, advice, len(kept) if count is None else count, tuple(kept[:MAX_EXAMPLES]))


def share(part: int, whole: int) -> str:
    """'12.5 %'."""
    return f"{100 * part / max(whole, 1):.1f} %"


def listed(words: Sequence[str], shown: int = 10) -> str:
    """'a, b, c and 4 more'."""
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more
