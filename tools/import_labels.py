"""Corrected labels as a data set: `python tools/import_labels.py EXPORT --images photos --out my-set`.

EXPORT is what CVAT ("CVAT for images 1.1"), Label Studio (JSON, JSON-MIN) or any tool (COCO JSON, Pascal VOC, YOLO)
writes: the file, its zip or its folder. Everything that is left out or changed is counted in a line.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import Bounds, Config, argument, check_cli, flag, run_script


@dataclass(frozen=True)
class ImportConfig(Config):
    """Make a data set in YOLO format from the export of an annotation tool.

    Example: export.zip --images photos --out my-set --names classes.txt
    """

    export: str = argument(
        "what the tool exported: CVAT XML 1.1, Label Studio JSON, COCO, VOC or YOLO; file, zip or folder"
    )
    images: str = flag("", "folder of the images; empty: they are in the export", group="input")
    names: str = flag(
        "", "data YAML or text file of class names, which fixes their order; empty: the order of the export"
    )
    out: str = flag("", "new folder for the data set; required", group="output")
    val: float = flag(
        0.2, "share of the images for validation, 0..1, chosen by their names", bounds=Bounds(low=0, below=1)
    )


if __name__ == "__main__":
    check_cli(ImportConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
import tempfile

from utils.annotate.dataset import Summary, match_images, write_dataset
from utils.annotate.exported import Ledger
from utils.annotate.exports import merged_names, read_export, read_names, unzipped, visible_files
from utils.commands import command, relative
from utils.data.listing import find_images
from utils.images import IMAGE_SUFFIXES

LOGGER = logging.getLogger(__name__)


def main(cfg: ImportConfig) -> Summary:
    """Write the data set, and print what it has and what was left out.

    Raises:
        ValueError, FileNotFoundError: --out is missing or not empty; nothing that can be read.
    """
    if not cfg.out:
        raise ValueError("--out is missing, expected a new folder")
    ledger = Ledger()
    given = read_names(Path(cfg.names)) if cfg.names else {}
    with tempfile.TemporaryDirectory(prefix="yolov5-mobilevit-") as folder:
        place = unzipped(Path(cfg.export), Path(folder))
        kind, export = read_export(place, ledger, cfg.export)
        source = Path(cfg.images) if cfg.images else place if place.is_dir() else place.parent
        if not cfg.images and not any(path.suffix.lower() in IMAGE_SUFFIXES for path in visible_files(source)):
            raise ValueError(f"{cfg.export} has no images, expected --images with their folder")
        listing = find_images([source])
        ledger.notes += listing.notes
        found = match_images(export, listing.images, cfg.images or "the export", ledger)
        names = merged_names(given, export, ledger)
        summary = write_dataset(found, names, Path(cfg.out), cfg.val, ledger)
    for line in ledger.lines:
        LOGGER.warning(line)
    LOGGER.info(f"{kind}: {summary} in {cfg.out}")
    LOGGER.info(f"next: {command('train', '--data', relative(Path(cfg.out) / 'data.yaml'))}")
    return summary


if __name__ == "__main__":
    run_script(main, ImportConfig)
