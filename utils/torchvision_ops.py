"""Torchvision's compiled NMS without the rest of torchvision, whose import takes as long as that of torch.

`import torchvision` loads torch._dynamo, sympy and hundreds of other modules, which NMS does not need. Importing it
later still works: the library is then loaded already.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

LIBRARIES = ("_C_stable", "_C")  # names of the compiled library, of newer and older versions
SEPARATE = {"cpu": 4_000}  # numbers of coordinates above which groups are suppressed one after another
SEPARATE_GPU = 100_000


@cache
def load_operators() -> None:
    """Make torch.ops.torchvision.nms known, by the library where it is found, else by importing torchvision."""
    found = importlib.util.find_spec("torchvision")
    folders = list(found.submodule_search_locations or ()) if found else []
    endings = importlib.machinery.EXTENSION_SUFFIXES
    files = [Path(folder) / f"{name}{end}" for name in LIBRARIES for folder in folders for end in endings]
    library = next((file for file in files if file.is_file()), None)
    if library is not None:
        try:
            torch.ops.load_library(library)
        except OSError:  # a library that needs something which torchvision's own import finds
            pass
        else:
            if hasattr(torch.ops.torchvision, "nms"):
                return
    import torchvision.ops  # noqa: F401


def nms(xyxy: Tensor, score: Tensor, iou_thres: float) -> Tensor:
    """(k,) int64 indices of the boxes that stay, best first: of two that overlap by more, the worse is dropped.

    Args:
        xyxy: (n, 4). score: (n,).
    """
    load_operators()
    return torch.ops.torchvision.nms(xyxy, score, iou_thres)


def batched_nms(xyxy: Tensor, score: Tensor, group: Tensor, iou_thres: float) -> Tensor:
    """As `nms`, where boxes only suppress those of their `group` (n,): equal to torchvision.ops.batched_nms.

    Few boxes are moved apart by group and suppressed together; of many, the groups follow one another.
    """
    if not len(xyxy):
        return torch.zeros(0, dtype=torch.int64, device=xyxy.device)
    if xyxy.numel() <= SEPARATE.get(xyxy.device.type, SEPARATE_GPU):
        shift = group.to(xyxy) * (xyxy.max() + 1)
        return nms(xyxy + shift[:, None], score, iou_thres)
    kept = torch.zeros_like(score, dtype=torch.bool)
    for value in group.unique():
        members = (group == value).nonzero()[:, 0]
        kept[members[nms(xyxy[members], score[members], iou_thres)]] = True
    rows = kept.nonzero()[:, 0]
    return rows[score[rows].sort(descending=True).indices]
