"""Batches: their samples and order in an epoch, and the data loaders."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Sampler, get_worker_info
from torch.utils.data._utils import signal_handling

from utils.boxes import Targets, Truth
from utils.data.dataset import Augmentation, DetectionDataset, Sample
from utils.data.scan import Scan
from utils.device import cpu_count
from utils.hyp import Hyp
from utils.images import Letterbox

LOGGER = logging.getLogger(__name__)
BATCH_TIMEOUT = 150.0  # seconds to wait for a batch of the data loader processes, twice
NO_TARGETS = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros((0, 4)))


class Batch(NamedTuple):
    """B samples: images (B, 3, H, W) uint8 RGB, their targets, and a list of each other field of Sample."""

    images: Tensor
    targets: Targets
    paths: list[str]
    rows: list[int]
    letterboxes: list[Letterbox | None]
    truths: list[Truth | None]


def batch_buffer(count: int, like: Tensor) -> Tensor:
    """Memory for `count` tensors like one; in a loader process the main process gets it without another copy."""
    shape = (count, *like.shape)
    if get_worker_info() is None:
        return torch.empty(shape, dtype=like.dtype)
    storage = torch.UntypedStorage._new_shared(count * like.nbytes, device="cpu")
    return torch.empty(0, dtype=like.dtype).set_(storage).view(shape)


def collate(found: Sequence[Sample | None]) -> Batch:
    """The batch of samples, whose canvases are of one size; None stands for an image that could not be read.

    If there is no sample at all, `images` is (0, 3, 1, 1).
    """
    samples = [sample for sample in found if sample is not None]
    images = [sample.image for sample in samples]
    none = torch.zeros((0, 3, 1, 1), dtype=torch.uint8)
    return Batch(
        images=torch.stack(images, out=batch_buffer(len(images), images[0])) if images else none,
        targets=Targets.join([sample.targets for sample in samples]) if samples else NO_TARGETS,
        paths=[sample.path for sample in samples],
        rows=[sample.row for sample in samples],
        letterboxes=[sample.letterbox for sample in samples],
        truths=[sample.truth for sample in samples],
    )


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of keys (epoch, index) for the process `rank` of `world`; the last batch may be smaller.

    The order depends only on (seed, epoch). With `rect` shuffling changes the order of the batches, not their images.
    Each process gets its part of every batch, which is never empty.
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
        """Set the epoch of the next iteration; with `weights` (length,) images are sampled in proportion to them."""
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
            batch = np.resize(batch, max(len(batch), self.world))  # fewer images than processes: repeat some
            yield [(epoch, index) for index in np.array_split(batch, self.world)[self.rank].tolist()]


def image_weights(scan: Scan, class_maps: Sequence[float]) -> np.ndarray:
    """(N,) sampling weights of the images of a scan: higher for rare classes and classes with a low mAP.

    Args:
        class_maps: mAP of each class.
    """
    counts = np.bincount(scan.label, minlength=len(class_maps))
    class_weights = (1 - np.asarray(class_maps)) ** 2 / np.maximum(counts, 1)
    images = np.repeat(np.arange(len(scan)), np.diff(scan.offsets))
    weights = np.bincount(images, weights=class_weights[scan.label], minlength=len(scan))
    return weights + 1e-12  # background images keep a small chance


class BatchLoader(DataLoader):  # type: ignore[type-arg]
    """A DataLoader that notices processes which are stopped, hang or were killed.

    Raises:
        ChildProcessError: while iterating, if one was killed or gives nothing for twice BATCH_TIMEOUT.
    """

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        wake_up_children()  # torch waits for all of them before the first batch of an epoch
        waited = False
        try:
            batches = super().__iter__()
        except (RuntimeError, OSError, EOFError) as error:
            raise ended_worker(self._iterator) or lost_worker(error) or error from None
        while True:
            try:
                with woken(1.5 * self.timeout):
                    batch = next(batches)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:  # the last two if it ends while it hands over a batch
                if "timed out" in str(error) and not waited:  # also after Ctrl-Z and fg
                    waited = True
                    wake_with_warning(self.timeout)
                    continue
                raise ended_worker(batches) or lost_worker(error) or error from None
            waited = False
            yield batch


@contextmanager
def woken(seconds: float) -> Iterator[None]:
    """A block during which child processes are woken up if it takes longer; 0: they are not.

    torch waits for a batch with a timeout, but then without one for the process that hands it over.
    """
    timer = threading.Timer(seconds, wake_with_warning, (seconds / 1.5,))
    timer.daemon = True
    if seconds:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def wake_with_warning(seconds: float) -> None:
    """Let child processes that were stopped continue, after so many seconds without a batch."""
    LOGGER.warning(f"no batch from the data loader processes for {seconds:g} s, waking them up")
    wake_up_children()


def wake_up_children() -> None:
    """Let child processes continue that were stopped, by SIGSTOP for example."""
    for child in multiprocessing.active_children():
        if child.pid and hasattr(signal, "SIGCONT"):
            os.kill(child.pid, signal.SIGCONT)


@contextmanager
def undisturbed_by_workers() -> Iterator[None]:
    """A block in which the end of loader processes raises nothing: torch's handler of SIGCHLD raises at any line.

    Nor does it after an error in the block: the run ends, and so do its loader processes. The next loader that is made
    sets torch's handler again.
    """
    applies = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if applies else None
    signal_handling._SIGCHLD_handler_set = False
    yield
    if applies:
        signal.signal(signal.SIGCHLD, before)
    signal_handling._SIGCHLD_handler_set = applies


def lost_worker(error: BaseException) -> ChildProcessError | None:
    """One line for the user if torch's `error` is about a data loader process that ended or hangs; else None."""
    text = str(error)
    if not isinstance(error, RuntimeError) or not text.startswith("DataLoader "):
        return None
    if "timed out" in text:
        return ChildProcessError("the data loader processes give no batch: they, or the disk of the images, hang")
    reason = text.partition(". ")[0].splitlines()[0].replace("DataLoader worker", "data loader process")
    advice = "; if memory ran out, fewer --workers need less" if "Killed" in text else ""
    if "Bus error" in text:
        advice = "; its shared memory is probably full: use fewer --workers, or in Docker a larger --shm-size"
    return ChildProcessError(f"{reason.strip(' .')}{advice}")


def ended_worker(batches: Any) -> ChildProcessError | None:
    """One line for the user if a process of torch's iterator has ended with an error; else None."""
    for worker in getattr(batches, "_workers", ()):
        worker.join(0.1)  # one that has just been killed
        if worker.exitcode:
            code = worker.exitcode
            reason = f"is killed by signal: {signal.strsignal(-code)}" if code < 0 else f"ended with code {code}"
            return lost_worker(RuntimeError(f"DataLoader worker (pid {worker.pid}) {reason}"))
    return None


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
    """The data loader of a data set; call `loader.batch_sampler.set_epoch(epoch)` before each epoch.

    Args:
        batch_size: over all `world` processes, of which this is `rank`.
        workers: data loader processes, at most one per CPU; 0 loads in this process.
        quad: combine every four images into one of twice the side, see `collate_quad`.

    Raises:
        ValueError: the rect canvases are for another batch size, or there are more processes than images in a batch.
    """
    if dataset.rect and batch_size != dataset.batch_size:
        raise ValueError(f"batch size {batch_size}, but the rect canvases are for {dataset.batch_size}")
    if batch_size < world:
        raise ValueError(f"--batch-size {batch_size}: expected at least one image for each of {world} processes")
    processes = min(workers, cpu_count())
    return BatchLoader(
        dataset,
        batch_sampler=EpochBatchSampler(len(dataset), batch_size, shuffle, dataset.rect, seed, rank, world),
        num_workers=processes,
        timeout=BATCH_TIMEOUT if processes else 0,
        collate_fn=collate_quad if quad else collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_init_worker,
        persistent_workers=processes > 0,
        generator=torch.Generator().manual_seed(seed),  # so that the loader does not advance torch's own generator
    )


@dataclass(frozen=True)
class LoaderSettings:
    """Settings of the data loaders of a training run, see DetectionDataset and build_loader.

    Attributes:
        rect, val_rect: rectangular batches for the train and the val split.
        batch_size: for training, over all processes; that of validation is twice as large.
        tile: for training, see DetectionDataset.
    """

    imgsz: int
    grid: int
    batch_size: int
    rect: bool = False
    val_rect: bool = False
    seed: int = 0
    cache: str = ""
    workers: int = 0
    quad: bool = False
    no_mosaic_from: int | None = None
    letterbox: str = "center"
    tile: int = 0


def training_loaders(
    scan: Scan, val_scan: Scan, hyp: Hyp, settings: LoaderSettings, rank: int = 0, world: int = 1
) -> tuple[DataLoader[Sample], DataLoader[Sample]]:
    """The data loaders of the train split, augmented with `hyp`, and of the val split, for `rank` of `world`."""
    s, val_batch = settings, 2 * settings.batch_size
    train_set = DetectionDataset(
        scan,
        s.imgsz,
        s.grid,
        augment=Augmentation(hyp, s.seed, s.no_mosaic_from, s.tile),
        rect=s.rect,
        batch_size=s.batch_size,
        cache=s.cache,
        letterbox=s.letterbox,
    )
    cache = s.cache if rank == 0 else ""  # only rank 0 validates
    options: dict[str, Any] = {"rect": s.val_rect, "batch_size": val_batch, "cache": cache, "letterbox": s.letterbox}
    val_set = DetectionDataset(val_scan, s.imgsz, s.grid, **options)
    loader = build_loader(train_set, s.batch_size, s.workers, True, s.seed, s.quad, rank, world)
    return loader, build_loader(val_set, val_batch, s.workers)


def collate_quad(samples: Sequence[Sample]) -> Batch:
    """A batch of images of twice the side, one for every four samples (if samples are missing, some are repeated).

    At random, it is the first of the four, enlarged, or all four in a 2x2 grid.
    """
    canvases: list[Tensor] = []
    targets: list[Targets] = []
    for start in range(0, len(samples), 4):
        four = [samples[(start + k) % len(samples)] for k in range(4)]
        enlarge = np.random.default_rng((four[0].row, int(four[0].image.sum()))).random() < 0.5
        if enlarge:
            canvases.append(F.interpolate(four[0].image[None].float(), scale_factor=2, mode="bilinear")[0].byte())
            targets.append(four[0].targets)
            continue
        top, bottom = (torch.cat([a.image, b.image], dim=2) for a, b in (four[:2], four[2:]))
        canvases.append(torch.cat([top, bottom], dim=1))
        corners = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
        centers = [sample.targets.xywhn[:, :2] / 2 + corner for sample, corner in zip(four, corners, strict=True)]
        sizes = [sample.targets.xywhn[:, 2:] / 2 for sample in four]
        merged = Targets.join([sample.targets for sample in four])
        targets.append(replace(merged, xywhn=torch.cat([torch.cat(centers), torch.cat(sizes)], dim=1)))
    return collate(samples)._replace(images=torch.stack(canvases), targets=Targets.join(targets))


def _init_worker(_: int) -> None:
    """Limit a worker process to one thread, as there are several; leave Ctrl-C to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
