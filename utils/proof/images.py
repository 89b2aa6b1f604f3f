"""With what an exported file is proved: pictures, the time it takes, and silence while others' code runs."""

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

from utils.config import REPO
from utils.data.dataset import list_images, read_data_yaml
from utils.images import IMAGE_SUFFIXES, imread, letterbox, to_input

PROOFS = 8  # pictures compared
ROUNDS = 11  # of timing
T = TypeVar("T")


def proof_pictures(data: str, images: Sequence[str]) -> list[Path]:
    """PROOFS pictures: evenly from the val split of the data YAML, else as many from each file or folder of `images`.

    Raises:
        FileNotFoundError, ValueError: there are none; names the place.
    """
    if data:
        places = {data: [Path(path) for path in list_images(read_data_yaml(data).split("val"))]}
    else:
        places = {name: pictures_in(name) for name in images}
    for name, found in places.items():
        if not found:
            raise ValueError(f"{name}: no pictures in it, expected some to compare the files on")
    most = max(PROOFS // max(len(places), 1), 1)
    return [path for found in places.values() for path in evenly(found, most)]


def pictures_in(name: str) -> list[Path]:
    """A picture, or those of a folder; tried in the working directory, then in the repository."""
    place = next((p for p in (Path(name), REPO / name) if p.exists()), None)
    if place is None:
        raise FileNotFoundError(f"--images {name}: no such file or folder")
    found = sorted(place.iterdir()) if place.is_dir() else [place]
    return [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES]


def evenly(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, equally far apart."""
    count = min(most, len(items))
    return [items[i * len(items) // count] for i in range(count)]


def read_pictures(paths: Sequence[str | Path], imgsz: tuple[int, int]) -> Tensor:
    """(n, 3, H, W) in 0..1, letterboxed."""
    canvases = [letterbox(imread(path), imgsz)[0] for path in paths]
    return to_input(torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).contiguous(), torch.device("cpu"))


def interleaved(
    models: Sequence[Callable[[Tensor], Tensor]], images: Tensor, rounds: int = ROUNDS, warm: int = 1
) -> list[list[float]]:
    """Milliseconds of each call of each model on the same input, ascending, without the first `warm`.

    They are called in turns, so that a busy machine is busy for all of them.
    """
    times: list[list[float]] = [[] for _ in models]
    for _ in range(rounds + warm):
        for model, spent in zip(models, times, strict=True):
            start = time.perf_counter()
            model(images)
            spent.append(1000 * (time.perf_counter() - start))
    return [sorted(spent[warm:]) for spent in times]


def medians(times: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.median(spent) for spent in times]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the converters' own chatter: warnings about their inner life, progress lines."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
