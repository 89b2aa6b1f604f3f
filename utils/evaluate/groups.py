"""Detections and labels of all images in groups of one class in one image, matched by COCO's rule, all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from utils.boxes import Boxes, Truth, xyxy2ltwh

AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}  # COCO's, square pixels
IOUS = np.linspace(0.5, 0.95, 10)  # COCO's, at which detections are matched
CASES = len(IOUS) * len(AREAS)  # pairs of an IoU and an area
MOST_PAIRS = 1_000_000  # of a detection and a label that are looked at together
BEFORE = 1 << 24  # added to the preference for labels that count, which come before those that are ignored


@dataclass(frozen=True)
class Rows:
    """Boxes of all images by class, then by image; those of classes without a name are left out.

    Attributes:
        index: (n,) rows of the joined boxes. place: (n,) of the class in names. group: (n,) ascending, one number for
            each class in each image.
    """

    index: np.ndarray
    place: np.ndarray
    group: np.ndarray

    @classmethod
    def of(cls, images: Sequence[Boxes], names: Mapping[int, str]) -> Rows:
        """The rows of the boxes of all images."""
        image = np.repeat(np.arange(len(images)), [len(boxes) for boxes in images])
        place = places(joined([boxes.label for boxes in images], np.int64), names)
        index = np.flatnonzero(place >= 0)
        index = index[place[index].astype(np.uint16).argsort(kind="stable")]  # of 16 bits: by counting, in no time
        return cls(index, place[index], place[index] * max(len(images), 1) + image[index])

    def __getitem__(self, rows: np.ndarray) -> Rows:
        return Rows(self.index[rows], self.place[rows], self.group[rows])

    def ranks(self) -> np.ndarray:
        """(n,) number of the row within its group, from 0."""
        _, first, counts = np.unique(self.group, return_index=True, return_counts=True)
        return np.arange(len(self.group)) - np.repeat(first, counts)


@dataclass(frozen=True)
class Matching:
    """The detections of all images by class, then by image, best first, and what each matches.

    Attributes:
        labels: (nc, areas) labels that are no crowd and have that area.
        place: (n,) of the class in names, ascending. score: (n,). rank: (n,) within class and image, from 0.
        inside: (n, areas) whether its own area is that area.
        rows: (c,) ascending, the detections that overlap a label of their class. hit, valid: (c, IOUs, areas) whether
            they match a label that counts, and whether they count. Others match none and count where they are `inside`.
    """

    labels: np.ndarray
    place: np.ndarray
    score: np.ndarray
    rank: np.ndarray
    inside: np.ndarray
    rows: np.ndarray
    hit: np.ndarray
    valid: np.ndarray

    def of_class(self, k: int) -> tuple[slice, slice, np.ndarray]:
        """The detections of the class at place `k`, their part of `rows`, and their order by score, best first."""
        low, high = np.searchsorted(self.place, [k, k + 1])
        first, last = np.searchsorted(self.rows, [low, high])
        return slice(low, high), slice(first, last), (-self.score[low:high]).argsort(kind="stable")


def joined(parts: Sequence[np.ndarray], dtype: type, width: tuple[int, ...] = ()) -> np.ndarray:
    """The arrays of all images one after another; of `dtype` and rows of shape `width` where there are no images."""
    return np.concatenate(parts) if parts else np.zeros((0, *width), dtype)


def places(labels: np.ndarray, names: Mapping[int, str]) -> np.ndarray:
    """(n,) place of each class in `names`; -1 where it is not among them."""
    known = np.array(list(names), dtype=np.int64)
    order = known.argsort()
    place = order[np.searchsorted(known, labels, sorter=order).clip(max=len(known) - 1)] if len(known) else labels * 0
    return np.where(known[place] == labels, place, -1) if len(known) else place - 1


def label_counts(truth: Sequence[Truth], names: Mapping[int, str]) -> tuple[np.ndarray, np.ndarray]:
    """(nc,) labels of each class, without crowds, and (nc,) images that have one, in the order of names."""
    rows = Rows.of(truth, names)
    rows = rows[~joined([own.crowd for own in truth], bool)[rows.index]]
    _, first = np.unique(rows.group, return_index=True)
    return tuple(np.bincount(place, minlength=len(names)) for place in (rows.place, rows.place[first]))  # type: ignore


def match_all(found: Sequence[Boxes], truth: Sequence[Truth], names: Mapping[int, str], max_det: int) -> Matching:
    """The best `max_det` detections of each class in each image, matched with its labels.

    In order of their scores, each takes the free label that it overlaps most, the last of equal ones; those that are
    ignored (crowds, labels of another area) only where no other can be had. A crowd can be taken many times.
    """
    detections, score = best_first(Rows.of(found, names), joined([boxes.score for boxes in found], np.float64))
    rank = detections.ranks()
    kept = rank < max_det
    detections, score, rank = detections[kept], score[kept], rank[kept]
    labels = Rows.of(truth, names)
    crowd, area = (
        joined([getattr(own, key) for own in truth], kind)[labels.index]
        for key, kind in (("crowd", bool), ("area", np.float64))
    )
    ignored = crowd[:, None] | ~in_areas(area)
    counts = np.zeros((len(names), len(AREAS)), np.int64)
    np.add.at(counts, labels.place, ~ignored)
    boxes, label_boxes = (
        xyxy2ltwh(joined([own.xyxy for own in images], np.float64, (4,)))[rows.index].astype(np.float64)
        for images, rows in ((found, detections), (truth, labels))
    )
    inside = in_areas(boxes[:, 2] * boxes[:, 3])
    pairs = list(overlapping(boxes, detections.group, label_boxes, labels.group, crowd))
    detection, label, iou = (np.concatenate(part) for part in zip(*pairs, strict=True)) if pairs else np.zeros((3, 0))
    rows, pair = np.unique(detection.astype(np.int64), return_inverse=True)
    matched, counted = assign(detections[rows].ranks(), pair, label.astype(np.int64), iou, crowd, ignored)
    shape = (len(rows), len(IOUS), len(AREAS))
    hit, matched = (matched & counted).reshape(shape), matched.reshape(shape)
    valid = np.where(matched, hit, inside[rows][:, None])
    return Matching(counts, detections.place, score, rank, inside, rows, hit, valid)


def best_first(rows: Rows, score: np.ndarray) -> tuple[Rows, np.ndarray]:
    """The rows with those of each group by score, best first, and their scores; `score` is of the joined boxes."""
    own = score[rows.index]
    if ((own[1:] > own[:-1]) & (rows.group[1:] == rows.group[:-1])).any():  # NMS gives them in order
        order = np.lexsort((-own, rows.group))
        return rows[order], own[order]
    return rows, own


def in_areas(area: np.ndarray) -> np.ndarray:
    """(n, areas) whether each of (n,) square pixels lies in each of AREAS, bounds included."""
    return np.stack([(area >= low) & (area <= high) for low, high in AREAS.values()], axis=1)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of each start, as many as its count, one after another."""
    return np.repeat(starts - counts.cumsum() + counts, counts) + np.arange(counts.sum())


def overlapping(
    boxes: np.ndarray, groups: np.ndarray, labels: np.ndarray, label_groups: np.ndarray, crowd: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Detections, labels of their group that they overlap by the least of IOUS, and the IoU of each pair, as COCO's.

    Args:
        boxes, labels: (n, 4), (m, 4) ltwh. groups, label_groups: (n,), (m,) ascending. crowd: (m,): the overlap with a
            crowd is the part of the detection that lies in it.
    """
    group, first, count = np.unique(label_groups, return_index=True, return_counts=True)
    low, high = (np.searchsorted(groups, group, side) for side in ("left", "right"))
    pages = ((high - low) * count).cumsum() // MOST_PAIRS
    for part in np.split(np.arange(len(group)), np.flatnonzero(np.diff(pages)) + 1):
        sizes = (high - low)[part]
        own = np.repeat(count[part], sizes)  # labels for each detection
        detection = np.repeat(ranges(low[part], sizes), own)
        label = ranges(np.repeat(first[part], sizes), own)
        (x, y, w, h), (u, v, a, b) = boxes[detection].T, labels[label].T
        across, down = np.minimum(x + w, u + a) - np.maximum(x, u), np.minimum(y + h, v + b) - np.maximum(y, v)
        near = np.flatnonzero((across > 0) & (down > 0))
        detection, label, shared = detection[near], label[near], across[near] * down[near]
        size = (w * h)[near]
        iou = shared / np.where(crowd[label], size, size + (a * b)[near] - shared)
        enough = iou >= IOUS[0]
        yield detection[enough], label[enough], iou[enough]


def assign(
    turn: np.ndarray, pair: np.ndarray, label: np.ndarray, iou: np.ndarray, crowd: np.ndarray, ignored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether each of c detections takes a label, and one that is not ignored, in each of CASES: two (c, CASES).

    The detections whose turn it is are looked at together: they are of different groups and share no labels.

    Args:
        turn: (c,) number of each detection within its group. pair: (p,) row of `turn`. label: (p,) row of `crowd`
            (m,) and `ignored` (m, areas), ascending in each detection. iou: (p,).
    """
    least = np.repeat(np.minimum(IOUS, 1 - 1e-10), len(AREAS))
    ignored = np.tile(ignored, (1, len(IOUS)))
    taken = np.zeros((len(crowd), CASES), bool)
    matched, counted = (np.zeros((len(turn), CASES), bool) for _ in range(2))
    order = np.lexsort((iou, turn[pair] * len(turn) + pair))
    pair, label, iou = pair[order], label[order], iou[order]
    bounds = np.searchsorted(turn[pair], np.arange(turn.max(initial=-1) + 2))
    for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        own = label[low:high]
        free = (iou[low:high, None] >= least) & (~taken[own] | crowd[own, None])
        preference = np.arange(1, high - low + 1, dtype=np.int32)[:, None] + np.int32(BEFORE) * ~ignored[own]
        starts = np.flatnonzero(np.diff(pair[low:high], prepend=-1))
        best = np.maximum.reduceat(np.where(free, preference, 0), starts, axis=0)
        rows = pair[low + starts]
        matched[rows], counted[rows] = best > 0, best >= BEFORE
        row, case = best.nonzero()
        taken[own[best[row, case] % BEFORE - 1], case] = True
    return matched, counted
