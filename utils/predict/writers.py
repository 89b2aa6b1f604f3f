"""File formats of detections: label files, COCO's result format, CSV, JSON, videos, crops."""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from tqdm import tqdm

from utils.boxes import Boxes, pairwise_iou, xyxy2ltwh, xyxy2xywhn
from utils.files import write_atomic
from utils.images import imwrite
from utils.predict.frames import Frame


class Stems:
    """File stems of the outputs, unique within a run; the label files of a video v are v_1, v_2, ..."""

    def __init__(self) -> None:
        self.given: dict[Path, str] = {}
        self.images: set[str] = set()
        self.videos: set[str] = set()

    def in_use(self, stem: str, is_video: bool) -> bool:
        """Whether a file of an earlier input has `stem`, or would have it."""
        stem = stem.casefold()
        head = re.fullmatch(r"(.+)_\d+", stem)
        if stem in self.images | self.videos or (head and head[1] in self.videos):
            return True
        return is_video and any(re.fullmatch(re.escape(stem) + r"_\d+", other) for other in self.images)

    def __call__(self, path: Path, is_video: bool) -> str:
        """The stem of `path`, followed by -2, -3, ... if an earlier input has it."""
        if path not in self.given:
            stem, copy = path.stem, 1
            while self.in_use(stem, is_video):
                copy += 1
                stem = f"{path.stem}-{copy}"
            self.given[path] = stem
            (self.videos if is_video else self.images).add(stem.casefold())
        return self.given[path]


def label_text(boxes: Boxes, size: tuple[int, int], scores: bool) -> str:
    """Lines 'class cx cy w h [score]' in 0..1 for boxes in pixels of an image of `size` (height, width)."""
    rows = np.column_stack([xyxy2xywhn(boxes.xyxy, size), boxes.score])[:, : 5 if scores else 4]
    lines = (
        " ".join([str(label), *(f"{value:.6f}" for value in row)])
        for label, row in zip(boxes.label.tolist(), rows, strict=True)
    )
    return "".join(f"{line}\n" for line in lines)


def write_labels(path: Path, text: str) -> None:
    """Write a label file; without `text` there is none, as for background images."""
    if text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    else:
        path.unlink(missing_ok=True)  # of an earlier run, with --exist-ok


def hybrid(found: Boxes, truth: Boxes, iou_thres: float) -> Boxes:
    """The ground truth, then the detections that overlap no label of their class by more than `iou_thres`."""
    same = found.label[:, None] == truth.label[None]
    overlap = np.where(same, pairwise_iou(found.xyxy, truth.xyxy), 0).max(axis=1, initial=0)
    return Boxes.join([truth, found[overlap <= iou_thres]])


def coco_rows(image_id: int | str, boxes: Boxes, categories: dict[int, int] | None = None) -> list[dict[str, Any]]:
    """Rows of a COCO result file: image_id, category_id, bbox x, y, width, height in pixels, score.

    Args:
        categories: class index -> category id; None: the index itself.
    """
    rows = []
    ltwh = xyxy2ltwh(boxes.xyxy.astype(np.float64)).tolist()
    for bbox, label, score in zip(ltwh, boxes.label.tolist(), boxes.score.tolist(), strict=True):
        category = categories.get(label, label) if categories else label
        rounded = [round(v, 3) for v in bbox]
        rows.append({"image_id": image_id, "category_id": category, "bbox": rounded, "score": round(score, 5)})
    return rows


def image_id(stem: str) -> int | str:
    """The id of an image in a result file: its name, as a number if it is one, as in COCO's file names."""
    return int(stem) if stem.isdecimal() else stem


class Appender:
    """A text file that grows during a run, as <name>.part until it is closed."""

    def __init__(self, path: Path):
        self.path = path
        self.partial = path.with_name(path.name + ".part")
        self.file: IO[str] = self.partial.open("w", encoding="utf-8", newline="")

    def close(self) -> None:
        self.file.close()
        os.replace(self.partial, self.path)


class CsvFile(Appender):
    """A table with a header."""

    def __init__(self, path: Path, header: Sequence[str]):
        super().__init__(path)
        self.writer = csv.writer(self.file)
        self.writer.writerow(header)

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        self.writer.writerows(rows)


class JsonFile(Appender):
    """One JSON list, one item per line."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.count = 0

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        for row in rows:
            self.file.write(("[\n" if not self.count else ",\n") + json.dumps(row, ensure_ascii=False))
            self.count += 1

    def close(self) -> None:
        self.file.write("\n]\n" if self.count else "[]\n")
        super().close()


class VideoFile:
    """An .mp4 file being written, and its progress bar. The frame rate is kept: 29.97 stays 29.97.

    Args:
        path: None writes no file. frame: the first one.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path | None, frame: Frame, vid_stride: int):
        info = frame.video
        assert info is not None
        self.source, self.writer, self.size, self.live = frame.path, None, info.size, info.live
        frames = -(-info.frames // vid_stride) or None  # None: unknown
        if path is not None:
            fps = info.fps / vid_stride
            fps = round(fps, 3 if fps < 65 else 2)  # MPEG-4 holds a rate as a fraction of 16-bit numbers
            size = info.size[::-1]
            self.writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
            if not self.writer.isOpened():
                raise OSError(f"{path}: could not start an mp4 video of {size[0]}x{size[1]} at {fps} fps")
        self.bar = tqdm(total=frames, desc=str(frame.path), unit="frame")

    def add(self, image: np.ndarray, text: str) -> None:
        """Append a frame (H, W, 3) RGB, resized if a stream changed its size; `text` is shown in the progress bar."""
        if self.writer is not None:
            if image.shape[:2] != self.size:
                image = cv2.resize(image, self.size[::-1])
            self.writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.tick(text)

    def tick(self, text: str) -> None:
        """Advance the progress bar by a frame."""
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.release()


class Crops:
    """Writes each box's part of an image to crops/<class>/<stem>.jpg, <stem>_2.jpg, ..."""

    def __init__(self, folder: Path, names: Mapping[int, str]):
        self.folder, self.names = folder, names
        self.written: set[Path] = set()

    def add(self, stem: str, image: np.ndarray, boxes: Boxes) -> None:
        for xyxy, label in zip(boxes.xyxy, boxes.label.tolist(), strict=True):
            folder = self.folder / folder_name(self.names.get(label, str(label)))
            folder.mkdir(parents=True, exist_ok=True)
            path, n = folder / f"{stem}.jpg", 1
            while path in self.written:
                n += 1
                path = folder / f"{stem}_{n}.jpg"
            self.written.add(path)
            imwrite(path, crop(image, xyxy))


def crop(image: np.ndarray, xyxy: np.ndarray) -> np.ndarray:
    """The part of `image` in a box (4,) of corner pixels, which is extended to whole pixels; a new array."""
    (x1, y1), (x2, y2) = np.floor(xyxy[:2]).clip(min=0).astype(int), np.ceil(xyxy[2:]).astype(int)
    return np.ascontiguousarray(image[y1:y2, x1:x2])


def folder_name(text: str) -> str:
    """A class name as a folder name: without characters that file systems refuse, and never '..' or empty."""
    return re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", text).strip(" .") or "_"


def count_classes(boxes: Boxes, names: Mapping[int, str]) -> str:
    """'3 ball, 1 star', in the order of class indices; empty without boxes."""
    counts = sorted(Counter(boxes.label.tolist()).items())
    return ", ".join(f"{n} {names.get(label, str(label))}" for label, n in counts)
