"""The interface of everything that runs a detector, and what weights fix: the size of the input, NMS in the file."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from utils.images import Size, as_size, check_imgsz, size_text
from utils.nms import NmsSettings
from utils.thresholds import Thresholds

LOGGER = logging.getLogger(__name__)
DEFAULT_IMGSZ = 640  # of weights that do not say at which size they were trained


@dataclass(frozen=True)
class ModelLimits:
    """What weights fix or suggest.

    Attributes:
        file: name of the file, for messages.
        imgsz: (height, width) that it was exported for, or trained at; None: not known.
        fixed: the input has this size and no other.
        nms: settings of the NMS in the file; None: it has none.
        thresholds: the confidence thresholds stored in it; None: it has none.
    """

    file: str = ""
    imgsz: Size | None = None
    fixed: bool = False
    nms: NmsSettings | None = None
    thresholds: Thresholds | None = None


class Backend(Protocol):
    """A detector as a callable: images (B, 3, H, W), float in 0..1 -> decoded rows (B, N, 5+nc), see Head.forward.

    It may be called from several threads at once.

    Attributes:
        names: class index -> name. nc: number of classes.
        stride: pixels per cell of the coarsest level. grid: both sides of an input must be multiples of it.
        letterbox: where an image lies on its canvas, one of utils.images.POSITIONS.
        limits: what the weights fix.
    """

    names: dict[int, str]
    nc: int
    stride: int
    grid: int
    letterbox: str
    limits: ModelLimits

    def __call__(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class SparseBackend(Protocol):
    """A backend that can also decode only the rows that matter."""

    def rows_above(self, images: Tensor, least: float) -> list[Tensor]:
        """Of each image the decoded rows (n, 5+nc) that can score above `least`, in order; maybe others, too."""
        ...


@runtime_checkable
class SparseModel(Protocol):
    """A network that can also decode only the rows that matter, and gives the raw maps."""

    def forward_above(self, images: Tensor, least: float) -> tuple[list[Tensor], list[Tensor]]:
        """Of each image the decoded rows (n, 5+nc) that can score above `least`, maybe others, too; the raw maps."""
        ...


def rows_above(model: Callable[[Tensor], Tensor], images: Tensor, least: float) -> list[Tensor]:
    """Of each image the decoded rows (n, 5+nc) that can score above `least`, in order; maybe others, too."""
    return model.rows_above(images, least) if isinstance(model, SparseBackend) else list(model(images))


def input_size(asked: int | Sequence[int], limits: ModelLimits, grid: int) -> Size:
    """(height, width) of a model's input: `asked`, or if that is empty the size of the weights; a line says so.

    A file of a fixed size keeps it, with a warning if another was asked for.

    Raises:
        ValueError: see as_size.
    """
    own = limits.imgsz
    if isinstance(asked, Sequence) and not asked:
        if own is None:
            return check_imgsz(DEFAULT_IMGSZ, grid)
        LOGGER.info(f"--imgsz not given: using {size_text(own)}, the size that {limits.file} was made for")
        return own if limits.fixed else check_imgsz(own, grid)
    if not limits.fixed or own is None:
        return check_imgsz(asked, grid)
    if as_size(asked) != own:
        LOGGER.warning(
            f"--imgsz {size_text(as_size(asked))}: {limits.file} takes {size_text(own)} only; using {size_text(own)}"
        )
    return own


def nms_conflicts(model: Backend, asked: NmsSettings) -> list[str]:
    """The settings asked for that the NMS inside a file has already decided otherwise, with both values."""
    inside, conflicts = model.limits.nms, list[str]()
    if inside is None:
        return conflicts
    if asked.conf_thres < inside.conf_thres:
        conflicts.append(f"confidence threshold {asked.conf_thres:g} (inside: {inside.conf_thres:g})")
    if not math.isclose(asked.iou_thres, inside.iou_thres):
        conflicts.append(f"IoU threshold {asked.iou_thres:g} (inside: {inside.iou_thres:g})")
    if asked.agnostic and model.nc > 1:
        conflicts.append("class-agnostic NMS (inside: within each class)")
    return conflicts


def warn_of_nms(model: Backend, asked: NmsSettings) -> None:
    """Warn in one line if boxes may differ from those that `asked` gives with a checkpoint: the file has NMS inside."""
    if conflicts := nms_conflicts(model, asked):
        LOGGER.warning(
            f"{model.limits.file} has NMS inside, which cannot be undone: {'; '.join(conflicts)}; boxes may differ "
            "from those of the checkpoint: export it with these values, or without --nms"
        )


def refuse_nms(model: Backend, asked: NmsSettings) -> None:
    """Raise a ValueError if metrics with the settings `asked` would be wrong because of the NMS in the file.

    The file keeps one class of a box, where `asked` may count several: that is a warning.
    """
    limits = model.limits
    if limits.nms is None:
        return
    conflicts = nms_conflicts(model, asked)
    if asked.max_det > limits.nms.max_det:
        conflicts.append(f"{asked.max_det} detections per image (inside: {limits.nms.max_det})")
    if conflicts:
        raise ValueError(
            f"{limits.file} has NMS inside, and metrics would be wrong: {'; '.join(conflicts)}; "
            "expected a file exported with these values, or without --nms"
        )
    if asked.multi_label and model.nc > 1:
        LOGGER.warning(
            f"{limits.file} has NMS inside, which keeps the best class of a box; metrics of the checkpoint count every "
            "class above the threshold and may differ a little"
        )
