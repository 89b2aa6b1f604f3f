"""Results of the Python API: printed, shown, saved, cropped, as pandas tables, boxes in four coordinate frames."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageShow
from torch import Tensor

from utils.boxes import Boxes
from utils.drawing import draw_boxes
from utils.images import imwrite
from utils.predict import exchange
from utils.predict.notebook import PREVIEWED, has_viewer, html, png, smaller
from utils.predict.writers import (
    Crops,
    count_classes,
    crop,
    file_name,
    json_text,
    shorten,
    shown_names,
    writable_suffix,
)
from utils.runs import Run
from utils.text import counted

if TYPE_CHECKING:
    import pandas as pd

LOGGER = logging.getLogger(__name__)
COORDINATES = {
    "xyxy": ("xmin", "ymin", "xmax", "ymax"),
    "xyxyn": ("xmin", "ymin", "xmax", "ymax"),
    "xywh": ("xcenter", "ycenter", "width", "height"),
    "xywhn": ("xcenter", "ycenter", "width", "height"),
}


@dataclass(frozen=True)
class Tables:
    """One pandas table per image in each coordinate frame: four coordinates, confidence, class, name."""

    xyxy: list[pd.DataFrame]
    xyxyn: list[pd.DataFrame]
    xywh: list[pd.DataFrame]
    xywhn: list[pd.DataFrame]


class Detections:
    """Detections in a list of images.

    Attributes:
        ims: (H, W, 3) uint8 RGB images. files: a file name for each. names: class index -> name.
        xyxy, xywh: for each image (n, 6) tensors of corners, or center and size, in pixels, then score and class,
            best first; `pred` is another name of xyxy. xyxyn, xywhn: the same with coordinates in 0..1.
        times: milliseconds per image of letterbox, network and NMS. n: number of images.
        s: shape (B, 3, H, W) of the network's input, the largest of each side.
    """

    def __init__(
        self,
        ims: Sequence[np.ndarray],
        boxes: Sequence[Boxes],
        files: Sequence[str],
        names: dict[int, str],
        times: tuple[float, ...] = (0.0, 0.0, 0.0),
        shape: tuple[int, ...] = (),
    ):
        self.ims, self.files, self.names, self.times, self.s = list(ims), list(files), names, times, shape
        self.n, self.boxes = len(self.ims), list(boxes)
        self.xyxy: list[Tensor] = [torch.from_numpy(own.table().astype(np.float32)) for own in boxes]
        self.xywh = [self.centered(rows) for rows in self.xyxy]
        units = [torch.tensor([*im.shape[1::-1], *im.shape[1::-1], 1, 1], dtype=torch.float32) for im in self.ims]
        self.xyxyn = [rows / unit for rows, unit in zip(self.xyxy, units, strict=True)]
        self.xywhn = [rows / unit for rows, unit in zip(self.xywh, units, strict=True)]

    @property
    def pred(self) -> list[Tensor]:
        """The same as xyxy."""
        return self.xyxy

    @staticmethod
    def centered(xyxy: Tensor) -> Tensor:
        """(n, 6) with corners first -> with center and size first; a new tensor."""
        low, high = xyxy[:, :2], xyxy[:, 2:4]
        return torch.cat([(low + high) / 2, high - low, xyxy[:, 4:]], dim=1)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Detections]:
        return iter(self.tolist())

    def __getitem__(self, i: int) -> Detections:
        return self.tolist()[i]

    def __str__(self) -> str:
        lines = [
            f"image {i}/{self.n}: {im.shape[0]}x{im.shape[1]} {count_classes(own, self.names) or '(no detections)'}"
            for i, (im, own) in enumerate(zip(self.ims, self.boxes, strict=True), start=1)
        ]
        pre, network, nms = self.times
        lines.append(f"Speed: {pre:.1f} ms pre-process, {network:.1f} ms inference, {nms:.1f} ms NMS per image")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Detections of {counted(self.n, 'image')}:\n{self}"

    def name(self, index: float) -> str:
        """The name of a class; its index if it has none."""
        return self.names.get(int(index), str(int(index)))

    def print(self) -> None:
        """Print the counts of detections in each image, and the time per image."""
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        print(str(self).encode(encoding, "backslashreplace").decode(encoding))

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Annotated copies of the images, (H, W, 3) uint8 RGB."""
        return [
            draw_boxes(im, own, shown_names(self.names), hide_labels=not labels)
            for im, own in zip(self.ims, self.boxes, strict=True)
        ]

    def show(self, labels: bool = True) -> None:
        """Open each annotated image in the system's viewer, in a notebook below the cell; without one save them.

        Where they are saved is printed.
        """
        images = self.render(labels)
        if not (has_viewer() and all(ImageShow.show(Image.fromarray(image)) for image in images)):
            print(f"no viewer for images here: {counted(self.n, 'image')} saved in {self.save(labels)}")

    def _repr_html_(self) -> str:
        """What a notebook shows of it: the first annotated images, and their counts."""
        return html(self.preview(), self.n, str(self))

    def _repr_png_(self) -> bytes | None:
        """The first annotated images beside each other, for notebooks that show no HTML; None without images."""
        return png(self.preview())

    def preview(self) -> list[np.ndarray]:
        """The first images, annotated and small enough for a notebook."""
        first_ones = zip(self.ims[:PREVIEWED], self.boxes, strict=False)
        names = shown_names(self.names)
        return [smaller(draw_boxes(im, own, names)) for im, own in first_ones]

    def save(self, labels: bool = True, save_dir: str | Path = "runs/detect/exp", exist_ok: bool = False) -> Path:
        """Write the annotated images into `save_dir`, which is numbered if it exists; returns the folder.

        Args:
            exist_ok: write into an existing folder; no file in it is overwritten: a name in use is numbered.
        """
        folder = self.folder(save_dir, exist_ok)
        for file, image in zip(self.unique_files(), self.render(labels), strict=True):
            stem, suffix, copy = Path(file).stem, writable_suffix(Path(file), image), 1
            path = folder / f"{stem}{suffix}"
            while os.path.lexists(path):
                copy += 1
                path = folder / f"{stem}-{copy}{suffix}"
            imwrite(path, image)
        LOGGER.info(f"{counted(self.n, 'image')} in {folder}")
        return folder

    def crop(
        self, save: bool = True, save_dir: str | Path = "runs/detect/exp", exist_ok: bool = False
    ) -> list[dict[str, Any]]:
        """The part of the image in each box: dicts of box (4,), conf, cls, label 'name 0.93' and im (h, w, 3) RGB.

        Args:
            save: also write them to `save_dir`/crops/<class>/.
            exist_ok: write into an existing folder; no file in it is overwritten: a name in use is numbered.
        """
        writer = Crops(self.folder(save_dir, exist_ok) / "crops", self.names) if save else None
        crops = []
        for im, rows, boxes, file in zip(self.ims, self.xyxy, self.boxes, self.unique_files(), strict=True):
            for row in rows:
                piece = crop(im, row[:4].numpy())
                label = f"{self.name(row[5])} {row[4]:.2f}"
                crops.append({"box": row[:4], "conf": row[4], "cls": row[5], "label": label, "im": piece})
            if writer:
                writer.add(Path(file).stem, im, boxes)
        return crops

    def pandas(self) -> Tables:
        """Tables with xmin, ymin, xmax, ymax (or xcenter, ycenter, width, height), confidence, class, name."""
        return Tables(**{frame: [self.table(rows, frame) for rows in getattr(self, frame)] for frame in COORDINATES})

    def table(self, rows: Tensor, frame: str) -> pd.DataFrame:
        """The table of one image from its `rows` (n, 6), whose coordinates are of the kind `frame` in COORDINATES."""
        import pandas as pd  # slow to import, and few programs ask for tables

        table = pd.DataFrame(rows[:, :5].numpy(), columns=[*COORDINATES[frame], "confidence"])
        table["class"] = rows[:, 5].int().numpy()
        names = pd.Series([*(self.name(c) for c in rows[:, 5]), ""])  # one more: a column of none would not be text
        table["name"] = names[:-1]
        return table

    def to_json(self) -> str:
        """A JSON list with one item per image: file, and its boxes as in pandas().xyxy."""
        tables = self.pandas().xyxy
        images = [
            {"file": file, "boxes": table.to_dict(orient="records")}
            for file, table in zip(self.files, tables, strict=True)
        ]
        return json_text(images)

    def to_supervision(self) -> list[Any]:
        """One supervision.Detections per image, with class names; needs the package."""
        return [exchange.to_supervision(rows, [self.name(c) for c in rows[:, 5]]) for rows in self.xyxy]

    def to_fiftyone(self) -> list[Any]:
        """One fiftyone.Detections per image, a value for a sample's field; needs the package."""
        return [exchange.to_fiftyone(rows, [self.name(c) for c in rows[:, 5]]) for rows in self.xyxyn]

    def tolist(self) -> list[Detections]:
        """One Detections per image."""
        return [
            Detections([im], [own], [file], self.names, self.times, self.s)
            for im, own, file in zip(self.ims, self.boxes, self.files, strict=True)
        ]

    @staticmethod
    def folder(save_dir: str | Path, exist_ok: bool) -> Path:
        """`save_dir`, made now; numbered if it exists and `exist_ok` is not set."""
        path = Path(save_dir)
        return Run(path.parent, path.name, exist_ok).dir

    def unique_files(self) -> list[str]:
        """`files`, numbered where two images have the same."""
        given: list[str] = []
        for file in self.files:
            path, copy = Path(file), 1
            path = path.with_stem(shorten(file_name(path.stem)))
            name = path.name
            while name.casefold() in (other.casefold() for other in given):
                copy += 1
                name = f"{path.stem}-{copy}{path.suffix}"
            given.append(name)
        return given
