"""Pre-annotations: files with a model's boxes that an annotation tool imports, to be corrected there."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import yaml

from utils.annotate.cvat import cvat_labels, cvat_xml
from utils.annotate.labelstudio import interface_text, tasks_text
from utils.annotate.proposal import Proposal, coco_text, voc_text, yolo_text
from utils.boxes import Boxes
from utils.files import write_atomic
from utils.images import imwrite
from utils.runs import OutputFiles
from utils.text import clean, counted, first

LOGGER = logging.getLogger(__name__)
FORMATS = ("yolo", "coco", "voc", "cvat", "labelstudio")
FOLDER = "annotations"  # in the run's folder
MAIN = {"cvat": "annotations.xml", "coco": "annotations.json", "labelstudio": "tasks.json"}
NOT_UTF8 = re.compile("[\ud800-\udfff]")  # stand for bytes of names that are not UTF-8
NOT_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold, and \r


def one_line(name: str) -> str:
    """A name for a text file with a name a line."""
    return name if len(name.splitlines()) == 1 else clean(name)


def holds(text: str, xml: bool) -> bool:
    """Whether a file in UTF-8, or in XML, can hold a name as it is."""
    return not (NOT_XML if xml else NOT_UTF8).search(text)


class PreAnnotations:
    """Collects the boxes of all images, and writes them on exit for the tool of `kind`; '' writes nothing.

    Args:
        kind: '' or one of FORMATS. files: of the run. names: class index -> name.
        root: of kind labelstudio: its folder of local files; '': the parent of the folder of all images.

    Raises:
        ValueError: a class name that the format cannot hold.
        FileExistsError: a file that is not this program's is where a result would be.
    """

    def __init__(self, kind: str, files: OutputFiles, names: Mapping[int, str], root: str = ""):
        self.kind, self.files, self.names, self.root = kind, files, names, root
        self.folder = files.folder / FOLDER
        self.images = self.folder / ("images/train" if kind == "yolo" else "images")  # of frames of videos
        self.found: dict[Path, tuple[tuple[int, int], Boxes]] = {}
        self.unnamed: list[Path] = []  # images whose names the format cannot hold
        odd = (
            [name for name in names.values() if not holds(name, kind in ("voc", "cvat", "labelstudio"))] if kind else []
        )
        if odd:
            raise ValueError(f"--annotate {kind}: class '{clean(odd[0], 60)}' has characters that it cannot hold")
        if kind in MAIN:
            files.check(self.folder / MAIN[kind])

    def __enter__(self) -> PreAnnotations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.kind and self.found:
            self.write()

    def add(self, path: Path, image: np.ndarray, boxes: Boxes, stem: str, is_frame: bool) -> None:
        """Add the boxes, in pixels, of an image (H, W, 3); one without a file, as a frame of a video, is written.

        Args:
            stem: of the file that is written. is_frame: `path` is that of a video or of a stream.
        """
        if not self.kind:
            return
        if is_frame or not path.is_file():
            path = self.images / f"{stem}.jpg"
            with self.files.writing(path):
                imwrite(path, image)
        if not holds(str(path), self.kind in ("voc", "cvat")):
            self.unnamed.append(path)
            return
        self.found[Path(os.path.abspath(path))] = ((image.shape[0], image.shape[1]), boxes)

    def proposals(self) -> list[Proposal]:
        """All images; names are relative to the folder that holds all of them, those of written frames to theirs."""
        own = Path(os.path.abspath(self.images))
        parents = {path.parent for path in self.found if path.parent != own}
        base = Path(os.path.commonpath(parents)) if parents else own
        roots = {path: own if path.parent == own else base for path in self.found}
        return [
            Proposal(path, path.relative_to(roots[path]).as_posix(), size, boxes)
            for path, (size, boxes) in self.found.items()
        ]

    def write(self) -> None:
        """Write the files of the format, and say what to do with them."""
        proposals = self.proposals()
        if self.kind in ("yolo", "voc"):
            proposals = self.with_own_files(proposals)
        texts: dict[str, str] = {}
        if self.kind == "yolo":
            texts = {f"labels/train/{item.stem}.txt": yolo_text(item) for item in proposals}
            content = {"path": ".", "train": "images/train", "names": dict(self.names)}
            texts["data.yaml"] = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        elif self.kind == "voc":
            texts = {f"{item.stem}.xml": voc_text(item, self.names) for item in proposals}
        elif self.kind == "coco":
            texts = {"annotations.json": coco_text(proposals, self.names)}
        elif self.kind == "cvat":
            texts = {"annotations.xml": cvat_xml(proposals, self.names), "labels.json": cvat_labels(self.names)}
        else:
            root = self.document_root()
            texts = {"tasks.json": tasks_text(proposals, self.names, root), "interface.xml": interface_text(self.names)}
            LOGGER.info(f"Label Studio finds the images with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}")
        texts["classes.txt"] = "".join(f"{one_line(name)}\n" for name in self.names.values())
        for name, text in texts.items():
            with self.files.writing(self.folder / name) as path:
                write_atomic(path, text, sync=len(texts) < 10)
        boxes = sum(len(item.boxes) for item in proposals)
        what = f"{counted(boxes, 'box', 'boxes')} in {counted(len(proposals), 'image')}"
        LOGGER.info(f"{self.folder}: {what} for {self.kind}, docs/annotate.md says how to import them")
        if self.unnamed:
            names = counted(len(self.unnamed), "image")
            LOGGER.warning(
                f"{names} left out of {self.folder}, whose names {self.kind} cannot hold: {first(self.unnamed)}"
            )

    def with_own_files(self, proposals: list[Proposal]) -> list[Proposal]:
        """Those with a label file of their own; a.jpg and a.png would share one, of which the second is left out."""
        owners: dict[str, Proposal] = {}
        for item in proposals:
            owners.setdefault(item.stem.casefold(), item)
        twins = [item.path for item in proposals if owners[item.stem.casefold()] is not item]
        if twins:
            what = counted(len(twins), "image")
            LOGGER.warning(f"{what} left out of {self.folder}, an earlier one has the label file: {first(twins)}")
        return list(owners.values())

    def document_root(self) -> Path:
        """Label Studio's folder of local files: it shows images in folders below it, not in itself.

        Raises:
            ValueError: an image is not in a folder below the given root.
        """
        parents = {path.parent for path in self.found}
        if not self.root:
            return Path(os.path.commonpath(parents)).parent
        root = Path(os.path.abspath(self.root))
        if outside := [path for path in parents if root not in path.parents]:
            raise ValueError(f"--annotate-root {self.root}: {first(outside)} is not a folder below it")
        return root
