"""Which images to label next: `python tools/rank.py --weights best.pt --source unlabeled --count 20`.

First come images about which the model is uncertain, each unlike those before it. Nothing in `--source` is changed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_0, AT_LEAST_1, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class RankConfig(Config):
    """List the images that are worth labeling next.

    Example: --weights best.pt --source unlabeled --count 20
    """

    source: str = flag("", "images without labels: a folder, list.txt or image; required", group="images")
    labeled: str = flag("", "images that have labels, likewise: the list should differ from them; empty: none")
    count: int = flag(20, "images to list", bounds=AT_LEAST_1)
    weights: str = flag("", "checkpoint; empty: best.pt of the newest training run", group="model")
    imgsz: tuple[int, ...] = flag(
        (),
        "image size: one number, or height and width, pixels",
        "--img",
        "--img-size",
        bounds=AT_LEAST_1,
        shown="that of the weights",
    )
    device: str = flag("", "cpu, mps or a GPU number; empty: the first GPU, else the CPU", group="hardware")
    threads: int = flag(0, "CPU threads (0: runtime default)", bounds=AT_LEAST_0)
    project: str = flag("runs/rank", "folder of the runs", group="output")
    name: str = flag("exp", "name of this run's folder, numbered if it exists")
    exist_ok: bool = flag(False, "write into an existing run folder")


if __name__ == "__main__":
    check_cli(RankConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
from collections.abc import Sequence

import numpy as np

from models.runtimes.load import load_backend
from models.runtimes.torch_backend import TorchBackend
from utils.commands import command, quoted, relative
from utils.data.listing import find_images
from utils.device import select_device
from utils.images import imread
from utils.predict.predictor import Predictor
from utils.progress import Progress
from utils.rank.choice import choose, reason, uncertainty
from utils.rank.page import RankedImage, write_ranking
from utils.rank.views import Impression, Viewer
from utils.runs import Run, weights_or_newest
from utils.text import clean, counted, first

LOGGER = logging.getLogger(__name__)


def main(cfg: RankConfig) -> list[RankedImage]:
    """Print the list with a reason each; write rank.csv, rank.txt and rank.html into the run's folder.

    Raises:
        ValueError, FileNotFoundError: --source is missing or has no image that can be read; the weights are unusable.
    """
    if not cfg.source:
        raise ValueError("--source is missing, expected a folder of images, a list.txt or an image")
    images = listed(cfg.source)
    known = listed(cfg.labeled) if cfg.labeled else []
    weights = str(weights_or_newest(cfg.weights))
    backend = load_ranker(weights, cfg.device, cfg.threads)
    ranked, total = rank(backend, cfg.imgsz, images, known, cfg.count)
    folder = Run(cfg.project, cfg.name, cfg.exist_ok).dir
    write_ranking(folder, ranked, backend.names, f"{len(ranked)} of {total} images of {cfg.source}, by {weights}")
    LOGGER.info("\n".join(lines(ranked, total)))
    LOGGER.info(f"{quoted(folder)}: rank.html shows them, rank.csv has the numbers, rank.txt the paths")
    LOGGER.info(
        "to correct detections instead of drawing boxes: "
        + command("detect", "--weights", weights, "--source", relative(folder / "rank.txt"), "--annotate", "cvat")
    )
    return ranked


def listed(source: str) -> list[str]:
    """The images that `source` names, sorted, each file once.

    Raises:
        ValueError, FileNotFoundError: see find_images.
    """
    return sorted({str(path.resolve()): str(path) for path in find_images([source]).images}.values())


def load_ranker(weights: str, device: str, threads: int = 0) -> TorchBackend:
    """The checkpoint as a backend whose neck can be read.

    Raises:
        ValueError: an exported file; see load_backend.
    """
    backend = load_backend(weights, select_device(device), threads=threads)
    if not isinstance(backend, TorchBackend):
        raise ValueError(f"--weights {weights}: an exported file hides its features, expected a checkpoint (.pt)")
    return backend


def rank(
    backend: TorchBackend, imgsz: int | Sequence[int], images: Sequence[str], known: Sequence[str], count: int
) -> tuple[list[RankedImage], int]:
    """At most `count` of `images` to label next, the first ones first; and how many can be read.

    Args:
        images: paths, in the order that decides between equal ones. known: paths of images that have labels.

    Raises:
        ValueError: none of `images` can be read.
    """
    viewer = Viewer(Predictor(backend, backend.device, imgsz), backend.model.head)
    seen = impressions(viewer, images, "unlabeled")
    if not seen:
        raise ValueError(f"{first(images)}: no image can be read, expected images")
    features = [item.feature for item in impressions(viewer, known, "labeled").values()]
    paths, found = list(seen), [item.found for item in seen.values()]
    doubts = uncertainty(list(seen.values()), backend.nc)
    own = np.stack([item.feature for item in seen.values()])
    chosen = choose(doubts.total, own, count, np.array(features).reshape(len(features), own.shape[1]))
    ranked = []
    for item in chosen:
        i = item.row
        ranked.append(
            RankedImage(
                paths[i],
                found[i],
                uncertainty=float(doubts.total[i]),
                entropy=float(doubts.entropy[i]),
                disagreement=float(doubts.disagreement[i]),
                surprise=float(doubts.surprise[i]),
                distance=item.distance,
                reason=reason(item, doubts, found[i], backend.names, paths),
            )
        )
    return ranked, len(paths)


def impressions(viewer: Viewer, paths: Sequence[str], what: str) -> dict[str, Impression]:
    """Path -> impression of the images that can be read; a warning names the others."""
    seen, broken = dict[str, Impression](), list[str]()
    progress = Progress(paths, len(paths), lambda: f"{what:>9}")
    for path in progress:
        progress.items += 1
        try:
            image = imread(path)
        except (ValueError, OSError):
            broken.append(path)
            continue
        seen[path] = viewer(image)
    if broken:
        LOGGER.warning(f"{counted(len(broken), 'image')} cannot be read and is left out: {first(broken)}")
    return seen


def lines(ranked: Sequence[RankedImage], total: int) -> list[str]:
    """The list for the terminal."""
    rows = [f"{k:4}  {clean(item.path, 90)}  {item.reason}" for k, item in enumerate(ranked, start=1)]
    return [f"label these {len(ranked)} of {total} images next:", *rows]


if __name__ == "__main__":
    run_script(main, RankConfig)
