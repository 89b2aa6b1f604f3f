"""ByteTrack: the same object gets the same identity in all frames, by overlap with where it should be by now.

Source: Zhang et al. 2021, arXiv:2110.06864, Algorithm 1, without appearance features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.boxes import Boxes, Tracked, pairwise_iou
from utils.track.assignment import best_pairs
from utils.track.kalman import Kalman

LOW_SCORE = 0.1  # of boxes that continue a track; the paper's
MIN_STEPS = 5  # processed frames that an object may stay away, where they are far apart


@dataclass(frozen=True)
class TrackSettings:
    """Settings of a tracker.

    Attributes:
        score: a box needs it to begin a track, 0..1; boxes below it, down to LOW_SCORE, only continue one.
        iou: a box must overlap more than this with where a known object should be. iou_low: of a box below `score`.
            iou_new: with an object that was seen once.
        keep: frames that an object may be out of sight and still get its identity back.
    """

    score: float = 0.25
    iou: float = 0.2
    iou_low: float = 0.5
    iou_new: float = 0.3
    keep: int = 30

    @property
    def low(self) -> float:
        """The score below which boxes are of no use."""
        return min(LOW_SCORE, self.score)


DEFAULTS = TrackSettings()


class Tracker:
    """Gives the boxes of one video their identities, frame by frame; the same boxes always get the same ones.

    A box is an object's if it has its class and overlaps its predicted place. Those above the score are matched first,
    then lower ones, which are often objects half hidden, with the objects that are left. What is left above the score
    is a new object; it gets its identity when it is seen in the next frame too, in a video's first frame at once, so
    that a false box of a single frame gets none.

    Attributes, a row for each object:
        filter: where it is. label: its class. identity: 0 for one seen once. seen: number of the last frame it was in.
    """

    def __init__(self, settings: TrackSettings = DEFAULTS):
        self.settings = settings
        self.filter = Kalman(np.zeros((0, 4)))
        self.label, self.identity, self.seen = (np.zeros(0, np.int64) for _ in range(3))
        self.number = self.last_identity = 0
        self.step = 0  # frames between two that were given, the least so far

    def __call__(self, boxes: Boxes, number: int) -> Tracked:
        """The boxes of objects with an identity, in their order.

        Args:
            boxes: of one frame, in pixels, those of low scores too. number: of the frame, 1, 2, ... with gaps where
                frames were left out or lost; objects move on in a gap.
        """
        first, gap = self.number == 0, max(number - self.number, 1)
        self.number = number if first else self.number + gap
        if not first:
            self.step = min(self.step or gap, gap)
            self.keep(self.number - self.seen <= max(self.settings.keep, MIN_STEPS * self.step))
            self.filter.predict(gap)
        track = self.match(boxes)
        known = np.flatnonzero(track >= 0)
        self.filter.update(track[known], boxes.xyxy[known])
        self.seen[track[known]] = self.number
        if first:
            known = self.begin(boxes, track)
        for row in track[known]:
            if not self.identity[row]:
                self.last_identity += 1
                self.identity[row] = self.last_identity
        self.begin(boxes, track)
        identity = np.where(track >= 0, self.identity[track] if len(self.identity) else 0, 0)
        self.keep((self.identity > 0) | (self.seen == self.number))
        own = identity > 0
        return Tracked(boxes.xyxy[own], boxes.label[own], boxes.score[own], identity[own])

    def match(self, boxes: Boxes) -> np.ndarray:
        """The row of the object of each box, (n,), -1 for none."""
        settings, track = self.settings, np.full(len(boxes), -1)
        expected, measured = self.filter.xyxy, boxes.xyxy.astype(np.float64)
        high = boxes.score >= settings.score
        low = ~high & (boxes.score >= settings.low)
        known = self.identity > 0
        for objects, usable, limit in (
            (known, high, settings.iou),
            (known, low, settings.iou_low),
            (~known, high, settings.iou_new),
        ):
            rows = np.setdiff1d(np.flatnonzero(objects), track)
            columns = np.flatnonzero(usable & (track < 0))
            same = self.label[rows, None] == boxes.label[None, columns]
            gain = np.where(same, pairwise_iou(expected[rows], measured[columns]) - limit, 0.0)
            matched, to = best_pairs(gain)
            track[columns[to]] = rows[matched]
        return track

    def begin(self, boxes: Boxes, track: np.ndarray) -> np.ndarray:
        """Make an object of each box above the score that has none, and set its row in `track`; returns those boxes."""
        new = np.flatnonzero((track < 0) & (boxes.score >= self.settings.score))
        track[new] = len(self.label) + np.arange(len(new))
        self.filter.append(boxes.xyxy[new])
        self.label = np.concatenate([self.label, boxes.label[new]])
        self.identity = np.concatenate([self.identity, np.zeros(len(new), np.int64)])
        self.seen = np.concatenate([self.seen, np.full(len(new), self.number)])
        return new

    def keep(self, rows: np.ndarray) -> None:
        """Forget all objects but those of the mask `rows`."""
        self.filter.keep(rows)
        self.label, self.identity, self.seen = self.label[rows], self.identity[rows], self.seen[rows]
