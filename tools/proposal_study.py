"""How much work pre-annotations save: `python tools/proposal_study.py --data my.yaml --weights yolov5n.pt`.

A detector is trained on a few labeled images of the train split, with train.py's recipe. Its detections in the next
images are the boxes that an annotation tool would show. Each is compared with the labels of these images, which the
training has not seen: how many need no correction, how many have to be moved, renamed or deleted.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_0, AT_LEAST_1, ZERO_TO_ONE, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class ProposalConfig(Config):
    """Measure how many boxes of a detector trained on a few images need no correction.

    Example: --data my.yaml --weights yolov5n.pt --labeled 30 --proposed 100
    """

    data: str = flag("", "data YAML; required", group="data and model")
    weights: str = flag("", "checkpoint to fine-tune, instead of --cfg")
    cfg: str = flag("yolov5n.yaml", "model YAML, for training from scratch")
    labeled: int = flag(30, "images to train on", bounds=AT_LEAST_1)
    proposed: int = flag(100, "images to detect in", bounds=AT_LEAST_1)
    epochs: int = flag(100, "epochs of the training", bounds=AT_LEAST_1, group="training")
    imgsz: int = flag(320, "image size, pixels", bounds=AT_LEAST_1)
    batch_size: int = flag(16, "images per batch", bounds=AT_LEAST_1)
    seed: int = flag(0, "random seed of the choice of images and of the training", bounds=AT_LEAST_0)
    conf_thres: tuple[float, ...] = flag(
        (0.25, 0.4, 0.5), "confidence thresholds, a row of the table each", bounds=ZERO_TO_ONE, group="detection"
    )
    good_iou: float = flag(0.75, "IoU from which on a box needs no correction, 0..1", bounds=ZERO_TO_ONE)
    threads: int = flag(1, "CPU threads", bounds=AT_LEAST_1, group="hardware")
    project: str = flag("runs/proposals", "folder of the run and the table", group="output")


if __name__ == "__main__":
    check_cli(ProposalConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
import yaml

import train
from models.runtimes.load import load_model
from utils.boxes import Boxes, pairwise_iou
from utils.data.scan import Scan
from utils.files import write_atomic
from utils.images import imread
from utils.nms import NmsSettings
from utils.predict.predictor import Predictor
from val import match_classes, read_data

LOGGER = logging.getLogger(__name__)
SAME_OBJECT = 0.5  # IoU above which a box that needs a correction is of that object
NO_OBJECT = 0.3  # IoU with all labels below which a box lies where nobody has labeled anything
VERDICTS = ("right", "move", "rename", "delete", "unlabeled")


def main(cfg: ProposalConfig) -> str:
    """Train, detect, compare; print the table and write it to table.md. A finished training is not repeated.

    Raises:
        ValueError: --data is missing, or has too few images.
    """
    if not cfg.data:
        raise ValueError("--data is missing, expected a data YAML")
    torch.set_num_threads(cfg.threads)
    data = read_data(cfg.data)
    found, total = data.scan("train"), cfg.labeled + cfg.proposed
    if len(found) < total:
        raise ValueError(f"{cfg.data}: {len(found)} images in train, expected {total} (--labeled and --proposed)")
    order = np.random.default_rng(cfg.seed).permutation(len(found))
    known, unseen = (found.subset(rows) for rows in (order[: cfg.labeled], order[cfg.labeled : total]))
    folder = Path(cfg.project)
    folder.mkdir(parents=True, exist_ok=True)
    weights = train_on(cfg, folder, known.paths.tolist(), data.names, data.annotations.get("train"))
    device = torch.device("cpu")
    backend = match_classes(load_model(str(weights), device, threads=cfg.threads), data, str(weights))
    predictor = Predictor(backend, device, cfg.imgsz, NmsSettings(min(cfg.conf_thres)))
    detections = [predictor([imread(path)])[0].boxes for path in unseen.paths.tolist()]
    text = "\n".join(table(detections, unseen, cfg.conf_thres, cfg.good_iou)) + "\n"
    write_atomic(folder / "table.md", text)
    print(text, end="")
    return text


def train_on(
    cfg: ProposalConfig, folder: Path, images: Sequence[str], names: dict[int, str], annotations: Path | None
) -> Path:
    """The last checkpoint of a training on these images, of all of them: none is kept back to choose an epoch."""
    start = Path(cfg.weights or cfg.cfg).stem
    run = folder / f"{start}-{cfg.imgsz}-{cfg.epochs}-{len(images)}-s{cfg.seed}"
    last = run / "weights" / "last.pt"
    if (run / "metrics.json").exists():
        return last
    write_atomic(folder / "labeled.txt", "".join(f"{Path(image).resolve()}\n" for image in images))
    content: dict[str, object] = {"path": str(folder.resolve()), "train": "labeled.txt", "val": "labeled.txt"}
    if annotations:
        content["annotations"] = {"train": str(annotations.resolve()), "val": str(annotations.resolve())}
    write_atomic(folder / "labeled.yaml", yaml.safe_dump(content | {"names": names}, allow_unicode=True))
    train.main(
        train.TrainConfig(
            data=str(folder / "labeled.yaml"),
            weights=cfg.weights,
            cfg="" if cfg.weights else cfg.cfg,
            imgsz=cfg.imgsz,
            epochs=cfg.epochs,
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            workers=0,
            device="cpu",
            noval=True,
            noplots=True,
            project=str(folder),
            name=run.name,
            exist_ok=True,
        )
    )
    return last


def table(detections: Sequence[Boxes], truth: Scan, thresholds: Sequence[float], good_iou: float) -> list[str]:
    """The lines of a table: for each confidence threshold the shares of boxes by what they need."""
    images = len(detections)
    lines = [
        f"| confidence | boxes | no correction (IoU >= {good_iou:g}) | to move | to rename | to delete "
        "| where no label is | labels with a box that needs no correction | to draw |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for threshold in thresholds:
        counts, drawn, labels = Counter[str](), 0, 0
        for i in range(images):
            own, found = truth.truth(i), detections[i]
            verdicts, missing = judge(found[found.score >= threshold], own[~own.crowd], good_iou)
            counts.update(verdicts)
            drawn, labels = drawn + missing, labels + int((~own.crowd).sum())
        boxes = max(counts.total(), 1)
        shares = " | ".join(f"{counts[verdict] / boxes:.1%}" for verdict in VERDICTS)
        covered, missed = counts["right"] / max(labels, 1), drawn / max(labels, 1)
        lines.append(f"| {threshold:g} | {counts.total()} | {shares} | {covered:.1%} of {labels} | {missed:.1%} |")
    return lines


def judge(found: Boxes, truth: Boxes, good_iou: float) -> tuple[list[str], int]:
    """What each detection needs, one of VERDICTS, and the number of labels that no detection is of.

    Each label belongs to one detection: first to those that need no correction, the best score first, then to those
    that have to be moved, then to those of another class. A second box on an object has to be deleted; so has one where
    no label is, unless the labels lack that object.
    """
    iou = pairwise_iou(found.xyxy, truth.xyxy) if len(found) and len(truth) else np.zeros((len(found), len(truth)))
    same = found.label[:, None] == truth.label[None]
    verdicts, free = ["delete"] * len(found), np.ones(len(truth), bool)
    order = np.argsort(-found.score, kind="stable")
    for verdict, least, fits in (
        ("right", good_iou, same),
        ("move", SAME_OBJECT, same),
        ("rename", SAME_OBJECT, ~same),
    ):
        for i in order:
            overlap = np.where(fits[i] & free, iou[i], -1.0)
            if verdicts[i] == "delete" and len(truth) and overlap.max() >= least:
                verdicts[i], free[overlap.argmax()] = verdict, False
    far = iou.max(axis=1, initial=0.0) < NO_OBJECT
    verdicts = ["unlabeled" if away and v == "delete" else v for v, away in zip(verdicts, far, strict=True)]
    return verdicts, int(free.sum())


if __name__ == "__main__":
    run_script(main, ProposalConfig)
