"""Comparing an exported file with PyTorch: the images, timing, and silencing of converters."""

from __future__ import annotations

import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from utils.data.data_yaml import read_data_yaml
from utils.data.listing import list_images
from utils.files import REPO
from utils.images import IMAGE_SUFFIXES, imread, letterbox, to_input

COMPARED = 8  # images
ROUNDS = 11  # timed calls of each model
T = TypeVar("T")


def comparison_images(data: str, images: Sequence[str], count: int = COMPARED) -> list[Path]:
    """About `count` image files: from the val split of the data YAML, else equally many from each of `images`.

    Args:
        data: data YAML; may be empty. images: files and folders.

    Raises:
        FileNotFoundError, ValueError: no images in one of them.
    """
    if data:
        places = {data: [Path(path) for path in list_images(read_data_yaml(data).split("val"))]}
    else:
        places = {name: image_files(name) for name in images}
    for name, found in places.items():
        if not found:
            raise ValueError(f"{name}: no images in it, expected some on which files are compared")
    most = max(count // max(len(places), 1), 1)
    return [path for found in places.values() for path in evenly(found, most)]


def image_files(name: str) -> list[Path]:
    """An image file, or those in a folder; in the working directory, else in the repository."""
    place = next((p for p in (Path(name), REPO / name) if p.exists()), None)
    if place is None:
        raise FileNotFoundError(f"--images {name}: no such file or folder")
    found = sorted(place.iterdir()) if place.is_dir() else [place]
    return [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, evenly spaced."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def read_images(paths: Sequence[str | Path], imgsz: tuple[int, int], position: str = "center") -> Tensor:
    """(n, 3, H, W) in 0..1, letterboxed; `position` is one of utils.images.POSITIONS."""
    canvases = [letterbox(imread(path), imgsz, position=position)[0] for path in paths]
    return to_input(torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).contiguous(), torch.device("cpu"))


def interleaved(
    models: Sequence[Callable[[Tensor], Tensor]], images: Tensor, rounds: int = ROUNDS, warm: int = 1
) -> list[list[float]]:
    """Milliseconds of each call of each model on the same input, ascending.

    The models are called in turns, so that other load on the machine affects all of them.

    Args:
        warm: first calls of each model that do not count.
    """
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds + warm):
        for model, spent in zip(models, times, strict=True):
            start = time.perf_counter()
            model(images)
            spent.append(1000 * (time.perf_counter() - start))
    return [sorted(spent[warm:]) for spent in times]


def medians(times: Sequence[Sequence[float]]) -> list[float]:
    """The median of each of `times`."""
    return [statistics.median(spent) for spent in times]


@contextmanager
def quiet() -> Iterator[None]:
    """A context that discards warnings, printed output and log messages below errors, of converters and runtimes."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
