"""Batches: which samples make one, in what order, and how they are put together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from utils.dataset import DetectionDataset, Sample
from utils.images import Letterbox


class Batch(NamedTuple):
    """B samples: images (B, 3, H, W) uint8 RGB; targets (M, 6) float32 image, class, cx, cy, w, h in 0..1."""

    images: Tensor
    targets: Tensor
    paths: list[str]
    letterboxes: list[Letterbox | None]
    indices: list[int]


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch of samples with equal canvases; column 0 of the targets becomes the position in the batch."""
    targets = torch.cat([sample.targets for sample in samples])
    counts = torch.tensor([len(sample.targets) for sample in samples])
    targets[:, 0] = torch.repeat_interleave(torch.arange(len(samples)), counts).to(targets.dtype)
    return Batch(
        images=torch.stack([sample.image for sample in samples]),
        targets=targets,
        paths=[sample.path for sample in samples],
        letterboxes=[sample.letterbox for sample in samples],
        indices=[sample.index for sample in samples],
    )


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """Batches of keys (epoch, index); the last one may be short.

    Shuffling depends on (seed, epoch) alone. With `rect` it changes the order of the batches, not what is in them.
    """

    def __init__(self, length: int, batch_size: int, shuffle: bool = False, rect: bool = False, seed: int = 0) -> None:
        self.length, self.batch_size, self.shuffle, self.rect, self.seed = length, batch_size, shuffle, rect, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order, starts = np.arange(self.length), np.arange(0, self.length, self.batch_size)
        if self.shuffle:
            rng.shuffle(starts if self.rect else order)
        epoch = self.epoch
        for start in starts.tolist():
            yield [(epoch, index) for index in order[start : start + self.batch_size].tolist()]


def build_loader(
    dataset: DetectionDataset, batch_size: int, workers: int = 0, shuffle: bool = False, seed: int = 0
) -> DataLoader[Sample]:
    """A loader of `Batch`es; call `loader.batch_sampler.set_epoch(epoch)` before each epoch.

    Raises:
        ValueError: the data set made its canvases for another batch size.
    """
    if dataset.rect and batch_size != dataset.batch_size:
        raise ValueError(f"batch size {batch_size}, but the rect data set was laid out for {dataset.batch_size}")
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, shuffle, dataset.rect, seed),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_quiet_worker,
        persistent_workers=workers > 0,
    )


def _quiet_worker(_: int) -> None:
    """One thread per worker process: the workers themselves are the parallelism."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
