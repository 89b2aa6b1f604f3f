"""What a detector says about one image: detections, their disagreement between views of it, features of the neck."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from utils.boxes import Boxes, pairwise_iou
from utils.nms import NmsSettings
from utils.predict.predictor import Predictor

LOWEST = 0.05  # least confidence of a detection that counts
SMALLER = 0.75  # side of the view that is made smaller, of the image size
# Every class of a box counts: a box that may be two things is two doubtful detections.
NMS = NmsSettings(conf_thres=LOWEST, multi_label=True)


@dataclass(frozen=True)
class Impression:
    """What a detector says about one image.

    Attributes:
        found: detections in pixels of the image, best first, see NMS. disagreement: of the other views, at least 0.
        feature: (C,) float64, the channels of all levels of the neck, averaged over the image and over its views.
    """

    found: Boxes
    disagreement: float
    feature: np.ndarray


class Viewer:
    """Shows images to a detector: as they are, mirrored, and smaller.

    Args:
        predictor: its settings of NMS are replaced. head: the module that receives the maps of the neck as a list.
    """

    def __init__(self, predictor: Predictor, head: nn.Module):
        self.head = head
        grid = predictor.backend.grid
        small = [max(int(side * SMALLER) // grid, 1) * grid for side in predictor.size]
        self.predictor, self.smaller = (replace(predictor, nms=NMS, imgsz=size) for size in (predictor.size, small))

    def __call__(self, image: np.ndarray) -> Impression:
        """The impression of an image (H, W, 3) uint8 RGB; it depends on no other image."""
        with neck_features(self.head) as features:
            plain, mirrored = (p.boxes for p in self.predictor([image, np.ascontiguousarray(image[:, ::-1])]))
            small = self.smaller([image])[0].boxes
        views = [unmirrored(mirrored, image.shape[1]), small]
        doubt = sum(disagreement(plain, view) for view in views) / len(views)
        return Impression(plain, doubt, np.concatenate(features).astype(np.float64).mean(axis=0))


@contextmanager
def neck_features(head: nn.Module) -> Iterator[list[np.ndarray]]:
    """A list to which every forward pass inside the block adds (B, C): the mean of each channel of each level."""
    passes = list[np.ndarray]()

    def keep(_: nn.Module, inputs: tuple[Sequence[Tensor], ...]) -> None:
        passes.append(np.concatenate([level.float().mean((2, 3)).cpu().numpy() for level in inputs[0]], axis=1))

    hook = head.register_forward_pre_hook(keep)
    try:
        yield passes
    finally:
        hook.remove()


def unmirrored(boxes: Boxes, width: int) -> Boxes:
    """The boxes of a mirrored image `width` pixels wide, in the image itself."""
    x1, y1, x2, y2 = boxes.xyxy.T
    return boxes.at(np.stack([width - x2, y1, width - x1, y2], axis=1))


def disagreement(a: Boxes, b: Boxes) -> float:
    """How far the detections of two views differ: 0 if they are equal, else up to the mean of the sums of scores.

    Each box adds its score times 1 - agreement; agreement is that with the best box of its class in the other view,
    IoU times the ratio of the scores.
    """
    iou = pairwise_iou(a.xyxy.astype(np.float64), b.xyxy.astype(np.float64))
    low, high = (choose(a.score[:, None], b.score[None]) for choose in (np.minimum, np.maximum))
    agreed = np.where(a.label[:, None] == b.label[None], iou * low / np.maximum(high, 1e-9), 0)
    sums = [(boxes.score * (1 - agreed.max(axis=axis, initial=0))).sum() for axis, boxes in ((1, a), (0, b))]
    return float(sum(sums) / 2)
