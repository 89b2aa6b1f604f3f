"""The state of a training run, which is saved and restored as one."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from utils.data.scan import Scan
from utils.device import random_states, restore_random_states
from utils.train.optim import ModelEMA, Schedule, cpu_copy
from utils.train.stopping import EarlyStopping

LOGGER = logging.getLogger(__name__)


def data_digest(scan: Scan) -> str:
    """A hash of the sizes of images and their labels, in their order: what a resumed run should find again."""
    arrays = scan.sizes, scan.offsets, scan.label, scan.xywhn, scan.crowd
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:16]


@dataclass
class TrainState:
    """A training run between two epochs.

    Attributes:
        epoch: index of the next epoch. seconds: duration so far. finished: no epoch follows.
        kept_best: best.pt is of this run, not of an earlier one in the same folder.
        class_maps: mAP50-95 of each class at the last validation; empty before the first.
        data: the data_digest of the training images. saved: the number of epochs that last.pt holds.
    """

    model: nn.Module
    ema: ModelEMA
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    stopper: EarlyStopping
    epoch: int = 0
    seconds: float = 0.0
    finished: bool = False
    kept_best: bool = False
    class_maps: list[float] = field(default_factory=list)
    data: str = ""
    saved: int = 0

    PLAIN = ("epoch", "seconds", "finished", "kept_best", "class_maps")

    def state_dict(self) -> dict[str, Any]:
        """All of it except the weights, and the random states, as CPU tensors and plain data."""
        return {key: getattr(self, key) for key in self.PLAIN} | {
            "ema_updates": self.ema.updates,
            "optimizer": cpu_copy(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "last_update": self.schedule.last_update,
            "stopper": self.stopper.state_dict(),
            "random": random_states(),
            "data": self.data,
        }

    def restore(
        self, state: dict[str, Any], model: dict[str, Tensor], ema: dict[str, Tensor], epochs: int, batches: int
    ) -> None:
        """load_state_dict for a run of so many epochs and batches per epoch, which may be others than before."""
        self.load_state_dict(state, model, ema)
        self.schedule.last_update = min(self.schedule.last_update, self.epoch * batches - 1)
        self.finished = self.finished or self.epoch >= epochs

    def load_state_dict(self, state: dict[str, Any], model: dict[str, Tensor], ema: dict[str, Tensor]) -> None:
        """Restore a `state_dict`, and the weights of the model and its average that were saved with it."""
        self.model.load_state_dict(model)
        self.ema.load_state_dict(ema, state["ema_updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty without a GPU
            self.scaler.load_state_dict(state["scaler"])
        self.schedule.last_update = state["last_update"]
        self.stopper.load_state_dict(state["stopper"])
        for key in self.PLAIN:
            setattr(self, key, state[key])
        self.saved = self.epoch
        restore_random_states(state["random"])
        if state.get("data", self.data) != self.data:  # earlier versions saved none
            LOGGER.warning("the images or labels have changed since this run was started: it ends differently now")
