"""The page of the doctor, as text and as one HTML file with images."""

from __future__ import annotations

import base64
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from utils.doctor.examine import Diagnosis
from utils.doctor.findings import LEVELS, Example, Finding
from utils.doctor.summary import ClassRow, SizeRow
from utils.doctor.survey import ImageRecord
from utils.drawing import draw_boxes
from utils.files import write_atomic
from utils.images import imread
from utils.templates import render
from utils.text import counted

TEMPLATE = "doctor.html.j2"
MANY_CLASSES = 30  # from here on the text shows only the most frequent classes and the rarest
SHOWN = 3  # examples of a finding in the text
WIDTH = 120  # characters of a line
BAR = 20  # characters
THUMB = 360  # long side of an image on the page, pixels
FEW_LABELS = 12  # boxes of an image up to which their classes are written on it
SAMPLES = 6  # images of each split to look at
SEED = 0  # of their choice
MARK, MARK_EDGE = (255, 255, 255), (0, 0, 0)  # RGB of the frame around what a finding is about, and of its edges


def text_page(result: Diagnosis) -> str:
    """The page as text of at most about 120 columns, but for long paths."""
    summary = result.summary
    classes = counted(len(result.data.label_names), "class", "classes")
    lines = [f"{result.data.yaml}: {classes}, images scaled to {result.imgsz} px", ""]
    paths = f"Paths below are relative to {result.folder}"
    lines += table(["", *summary.splits], [[name, *values] for name, values in summary.facts.items()])
    lines += ["", *count_table("class (boxes)", summary.splits, summary.classes)]
    heading = f"shorter side at {result.imgsz} px"
    lines += ["", *count_table(heading, summary.splits, summary.sizes)]
    lines += ["", *(row for line in result.recipe for row in wrapped(line, "  "))] if result.recipe else []
    lines += ["", paths] if result.findings else []
    for level, title in LEVELS.items():
        findings = result.of_level(level)
        lines += ["", f"{title} ({len(findings)})"] if findings else []
        for found in findings:
            lines += finding_lines(result.shortened(found))
    return "\n".join(printable(line) for line in [*lines, "", result.verdict])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of aligned columns, the first one to the left."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return lines


def count_table(heading: str, splits: Sequence[str], rows: Sequence[ClassRow | SizeRow]) -> list[str]:
    """Lines with counts in each split, share and bar; of many classes only the most frequent and the rarest."""
    shown, between = list(rows), 0
    if len(rows) > MANY_CLASSES:
        ranked = sorted(rows, key=lambda row: -row.share)
        half = MANY_CLASSES // 2
        shown, between = [*ranked[:half], *ranked[-half:]], len(rows) - 2 * half
    largest = max((row.share for row in rows), default=1) or 1
    cells = []
    for row in shown:
        bar = "#" * round(BAR * row.share / largest)
        cells.append([printable(row.name), *(f"{n:,}" for n in row.counts), f"{row.share:.1%}", bar.ljust(BAR)])
    lines = table([heading, *splits, "share", ""], cells)
    if between:
        lines.insert(1 + MANY_CLASSES // 2, f"... {between} classes between these")
    return lines


def finding_lines(found: Finding) -> list[str]:
    """The lines of a finding: what, what to do, examples."""
    lines = wrapped(f"- {found.check}: {found.text}. {found.advice}", "  ")
    lines += [f"    {item.text}" for item in found.examples[:SHOWN]]
    more = found.count - SHOWN
    return [*lines, f"    ... and {more:,} more"] if more > 0 and len(found.examples) >= SHOWN else lines


def wrapped(text: str, indent: str) -> list[str]:
    """Lines of at most WIDTH characters, all but the first one indented; long paths are not cut."""
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def printable(text: str) -> str:
    """Text with control characters and bytes that are not UTF-8 as escapes, so that it is one line in any terminal."""
    plain = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in plain)


class Shown(NamedTuple):
    """An image on the page: a data URI, its size in pixels, and what it shows."""

    src: str
    width: int
    height: int
    alt: str


class Card(NamedTuple):
    """An example on the page: a line and its images."""

    text: str
    images: list[Shown]


def write_html(result: Diagnosis, path: Path) -> None:
    """Write the page as one HTML file; images and styles are embedded, nothing is loaded from elsewhere.

    Raises:
        OSError: it could not be written.
    """
    records = {record.path: record for split in result.survey.values() for record in split.records}
    names = result.data.label_names
    groups = [
        (
            level,
            title,
            [(found, cards(found, records, names)) for found in map(result.shortened, result.of_level(level))],
        )
        for level, title in LEVELS.items()
    ]
    page = render(
        Path(__file__).parent,
        TEMPLATE,
        yaml=result.data.yaml,
        imgsz=result.imgsz,
        folder=result.folder,
        healthy=result.healthy,
        verdict=result.verdict,
        summary=result.summary,
        groups=[group for group in groups if group[2]],
        samples=samples(result),
        recipe=result.recipe,
        printable=printable,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, page.encode("utf-8", "backslashreplace"))


def cards(found: Finding, records: Mapping[Path, ImageRecord], names: Mapping[int, str]) -> list[Card]:
    """The examples of a finding with their images; the first image of each is the one with the marked boxes."""
    out = []
    for item in found.examples:
        images = [
            small_image(records[image], names, item, k == 0) for k, image in enumerate(item.images) if image in records
        ]
        out.append(Card(printable(item.text), [image for image in images if image]))
    return out


def samples(result: Diagnosis) -> list[tuple[str, list[Card]]]:
    """Some images of each split with their labels, always the same ones."""
    found = []
    for split in result.survey.values():
        usable = split.usable
        chosen = np.random.default_rng(SEED).permutation(len(usable))[:SAMPLES]
        shown = [(usable[i], small_image(usable[i], result.data.label_names)) for i in sorted(chosen.tolist())]
        found.append((split.name, [Card(printable(record.path.name), [image]) for record, image in shown if image]))
    return [(name, own) for name, own in found if own]


def small_image(
    record: ImageRecord, names: Mapping[int, str], example: Example | None = None, mark: bool = False
) -> Shown | None:
    """An image with its labels, small, and with the marked boxes of an example; None if it cannot be read now."""
    try:
        image = imread(record.path)
    except (ValueError, OSError):
        return None
    h, w = image.shape[:2]
    scale = THUMB / max(h, w)
    size = max(round(w * scale), 1), max(round(h * scale), 1)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
    factor = np.array([size[0] / w, size[1] / h] * 2)
    boxes = record.boxes()
    image = draw_boxes(image, boxes.at(boxes.xyxy * factor), names, hide_labels=len(boxes) > FEW_LABELS, hide_conf=True)
    marked = example.marked if example is not None and mark else None
    for x1, y1, x2, y2 in (marked * factor).round().astype(int).tolist() if marked is not None else ():
        for color, width in ((MARK_EDGE, 6), (MARK, 3)):
            cv2.rectangle(image, (x1 - 4, y1 - 4), (x2 + 4, y2 + 4), color, width)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])
    source = f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"
    return Shown(source, *size, f"{printable(record.path.name)} with {len(boxes)} labels")
