"""What detect.py writes: annotated images and videos, label files, crops, predictions.csv and predictions.json."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.boxes import Boxes
from utils.data.voc import voc_xml
from utils.drawing import draw_boxes
from utils.images import imwrite
from utils.predict.frames import Frame
from utils.predict.predictor import Prediction
from utils.predict.progress import InputProgress
from utils.predict.videos import VideoFile
from utils.predict.writers import (
    Appender,
    Crops,
    CsvFile,
    ImageIds,
    JsonFile,
    Stems,
    by_identity,
    coco_rows,
    count_classes,
    csv_text,
    identities,
    label_text,
    shown_names,
    writable_suffix,
    write_classes,
    write_labels,
    write_renamed,
)
from utils.runs import OutputFiles
from utils.text import first

LOGGER = logging.getLogger(__name__)
Overlay = Callable[[Frame, np.ndarray], np.ndarray]  # draws on the annotated image of a frame
CSV_HEADER = ("Image Name", "Prediction", "Confidence", "x1", "y1", "x2", "y2", "Path")


@dataclass(frozen=True)
class OutputSettings:
    """What detect.py writes; the fields are the flags of the same names."""

    save_txt: str = ""
    save_csv: bool = False
    save_json: bool = False
    save_conf: bool = False
    save_crop: bool = False
    nosave: bool = False
    view_img: bool = False
    vid_stride: int = 1
    track: bool = False
    line_thickness: int = 0
    hide_labels: bool = False
    hide_conf: bool = False


class Output:
    """Writes what the settings ask for into the run folder; a context manager that closes the files."""

    def __init__(
        self,
        settings: OutputSettings,
        files: OutputFiles,
        names: Mapping[int, str],
        progress: InputProgress | None = None,
        overlay: Overlay | None = None,
    ):
        self.settings, self.files, self.folder, self.names = settings, files, files.folder, names
        self.shown = shown_names(names)
        self.stems, self.ids, self.crops = Stems(), ImageIds(), Crops(self.folder / "crops", names, files)
        self.videos: dict[Path, VideoFile] = {}
        self.progress, self.overlay = progress or InputProgress(), overlay
        header = (*CSV_HEADER, "Track") if settings.track else CSV_HEADER
        self.csv = CsvFile(files.check(self.folder / "predictions.csv"), header) if settings.save_csv else None
        self.json = JsonFile(files.check(self.folder / "predictions.json")) if settings.save_json else None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.clear()
        with ExitStack() as stack:  # all of them are closed, even if one cannot be
            stack.callback(write_renamed, self.files, self.stems)
            if self.settings.save_txt == "yolo":
                stack.callback(write_classes, self.files, self.names)
            for file in (*self.videos.values(), self.csv, self.json):
                if file:
                    stack.callback(self.close, file)

    def close(self, file: VideoFile | Appender) -> None:
        """Complete a file, and put it on the list of the run's files."""
        file.close()
        if file.path is not None and file.path.exists():
            self.files.add(file.path)

    def stem(self, frame: Frame) -> str:
        """The stem of all files written for a frame."""
        stem = self.stems(frame.path, frame.video is not None)
        return f"{stem}_{frame.number}" if frame.video else stem

    def add(self, frame: Frame, found: Prediction) -> np.ndarray | None:
        """Write everything of one frame; returns the annotated image where one was drawn.

        Raises:
            ValueError: the source is in the run folder, where results would overwrite it.
        """
        settings = self.settings
        if frame.path.parent.resolve() == self.folder.resolve():
            raise ValueError(f"{self.folder} holds the source {first([frame.path.name])}: results would overwrite it")
        self.add_rows(frame, found.boxes)
        drawn = None
        if not settings.nosave or settings.view_img:
            thickness, hidden = settings.line_thickness or None, (settings.hide_labels, settings.hide_conf)
            drawn = draw_boxes(frame.image, *by_identity(found.boxes, self.shown), thickness, *hidden)
            drawn = self.overlay(frame, drawn) if self.overlay else drawn
        self.end_videos(frame)
        if frame.video:
            self.add_to_video(frame, drawn)
            return drawn
        if not settings.nosave and drawn is not None:
            suffix = writable_suffix(frame.path, drawn)
            with self.files.writing(self.folder / f"{self.stem(frame)}{suffix}") as path:
                imwrite(path, drawn)
        (h, w), text = found.canvas, count_classes(found.boxes, self.names) or "no detections"
        self.progress.clear()
        LOGGER.info(f"{self.progress.name(frame)}: {h}x{w} {text}, {sum(found.times):.1f} ms")
        return drawn

    def add_rows(self, frame: Frame, boxes: Boxes) -> None:
        """Write labels, crops, CSV and JSON of one frame."""
        settings, stem, size = self.settings, self.stem(frame), frame.image.shape[:2]
        classes = [self.names.get(label, str(label)) for label in boxes.label.tolist()]
        if settings.save_txt == "voc":
            text = voc_xml(frame.path.name, size, classes, boxes.xyxy) if len(boxes) else ""
            write_labels(self.files, self.folder / "labels" / f"{stem}.xml", text)
        elif settings.save_txt:
            write_labels(
                self.files, self.folder / "labels" / f"{stem}.txt", label_text(boxes, size, settings.save_conf)
            )
        if settings.save_crop:
            self.crops.add(stem, frame.image, boxes)
        if self.csv:
            name = stem if frame.video else frame.path.name
            rows = zip(classes, boxes.score.tolist(), boxes.xyxy.tolist(), identities(boxes), strict=True)
            self.csv.add(
                [
                    csv_text(name),
                    csv_text(label),
                    f"{score:.4f}",
                    *(f"{v:.1f}" for v in xyxy),
                    csv_text(frame.path),
                    *own,
                ]
                for label, score, xyxy, own in rows
            )
        if self.json:
            self.json.add(coco_rows(self.ids(stem), boxes, path=frame.path))

    def end_videos(self, frame: Frame) -> None:
        """Close video files before another input starts; those of live sources stay open side by side."""
        for path, video in list(self.videos.items()):
            if path != frame.path and not video.live:
                self.close(self.videos.pop(path))

    def add_to_video(self, frame: Frame, drawn: np.ndarray | None) -> None:
        """Append a frame to the video file of its source."""
        if frame.path not in self.videos:
            stem = self.stems(frame.path, True)
            path = None if self.settings.nosave else self.files.check(self.folder / f"{stem}.mp4")
            self.videos[frame.path] = VideoFile(path, frame, self.settings.vid_stride)
        self.videos[frame.path].add(frame, frame.image if drawn is None else drawn)
