"""Compare training runs: `python tools/compare.py runs/train/exp runs/train/exp2`.

Prints a table and the settings that differ, and writes a page with curves on top of each other and what the best
weights of each run find in the same images. The page needs no other file.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_0, ZERO_TO_ONE, Config, argument, check_cli, flag, run_script


@dataclass(frozen=True)
class CompareConfig(Config):
    """Compare training runs: metrics, curves, settings that differ, and what they find in the same images.

    Example: runs/train/exp runs/train/exp2
    """

    runs: tuple[str, ...] = argument("folders of the runs, or checkpoints in them")
    images: str = flag("", "folder of images to detect in; empty: validation images of the first run", group="images")
    count: int = flag(6, "number of images; 0: none", bounds=AT_LEAST_0)
    conf_thres: float = flag(0.25, "confidence threshold, 0..1", bounds=ZERO_TO_ONE)
    device: str = flag("", "cpu, mps or a GPU number; empty: the first GPU, else the CPU")
    out: str = flag("compare.html", "file to write the page to", group="output")


if __name__ == "__main__":
    check_cli(CompareConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import io
import logging
from collections.abc import Sequence

from PIL import Image

import hubconf
from utils.proof.images import comparison_images, evenly
from utils.train.comparison import RunFiles, read_runs, text_page, write_page

LOGGER = logging.getLogger(__name__)
SIDE = 640  # longest side of an image on the page, pixels


def main(cfg: CompareConfig) -> Path:
    """Print the table and write the page; returns its path.

    Raises:
        FileNotFoundError, ValueError: see read_runs; no such images; a checkpoint cannot be read.
    """
    runs = read_runs(cfg.runs)
    out = Path(cfg.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(runs, detect_in_all(cfg, runs), out)
    LOGGER.info(f"{text_page(runs)}\n\ncomparison: {out}")
    return out


def detect_in_all(cfg: CompareConfig, runs: Sequence[RunFiles]) -> dict[str, list[bytes]]:
    """File name of each image -> a JPEG of what each run with a checkpoint finds in it, in the order of the runs."""
    trained = [run for run in runs if run.best.is_file()]
    paths = choose_images(cfg, runs) if trained and cfg.count else []
    drawn: dict[str, list[bytes]] = {str(path): [] for path in paths}
    for run in trained if paths else []:
        model = hubconf.load(str(run.best), device=cfg.device or None)
        model.conf = cfg.conf_thres
        found = model([str(path) for path in paths])
        for path, image in zip(drawn, found.render(), strict=True):
            small, buffer = Image.fromarray(image), io.BytesIO()
            small.thumbnail((SIDE, SIDE))
            small.save(buffer, "JPEG", quality=80)
            drawn[path].append(buffer.getvalue())
    names = [Path(path).name for path in drawn]
    unique = len(set(names)) == len(names)
    return {Path(path).name if unique else path: images for path, images in drawn.items()}


def choose_images(cfg: CompareConfig, runs: Sequence[RunFiles]) -> list[Path]:
    """At most `count` images, evenly spaced: of --images, else of the val split of the first run whose data is there.

    Raises:
        FileNotFoundError, ValueError: no such folder, or no images in it.
    """
    if cfg.images:
        return evenly(comparison_images("", [cfg.images], cfg.count), cfg.count)
    for run in runs:
        try:
            return comparison_images(str(run.settings.get("data", "")), [], cfg.count)
        except (OSError, ValueError) as error:
            reason = f"{run.label}: {error}"
    LOGGER.warning(f"no images are compared, their data is gone; --images FOLDER names others ({reason:.200})")
    return []


if __name__ == "__main__":
    run_script(main, CompareConfig)
