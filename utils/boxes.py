"""Box arithmetic: frames, clipping, overlaps. A name carries its frame: xyxy corners, xywh centre and size."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import complete_box_iou_loss


def xywh2xyxy(xywh: Tensor) -> Tensor:
    """(..., 4) centre and size -> corners, in the same unit; a new tensor."""
    centre, half = xywh[..., :2], xywh[..., 2:4] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xywhn2xyxy(xywhn: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) centre and size in 0..1 -> corner pixels of an image of `size` (height, width)."""
    unit = np.array([size[1], size[0]], dtype=np.float64)
    centre, half = xywhn[:, :2] * unit, xywhn[:, 2:4] * unit / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def xyxy2xywhn(xyxy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) corner pixels of an image of `size` (height, width) -> centre and size in 0..1."""
    unit = np.array([size[1], size[0]], dtype=np.float64)
    low, high = xyxy[:, :2], xyxy[:, 2:4]
    return np.concatenate([(low + high) / 2 / unit, (high - low) / unit], axis=1)


def clip_xyxy(xyxy: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n, 4) corner pixels cut at the edges of an image of `size` (height, width); a new array."""
    return np.clip(xyxy, 0, np.array([size[1], size[0], size[1], size[0]], dtype=xyxy.dtype))


def paired_ciou(a: Tensor, b: Tensor) -> Tensor:
    """Complete IoU of paired boxes, (n,): 1 for equal ones, down to about -1.5 for far, unlike ones.

    Args:
        a, b: (n, 4) xyxy in one frame, x1 <= x2 and y1 <= y2; n may be 0.

    Source: Zheng et al. 2020, arXiv:1911.08287; the weight of the aspect term is a constant in backward.
    """
    return 1 - complete_box_iou_loss(a, b, reduction="none", eps=1e-7)
