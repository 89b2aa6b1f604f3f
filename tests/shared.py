"""Recorded results of reference implementations: the folder `../shared` beside the repository, where it exists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"


def shared(relative: str) -> Path:
    """The path of `../shared/{relative}`; skips the running test where it does not exist."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"../shared/{relative} is absent: nothing recorded to compare with")
    return path


def oracle(name: str) -> Any:
    """The content of `../shared/oracles/{name}` (.pt or .json); skips the running test where it does not exist."""
    path = shared(f"oracles/{name}")
    if path.suffix == ".json":
        return json.loads(path.read_text())
    return torch.load(path, weights_only=True)


def randomize_norms(model: nn.Module) -> nn.Module:
    """`model` with batch norms whose statistics and scales are not those of a fresh one, so that a mix-up shows."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model
