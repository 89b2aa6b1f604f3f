"""The repair of a data set: a copy in YOLO form without what can be corrected without judgment."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from utils.data.labels import free_name, label_line, label_path
from utils.doctor.box_checks import twin_pairs
from utils.doctor.examine import Diagnosis
from utils.doctor.survey import ImageRecord, SplitSurvey, Survey
from utils.files import remove, write_atomic
from utils.text import counted

MOST = 0.5  # share of a split; if more of it is also in a later one, nothing is taken out
LEAST = 1e-7  # least side of a box as a fraction of the image: float32 has no finer ones at its right edge


@dataclass
class Repairs:
    """What the copy has and what was changed; `changes` maps words to a count."""

    images: int = 0
    boxes: int = 0
    changes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)

    @property
    def lines(self) -> list[str]:
        """The changes, a line each."""
        changed = [f"  {count:,} {what}" for what, count in self.changes.items() if count]
        total = f"{counted(self.images, 'image')} and {counted(self.boxes, 'box', 'boxes')}"
        return [f"{total} in the copy; changes:", *(changed or ["  none"]), *self.notes]


def repair(result: Diagnosis, out: Path) -> Repairs:
    """Write a repaired copy of a data set to the folder `out`: images/, labels/ and data.yaml.

    Images are copied byte for byte. Boxes are clipped to their image; those without area, equal ones, twins, crowds and
    lines that cannot be read are dropped, and so are images that cannot be read or none of whose labels can, copies of
    an image within a split, images of train that are also in val or test, and images of val that are also in test.
    The original is not touched, and `out` appears only when complete.

    Raises:
        ValueError: `out` is not empty, or lies in a folder of the data; no image can be used.
        OSError: it could not be written.
    """
    check_target(out, result.survey)
    out = out.resolve()
    partial = out.with_name(f"{out.name}.{os.getpid()}.part")
    done = Repairs()
    done.notes += [
        f"{split.name} is not in the copy: {split.problem}" for split in result.survey.values() if split.problem
    ]
    dropped, names = copies(result.survey, done), result.data.label_names
    try:
        splits = {name: write_split(split, partial, dropped, done) for name, split in result.survey.items()}
        if not done.images:
            raise ValueError(f"--fix {out}: no image of {result.data.yaml} can be used, nothing was written")
        content = {"path": ".", **{k: v for k, v in splits.items() if v}, "names": dict(sorted(names.items()))}
        write_atomic(partial / "data.yaml", yaml.safe_dump(content, allow_unicode=True, sort_keys=False))
        if out.is_dir():
            out.rmdir()  # it is empty
        os.replace(partial, out)
    finally:
        remove(partial)
    return done


def check_target(out: Path, found: Survey) -> None:
    """Raise ValueError unless `out` is new or empty and outside of the folders that the data are read from."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"--fix {out}: exists already, expected a new or an empty folder")
    target = out.resolve()
    for split in found.values():
        places = {source.resolve() for source in split.sources if source.is_dir()}
        places |= {record.path.resolve().parent for record in split.records}
        labels = {record.label_file for record in split.records if record.labeled}
        places |= {file.resolve().parent for file in labels if file.suffix.lower() != ".json"}
        for folder in places:
            if target == folder or folder in target.parents:
                raise ValueError(f"--fix {out}: lies in {folder}, which belongs to the data; expected another place")
    out.parent.mkdir(parents=True, exist_ok=True)


def copies(found: Survey, done: Repairs) -> set[int]:
    """Identities (id) of the records that are left out: copies of others, and those without a readable label."""
    dropped: set[int] = set()
    later: set[bytes] = set()  # digests of the splits after the one at hand: what is measured stays
    for name in reversed(list(found)):
        images = list[ImageRecord]()
        for record in found[name].usable:
            if record.labels.errors and not len(record.labels.label):  # it would count as background
                dropped.add(id(record))
                done.changes["images dropped none of whose labels can be read"] += 1
            else:
                images.append(record)
        best: dict[bytes, ImageRecord] = {}
        for record in sorted(images, key=lambda r: -len(r.labels.label)):  # of copies the one with most boxes
            if record.digest in best:
                dropped.add(id(record))
                done.changes["copies of images dropped, of each the one with most boxes was kept"] += 1
            best.setdefault(record.digest, record)
        leaked = [record for digest, record in best.items() if digest in later]
        if len(leaked) > MOST * len(best):
            done.notes.append(f"{len(leaked):,} images of {name} are also in a later split and were kept: split anew")
        else:
            dropped |= {id(record) for record in leaked}
            done.changes[f"images of {name} dropped that are in a later split"] += len(leaked)
        later |= best.keys()
    return dropped


def write_split(split: SplitSurvey, root: Path, dropped: set[int], done: Repairs) -> str:
    """Write images and labels of a split below `root`; returns its folder there, or '' if no image is left."""
    folder = root / "images" / split.name
    used: set[str] = set()
    records = [record for record in split.usable if id(record) not in dropped]
    done.changes["images dropped that cannot be used"] += len(split.records) - len(split.usable)
    parents = [record.path.resolve().parent for record in records]
    base = Path(os.path.commonpath(parents)) if parents else root
    for record, parent in zip(records, parents, strict=True):
        inner = [part for part in parent.relative_to(base).parts if part != "images"]  # see label_path
        target = free_name(folder.joinpath(*inner, record.path.name), used)
        done.changes["images renamed that shared a label file"] += target.name != record.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.path, target)
        label, xywhn = repaired_labels(record, done)
        file = label_path(target)
        file.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(label.tolist(), xywhn.tolist(), strict=True)
        file.write_text("".join(label_line(c, row) for c, row in rows), encoding="utf-8")
        done.images, done.boxes = done.images + 1, done.boxes + len(label)
    return folder.relative_to(root).as_posix() if records else ""


def repaired_labels(record: ImageRecord, done: Repairs) -> tuple[np.ndarray, np.ndarray]:
    """Classes (n,) and boxes (n, 4) xywhn of an image; the reader has clipped them already."""
    labels = record.labels
    keep = ~labels.crowd
    done.changes["crowd boxes dropped, which label files cannot mark"] += int(labels.crowd.sum())
    done.changes["labels dropped that cannot be read"] += len(labels.errors)
    done.changes["boxes clipped or dropped that reached outside, had no area or occurred twice"] += len(labels.warnings)
    thin = keep & (labels.xywhn[:, 2:] < LEAST).any(axis=1)
    keep &= ~thin
    done.changes["boxes dropped that are thinner than a number can say"] += int(thin.sum())
    for i, j, _ in twin_pairs(record):
        if keep[i] and keep[j] and labels.label[i] == labels.label[j]:
            keep[j] = False
            done.changes["twins dropped"] += 1
    return labels.label[keep], labels.xywhn[keep]
