"""The survey of a data set: what the checks need to know of every image, and nothing that is written anywhere.

An image takes about 3 KB of memory and 45 bytes for each box; images are decoded one per thread and not kept.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from utils.boxes import Boxes, xywhn2xyxy
from utils.data.data_yaml import Data
from utils.data.labels import TextLabels
from utils.data.listing import find_images
from utils.data.objects import ImageLabels, LabelReader
from utils.data.scan import THREADS
from utils.decode import PILLOW_ERRORS, decode, pillow_formats
from utils.progress import Progress
from utils.reading import read_bytes

THUMB = 16  # side of the gray miniature by which near-duplicates are confirmed, pixels


@dataclass(slots=True)
class ImageRecord:
    """What is known of one image.

    Attributes:
        size: (height, width), upright; (0, 0) if it is not readable.
        problem: why it cannot be used: missing, unreadable or without an entry; '' if it can.
        damage: what Pillow complains about although the image can be decoded; ''.
        labels: as the reader gives them: clipped, without boxes that have no area.
        label_file: the file that should hold the labels. labeled: it exists.
        digest: of the file's bytes. dhash: see difference_hash. thumb: (THUMB, THUMB) uint8, gray.
        orientation: of EXIF, 1: upright. mode: of Pillow, such as 'RGB' or 'L'. frames: of an animation or a TIFF.
    """

    path: Path
    size: tuple[int, int] = (0, 0)
    problem: str = ""
    damage: str = ""
    labels: ImageLabels = field(default_factory=ImageLabels)
    label_file: Path = Path()
    labeled: bool = False
    digest: bytes = b""
    dhash: int = 0
    thumb: np.ndarray | None = None
    orientation: int = 1
    mode: str = ""
    frames: int = 1

    @property
    def usable(self) -> bool:
        """Whether training would use the image."""
        return not self.problem

    def boxes(self) -> Boxes:
        """All its boxes, crowds included, in pixels of the upright image."""
        return Boxes.labeled(xywhn2xyxy(self.labels.xywhn.astype(np.float64), self.size), self.labels.label)


@dataclass(frozen=True)
class SplitSurvey:
    """The images of one split.

    Attributes:
        sources: its folders, lists and images. reader: of its labels; None if the annotations cannot be read.
        notes: lines of the search for images and labels about files that were passed over or do not match.
        problem: why the split as a whole cannot be used; ''.
    """

    name: str
    sources: list[Path]
    records: list[ImageRecord] = field(default_factory=list)
    reader: LabelReader | None = None
    notes: list[str] = field(default_factory=list)
    problem: str = ""

    @property
    def usable(self) -> list[ImageRecord]:
        """The images that training would use."""
        return [record for record in self.records if record.usable]

    def columns(self) -> BoxColumns:
        """All boxes of the usable images."""
        return BoxColumns.of(self.usable)


@dataclass(frozen=True)
class BoxColumns:
    """The boxes of several images, a row each.

    Attributes:
        label: (n,) int64. xywhn: (n, 4). crowd: (n,) bool. row: (n,) index of the image.
        pixels: (n, 2) width and height in the image. long_side: (n,) of the image, pixels.
    """

    label: np.ndarray
    xywhn: np.ndarray
    crowd: np.ndarray
    row: np.ndarray
    pixels: np.ndarray
    long_side: np.ndarray

    @classmethod
    def of(cls, records: list[ImageRecord]) -> BoxColumns:
        """The boxes of `records`, in order."""
        labels = [record.labels for record in records]
        counts = [len(item.label) for item in labels]
        sizes = np.repeat(np.array([record.size for record in records], np.float64).reshape(-1, 2), counts, axis=0)
        xywhn = np.concatenate([ImageLabels().xywhn, *(item.xywhn for item in labels)]).astype(np.float64)
        return cls(
            np.concatenate([ImageLabels().label, *(item.label for item in labels)]),
            xywhn,
            np.concatenate([ImageLabels().crowd, *(item.crowd for item in labels)]),
            np.repeat(np.arange(len(records)), counts),
            xywhn[:, 2:] * sizes[:, ::-1],
            sizes.max(axis=1, initial=1),
        )

    def short_sides(self, imgsz: int) -> np.ndarray:
        """(n,) the shorter side of each box in pixels of an image scaled to a long side of `imgsz`."""
        return (self.pixels.min(axis=1) * imgsz / self.long_side).round(3)  # float32 gives 7.9999997 for 8

    def __len__(self) -> int:
        return len(self.label)


Survey = Mapping[str, SplitSurvey]


def survey(data: Data) -> dict[str, SplitSurvey]:
    """Every split of a data set, with what could not be read as its `problem`; no file is changed or written."""
    return {name: survey_split(data, name) for name in data.splits}


def survey_split(data: Data, name: str) -> SplitSurvey:
    """The images of split `name`."""
    sources = data.split(name)
    try:
        listing, reader = find_images(sources), data.reader(name)
        notes = [*listing.notes, *reader.match(listing.images)]
    except (ValueError, OSError) as error:
        return SplitSurvey(name, sources, problem=str(error))
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        warnings.simplefilter("ignore")  # of Pillow, about EXIF blocks that are cut short; set for all threads
        work = pool.map(lambda image: read_record(image, reader), listing.images)
        records = list(Progress(work, len(listing.images), lambda: f"examining {name}"))
    return SplitSurvey(name, sources, records, reader, notes)


def read_record(path: Path, reader: LabelReader) -> ImageRecord:
    """What is known of the image in the file `path`."""
    record = ImageRecord(path, label_file=reader.file(path))
    record.labeled = record.label_file.exists()
    if not path.is_file():
        record.problem = "no such file"
    else:
        try:
            content = read_bytes(path, "image")
            record.digest = hashlib.blake2b(content, digest_size=16).digest()
            image, record.orientation = decode(content, path)
            record.size = image.shape[0], image.shape[1]
            gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
            record.thumb = cv2.resize(gray, (THUMB, THUMB), interpolation=cv2.INTER_AREA)
            record.dhash = difference_hash(gray)
            read_header(content, record)
        except (ValueError, OSError) as error:
            record.problem = str(error).removeprefix(f"{path}: ")
    if record.size != (0, 0) or isinstance(reader, TextLabels):  # which need no size
        record.labels = reader.read(path, record.size, record.orientation)
    record.problem = record.problem or record.labels.skip_reason or ""
    return record


def read_header(content: bytes, record: ImageRecord) -> None:
    """Fill in mode, frames and damage by Pillow; it reads JPEGs at an eighth of their size."""
    try:
        with Image.open(io.BytesIO(content), formats=pillow_formats()) as file:
            record.mode = file.mode
            record.frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)  # MPO: a photo and its previews
            file.draft("RGB", (1, 1))
            file.load()
    except PILLOW_ERRORS as error:
        record.damage = " ".join(str(error).split())[:200]


def difference_hash(gray: np.ndarray) -> int:
    """64 bits of a gray image (H, W): whether each cell of an 8 x 9 grid is brighter than its left neighbor.

    Alike for an image and its copies in other sizes, qualities and brightness.
    """
    cells = cv2.resize(gray, (9, 8), interpolation=cv2.INTER_AREA)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def all_records(found: Survey) -> Iterator[tuple[str, ImageRecord]]:
    """(split, image) of every split in order."""
    for split in found.values():
        for record in split.records:
            yield split.name, record
