"""A data set in YOLO format from an export and the folder of its images."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from utils.annotate.exported import Export, Exported, Ledger
from utils.data.labels import free_name, label_line, label_path
from utils.data.objects import Frame, ImageLabels, labels_of, match_ends
from utils.decode import ImageInfo, probe
from utils.files import remove, write_atomic
from utils.text import counted

UPLOADED = re.compile(r"[0-9a-f]{8}(-|__)(?=.)")  # what Label Studio puts before names of uploads, and of its VOC files
CLIPPED = "boxes outside of their image, without area or given twice, clipped or dropped"
BAD_BOXES = "boxes that cannot be used, left out"
CROWDS = "crowds and difficult objects, which YOLO labels cannot mark, left out"


@dataclass(frozen=True)
class Summary:
    """What a data set consists of: images by split, boxes, classes."""

    images: dict[str, int]
    boxes: int
    classes: int

    def __str__(self) -> str:
        splits = ", ".join(f"{count:,} {split}" for split, count in self.images.items())
        total = counted(sum(self.images.values()), "image")
        boxes, classes = counted(self.boxes, "box", "boxes"), counted(self.classes, "class", "classes")
        return f"{total} ({splits}), {boxes}, {classes}"


def match_images(export: Export, images: Sequence[Path], where: str, ledger: Ledger) -> dict[Path, Exported]:
    """The entry of the export for each image on disk that has one; what has no partner is counted."""
    entries = _by_name(export.images, images, ledger)
    found: dict[Path, Exported] = {}
    for stem in (False, True):
        own = [(parts, item) for (is_stem, parts), item in entries.items() if is_stem == stem]
        left = [image for image in images if image not in found]
        matches = match_ends([_image_parts(image, stem) for image in left], [parts for parts, _ in own])
        found |= {left[i]: own[k][1] for i, k in matches.found.items()}
        for i in matches.unclear:
            ledger.add("images of which several have the same name, or several entries, left out", left[i])
        for i in matches.by_end:
            ledger.add("images found by the end of their path", f"{left[i]} -> {own[matches.found[i]][1].where}")
    used = {id(item) for item in found.values()}
    for item in entries.values():
        if id(item) not in used:
            ledger.add(f"images of the export that are not in {where}, left out", item.where)
    for image in images:
        if image not in found:
            ledger.add(f"images in {where} that the export does not have, left out", image)
    return found


def _image_parts(image: Path, stem: bool) -> tuple[str, ...]:
    return image.with_suffix("").parts if stem else image.parts


def _by_name(
    items: Sequence[Exported], images: Sequence[Path], ledger: Ledger
) -> dict[tuple[bool, tuple[str, ...]], Exported]:
    """The entries by the parts of the name that is on disk; True: a name without suffix."""
    names = {image.name for image in images}
    stems = {image.stem for image in images}
    stored = {_as_uploaded(name): name for name in names}
    found: dict[tuple[bool, tuple[str, ...]], Exported] = {}
    for item in items:
        key = _key(item, names, stems, stored)
        if key in found:
            ledger.add("images that occur several times in the export, the last is used", item.where)
        found[key] = item
    return found


def _key(item: Exported, names: set[str], stems: set[str], stored: Mapping[str, str]) -> tuple[bool, tuple[str, ...]]:
    """The spelling of a name that is on disk, as parts, and whether it is without suffix."""
    spellings = [parts for name in item.names for parts in (_split(name, r"/+"), _split(name, r"[/\\]+")) if parts]
    for parts in spellings:
        bare = UPLOADED.sub("", parts[-1], count=1) if UPLOADED.match(parts[-1]) else parts[-1]
        for last in (parts[-1], bare, stored.get(bare, "")):
            if last in names:
                return False, (*parts[:-1], last)
        if item.stem:
            for last in (parts[-1], bare):
                if last in stems:
                    return True, (*parts[:-1], last)
    return item.stem, spellings[0] if spellings else ("",)


def _split(name: str, slashes: str) -> tuple[str, ...]:
    parts = re.split(slashes, name)
    return tuple(part for part in parts if part not in ("", ".", "..") and not re.fullmatch("[A-Za-z]:", part))


def _as_uploaded(name: str) -> str:
    """A file's name as Label Studio stores an upload: spaces are _, most other marks are dropped."""
    return re.sub(r"[^-\w.]", "", name.strip().replace(" ", "_"))


def labels_in(item: Exported, info: ImageInfo, classes: Mapping[str, int], ledger: Ledger) -> ImageLabels:
    """The labels of an image from its entry in the export."""
    boxes = np.array([box.xyxy for box in item.objects], dtype=np.float64).reshape(-1, 4)
    stated = item.size or info.size
    objects = item.objects
    if (item.pixels or item.size is None) and stated == info.size:
        if item.pixels:
            h, w = info.size
            boxes = boxes / np.array([w, h, w, h])
        objects = [box._replace(xyxy=tuple(row)) for box, row in zip(item.objects, boxes.tolist(), strict=True)]
        frame = Frame(item.where, (1, 1), (1, 1))
    else:
        frame = Frame(item.where, stated, info.size, info.orientation, item.fractions)
    labels = labels_of(objects, frame, dict(classes))
    for what, messages in ((CLIPPED, labels.warnings), (BAD_BOXES, labels.errors)):
        for message in messages:
            ledger.add("images of another size than the export states" if "made for" in message else what, message)
    for _ in range(int(labels.crowd.sum())):
        ledger.add(CROWDS, item.where)
    return labels


def write_dataset(
    found: Mapping[Path, Exported], names: Mapping[int, str], out: Path, val_share: float, ledger: Ledger
) -> Summary:
    """Write images/, labels/ and data.yaml to the new folder `out`, which appears only when complete.

    Images are copied byte for byte. Which ones are for validation depends on their names only, so that those of an
    earlier, smaller export stay where they were.

    Args:
        val_share: of the images, for validation, 0..1.

    Raises:
        ValueError: `out` is not empty; no image can be used.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--out {out}: exists already, expected a new or an empty folder")
    infos = dict[Path, ImageInfo]()
    for image in sorted(found):
        try:
            infos[image] = probe(image.read_bytes(), image)
        except ValueError as error:
            ledger.add("images that cannot be read, left out", error)
    if not infos:
        raise ValueError(f"no image can be used, nothing was written; {'; '.join(ledger.lines)}"[:399])
    base = Path(os.path.commonpath([image.parent for image in infos]))
    held_back = validation({image: image.name for image in infos}, val_share)
    classes = {name: k for k, name in names.items()}
    partial = out.with_name(f"{out.name}.{os.getpid()}.part")
    counts, boxes, used = {"train": 0, "val": 0}, 0, set[str]()
    try:
        for image, info in infos.items():
            split = "val" if image in held_back else "train"
            target = free_name(partial / "images" / split / image.relative_to(base), used)
            if target.name != image.name:
                ledger.add("images renamed that would share a label file", f"{image.name} -> {target.name}")
            labels = labels_in(found[image], info, classes, ledger)
            boxes += _write_image(image, target, labels)
            counts[split] += 1
        splits = {split: f"images/{split if counts[split] else 'train'}" for split in counts}
        content: dict[str, object] = {"path": ".", **splits, "names": dict(names)}
        write_atomic(partial / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
        if out.is_dir():
            out.rmdir()  # it is empty
        os.replace(partial, out)
    finally:
        remove(partial)
    if not counts["val"]:
        ledger.notes.append("no image is held back for validation: val is the same as train")
    return Summary({split: count for split, count in counts.items() if count}, boxes, len(names))


def _write_image(image: Path, target: Path, labels: ImageLabels) -> int:
    """Copy an image and write its label file; returns the number of boxes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(image, target)
    keep = ~labels.crowd
    rows = zip(labels.label[keep].tolist(), labels.xywhn[keep].tolist(), strict=True)
    file = label_path(target)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, "".join(label_line(c, row) for c, row in rows), sync=False)
    return int(keep.sum())


def validation(names: Mapping[Path, str], share: float) -> set[Path]:
    """The images held back for validation: those whose names' checksums are lowest, at least one of several."""
    if share <= 0 or len(names) < 2:
        return set()
    digests = {
        path: int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:8]) / 2**64 for path, name in names.items()
    }
    order = sorted(digests, key=lambda path: digests[path])
    chosen = {path for path in order if digests[path] < share} or set(order[:1])
    return chosen if len(chosen) < len(names) else set(order[:-1])
