"""The demo: draw the built-in set, train on it, validate, detect on pictures and a clip. Nothing is downloaded.

`make demo` runs it; `python tools/demo.py --epochs 2` is a quick look.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import detect
import train
import val
from utils.config import REPO, flag, run_script

DATA = REPO / "datasets" / "shapes"


@dataclass(frozen=True)
class DemoConfig:
    """Train yolov5-mobilevit on the built-in set and look at the result."""

    epochs: int = flag(24, "passes over the 480 training pictures")
    batch_size: int = flag(8, "pictures a batch: small, for many updates in little time", "--batch")
    imgsz: int = flag(192, "side of the canvas, pixels", "--img")
    device: str = flag("", "cpu, mps or a GPU number; empty: the first GPU, else the CPU")
    project: str = flag("runs/demo", "where run folders go")


def main(cfg: DemoConfig) -> None:
    """Make the set, train, validate, detect; print where the pictures are and the mAP."""
    drawn = subprocess.run([sys.executable, str(REPO / "data" / "make_shapes.py"), "--out", str(DATA)])
    if drawn.returncode:
        sys.exit(drawn.returncode)  # it has said why
    data = str(DATA / "data.yaml")
    common = {"imgsz": cfg.imgsz, "device": cfg.device, "project": cfg.project}
    train.main(
        train.TrainConfig(
            cfg="yolov5-mobilevit.yaml",
            data=data,
            epochs=cfg.epochs,
            name="train",
            exist_ok=False,
            batch_size=cfg.batch_size,
            **common,
        )
    )
    weights = str(newest(Path(cfg.project), "train*/weights/best.pt"))
    metrics = val.main(val.ValConfig(data=data, weights=weights, name="val", **common))
    places = [
        detect.main(detect.DetectConfig(weights=weights, source=str(source), name="detect", **common))
        for source in (DATA / "images" / "val", DATA / "clip.mp4")
    ]
    print(f"\nmAP50 {metrics.map50:.3f}, mAP50-95 {metrics.map50_95:.3f} on {metrics.images} pictures it has not seen")
    print(f"weights:  {weights}")
    print(f"pictures: {places[0]}")
    print(f"clip:     {places[1] / 'clip.mp4'}")


def newest(folder: Path, pattern: str) -> Path:
    """The file below `folder` that was written last."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime)


if __name__ == "__main__":
    run_script(main, DemoConfig)
