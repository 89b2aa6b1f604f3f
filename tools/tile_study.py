"""Compare networks with and without tiles: COCO's AP of small, medium and all objects.

    python tools/tile_study.py --data aerial_maritime/data.yaml --tile 192 --imgsz 192 --epochs 30

Each network, or the checkpoint --weights, is trained on whole images and with --tile-train, each run is measured on
whole images and with --tile. A finished run in --project is not repeated. The table is written to table.md in
--project. Small, medium and large are COCO's, in pixels of the images as they are measured: --upscale 2 makes small
objects medium.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_1, Bounds, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class TileStudyConfig(Config):
    """Compare networks with and without tiles on one data set.

    Example: --data my.yaml --tile 320 --imgsz 320
    """

    data: str = flag("", "data YAML, required", group="data and models")
    upscale: int = flag(1, "enlarge the images by this factor first, into --project", bounds=AT_LEAST_1)
    cfg: tuple[str, ...] = flag(("yolov5-mobilevit-fast.yaml", "yolov5-mobilevit-fast-p2.yaml"), "model YAMLs")
    weights: str = flag("", "checkpoint to fine-tune, instead of --cfg")
    tile: int = flag(192, "side of the tiles, pixels of the (enlarged) images", bounds=Bounds(low=32))
    seeds: tuple[int, ...] = flag((0,), "random seeds, a run for each", group="training")
    imgsz: int = flag(192, "image size, pixels", bounds=AT_LEAST_1)
    batch_size: int = flag(16, "images per batch", bounds=AT_LEAST_1)
    epochs: int = flag(30, "epochs of each run", bounds=AT_LEAST_1)
    fraction: float = flag(1.0, "fraction of the training images to use, 0..1", bounds=Bounds(above=0, high=1))
    threads: int = flag(1, "CPU threads; more may be slower if cores are shared", group="hardware", bounds=AT_LEAST_1)
    project: str = flag("runs/tiles", "folder of the runs and the table", group="output")


if __name__ == "__main__":
    check_cli(TileStudyConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import statistics
from typing import Any

import cv2
import torch
import yaml

import train
import val
from utils.data.data_yaml import read_data_yaml
from utils.data.labels import label_line
from utils.evaluate.metrics import Metrics
from utils.files import write_atomic
from utils.images import imread, imwrite

COLUMNS = ("APs", "APm", "APl", "AP50", "AP")
KINDS = ("whole", "tiles")


def enlarge(data_yaml: str, factor: int, folder: Path) -> str:
    """The data YAML of a copy of the train and val splits with images `factor` times as high and wide, as PNG.

    A copy that is there is used. The data YAML is written last.
    """
    target = folder / "data.yaml"
    if target.is_file():
        return str(target)
    data = read_data_yaml(data_yaml)
    for split in ("train", "val"):
        scan = data.scan(split)
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for i, path in enumerate(scan.paths.tolist()):
            image = imread(path)
            size = (image.shape[1] * factor, image.shape[0] * factor)
            imwrite(folder / "images" / split / f"{i:06}.png", cv2.resize(image, size, interpolation=cv2.INTER_CUBIC))
            own = slice(scan.offsets[i], scan.offsets[i + 1])
            rows = zip(scan.label[own].tolist(), scan.xywhn[own].tolist(), strict=True)
            lines = "".join(label_line(label, xywhn) for label, xywhn in rows)
            write_atomic(folder / "labels" / split / f"{i:06}.txt", lines, sync=False)
    content = {"path": ".", "train": "images/train", "val": "images/val", "names": dict(data.names)}
    write_atomic(target, yaml.safe_dump(content, allow_unicode=True))
    return str(target)


def trained(cfg: TileStudyConfig, data: str, model: str, tile: int, seed: int) -> Path:
    """The best checkpoint of a run, which is trained unless it is finished."""
    kind = f"tiles{tile}" if tile else "whole"
    folder = Path(cfg.project) / f"{Path(data).resolve().parent.name}-{Path(model).stem}-{kind}-s{seed}"
    if not (folder / "metrics.json").is_file():
        train.main(
            train.TrainConfig(
                data=data,
                cfg="" if cfg.weights else model,
                weights=cfg.weights,
                imgsz=cfg.imgsz,
                batch_size=cfg.batch_size,
                epochs=cfg.epochs,
                fraction=cfg.fraction,
                seed=seed,
                tile_train=tile,
                workers=0,
                noplots=True,
                project=str(folder.parent),
                name=folder.name,
                exist_ok=True,
            )
        )
    return folder / "weights" / "best.pt"


def measured(cfg: TileStudyConfig, data: str, weights: Path, tile: int) -> Metrics:
    """The metrics of a checkpoint on the val split, on whole images or also on their tiles."""
    name = f"{weights.parents[1].name}-{'tiles' if tile else 'whole'}"
    common: dict[str, Any] = {"imgsz": cfg.imgsz, "workers": 0, "plots": False, "exist_ok": True}
    project = str(Path(cfg.project) / "val")
    return val.main(val.ValConfig(data=data, weights=str(weights), tile=tile, project=project, name=name, **common))


def cell(values: list[float]) -> str:
    """The mean, and half of the range if there are several values; a dash without labels of that size."""
    if min(values) < 0:
        return "-"
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main(cfg: TileStudyConfig) -> None:
    """Train and measure everything, and print the table."""
    if not cfg.data:
        raise ValueError("--data is missing, expected a data YAML")
    torch.set_num_threads(cfg.threads)
    data = str(Path(cfg.data).resolve())
    if cfg.upscale > 1:
        name = read_data_yaml(data).yaml
        stem = Path(name).resolve().parent.name if Path(name).name == "data.yaml" else Path(name).stem
        data = enlarge(data, cfg.upscale, Path(cfg.project) / f"{stem}-x{cfg.upscale}")
    lines = [f"| network | trained on | measured on | {' | '.join(COLUMNS)} |", "|---" * (3 + len(COLUMNS)) + "|"]
    for model in (cfg.weights,) if cfg.weights else cfg.cfg:
        for train_tile in (0, cfg.tile):
            runs = [trained(cfg, data, model, train_tile, seed) for seed in cfg.seeds]
            for val_tile in (0, cfg.tile):
                found = [measured(cfg, data, weights, val_tile).coco for weights in runs]
                scores = " | ".join(cell([figures[column] for figures in found]) for column in COLUMNS)
                kinds = f"{KINDS[train_tile > 0]} | {KINDS[val_tile > 0]}"
                lines.append(f"| {Path(model).stem} | {kinds} | {scores} |")
                write_atomic(Path(cfg.project) / "table.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main, TileStudyConfig)
