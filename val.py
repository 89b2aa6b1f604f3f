"""Measure a detector on a data set: `python val.py --weights best.pt --data my.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import AT_LEAST_0, AT_LEAST_1, ZERO_TO_ONE, Bounds, Config, check_cli, flag, run_script

WANTED = Bounds(above=0, high=1)  # precisions and recalls


@dataclass(frozen=True)
class ValConfig(Config):
    """Measure a detector on a data set.

    Example: --weights runs/train/exp/weights/best.pt --data my.yaml
    """

    data: str = flag(
        "",
        "data YAML, or the folder it is in; empty: the one that the weights were trained on, else the built-in set",
        group="data",
    )
    weights: str | tuple[str, ...] = flag(
        "",
        "model file; several: an ensemble, or one line each in a study; empty: best.pt of the newest training run",
        group="model",
    )
    batch_size: int = flag(32, "images per batch", "--batch", bounds=AT_LEAST_1, group="model")
    imgsz: int | tuple[int, ...] = flag(
        (),
        "size of the images, pixels: long side, or height and width; empty: that of the weights, else 640",
        "--img",
        "--img-size",
        bounds=AT_LEAST_1,
        group="model",
    )
    conf_thres: float = flag(0.001, "confidence threshold, 0..1", bounds=ZERO_TO_ONE, group="detections")
    iou_thres: float = flag(
        0.6, "NMS IoU threshold, 0..1: of boxes that overlap more the best is kept", bounds=ZERO_TO_ONE
    )
    max_det: int = flag(300, "maximum detections per image", bounds=AT_LEAST_1)
    at_precision: float | None = flag(
        None,
        "choose the lowest confidence threshold with this precision, not that of the best F1",
        bounds=WANTED,
    )
    at_recall: float | None = flag(
        None, "choose the highest confidence threshold with this recall, not that of the best F1", bounds=WANTED
    )
    save_thresholds: bool = flag(
        False, "store the chosen confidence threshold in the checkpoint, for --conf-thres auto and for exports"
    )
    task: str = flag(
        "val",
        "the split to measure; speed: with the thresholds of detect.py; study: over image sizes",
        choices=("train", "val", "test", "speed", "study"),
        group="data",
    )
    device: str = flag("", "cpu, mps or a GPU number; empty: the first GPU, else the CPU", group="hardware")
    workers: int = flag(2, "processes that load images, at most one per CPU", bounds=AT_LEAST_0, group="hardware")
    single_cls: bool = flag(False, "treat all classes as one", group="data")
    rect: bool | None = flag(None, "rectangular batches; not given: where the model allows them", group="model")
    half: bool = flag(False, "half precision (fp16), GPU only", group="hardware")
    threads: int = flag(0, "CPU threads (0: runtime default)", bounds=AT_LEAST_0, shown="", group="hardware")
    compile: bool = flag(False, "run .pt weights through torch.compile; the first batch of each size takes a minute")
    augment: bool = flag(False, "test-time augmentation: three views of each image", group="model")
    tile: int = flag(
        0,
        "also cut larger images into overlapping tiles of this many pixels, as detect.py does; 0: off",
        bounds=Bounds(low=32, also=(0,)),
    )
    save_txt: bool = flag(False, "write detections to labels/*.txt: class cx cy w h in 0..1", group="output")
    save_conf: bool = flag(False, "with --save-txt: the confidence as a sixth column")
    save_hybrid: bool = flag(False, "like --save-txt, but labels come first and replace detections that overlap them")
    save_json: bool = flag(False, "write predictions.json, COCO's result format")
    plots: bool = flag(
        True, "write curves, the confusion matrix, errors.html, suspects.csv and images of the first batches"
    )
    verbose: bool = flag(False, "print every class even if there are many")
    project: str = flag("runs/val", "folder of the runs")
    name: str = flag("exp", "name of this run's folder, numbered if it exists")
    exist_ok: bool = flag(False, "write into an existing run folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.at_precision and self.at_recall:
            raise ValueError("--at-precision and --at-recall exclude each other, expected one of them")


if __name__ == "__main__":
    check_cli(ValConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import csv
import io
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
from torch.utils.data import DataLoader

from data.make_shapes import draw_if_built_in
from models.runtimes.ensemble import in_order
from models.runtimes.load import load_model
from models.weights.checkpoint import check_storable, store_thresholds
from utils.backend import Backend, input_size, refuse_nms
from utils.classes import class_order
from utils.commands import relative
from utils.data.coco import CocoLabels
from utils.data.data_yaml import Data, find_data_yaml, read_data_yaml
from utils.data.dataset import DetectionDataset, Sample
from utils.data.loader import build_loader
from utils.data.scan import Scan
from utils.device import select_device
from utils.evaluate.curves import plot_study
from utils.evaluate.evaluation import EvalSettings, detect_all, evaluate, image_paths, write_plots
from utils.evaluate.metrics import DetectionMetrics, Metrics
from utils.files import write_atomic
from utils.images import rect_or_square, size_text
from utils.next_steps import after_validation, step_lines
from utils.predict.writers import (
    ImageIds,
    JsonFile,
    Stems,
    coco_rows,
    hybrid,
    label_text,
    write_classes,
    write_labels,
    write_renamed,
)
from utils.runs import OutputFiles, Run, training_data, weights_or_newest
from utils.text import counted
from utils.thresholds import split_name

LOGGER = logging.getLogger(__name__)
SPLIT_OF_TASK = {"speed": "val", "study": "val"}  # other tasks are the split they measure
STUDY_SIZES = range(256, 1537, 128)  # pixels
TABLE_CLASSES = 50  # with this many classes or more, only the row 'all' is printed, unless --verbose


def main(cfg: ValConfig) -> Metrics:
    """Measure `cfg.weights`, print the table, write metrics.json and other requested files into the run's folder.

    Returns:
        The metrics; of a study those of the last size of the last weights.

    Raises:
        ValueError, FileNotFoundError: a file is missing or unusable; model and data differ in their classes.
    """
    weights = weights_or_newest(cfg.weights)
    cfg = replace(cfg, weights=weights, data=cfg.data or training_data(weights))
    if cfg.save_thresholds:
        check_can_store(cfg)
    if cfg.task == "speed":
        cfg = replace(cfg, conf_thres=0.25, iou_thres=0.45, plots=False)
    elif cfg.task == "study":
        return study(cfg)
    device = select_device(cfg.device)
    model = load_model(cfg.weights, device, cfg.half, cfg.augment, cfg.threads, cfg.compile)
    data = read_data(cfg.data, cfg.single_cls)
    network = match_classes(model, data, ", ".join(weight_files(cfg.weights)))
    loader = split_loader(cfg, data, model, cfg.imgsz)
    folder = Run(cfg.project, cfg.name, cfg.exist_ok).dir
    plots = folder if cfg.plots else None
    result = detect_all(network, loader, data.names, device, eval_settings(cfg), desc=cfg.task, plots=plots)
    if cfg.plots:
        title = f"{', '.join(Path(path).name for path in weight_files(cfg.weights))} on {cfg.task} of {data.yaml}"
        write_plots(result.detections, image_paths(loader, result), folder, title)
    found = cast(DetectionDataset, loader.dataset).scan
    warn_of_max_det(found, cfg.max_det)
    save_detections(cfg, data, result.detections, found.paths[result.rows].tolist(), folder)
    chosen = result.detections.thresholds(cfg.at_precision, cfg.at_recall)
    metrics = replace(result.metrics(), thresholds=chosen).on(
        split_name(data.yaml, SPLIT_OF_TASK.get(cfg.task, cfg.task))
    )
    images = relative(Path(found.paths[0]).parent) + "/"
    write_atomic(folder / "metrics.json", json.dumps(metrics.as_dict(), indent=2) + "\n")
    check_reached(cfg, metrics)
    if cfg.save_thresholds:
        store_thresholds(Path(weight_files(cfg.weights)[0]), metrics.thresholds)
    report(metrics, cfg, data.nc, folder, images)
    return metrics


def check_can_store(cfg: ValConfig) -> None:
    """Raise an error for flags with which no threshold can be stored, before anything is measured.

    Raises:
        ValueError, FileNotFoundError: see check_storable; several weights; not all detections are looked at.
    """
    if len(weight_files(cfg.weights)) > 1:
        raise ValueError("--save-thresholds with several --weights: an ensemble has no checkpoint, expected one file")
    changed = {"--task": cfg.task in ("speed", "study"), "--augment": cfg.augment}
    changed["--conf-thres"] = cfg.conf_thres > type(cfg).conf_thres
    for name in (name for name, value in changed.items() if value):
        raise ValueError(f"--save-thresholds with {name}: the threshold is chosen among all detections of one view")
    check_storable(Path(weight_files(cfg.weights)[0]))


def check_reached(cfg: ValConfig, metrics: Metrics) -> None:
    """Raise a ValueError if there is no threshold, or none with the wanted precision or recall."""
    chosen = metrics.thresholds
    if chosen is None:
        if cfg.save_thresholds or cfg.at_precision or cfg.at_recall:
            raise ValueError("no confidence threshold can be chosen: no detection matches a label of the split")
        return
    for name, wanted, got in (
        ("precision", cfg.at_precision, chosen.precision),
        ("recall", cfg.at_recall, chosen.recall),
    ):
        if wanted and got < wanted:
            raise ValueError(f"--at-{name} {wanted:g}: not reached at any confidence threshold, the best is {got:.3f}")


def eval_settings(cfg: ValConfig) -> EvalSettings:
    """The settings that the flags ask for."""
    settings = EvalSettings.of(cfg.single_cls, cfg.conf_thres, cfg.iou_thres, cfg.max_det)
    return replace(settings, half=cfg.half, tile=cfg.tile)


def read_data(name: str, single_cls: bool = False) -> Data:
    """The data set of a YAML; the built-in one is drawn if it is used for the first time.

    Raises:
        FileNotFoundError, ValueError: see read_data_yaml.
    """
    return read_data_yaml(draw_if_built_in(find_data_yaml(name)), single_cls)


def weight_files(weights: str | tuple[str, ...]) -> tuple[str, ...]:
    """The files of --weights."""
    return (weights,) if isinstance(weights, str) else weights


def match_classes(model: Backend, data: Data, weights: str = "the model") -> Backend:
    """`model` with its classes in the order of the data's, which are found by name; with `single_cls` as it is.

    Where the counts agree and no name does, classes are matched by number, with a warning.

    Args:
        weights: the model's file, for messages.

    Raises:
        ValueError: the names differ.
    """
    if data.single_cls:
        return model
    return in_order(model, class_order(model.names, data.names, weights, data.yaml, by_number=True), data.names)


def split_loader(cfg: ValConfig, data: Data, model: Backend, imgsz: int | tuple[int, ...]) -> DataLoader[Sample]:
    """Batches of the split that `cfg.task` measures, images of `imgsz` for `model`, see input_size.

    Raises:
        ValueError: NMS in the file, with other settings.
    """
    refuse_nms(model, eval_settings(cfg).nms)
    size, rect = input_size(imgsz, model.limits, model.grid), rect_or_square(cfg.rect, model.grid, model.stride)
    if model.limits.fixed and cfg.rect:
        LOGGER.warning(f"rect is off: {model.limits.file} takes {size_text(size)} only")
    dataset = DetectionDataset(
        data.scan(SPLIT_OF_TASK.get(cfg.task, cfg.task)),
        size,
        model.grid,
        rect=rect and not model.limits.fixed,
        batch_size=cfg.batch_size,
        letterbox=model.letterbox,
    )
    return build_loader(dataset, cfg.batch_size, cfg.workers)


def study(cfg: ValConfig) -> Metrics:
    """mAP and time at each of STUDY_SIZES for each of the weights, to study_<data>_<weights>.csv and study.png."""
    paths = weight_files(cfg.weights)
    device, data, stems = select_device(cfg.device), read_data(cfg.data, cfg.single_cls), Stems()
    models = {path: load_model(path, device, cfg.half, cfg.augment, cfg.threads, cfg.compile) for path in paths}
    for path in (path for path, model in models.items() if model.limits.fixed):
        raise ValueError(f"--task study: {path} takes one size only, expected weights for any size")
    networks = {path: match_classes(model, data, path) for path, model in models.items()}
    loaders = {path: split_loader(cfg, data, model, STUDY_SIZES[0]) for path, model in models.items()}
    folder, studies = Run(cfg.project, cfg.name, cfg.exist_ok).dir, {}
    for path, model in models.items():
        rows = []
        for imgsz in STUDY_SIZES:
            loader = loaders[path] if imgsz == STUDY_SIZES[0] else split_loader(cfg, data, model, imgsz)
            metrics = evaluate(networks[path], loader, data.names, device, eval_settings(cfg), desc=cfg.task)
            rows.append(study_row(imgsz, metrics))
            LOGGER.info(f"{path} at {imgsz}: mAP50-95 {metrics.map50_95:.3f}, {rows[-1]['ms']:.1f} ms per image")
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(folder / f"study_{Path(cfg.data).stem}_{stems(Path(path), False)}.csv", text.getvalue())
        studies[path] = rows
    plot_study(studies, folder / "study.png")
    LOGGER.info(f"results in {folder}")
    return metrics


def study_row(imgsz: int, metrics: Metrics) -> dict[str, float]:
    """One line of a study; `ms` is the time of network and NMS per image."""
    row = {"imgsz": imgsz, "precision": metrics.precision, "recall": metrics.recall}
    row |= {"map50": metrics.map50, "map50_95": metrics.map50_95}
    ms = metrics.speed_ms["inference"] + metrics.speed_ms["nms"]
    return {key: round(value, 5) for key, value in (row | {"ms": ms} | metrics.speed_ms).items()}


def warn_of_max_det(scan: Scan, max_det: int) -> None:
    """Log how many images have more labels than detections are kept, so that some labels cannot be found."""
    labels = np.diff(scan.offsets)
    if over := int((labels > max_det).sum()):
        worst = f"{scan.paths[labels.argmax()]} has {labels.max()}"
        LOGGER.warning(f"--max-det {max_det}: {counted(over, 'image has', 'images have')} more labels; {worst}")


def save_detections(
    cfg: ValConfig, data: Data, detections: DetectionMetrics, paths: Sequence[str], folder: Path
) -> None:
    """Write labels/*.txt and predictions.json as `cfg` asks; `paths` of the images in the order of `detections`."""
    reader = data.reader(SPLIT_OF_TASK.get(cfg.task, cfg.task)) if cfg.save_json else None
    coco = reader if isinstance(reader, CocoLabels) else None
    if coco:
        coco.match([Path(path) for path in paths])
    categories = coco.category_ids() if coco and not cfg.single_cls else None
    stems, ids, files = Stems(), ImageIds(), OutputFiles(folder)
    files.remove_earlier()
    output = JsonFile(files.check(folder / "predictions.json")) if cfg.save_json else None
    for name, found, truth, size in zip(paths, detections.found, detections.truth, detections.sizes, strict=True):
        path = Path(name)
        stem = stems(path, False)
        if cfg.save_txt or cfg.save_hybrid:
            boxes = hybrid(found, truth, cfg.iou_thres) if cfg.save_hybrid else found
            write_labels(files, folder / "labels" / f"{stem}.txt", label_text(boxes, size, cfg.save_conf))
        if output:
            entry = coco.entry(path) if coco else None
            output.add(coco_rows(int(entry["id"]) if entry else ids(stem), found, categories, path))
    if output:
        output.close()
        files.add(output.path)
    if cfg.save_txt or cfg.save_hybrid:
        write_classes(files, data.names)
    if cfg.save_txt or cfg.save_hybrid or cfg.save_json:
        write_renamed(files, stems)


def report(metrics: Metrics, cfg: ValConfig, nc: int, folder: Path, images: str) -> None:
    """Print the table, COCO's figures, the speed and how to detect in `images`."""
    table = metrics.table()
    LOGGER.info(table if cfg.verbose or nc < TABLE_CLASSES else "\n".join(table.splitlines()[:2]))
    LOGGER.info(metrics.coco_table())
    LOGGER.info("speed: " + ", ".join(f"{ms:.1f} ms {name}" for name, ms in metrics.speed_ms.items()) + " per image")
    weights = weight_files(cfg.weights)[0]
    if metrics.thresholds:
        LOGGER.info(f"confidence threshold: {metrics.thresholds}" + f"; stored in {weights}" * cfg.save_thresholds)
    if metrics.calibration:
        LOGGER.info(f"calibration: {metrics.calibration}")
    LOGGER.info(f"results in {folder}")
    if steps := after_validation(folder, weights, metrics.thresholds, images, cfg.save_thresholds, cfg.tile):
        LOGGER.info(step_lines(steps))


if __name__ == "__main__":
    run_script(main, ValConfig)
