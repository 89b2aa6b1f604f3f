"""Tracking in a run of detect.py: a tracker for each source, tracks/*.txt, counts.csv, the last lines of the log."""

from __future__ import annotations

import csv
import io
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from utils.boxes import Tracked, xyxy2ltwh
from utils.files import write_atomic
from utils.predict.frames import Frame
from utils.predict.predictor import Prediction
from utils.predict.writers import Appender, Stems, counted_class, csv_text, shown_names
from utils.runs import OutputFiles
from utils.text import first
from utils.track.bytetrack import Tracker, TrackSettings
from utils.track.counting import Area, AreaCounter, Counts
from utils.track.overlay import class_counts, draw_areas

LOGGER = logging.getLogger(__name__)
COUNTS_HEADER = ("Source", "Area", "Points", "Class", "In", "Out")
OUTAGE = 1.0  # seconds of frames that a live source must have lost before its objects move on by them


class TrackFile(Appender):
    """Tracks in the format of MOT Challenge 2D: frame, id, left, top, width, height, score, class, -1, -1.

    Frames, ids, pixels and classes are numbered from 1, as that format says; the last two values are unknown.
    """

    def add(self, number: int, boxes: Tracked) -> None:
        """Write the boxes of one frame."""
        ltwh = xyxy2ltwh(boxes.xyxy.astype(np.float64)) + np.array([1, 1, 0, 0])
        rows = zip(boxes.identity.tolist(), ltwh.tolist(), boxes.score.tolist(), boxes.label.tolist(), strict=True)
        with self.whole():
            self.file.writelines(
                f"{number},{identity},{','.join(f'{v:.2f}' for v in box)},{score:.4f},{label + 1},-1,-1\n"
                for identity, box, score, label in rows
            )


@dataclass
class TrackedSource:
    """What is known of one video, stream, or folder of images.

    Attributes:
        kind: "video", "live" or "images".
        number: of the last frame; skipped: frames that a live source lost, as far as its clock shows. last: when the
            last frame came, seconds.
    """

    kind: str
    file: TrackFile
    tracker: Tracker
    counters: list[AreaCounter]
    number: int = 0
    skipped: int = 0
    last: float = 0.0

    def next_number(self, frame: Frame) -> int:
        """The number of a frame, 1, 2, ...; for the tracker `skipped` is added."""
        if frame.video is None:
            self.number += 1
            return self.number
        now, before = time.monotonic(), self.number
        if self.kind == "live" and before:
            lost = round((now - self.last) * frame.video.fps) - (frame.number - before)
            self.skipped += lost if lost > OUTAGE * frame.video.fps else 0
        self.number, self.last = frame.number, now
        return self.number


@dataclass
class Tracking:
    """Gives detections their identities, counts them, and writes both; a context manager that completes the files.

    Images of one folder are the frames of one sequence, in the order in which they come.

    Args:
        areas: lines and zones, the same in all sources. names: class index -> name.
    """

    settings: TrackSettings
    areas: Sequence[Area]
    files: OutputFiles
    names: Mapping[int, str]
    sources: dict[Path, TrackedSource] = field(default_factory=dict)
    counts: list[tuple[Path, Area, Counts]] = field(default_factory=list)
    objects: Counter[int] = field(default_factory=Counter)  # label -> identities
    stems: Stems = field(default_factory=Stems)

    def __enter__(self) -> Tracking:
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:  # all files are completed, even if one cannot be
            stack.callback(self.write_counts)
            for path in reversed(self.sources):
                stack.callback(self.end, path)

    def __call__(self, frame: Frame, found: Prediction) -> Prediction:
        """The detections that are of objects with an identity, as `Tracked` boxes."""
        source = self.source(frame)
        is_first, number, last = not source.number, source.next_number(frame), source.tracker.last_identity
        boxes = source.tracker(found.boxes, number + source.skipped)
        self.objects.update(boxes.label[boxes.identity > last].tolist())
        size = (frame.image.shape[0], frame.image.shape[1])
        for counter in source.counters:
            counter(boxes, size, source.tracker.identity)
            if is_first and (counter.points >= [size[1], size[0]]).any(axis=1).all():
                LOGGER.warning(f"{counter.area} is outside of {first([frame.path])}, {size[1]}x{size[0]} pixels")
        source.file.add(number, boxes)
        return replace(found, boxes=boxes)

    def source(self, frame: Frame) -> TrackedSource:
        """That of a frame; videos that were read before it are ended."""
        key = frame.path if frame.video else frame.path.parent
        for path, source in list(self.sources.items()):
            if path != key and source.kind == "video":
                self.end(path)
        if key not in self.sources:
            path = self.files.folder / "tracks" / f"{self.stems(key if frame.video else key.absolute(), True)}.txt"
            self.files.check(path).parent.mkdir(parents=True, exist_ok=True)
            kind = "images" if frame.video is None else "live" if frame.video.live else "video"
            counters = [AreaCounter(area) for area in self.areas]
            self.sources[key] = TrackedSource(kind, TrackFile(path), Tracker(self.settings), counters)
        return self.sources[key]

    def end(self, path: Path) -> None:
        """Complete the file of a source, of which only its counts are kept."""
        source = self.sources.pop(path)
        self.counts += [(path, counter.area, counter.counts) for counter in source.counters]
        source.file.close()
        if not source.file.failed:
            self.files.add(source.file.path)

    def overlay(self, frame: Frame, drawn: np.ndarray) -> np.ndarray:
        """The annotated image of the frame that was tracked last, with its lines, zones and counts."""
        counters = self.source(frame).counters
        return draw_areas(drawn, counters, shown_names(self.names)) if counters else drawn

    def write_counts(self) -> None:
        """counts.csv, a row for each source, area and class; not written without areas."""
        if not self.areas:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COUNTS_HEADER)
        for path, area, counts in self.counts:
            points = " ".join(f"{x:g},{y:g}" for x, y in area.points)
            rows = [
                (csv_text(self.names.get(label, label)), counts[label, "in"], counts[label, "out"])
                for label in sorted({label for label, _ in counts})
            ]
            writer.writerows([csv_text(path), area.name, points, *row] for row in rows or [("", 0, 0)])
        with self.files.writing(self.files.folder / "counts.csv") as target:
            write_atomic(target, text.getvalue())

    def lines(self) -> list[str]:
        """The lines of the log, once all sources have ended: objects by class, and counts by area, of all sources."""
        ranked = sorted(self.objects.items(), key=lambda item: (-item[1], item[0]))
        names = shown_names(self.names)
        objects = ", ".join(counted_class(count, names.get(label, str(label))) for label, count in ranked)
        lines = [f"tracked: {objects or 'no objects'}"]
        for area in self.areas:
            total = sum((counts for _, own, counts in self.counts if own == area), Counts())
            lines.append(f"{area}: {class_counts(total, names)}")
        return lines
