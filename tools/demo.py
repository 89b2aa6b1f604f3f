"""The demo: draw the built-in data set, train, validate, detect in images and a video. Nothing is downloaded.

`make demo` runs it; `python tools/demo.py --epochs 2` is a quick look.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import check_cli, flag, run_script


@dataclass(frozen=True)
class DemoConfig:
    """Train yolov5-mobilevit on the built-in data set and look at the result.

    Example: --epochs 2
    """

    epochs: int = flag(24, "passes over the 480 training images")
    batch_size: int = flag(8, "images per batch; small, for many steps in little time", "--batch")
    imgsz: int = flag(192, "side of the model's input, pixels", "--img")
    device: str = flag("", "cpu, mps or a GPU number; empty: the first GPU, else the CPU")
    project: str = flag("runs/demo", "folder of the run folders")


if __name__ == "__main__":
    check_cli(DemoConfig)  # before the imports that take seconds: --help and mistakes are answered at once

from typing import Any

import detect
import train
import val
from data.make_shapes import ensure_shapes, shapes_folder


def main(cfg: DemoConfig) -> None:
    """Draw the data set, train, validate, detect; print the mAP and where the results are."""
    data = ensure_shapes(shapes_folder())
    common: dict[str, Any] = {"imgsz": cfg.imgsz, "device": cfg.device, "project": cfg.project}
    train.main(
        train.TrainConfig(
            cfg="yolov5-mobilevit.yaml",
            data=str(data),
            epochs=cfg.epochs,
            name="train",
            batch_size=cfg.batch_size,
            **common,
        )
    )
    weights = max(Path(cfg.project).glob("train*/weights/best.pt"), key=lambda path: path.stat().st_mtime)
    metrics = val.main(val.ValConfig(data=str(data), weights=str(weights), name="val", **common))
    images, clip = (
        detect.main(detect.DetectConfig(weights=str(weights), source=str(source), name="detect", **common))
        for source in (data.parent / "images" / "val", data.parent / "clip.mp4")
    )
    print(f"\nmAP50 {metrics.map50:.3f}, mAP50-95 {metrics.map50_95:.3f} on {metrics.images} validation images")
    print(f"weights: {weights}")
    print(f"report:  {weights.parents[1] / 'report.html'}")
    print(f"images:  {images}")
    print(f"video:   {clip / 'clip.mp4'}")


if __name__ == "__main__":
    run_script(main, DemoConfig)
