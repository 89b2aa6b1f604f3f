"""rank.html, rank.csv and rank.txt: the images to label next."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from utils.boxes import Boxes
from utils.drawing import draw_boxes
from utils.evaluate.error_page import jpeg
from utils.files import write_atomic
from utils.images import imread
from utils.palette import class_hex
from utils.templates import render
from utils.text import cell, clean

TEMPLATE = "rank.html.j2"
SHOWN = 200  # images of the page; rank.csv has all
SIDE = 420  # pixels, long side of an image of the page
DRAWN = 0.25  # least confidence of a box that is drawn
FEW = 12  # boxes up to which their classes are written
KEYS = 30  # classes in the key of colors
COLUMNS = ("rank", "image", "uncertainty", "entropy", "disagreement", "surprise", "distance", "detections", "reason")


@dataclass(frozen=True)
class RankedImage:
    """An image of the list.

    Attributes:
        found: detections in its pixels. uncertainty: 0..1, the share of images that are less uncertain.
        entropy, disagreement, surprise: see Uncertainty. distance: see Choice.
    """

    path: str
    found: Boxes
    uncertainty: float
    entropy: float
    disagreement: float
    surprise: float
    distance: float
    reason: str

    @property
    def detections(self) -> int:
        """The number of detections that are drawn."""
        return int((self.found.score >= DRAWN).sum())


def write_ranking(folder: Path, ranked: Sequence[RankedImage], names: Mapping[int, str], title: str) -> None:
    """Write rank.csv, rank.txt (a path a line, which detect.py reads) and rank.html into `folder`.

    Args:
        title: what was ranked by which model, for the head of the page.

    Raises:
        OSError: a file could not be written.
    """
    write_atomic(folder / "rank.csv", table(ranked))
    write_atomic(folder / "rank.txt", "".join(f"{Path(item.path).resolve()}\n" for item in ranked))
    cards = [
        {"rank": k, "name": clean(Path(item.path).name, 120), "item": item, "src": picture(item, names)}
        for k, item in enumerate(ranked[:SHOWN], start=1)
    ]
    drawn = np.concatenate([np.zeros(0, np.int64), *(item.found.label for item in ranked[:SHOWN])])
    page = render(
        Path(__file__).parent,
        TEMPLATE,
        title=clean(title),
        cards=cards,
        total=len(ranked),
        drawn=DRAWN,
        classes=[(clean(names.get(c, str(c)), 40), class_hex(c)) for c in np.unique(drawn).tolist()][:KEYS],
    )
    write_atomic(folder / "rank.html", page.encode("utf-8", "backslashreplace"))


def table(ranked: Sequence[RankedImage]) -> str:
    """The text of rank.csv; an empty distance: there is no image before it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for k, item in enumerate(ranked, start=1):
        numbers = (item.uncertainty, item.entropy, item.disagreement, item.surprise, item.distance)
        shown = ["" if np.isnan(v) else f"{v:.4f}" for v in numbers]
        writer.writerow([k, cell(item.path), *shown, item.detections, cell(item.reason)])
    return text.getvalue()


def picture(item: RankedImage, names: Mapping[int, str]) -> str:
    """The image with its detections as a data URI; empty if it cannot be read any more."""
    try:
        image = imread(item.path)
    except (ValueError, OSError):
        return ""
    h, w = image.shape[:2]
    scale = SIDE / max(h, w)
    size = max(round(w * scale), 1), max(round(h * scale), 1)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    boxes = item.found[item.found.score >= DRAWN]
    boxes = boxes.at(boxes.xyxy * np.array([size[0] / w, size[1] / h] * 2))
    return jpeg(draw_boxes(image, boxes, names, hide_labels=len(boxes) > FEW), SIDE)
