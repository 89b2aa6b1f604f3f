"""Detections of a few pictures as Python users know them: print, show, save, crop, pandas, boxes in four frames."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from utils.drawing import draw_boxes
from utils.images import imwrite
from utils.predict.writers import crop, folder_name
from utils.runs import Run

LOGGER = logging.getLogger(__name__)
COORDINATES = {
    "xyxy": ("xmin", "ymin", "xmax", "ymax"),
    "xyxyn": ("xmin", "ymin", "xmax", "ymax"),
    "xywh": ("xcenter", "ycenter", "width", "height"),
    "xywhn": ("xcenter", "ycenter", "width", "height"),
}


@dataclass(frozen=True)
class Tables:
    """One pandas table a picture in each frame: four coordinates, confidence, class, name."""

    xyxy: list[pd.DataFrame]
    xyxyn: list[pd.DataFrame]
    xywh: list[pd.DataFrame]
    xywhn: list[pd.DataFrame]


class Detections:
    """The boxes of a list of pictures.

    Attributes:
        ims: (H, W, 3) uint8 RGB pictures. files: a file name for each. names: class index -> name.
        xyxy, xywh: for each picture (n, 6) tensors of corners, or centre and size, in pixels, then score and class,
            best first; `pred` is another name of xyxy. xyxyn, xywhn: the same with coordinates in 0..1.
        times: milliseconds a picture of letterbox, network and NMS. n: pictures. s: (B, 3, H, W) of the input.
    """

    def __init__(
        self,
        ims: Sequence[np.ndarray],
        boxes: Sequence[np.ndarray],
        files: Sequence[str],
        names: dict[int, str],
        times: tuple[float, ...] = (0.0, 0.0, 0.0),
        shape: tuple[int, ...] = (),
    ):
        self.ims, self.files, self.names, self.times, self.s = list(ims), list(files), names, times, shape
        self.n = len(self.ims)
        self.xyxy: list[Tensor] = [
            torch.from_numpy(np.asarray(rows, dtype=np.float32).reshape(-1, 6)) for rows in boxes
        ]
        self.xywh = [self.centred(rows) for rows in self.xyxy]
        units = [torch.tensor([*im.shape[1::-1], *im.shape[1::-1], 1, 1], dtype=torch.float32) for im in self.ims]
        self.xyxyn = [rows / unit for rows, unit in zip(self.xyxy, units, strict=True)]
        self.xywhn = [rows / unit for rows, unit in zip(self.xywh, units, strict=True)]

    @property
    def pred(self) -> list[Tensor]:
        return self.xyxy

    @staticmethod
    def centred(xyxy: Tensor) -> Tensor:
        """(n, 6) corners first -> centre and size first; a new tensor."""
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
            f"image {i}/{self.n}: {im.shape[0]}x{im.shape[1]} {self.counts(rows)}"
            for i, (im, rows) in enumerate(zip(self.ims, self.xyxy, strict=True), start=1)
        ]
        pre, network, nms = self.times
        lines.append(f"Speed: {pre:.1f} ms pre-process, {network:.1f} ms inference, {nms:.1f} ms NMS per image")
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"Detections of {self.n} picture(s):\n{self}"

    def counts(self, rows: Tensor) -> str:
        """'2 person, 1 tie', in the order of classes."""
        counts = sorted(Counter(rows[:, 5].int().tolist()).items())
        return ", ".join(f"{n} {self.name(c)}" for c, n in counts) or "(no detections)"

    def name(self, index: float) -> str:
        return self.names.get(int(index), str(int(index)))

    def print(self) -> None:
        """Print what was found in each picture, and the time it took."""
        print(self)

    def render(self, labels: bool = True) -> list[np.ndarray]:
        """Annotated copies of the pictures, (H, W, 3) uint8 RGB."""
        return [
            draw_boxes(im, rows.numpy(), self.names, hide_labels=not labels)
            for im, rows in zip(self.ims, self.xyxy, strict=True)
        ]

    def show(self, labels: bool = True) -> None:
        """Open each annotated picture in the system's viewer, or below the cell in a notebook."""
        for picture in self.render(labels):
            Image.fromarray(picture).show()

    def save(self, labels: bool = True, save_dir: str | Path = "runs/detect/exp", exist_ok: bool = False) -> Path:
        """Write the annotated pictures into `save_dir` (numbered if it is there); returns the folder."""
        folder = self.folder(save_dir, exist_ok)
        for file, picture in zip(self.unique_files(), self.render(labels), strict=True):
            imwrite(folder / file, picture)
        LOGGER.info(f"{self.n} picture(s) in {folder}")
        return folder

    def crop(
        self, save: bool = True, save_dir: str | Path = "runs/detect/exp", exist_ok: bool = False
    ) -> list[dict[str, Any]]:
        """What is in the boxes: a dict each of box (4,), conf, cls, label 'name 0.93' and im (h, w, 3) RGB.

        Args:
            save: also write them to `save_dir`/crops/<class>/.
        """
        folder = self.folder(save_dir, exist_ok) / "crops" if save else None
        crops = []
        for im, rows, file in zip(self.ims, self.xyxy, self.unique_files(), strict=True):
            for k, row in enumerate(rows):
                name = self.name(row[5])
                piece = crop(im, row.numpy())
                label = f"{name} {row[4]:.2f}"
                crops.append({"box": row[:4], "conf": row[4], "cls": row[5], "label": label, "im": piece})
                if folder:
                    path = folder / folder_name(name) / f"{Path(file).stem}{f'_{k + 1}' if k else ''}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    imwrite(path, piece)
        return crops

    def pandas(self) -> Tables:
        """Tables with xmin, ymin, xmax, ymax (or xcenter, ycenter, width, height), confidence, class, name."""
        return Tables(**{frame: [self.table(rows, frame) for rows in getattr(self, frame)] for frame in COORDINATES})

    def table(self, rows: Tensor, frame: str) -> pd.DataFrame:
        table = pd.DataFrame(rows[:, :5].numpy(), columns=[*COORDINATES[frame], "confidence"])
        table["class"] = rows[:, 5].int().numpy()
        table["name"] = [self.name(c) for c in rows[:, 5]]
        return table

    def to_json(self) -> str:
        """A JSON list with an item a picture: file, and its boxes as in pandas().xyxy."""
        tables = self.pandas().xyxy
        pictures = [
            {"file": file, "boxes": table.to_dict(orient="records")}
            for file, table in zip(self.files, tables, strict=True)
        ]
        return json.dumps(pictures, ensure_ascii=False)

    def tolist(self) -> list[Detections]:
        """One Detections a picture."""
        return [
            Detections([im], [rows.numpy()], [file], self.names, self.times, self.s)
            for im, rows, file in zip(self.ims, self.xyxy, self.files, strict=True)
        ]

    @staticmethod
    def folder(save_dir: str | Path, exist_ok: bool) -> Path:
        path = Path(save_dir)
        return Run(path.parent, path.name, exist_ok).dir

    def unique_files(self) -> list[str]:
        """`files`, numbered where two pictures have the same."""
        given: list[str] = []
        for file in self.files:
            path, copy = Path(file), 1
            name = path.name
            while name.casefold() in (other.casefold() for other in given):
                copy += 1
                name = f"{path.stem}-{copy}{path.suffix}"
            given.append(name)
        return given
