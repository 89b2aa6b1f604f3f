"""Errors of a training run as one line for its user: out of memory, lost processes, a file that a worker read."""

from __future__ import annotations

import torch

from utils.data.loader import lost_worker
from utils.text import counted


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that a GPU or the CPU is out of memory."""
    signs = ("can't allocate memory", "out of memory", "Unable to allocate")
    kinds = MemoryError | torch.OutOfMemoryError
    return isinstance(error, kinds) or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs))


def check_batches(images: int, batch_size: int, cells: float) -> None:
    """Raise a ValueError if the last batch of an epoch is too small for batch norm: one image with maps of one cell.

    Args:
        batch_size: of one process. cells: side of the smallest map.
    """
    if cells <= 1 and images and (batch_size == 1 or images % batch_size == 1):
        raise ValueError(
            f"--batch-size {batch_size} with {counted(images, 'image')}: the last batch is one image whose smallest "
            f"map has one cell, too few values for batch norm; expected a larger --imgsz or another --batch-size"
        )


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception means that another process of the run has ended."""
    signs = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "remote process")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def user_error(error: BaseException, batch_size: int, imgsz: int) -> BaseException:
    """An error with a one-line message for the user of a run; `error` itself if it is of no known kind."""
    if (lost := lost_worker(error)) is not None:
        return lost
    if is_out_of_memory(error):
        smaller = f"--batch-size {batch_size // 2}" if batch_size > 1 else "a smaller --imgsz"
        return ValueError(f"out of memory with --batch-size {batch_size} --imgsz {imgsz}: try {smaller}")
    if is_lost_peer(error):
        reason = str(error).splitlines()[0].partition(". ")[0]
        return ConnectionError(f"another process of this run has ended, so this one ends too ({reason})")
    if isinstance(error, ValueError | OSError) and "Original Traceback" in str(error):
        return ValueError(str(error).strip().splitlines()[-1].partition(": ")[2])
    return error
