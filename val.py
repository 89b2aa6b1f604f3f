"""Measure a detector on a data set: `python val.py --weights best.pt --data data/shapes.yaml`."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.backends import load_backend
from utils.boxes import xywhn2xyxy
from utils.config import flag, run_script
from utils.dataloaders import Batch, build_loader
from utils.dataset import DetectionDataset, list_images, read_data_yaml, scan
from utils.images import check_imgsz, to_input
from utils.loss import LossParts
from utils.metrics import DetectionMetrics, Metrics
from utils.nms import non_max_suppression
from utils.runs import Run
from utils.torch_utils import select_device

LOGGER = logging.getLogger(__name__)
STAGES = ("pre", "inference", "nms")
Criterion = Callable[[list[Tensor], Tensor], tuple[Tensor, LossParts]]


@dataclass(frozen=True)
class ValConfig:
    """Measure a detector on a data set."""

    data: str = flag("data/shapes.yaml", "data YAML")
    weights: str = flag("", "weights to measure, required")
    batch_size: int = flag(32, "images a batch", "--batch")
    imgsz: int = flag(640, "long side of the images, pixels", "--img", "--img-size")
    conf_thres: float = flag(0.001, "lowest score of a detection")
    iou_thres: float = flag(0.6, "overlap from which NMS drops a box")
    max_det: int = flag(300, "most detections an image")
    task: str = flag("val", "split of the data set", choices=("train", "val", "test"))
    device: str = flag("", "cpu, or the number of a GPU; empty: a GPU if there is one")
    workers: int = flag(2, "processes that load images, at most one a core")
    single_cls: bool = flag(False, "treat every class as one")
    rect: bool | None = flag(None, "canvases cut to the images' shapes; left out: where the model allows it")
    half: bool = flag(False, "half precision, on a GPU")
    verbose: bool = flag(False, "print every class even if there are many")
    project: str = flag("runs/val", "folder of the runs")
    name: str = flag("exp", "name of this run")
    exist_ok: bool = flag(False, "write into an existing run of that name")


MANY_CLASSES = 50  # from here on the table is the row 'all' alone, unless verbose


def rect_or_square(asked: bool | None, grid: int, stride: int) -> bool:
    """Whether to use rectangular canvases: only with models whose grid is their stride; says so if that is not `asked`.

    Args:
        asked: None takes what the model allows. grid, stride: of the model, pixels.
    """
    allowed = grid <= stride
    if asked and not allowed:
        LOGGER.warning(
            f"rect is off: this model's grid ({grid}) is coarser than its stride ({stride}); using square images"
        )
    return allowed if asked is None else asked and allowed


class Stopwatch:
    """Seconds spent in each of STAGES; on a GPU it waits for the work to be done."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds = dict.fromkeys(STAGES, 0.0)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name] += self.now() - start

    def per_image(self, images: int) -> dict[str, float]:
        """Milliseconds an image."""
        return {name: 1000 * seconds / max(images, 1) for name, seconds in self.seconds.items()}


@contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Put an nn.Module into eval mode for a while, then every submodule back; other callables are left alone."""
    before = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@torch.inference_mode()
def evaluate(
    model: Callable[[Tensor], Any],
    loader: DataLoader,
    names: dict[int, str],
    device: torch.device,
    *,
    conf_thres: float = 0.001,
    iou_thres: float = 0.6,
    max_det: int = 300,
    half: bool = False,
    criterion: Criterion | None = None,
    desc: str = "val",
    single_cls: bool = False,
) -> Metrics:
    """Metrics of `model` on the batches of `loader`, whose data set must not augment.

    Args:
        model: float (B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc), or (decoded, raw maps). A module is left in the
            training mode it was in, its parameters as they are.
        names: class index -> name. single_cls: judge all of them as one class.
        half: compute in half precision (GPU only): modules under autocast; other callables cast themselves.
        criterion: (raw maps, targets) -> (loss, parts); `Metrics.loss` is the mean over the images.
        conf_thres, iou_thres, max_det: of NMS, in which a box counts for every class above `conf_thres`.
    """
    metrics = DetectionMetrics({0: "object"} if single_cls else names, max_det)
    watch, losses = Stopwatch(device), []
    autocast = half and device.type == "cuda" and isinstance(model, nn.Module)
    with eval_mode(model):
        for batch in tqdm(loader, desc=desc, leave=False, disable=None):
            with watch.stage("pre"):
                images = to_input(batch.images, device)
            with watch.stage("inference"), torch.autocast("cuda", torch.float16) if autocast else nullcontext():
                output = model(images)
            decoded, raw = output if isinstance(output, tuple) else (output, None)
            if criterion is not None and raw is not None:
                _, parts = criterion([level.float() for level in raw], batch.targets.to(device))
                losses.append(torch.stack(list(parts)) * len(images))
            with watch.stage("nms"):
                found = non_max_suppression(
                    decoded, conf_thres, iou_thres, agnostic=single_cls, multi_label=not single_cls, max_det=max_det
                )
            add_batch(metrics, batch, found, loader.dataset, single_cls)
    count = len(metrics.sizes)
    loss = LossParts(*(torch.stack(losses).sum(dim=0) / count)) if losses else None
    return replace(metrics.compute(), speed_ms=watch.per_image(count), loss=loss)


def add_batch(metrics: DetectionMetrics, batch: Batch, found: list[Tensor], dataset: Any, single_cls: bool) -> None:
    """Give `metrics` each image of a batch, detections and labels in pixels of the original image.

    Args:
        found: for each image (n, 6) xyxy, score, class in canvas pixels. dataset: has `labels_of(index)`.
    """
    for boxes, placed, index in zip(found, batch.letterboxes, batch.indices, strict=True):
        if placed is None:
            raise ValueError("the data set augments its images; expected one without hyp")
        boxes = boxes.cpu()
        truth = torch.from_numpy(dataset.labels_of(index)).double()
        corners = torch.from_numpy(xywhn2xyxy(truth[:, 1:].numpy(), placed.image))
        classes, labels = boxes[:, 5:], truth[:, :1]
        if single_cls:
            classes, labels = torch.zeros_like(classes), torch.zeros_like(labels)
        boxes = torch.cat([placed.to_image(boxes[:, :4]), boxes[:, 4:5], classes], dim=1)
        metrics.update(boxes, torch.cat([labels, corners], dim=1), placed.image)


def main(cfg: ValConfig) -> Metrics:
    """Measure `cfg.weights`, print the table, write metrics.json into the run's folder.

    Raises:
        ValueError, FileNotFoundError: bad flags or files; the model and the data YAML differ in their classes.
    """
    if not cfg.weights:
        raise ValueError("--weights is missing, expected the file to measure")
    if cfg.batch_size < 1 or cfg.max_det < 1:
        raise ValueError(f"--batch-size {cfg.batch_size}, --max-det {cfg.max_det}: expected at least 1")
    device = select_device(cfg.device)
    model = load_backend(cfg.weights, device, cfg.half)
    data = read_data_yaml(cfg.data)
    if model.nc != data.nc and not cfg.single_cls:
        raise ValueError(f"{cfg.weights} has {model.nc} classes, but {cfg.data} has {data.nc}; expected as many")
    dataset = DetectionDataset(
        scan(list_images(data.split(cfg.task)), data.nc),
        check_imgsz(cfg.imgsz, model.grid),
        model.grid,
        rect=rect_or_square(cfg.rect, model.grid, model.stride),
        batch_size=cfg.batch_size,
        single_cls=cfg.single_cls,
    )
    loader = build_loader(dataset, cfg.batch_size, max(min(cfg.workers, os.cpu_count() or 1), 0))
    metrics = evaluate(
        model,
        loader,
        data.names,
        device,
        conf_thres=cfg.conf_thres,
        iou_thres=cfg.iou_thres,
        max_det=cfg.max_det,
        half=cfg.half,
        desc=cfg.task,
        single_cls=cfg.single_cls,
    )
    report(metrics, cfg, len(data.names))
    return metrics


def report(metrics: Metrics, cfg: ValConfig, nc: int) -> None:
    """Print the table and the speed; write metrics.json."""
    table = metrics.table()
    LOGGER.info(table if cfg.verbose or nc < MANY_CLASSES else "\n".join(table.splitlines()[:2]))
    LOGGER.info("speed: " + ", ".join(f"{ms:.1f} ms {name}" for name, ms in metrics.speed_ms.items()) + " an image")
    target = Run(cfg.project, cfg.name, cfg.exist_ok).dir / "metrics.json"
    target.write_text(json.dumps(metrics.as_dict(), indent=2) + "\n", encoding="utf-8")
    LOGGER.info(f"results in {target}")


if __name__ == "__main__":
    run_script(main, ValConfig)
