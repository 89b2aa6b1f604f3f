"""Sets for the doctor's tests: healthy ones in all three forms, and what it finds in a set."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import yaml
from data_sets import noise

from tools.doctor import DoctorConfig, diagnose
from utils.doctor.examine import Diagnosis
from utils.images import imwrite

SIZE = (96, 128)  # height, width of the images
COUNTS = {"train": 20, "val": 3, "test": 2}  # images of each split
NAMES = ["cat", "dog"]
PIXELS = ((0, 8.0, 8.0, 48.0, 48.0), (1, 64.0, 32.0, 120.0, 88.0))  # class, x1, y1, x2, y2 of the boxes of all images
LINES = "0 0.21875 0.2916667 0.3125 0.4166667\n1 0.71875 0.625 0.4375 0.5833333\n"


def healthy_set(root: Path, form: str = "yolo") -> Path:
    """A set of noise with two boxes in each image, in the form 'yolo', 'coco' or 'voc'; returns its data YAML."""
    content: dict[str, object] = {"path": ".", "names": NAMES}
    annotations = {}
    for s, (split, count) in enumerate(COUNTS.items()):
        folder = root / "images" / split
        folder.mkdir(parents=True)
        content[split] = f"images/{split}"
        images = [folder / f"{split}{i}.png" for i in range(count)]
        for i, image in enumerate(images):
            imwrite(image, blotches(100 * s + i))
        annotations[split] = write_labels(root, split, images, form)
    if form != "yolo":
        content["annotations"] = annotations
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    return root / "data.yaml"


def blotches(seed: int) -> np.ndarray:
    """A random image with large structures, unlike that of any other seed."""
    return np.kron(noise((12, 16), seed), np.ones((8, 8, 1), np.uint8))


def write_labels(root: Path, split: str, images: list[Path], form: str) -> str:
    """Write the labels of a split; returns its entry under `annotations`."""
    if form == "coco":
        rows = [{"id": i, "file_name": image.name, "width": 128, "height": 96} for i, image in enumerate(images)]
        boxes = [(i, c, x1, y1, x2, y2) for i in range(len(images)) for c, x1, y1, x2, y2 in PIXELS]
        objects = [
            {"id": k, "image_id": i, "category_id": c, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
            for k, (i, c, x1, y1, x2, y2) in enumerate(boxes)
        ]
        categories = [{"id": c, "name": name} for c, name in enumerate(NAMES)]
        file = root / f"{split}.json"
        file.write_text(json.dumps({"images": rows, "annotations": objects, "categories": categories}))
        return file.name
    folder = root / ("labels" if form == "yolo" else "Annotations") / split
    folder.mkdir(parents=True)
    for image in images:
        if form == "yolo":
            (folder / f"{image.stem}.txt").write_text(LINES)
        else:
            (folder / f"{image.stem}.xml").write_text(voc_text())
    return f"Annotations/{split}"


def voc_text(difficult: int = 0) -> str:
    """A Pascal VOC file with the boxes of PIXELS."""
    corners = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{NAMES[int(c)]}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{tag}>{value:g}</{tag}>" for tag, value in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for c, *box in PIXELS
    )
    return f"<annotation><size><width>128</width><height>96</height></size>{objects}</annotation>"


def doctor(data: Path, **flags: object) -> Diagnosis:
    """What the doctor finds in a set."""
    return diagnose(DoctorConfig(**{"data": str(data), "imgsz": 128, "device": "cpu", **flags}))  # type: ignore[arg-type]


def checks(result: Diagnosis) -> dict[str, str]:
    """Check -> the worst level of its findings."""
    found: dict[str, str] = {}
    for item in result.findings:
        found.setdefault(item.check, item.level)
    return found


def fingerprint(root: Path) -> dict[str, str]:
    """Hash of every file below `root`."""
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}
