"""Labels from Pascal VOC XML files; writing such files."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.data.listing import counted, first
from utils.data.objects import AnnotatedObject, Frame, ImageLabels, labels_of, match_ends
from utils.text import clean

EXPAT_READS = {"utf-8", "utf-16", "us-ascii", "ascii", "iso-8859-1"}  # what Python's XML parser decodes by itself
CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocLabels:
    """Labels of a folder of Pascal VOC XML files, `<stem>.xml` for each image; difficult objects count as crowd.

    The file may lie in a sub-folder, which need not be that of the image if no other image has the same stem; of two
    images in question the one whose folder `<folder>` names gets it. Coordinates are pixels from the left and top edge,
    counted from 0. An image without a file is background.
    """

    def __init__(self, folder: Path, names: dict[int, str]):
        self.folder, self.classes = folder, {name: c for c, name in names.items()}
        self.key = f"voc {list(names.items())}"
        self._files: dict[Path, Path] = {}
        self._unclear: set[Path] = set()

    def match(self, images: Sequence[Path]) -> list[str]:
        files = sorted(p for p in self.folder.rglob("*") if p.suffix.lower() == ".xml" and not p.name.startswith("."))
        names = [file.relative_to(self.folder).with_suffix("").parts for file in files]
        matches = match_ends([image.with_suffix("").parts for image in images], names)
        self._files = {images[i]: files[k] for i, k in matches.found.items()}
        for k in {k for options in matches.unclear.values() for k in options}:
            claimants = [images[i] for i, options in matches.unclear.items() if options == [k]]
            stated = _stated_folder(files[k])
            chosen = [image for image in claimants if image.parent.name == stated]
            if len(chosen) == 1:
                self._files[chosen[0]] = files[k]
        self._unclear = {images[i] for i in matches.unclear} - self._files.keys()
        notes = []
        if matches.by_end:
            pairs = [f"{images[i]} -> {files[matches.found[i]]}" for i in matches.by_end]
            notes.append(f"{self.folder}: {counted(len(pairs), '.xml file')} in another folder: {first(pairs, 1)}")
        if self._unclear:
            what = counted(len(self._unclear), "image")
            names_ = first(sorted(self._unclear))
            notes.append(f"{self.folder}: {what} left out, another has the same name and the .xml file: {names_}")
        return notes

    def file(self, image: Path) -> Path:
        return self._files.get(image) or self.folder / f"{image.stem}.xml"

    def read(self, image: Path, size: tuple[int, int], orientation: int = 1) -> ImageLabels:
        path = self.file(image)
        if image in self._unclear:
            return ImageLabels(skip_reason=f"{image}: left out, {path} may be that of another image")
        try:
            root, warning = read_xml(path)
            height, width = (_number(root, f"size/{side}", "0") for side in ("height", "width"))
        except FileNotFoundError:
            return ImageLabels()
        except ValueError as error:
            return ImageLabels(errors=[f"{path}: {error}"])
        except OSError as error:
            return ImageLabels(errors=[f"{path}: not readable: {error.strerror}"])
        objects, errors = list[AnnotatedObject](), list[str]()
        for k, item in enumerate(root.iter("object"), 1):
            try:
                objects.append(read_object(item, f"{path}: object {k}"))
            except ValueError as error:
                errors.append(f"{path}: object {k}: {error}")
        stated = (height, width) if min(height, width) > 0 else size
        labels = labels_of(objects, Frame(str(path), stated, size, orientation), self.classes)
        labels.errors += errors
        labels.warnings += [f"{path}: {warning}"] if warning else []
        return labels


def read_xml(path: Path) -> tuple[ElementTree.Element, str]:
    """The root of an XML file in any encoding that Python knows, and a warning ('' if there is none).

    Raises:
        OSError, ValueError: it cannot be read; not XML. The message is without the file.
    """
    data = path.read_bytes()
    try:
        return ElementTree.fromstring(data), ""
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        reason = error  # also for encodings of several bytes, which expat lacks
    declared = re.match(rb"\s*(?:\xef\xbb\xbf)?<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)[\"'][^>]*\?>", data)
    encoding, warning = (declared[1].decode("ascii") if declared else "gb18030"), ""
    body = data[declared.end() :] if declared else data
    try:
        try:
            text = body.decode(encoding)
            damaged = "its first line is damaged, ignored" if encoding.lower() in EXPAT_READS else ""
            warning = damaged if declared else "not UTF-8, read as GB18030"
        except LookupError:
            text, warning = body.decode("utf-8"), f"encoding '{encoding}' is not known, read as UTF-8"
        return ElementTree.fromstring(text), warning
    except (ElementTree.ParseError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        raise ValueError(f"not XML: {reason if not declared else error}") from error


def _stated_folder(path: Path) -> str:
    """The text of `<folder>`; '' if the file cannot be read."""
    try:
        return (read_xml(path)[0].findtext("folder") or "").strip()
    except (OSError, ValueError):
        return ""


def read_object(item: ElementTree.Element, where: str) -> AnnotatedObject:
    """An `<object>`; raises ValueError, without file and number, if a field is missing or is not a number."""
    name = (item.findtext("name") or "").strip()
    if not name:
        raise ValueError("no <name>, expected that of a class")
    corners = tuple(_number(item, f"bndbox/{key}") for key in CORNERS)
    difficult = (item.findtext("difficult") or "").strip().lower()
    return AnnotatedObject(where, name, corners, difficult in ("1", "true", "yes"))


def _number(item: ElementTree.Element, field: str, default: str = "") -> float:
    """The number in a field; an empty one is `default`, without one an error."""
    text, key = " ".join((item.findtext(field) or "").split()) or default, field.rpartition("/")[2]
    if not text:
        raise ValueError(f"no <{key}>, expected pixels")
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"<{key}> is '{text[:40]}', expected a number") from error


def xml_text(text: str) -> str:
    """`text` without the characters that XML 1.0 cannot hold, and on one line, at most 4096 characters."""
    return clean(re.sub("[\ufffe\uffff]", " ", text), 4096)


def voc_xml(file_name: str, size: tuple[int, int], names: Sequence[str], xyxy: np.ndarray) -> str:
    """The text of a Pascal VOC file for an image of `size` (height, width) with boxes `xyxy` (n, 4) in its pixels."""
    root = ElementTree.Element("annotation")
    ElementTree.SubElement(root, "filename").text = xml_text(file_name)
    sides = ElementTree.SubElement(root, "size")
    for key, value in (("width", size[1]), ("height", size[0]), ("depth", 3)):
        ElementTree.SubElement(sides, key).text = str(value)
    for name, box in zip(names, xyxy.tolist(), strict=True):
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = xml_text(name)
        ElementTree.SubElement(item, "difficult").text = "0"
        corners = ElementTree.SubElement(item, "bndbox")
        for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            ElementTree.SubElement(corners, key).text = f"{value:.2f}"
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"
