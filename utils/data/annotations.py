"""The reader of an annotation file or folder that a data YAML names."""

from __future__ import annotations

from pathlib import Path

from utils.data.coco import CocoLabels
from utils.data.voc import VocLabels, xml_files


def annotation_reader(path: Path, names: dict[int, str]) -> CocoLabels | VocLabels:
    """The reader of a COCO .json file or of a folder of VOC .xml files.

    Raises:
        ValueError: neither of the two.
    """
    if path.is_dir():
        if not xml_files(path):
            raise ValueError(f"{path}: no .xml files, expected Pascal VOC annotations")
        return VocLabels(path, names)
    if path.suffix.lower() != ".json":
        raise ValueError(f"{path}: expected a COCO .json file or a folder of Pascal VOC .xml files")
    return CocoLabels(path, names)
