"""Does ranking help: `python tools/rank_study.py --data my.yaml --weights yolov5n.pt --seeds 0 1 2`.

A detector is trained on a small random share of the train split. tools/rank.py's ranking, or chance, chooses the images
that are labeled next, up to the next share, and training starts again from --weights. All trainings have the same
number of steps. mAP on the val split is printed against the share that is labeled, beside that of all images, and
drawn in curves.png. A finished training in --project is not repeated, so an interrupted study goes on where it was.

The arm `pseudo` also trains on all other images, with the detections of the ranked model as their labels.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_0, AT_LEAST_1, Bounds, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class RankStudyConfig(Config):
    """Compare labeling in the order of the ranking with labeling at random.

    Example: --data my.yaml --weights yolov5n.pt --seeds 0 1 2
    """

    data: tuple[str, ...] = flag((), "data YAMLs, required", group="data and model")
    weights: str = flag("", "checkpoint to fine-tune, instead of --cfg")
    cfg: str = flag("yolov5n.yaml", "model YAML, for training from scratch")
    shares: tuple[float, ...] = flag(
        (1 / 9, 1 / 3),
        "shares of the train split that are labeled one after the other, the first at random, 0..1",
        bounds=Bounds(above=0, below=1),
        group="labeling",
        shown="1/9 1/3",
    )
    arms: tuple[str, ...] = flag(
        ("ranked", "random", "full"), "which are trained: ranked, random, full, pseudo", shown="all but pseudo"
    )
    seeds: tuple[int, ...] = flag((0,), "random seeds, a study for each", bounds=AT_LEAST_0)
    steps: tuple[int, ...] = flag(
        (300,),
        "batches of each training, rounded up to epochs; one number, or one for each of --data",
        bounds=AT_LEAST_1,
        group="training",
    )
    imgsz: int = flag(160, "image size, pixels", bounds=AT_LEAST_1)
    batch_size: int = flag(16, "images per batch", bounds=AT_LEAST_1)
    threads: int = flag(1, "CPU threads; more may be slower if cores are shared", bounds=AT_LEAST_1, group="hardware")
    project: str = flag("runs/rank-study", "folder of the runs, the table and the curves", group="output")

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.shares) != sorted(set(self.shares)):
            raise ValueError(f"--shares {' '.join(map(str, self.shares))}: expected each larger than the one before")
        if len(self.steps) not in (1, len(self.data) or 1):
            raise ValueError(f"--steps: {len(self.steps)} numbers, expected one, or one for each of --data")
        if unknown := set(self.arms) - set(ARMS):
            raise ValueError(f"--arms {' '.join(sorted(unknown))}: expected some of {', '.join(ARMS)}")


ARMS = ("ranked", "random", "full", "pseudo")

if __name__ == "__main__":
    check_cli(RankStudyConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import json
import logging
import os
import shutil
import statistics
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure

import train
from models.runtimes.load import load_model
from tools.rank import load_ranker, rank
from tools.study import check_settings, stem
from utils.boxes import xyxy2xywhn
from utils.data.data_yaml import Data
from utils.data.labels import label_line
from utils.data.scan import Scan
from utils.drawing import save_figure
from utils.files import write_atomic
from utils.images import imread
from utils.nms import NmsSettings
from utils.predict.predictor import Predictor
from val import match_classes, read_data

LOGGER = logging.getLogger(__name__)
GOAL = 0.95  # of the mAP of all images


class Result(NamedTuple):
    """One training: of which arm, the share and number of labeled images, their boxes, what it reached on val."""

    data: str
    arm: str
    share: float
    images: int
    boxes: int
    map50: float
    map50_95: float


def main(cfg: RankStudyConfig) -> list[Result]:
    """Train all arms; print the table, write it to table.md, and draw curves.png.

    Raises:
        ValueError: --data is missing, or has too few images for the first share.
    """
    if not cfg.data:
        raise ValueError("--data is missing, expected one or more data YAMLs")
    torch.set_num_threads(cfg.threads)
    results = list[Result]()
    for seed in cfg.seeds:
        for name, steps in zip(cfg.data, cfg.steps * (len(cfg.data) // len(cfg.steps)), strict=True):
            for result in study(cfg, name, steps, seed):
                results.append(result)
                write_atomic(Path(cfg.project) / "table.md", "\n".join(table(results)) + "\n")
    draw(results, Path(cfg.project) / "curves.png")
    print("\n".join(table(results)))
    return results


def study(cfg: RankStudyConfig, name: str, steps: int, seed: int) -> Iterator[Result]:
    """The results of all arms with one data set and one seed; ranked and random share their first images."""
    data = read_data(name)
    scan = data.scan("train")
    counts = [round(share * len(scan)) for share in cfg.shares]
    if counts[0] < 1 or len(set(counts)) < len(counts):
        raise ValueError(
            f"{name}: {len(scan)} images in train are too few for --shares, expected another image for each"
        )
    order = np.random.default_rng(seed).permutation(len(scan))
    trainer = Trainer(cfg, data, scan, steps, seed)
    start = trainer.run("start", cfg.shares[0], order[: counts[0]])
    chosen, weights = order[: counts[0]], trainer.folder("start", cfg.shares[0]) / "weights" / "last.pt"
    for arm in ("ranked", "random"):
        yield start._replace(arm=arm)
    for share, count in zip(cfg.shares[1:], counts[1:], strict=True):
        if "random" in cfg.arms:
            yield trainer.run("random", share, order[:count])
        if {"ranked", "pseudo"} & set(cfg.arms):
            chosen = trainer.ranked(weights, share, chosen, count)
            yield trainer.run("ranked", share, chosen)
            weights = trainer.folder("ranked", share) / "weights" / "last.pt"
    if "pseudo" in cfg.arms:
        yield trainer.pseudo(weights, cfg.shares[-1], chosen)
    if "full" in cfg.arms:
        yield trainer.run("full", 1.0, order)


class Trainer:
    """The trainings of one data set and one seed."""

    def __init__(self, cfg: RankStudyConfig, data: Data, scan: Scan, steps: int, seed: int):
        self.cfg, self.data, self.scan, self.steps, self.seed = cfg, data, scan, steps, seed

    def folder(self, arm: str, share: float) -> Path:
        """The folder of a run."""
        start = Path(self.cfg.weights or self.cfg.cfg).stem
        name = f"{stem(self.data.yaml)}-{start}-{self.cfg.imgsz}-{self.steps}-{arm}-{share:.3f}-s{self.seed}"
        return Path(self.cfg.project) / name

    def ranked(self, weights: Path, share: float, chosen: np.ndarray, count: int) -> np.ndarray:
        """Rows of the scan: those chosen before, and the first ones in the ranking of the others; `count` in all."""
        file = Path(f"{self.folder('ranked', share)}.rank.txt")
        row_of = {str(path): row for row, path in enumerate(self.scan.paths)}
        if not file.exists():
            rest = np.setdiff1d(np.arange(len(self.scan)), chosen)
            backend = load_ranker(str(weights), "cpu", self.cfg.threads)
            known = self.scan.paths[np.sort(chosen)].tolist()
            found, _ = rank(backend, self.cfg.imgsz, self.scan.paths[rest].tolist(), known, count - len(chosen))
            write_atomic(file, "".join(f"{item.path}\n" for item in found))
        return np.append(chosen, [row_of[path] for path in file.read_text(encoding="utf-8").splitlines()])

    def run(self, arm: str, share: float, rows: np.ndarray, more: Sequence[str] = ()) -> Result:
        """The result of a training on these rows of the scan and on `more` images, which is done unless it was.

        Raises:
            ValueError: see check_settings.
        """
        folder, cfg = self.folder(arm, share), self.cfg
        images = [str(Path(path).resolve()) for path in self.scan.paths[np.sort(rows)].tolist()] + list(more)
        batches = -(-len(images) // cfg.batch_size)
        epochs = -(-self.steps // batches)
        settings: dict[str, Any] = {"weights": cfg.weights, "cfg": "" if cfg.weights else cfg.cfg, "imgsz": cfg.imgsz}
        settings |= {"batch_size": cfg.batch_size, "epochs": epochs, "seed": self.seed}
        check_settings(Path(f"{folder}.json"), settings | {"images": images})
        if not (folder / "metrics.json").exists() and (folder / "weights" / "last.pt").exists():
            train.main(train.TrainConfig(resume=str(folder), workers=0))
        elif not (folder / "metrics.json").exists():
            places: dict[str, Any] = {"project": str(folder.parent), "name": folder.name, "exist_ok": True}
            fixed: dict[str, Any] = {"workers": 0, "noval": True, "noplots": True, "device": "cpu"}
            yaml_file = self.write_yaml(folder, images)
            train.main(train.TrainConfig(**({"data": str(yaml_file)} | settings | places | fixed)))
        numbers = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        boxes = int(self.scan.subset(np.sort(rows)).box_count)
        scores = float(numbers["map50"]), float(numbers["map50_95"])
        return Result(stem(self.data.yaml), arm, share, len(rows), boxes, *scores)

    def write_yaml(self, folder: Path, images: Sequence[str]) -> Path:
        """A data YAML beside a run: these images to train on, the val split to measure on."""
        lists = {"train": images, "val": [str(Path(p).resolve()) for p in self.data.scan("val").paths.tolist()]}
        content: dict[str, object] = {"path": str(folder.parent.resolve())}
        for split, paths in lists.items():
            content[split] = f"{folder.name}.{split}.txt"
            write_atomic(folder.parent / f"{folder.name}.{split}.txt", "".join(f"{path}\n" for path in paths))
        if self.data.annotations:
            content["annotations"] = {split: str(file.resolve()) for split, file in self.data.annotations.items()}
        path = folder.parent / f"{folder.name}.yaml"
        write_atomic(path, yaml.safe_dump(content | {"names": self.data.names}, allow_unicode=True))
        return path

    def pseudo(self, weights: Path, share: float, rows: np.ndarray) -> Result:
        """A training on labeled images, and on copies of all others with the detections of `weights` as labels.

        The confidence threshold is that of the best F1 on val, from the metrics of the run of `weights`.

        Raises:
            ValueError: the labels of the data are annotations, not label files; the run has no confidence threshold.
        """
        if self.data.annotations:
            raise ValueError(f"--arms pseudo: {self.data.yaml} has annotations, expected label files")
        metrics = weights.parent.parent / "metrics.json"
        stored = json.loads(metrics.read_text(encoding="utf-8"))["thresholds"]
        if stored is None:
            raise ValueError(f"--arms pseudo: {metrics} has no confidence threshold, its model finds nothing right")
        threshold = float(stored["confidence"])
        device, target = torch.device("cpu"), Path(f"{self.folder('pseudo', share)}.copies")
        backend = match_classes(load_model(str(weights), device, threads=self.cfg.threads), self.data, str(weights))
        predictor = Predictor(backend, device, self.cfg.imgsz, NmsSettings(threshold))
        copies = list[str]()
        for row in np.setdiff1d(np.arange(len(self.scan)), rows).tolist():
            path = Path(str(self.scan.paths[row]))
            copy = target.resolve() / "images" / f"{row:06}{path.suffix}"
            label = target / "labels" / f"{row:06}.txt"
            copies.append(str(copy))
            if label.exists():
                continue
            image = imread(path)
            found = predictor([image])[0].boxes
            xywhn = xyxy2xywhn(found.xyxy.astype(np.float64), (image.shape[0], image.shape[1]))
            lines = [label_line(c, box) for c, box in zip(found.label, xywhn, strict=True)]
            for folder in (copy.parent, label.parent):
                folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            os.utime(copy)
            write_atomic(label, "".join(lines))
        return self.run("pseudo", share, rows, copies)


def table(results: Sequence[Result]) -> list[str]:
    """A row for each data set, share and arm: the mean over the seeds, and half of the range."""
    lines = [
        "| data | arm | share labeled | images | boxes | mAP50 | mAP50-95 | of all images |",
        "|---|---|---|---|---|---|---|---|",
    ]
    full = {r.data: mean(results, r.data, "full", 1.0) for r in results}
    for data, arm, share in dict.fromkeys(
        (r.data, r.arm, r.share) for r in sorted(results, key=lambda r: (r.data, r.share))
    ):
        own = [r for r in results if (r.data, r.arm, r.share) == (data, arm, share)]
        part = f"{statistics.mean(r.map50_95 for r in own) / full[data]:.0%}" if full[data] else ""
        counts = f"{statistics.mean(r.images for r in own):.0f} | {statistics.mean(r.boxes for r in own):.0f}"
        scores = " | ".join(spread([getattr(r, name) for r in own]) for name in ("map50", "map50_95"))
        lines.append(f"| {data} | {arm} | {share:.0%} | {counts} | {scores} | {part} |")
    return lines


def mean(results: Sequence[Result], data: str, arm: str, share: float) -> float:
    """The mean mAP50-95 over the seeds; 0 without results."""
    own = [r.map50_95 for r in results if (r.data, r.arm, r.share) == (data, arm, share)]
    return statistics.mean(own) if own else 0.0


def spread(values: Sequence[float]) -> str:
    """The mean, and half of the range if there are several values."""
    half = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{half}"


def draw(results: Sequence[Result], path: Path) -> None:
    """A chart for each data set: mAP50-95 against the share that is labeled, each seed pale, the mean on a line."""
    names = list(dict.fromkeys(r.data for r in results))
    figure = Figure(figsize=(4.2 * len(names), 3.6), layout="constrained")
    for axes, data in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        for arm, color, marker in (("ranked", "#1d7a74", "o"), ("random", "#8a6d3b", "s"), ("pseudo", "#7a4fa3", "^")):
            own = [r for r in results if (r.data, r.arm) == (data, arm)]
            shares = sorted({r.share for r in own})
            means, label = [mean(results, data, arm, share) for share in shares], arm if own else None
            axes.plot(shares, means, color=color, marker=marker, markersize=4, label=label)
            axes.scatter([r.share for r in own], [r.map50_95 for r in own], color=color, marker=marker, s=10, alpha=0.4)
        if full := mean(results, data, "full", 1.0):
            axes.axhline(full, color="gray", linewidth=1, label="all images")
            axes.axhline(GOAL * full, color="gray", linewidth=1, linestyle="--", label=f"{GOAL:.0%} of it")
        axes.margins(y=0.1)
        axes.set(title=data, xlabel="share of the images labeled", ylabel="mAP50-95 on val")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save_figure(figure, path)


if __name__ == "__main__":
    run_script(main, RankStudyConfig)
