"""The data YAML: class names, images and labels of each split."""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np

from utils.classes import class_names, class_order
from utils.data.annotations import annotation_reader
from utils.data.labels import TextLabels
from utils.data.listing import find_images
from utils.data.objects import LabelReader
from utils.data.scan import Scan, scan
from utils.files import find, read_yaml_lines
from utils.reading import exists
from utils.text import clean, counted, first

LOGGER = logging.getLogger(__name__)
SPLITS = ("train", "val", "test")
TEXT_KEYS = ("names", "path", "annotations", *SPLITS)  # in which `on`, 007 and 2024 are what was written
SINGLE_CLASS = "item"  # name of the one class of --single-cls


@dataclass(frozen=True)
class Data:
    """A data YAML.

    Attributes:
        yaml: its path.
        label_names: class index in the labels -> name.
        splits: split -> folders, .txt lists or images.
        annotations: split -> COCO .json file or folder of Pascal VOC .xml files, instead of label files.
        single_cls: all classes are treated as one.
        order: class index in the labels -> class index in the model; empty: the same.
    """

    yaml: str
    label_names: dict[int, str]
    splits: dict[str, list[Path]]
    annotations: dict[str, Path] = field(default_factory=dict)
    single_cls: bool = False
    order: tuple[int, ...] = ()

    @property
    def names(self) -> dict[int, str]:
        """Class index in the model -> name."""
        if self.single_cls:
            return {0: SINGLE_CLASS}
        return dict(sorted(zip(self.order, self.label_names.values(), strict=True))) if self.order else self.label_names

    def numbered_as(self, names: dict[int, str], model: str) -> Data:
        """The same data with the class numbers of a model that has the same `names` in any order.

        Args:
            model: whose names these are, for messages.

        Raises:
            ValueError: the names are not the same.
        """
        order = class_order(names, self.names, model, self.yaml)
        return self if order == tuple(range(self.nc)) else replace(self, order=order)

    @property
    def nc(self) -> int:
        """The number of classes of the model."""
        return len(self.names)

    def split(self, name: str) -> list[Path]:
        """The sources of split `name`.

        Raises:
            ValueError: the YAML has no such split.
        """
        if name not in self.splits:
            raise ValueError(f"{self.yaml}: no '{name}:', expected one of {', '.join(self.splits)}")
        return self.splits[name]

    def reader(self, name: str) -> LabelReader:
        """The reader of the labels of split `name`."""
        path = self.annotations.get(name)
        names = self.label_names
        return TextLabels(len(names)) if path is None else annotation_reader(path, names)

    def scan(self, name: str) -> Scan:
        """The images and labels of split `name`, checked, with the model's class numbers."""
        listing = find_images(self.split(name))
        found = scan(listing.images, len(self.label_names), self.reader(name), listing.notes)
        if self.order:
            found = replace(found, label=np.array(self.order)[found.label].astype(found.label.dtype))
        return found.as_single_class() if self.single_cls else found

    def training_scan(self, fraction: float = 1.0, seed: int = 0) -> Scan:
        """The train split, or a random `fraction` of it, 0..1, which depends on `seed`.

        Raises:
            ValueError: it has no labels at all.
        """
        found = self.scan("train")
        if fraction < 1:
            count = max(round(fraction * len(found)), 1)
            found = found.subset(np.random.default_rng(seed).permutation(len(found))[:count])
            LOGGER.info(f"--fraction {fraction}: {counted(count, 'training image')}")
        if found.crowd.all():
            crowds = f"only labels of crowds or difficult objects ({found.box_count})" if found.box_count else ""
            what = crowds or "no labels at all"
            raise ValueError(f"{self.yaml}: the train split has {what}, nothing can be learned from it")
        return found


def read_data_yaml(path: str | Path, single_cls: bool = False) -> Data:
    """Read a data YAML with the keys path, train, val, test, names, and optionally nc and annotations.

    A relative `path` is looked for beside the YAML, then in the working folder; without `path` the splits are.
    A `test` split that does not exist is an error only when it is read, because it is often not downloaded.

    Raises:
        FileNotFoundError, ValueError: one line with the file, the mistake, and what was expected or tried.
    """
    file = find_data_yaml(str(path))
    values, lines = read_yaml_lines(file, TEXT_KEYS)
    names = class_names(values.get("names"), str(file), lines)
    nc = values.get("nc")
    if nc is not None and nc != len(names):
        raise ValueError(f"{file}: nc is {shown(nc)}, but names has {len(names)} entries, expected as many or no nc")
    roots = [file.resolve().parent, Path.cwd()]
    if values.get("path") is not None:
        roots = [_first_existing(str(values["path"]), roots, f"{file}: path")]
    splits: dict[str, list[Path]] = {}
    for key in SPLITS:
        value = values.get(key)
        if value is None or value == "" or value == []:
            continue
        entries: list[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(entry, str) for entry in entries):
            raise ValueError(f"{file}: {key} is {shown(value)}, expected a folder, a .txt list, or a list of these")
        entries = [_inside(entry, roots, f"{file}: {key}") for entry in entries]
        splits[key] = [_first_existing(e, roots, f"{file}: {key}", must_exist=key != "test") for e in entries]
    if not splits:
        raise ValueError(f"{file}: no images, expected at least one of the keys {', '.join(SPLITS)}")
    return Data(str(file), names, splits, _read_annotations(values, roots, file), single_cls)


def find_data_yaml(name: str) -> Path:
    """The data YAML of that name, see find; of a folder the data.yaml in it, or its only YAML, which is logged.

    Raises:
        FileNotFoundError: no such file, or a folder without such a YAML.
    """
    folder = Path(name)
    if not folder.is_dir():
        return find(name, "data")
    yamls = sorted(path for path in folder.iterdir() if path.suffix in (".yaml", ".yml"))
    usual = [path for path in yamls if path.stem in ("data", "dataset")]
    if not usual and len(yamls) != 1:
        found = f"one of its {len(yamls)} YAMLs" if yamls else "a data.yaml, which has the images and class names"
        raise FileNotFoundError(f"--data {folder}: a folder without a data.yaml, expected {found}")
    path = (usual or yamls)[0]
    LOGGER.info(f"--data {folder}: using {path}")
    return path


def _read_annotations(values: dict[str, Any], roots: Sequence[Path], file: Path) -> dict[str, Path]:
    """The annotation file or folder of each split that has one; raises as read_data_yaml."""
    given = values.get("annotations") or {}
    if (
        not isinstance(given, dict)
        or not set(given) <= set(SPLITS)
        or not all(isinstance(v, str) for v in given.values())
    ):
        raise ValueError(
            f"{file}: annotations is {shown(given)}, expected split: COCO .json file or folder of VOC .xml files"
        )
    return {
        key: _first_existing(value, roots, f"{file}: annotations of {key}", must_exist=key != "test")
        for key, value in given.items()
    }


def _inside(entry: str, roots: Sequence[Path], what: str) -> str:
    """`entry`, without its leading ../ if it exists only without them, which is logged.

    Roboflow writes ../train/images into a YAML that lies beside train/.
    """
    inside = Path(*dropwhile(lambda part: part == "..", Path(entry).parts))
    if entry == str(inside) or any(exists(root / entry) for root in roots):
        return entry
    if not inside.parts or not any(exists(root / inside) for root in roots):
        return entry
    LOGGER.info(f"{what} is '{clean(entry)}', which does not exist: using '{inside}'")
    return str(inside)


def _first_existing(entry: str, roots: Sequence[Path], what: str, must_exist: bool = True) -> Path:
    """The path of `entry` below the first of `roots` where it exists; an absolute one is returned unchanged.

    Raises:
        FileNotFoundError: it must exist and does not; the message starts with `what`.
    """
    tries = list(dict.fromkeys(root / os.path.expanduser(entry) for root in roots))
    for candidate in tries:
        if exists(candidate):
            return candidate
    if must_exist:
        expected = f"expected an existing folder or file, tried: {first(tries)}"
        raise FileNotFoundError(f"{what} is '{clean(entry, 60)}', {expected}"[:399])
    return tries[0]


def shown(value: object) -> str:
    """A value of the YAML for a message; of a long list the start."""
    return clean(reprlib.repr(value), 120)
