"""Suspected label errors as findings of the doctor: from predictions, or from the suspects.csv of a run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.boxes import Boxes, Truth, areas
from utils.classes import ClassMatch
from utils.doctor.findings import WARNING, Example, Finding, finding
from utils.doctor.survey import ImageRecord
from utils.evaluate.suspects import LOWEST, MISSING, SHIFTED, SWAPPED, UNSUPPORTED, Suspect, find_suspects
from utils.reading import read_text
from utils.text import clean, counted

STRIKING = 0.5  # strength of a contradiction from which on it is a finding, however many there are
CHECKS = {  # kind -> name of the check, what it is, what is counted
    SWAPPED: ("class swaps", "with a confident prediction of another class instead", "label"),
    MISSING: ("missing labels", "that are confident and have no label nearby", "prediction"),
    SHIFTED: ("shifted boxes", "with a confident prediction of the class beside them", "label"),
    UNSUPPORTED: ("unsupported labels", "without a confident prediction nearby", "label"),
}
NEEDED = {
    "score",
    "strength",
    "kind",
    "image",
    "class",
    "found",
    *(f"{o}{c}" for o in ("", "found ") for c in ("x1", "y1", "x2", "y2")),
}


@dataclass(frozen=True)
class Striking:
    """A suspect that is a finding.

    Attributes:
        kind: a key of CHECKS. example: the line and the place, in an image of the data set.
    """

    kind: str
    example: Example


def suspects_of(
    records: Sequence[ImageRecord], found: Sequence[Boxes], names: Mapping[int, str], known: set[int]
) -> list[Striking]:
    """The suspects among the labels of `records`, the most suspicious first; see utils.evaluate.suspects.

    Args:
        found: predictions of each image with a confidence of at least LOWEST, by the classes of the data set.
        known: classes that the detector has; labels of others are not judged.
    """
    suspects = find_suspects(found, [truth_of(record) for record in records], names)
    judged = [s for s in suspects if (s.row < 0 or s.label in known) and s.strength >= STRIKING]
    return [Striking(s.kind, example(records[s.image].path, s, names)) for s in judged]


def truth_of(record: ImageRecord) -> Truth:
    """The labels of an image, crowds included."""
    boxes = record.boxes()
    return Truth(boxes.xyxy, boxes.label, boxes.score, record.labels.crowd, areas(boxes.xyxy))


def example(path: Path, suspect: Suspect, names: Mapping[int, str]) -> Example:
    """A suspect as a line with its box."""
    words = text_of(suspect.kind, names.get(suspect.label, ""), names.get(suspect.suggested, ""))
    return Example(f"{path}: {words}, suspicion {suspect.score:.2f}", (path,), suspect.xyxy[None])


def text_of(kind: str, label: str, found: str) -> str:
    """What is contradicted, by the names of the classes."""
    return {
        MISSING: f"{found}, but no label",
        UNSUPPORTED: f"{label}, but nothing sure was found near it",
        SHIFTED: f"{label}, found beside it",
    }.get(kind, f"labeled {label}, found {found}")


def read_suspects(path: Path, records: Sequence[ImageRecord]) -> list[Striking]:
    """The suspects in a suspects.csv that are about images of `records`, the most suspicious first.

    Raises:
        ValueError: not such a table; none of its images is among the records.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(path, "table of suspects"))))
    except csv.Error as error:
        raise ValueError(f"{path}: not a CSV table: {clean(error, 80)}") from error
    if not rows:
        return []
    if missing := NEEDED - set(rows[0]):
        raise ValueError(f"{path}: no column {min(missing)}, expected the suspects.csv that val.py or train.py wrote")
    by_path = {str(record.path.resolve()): record for record in records if record.usable}
    found, known = list[tuple[float, Striking]](), 0
    for number, row in enumerate(rows, start=2):
        try:
            record = by_path.get(str(Path(plain(row["image"])).resolve()))
            score, strength = float(row["score"]), float(row["strength"])
            prefix = "found " if row["kind"] == MISSING else ""
            box = np.array([[float(row[prefix + corner]) for corner in ("x1", "y1", "x2", "y2")]])
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path}:{number}: {clean(error, 80)}, expected numbers in score, strength, x1, y1, x2, y2"
            ) from error
        known += record is not None
        if record and row["kind"] in CHECKS and strength >= STRIKING and np.isfinite(box).all():
            words = text_of(row["kind"], clean(plain(row["class"]), 60), clean(plain(row["found"]), 60))
            line = Example(f"{record.path}: {words}, suspicion {score:.2f}", (record.path,), box)
            found.append((score, Striking(row["kind"], line)))
    if not known:
        raise ValueError(f"{path}: none of its images, such as {clean(rows[0]['image'], 90)}, is in the data set")
    return [item for _, item in sorted(found, key=lambda pair: -pair[0])]


def plain(cell: str | None) -> str:
    """A cell without the apostrophe that keeps a spreadsheet from computing it."""
    text = cell or ""
    return text[1:] if text[:1] == "'" else text


def findings(suspects: Sequence[Striking], source: str) -> Iterator[Finding]:
    """At most one finding for each kind of contradiction; `source` is the file that they come from."""
    for kind, (check, text, noun) in CHECKS.items():
        own = [item.example for item in suspects if item.kind == kind]
        if own:
            advice = f"Look at them, the most suspicious ones first: a detector makes mistakes, too ({source})."
            yield finding(check, WARNING, f"{counted(len(own), noun)} {text}", advice, own, len(own))


def nothing_found(weights: str) -> Finding:
    """The finding that a detector found nothing, so that it says nothing about the labels."""
    text = f"{weights} predicts nothing with a confidence of {LOWEST} or more: there is nothing to compare labels with"
    return finding("no predictions", WARNING, text, "Give weights that were trained on such images, at their size.")


def classes_by_name(model: Mapping[int, str], data: Mapping[int, str]) -> dict[int, int]:
    """Class index of the model -> of the data set, for the names that both have.

    Raises:
        ValueError: they have no name in common.
    """
    match = ClassMatch(model, data)
    common = {of_model: of_data for of_data, of_model in match.index.items()}
    if not common:
        raise ValueError(f"--weights: {match.difference('the model', 'the data')}; expected common names")
    return common


def in_data_classes(found: Boxes, common: Mapping[int, int]) -> Boxes:
    """The predictions of classes that the data set has, with its indices."""
    kept = found[np.isin(found.label, list(common))]
    label = np.array([common[c] for c in kept.label.tolist()], dtype=np.int64)
    return Boxes(kept.xyxy, label, kept.score)
