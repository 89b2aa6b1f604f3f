"""TensorBoard logs of a run: scalars, images and the graph of the model; needs the package tensorboard."""

from __future__ import annotations

import importlib.util
import logging
import math
import warnings
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from utils.images import imread

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LOGGER = logging.getLogger(__name__)


class TensorBoard:
    """Writes event files into a run folder; without the package tensorboard all methods do nothing.

    Args:
        folder: of the run. start: the epoch at which a resumed run continues; entries of later epochs are dropped.
    """

    def __init__(self, folder: Path, start: int = 0):
        self.writer: SummaryWriter | None = None
        if importlib.util.find_spec("tensorboard") is None:
            LOGGER.info("TensorBoard logs are off, they need: pip install tensorboard")
            return
        from torch.utils.tensorboard import SummaryWriter  # not at the top: the package is optional and slow to import

        self.writer = SummaryWriter(str(folder), purge_step=start or None)
        LOGGER.info(f"TensorBoard logs: tensorboard --logdir {folder.parent}")

    def scalars(self, row: Mapping[str, float | int]) -> None:
        """Log the row of results.csv of an epoch; NaN (not measured) is left out."""
        if self.writer is None:
            return
        for name, value in row.items():
            if name != "epoch" and math.isfinite(value):
                self.writer.add_scalar(name, value, int(row["epoch"]))
        self.writer.flush()

    def images(self, paths: list[Path], epoch: int = 0) -> None:
        """Log image files under their names."""
        if self.writer is None:
            return
        for path in paths:
            self.writer.add_image(path.stem, imread(path), epoch, dataformats="HWC")

    def graph(self, model: nn.Module, imgsz: int) -> None:
        """Log the graph of `model` in eval mode for an image of `imgsz` pixels; the model is not modified."""
        if self.writer is None:
            return
        copy = deepcopy(model).cpu().float().eval()
        with warnings.catch_warnings(), torch.no_grad():
            for kind in (torch.jit.TracerWarning, FutureWarning):  # the writer traces the model, which is deprecated
                warnings.simplefilter("ignore", kind)
            self.writer.add_graph(copy, torch.zeros(1, 3, imgsz, imgsz), use_strict_trace=False)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
