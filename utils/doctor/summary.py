"""The numbers of a data set for the page: images, boxes, classes and sizes of each split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from utils.doctor.box_checks import class_counts
from utils.doctor.survey import SplitSurvey, Survey
from utils.text import counted

BOUNDS = (0, 2, 8, 16, 32, 96, np.inf)  # of the shorter side at the input size, pixels


@dataclass(frozen=True)
class ClassRow:
    """A class, its boxes in each split, and its share of all boxes, 0..1."""

    name: str
    counts: list[int]
    share: float


@dataclass(frozen=True)
class SizeRow:
    """A range of the shorter sides of boxes, the boxes in it in each split, and their share of all, 0..1."""

    name: str
    counts: list[int]
    share: float


@dataclass(frozen=True)
class Summary:
    """The numbers of a data set; lists have an entry for each split.

    Attributes:
        facts: name -> text for each split. classes: by index. sizes: from small to large.
    """

    splits: list[str]
    facts: dict[str, list[str]]
    classes: list[ClassRow]
    sizes: list[SizeRow]


def summarize(found: Survey, names: Mapping[int, str], imgsz: int) -> Summary:
    """The numbers of the images and boxes that training would use."""
    columns = [split_facts(split) for split in found.values()]
    facts = {name: [column[name] for column in columns] for name in columns[0]}
    counts = np.array([class_counts(split, len(names)) for split in found.values()])
    classes = [ClassRow(names[c], counts[:, c].tolist(), part(counts[:, c], counts)) for c in range(len(names))]
    boxes = [split.columns() for split in found.values()]
    sizes = np.array([np.histogram(b.short_sides(imgsz)[~b.crowd], BOUNDS)[0] for b in boxes])
    labels = [f"{low:g} to {high:g} px" for low, high in pairwise(BOUNDS[1:-1])]
    labels = [f"under {BOUNDS[1]} px", *labels, f"{BOUNDS[-2]} px and more"]
    rows = [SizeRow(text, sizes[:, i].tolist(), part(sizes[:, i], sizes)) for i, text in enumerate(labels)]
    return Summary(list(found), facts, classes, rows)


def part(counts: np.ndarray, of: np.ndarray) -> float:
    """The share of `counts` in all counts, 0..1."""
    return float(counts.sum() / max(of.sum(), 1))


def split_facts(split: SplitSurvey) -> dict[str, str]:
    """Names and values of what is counted in a split."""
    usable, boxes = split.usable, split.columns()
    counts = np.bincount(boxes.row[~boxes.crowd], minlength=len(usable))
    sizes = Counter(record.size for record in usable)
    (h, w), most = sizes.most_common(1)[0] if sizes else ((0, 0), 0)
    more = f" ({most:,}), {counted(len(sizes) - 1, 'other size')}" if len(sizes) > 1 else ""
    return {
        "images": f"{len(usable):,}",
        "left out": f"{len(split.records) - len(usable):,}",
        "background": f"{int((counts == 0).sum()):,}",
        "boxes": f"{int(counts.sum()):,}",
        "crowd boxes": f"{int(boxes.crowd.sum()):,}",
        "boxes per image": f"{counts.mean():.1f}, at most {counts.max()}" if len(usable) else "-",
        "image size": f"{w} x {h}{more}" if usable else "-",
    }
