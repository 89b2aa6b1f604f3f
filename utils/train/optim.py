"""Optimization: parameter groups, learning rate schedule, moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from utils.hyp import Hyp

OPTIMIZERS = ("SGD", "Adam", "AdamW")
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


def build_optimizer(model: nn.Module, name: str, hyp: Hyp, weight_decay: float) -> torch.optim.Optimizer:
    """SGD (Nesterov), Adam or AdamW with three groups: 0 biases, 1 norm weights, 2 other weights, which decay."""
    biases: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    weights: list[nn.Parameter] = []
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            if key.endswith("bias"):
                biases.append(parameter)
            elif isinstance(module, NORMS):
                norms.append(parameter)
            else:
                weights.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": biases},
        {"params": norms},
        {"params": weights, "weight_decay": weight_decay},
    ]
    if name == "SGD":
        return torch.optim.SGD(groups, lr=hyp.lr0, momentum=hyp.momentum, nesterov=True)
    if name in OPTIMIZERS:
        kind = torch.optim.Adam if name == "Adam" else torch.optim.AdamW
        return kind(groups, lr=hyp.lr0, betas=(hyp.momentum, 0.999), weight_decay=0.0)
    raise ValueError(f"--optimizer {name}: expected one of {', '.join(OPTIMIZERS)}")


def set_norm_momentum(model: nn.Module, momentum: float) -> None:
    """Set the momentum of every batch norm: the fraction of each batch in its running statistics."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = momentum


class Schedule:
    """Learning rate, momentum and gradient accumulation as functions of the step; its state is the last update's step.

    After warm-up the learning rate falls from lr0 to lr0 * lrf, epoch by epoch, linearly or along a half cosine. During
    warm-up it rises from 0 (that of biases falls from warmup_bias_lr), the momentum rises from warmup_momentum, and the
    number of batches per update grows to nominal_batch / batch_size.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, hyp: Hyp, epochs: int, batches: int, batch_size: int, cosine: bool
    ):
        self.optimizer, self.hyp = optimizer, hyp
        self.epochs, self.batches, self.batch_size, self.cosine = epochs, batches, batch_size, cosine
        self.warmup = max(round(hyp.warmup_epochs * batches), hyp.warmup_min_steps)
        self.last_update = -1
        self.elapsed = 0.0  # fraction of --time that has passed: the learning rate falls with it too

    @property
    def full_accumulation(self) -> int:
        """Batches per update after warm-up."""
        return accumulation(self.hyp, self.batch_size)

    def factor(self, epoch: int) -> float:
        """The learning rate of `epoch` relative to lr0, from 1 down to lrf."""
        done = min(max(epoch / self.epochs, self.elapsed), 1.0)
        left = (1 + math.cos(math.pi * done)) / 2 if self.cosine else 1 - done
        return self.hyp.lrf + (1 - self.hyp.lrf) * left

    def set(self, step: int) -> None:
        """Set the optimizer's learning rates and momentum, and the accumulation, for batch `step` of the run."""
        rate = self.hyp.lr0 * self.factor(step // self.batches)
        ramp = min(step / self.warmup, 1.0) if self.warmup > 0 else 1.0
        self.accumulate = max(1, round(1 + ramp * (self.hyp.nominal_batch / self.batch_size - 1)))
        if ramp >= 1:
            self.accumulate = self.full_accumulation
        for i, group in enumerate(self.optimizer.param_groups):
            start = self.hyp.warmup_bias_lr if i == 0 else 0.0
            group["lr"] = start + (rate - start) * ramp
            if "momentum" in group:
                start = self.hyp.warmup_momentum
                group["momentum"] = start + (self.hyp.momentum - start) * ramp

    def update_due(self, step: int) -> bool:
        """Whether the batch `step` completes an update, which is recorded; to be called once per step."""
        if step - self.last_update < self.accumulate:
            return False
        self.last_update = step
        return True

    def rates(self) -> list[float]:
        """The current learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]


def accumulation(hyp: Hyp, batch_size: int) -> int:
    """Batches per update: as many as come closest to the nominal batch."""
    return max(round(hyp.nominal_batch / batch_size), 1)


class ModelEMA:
    """Exponential moving average of weights and buffers; `module` is the averaged copy, in eval mode.

    The decay rises as decay * (1 - exp(-updates / ramp)), so that early averages follow the model.
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, ramp: float = 2000):
        self.decay, self.ramp, self.updates = decay, ramp, 0

        @torch.no_grad()
        def blend(averages: Any, currents: Any, _: Tensor | int) -> None:  # all tensors of one type at once
            if not averages[0].is_floating_point():
                torch._foreach_copy_(averages, currents)
                return
            d = self.decay * (1 - math.exp(-self.updates / self.ramp))  # a float: no synchronization with the GPU
            torch._foreach_mul_(averages, d)
            torch._foreach_add_(averages, torch._foreach_mul(currents, 1 - d))

        self.averaged = AveragedModel(model, multi_avg_fn=blend, use_buffers=True)
        self.averaged.n_averaged.fill_(1)  # the copy counts as the start, not as the first update
        self.module.eval()

    @property
    def module(self) -> Any:  # of the model's class
        return self.averaged.module

    def update(self, model: nn.Module) -> None:
        self.updates += 1
        self.averaged.update_parameters(model)

    def load_state_dict(self, module: dict[str, Tensor], updates: int) -> None:
        """Restore the averaged tensors `module` after `updates` updates."""
        self.module.load_state_dict(module)
        self.averaged.n_averaged.fill_(updates + 1)
        self.updates = updates


def cpu_copy(values: Any) -> Any:
    """A copy of nested dicts, lists and tuples with every tensor on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().cpu().clone()
    if isinstance(values, dict):
        return {key: cpu_copy(value) for key, value in values.items()}
    return [cpu_copy(value) for value in values] if isinstance(values, list | tuple) else values
