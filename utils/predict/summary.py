"""The end of a run of detect.py: totals by class, boxes of different classes on one object, what was written where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.boxes import Boxes, pairwise_iou
from utils.commands import relative
from utils.predict.frames import Frame
from utils.predict.predictor import Prediction
from utils.predict.writers import counted_class
from utils.runs import OutputFiles
from utils.text import counted

STEPS = ("letterbox", "model", "NMS")
SAME_OBJECT = 0.8  # IoU of boxes that lie on one object
MANY = 0.1  # of the images with boxes
SHOWN = 20  # classes


class RunSummary:
    """Counts what is detected, frame after frame.

    Attributes:
        images, frames: images, and frames of videos and streams. found: those with boxes. doubled: those with boxes of
            different classes on one object. classes: label -> boxes. times: milliseconds of each of STEPS.
    """

    def __init__(self) -> None:
        self.images = self.frames = self.found = self.doubled = 0
        self.classes: Counter[int] = Counter()
        self.times = np.zeros(len(STEPS))

    def add(self, frame: Frame, prediction: Prediction) -> None:
        """Count a frame and its boxes."""
        boxes = prediction.boxes
        self.images += frame.video is None
        self.frames += frame.video is not None
        self.found += len(boxes) > 0
        self.doubled += has_double(boxes)
        self.classes.update(boxes.label.tolist())
        self.times += prediction.times

    def lines(self, names: Mapping[int, str], agnostic: bool) -> list[str]:
        """The lines of the log: boxes, images and times; classes, the most frequent first; what may be wrong.

        Args:
            agnostic: whether boxes suppressed those of other classes.
        """
        images = [counted(self.images, "image")] if self.images or not self.frames else []
        images += [counted(self.frames, "frame")] if self.frames else []
        mean = self.times / max(self.images + self.frames, 1)
        speeds = ", ".join(f"{ms:.1f} ms {step}" for ms, step in zip(mean, STEPS, strict=True))
        boxes = counted(self.classes.total(), "box", "boxes")
        lines = [f"{boxes} in {' and '.join(images)}; each took {speeds}"]
        ranked = sorted(self.classes.items(), key=lambda item: (-item[1], item[0]))
        texts = [counted_class(count, names.get(label, str(label))) for label, count in ranked[:SHOWN]]
        if ranked[SHOWN:]:
            rest = sum(count for _, count in ranked[SHOWN:])
            texts.append(f"{rest:,} of {counted(len(ranked) - SHOWN, 'other class', 'other classes')}")
        lines += [f"by class: {', '.join(texts)}"] if texts else []
        if not agnostic and self.doubled > 1 and self.doubled >= MANY * self.found:
            lines.append(
                f"{self.doubled} of {self.found} with boxes have boxes of different classes on one object (IoU over "
                f"{SAME_OBJECT:g}): --agnostic-nms keeps the best of them"
            )
        return lines


def has_double(boxes: Boxes) -> bool:
    """Whether two boxes of different classes lie on one object."""
    if len(boxes) < 2 or (boxes.label == boxes.label[0]).all():
        return False
    other = boxes.label[:, None] != boxes.label[None]
    return bool((other & (pairwise_iou(boxes.xyxy, boxes.xyxy) > SAME_OBJECT)).any())


def written(files: OutputFiles) -> list[tuple[str, str]]:
    """What a run wrote, and where: labels, crops, tables, images and videos."""
    folder, counts = files.folder, Counter(name.partition("/")[0] + "/" * ("/" in name) for name in files.known)
    classes = counts["labels/"] and "labels/classes.txt" in files.known
    labels = counts.pop("labels/", 0) - classes
    rows = []
    if labels:
        rows.append(("labels", f"{relative(folder / 'labels')}: {counted(labels, 'file')}"))
    if crops := counts.pop("crops/", 0):
        rows.append(("crops", f"{relative(folder / 'crops')}: {counted(crops, 'file')}"))
    for name, what in (
        ("predictions.csv", "table"),
        ("predictions.json", "COCO"),
        ("renamed.csv", "other names"),
        ("counts.csv", "counts"),
    ):
        if counts.pop(name, 0):
            rows.append((what, relative(folder / name)))
    if counts.pop("annotations/", 0):
        rows.append(("annotations", relative(folder / "annotations")))
    if tracks := counts.pop("tracks/", 0):
        rows.append(("tracks", f"{relative(folder / 'tracks')}: {counted(tracks, 'file')}"))
    if counts.pop("visualize/", 0):
        rows.append(("maps", relative(folder / "visualize")))
    videos = sum(Path(name).suffix == ".mp4" for name in counts)
    if images := len(counts) - videos:
        rows.insert(0, ("images", f"{relative(folder)}: {counted(images, 'file')}"))
    if videos:
        rows.insert(bool(images), ("videos", f"{relative(folder)}: {counted(videos, 'file')}"))
    return rows
