"""Time the loader and a training step: python tools/bench_loader.py --data my.yaml

Milliseconds are CPU time of one thread, the median of several rounds. A copy of this file in the tools folder of
another version times that one: run them in turns and read the ratios.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import Bounds, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class BenchLoaderConfig(Config):
    """Time the loader and a training step.

    Example: --data my.yaml --imgsz 640
    """

    data: str = flag("", "data YAML, or the folder it is in; empty: no rows of the loader")
    imgsz: int = flag(640, "size of the samples, pixels", "--img", bounds=Bounds(low=32))
    samples: int = flag(64, "samples a round", bounds=Bounds(low=1))
    rounds: int = flag(5, "rounds, of which the median counts", bounds=Bounds(low=1))
    cfg: tuple[str, ...] = flag(("yolov5n.yaml",), "model YAMLs of the training steps")
    step_imgsz: int = flag(320, "size of the images of a training step, pixels", bounds=Bounds(low=32))
    batch_size: int = flag(16, "images of a training step", "--batch", bounds=Bounds(low=1))
    plain: bool = flag(False, "attention in the plain way, with a map of all scores, in the training steps")


if __name__ == "__main__":
    check_cli(BenchLoaderConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import inspect
import logging
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

import utils.data.dataset as dataset_module
from models.yolo import DetectionModel
from utils.boxes import Targets
from utils.data.dataset import DetectionDataset
from utils.data.loader import build_loader, collate
from utils.data.scan import Scan
from utils.hyp import Hyp
from utils.images import imread, to_input
from utils.train.optim import ModelEMA, build_optimizer
from val import read_data

LOGGER = logging.getLogger(__name__)
BATCH = 16  # samples of a batch of the loader's rows


class Row(NamedTuple):
    """A line of the table: what was measured, the number, and its unit."""

    name: str
    value: float
    unit: str = "ms"


def loader_rows(data: str, imgsz: int = 640, samples: int = 64, rounds: int = 5) -> list[Row]:
    """A sample of the loader with mosaic, collated in batches: read anew, read before, and from --cache ram.

    `data` is a data YAML; its train split is read. The first row, times the images that a mosaic decodes, is what no
    loader without a cache can avoid.
    """
    scan = read_data(data, single_cls=False).training_scan()
    paths = [str(path) for path in scan.paths[:samples]]
    decode = per_call(lambda k: imread(paths[k % len(paths)]), samples, rounds)
    rows = [Row("read and decode one image of the train split", decode)]
    plain = sampler(scan, imgsz, recent=0)
    held = sampler(scan, imgsz, recent=1 << 33)
    for k in range(min(4 * len(scan), 4 * samples)):
        held[0, k % len(scan)]
    cached = sampler(scan, imgsz, recent=0, cache="ram")
    for name, dataset in (("not cached", plain), ("decoded before", held), ("--cache ram", cached)):
        rows.append(Row(f"loader, mosaic {imgsz}, {name}, a sample", sample_time(dataset, samples, rounds)))
    rows.append(Row(f"loader process, mosaic {imgsz}, --cache ram, a sample", process_time_of(cached, samples)))
    return rows


def sampler(scan: Scan, imgsz: int, recent: int, cache: str = "") -> DetectionDataset:
    """Augmented samples of a scan; each process keeps `recent` bytes of decoded images where the version does."""
    before = getattr(dataset_module, "RECENT", 0)
    dataset_module.RECENT = recent
    try:
        return DetectionDataset(scan, imgsz, 32, cache=cache, **augmentation())
    finally:
        dataset_module.RECENT = before


def augmentation() -> dict[str, Any]:
    """The argument of DetectionDataset that asks for the augmentations; older versions have `hyp`."""
    if "hyp" in inspect.signature(DetectionDataset).parameters:
        return {"hyp": Hyp()}
    return {"augment": dataset_module.Augmentation(Hyp())}


def sample_time(dataset: DetectionDataset, samples: int, rounds: int) -> float:
    """Milliseconds of CPU time of a sample, its part of the collation included."""
    keys = [(epoch, k % len(dataset)) for epoch in range(1, rounds + 1) for k in range(samples)]
    found = []
    for start in range(0, len(keys), BATCH):
        batch = keys[start : start + BATCH]
        began = time.thread_time()
        collate([dataset[key] for key in batch])
        found.append(1000 * (time.thread_time() - began) / len(batch))
    return statistics.median(found)


def process_time_of(dataset: DetectionDataset, samples: int) -> float:
    """Milliseconds of CPU time of a sample from one loader process: of it and of the main process."""
    spent = []
    for epochs in (1, 3):
        count = 0
        began = time.process_time() + children_time()
        loader = build_loader(dataset, BATCH, workers=1)
        for _ in range(epochs * max(samples // len(dataset), 1)):
            count += sum(len(batch.paths) for batch in loader)
        loader._iterator._shutdown_workers()  # type: ignore[union-attr]  # only ended children are counted
        spent.append((time.process_time() + children_time() - began, count))
    (short, few), (long, many) = spent
    return 1000 * (long - short) / (many - few)


def children_time() -> float:
    """Seconds of CPU time of all ended child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def per_call(call: Callable[[int], object], count: int, rounds: int) -> float:
    """Milliseconds of CPU time of call(k) for k below `count`, the median of the rounds' means."""
    found = []
    for _ in range(rounds):
        began = time.thread_time()
        for k in range(count):
            call(k)
        found.append(1000 * (time.thread_time() - began) / count)
    return statistics.median(found)


def step_rows(cfg: str = "yolov5n.yaml", imgsz: int = 320, batch_size: int = 16, rounds: int = 5) -> list[Row]:
    """A training step with AdamW as train.py makes it, the share of all but the network, and the peak of memory."""
    torch.manual_seed(0)
    cpu, rng = torch.device("cpu"), np.random.default_rng(0)
    model = DetectionModel(cfg, nc=80).to(memory_format=torch.channels_last).train()
    criterion, ema = model.head.criterion(Hyp(), imgsz), ModelEMA(model)
    optimizer = build_optimizer(model, "AdamW", Hyp(lr0=0.001), 0.0005)
    boxes = 8 * batch_size
    xywhn = torch.from_numpy(rng.uniform(0.1, 0.5, (boxes, 4)).astype(np.float32))
    image = torch.from_numpy(np.sort(rng.integers(0, batch_size, boxes)))
    targets = Targets(image, torch.from_numpy(rng.integers(0, 80, boxes)), xywhn)
    pixels = torch.from_numpy(rng.integers(0, 256, (batch_size, 3, imgsz, imgsz), dtype=np.uint8))
    steps, shares = [], []
    for turn in range(rounds + 1):
        marks = [time.thread_time()]
        images = to_input(pixels, cpu)
        marks.append(time.thread_time())
        maps = model(images)
        marks.append(time.thread_time())
        loss, _ = criterion(maps, targets)
        finite = bool(torch.isfinite(loss))
        marks.append(time.thread_time())
        loss.backward()
        marks.append(time.thread_time())
        clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        marks.append(time.thread_time())
        if not finite:
            raise FloatingPointError(f"{cfg}: the loss is {loss.item()} in step {turn + 1}")
        if turn:  # the first one allocates
            parts = np.diff(marks)
            steps.append(1000 * float(parts.sum()))
            shares.append(100 * (1 - float(parts[[1, 3]].sum() / parts.sum())))
    name = f"training step, {Path(cfg).stem}, {batch_size} x {imgsz}"
    return [
        Row(name, statistics.median(steps)),
        Row(f"{name}, outside forward and backward", statistics.median(shares), "%"),
        Row("peak memory of this process so far", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB"),
    ]


@contextmanager
def plain_scores() -> Iterator[None]:
    """Attention of all networks by products and a softmax that is kept, as in most copies of the block."""
    # Not imported above: an earlier version, which this file times too, may lack what bench_core imports.
    from tools.bench_core import plain_attention

    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = plain_attention  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def main(cfg: BenchLoaderConfig) -> list[Row]:
    """The rows, which are also printed as a Markdown table."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    rows = loader_rows(cfg.data, cfg.imgsz, cfg.samples, cfg.rounds) if cfg.data else []
    with plain_scores() if cfg.plain else nullcontext():
        for name in cfg.cfg:
            rows += step_rows(name, cfg.step_imgsz, cfg.batch_size, cfg.rounds)
    lines = [f"| {row.name} | {row.value:.2f} {row.unit} |" for row in rows]
    LOGGER.info("\n".join(["| what | CPU time, one thread |", "|---|---|", *lines]))
    return rows


if __name__ == "__main__":
    run_script(main, BenchLoaderConfig)
