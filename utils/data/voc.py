"""Labels from Pascal VOC XML files; writing such files."""

from __future__ import annotations

import codecs
import os
import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.data.objects import AnnotatedObject, FirstLines, Frame, ImageLabels, labels_of, match_ends
from utils.reading import number_of, read_bytes
from utils.text import clean, counted, first

EXPAT_READS = {"utf-8", "utf-16", "us-ascii", "ascii", "iso-8859-1"}  # what Python's XML parser decodes by itself
MAX_DEPTH = 32  # levels of elements; VOC has 4
MAX_ELEMENTS = 200_000  # of a file; an object has some ten
# Not of texts, or so slow to decode that a small file takes minutes.
NO_ENCODINGS = {"idna", "punycode", "unicode-escape", "raw-unicode-escape", "undefined"}
DECLARATION = re.compile(
    rb"\s{0,99}(?:\xef\xbb\xbf)?<\?xml[^>]{0,200}?encoding\s{0,9}=\s{0,9}[\"']([\w.:-]{1,40})[\"'][^>]{0,200}\?>"
)
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
        files = xml_files(self.folder)
        names = [file.relative_to(self.folder).with_suffix("").parts for file in files]
        matches = match_ends([image.with_suffix("").parts for image in images], names)
        self._files = {images[i]: files[k] for i, k in matches.found.items()}
        claims: dict[int, list[Path]] = defaultdict(list)
        for i, options in matches.unclear.items():
            if len(options) == 1:
                claims[options[0]].append(images[i])
        for k, claimants in claims.items():
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
            gone = f"{path}: gone since the files were listed, or a link to no file"
            return ImageLabels(errors=[gone] if image in self._files else [])
        except ValueError as error:
            return ImageLabels(errors=[f"{path}: {str(error).removeprefix(f'{path}: ')}"])
        except OSError as error:
            return ImageLabels(errors=[f"{path}: not readable: {error.strerror}"])
        objects, errors = list[AnnotatedObject](), FirstLines()
        for k, item in enumerate(root.iter("object"), 1):
            try:
                objects.append(read_object(item, f"{path}: object {k}"))
            except ValueError as error:
                if not errors.full():
                    errors.append(f"{path}: object {k}: {error}")
        stated = (height, width) if min(height, width) > 0 else size
        labels = labels_of(objects, Frame(str(path), stated, size, orientation), self.classes)
        labels.errors += errors.lines(path, "errors")
        labels.warnings += [f"{path}: {warning}"] if warning else []
        labels.unlisted = labels.unlisted[0], labels.unlisted[1] + errors.more
        return labels


def xml_files(folder: Path) -> list[Path]:
    """The .xml files below a folder, sorted; hidden ones are left out, linked folders are not followed."""
    found, waiting = list[Path](), [str(folder)]
    while waiting:  # Path.rglob calls itself, which ends at a thousand levels
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.name.lower().endswith(".xml") and not entry.name.startswith("."):
                        found.append(Path(entry.path))
        except OSError:
            continue  # a folder that may not be read has no labels
    return sorted(found)


class _Builder(ElementTree.TreeBuilder):
    """Builds the elements of a file: without namespaces, comments and instructions, and within limits.

    Args:
        attributes: whether they are kept; Pascal VOC has none. elements: how many there may be.
    """

    def __init__(self, attributes: bool, elements: int) -> None:
        super().__init__()
        self.attributes, self.elements = attributes, elements
        self.depth = self.count = 0

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        """Refuse a document type: it declares entities, which refer to files or multiply."""
        raise _Refused("it has a document type (DOCTYPE), expected XML without entities")

    def start(self, tag: str, attributes: dict[str, str]) -> ElementTree.Element:  # type: ignore[override]
        """Open an element; raises _Refused beyond a limit."""
        self.depth, self.count = self.depth + 1, self.count + 1
        if self.depth > MAX_DEPTH or self.count > self.elements:
            raise _Refused(f"more than {MAX_DEPTH} levels or {self.elements:,} elements, expected annotations")
        return super().start(tag.rpartition("}")[2], attributes if self.attributes else {})

    def end(self, tag: str) -> ElementTree.Element:
        """Close an element."""
        self.depth -= 1
        return super().end(tag.rpartition("}")[2])


class _Refused(Exception):
    """An XML file that is not read whatever its encoding; the message says why, without the file."""


def _parsed(data: bytes | str, attributes: bool, elements: int) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_Builder(attributes, elements))
    parser.feed(data)
    root: ElementTree.Element = parser.close()
    return root


def read_xml(
    path: Path, kind: str = "annotation file", attributes: bool = False, elements: int = MAX_ELEMENTS
) -> tuple[ElementTree.Element, str]:
    """The root of an XML file in any encoding that Python knows, and a warning ('' if there is none).

    Args:
        kind: of file, see utils.reading. attributes: whether they are kept. elements: how many there may be.

    Raises:
        OSError, ValueError: it cannot be read; not XML; it declares a document type or is too large.
    """
    try:
        return _read_xml(read_bytes(path, kind), attributes, elements)
    except _Refused as error:
        raise ValueError(f"not read: {error}") from error


def _read_xml(data: bytes, attributes: bool, elements: int) -> tuple[ElementTree.Element, str]:
    try:
        return _parsed(data, attributes, elements), ""
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        reason = error  # also for encodings of several bytes, which expat lacks
    declared = DECLARATION.match(data)
    encoding, warning = (declared[1].decode("ascii") if declared else "gb18030"), ""
    body = data[declared.end() :] if declared else data
    try:
        try:
            if codecs.lookup(encoding).name in NO_ENCODINGS:
                raise LookupError
            text = body.decode(encoding)
            damaged = "its first line is damaged, ignored" if encoding.lower() in EXPAT_READS else ""
            warning = damaged if declared else "not UTF-8, read as GB18030"
        except LookupError:
            text, warning = body.decode("utf-8"), f"encoding '{encoding}' is not known, read as UTF-8"
        return _parsed(text, attributes, elements), warning
    except (ElementTree.ParseError, ValueError) as error:  # UnicodeDecodeError is a ValueError
        last = error if declared else reason
        shown = f"not {encoding}: {last.reason}" if isinstance(last, UnicodeDecodeError) else last
        raise ValueError(f"not XML: {clean(shown)}") from error


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
        return number_of(text)
    except ValueError as error:
        raise ValueError(f"<{key}> is '{clean(text, 40)}', expected a number") from error


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
