"""What detections become on disk: annotated pictures and videos, label files, crops, CSV and JSON."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from tqdm import tqdm

from utils.boxes import xyxy2xywhn
from utils.evaluate.matching import pairwise_iou
from utils.images import imwrite
from utils.predict.frames import Frame
from utils.runs import write_atomic


class Stems:
    """Gives each input a stem that no other output of the run has; labels of a video v are v_1, v_2, ..."""

    def __init__(self) -> None:
        self.given: dict[Path, str] = {}
        self.pictures: set[str] = set()
        self.videos: set[str] = set()

    def taken(self, stem: str, is_video: bool) -> bool:
        stem = stem.casefold()
        head = re.fullmatch(r"(.+)_\d+", stem)
        if stem in self.pictures | self.videos or (head and head[1] in self.videos):
            return True
        return is_video and any(re.fullmatch(re.escape(stem) + r"_\d+", other) for other in self.pictures)

    def __call__(self, path: Path, is_video: bool) -> str:
        """The stem of `path`, followed by -2, -3, ... if another input has it."""
        if path not in self.given:
            stem, copy = path.stem, 1
            while self.taken(stem, is_video):
                copy += 1
                stem = f"{path.stem}-{copy}"
            self.given[path] = stem
            (self.videos if is_video else self.pictures).add(stem.casefold())
        return self.given[path]


def label_text(boxes: np.ndarray, size: tuple[int, int], scores: bool) -> str:
    """Lines 'class cx cy w h [score]' in 0..1 for boxes (n, 6) in pixels of an image of `size` (height, width)."""
    rows = np.column_stack([xyxy2xywhn(boxes[:, :4], size), boxes[:, 4]])[:, : 5 if scores else 4]
    lines = (
        " ".join([str(int(label)), *(f"{value:.6f}" for value in row)])
        for label, row in zip(boxes[:, 5], rows, strict=True)
    )
    return "".join(f"{line}\n" for line in lines)


def write_labels(path: Path, text: str) -> None:
    """Write a label file; without `text` there is none, as for a picture of background."""
    if text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
    else:
        path.unlink(missing_ok=True)  # of an earlier run, with --exist-ok


def hybrid(boxes: np.ndarray, labels: np.ndarray, iou_thres: float) -> np.ndarray:
    """(k, 6) xyxy, score, class: the labels (m, 5) class, xyxy with score 1, then the boxes (n, 6) that overlap none of
    their class."""
    same = boxes[:, None, 5] == labels[None, :, 0]
    overlap = np.where(same, pairwise_iou(boxes[:, :4], labels[:, 1:]), 0).max(axis=1, initial=0)
    sure = np.column_stack([labels[:, 1:], np.ones(len(labels)), labels[:, 0]])
    return np.concatenate([sure, boxes[overlap <= iou_thres]])


def coco_rows(image_id: int | str, boxes: np.ndarray, categories: dict[int, int] | None = None) -> list[dict[str, Any]]:
    """Boxes (n, 6) as rows of a COCO result file: image_id, category_id, bbox x, y, w, h in pixels, score.

    Args:
        categories: class index -> category id; None: the index itself.
    """
    rows = []
    for x1, y1, x2, y2, score, label in boxes.tolist():
        category = categories.get(int(label), int(label)) if categories else int(label)
        bbox = [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)]
        rows.append({"image_id": image_id, "category_id": category, "bbox": bbox, "score": round(score, 5)})
    return rows


def image_id(stem: str) -> int | str:
    """COCO's pictures are named by their number; others keep their name."""
    return int(stem) if stem.isdecimal() else stem


class Appender:
    """A file that grows while a run goes on and gets its name when it is whole."""

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

    def add(self, rows: Iterable[Sequence[Any]]) -> None:
        self.writer.writerows(rows)


class JsonFile(Appender):
    """One JSON list, a line an item."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.count = 0

    def add(self, rows: Iterable[Any]) -> None:
        for row in rows:
            self.file.write(("[\n" if not self.count else ",\n") + json.dumps(row, ensure_ascii=False))
            self.count += 1

    def close(self) -> None:
        self.file.write("\n]\n" if self.count else "[]\n")
        super().close()


class VideoFile:
    """An .mp4 under way and its progress bar. `fps` is written as it is: 29.97 stays 29.97.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path | None, frame: Frame, vid_stride: int):
        info = frame.video
        assert info is not None
        self.source, self.writer, self.size, self.live = frame.path, None, info.size, info.live
        frames = -(-info.frames // vid_stride) or None
        if path is not None:
            fps = info.fps / vid_stride
            fps = round(fps, 3 if fps < 65 else 2)  # MPEG-4 holds a rate as a fraction of 16-bit numbers
            size = info.size[::-1]
            self.writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
            if not self.writer.isOpened():
                raise OSError(f"{path}: could not start an mp4 video of {size[0]}x{size[1]} at {fps} fps")
        self.bar = tqdm(total=frames, desc=str(frame.path), unit="frame")

    def add(self, image: np.ndarray, text: str) -> None:
        """A frame (H, W, 3) RGB, scaled if a stream came back in another size, and its text in the bar."""
        if self.writer is not None:
            if image.shape[:2] != self.size:
                image = cv2.resize(image, self.size[::-1])
            self.writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self.tick(text)

    def tick(self, text: str) -> None:
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.release()


class Crops:
    """Writes each box's part of a picture to crops/<class>/<stem>.jpg, <stem>_2.jpg, ..."""

    def __init__(self, folder: Path, names: dict[int, str]):
        self.folder, self.names = folder, names
        self.written: set[Path] = set()

    def add(self, stem: str, image: np.ndarray, boxes: np.ndarray) -> None:
        for box in boxes:
            index = int(box[5])
            folder = self.folder / folder_name(self.names.get(index, str(index)))
            folder.mkdir(parents=True, exist_ok=True)
            path, n = folder / f"{stem}.jpg", 1
            while path in self.written:
                n += 1
                path = folder / f"{stem}_{n}.jpg"
            self.written.add(path)
            imwrite(path, crop(image, box))


def crop(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """What lies in a box x1, y1, x2, y2, grown to whole pixels; a new array."""
    (x1, y1), (x2, y2) = np.floor(box[:2]).clip(min=0).astype(int), np.ceil(box[2:4]).astype(int)
    return np.ascontiguousarray(image[y1:y2, x1:x2])


def folder_name(text: str) -> str:
    """A class name as a folder's: without characters that file systems refuse, never a way up."""
    return re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", text).strip(" .") or "_"
