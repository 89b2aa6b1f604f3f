"""The demo: draw a data set, train on it, detect in images and a video. Nothing is downloaded.

`make demo` runs it and needs about two minutes of CPU; `make demo-full` runs it with --full: more images, a larger
network, validation and report.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

BEGAN = time.monotonic()
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_1, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class DemoConfig(Config):
    """Train on a data set that is drawn for it, and look at the result.

    Example: --full
    """

    full: bool = flag(False, "yolov5-mobilevit on the built-in data set, with report: some minutes instead of one")
    epochs: int | None = flag(None, "passes over the training images", bounds=AT_LEAST_1, shown="20, with --full 24")
    batch_size: int = flag(8, "images per batch; small, for many steps in little time", "--batch", bounds=AT_LEAST_1)
    imgsz: int | None = flag(
        None, "side of the model's input, pixels", "--img", bounds=AT_LEAST_1, shown="128, with --full 192"
    )
    device: str = flag("", "cpu, mps or a GPU number; empty: the first GPU, else the CPU")
    threads: int | None = flag(None, "CPU threads (0: runtime default)", shown="1, with --full 0")
    project: str = flag("runs/demo", "folder of the run folders")


if __name__ == "__main__":
    check_cli(DemoConfig)  # before the imports that take seconds: --help and mistakes are answered at once

from typing import Any

import torch

import detect
import train
import val
from data.make_shapes import ensure_shapes, shapes_folder
from data.shape_drawing import TYPICAL_SIDE


@dataclass(frozen=True)
class DemoRecipe:
    """What is trained on what.

    Attributes:
        folder: of the data set, beside that of the built-in one. train_images, val_images: to draw.
        side: typical long side of an object, pixels; large ones are learned sooner.
        threads: CPU threads. Small inputs gain little by several, and on a busy machine they wait for each other.
        flags: of train.py.
    """

    folder: str
    train_images: int
    val_images: int
    side: int
    epochs: int
    imgsz: int
    threads: int
    flags: dict[str, Any]


QUICK_FLAGS = {"hyp": "hyp.demo.yaml", "optimizer": "AdamW", "clip_grad": 1.0, "cache": "ram"}
QUICK_FLAGS |= {"cfg": "yolov5-mobilevit-fast.yaml", "workers": 1, "noval": True, "noplots": True}
QUICK = DemoRecipe("shapes-demo", 320, 60, side=110, epochs=20, imgsz=128, threads=1, flags=QUICK_FLAGS)
FULL = DemoRecipe(
    "shapes", 480, 120, TYPICAL_SIDE, epochs=24, imgsz=192, threads=0, flags={"cfg": "yolov5-mobilevit.yaml"}
)
LOWEST = 0.05  # confidence threshold for the images, if the best F1 is below it


def main(cfg: DemoConfig) -> None:
    """Draw the data set, train, detect, with --full also validate; print the mAP and where the results are."""
    recipe = FULL if cfg.full else QUICK
    if threads := recipe.threads if cfg.threads is None else cfg.threads:
        torch.set_num_threads(threads)
    folder = shapes_folder().with_name(recipe.folder)
    data = ensure_shapes(folder, recipe.train_images, recipe.val_images, side=recipe.side)
    common: dict[str, Any] = {"imgsz": cfg.imgsz or recipe.imgsz, "device": cfg.device, "project": cfg.project}
    settings: dict[str, Any] = (
        {"epochs": cfg.epochs or recipe.epochs, "batch_size": cfg.batch_size} | recipe.flags | common
    )
    metrics = train.main(train.TrainConfig(data=str(data), name="train", **settings))
    weights = max(Path(cfg.project).glob("train*/weights/best.pt"), key=lambda path: path.stat().st_mtime)
    if cfg.full:
        metrics = val.main(val.ValConfig(data=str(data), weights=str(weights), name="val", **common))
    assert metrics is not None
    threshold = max(metrics.thresholds.confidence if metrics.thresholds else LOWEST, LOWEST)
    found = []
    for source in (data.parent / "images" / "val", data.parent / "clip.mp4"):
        options: dict[str, Any] = {"conf_thres": round(threshold, 2), "name": "detect"} | common
        found.append(detect.main(detect.DetectConfig(weights=str(weights), source=str(source), **options)))
        if len(found) == 1:
            print(f"images with boxes after {time.monotonic() - BEGAN:.0f} s: {found[0]}", flush=True)
    images, clip = found
    print(f"\nmAP50 {metrics.map50:.3f}, mAP50-95 {metrics.map50_95:.3f} on {metrics.images} validation images")
    print(f"weights: {weights}")
    if cfg.full:
        print(f"report:  {weights.parents[1] / 'report.html'}")
    print(f"images:  {images}")
    print(f"video:   {clip / 'clip.mp4'}")
    if not cfg.full:
        print("more:    make demo-full, with a larger network, more images and a report")


if __name__ == "__main__":
    run_script(main, DemoConfig)
