"""last.pt of a training run, and last.prev.pt, the one before it, which replaces it where it is damaged."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from utils.files import write_atomic

LOGGER = logging.getLogger(__name__)
LAST, PREVIOUS = "last.pt", "last.prev.pt"


def save_last(folder: Path, checkpoint: Checkpoint, first: bool) -> None:
    """Write last.pt; the one before it stays as last.prev.pt.

    Args:
        first: this is the first one of the run: one that is there is of an earlier run, and not kept.

    Raises:
        ValueError: the weights are not finite; the files stay as they are.
    """
    check_finite(checkpoint.model, "not saved")
    previous = folder / PREVIOUS
    if first:
        previous.unlink(missing_ok=True)
    save_checkpoint(folder / LAST, checkpoint, None if first else previous)


def load_last(path: Path) -> Checkpoint:
    """The checkpoint of a run to resume. A damaged last.pt is replaced by last.prev.pt, which is logged.

    Raises:
        FileNotFoundError, ValueError: no such file, or not usable, and no usable last.prev.pt beside it.
    """
    try:
        return load_finite(path)
    except (OSError, ValueError) as error:
        previous = path.with_name(PREVIOUS)
        if path.name != LAST or not previous.is_file():
            raise
        try:
            checkpoint = load_finite(previous)
        except (OSError, ValueError):
            raise error from None
        LOGGER.warning(f"{error}; using {previous}, which is one epoch older")
    write_atomic(path, previous.read_bytes())  # all processes of the run may do this: it is the same file
    return checkpoint


def load_finite(path: Path) -> Checkpoint:
    """The checkpoint in a file, whose weights and optimizer state are finite.

    Raises:
        FileNotFoundError, ValueError: no such file; not usable.
    """
    checkpoint = load_checkpoint(path)
    state = ((checkpoint.training or {}).get("optimizer") or {}).get("state") or {}
    for tensors in (checkpoint.model, checkpoint.ema or {}, *state.values()):
        check_finite(tensors, path)
    return checkpoint


def check_finite(tensors: Mapping[str, Any], where: str | Path) -> None:
    """Raise a ValueError that starts with `where` and names the first tensor with NaN or infinity in it."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{where}: NaN or infinity in {name}, expected finite weights")


def forget_previous(folder: Path) -> None:
    """Remove last.prev.pt of a finished run, once last.pt was read back."""
    if (folder / PREVIOUS).exists():
        load_last(folder / LAST)
        (folder / PREVIOUS).unlink()
