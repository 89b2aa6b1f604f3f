"""Measure a detector on a data set: `python val.py --weights best.pt --data data/shapes.yaml`."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.runtimes.ensemble import load_model
from models.runtimes.load import Backend
from utils.boxes import xywhn2xyxy
from utils.config import flag, run_script
from utils.data.annotations import CocoLabels
from utils.data.dataset import Data, DetectionDataset, list_images, read_data_yaml
from utils.data.loader import Batch, build_loader
from utils.data.scan import scan
from utils.device import select_device
from utils.evaluate.curves import plot_confusion, plot_curves, plot_study
from utils.evaluate.metrics import DetectionMetrics, Metrics
from utils.evaluate.timing import Stopwatch
from utils.images import check_imgsz, to_input
from utils.loss import LossParts
from utils.nms import non_max_suppression
from utils.predict.writers import JsonFile, Stems, coco_rows, hybrid, image_id, label_text, write_labels
from utils.runs import Run, write_atomic
from utils.train.plots import plot_batch, plot_boxes

LOGGER = logging.getLogger(__name__)
SPLIT_OF_TASK = {"speed": "val", "study": "val"}  # other tasks are the split they measure
STUDY_SIZES = range(256, 1537, 128)  # pixels
SHOWN_BATCHES = 3  # of which pictures are drawn
SHOWN_SCORE = 0.25  # least score of a box in those pictures
Criterion = Callable[[list[Tensor], Tensor], tuple[Tensor, LossParts]]


@dataclass(frozen=True)
class ValConfig:
    """Measure a detector on a data set."""

    data: str = flag("data/shapes.yaml", "data YAML")
    weights: str | tuple[str, ...] = flag(
        "", "weights to measure, required; several: an ensemble, or a line each in a study"
    )
    batch_size: int = flag(32, "images a batch", "--batch")
    imgsz: int = flag(640, "long side of the images, pixels", "--img", "--img-size")
    conf_thres: float = flag(0.001, "lowest score of a detection")
    iou_thres: float = flag(0.6, "overlap from which NMS drops a box")
    max_det: int = flag(300, "most detections an image")
    task: str = flag(
        "val",
        "a split to measure; speed: at the thresholds of detection; study: over image sizes",
        choices=("train", "val", "test", "speed", "study"),
    )
    device: str = flag("", "cpu, or the number of a GPU; empty: a GPU if there is one")
    workers: int = flag(2, "processes that load images, at most one a core")
    single_cls: bool = flag(False, "treat every class as one")
    rect: bool | None = flag(None, "canvases cut to the images' shapes; left out: where the model allows it")
    half: bool = flag(False, "half precision, on a GPU")
    threads: int = flag(0, "of the CPU for the model; 0: as its runtime likes")
    compile: bool = flag(False, "run .pt weights through torch.compile; the first batch of a size takes about a minute")
    augment: bool = flag(False, "test-time augmentation: three views of each image")
    save_txt: bool = flag(False, "write detections to labels/*.txt: class cx cy w h, 0..1")
    save_conf: bool = flag(False, "with --save-txt: a sixth column, the score")
    save_hybrid: bool = flag(False, "like --save-txt, but labels come first and replace detections that overlap them")
    save_json: bool = flag(False, "write predictions.json, COCO's result format")
    plots: bool = flag(True, "write curves, the confusion matrix and pictures of the first batches")
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


@dataclass(frozen=True)
class Judged:
    """All detections and labels of a data set, with the time that each stage took and the loss, see Metrics."""

    metrics: DetectionMetrics
    speed_ms: dict[str, float]
    loss: LossParts | None

    def compute(self) -> Metrics:
        return replace(self.metrics.compute(), speed_ms=self.speed_ms, loss=self.loss)


@dataclass(frozen=True)
class Judging:
    """How detections are made and judged.

    Attributes:
        conf_thres, iou_thres, max_det: of NMS, in which a box counts for every class above `conf_thres`.
        half: compute in half precision (GPU only): modules under autocast; other callables cast themselves.
        single_cls: judge all classes as one.
    """

    conf_thres: float = 0.001
    iou_thres: float = 0.6
    max_det: int = 300
    half: bool = False
    single_cls: bool = False


PLAIN = Judging()


def evaluate(
    model: Callable[[Tensor], Any],
    loader: DataLoader,
    names: dict[int, str],
    device: torch.device,
    *,
    judging: Judging = PLAIN,
    criterion: Criterion | None = None,
    desc: str = "val",
    plots: Path | None = None,
) -> Metrics:
    """Metrics of `model` on the batches of `loader`, whose data set must not augment.

    Args:
        model: float (B, 3, H, W) in 0..1 -> decoded (B, N, 5+nc), or (decoded, raw maps). A module is left in the
            training mode it was in, its parameters as they are.
        names: class index -> name.
        criterion: (raw maps, targets) -> (loss, parts); `Metrics.loss` is the mean over the images.
        plots: a folder for curves, confusion_matrix.png and val_batch*_{labels,pred}.jpg; None: no pictures.
    """
    judged = detect_all(model, loader, names, device, judging, criterion, desc, plots)
    if plots:
        write_plots(judged.metrics, plots)
    return judged.compute()


@torch.inference_mode()
def detect_all(
    model: Callable[[Tensor], Any],
    loader: DataLoader,
    names: dict[int, str],
    device: torch.device,
    judging: Judging,
    criterion: Criterion | None,
    desc: str,
    plots: Path | None,
) -> Judged:
    """Detections of `model` on the batches of `loader`; see evaluate."""
    single = judging.single_cls
    names = {0: "object"} if single else names
    metrics = DetectionMetrics(names, judging.max_det)
    watch, losses, rows = Stopwatch(device), [], list[int]()
    dataset: Any = loader.dataset
    autocast = judging.half and device.type == "cuda" and isinstance(model, nn.Module)
    with eval_mode(model):
        for step, batch in enumerate(tqdm(loader, desc=desc, leave=False, disable=None)):
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
                    decoded,
                    judging.conf_thres,
                    judging.iou_thres,
                    agnostic=single,
                    multi_label=not single,
                    max_det=judging.max_det,
                )
            add_batch(metrics, batch, found, dataset, single)
            rows += [dataset.row_of(i) for i in batch.indices]
            if plots and step < SHOWN_BATCHES:
                draw_first_batch(batch, found, names, plots / f"val_batch{step}")
    metrics.arrange(np.argsort(rows).tolist())  # as in the data set, not as in rect batches
    count = len(rows)
    loss = LossParts(*(torch.stack(losses).sum(dim=0) / count)) if losses else None
    return Judged(metrics, watch.per_image(count), loss)


def draw_first_batch(batch: Batch, found: list[Tensor], names: Mapping[int, str], stem: Path) -> None:
    """<stem>_labels.jpg and <stem>_pred.jpg: the images of a batch with their labels and with what was found."""
    titles = [Path(path).name for path in batch.paths]
    sure = [boxes[boxes[:, 4] >= SHOWN_SCORE].float().cpu().numpy() for boxes in found]
    stem.parent.mkdir(parents=True, exist_ok=True)
    plot_batch(batch.images, batch.targets, names, stem.with_name(f"{stem.name}_labels.jpg"), titles)
    plot_boxes(batch.images, sure, names, stem.with_name(f"{stem.name}_pred.jpg"), titles)


def write_plots(metrics: DetectionMetrics, folder: Path) -> None:
    """PR, P, R and F1 curves and confusion_matrix.png."""
    plot_curves(metrics.curves(), folder)
    plot_confusion(metrics.confusion_matrix(), list(metrics.names.values()), folder / "confusion_matrix.png")


def add_batch(metrics: DetectionMetrics, batch: Batch, found: list[Tensor], dataset: Any, single_cls: bool) -> None:
    """Give `metrics` each image of a batch, detections and labels in pixels of the original image.

    Args:
        found: for each image (n, 6) xyxy, score, class in canvas pixels. dataset: has `truth_of(index)`.
    """
    for boxes, placed, index in zip(found, batch.letterboxes, batch.indices, strict=True):
        if placed is None:
            raise ValueError("the data set augments its images; expected one without hyp")
        boxes = boxes.cpu()
        truth = dataset.truth_of(index)
        corners = torch.from_numpy(xywhn2xyxy(truth.labels[:, 1:].astype(np.float64), placed.image))
        classes, labels = boxes[:, 5:], torch.from_numpy(truth.labels[:, :1]).double()
        if single_cls:
            classes, labels = torch.zeros_like(classes), torch.zeros_like(labels)
        boxes = torch.cat([placed.to_image(boxes[:, :4]), boxes[:, 4:5], classes], dim=1)
        metrics.update(boxes, torch.cat([labels, corners], dim=1), placed.image, truth.crowd, truth.areas)


def main(cfg: ValConfig) -> Metrics:
    """Measure `cfg.weights`, print the table, write metrics.json and what else is asked into the run's folder.

    Returns:
        The metrics; of a study those of the last size of the last weights.

    Raises:
        ValueError, FileNotFoundError: bad flags or files; the model and the data YAML differ in their classes.
    """
    if cfg.batch_size < 1 or cfg.max_det < 1:
        raise ValueError(f"--batch-size {cfg.batch_size}, --max-det {cfg.max_det}: expected at least 1")
    if cfg.task == "speed":
        cfg = replace(cfg, conf_thres=0.25, iou_thres=0.45, plots=False)
    elif cfg.task == "study":
        return study(cfg)
    device = select_device(cfg.device)
    model = load_model(cfg.weights, device, cfg.half, cfg.augment, cfg.threads, cfg.compile)
    data = read_data_yaml(cfg.data)
    loader = split_loader(cfg, data, model, cfg.imgsz)
    folder = Run(cfg.project, cfg.name, cfg.exist_ok).dir
    judged = measure(cfg, model, loader, data.names, device, folder if cfg.plots else None)
    if cfg.plots:
        write_plots(judged.metrics, folder)
    save_detections(cfg, data, judged.metrics, loader.dataset, folder)
    metrics = judged.compute()
    report(metrics, cfg, data.nc, folder)
    return metrics


def split_loader(cfg: ValConfig, data: Data, model: Backend, imgsz: int) -> DataLoader:
    """The images and labels of the split that `cfg.task` measures, in batches of `imgsz` for `model`.

    Raises:
        ValueError: the model and the data differ in their classes.
    """
    if model.nc != data.nc and not cfg.single_cls:
        raise ValueError(f"{cfg.weights} has {model.nc} classes, but {cfg.data} has {data.nc}; expected as many")
    split = SPLIT_OF_TASK.get(cfg.task, cfg.task)
    dataset = DetectionDataset(
        scan(list_images(data.split(split)), data.nc, data.reader(split)),
        check_imgsz(imgsz, model.grid),
        model.grid,
        rect=rect_or_square(cfg.rect, model.grid, model.stride),
        batch_size=cfg.batch_size,
        single_cls=cfg.single_cls,
    )
    return build_loader(dataset, cfg.batch_size, max(min(cfg.workers, os.cpu_count() or 1), 0))


def measure(
    cfg: ValConfig, model: Backend, loader: DataLoader, names: dict[int, str], device: torch.device, plots: Path | None
) -> Judged:
    """detect_all with the thresholds of `cfg`."""
    judging = Judging(cfg.conf_thres, cfg.iou_thres, cfg.max_det, cfg.half, cfg.single_cls)
    return detect_all(model, loader, names, device, judging, None, cfg.task, plots)


def study(cfg: ValConfig) -> Metrics:
    """mAP and time at each of STUDY_SIZES for each of the weights, to study_<data>_<weights>.csv and study.png."""
    paths = [cfg.weights] if isinstance(cfg.weights, str) else cfg.weights
    device, data = select_device(cfg.device), read_data_yaml(cfg.data)
    models = {path: load_model(path, device, cfg.half, cfg.augment, cfg.threads, cfg.compile) for path in paths}
    loaders = {path: split_loader(cfg, data, model, STUDY_SIZES[0]) for path, model in models.items()}
    folder, studies = Run(cfg.project, cfg.name, cfg.exist_ok).dir, {}
    for path, model in models.items():
        rows = []
        for imgsz in STUDY_SIZES:
            loader = loaders[path] if imgsz == STUDY_SIZES[0] else split_loader(cfg, data, model, imgsz)
            metrics = measure(cfg, model, loader, data.names, device, None).compute()
            rows.append(study_row(imgsz, metrics))
            LOGGER.info(f"{path} at {imgsz}: mAP50-95 {metrics.map50_95:.3f}, {rows[-1]['ms']:.1f} ms an image")
        table = folder / f"study_{Path(cfg.data).stem}_{Path(path).stem}.csv"
        with table.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
        studies[path] = rows
    plot_study(studies, folder / "study.png")
    LOGGER.info(f"results in {folder}")
    return metrics


def study_row(imgsz: int, metrics: Metrics) -> dict[str, float]:
    """`ms` is what the network and NMS take of an image."""
    row = {"imgsz": imgsz, "precision": metrics.precision, "recall": metrics.recall}
    row |= {"map50": metrics.map50, "map50_95": metrics.map50_95}
    ms = metrics.speed_ms["inference"] + metrics.speed_ms["nms"]
    return {key: round(value, 5) for key, value in (row | {"ms": ms} | metrics.speed_ms).items()}


def save_detections(cfg: ValConfig, data: Data, metrics: DetectionMetrics, dataset: Any, folder: Path) -> None:
    """Write labels/*.txt and predictions.json as `cfg` asks, the images of `dataset` in the order of its scan."""
    reader = data.reader(SPLIT_OF_TASK.get(cfg.task, cfg.task)) if cfg.save_json else None
    coco = reader if isinstance(reader, CocoLabels) else None
    categories = coco.category_ids() if coco and not cfg.single_cls else None
    stems, output = Stems(), JsonFile(folder / "predictions.json") if cfg.save_json else None
    for i, (boxes, labels, size) in enumerate(zip(metrics.boxes, metrics.labels, metrics.sizes, strict=True)):
        path = Path(str(dataset.scan.paths[i]))
        stem = stems(path, False)
        if cfg.save_txt or cfg.save_hybrid:
            rows = hybrid(boxes, labels, cfg.iou_thres) if cfg.save_hybrid else boxes
            write_labels(folder / "labels" / f"{stem}.txt", label_text(rows, size, cfg.save_conf))
        if output:
            entry = coco.entry(path) if coco else None
            output.add(coco_rows(int(entry["id"]) if entry else image_id(stem), boxes, categories))
    if output:
        output.close()


def report(metrics: Metrics, cfg: ValConfig, nc: int, folder: Path) -> None:
    """Print the table, COCO's figures and the speed; write metrics.json."""
    table = metrics.table()
    LOGGER.info(table if cfg.verbose or nc < MANY_CLASSES else "\n".join(table.splitlines()[:2]))
    LOGGER.info(metrics.coco_table())
    LOGGER.info("speed: " + ", ".join(f"{ms:.1f} ms {name}" for name, ms in metrics.speed_ms.items()) + " an image")
    write_atomic(folder / "metrics.json", json.dumps(metrics.as_dict(), indent=2) + "\n")
    LOGGER.info(f"results in {folder}")


if __name__ == "__main__":
    run_script(main, ValConfig)
