"""Confidence thresholds chosen on one split and used on another: F1 against the best possible there, and calibration.

python tools/threshold_study.py --weights best.pt --data my.yaml --choose val --measure test
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_0, AT_LEAST_1, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class ThresholdStudyConfig(Config):
    """Confidence thresholds chosen on one split and used on another, as a Markdown table.

    Example: --weights best.pt yolov5n.pt --data my.yaml coco128.yaml --choose val val/1 --measure test val/2
    """

    weights: tuple[str, ...] = flag((), "model files, one for each row", group="rows of the table")
    data: tuple[str, ...] = flag((), "data YAMLs, one for each row")
    choose: tuple[str, ...] = flag(("val",), "splits that choose; val/1: every second image; one: of all rows")
    measure: tuple[str, ...] = flag(("test",), "splits that measure; val/2: the other images; one: of all rows")
    halves: int = flag(0, "also choose on random halves of the images, so many times; 0: no", bounds=AT_LEAST_0)
    imgsz: int | tuple[int, ...] = flag(
        (),
        "size of the images, pixels; empty: that of the weights, else 640",
        "--img",
        bounds=AT_LEAST_1,
        group="model",
    )
    device: str = flag("cpu", "cpu, mps or a GPU number", group="hardware")


if __name__ == "__main__":
    check_cli(ThresholdStudyConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from models.runtimes.load import load_model
from utils.device import select_device
from utils.evaluate.evaluation import detect_all
from utils.evaluate.matching import ClassMatches
from utils.evaluate.metrics import DetectionMetrics
from utils.evaluate.thresholds import (
    GRID,
    Counts,
    calibration,
    choose_thresholds,
    confident,
    f1_at,
    last_best,
    mean,
    reliability,
    scaled,
)
from utils.evaluate.verdicts import matched_labels
from utils.thresholds import split_name
from val import ValConfig, eval_settings, match_classes, read_data, split_loader

LOGGER = logging.getLogger(__name__)
DEFAULT = 0.25  # the threshold of detect.py
HEADER = (
    "weights", "chosen on", "used on", "threshold", "F1", "best possible", "at", f"F1 at {DEFAULT}",
    "ECE", "with temperature",
)  # fmt: skip
HALVES = (
    "weights",
    "data",
    "images",
    "chosen",
    "of the very best F1",
    "of all images",
    "within 0.01",
    "of all images, too",
)
Matches = Mapping[int, ClassMatches]


def main(cfg: ThresholdStudyConfig) -> list[dict[str, str]]:
    """Measure and print the table; returns its rows.

    Raises:
        ValueError, FileNotFoundError: lists of different lengths; see val.py.
    """
    rows, seen = [], dict[tuple[str, str, str], DetectionMetrics]()
    for weights, data, choose, measure in cases(cfg):
        found = {name: matches_of(cfg, weights, data, name, seen) for name in (choose, measure)}
        row = {"weights": title(weights), **row_of(*found[choose], found[measure][0])}
        row |= {"chosen on": split_name(data, choose), "used on": split_name(data, measure)}
        rows.append(row)
        LOGGER.info(" | ".join(row[key] for key in HEADER))
    log_table(HEADER, rows)
    if cfg.halves:
        log_table(HALVES, [halves_of(cfg.halves, *case, seen) for case in cases(cfg)])
    return rows


def log_table(header: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    """Print rows as a Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header))]
    lines += ["| " + " | ".join(row[key] for key in header) + " |" for row in rows]
    LOGGER.info("\n".join(["", *lines]))


def cases(cfg: ThresholdStudyConfig) -> list[tuple[str, str, str, str]]:
    """Weights, data and both splits of each row.

    Raises:
        ValueError: lists of different lengths.
    """
    count = len(cfg.weights)
    splits = [s * count if len(s) == 1 else s for s in (cfg.choose, cfg.measure)]
    if not count or any(len(part) != count for part in (cfg.data, *splits)):
        raise ValueError("--weights --data --choose --measure: expected as many of each, or one --choose and --measure")
    return list(zip(cfg.weights, cfg.data, *splits, strict=True))


def title(weights: str) -> str:
    """The name of a run, else of a file."""
    path = Path(weights).resolve()
    return path.parent.parent.name if path.parent.name == "weights" and path.stem in ("best", "last") else path.stem


def matches_of(
    cfg: ThresholdStudyConfig, weights: str, data: str, split: str, seen: dict[tuple[str, str, str], DetectionMetrics]
) -> tuple[Matches, list[str]]:
    """The matches of a model's detections on a split, or on every second image of it, and the names of the classes."""
    name, _, half = split.partition("/")
    if half not in ("", "1", "2"):
        raise ValueError(f"{split}: expected a split such as val, or half of one: val/1, val/2")
    key = weights, data, name
    whole = seen[key] = seen[key] if key in seen else detections(cfg, weights, data, name)
    part = DetectionMetrics(whole.names, whole.max_det)
    for i in range(int(half or 1) - 1, len(whole.sizes), 2 if half else 1):
        part.update(whole.found[i], whole.truth[i], whole.sizes[i])
    return part.class_matches, list(whole.names.values())


def detections(cfg: ThresholdStudyConfig, weights: str, data: str, split: str) -> DetectionMetrics:
    """All detections of a model on a split, with the settings of val.py."""
    settings = ValConfig(weights=weights, data=data, task=split, imgsz=cfg.imgsz, workers=0, device=cfg.device)
    device = select_device(cfg.device)
    model, read = load_model(weights, device), read_data(data)
    network = match_classes(model, read, weights)
    loader = split_loader(settings, read, model, settings.imgsz)
    return detect_all(network, loader, read.names, device, eval_settings(settings), desc=split).detections


def row_of(chosen_on: Matches, names: list[str], used_on: Matches) -> dict[str, str]:
    """The figures of one row.

    Raises:
        ValueError: no detections or no labels in a split.
    """
    chosen, fit = choose_thresholds(chosen_on, names), calibration(chosen_on)
    scores, hits = confident(used_on)
    if chosen is None or not used_on:
        raise ValueError("a split without labels or detections, expected some in both")
    f1 = np.array([f1_at(used_on, float(t)) for t in GRID[::10]])
    errors = "-", "-"
    if fit is not None and len(scores):
        before, after = (reliability(s, hits)[1] for s in (scores, scaled(scores, fit.temperature)))
        errors = f"{before:.3f}", f"{after:.3f} ({fit.temperature:.2f})"
    return {
        "threshold": f"{chosen.confidence:.3f}",
        "F1": f"{f1_at(used_on, chosen.confidence):.3f}",
        "best possible": f"{f1.max():.3f}",
        "at": f"{GRID[::10][f1.argmax()]:.3f}",
        f"F1 at {DEFAULT}": f"{f1_at(used_on, DEFAULT):.3f}",
        "ECE": errors[0],
        "with temperature": errors[1],
    }


def halves_of(
    repeats: int,
    weights: str,
    data: str,
    choose: str,
    measure: str,
    seen: Mapping[tuple[str, str, str], DetectionMetrics],
) -> dict[str, str]:
    """How much F1 thresholds lose on one random half of the images of both splits against the best possible there.

    Chosen on the other half; that of the very best F1 there; that of the best F1 on all images, of both halves: the
    measuring half's own best cannot be met by any threshold from elsewhere.
    """
    wholes = [seen[weights, data, name] for name in dict.fromkeys(s.partition("/")[0] for s in (choose, measure))]
    images = [match for whole in wholes for match in image_matches(whole)]
    classes, chance = len(wholes[0].names), np.random.default_rng(0)
    names, everywhere = list(wholes[0].names.values()), best_place(class_matches(images, classes))
    lost = []
    for _ in range(repeats):
        order = chance.permutation(len(images)).tolist()
        own, other = (class_matches([images[i] for i in part], classes) for part in np.array_split(order, 2))
        chosen = choose_thresholds(own, names)
        if chosen is None:
            raise ValueError(f"{data}: half of the images without right detections, expected some in every half")
        f1 = mean({names[k]: Counts.of(m) for k, m in other.items()}, "f1")
        places = round(chosen.confidence * len(GRID)), best_place(own), everywhere
        lost.append([f1.max() - f1[place] for place in places])
    table = np.array(lost)
    losses = (f"{x:.3f}" for x in table.mean(axis=0))
    near = (f"{x:.2f}" for x in (table[:, [0, 2]] <= 0.01).mean(axis=0))
    values = (title(weights), Path(data).resolve().parent.name, str(len(images)), *losses, *near)
    return dict(zip(HALVES, values, strict=True))


def best_place(matches: Matches) -> int:
    """The place in GRID of the very best mean F1."""
    return last_best(mean({str(k): Counts.of(m) for k, m in matches.items()}, "f1"))


ImageMatches = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def image_matches(whole: DetectionMetrics) -> list[ImageMatches]:
    """Of each image: place of the class, score and hit of its detections; place of the class of its labels."""
    place = {c: k for k, c in enumerate(whole.names)}
    rows = []
    for found, truth in zip(whole.found, whole.truth, strict=True):
        label, own = (np.array([place[c] for c in boxes.label.tolist()], dtype=int) for boxes in (found, truth))
        rows.append((label, found.score, matched_labels(found, truth) >= 0, own[~truth.crowd]))
    return rows


def class_matches(images: Sequence[ImageMatches], classes: int) -> dict[int, ClassMatches]:
    """Place of each class with labels -> its matches in these images."""
    label, score, hit, own = (np.concatenate(part) for part in zip(*images, strict=True))
    order = (-score).argsort(kind="stable")
    label, score, hit = label[order], score[order], hit[order]
    labels = np.bincount(own, minlength=classes)
    return {
        k: ClassMatches(int(labels[k]), score[label == k], hit[label == k]) for k in np.flatnonzero(labels).tolist()
    }


if __name__ == "__main__":
    run_script(main, ThresholdStudyConfig)
