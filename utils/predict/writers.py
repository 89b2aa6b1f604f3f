"""File formats of detections: label files, COCO's result format, CSV, JSON, crops; the names of files."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np

from utils.boxes import Boxes, Tracked, pairwise_iou, xyxy2ltwh, xyxy2xywhn
from utils.data.labels import label_line
from utils.files import write_atomic
from utils.images import imwrite
from utils.runs import OutputFiles
from utils.text import cell, clean, first, visible

LOGGER = logging.getLogger(__name__)
LONGEST_SIDE = {".jpeg": 65500, ".jpg": 65500, ".webp": 16383}  # pixels, of formats that have a limit
ONE_OBJECT = 0.45  # IoU above which boxes of different classes count as of one object, as in NMS
LONGEST_PATH = 4096  # characters of a path in a table
LONGEST_STEM = 200  # bytes; a number, an ending and the hidden name during writing are added
SURROGATES = "".join(map(chr, range(0xDC80, 0xDD00)))  # bytes that are not UTF-8, as of a character cut in two


class Stems:
    """File stems of the outputs, unique within a run; the label files of a video v are v_1, v_2, ..."""

    def __init__(self) -> None:
        self.given: dict[Path, str] = {}
        self.images: set[str] = set()
        self.videos: set[str] = set()

    def in_use(self, stem: str, is_video: bool) -> bool:
        """Whether a file of an earlier input has `stem`, or would have it."""
        stem = stem.casefold()
        head = re.fullmatch(r"(.+)_\d+", stem, re.DOTALL)
        if stem in self.images | self.videos or (head and head[1] in self.videos):
            return True
        return is_video and any(re.fullmatch(re.escape(stem) + r"_\d+", other) for other in self.images)

    def __call__(self, path: Path, is_video: bool) -> str:
        """The stem of `path` without control characters, shortened if it is very long, followed by -2, -3, ... if an
        earlier input has it.
        """
        if path not in self.given:
            short = shorten(file_name(path.stem))
            stem, copy = short, 1
            while self.in_use(stem, is_video):
                copy += 1
                stem = f"{short}-{copy}"
            self.given[path] = stem
            (self.videos if is_video else self.images).add(stem.casefold())
        return self.given[path]

    def renamed(self) -> list[tuple[str, str]]:
        """The inputs whose outputs have another stem, and that stem."""
        return [(str(path), stem) for path, stem in self.given.items() if stem != path.stem]


def file_name(text: str) -> str:
    """`text` with _ in place of control characters; bytes that are not UTF-8 stay."""
    if text.isprintable():
        return text
    return "".join(c if visible(c) or c in SURROGATES else "_" for c in text)


def shown_names(names: Mapping[int, str]) -> dict[int, str]:
    """Class names as they are drawn and printed: short, without control characters."""
    return {label: clean(name) for label, name in names.items()}


def csv_text(value: object) -> str:
    """Text from a file for a CSV cell: one line, bytes that are not UTF-8 as escapes, and no formula."""
    return cell(clean(str(value).encode("utf-8", "backslashreplace").decode("utf-8"), LONGEST_PATH))


def json_text(value: object) -> str:
    """JSON of one value, in which control characters are escaped, also those beyond ASCII."""
    text = json.dumps(value, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if visible(c) else "\\u007f" if c == "\x7f" else json.dumps(c)[1:-1] for c in text)


def shorten(name: str, limit: int = LONGEST_STEM) -> str:
    """`name`, or if it has more than `limit` bytes its start and a checksum of it: names on disk have up to 255."""
    data = os.fsencode(name)
    return name if len(data) <= limit else f"{os.fsdecode(data[: limit - 9]).rstrip(SURROGATES)}-{zlib.crc32(data):08x}"


def write_renamed(files: OutputFiles, stems: Stems) -> None:
    """renamed.csv: the inputs whose outputs have another name; not written if there is none."""
    if renamed := stems.renamed():
        text = io.StringIO()
        rows = [(csv_text(path), csv_text(stem)) for path, stem in renamed]
        csv.writer(text, lineterminator="\n").writerows([("Path", "Stem"), *rows])
        with files.writing(files.folder / "renamed.csv") as path:
            write_atomic(path, text.getvalue())


def label_text(boxes: Boxes, size: tuple[int, int], scores: bool) -> str:
    """Lines 'class cx cy w h [score] [identity]' in 0..1 for boxes in pixels of an image of `size` (height, width)."""
    rows = np.column_stack([xyxy2xywhn(boxes.xyxy, size), boxes.score])[:, : 5 if scores else 4]
    items = zip(boxes.label.tolist(), rows, identities(boxes), strict=True)
    return "".join(label_line(label, row, *identity) for label, row, identity in items)


def identities(boxes: Boxes) -> list[list[int]]:
    """A list for each box, which holds its identity; empty ones without tracking."""
    return boxes.identity[:, None].tolist() if isinstance(boxes, Tracked) else [[] for _ in range(len(boxes))]


def by_identity(boxes: Boxes, names: Mapping[int, str]) -> tuple[Boxes, Mapping[int, str]]:
    """Boxes and names for drawing: tracked ones as '#7 car', each object in a color of its own."""
    if not isinstance(boxes, Tracked):
        return boxes, names
    pairs = zip(boxes.identity.tolist(), boxes.label.tolist(), strict=True)
    texts = {identity: f"#{identity} {names.get(label, str(label))}" for identity, label in pairs}
    return Boxes(boxes.xyxy, boxes.identity, boxes.score), texts


def write_labels(files: OutputFiles, path: Path, text: str) -> None:
    """Write a label file; without `text` there is none, as for background images.

    Raises:
        FileExistsError: somebody else's file is there, also where none is written: it would pass for a result.
    """
    files.check(path)
    if text:
        with files.writing(path):
            write_atomic(path, text)


def write_classes(files: OutputFiles, names: Mapping[int, str]) -> None:
    """labels/classes.txt: the names of all classes, a line each, for programs that edit label files.

    It is not written without label files, nor where an image called classes has the file.
    """
    path = files.folder / "labels" / "classes.txt"
    if any(name.startswith("labels/") for name in files.known) and files.key(path) not in files.known:
        with files.writing(path):
            write_atomic(path, "".join(f"{clean(names.get(k, k))}\n" for k in range(max(names, default=-1) + 1)))


def hybrid(found: Boxes, truth: Boxes, iou_thres: float) -> Boxes:
    """The ground truth, then the detections of objects without a label.

    Left out are those that overlap a label of their class by more than `iou_thres`, and those that overlap one of
    another class by more than that or ONE_OBJECT: a second class on a labeled object would spoil its label.
    """
    limit = np.where(found.label[:, None] == truth.label[None], iou_thres, min(iou_thres, ONE_OBJECT))
    covered = np.asarray(pairwise_iou(found.xyxy, truth.xyxy) > limit)
    return Boxes.join([truth, found[np.flatnonzero(~covered.any(axis=1))]])


def writable_suffix(path: Path, image: np.ndarray) -> str:
    """The suffix of `path`, or .png, which is logged, where OpenCV cannot write such files or not of this size."""
    suffix, side = path.suffix, max(image.shape)
    known = cv2.haveImageWriter(f"x{suffix}")
    if known and side <= LONGEST_SIDE.get(suffix.lower(), side):
        return suffix
    shown = clean(suffix, 20)
    reason = f"{side} pixels are too many for {shown}" if known else f"no encoder for '{shown}' files"
    LOGGER.warning(f"{first([path])}: written as .png, {reason}")
    return ".png"


def coco_rows(
    image_id: int | str, boxes: Boxes, categories: dict[int, int] | None = None, path: Path | None = None
) -> list[dict[str, Any]]:
    """Rows of a COCO result file: image_id, category_id, bbox x, y, width, height in pixels, score; identity, path.

    Args:
        categories: class index -> category id; None: the index itself. path: of the image; None leaves it out.
    """
    rows = []
    ltwh = xyxy2ltwh(boxes.xyxy.astype(np.float64)).tolist()
    columns = boxes.label.tolist(), boxes.score.tolist(), identities(boxes)
    for bbox, label, score, identity in zip(ltwh, *columns, strict=True):
        category = categories.get(label, label) if categories else label
        rounded = [round(v, 3) for v in bbox]
        row = {"image_id": image_id, "category_id": category, "bbox": rounded, "score": round(score, 5)}
        if identity:
            row["track_id"] = identity[0]
        rows.append(row if path is None else row | {"path": str(path)})
    return rows


class ImageIds:
    """The ids of images in a result file, no two the same, as numbers or as text."""

    def __init__(self) -> None:
        self.given: dict[str, str] = {}  # id as text -> stem

    def __call__(self, stem: str) -> int | str:
        """The stem, as a number if it is one, as in COCO's file names; 7 and 007 get 7 and '007-2', which is logged."""
        number = int(stem) if stem.isdecimal() else stem
        if self.given.setdefault(str(number), stem) == stem:
            return number
        copy = 2
        while self.given.setdefault(f"{stem}-{copy}", stem) != stem:
            copy += 1
        LOGGER.warning(f"image {stem}: its image_id is '{stem}-{copy}', {number} is that of {self.given[str(number)]}")
        return f"{stem}-{copy}"


class Appender:
    """A text file that grows during a run, under a hidden name until it is closed.

    Characters that are not UTF-8, as in some file names, are written as escapes.

    Raises:
        OSError: it could not be written; names the file, of which nothing is left.
    """

    def __init__(self, path: Path):
        self.path, self.failed = path, False
        self.partial = path.with_name(f".{os.getpid()}.{path.name}.part")
        self.partial.unlink(missing_ok=True)  # of a run that was killed
        self.file: IO[str] = self.partial.open("x", encoding="utf-8", errors="backslashreplace", newline="")

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Nothing of the file is left if the block fails to write."""
        try:
            yield
        except OSError as error:
            self.failed = True
            with suppress(OSError):  # what is buffered cannot be written either
                self.file.close()
            self.partial.unlink(missing_ok=True)
            raise OSError(error.errno, f"{error.strerror}; not saved", str(self.path)) from error

    def close(self) -> None:
        if not self.failed:
            with self.whole():
                self.file.flush()
                os.fsync(self.file.fileno())
                self.file.close()
                os.replace(self.partial, self.path)


class CsvFile(Appender):
    """A table with a header."""

    def __init__(self, path: Path, header: Sequence[str]):
        super().__init__(path)
        self.writer = csv.writer(self.file)
        self.add([header])

    def add(self, rows: Iterable[Sequence[object]]) -> None:
        with self.whole():
            self.writer.writerows(rows)


class JsonFile(Appender):
    """One JSON list, one item per line."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.count = 0

    def add(self, rows: Iterable[Mapping[str, object]]) -> None:
        with self.whole():
            for row in rows:
                self.file.write(("[\n" if not self.count else ",\n") + json_text(row))
                self.count += 1

    def close(self) -> None:
        if not self.failed:
            with self.whole():
                self.file.write("\n]\n" if self.count else "[]\n")
        super().close()


class Crops:
    """Writes each box's part of an image to crops/<class>/<stem>.jpg, <stem>_2.jpg, ...; overwrites nothing."""

    def __init__(self, folder: Path, names: Mapping[int, str], files: OutputFiles | None = None):
        self.folder, self.names, self.files = folder, names, files
        self.folders: dict[str, str] = {}  # class name -> folder name
        for name in names.values():
            self.folder_of(name)
        self.written: set[str] = set()

    def folder_of(self, name: str) -> str:
        """The folder of a class, another one for each name, also where disks do not tell Cat from cat."""
        if name not in self.folders:
            folder, copy = folder_name(name), 1
            while folder.casefold() in {other.casefold() for other in self.folders.values()}:
                copy += 1
                folder = f"{folder_name(name)}-{copy}"
            self.folders[name] = folder
        return self.folders[name]

    def add(self, stem: str, image: np.ndarray, boxes: Boxes) -> None:
        """Write the crops of an image, which no other image of this `stem` may follow."""
        for xyxy, label in zip(boxes.xyxy, boxes.label.tolist(), strict=True):
            folder = self.folder / self.folder_of(self.names.get(label, str(label)))
            path, n = folder / f"{stem}.jpg", 1
            while str(path).casefold() in self.written or (self.files is None and os.path.lexists(path)):
                n += 1
                path = folder / f"{stem}_{n}.jpg"
            self.written.add(str(path).casefold())
            if self.files is None:
                folder.mkdir(parents=True, exist_ok=True)
                imwrite(path, crop(image, xyxy))
            else:
                with self.files.writing(path):
                    imwrite(path, crop(image, xyxy))


def crop(image: np.ndarray, xyxy: np.ndarray) -> np.ndarray:
    """The part of `image` in a box (4,) of corner pixels, which is extended to whole pixels; a new array."""
    (x1, y1), (x2, y2) = np.floor(xyxy[:2]).clip(min=0).astype(int), np.ceil(xyxy[2:]).astype(int)
    return np.ascontiguousarray(image[y1:y2, x1:x2])


def folder_name(text: str) -> str:
    """A class name as a folder name: without characters that file systems refuse, and never '..' or empty."""
    return shorten(re.sub(r'[/\\:*?"<>|]', "_", file_name(text)).strip(" .")) or "_"


def count_classes(boxes: Boxes, names: Mapping[int, str]) -> str:
    """'3 balls, 1 star', in the order of class indices; empty without boxes."""
    counts = sorted(Counter(boxes.label.tolist()).items())
    return ", ".join(counted_class(n, names.get(label, str(label))) for label, n in counts)


def counted_class(count: int, name: str) -> str:
    """'1 cat', '2 cats'; only English words that end in a common letter get an s."""
    text = clean(name)
    plural = count != 1 and re.fullmatch(r"[a-z]+( [a-z]+)*[abcdegiklmnoprtuw]", text)
    return f"{count:,} {text}{'s' if plural else ''}"
