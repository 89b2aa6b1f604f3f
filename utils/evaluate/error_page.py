"""errors.html: the worst images of a split, labels beside detections; suspects.csv: suspected label errors."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.boxes import Boxes, areas
from utils.evaluate.coco import AREAS
from utils.evaluate.suspects import LOWEST, Suspect, find_suspects
from utils.evaluate.verdicts import ERRORS, NAMES, ErrorAnalysis, Verdict
from utils.files import write_atomic
from utils.images import imread
from utils.templates import render
from utils.text import cell, clean

TEMPLATE = "errors.html.j2"
SHOWN_IMAGES = 60  # of the page
SHOWN_SUSPECTS = 40  # of the page; suspects.csv has all
SIDE = 480  # pixels, long side of an image of the page
CONTEXT = 0.6  # of a suspect's sides, shown around it
LONGEST = 1.5  # long side of what is shown over its short side, where the image is large enough
SHOWN_CONFUSIONS = 30  # of sets with too many classes for a table
CROP = 220  # pixels, long side of a suspect's image
COST = {Verdict.MISSED: 1.0, Verdict.WRONG_CLASS: 1.0, Verdict.BACKGROUND: 1.0, Verdict.BADLY_PLACED: 0.5}
CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("score", "strength", "kind", "image", "class", "found", *CORNERS, *(f"found {name}" for name in CORNERS))


def write_errors(folder: Path, analysis: ErrorAnalysis, paths: Sequence[str], title: str) -> list[Suspect]:
    """Write errors.html and suspects.csv into `folder`; the suspects, the most suspicious first.

    Args:
        paths: of the images, in the order of the analysis. title: what was measured, for the head of the page.

    Raises:
        OSError: a file could not be written.
    """
    suspects = find_suspects(analysis.found, analysis.truth, analysis.names)
    write_atomic(folder / "suspects.csv", suspects_table(suspects, paths, analysis.names))
    order = worst_images(analysis)
    names = [clean(name, 60) for name in analysis.names.values()]
    page = render(
        Path(__file__).parent,
        TEMPLATE,
        title=clean(title),
        confidence=analysis.confidence if np.isfinite(analysis.confidence) else 1.0,
        map50=analysis.map50(),
        rows=verdict_rows(analysis),
        sizes=size_rows(analysis),
        names=names,
        matrix=(matrix := confusion(analysis)),
        confusions=frequent_confusions(matrix),
        shown=len(order),
        images=len(analysis.found),
        compared=any((boxes.score >= LOWEST).any() for boxes in analysis.found),
        suspects=[s for s in (suspect_card(s, paths, names) for s in suspects[:SHOWN_SUSPECTS]) if s],
        data={
            "names": names,
            "verdicts": list(NAMES.values()),
            "images": [record for record in (image_record(analysis, i, paths[i]) for i in order) if record],
        },
    )
    write_atomic(folder / "errors.html", page.encode("utf-8", "backslashreplace"))
    return suspects


def worst_images(analysis: ErrorAnalysis) -> list[int]:
    """Indices of the images with errors, those with the most first; at most SHOWN_IMAGES."""
    costs = [
        sum(
            COST.get(verdict, 0.25) * int((v.detection == verdict).sum() + (v.label == verdict).sum())
            for verdict in ERRORS
        )
        for v in analysis.verdicts
    ]
    order = sorted(range(len(costs)), key=lambda i: -costs[i])
    return [i for i in order if costs[i] > 0][:SHOWN_IMAGES]


def verdict_rows(analysis: ErrorAnalysis) -> list[tuple[str, int, int, float | None]]:
    """Verdict in words, number of detections, number of labels, gain of mAP50 if it was corrected."""
    counts, gains = analysis.counts(), analysis.gains()
    kinds = [Verdict.RIGHT, *ERRORS]
    return [(NAMES[kind], *counts[kind], gains.get(kind)) for kind in kinds]


def size_rows(analysis: ErrorAnalysis) -> list[tuple[str | int, ...]]:
    """For small, medium and large boxes: labels, those found right, detections, those that are right."""
    rows: list[tuple[str | int, ...]] = []
    for name, (low, high) in zip(("small", "medium", "large"), list(AREAS.values())[1:], strict=True):
        counts = [0, 0, 0, 0]
        for found, truth, v in zip(analysis.shown, analysis.truth, analysis.verdicts, strict=True):
            own = (truth.area >= low) & (truth.area < high) & ~truth.crowd
            size = areas(found.xyxy)
            seen = (size >= low) & (size < high) & (v.detection != Verdict.IGNORED)
            counts[0] += int(own.sum())
            counts[1] += int((own & (v.label == Verdict.RIGHT)).sum())
            counts[2] += int(seen.sum())
            counts[3] += int((seen & (v.detection == Verdict.RIGHT)).sum())
        rows.append((name, *counts))
    return rows


def confusion(analysis: ErrorAnalysis) -> list[list[int]]:
    """Counts, predicted class by labeled class, the last of both is none; a detection counts once."""
    place = {c: k for k, c in enumerate(analysis.names)}
    none = len(place)
    matrix = np.zeros((none + 1, none + 1), dtype=np.int64)
    for found, truth, v in zip(analysis.shown, analysis.truth, analysis.verdicts, strict=True):
        for i, kind in enumerate(v.detection.tolist()):
            if kind != Verdict.IGNORED:
                on = kind in (Verdict.RIGHT, Verdict.WRONG_CLASS)
                labeled = place.get(int(truth.label[v.about[i]]), none) if on else none
                matrix[place.get(int(found.label[i]), none), labeled] += 1
        for j in np.flatnonzero((v.label == Verdict.MISSED) | (v.label == Verdict.BADLY_PLACED)).tolist():
            matrix[none, place.get(int(truth.label[j]), none)] += 1
    return [[int(n) for n in row] for row in matrix]


def frequent_confusions(matrix: Sequence[Sequence[int]]) -> list[tuple[int, int, int]]:
    """Count, found class, labeled class of the classes found for one another, the most frequent SHOWN_CONFUSIONS."""
    classes = range(len(matrix) - 1)
    cells = [(matrix[found][label], found, label) for found in classes for label in classes if found != label]
    return sorted((cell for cell in cells if cell[0]), key=lambda cell: (-cell[0], cell))[:SHOWN_CONFUSIONS]


def image_record(analysis: ErrorAnalysis, i: int, path: str) -> dict[str, Any] | None:
    """One image for the page's script: file name, size, JPEG, labels and detections; None if it cannot be read now."""
    try:
        image = imread(path)
    except (ValueError, OSError):
        return None
    found, truth, v = analysis.shown[i], analysis.truth[i], analysis.verdicts[i]
    return {
        "name": clean(Path(path).name, 120),
        "size": [image.shape[1], image.shape[0]],
        "src": jpeg(image, SIDE),
        "labels": box_records(truth, v.label, found.label, v.by),
        "found": box_records(found, v.detection, truth.label, v.about),
    }


def box_records(boxes: Boxes, verdicts: np.ndarray, other: np.ndarray, partner: np.ndarray) -> list[list[float]]:
    """For each box: x1, y1, x2, y2, class, score, verdict, class of the partner; -1: none."""
    rows = []
    for k in range(len(boxes)):
        mate = int(other[partner[k]]) if partner[k] >= 0 else -1
        corners = [round(float(x), 1) for x in boxes.xyxy[k]]
        rows.append([*corners, int(boxes.label[k]), round(float(boxes.score[k]), 3), int(verdicts[k]), mate])
    return rows


def jpeg(image: np.ndarray, side: int) -> str:
    """An image (H, W, 3) RGB as a data URI, its long side at most `side` pixels."""
    scale = min(side / max(image.shape[:2]), 1.0)
    if scale < 1:
        size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 75])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode('ascii')}"


def suspect_card(suspect: Suspect, paths: Sequence[str], names: Sequence[str]) -> dict[str, Any] | None:
    """A suspect for the page: its place in the image, both boxes, and words; None if the image cannot be read now."""
    try:
        image = imread(paths[suspect.image])
    except (ValueError, OSError):
        return None
    both = np.array([box for box in (suspect.xyxy, suspect.found) if box is not None], dtype=np.float64)
    low, high = both[:, :2].min(axis=0), both[:, 2:].max(axis=0)
    side = (1 + 2 * CONTEXT) * np.maximum(high - low, 8)
    frame = np.array(image.shape[1::-1])
    side = np.minimum(np.ceil(np.maximum(side, side.max() / LONGEST)), frame).astype(int)
    x1, y1 = np.clip(np.floor((low + high - side) / 2).astype(int), 0, frame - side).tolist()
    x2, y2 = x1 + int(side[0]), y1 + int(side[1])
    boxes = {"found": suspect.found, "label": suspect.xyxy if suspect.row >= 0 else None}
    return {
        "src": jpeg(image[y1:y2, x1:x2], CROP),
        "size": (x2 - x1, y2 - y1),
        "boxes": [
            (kind, *(round(float(v), 1) for v in (b[0] - x1, b[1] - y1, b[2] - b[0], b[3] - b[1])))
            for kind, b in boxes.items()
            if b is not None
        ],
        "text": suspect_text(suspect, names),
        "image": clean(Path(paths[suspect.image]).name, 80),
        "score": suspect.score,
    }


def suspect_text(suspect: Suspect, names: Sequence[str]) -> str:
    """'labeled cat, found dog', in the words of each kind."""
    label = f"labeled {names[suspect.label]}" if 0 <= suspect.label < len(names) else "no label"
    if suspect.suggested < 0:
        return f"{label}, nothing found"
    if suspect.label == suspect.suggested:
        return f"{label}, found beside it"
    return f"{label}, found {names[suspect.suggested] if suspect.suggested < len(names) else suspect.suggested}"


def suspects_table(suspects: Sequence[Suspect], paths: Sequence[str], names: Mapping[int, str]) -> str:
    """The text of suspects.csv, the most suspicious first; corners in pixels, empty where there is no such box."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for s in suspects:
        own = [round(float(v), 1) for v in s.xyxy] if s.row >= 0 else [""] * 4
        found = [round(float(v), 1) for v in s.found] if s.found is not None else [""] * 4
        words = (cell(clean(names.get(c, ""))) for c in (s.label, s.suggested))
        writer.writerow([f"{s.score:.4f}", f"{s.strength:.4f}", s.kind, cell(paths[s.image]), *words, *own, *found])
    return text.getvalue()
