"""Scenes for trackers: objects that move, cross and hide each other, their detections, and how well they are followed.

python tests/scenes.py           the table of docs/track.md: scene, MOTA, IDF1, switches

CLEAR MOT (Bernardin and Stiefelhagen 2008, doi:10.1155/2008/246309) and IDF1 (Ristani et al. 2016, arXiv:1609.01775).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.boxes import Boxes, Tracked, areas, pairwise_iou
from utils.track.bytetrack import Tracker

SIZE = (360, 640)  # height, width of the frames
HIDDEN, HALF_HIDDEN = 0.7, 0.35  # fraction of an object behind others, above which its box is missing, or scores low


@dataclass(frozen=True)
class Scene:
    """The truth of every frame, and what a detector makes of it."""

    name: str
    truth: list[Tracked]
    found: list[Boxes]


@dataclass(frozen=True)
class Mover:
    """An object: its center at a time, (t,) -> (t, 2) pixels; width, height; class; frames in which it exists."""

    path: Callable[[np.ndarray], np.ndarray]
    size: tuple[float, float] = (40.0, 60.0)
    label: int = 0
    frames: tuple[int, int] = (0, 10_000)


def straight(x: float, y: float, vx: float, vy: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda t: np.stack([x + vx * t, y + vy * t], axis=1)


def covered(boxes: np.ndarray) -> np.ndarray:
    """The largest fraction of each box (n, 4) behind one of those whose lower edge is nearer to the camera."""
    part = np.zeros(len(boxes))
    for i, box in enumerate(boxes):
        for other in boxes[boxes[:, 3] > box[3]]:
            wide, high = (np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])).clip(min=0)
            part[i] = max(part[i], wide * high / areas(box[None])[0])
    return part


def play(
    name: str,
    movers: Sequence[Mover],
    length: int,
    seed: int = 0,
    missed: float = 0.0,
    false: float = 0.0,
    noise: float = 0.02,
    hide: bool = True,
) -> Scene:
    """The scene of some objects.

    Args:
        missed: fraction of boxes that are not found. false: boxes of nothing per frame. noise: of corners, as a
            fraction of the box. hide: whether objects hide those behind them.
    """
    rng = np.random.default_rng(seed)
    truth, found = list[Tracked](), list[Boxes]()
    for t in range(length):
        rows = []
        for k, mover in enumerate(movers):
            center = mover.path(np.array([float(t)]))[0]
            half = np.array(mover.size) / 2
            box = np.concatenate([center - half, center + half])
            seen = np.clip(box, 0, [SIZE[1], SIZE[0]] * 2)
            if mover.frames[0] <= t < mover.frames[1] and min(seen[2:] - seen[:2]) > 0.3 * min(mover.size):
                rows.append((*seen, mover.label, k + 1))
        table = np.array(rows).reshape(-1, 6)
        xyxy, label, identity = table[:, :4], table[:, 4].astype(int), table[:, 5].astype(int)
        truth.append(Tracked(xyxy, label, np.ones(len(xyxy)), identity))
        hidden = covered(xyxy) if hide else np.zeros(len(xyxy))
        score = np.where(hidden > HALF_HIDDEN, rng.uniform(0.12, 0.22, len(xyxy)), rng.uniform(0.5, 0.95, len(xyxy)))
        own = (hidden <= HIDDEN) & (rng.random(len(xyxy)) >= missed)
        unit = np.tile(xyxy[:, 2:] - xyxy[:, :2], 2)
        boxes = Boxes(xyxy + rng.normal(0, noise, xyxy.shape) * unit, label, score)[own]
        count = rng.poisson(false)
        corner = rng.uniform(0, 1, (count, 2)) * [SIZE[1] - 60, SIZE[0] - 60]
        ghosts = Boxes(
            np.concatenate([corner, corner + rng.uniform(20, 60, (count, 2))], axis=1),
            rng.integers(0, 2, count),
            rng.uniform(0.1, 0.5, count),
        )
        both = Boxes.join([boxes, ghosts])
        found.append(both[np.argsort(-both.score)])
    return Scene(name, truth, found)


@cache
def scenes() -> list[Scene]:
    """What trackers find hard, one kind of it in each scene, then all of it."""
    walkers = [Mover(straight(40 + 60 * k, 60 + 50 * k, 3 - k, 0.6 * (-1) ** k), label=k % 2) for k in range(5)]
    cross = [Mover(straight(40, 150, 5, 0.5)), Mover(straight(600, 175, -5, -0.5))]
    crowd = [Mover(straight(20 + 30 * k, 120 + 25 * k, 2 + 0.5 * k, 0.2), (36, 70)) for k in range(6)]
    pole = [
        Mover(straight(320, 200, 0, 0), (60, 220), label=1),
        Mover(straight(60, 180, 4, 0)),
        Mover(straight(600, 190, -3, 0)),
    ]
    doors = [Mover(straight(-30, 60 + 55 * k, 6, 0), (50, 40), frames=(15 * k, 999)) for k in range(5)]
    curve = [
        Mover(lambda t: np.stack([320 + 150 * np.cos(t / 25), 180 + 90 * np.sin(t / 25)], axis=1)),
        Mover(lambda t: np.stack([320 - 150 * np.cos(t / 25), 180 + 90 * np.sin(t / 25)], axis=1), label=1),
    ]
    return [
        play("walkers", walkers, 120),
        play("crossing", cross, 110),
        play("behind a pole", pole, 130),
        play("crowd", crowd, 120),
        play("entering and leaving", doors, 170),
        play("curves", curve, 160),
        play("missed detections", walkers, 120, missed=0.25),
        play("false detections", walkers, 120, false=1.0),
        play("all of it", [*walkers, *cross], 120, seed=1, missed=0.15, false=0.5, noise=0.03),
    ]


# ---- how well objects are followed -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quality:
    """MOTA, IDF1 (1 is perfect), and how often the number of an object changes."""

    mota: float
    idf1: float
    switches: int


def best_total(gain: np.ndarray) -> tuple[float, tuple[tuple[int, int], ...]]:
    """The largest total gain of one-to-one pairs, by trying all of them, and the pairs; for a few rows or columns."""
    if gain.shape[0] < gain.shape[1]:
        total, pairs = best_total(gain.T)
        return total, tuple((b, a) for a, b in pairs)

    @cache
    def best(row: int, used: int) -> tuple[float, tuple[tuple[int, int], ...]]:
        if row == len(gain):
            return 0.0, ()
        choices = [best(row + 1, used)]
        for column in range(gain.shape[1]):
            if gain[row, column] > 0 and not used >> column & 1:
                total, pairs = best(row + 1, used | 1 << column)
                choices.append((total + gain[row, column], ((row, column), *pairs)))
        return max(choices, key=lambda choice: choice[0])

    return best(0, 0)


def quality(truth: Iterable[Tracked], tracked: Iterable[Tracked], least: float = 0.5) -> Quality:
    """Of all frames; a box is right if it overlaps that of the truth by `least` or more."""
    last: dict[int, int] = {}
    together, of_truth, of_track = Counter[tuple[int, int]](), Counter[int](), Counter[int]()
    missed = false = switches = 0
    for real, own in zip(truth, tracked, strict=True):
        iou = pairwise_iou(real.xyxy.astype(float), own.xyxy.astype(float))
        real_ids, own_ids = real.identity.tolist(), own.identity.tolist()
        of_truth.update(real_ids)
        of_track.update(own_ids)
        together.update((real_ids[i], own_ids[j]) for i, j in np.argwhere(iou >= least).tolist())
        pairs = [
            (i, own_ids.index(last[k])) for i, k in enumerate(real_ids) if last.get(k) in own_ids
        ]  # first those that go on
        pairs = [(i, j) for i, j in pairs if iou[i, j] >= least]
        gain = np.where(iou >= least, 1000 + iou, 0.0)  # as many pairs as possible, then the best of them
        gain[[i for i, _ in pairs]], gain[:, [j for _, j in pairs]] = 0, 0
        pairs += best_total(gain)[1]
        for i, j in pairs:
            switches += last.get(real_ids[i], own_ids[j]) != own_ids[j]
            last[real_ids[i]] = own_ids[j]
        missed += len(real_ids) - len(pairs)
        false += len(own_ids) - len(pairs)
    rows, columns = sorted(of_truth), sorted(of_track)
    table = np.array([[together[a, b] for b in columns] for a in rows], float).reshape(len(rows), len(columns))
    total = of_truth.total()
    right = best_total(table)[0]
    return Quality(1 - (missed + false + switches) / total, 2 * right / (total + of_track.total()), switches)


if __name__ == "__main__":
    for scene in scenes():
        tracker = Tracker()
        result = quality(scene.truth, [tracker(boxes, k) for k, boxes in enumerate(scene.found, start=1)])
        print(f"| {scene.name} | {result.mota:.3f} | {result.idf1:.3f} | {result.switches} |")
