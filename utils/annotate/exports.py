"""Exports of annotation tools: recognizing their form, opening zips, reading COCO, Pascal VOC and YOLO."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from utils.annotate.cvat import read_cvat
from utils.annotate.exported import (
    POLYGONS,
    TURNED,
    UNREADABLE,
    Export,
    Exported,
    Ledger,
    around,
    around_turned,
    number,
    safe_xml,
)
from utils.annotate.labelstudio import read_label_studio, spellings
from utils.boxes import xywhn2xyxy
from utils.classes import class_names
from utils.data.coco import CocoLabels
from utils.data.labels import NOT_LABELS, read_labels
from utils.data.listing import SYSTEM_FOLDERS
from utils.data.objects import AnnotatedObject
from utils.data.voc import read_object
from utils.files import read_yaml
from utils.images import IMAGE_SUFFIXES
from utils.reading import lines_of, read_text
from utils.text import clean, counted, first

KINDS = {
    "cvat": "CVAT for images 1.1",
    "labelstudio": "Label Studio JSON",
    "coco": "COCO JSON",
    "voc": "Pascal VOC XML",
}
KINDS |= {"yolo": "YOLO"}
READ = {".xml", ".json", ".txt", ".yaml", ".yml", ".names", ".data"}
CLASS_LISTS = ("obj.names", "classes.txt", "labels.txt", "predefined_classes.txt")
IMAGE_LISTS = {"train.txt", "val.txt", "valid.txt", "test.txt"}
LABEL_FOLDERS = ("labels", "obj_train_data", "obj_validation_data", "obj_valid_data", "obj_test_data")
SPLIT_FOLDERS = {"train", "val", "valid", "validation", "test", "default"}


def unzipped(path: Path, folder: Path) -> Path:
    """`path`, or of a .zip the folder into which its images and label files were written.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: not a zip, or more than the disk holds. Names the file.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected an export of an annotation tool")
    if path.is_dir() or not zipfile.is_zipfile(path):
        if path.suffix.lower() == ".zip":
            raise ValueError(f"{path}: not a zip file, or not all of it")
        return path
    try:
        with zipfile.ZipFile(path) as file:
            members = [m for m in file.infolist() if Path(m.filename).suffix.lower() in READ | IMAGE_SUFFIXES]
            size, free = sum(m.file_size for m in members), shutil.disk_usage(folder).free
            if size > free:
                raise ValueError(f"{path}: {size / 1e9:.1f} GB when unpacked, only {free / 1e9:.1f} GB are free")
            for member in members:
                file.extract(member, folder)  # removes .. and drives from names
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: cannot be unpacked: {clean(error)}") from error
    return folder


def read_export(path: Path, ledger: Ledger, shown: str = "") -> tuple[str, Export]:
    """The kind of an export, a value of KINDS, and what it holds: a file, or all files of one kind in a folder.

    Args:
        shown: what to call it in messages, if it was unpacked from another file.

    Raises:
        ValueError: it is of no known kind. Names the file or folder.
    """
    files = [path] if path.is_file() else list(visible_files(path))
    found: dict[str, list[Path]] = {}
    tasks: dict[Path, list[Any]] = {}
    for file in files:
        kind = _kind(file, tasks, ledger)
        if kind:
            found.setdefault(kind, []).append(file)
    kind = next((kind for kind in KINDS if kind in found), "")
    if not kind:
        seen = f"; {ledger.lines[0]}" if ledger.lines else ""
        raise ValueError(f"{shown or path}: no export that is known, expected {', '.join(KINDS.values())}{seen}"[:399])
    for other in found.keys() - {kind}:
        if other != "yolo":
            ledger.add(f"files of the form {KINDS[other]}, not read beside {KINDS[kind]}", first(found[other], 1))
    root = path if path.is_dir() else path.parent
    if kind == "voc":
        return KINDS[kind], _read_voc(root, found[kind], ledger)
    if kind == "yolo":
        return KINDS[kind], _read_yolo(root, found[kind], ledger)
    parts = {
        "cvat": lambda file: read_cvat(file, ledger),
        "labelstudio": lambda file: read_label_studio(file, tasks[file], ledger),
        "coco": lambda file: _read_coco(file, ledger),
    }
    exports = [parts[kind](file) for file in found[kind]]
    names = dict.fromkeys(name for export in exports for name in export.names)
    return KINDS[kind], Export([image for export in exports for image in export.images], list(names))


def visible_files(folder: Path) -> Iterable[Path]:
    """The files below a folder, sorted, without hidden ones and those that systems make."""
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") or part.lower() in SYSTEM_FOLDERS for part in parts):
            yield path


def _kind(path: Path, tasks: dict[Path, list[Any]], ledger: Ledger) -> str:
    """The kind of a file, a key of KINDS, or ''; tasks of Label Studio are put into `tasks`."""
    suffix, name = path.suffix.lower(), path.name.lower()
    if suffix == ".xml":
        try:
            tag = safe_xml(path).tag
        except ValueError as error:
            ledger.add(UNREADABLE, error)
            return ""
        return {"annotations": "cvat", "annotation": "voc"}.get(tag, "")
    if suffix == ".json":
        try:
            content = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            ledger.add(UNREADABLE, f"{path}: not JSON: {error}")
            return ""
        if isinstance(content, list) and any(isinstance(item, dict) for item in content):
            tasks[path] = content
            return "labelstudio"
        return "coco" if isinstance(content, dict) and {"images", "annotations"} <= content.keys() else ""
    return "yolo" if suffix == ".txt" and name not in NOT_LABELS | IMAGE_LISTS else ""


class _Coco(CocoLabels):
    """A COCO file in which boxes that are missing or turned are replaced by those around them."""

    def __init__(self, path: Path, ledger: Ledger):
        self.ledger = ledger
        super().__init__(path, {})

    def prepared(self, row: dict[str, Any], number: int) -> dict[str, Any]:
        where = f"{self.path}: annotation {clean(row.get('id', f'in row {number}'), 60)}"
        try:
            return self._upright_row(row, where)
        except ValueError as error:
            return row | {"bbox": clean(error)}  # which is refused, with these words

    def _upright_row(self, row: dict[str, Any], where: str) -> dict[str, Any]:
        """The row with the box around its outline if it has no box, and around the turned box if it is turned."""
        outline, box, more = row.get("segmentation"), row.get("bbox"), row.get("attributes")
        if not box and isinstance(outline, list) and outline and all(isinstance(part, list) for part in outline):
            flat = [number(value, "segmentation") for part in outline for value in part]
            x1, y1, x2, y2 = around(list(zip(flat[::2], flat[1::2], strict=False)))
            box = [x1, y1, x2 - x1, y2 - y1]
        if isinstance(outline, dict) or (isinstance(outline, list) and any(_is_polygon(part) for part in outline)):
            self.ledger.add(POLYGONS, where)
        degrees = number(more["rotation"], "rotation") if isinstance(more, dict) and "rotation" in more else 0.0
        if degrees % 360 and isinstance(box, list) and len(box) == 4:
            x, y, w, h = (number(value, "bbox") for value in box)
            item = _upright(AnnotatedObject(where, "", (x, y, x + w, y + h), False), degrees, self.ledger)
            x1, y1, x2, y2 = item.xyxy
            box = [x1, y1, x2 - x1, y2 - y1]
        return row if box is row.get("bbox") else row | {"bbox": box}


def _upright(item: AnnotatedObject, degrees: float, ledger: Ledger) -> AnnotatedObject:
    """An object that is turned about its center, of which CVAT writes the box before it is turned, made upright."""
    if degrees % 360 == 0:
        return item
    ledger.add(TURNED, item.where)
    x1, y1, x2, y2 = item.xyxy
    return item._replace(xyxy=around_turned((x1, y1, x2, y2), degrees, ((x1 + x2) / 2, (y1 + y2) / 2)))


def _is_polygon(part: Any) -> bool:
    """Whether a list of x and y in turn is the outline of anything but an upright rectangle."""
    if not isinstance(part, list) or len(part) < 6:
        return False
    return not (len(part) == 8 and len(set(map(str, part[::2]))) <= 2 and len(set(map(str, part[1::2]))) <= 2)


def _read_coco(path: Path, ledger: Ledger) -> Export:
    reader = _Coco(path, ledger)
    ledger.notes += reader.notes
    for errors in reader.errors.values():
        for error in errors:
            ledger.add(UNREADABLE, error)
    export = Export(names=list(dict.fromkeys(name.strip() for name in reader.categories.values())))
    for number_, row in reader.images.items():
        name = str(row["file_name"])
        item = Exported(f"{path.name}: {name}", spellings(name), fractions=reader.fractions)
        item.objects = [box._replace(name=box.name.strip()) for box in reader.objects(number_)]
        try:
            sides = [number(row.get(key), key) for key in ("height", "width")]
        except ValueError:
            sides = [0.0]
        item.size, item.pixels = ((sides[0], sides[1]), False) if min(sides) > 0 else (None, True)
        export.images.append(item)
    return export


def _read_voc(root: Path, files: Sequence[Path], ledger: Ledger) -> Export:
    export, used = Export(), set[str]()
    for file in files:
        tree = safe_xml(file)
        parent, name = file.relative_to(root).parent, (tree.findtext("filename") or "").strip()
        parent = Path(*(part for part in parent.parts if part.lower() != "annotations"))
        stem = (parent / file.stem).as_posix()
        item = Exported(
            file.relative_to(root).as_posix(), ((parent / name).as_posix(), stem) if name else (stem,), stem=True
        )
        for k, element in enumerate(tree.iter("object"), start=1):
            try:
                found = _upright(read_object(element, f"{file}: object {k}"), _voc_rotation(element), ledger)
            except ValueError as error:
                ledger.add(UNREADABLE, f"{file}: object {k}: {error}")
                continue
            item.objects.append(found)
            used.add(found.name)
        try:
            sides = [number(tree.findtext(f"size/{side}"), side) for side in ("height", "width")]
        except ValueError:
            sides = [0.0]
        item.size, item.pixels = ((sides[0], sides[1]), False) if min(sides) > 0 else (None, True)
        export.images.append(item)
    export.names = sorted(used)
    return export


def _voc_rotation(element: Element) -> float:
    """The degrees that CVAT writes as an attribute of an object; raises ValueError."""
    texts = {row.findtext("name"): row.findtext("value") for row in element.iterfind("attributes/attribute")}
    return number(texts.get("rotation") or "0", "rotation")


def _read_yolo(root: Path, files: Sequence[Path], ledger: Ledger) -> Export:
    """Raises ValueError without a list of classes."""
    names = _yolo_names(root, files)
    export = Export(names=list(names.values()))
    for file in files:
        labels = read_labels(file, len(names))
        for message in labels.warnings:
            ledger.add("boxes outside of their image, without area or given twice, clipped or dropped", message)
        for message in labels.errors:
            ledger.add(UNREADABLE, message)
        polygons = 0 if labels.errors else sum(len(line.split()) > 6 for line in lines_of(read_text(file)))
        for _ in range(polygons):
            ledger.add(POLYGONS, file)
        parts = file.relative_to(root).with_suffix("").parts
        start = max((i + 1 for i, part in enumerate(parts[:-1]) if part in LABEL_FOLDERS), default=0)
        start += len(parts) - start > 1 and parts[start].lower() in SPLIT_FOLDERS
        item = Exported(file.relative_to(root).as_posix(), ("/".join(parts[start:]),), stem=True)
        corners = xywhn2xyxy(labels.xywhn.astype(float), (1, 1)).tolist()
        for label, xyxy in zip(labels.label.tolist(), corners, strict=True):
            item.objects.append(AnnotatedObject(str(file), names[label], tuple(xyxy), crowd=False))
        export.images.append(item)
    return export


def _yolo_names(root: Path, files: Sequence[Path]) -> dict[int, str]:
    """Class names from data.yaml, obj.names or classes.txt in the export, or beside or above a single label file."""
    folders = [root, *dict.fromkeys(parent for file in files for parent in file.parents if root in parent.parents)]
    for folder in folders:
        for name in ("data.yaml", "dataset.yaml", "data.yml"):
            if (folder / name).is_file():
                return class_names(read_yaml(folder / name).get("names"), str(folder / name))
        for name in CLASS_LISTS:
            if (folder / name).is_file():
                return read_names(folder / name)
    raise ValueError(f"{root}: label files without class names, expected data.yaml, classes.txt or obj.names there")


def read_names(path: Path) -> dict[int, str]:
    """Class index -> name from a data YAML or from a text file with a name a line.

    Raises:
        ValueError: no names, or equal ones. Names the file.
    """
    if path.suffix.lower() in (".yaml", ".yml"):
        return class_names(read_yaml(path).get("names"), str(path))
    lines = [line.strip() for line in lines_of(read_text(path))]
    while lines and not lines[-1]:
        lines.pop()
    return class_names(lines, str(path))


def merged_names(given: Mapping[int, str], export: Export, ledger: Ledger) -> dict[int, str]:
    """Class index -> name: those given in their order, then others of the export in its order.

    Raises:
        ValueError: there is no class at all.
    """
    names = list(given.values())
    used = dict.fromkeys([*export.names, *(box.name for item in export.images for box in item.objects)])
    new = [name for name in used if name and name not in names]
    if names and new:
        ledger.notes.append(f"{counted(len(new), 'new class', 'new classes')}, appended: {first(new)}")
    if not names + new:
        raise ValueError("the export has no class and no box, expected at least one class; --names gives classes")
    return dict(enumerate(names + new))
