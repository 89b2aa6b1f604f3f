"""Checks of labels: what the reader refused or changed, classes, sizes and overlap of boxes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from utils.boxes import pairwise_iou, xywhn2xyxy
from utils.doctor.findings import ERROR, NOTE, WARNING, Example, Finding, finding, listed, share
from utils.doctor.survey import BoxColumns, ImageRecord, SplitSurvey, Survey, all_records
from utils.text import counted

MOST = 0.5  # share of the boxes from which on a fault is an error
SMALL = 8  # pixels at the input size: the cells of the finest grid
MANY_SMALL = 0.1  # share of small boxes from which on there is a warning
LARGEST = 4  # times --imgsz: the largest size that is suggested
SLIVER = 2  # pixels in the image
HUGE = 0.95  # of both sides of the image
TWIN_IOU = 0.95  # boxes that overlap more are one object
FEW_BOXES = 20  # of a class in the train split
RARE = 100  # times fewer boxes than the most frequent class
CROWDED = 300  # labels of an image; val.py counts as many detections by default
# Warnings of the readers, by their words -> (check, what, advice)
KINDS = (
    (
        "beyond its edge",
        "boxes outside",
        "beyond the edge of their image, clipped",
        "Look for wrong sizes.",
    ),
    ("without area", "boxes without area", "without area, dropped", "Delete them or draw them again."),
    ("the same box", "equal boxes", "twice in one image, the second one dropped", "Delete one of each."),
    ("made for ", "image sizes", "with annotations made for another size", "Look at the boxes, or annotate anew."),
    ("", "label warnings", "with other warnings", "Read the lines below."),
)


def label_errors(found: Survey, names: Mapping[int, str]) -> Iterator[Finding]:
    """Lines that no label can be made of; training refuses to start."""
    for split in found.values():
        errors = [(record, error) for record in split.records for error in record.labels.errors]
        if errors:
            text = f"{split.name}: {counted(len(errors), 'label')} not readable; training refuses to start"
            examples = (Example(error, images_of(record)) for record, error in errors)
            yield finding("label errors", ERROR, text, "Correct these lines.", examples)


def label_warnings(found: Survey, names: Mapping[int, str]) -> Iterator[Finding]:
    """Labels that the reader changes or drops: outside of the image, without area, twice."""
    for split in found.values():
        groups: dict[int, list[tuple[ImageRecord, str]]] = defaultdict(list)
        for record in split.records:
            for line in record.labels.warnings:
                groups[next(i for i, row in enumerate(KINDS) if row[0] in line)].append((record, line))
        boxes = sum(len(record.labels.label) for record in split.records)
        for kind, rows in sorted(groups.items()):
            _, check, what, advice = KINDS[kind]
            wrong = check in ("boxes outside", "boxes without area") and len(rows) > max(MOST * boxes, 1)
            if wrong:
                advice = "So many: the labels are probably not in 0..1, or belong to other images."
            noun = ("box", "boxes") if kind < len(KINDS) - 2 else ("image", "images")
            text = f"{split.name}: {counted(len(rows), *noun)} {what}"
            examples = (Example(line, images_of(record)) for record, line in rows)
            yield finding(check, ERROR if wrong else WARNING, text, advice, examples)


def class_balance(found: Survey, names: Mapping[int, str]) -> Iterator[Finding]:
    """Classes without boxes, that train lacks and val has, and that have few."""
    counts = {split.name: class_counts(split, len(names)) for split in found.values() if split.usable}
    if "train" not in counts:
        return
    train = counts["train"]
    later = sum((count for name, count in counts.items() if name != "train"), np.zeros_like(train))
    seldom = train * RARE < train.max()
    kinds = (
        (
            (train == 0) & (later > 0),
            later,
            WARNING,
            "measured but never trained: no box in train",
            "Move images to train.",
        ),
        ((train == 0) & (later == 0), train, WARNING, "without a box in any split", "Check the spelling of the names."),
        ((train > 0) & (train < FEW_BOXES), train, NOTE, f"with fewer than {FEW_BOXES} boxes in train", "Add images."),
        ((train >= FEW_BOXES) & seldom, train, NOTE, f"over {RARE} times rarer than the first", "Try --image-weights."),
    )
    for rows, numbers, level, what, advice in kinds:
        chosen = np.flatnonzero(rows).tolist()
        if chosen and (train + later).any():  # else another check says that there are no labels
            text = f"{counted(len(chosen), 'class', 'classes')} {what}"
            line = listed([f"{names[c]} ({numbers[c]:,})" for c in chosen])
            yield finding("class balance", level, text, advice, [Example(line)], len(chosen))


def class_counts(split: SplitSurvey, classes: int) -> np.ndarray:
    """(classes,) boxes of each class that are trained on or measured: without crowds."""
    boxes = split.columns()
    return np.bincount(boxes.label[~boxes.crowd], minlength=classes)


def small_boxes(found: Survey, names: Mapping[int, str], imgsz: int) -> Iterator[Finding]:
    """Boxes that are smaller than a cell of the finest grid at the input size, and slivers."""
    for split in found.values():
        boxes = split.columns()
        short = np.where(boxes.crowd, np.nan, boxes.short_sides(imgsz))
        small, count = np.flatnonzero(short < SMALL), int((~boxes.crowd).sum())
        if len(small):
            level = WARNING if len(small) > MANY_SMALL * count else NOTE
            part = share(len(small), count)
            text = f"{split.name}: {part} of the boxes ({len(small):,}) have a side under {SMALL} px at --imgsz {imgsz}"
            need = imgsz * SMALL / max(np.nanquantile(short, 0.05), 1e-9)
            larger = (
                f"; at {32 * math.ceil(need / 32)} px it would be 5 % at most"
                if imgsz < need <= LARGEST * imgsz
                else ""
            )
            advice = f"Such boxes are hard to find{larger}. A larger --imgsz, or --tile in detect.py, helps."
            order = small[np.argsort(short[small], kind="stable")]
            examples = marked(split.usable, boxes, order, names, short[:, None])
            yield finding("small boxes", level, text, advice, examples, len(small))
    for split in found.values():
        boxes = split.columns()
        slivers = np.flatnonzero(boxes.pixels.min(axis=1, initial=np.inf) < SLIVER)
        if len(slivers):
            text = f"{split.name}: {counted(len(slivers), 'box', 'boxes')} with a side under {SLIVER} px in the image"
            advice = "Usually left over from cutting images into tiles, or a slip of the mouse: delete them."
            examples = marked(split.usable, boxes, slivers, names, boxes.pixels)
            yield finding("slivers", WARNING, text, advice, examples, len(slivers))


def huge_boxes(found: Survey, names: Mapping[int, str]) -> Iterator[Finding]:
    """Boxes that cover their whole image."""
    for split in found.values():
        boxes = split.columns()
        huge = np.flatnonzero((boxes.xywhn[:, 2:] >= HUGE).all(axis=1))
        if len(huge):
            level = WARNING if len(huge) > MOST * len(boxes) else NOTE
            part = share(len(huge), len(boxes))
            text = f"{split.name}: {counted(len(huge), 'box', 'boxes')} over the whole image ({part})"
            advice = "Right for close-ups; labels made for classification look like this, too."
            yield finding("huge boxes", level, text, advice, marked(split.usable, boxes, huge, names), len(huge))


def twins(found: Survey, names: Mapping[int, str]) -> Iterator[Finding]:
    """Pairs of boxes that are nearly equal: of one class, one too many; of two classes, one of them may be wrong."""
    for split in found.values():
        same, other = list[Example](), list[Example]()
        for record in split.usable:
            for i, j, iou in twin_pairs(record):
                pair = record.labels.label[[i, j]].tolist()
                text = f"{record.path}: {' / '.join(names[c] for c in pair)}, IoU {iou:.3f}"
                example = Example(text, (record.path,), record.boxes().xyxy[[i, j]])
                (same if pair[0] == pair[1] else other).append(example)
        if same:
            text = f"{split.name}: {counted(len(same), 'pair')} of boxes of one class with an IoU over {TWIN_IOU}"
            yield finding("twins", WARNING, text, "One object, labeled twice: delete one.", same)
        if other:
            text = f"{split.name}: {counted(len(other), 'pair')} of boxes of two classes with an IoU over {TWIN_IOU}"
            yield finding("twins of two classes", NOTE, text, "One of the two classes may be wrong.", other)


def twin_pairs(record: ImageRecord) -> list[tuple[int, int, float]]:
    """(i, j, IoU) of pairs i < j of boxes of an image, without crowds, whose IoU is over TWIN_IOU."""
    keep = np.flatnonzero(~record.labels.crowd)
    xyxy = xywhn2xyxy(record.labels.xywhn[keep].astype(np.float64), record.size)
    iou = np.triu(pairwise_iou(xyxy, xyxy), 1)
    return [(int(keep[i]), int(keep[j]), float(iou[i, j])) for i, j in np.argwhere(iou > TWIN_IOU)]


def crowded_images(found: Survey, names: Mapping[int, str]) -> Iterator[Finding]:
    """Images with more labels than the detections that val.py counts."""
    crowded = [record for _, record in all_records(found) if record.usable and len(record.labels.label) > CROWDED]
    if crowded:
        text = f"{counted(len(crowded), 'image')} with more than {CROWDED} labels"
        examples = (Example(f"{r.path}: {len(r.labels.label)} labels", (r.path,)) for r in crowded)
        yield finding(
            "crowded images", WARNING, text, f"Give val.py and detect.py a --max-det over {CROWDED}.", examples
        )


def marked(
    records: list[ImageRecord],
    boxes: BoxColumns,
    rows: np.ndarray,
    names: Mapping[int, str],
    pixels: np.ndarray | None = None,
) -> Iterator[Example]:
    """An example for each of the boxes `rows`, with its numbers in `pixels` (n, k) if they are given."""
    for i in rows.tolist():
        record = records[boxes.row[i]]
        xyxy = xywhn2xyxy(boxes.xywhn[i : i + 1], record.size)
        words = f": {' x '.join(f'{v:.2f}' for v in pixels[i])} px" if pixels is not None else ""
        yield Example(f"{record.path}: {names[int(boxes.label[i])]}{words}", (record.path,), xyxy)


def images_of(record: ImageRecord) -> tuple[Path, ...]:
    """The image of a record if it can be shown."""
    return (record.path,) if record.size != (0, 0) else ()


CHECKS = (label_errors, label_warnings, class_balance, huge_boxes, twins, crowded_images)
