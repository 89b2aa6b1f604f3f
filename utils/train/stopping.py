"""Early stopping of a run whose fitness no longer rises."""

from __future__ import annotations

import math

from utils.text import counted


class EarlyStopping:
    """Stops a run whose fitness has not risen for `patience` epochs; 0: never."""

    def __init__(self, patience: int):
        self.patience = patience or math.inf
        self.best, self.best_epoch = -math.inf, 0

    def improved(self, fitness: float, epoch: int) -> bool:
        """Record an epoch; True if it is the best so far (a tie counts, NaN does not)."""
        if not fitness >= self.best:
            return False
        self.best, self.best_epoch = fitness, epoch
        return True

    def should_stop(self, epoch: int) -> bool:
        """Whether to stop after `epoch`; never before an epoch was validated."""
        return self.best > -math.inf and epoch - self.best_epoch >= self.patience

    @property
    def reason(self) -> str:
        """Why a run is stopped."""
        return f"no better fitness for {counted(int(self.patience), 'epoch')}, the best was epoch {self.best_epoch + 1}"

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.best, self.best_epoch = state["best"], int(state["best_epoch"])
