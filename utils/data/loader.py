"""Batches: which samples make one, in what order, and how they are put together."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from utils.data.dataset import DetectionDataset, Sample
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
    Of `world` processes each gets its share of every batch: as many batches for all, none of them empty.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        shuffle: bool = False,
        rect: bool = False,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.length, self.batch_size, self.shuffle, self.rect, self.seed = length, batch_size, shuffle, rect, seed
        self.rank, self.world = rank, world
        self.epoch = 0
        self.weights: np.ndarray | None = None

    def set_epoch(self, epoch: int, weights: np.ndarray | None = None) -> None:
        """Choose the epoch of the next iteration; with `weights` (length,) images are drawn with these odds."""
        self.epoch, self.weights = epoch, weights

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order, starts = np.arange(self.length), np.arange(0, self.length, self.batch_size)
        if self.weights is not None:
            order = rng.choice(self.length, self.length, p=self.weights / self.weights.sum())
        elif self.shuffle:
            rng.shuffle(starts if self.rect else order)
        epoch = self.epoch
        for start in starts.tolist():
            batch = order[start : start + self.batch_size]
            batch = np.resize(batch, max(len(batch), self.world))  # fewer images than processes: some twice
            yield [(epoch, index) for index in np.array_split(batch, self.world)[self.rank].tolist()]


def image_weights(labels: np.ndarray, offsets: np.ndarray, class_maps: Sequence[float]) -> np.ndarray:
    """(N,) odds of the images: more for images of rare classes and of classes that do badly.

    Args:
        labels: (M,) int class of each label, those of image i in offsets[i] to offsets[i + 1].
        class_maps: mAP of each class.
    """
    counts = np.bincount(labels, minlength=len(class_maps))
    odds = (1 - np.asarray(class_maps)) ** 2 / np.maximum(counts, 1)
    images = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.bincount(images, weights=odds[labels], minlength=len(offsets) - 1) + 1e-12  # background is not ruled out


def build_loader(
    dataset: DetectionDataset,
    batch_size: int,
    workers: int = 0,
    shuffle: bool = False,
    seed: int = 0,
    quad: bool = False,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Sample]:
    """A loader of `Batch`es; call `loader.batch_sampler.set_epoch(epoch)` before each epoch.

    Args:
        batch_size: over all `world` processes, of which this is number `rank`.
        quad: four images make one of twice the side, see `collate_quad`.

    Raises:
        ValueError: the data set made its canvases for another batch size, or a process would get no image.
    """
    if dataset.rect and batch_size != dataset.batch_size:
        raise ValueError(f"batch size {batch_size}, but the rect data set was laid out for {dataset.batch_size}")
    if batch_size < world:
        raise ValueError(f"--batch-size {batch_size}: expected at least one image for each of {world} processes")
    return DataLoader(
        dataset,
        batch_sampler=EpochBatches(len(dataset), batch_size, shuffle, dataset.rect, seed, rank, world),
        num_workers=workers,
        collate_fn=collate_quad if quad else collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_quiet_worker,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),  # leaves torch's own alone, so that runs can be compared
    )


def collate_quad(samples: Sequence[Sample]) -> Batch:
    """`collate`, then images of twice the side, one for every four (the last may repeat some).

    By turns of chance it is the first of the four, enlarged, or all four side by side.
    """
    canvases: list[Tensor] = []
    targets: list[Tensor] = []
    for start in range(0, len(samples), 4):
        four = [samples[(start + k) % len(samples)] for k in range(4)]
        chance = np.random.default_rng((four[0].index, int(four[0].image.sum()))).random()
        if chance < 0.5:
            canvases.append(F.interpolate(four[0].image[None].float(), scale_factor=2, mode="bilinear")[0].byte())
            rows = four[0].targets.clone()
        else:
            top, bottom = (torch.cat([a.image, b.image], dim=2) for a, b in (four[:2], four[2:]))
            canvases.append(torch.cat([top, bottom], dim=1))
            corners = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
            parts = [sample.targets.clone() for sample in four]
            for part, corner in zip(parts, corners, strict=True):
                part[:, 2:] /= 2
                part[:, 2:4] += corner
            rows = torch.cat(parts)
        rows[:, 0] = len(targets)
        targets.append(rows)
    small = collate(samples)
    return small._replace(images=torch.stack(canvases), targets=torch.cat(targets))


def _quiet_worker(_: int) -> None:
    """One thread per worker process, for they are the parallelism; Ctrl-C is the main process's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
