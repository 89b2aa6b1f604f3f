"""Evaluation of a model on a data set: the detections of all images, metrics and plots; for val.py and train.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.backend import SparseBackend, SparseModel
from utils.boxes import Boxes
from utils.data.dataset import DetectionDataset
from utils.data.loader import Batch
from utils.drawing import plot_batch, plot_boxes
from utils.evaluate.curves import plot_confusion, plot_curves, plot_reliability
from utils.evaluate.error_page import write_errors
from utils.evaluate.metrics import DetectionMetrics, Metrics
from utils.evaluate.tiled import TileDetector
from utils.evaluate.timing import Stopwatch
from utils.evaluate.verdicts import ErrorAnalysis
from utils.images import to_input
from utils.loss import Criterion, LossParts
from utils.nms import NmsSettings, non_max_suppression
from utils.progress import Progress

PLOTTED_BATCHES = 3  # drawn as val_batch*.jpg
PLOTTED_SCORE = 0.25  # lowest score of a box drawn there
Network = Callable[[Tensor], Tensor | tuple[Tensor, list[Tensor]]]  # -> decoded, or (decoded, raw maps)


@dataclass(frozen=True)
class EvalSettings:
    """Settings of an evaluation.

    Attributes:
        nms: of the detections that are evaluated.
        half: half precision (GPU only): modules run under autocast; other callables convert by themselves.
        single_cls: every detection counts as class 0.
        tile: larger images are also cut into overlapping tiles of this side, pixels, see utils.tiles. 0: never.
    """

    nms: NmsSettings
    half: bool = False
    single_cls: bool = False
    tile: int = 0

    @classmethod
    def of(
        cls, single_cls: bool, conf_thres: float = 0.001, iou_thres: float = 0.6, max_det: int = 300
    ) -> EvalSettings:
        """The settings of COCO's protocol: every class of a box counts, unless all classes are one."""
        nms = NmsSettings(conf_thres, iou_thres, max_det, agnostic=single_cls, multi_label=not single_cls)
        return cls(nms, single_cls=single_cls)


@dataclass(frozen=True)
class EvalResult:
    """Detections and labels of all images, milliseconds per image of each stage, and the loss if it was computed.

    Attributes:
        rows: indices in the scan of the images, in the order of `detections`; those that cannot be read are missing.
    """

    detections: DetectionMetrics
    speed_ms: dict[str, float]
    loss: LossParts | None
    rows: list[int]

    def metrics(self) -> Metrics:
        """The metrics of all images."""
        return replace(self.detections.compute(), speed_ms=self.speed_ms, loss=self.loss)


def evaluate(
    model: Network,
    loader: DataLoader,
    names: dict[int, str],
    device: torch.device,
    settings: EvalSettings | None = None,
    *,
    criterion: Criterion | None = None,
    desc: str = "val",
    plots: Path | None = None,
    title: str = "",
) -> Metrics:
    """Metrics of `model` on the batches of `loader`, whose data set must not augment.

    Args:
        model: float (B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc), or (decoded, raw maps). A module is left in the
            training mode it was in, its parameters unchanged.
        names: class index -> name. settings: None: those of COCO's protocol.
        criterion: (raw maps, targets) -> (loss, parts); `Metrics.loss` is the mean over the images.
        plots: a folder for what write_plots writes, and val_batch*_{labels,pred}.jpg; None: no plots.
        title: what is measured, for errors.html.
    """
    result = detect_all(
        model, loader, names, device, settings or EvalSettings.of(False), criterion=criterion, desc=desc, plots=plots
    )
    if plots:
        write_plots(result.detections, image_paths(loader, result), plots, title or desc)
    return result.metrics()


@torch.inference_mode()
def detect_all(
    model: Network,
    loader: DataLoader,
    names: dict[int, str],
    device: torch.device,
    settings: EvalSettings,
    *,
    criterion: Criterion | None = None,
    desc: str = "val",
    plots: Path | None = None,
) -> EvalResult:
    """Detections of `model` on the batches of `loader`; see evaluate."""
    detections = DetectionMetrics(names, settings.nms.max_det)
    watch, losses, rows = Stopwatch(device), [], list[int]()
    autocast = settings.half and device.type == "cuda" and isinstance(model, nn.Module)

    def forward(pixels: Tensor) -> tuple[Sequence[Tensor], list[Tensor] | None]:
        """uint8 images -> decoded rows, and the raw maps if the model gives them; see run_network."""
        with watch.stage("pre"):
            images = to_input(pixels, device)
        with watch.stage("inference"), torch.autocast("cuda", torch.float16) if autocast else nullcontext():
            return run_network(model, images, settings.nms.conf_thres)

    def boxes_of(decoded: Sequence[Tensor]) -> list[Boxes]:
        with watch.stage("nms"):
            return non_max_suppression(decoded, settings.nms)

    tiled = tile_detector(loader, settings, lambda pixels: boxes_of(forward(pixels)[0]))
    with eval_mode(model):
        progress = Progress(loader, len(loader), lambda: f"{desc:>9}")
        for step, batch in enumerate(progress):
            progress.items += len(batch.rows)
            if not batch.rows:  # no image of the batch can be read any more
                continue
            decoded, raw = forward(batch.images)
            if criterion is not None and raw is not None:
                _, parts = criterion([level.float() for level in raw], batch.targets.to(device))
                losses.append(torch.stack([parts[name] for name in criterion.names]) * len(batch.rows))
            found = boxes_of(decoded)
            if tiled is not None:
                found = tiled.add(batch, found)
            if settings.single_cls:
                found = [replace(boxes, label=np.zeros_like(boxes.label)) for boxes in found]
            add_batch(detections, batch, found)
            rows += batch.rows
            if plots and step < PLOTTED_BATCHES:
                plot_first_batch(batch, found, names, plots / f"val_batch{step}")
    detections.arrange(np.argsort(rows).tolist())  # as in the data set, not as in rect batches
    if not rows:
        raise ValueError("no image of the split can be read any more")
    count = len(rows)
    loss = None
    if criterion is not None and losses:
        loss = dict(zip(criterion.names, torch.stack(losses).sum(dim=0) / count, strict=True))
    return EvalResult(detections, watch.per_image(count), loss, sorted(rows))


def tile_detector(
    loader: DataLoader, settings: EvalSettings, detect: Callable[[Tensor], list[Boxes]]
) -> TileDetector | None:
    """What adds the detections of tiles to those of the batches of `loader`; None without tiles."""
    if not settings.tile:
        return None
    data = cast(DetectionDataset, loader.dataset)
    return TileDetector(detect, settings.nms, settings.tile, data.largest, data.grid, data.rect, data.letterbox)


def run_network(model: Network, images: Tensor, least: float) -> tuple[Sequence[Tensor], list[Tensor] | None]:
    """Of each image the decoded rows that can score above `least`, maybe others, too; raw maps, where there are any."""
    if isinstance(model, SparseBackend):
        return model.rows_above(images, least), None
    if isinstance(model, SparseModel):
        return model.forward_above(images, least)
    output: Any = model(images)
    return output if isinstance(output, tuple) else (output, None)


@contextmanager
def eval_mode(model: object) -> Iterator[None]:
    """Eval mode of an nn.Module inside the `with` block; other callables are left unchanged."""
    before = [(m, m.training) for m in model.modules()] if isinstance(model, nn.Module) else []
    if isinstance(model, nn.Module):
        model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def add_batch(detections: DetectionMetrics, batch: Batch, found: list[Boxes]) -> None:
    """Add each image of a batch to `detections`, all boxes in pixels of the original image.

    Args:
        found: of each image, in canvas pixels.
    """
    for boxes, placed, truth in zip(found, batch.letterboxes, batch.truths, strict=True):
        if placed is None or truth is None:
            raise ValueError("the data set augments its images; expected one without hyp")
        detections.update(boxes.at(placed.to_image(boxes.xyxy)), truth, placed.image)


def plot_first_batch(batch: Batch, found: list[Boxes], names: Mapping[int, str], stem: Path) -> None:
    """<stem>_labels.jpg and <stem>_pred.jpg: the images of a batch with their labels and with the detections."""
    titles = [Path(path).name for path in batch.paths]
    confident = [boxes[boxes.score >= PLOTTED_SCORE] for boxes in found]
    stem.parent.mkdir(parents=True, exist_ok=True)
    plot_batch(batch.images, batch.targets, names, stem.with_name(f"{stem.name}_labels.jpg"), titles)
    plot_boxes(batch.images, confident, names, stem.with_name(f"{stem.name}_pred.jpg"), titles)


def image_paths(loader: DataLoader, result: EvalResult) -> list[str]:
    """The paths of the images in the order of the detections."""
    paths: list[str] = cast(DetectionDataset, loader.dataset).scan.paths[result.rows].tolist()
    return paths


def write_plots(detections: DetectionMetrics, paths: Sequence[str], folder: Path, title: str) -> None:
    """PR, P, R and F1 curves, confusion_matrix.png, reliability.png, errors.html and suspects.csv.

    Args:
        paths: of the images, in the order of the detections. title: what was measured, for errors.html.
    """
    plot_curves(detections.curves(), folder)
    plot_confusion(detections.confusion_matrix(), list(detections.names.values()), folder / "confusion_matrix.png")
    if detections.calibration is not None:
        plot_reliability(detections.calibration, folder / "reliability.png")
    write_errors(folder, ErrorAnalysis.of(detections), paths, title)
