"""Planted label errors: how many of them the first tenth of the list of suspected label errors holds.

python tools/suspect_study.py --weights best.pt --data my.yaml --split val
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_1, ZERO_TO_ONE, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class SuspectStudyConfig(Config):
    """Plant label errors in memory and count how many the first tenth of the suspects holds, as a Markdown table.

    Example: --weights best.pt --data my.yaml --split val train+val+test --errors 0.05 --repeats 8
    """

    weights: tuple[str, ...] = flag((), "model files, trained on the labels as they are", group="rows of the table")
    data: str = flag("", "data YAML")
    split: tuple[str, ...] = flag(("val",), "splits, each with every model; joined by +: one list of all their images")
    errors: float = flag(
        0.05, "share of the labels to spoil: a third each dropped, of another class, shifted", bounds=ZERO_TO_ONE
    )
    repeats: int = flag(8, "number of times, each with other labels spoiled", bounds=AT_LEAST_1)
    imgsz: int | tuple[int, ...] = flag(
        (),
        "size of the images, pixels; empty: that of the weights, else 640",
        "--img",
        bounds=AT_LEAST_1,
        group="model",
    )
    device: str = flag("cpu", "cpu, mps or a GPU number", group="hardware")


if __name__ == "__main__":
    check_cli(SuspectStudyConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
from collections.abc import Sequence

import numpy as np

from tools.threshold_study import ThresholdStudyConfig, detections, title
from utils.boxes import Truth, pairwise_iou
from utils.evaluate.matching import MATCH_IOU
from utils.evaluate.metrics import DetectionMetrics
from utils.evaluate.suspects import MISSING, SHIFTED, SWAPPED, Suspect, find_suspects

LOGGER = logging.getLogger(__name__)
KINDS = (MISSING, SWAPPED, SHIFTED)  # what dropping a label, giving it another class and shifting it make
SHIFT = 0.3, 0.6  # of a box's sides, in any direction
HEADER = ("weights", "split", "labels", "planted", "in the list", "in the first tenth", "dropped", "class", "shifted")


@dataclass(frozen=True)
class Planted:
    """One spoiled label.

    Attributes:
        kind: one of KINDS. image: its index. row: of the label among the spoiled ones; -1: it was dropped.
        xyxy: (4,) corners of the label, as it was if it was dropped.
    """

    kind: str
    image: int
    row: int
    xyxy: np.ndarray


def main(cfg: SuspectStudyConfig) -> list[dict[str, str]]:
    """Measure and print the table; returns its rows.

    Raises:
        ValueError, FileNotFoundError: no weights or data; see val.py.
    """
    if not cfg.weights or not cfg.data:
        raise ValueError("--weights --data: expected at least one model file and a data YAML")
    rows = []
    for weights in cfg.weights:
        for split in cfg.split:
            part = joined(cfg, weights, split)
            rows.append({"weights": title(weights), "split": split, **row_of(part, cfg.errors, cfg.repeats)})
            LOGGER.info(" | ".join(rows[-1][key] for key in HEADER))
    lines = ["| " + " | ".join(row) + " |" for row in (HEADER, ["---"] * len(HEADER))]
    lines += ["| " + " | ".join(row[key] for key in HEADER) + " |" for row in rows]
    LOGGER.info("\n".join(["", *lines]))
    return rows


def joined(cfg: SuspectStudyConfig, weights: str, split: str) -> DetectionMetrics:
    """The detections and labels of one or several splits."""
    study = ThresholdStudyConfig(imgsz=cfg.imgsz, device=cfg.device)
    parts = [detections(study, weights, cfg.data, name) for name in split.split("+")]
    whole = DetectionMetrics(parts[0].names, parts[0].max_det)
    for part in parts:
        for found, truth, size in zip(part.found, part.truth, part.sizes, strict=True):
            whole.update(found, truth, size)
    return whole


def row_of(part: DetectionMetrics, share: float, repeats: int) -> dict[str, str]:
    """The figures of one row: means over the repeats.

    Raises:
        ValueError: so few labels that none is spoiled.
    """
    early: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    shares, planted, entries = [], [], []
    for seed in range(repeats):
        truth, spoiled = spoil(part.truth, part.sizes, list(part.names), share, seed)
        if not spoiled:
            raise ValueError(f"--errors {share}: none of the {sum(map(len, part.truth))} labels, expected more")
        suspects = find_suspects(part.found, truth, part.names)
        found = [is_among(suspects[: len(suspects) // 10], error) for error in spoiled]
        for error, hit in zip(spoiled, found, strict=True):
            early[error.kind].append(hit)
        shares.append(np.mean(found))
        planted.append(len(spoiled))
        entries.append(len(suspects))
    mean, spread = np.mean(shares), np.std(shares)
    kinds = (f"{np.mean(hits):.2f}" if hits else "-" for hits in early.values())
    values = (f"{np.mean(planted):.0f}", f"{np.mean(entries):.0f}", f"{mean:.3f} ± {spread:.3f}", *kinds)
    return {"labels": str(sum(map(len, part.truth))), **dict(zip(HEADER[3:], values, strict=True))}


def spoil(
    truth: Sequence[Truth], sizes: Sequence[tuple[int, int]], classes: Sequence[int], share: float, seed: int
) -> tuple[list[Truth], list[Planted]]:
    """The labels with a share of them dropped, of another class (where there are two) or shifted, and what was done.

    Args:
        sizes: (height, width) of each image, in which shifted boxes stay.
    """
    chance = np.random.default_rng(seed)
    places = [(i, j) for i, labels in enumerate(truth) for j in np.flatnonzero(~labels.crowd).tolist()]
    order = chance.permutation(len(places))[: round(share * len(places))].tolist()
    kinds = {places[k]: KINDS[n % 3] for n, k in enumerate(order)}
    spoiled, planted = [], []
    for i, labels in enumerate(truth):
        xyxy, label, kept = labels.xyxy.astype(np.float64), labels.label.copy(), np.ones(len(labels), dtype=bool)
        own = [(j, kinds[i, j]) for j in range(len(labels)) if (i, j) in kinds]
        for j, kind in own:
            others = [c for c in classes if c != label[j]]
            if kind == MISSING:
                kept[j] = False
            elif kind == SWAPPED and others:
                label[j] = chance.choice(others)
            elif kind == SHIFTED:
                angle, sides = chance.uniform(0, 2 * np.pi), xyxy[j, 2:] - xyxy[j, :2]
                step = sides * chance.uniform(*SHIFT) * np.array([np.cos(angle), np.sin(angle)])
                xyxy[j] = np.clip(xyxy[j] + np.tile(step, 2), 0, np.tile(sizes[i][::-1], 2))
        rows = np.where(kept, kept.cumsum() - 1, -1)
        planted += [Planted(kind, i, int(rows[j]), xyxy[j]) for j, kind in own]
        changed = Truth(xyxy, label, labels.score, labels.crowd, labels.area)
        spoiled.append(changed[kept])
    return spoiled, planted


def is_among(suspects: Sequence[Suspect], error: Planted) -> bool:
    """Whether a spoiled label, or a detection at the place of a dropped one, is among the suspects."""
    own = [s for s in suspects if s.image == error.image and (s.row == error.row)]
    if error.row >= 0:
        return bool(own)
    boxes = np.array([s.xyxy for s in own], dtype=np.float64).reshape(-1, 4)
    return bool((pairwise_iou(boxes, error.xyxy[None]) >= MATCH_IOU).any())


if __name__ == "__main__":
    run_script(main, SuspectStudyConfig)
