"""What changes while a model is trained, saved and restored as one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from utils.device import random_states, restore_random_states
from utils.runs import EarlyStopping
from utils.train.optim import ModelEMA, Schedule, cpu_copy


@dataclass
class TrainState:
    """A training run between two epochs.

    Attributes:
        epoch: the next one, from 0. seconds: spent so far. finished: no epoch follows.
        kept_best: best.pt is this run's.
        class_maps: mAP50-95 of each class at the last validation; empty before the first.
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

    PLAIN = ("epoch", "seconds", "finished", "kept_best", "class_maps")

    def state_dict(self) -> dict[str, Any]:
        """All of it, and the random states, as CPU tensors and plain data; the weights are saved apart."""
        return {key: getattr(self, key) for key in self.PLAIN} | {
            "ema_updates": self.ema.updates,
            "optimizer": cpu_copy(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
            "last_update": self.schedule.last_update,
            "stopper": self.stopper.state_dict(),
            "random": random_states(),
        }

    def load_state_dict(self, state: dict[str, Any], model: dict[str, Any], ema: dict[str, Any]) -> None:
        """Go back to a `state_dict` and the weights of the model and its average that were saved with it."""
        self.model.load_state_dict(model)
        self.ema.load_state_dict(ema, state["ema_updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty where a run used none: on a CPU
            self.scaler.load_state_dict(state["scaler"])
        self.schedule.last_update = state["last_update"]
        self.stopper.load_state_dict(state["stopper"])
        for key in self.PLAIN:
            setattr(self, key, state[key])
        restore_random_states(state["random"])
