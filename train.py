"""Train a detector: `python train.py --cfg yolov5-mobilevit.yaml --data data/shapes.yaml`."""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.checkpoint import build_model, load_checkpoint, model_state, save_checkpoint
from models.common import MobileViTBlock
from models.pretrained import load_backbone
from models.transfer import transfer
from models.yolo import DetectionModel
from utils.config import Hyp, find, flag, run_script
from utils.dataloaders import build_loader
from utils.dataset import Data, DetectionDataset, list_images, read_data_yaml, scan
from utils.images import check_imgsz, to_input
from utils.loss import DetectionLoss, LossParts, loss_gains
from utils.metrics import Metrics
from utils.optim import OPTIMIZERS, ModelEMA, Schedule, accumulation, build_optimizer
from utils.runs import EarlyStopping, Run, write_atomic
from utils.torch_utils import seed_everything, select_device
from val import evaluate, rect_or_square

LOGGER = logging.getLogger(__name__)
MAX_GRAD_NORM = 10.0
FEW_IMAGES = 5_000  # a MobileViT that starts from random weights on fewer gets a warning
UNMEASURED = Metrics(0, 0, math.nan, math.nan, math.nan, math.nan, [])  # an epoch without validation


@dataclass(frozen=True)
class TrainConfig:
    """Train a detector on a YOLO-format data set."""

    cfg: str = flag("", "model YAML; empty takes it from --weights, else yolov5-mobilevit.yaml")
    weights: str = flag("", "checkpoint to start from, this project's or YOLOv5's; empty trains from scratch")
    backbone_weights: str = flag(
        "", "ImageNet weights of a MobileViT: a CVNets or timm file, or timm:NAME to fetch one"
    )
    partial: bool = flag(False, "with --backbone-weights: take what fits")
    data: str = flag("data/shapes.yaml", "data set YAML")
    hyp: str = flag("hyp.scratch-low.yaml", "hyperparameter YAML")
    epochs: int = flag(100, "passes over the training pictures")
    batch_size: int = flag(16, "pictures a batch", "--batch")
    imgsz: int = flag(640, "side of the training and validation canvas, pixels", "--img", "--img-size")
    rect: bool = flag(False, "batches of one aspect ratio; off for models whose grid is coarser than their stride")
    multi_scale: bool = flag(False, "vary the size of each batch by +/- 50 %%, in steps of the grid")
    single_cls: bool = flag(False, "treat all classes as one")
    optimizer: str = flag("SGD", "optimizer", choices=OPTIMIZERS)
    cos_lr: bool = flag(False, "cosine schedule instead of linear")
    label_smoothing: float = flag(0.0, "label smoothing, 0..1")
    patience: int = flag(100, "epochs without a better fitness before the run stops; 0: never")
    noval: bool = flag(False, "validate the last epoch only")
    nosave: bool = flag(False, "write the last checkpoint only")
    cache: bool = flag(False, "keep the pictures in memory")
    seed: int = flag(0, "seed of everything random")
    workers: int = flag(2, "loader processes")
    device: str = flag("", "cpu, mps or a GPU number; empty: the first GPU, else the CPU")
    project: str = flag("runs/train", "where run folders go")
    name: str = flag("exp", "name of the run folder")
    exist_ok: bool = flag(False, "write into an existing run folder")


def main(cfg: TrainConfig) -> Metrics:
    """Train on `cfg.data`; return the best checkpoint's metrics. Writes only the run folder and label caches."""
    check_config(cfg)
    hyp = Hyp.from_yaml(find(cfg.hyp, "data/hyps"))
    device = select_device(cfg.device)
    seed_everything(cfg.seed)
    data = read_data_yaml(find(cfg.data, "data"))
    names = {0: "item"} if cfg.single_cls else data.names
    model = start_model(cfg, names).to(device)
    imgsz = check_imgsz(cfg.imgsz, model.grid)
    loader, val_loader = build_loaders(cfg, hyp, data, model, imgsz)

    run = Run(cfg.project, cfg.name, cfg.exist_ok)
    run.dump("opt.yaml", asdict(cfg))
    run.dump("hyp.yaml", hyp.as_dict())
    LOGGER.info(model.summary(imgsz))

    gains = loss_gains(hyp, len(names), imgsz, len(model.stride), cfg.label_smoothing)
    criterion = DetectionLoss(model.head.anchors, model.stride, len(names), gains)
    decay = hyp.weight_decay * cfg.batch_size * accumulation(hyp, cfg.batch_size) / hyp.nominal_batch
    optimizer = build_optimizer(model, cfg.optimizer, hyp, decay)
    schedule = Schedule(optimizer, hyp, cfg.epochs, len(loader), cfg.batch_size, cfg.cos_lr)
    scaler = torch.amp.GradScaler(device.type, enabled=device.type == "cuda")
    ema, stopper = ModelEMA(model), EarlyStopping(cfg.patience)

    LOGGER.info(f"training for {cfg.epochs} epochs at {imgsz} px on {device}; results go to {run.dir}")
    for epoch in range(cfg.epochs):
        last_epoch = epoch + 1 == cfg.epochs
        began = time.monotonic()
        losses = train_one_epoch(model, loader, criterion, optimizer, scaler, schedule, ema, epoch, cfg)
        seconds = time.monotonic() - began
        metrics = UNMEASURED
        if last_epoch or not cfg.noval:
            metrics = evaluate(ema.module, val_loader, names, device, criterion=criterion, single_cls=cfg.single_cls)
        run.log(result_row(epoch, losses, metrics, schedule, seconds))
        LOGGER.info(epoch_line(epoch, cfg.epochs, losses, metrics, seconds))
        best = stopper.improved(metrics.fitness, epoch)
        stop = stopper.should_stop(epoch)
        if last_epoch or stop or not cfg.nosave:
            checkpoint = model_state(model) | {
                "ema": model_state(ema.module)["model"],
                "epoch": epoch,
                "fitness": float(metrics.fitness),
                "hyp": hyp.as_dict(),
                "opt": asdict(cfg),
            }
            save_checkpoint(run.weights / "last.pt", checkpoint)
            if best or stopper.best == -math.inf:  # without validation the latest is the best
                save_checkpoint(run.weights / "best.pt", checkpoint)
        if stop:
            LOGGER.info(
                f"stopped: no better fitness for {cfg.patience} epochs, the best was epoch {stopper.best_epoch + 1}"
            )
            break
    return report(run, val_loader, names, device, cfg)


def check_config(cfg: TrainConfig) -> None:
    """Raise ValueError for a number out of range."""
    for name, low in (("epochs", 1), ("batch_size", 1), ("workers", 0), ("patience", 0)):
        if getattr(cfg, name) < low:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(cfg, name)}: expected at least {low}")
    if not 0 <= cfg.label_smoothing < 1:
        raise ValueError(f"--label-smoothing {cfg.label_smoothing}: expected 0 or more, below 1")


def start_model(cfg: TrainConfig, names: dict[int, str]) -> DetectionModel:
    """A new model, or that of --weights with its head fitted to `names`; says how many tensors were taken over.

    Anchors are those of --cfg where it is given, else those of the weights.
    """
    if cfg.weights and cfg.backbone_weights:
        raise ValueError("--weights and --backbone-weights both give a backbone, expected one of them")
    checkpoint = load_checkpoint(cfg.weights) if cfg.weights else None
    if cfg.cfg or checkpoint is None:
        source: Any = find(cfg.cfg or "yolov5-mobilevit.yaml", "models")
    else:
        source = checkpoint["yaml"]
    model = DetectionModel(source, nc=len(names))
    model.names = names
    if checkpoint is not None:
        anchors = f"model.{len(model.model) - 1}.anchors"
        done = transfer(model, build_model(checkpoint).state_dict(), skip=[anchors] if cfg.cfg else [])
        LOGGER.info(done.report(cfg.weights))
    elif cfg.backbone_weights:
        LOGGER.info(load_backbone(model, cfg.backbone_weights, cfg.partial).report(cfg.backbone_weights))
    else:
        warn_of_random_start(model, cfg)
    return model


def warn_of_random_start(model: DetectionModel, cfg: TrainConfig) -> None:
    """Say what would help where a MobileViT begins with random weights on few pictures."""
    if not any(isinstance(module, MobileViTBlock) for module in model.modules()):
        return
    images = len(list_images(read_data_yaml(find(cfg.data, "data")).split("train")))
    if images >= FEW_IMAGES:
        return
    size = next((s for s in ("xxs", "xs", "s") if model.where == f"yolov5-mobilevit-{s}.yaml"), "xxs")
    LOGGER.warning(
        f"{model.where} starts from random weights on {images} pictures, which transformers rarely learn well from. "
        f"ImageNet weights help: python train.py --data {cfg.data} --cfg yolov5-mobilevit-{size}.yaml "
        f"--backbone-weights timm:mobilevit_{size}.cvnets_in1k (timm fetches them; files: docs/weights.md)"
    )


def build_loaders(
    cfg: TrainConfig, hyp: Hyp, data: Data, model: DetectionModel, imgsz: int
) -> tuple[DataLoader, DataLoader]:
    """Loaders of the train split (augmented) and the val split (square batches where the model needs them)."""
    stride = int(model.stride.max())
    rect = cfg.rect and rect_or_square(True, model.grid, stride)
    common = {"imgsz": imgsz, "grid": model.grid, "seed": cfg.seed, "single_cls": cfg.single_cls, "cache": cfg.cache}
    workers = min(cfg.workers, os.cpu_count() or 1)
    train = scan(list_images(data.split("train")), data.nc)
    if not len(train.labels):
        raise ValueError(f"{data.yaml}: the train split has no labels at all, nothing can be learned from it")
    train_set = DetectionDataset(train, hyp=hyp, rect=rect, batch_size=cfg.batch_size, **common)
    val_rect = model.grid == stride
    val_batch = 2 * cfg.batch_size
    val_set = DetectionDataset(
        scan(list_images(data.split("val")), data.nc), rect=val_rect, batch_size=val_batch, **common
    )
    loader = build_loader(train_set, cfg.batch_size, workers, shuffle=True, seed=cfg.seed)
    return loader, build_loader(val_set, val_batch, workers)


def train_one_epoch(
    model: DetectionModel,
    loader: DataLoader,
    criterion: DetectionLoss,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    schedule: Schedule,
    ema: ModelEMA,
    epoch: int,
    cfg: TrainConfig,
) -> LossParts:
    """One pass over `loader`; returns the mean of the loss parts.

    Raises:
        FloatingPointError: the loss is not finite; names the pictures.
    """
    model.train()
    loader.batch_sampler.set_epoch(epoch)
    device = next(model.parameters()).device
    total = torch.zeros(3, device=device)
    bar = tqdm(loader, desc=f"epoch {epoch + 1}/{cfg.epochs}", leave=False, dynamic_ncols=True)
    for step, batch in enumerate(bar, start=epoch * len(loader)):
        schedule.set(step)
        images = to_input(batch.images, device)
        if cfg.multi_scale:
            images = rescale(images, model.grid, np.random.default_rng((cfg.seed, step)))
        with torch.autocast(device.type, enabled=scaler.is_enabled()):
            loss, parts = criterion(model(images), batch.targets.to(device))
        if not torch.isfinite(loss):
            raise FloatingPointError(f"loss is {loss.item()} in epoch {epoch + 1}; pictures: {', '.join(batch.paths)}")
        scaler.scale(loss).backward()
        if schedule.update_due(step):
            scaler.unscale_(optimizer)
            clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            ema.update(model)
        total += torch.stack(parts)
        mean = total / (step - epoch * len(loader) + 1)
        bar.set_postfix(loss_text(mean), boxes=len(batch.targets), size=images.shape[-1])
    return LossParts(*(total / len(loader)))


def rescale(images: Tensor, grid: int, rng: np.random.Generator) -> Tensor:
    """(B, 3, H, W) resized by a factor of 0.5 to 1.5, both sides in multiples of `grid`."""
    factor = rng.uniform(0.5, 1.5)
    size = [max(round(side * factor / grid), 1) * grid for side in images.shape[-2:]]
    return images if size == list(images.shape[-2:]) else F.interpolate(images, size, mode="bilinear")


def loss_text(parts: Iterable[Tensor]) -> dict[str, str]:
    return {name: f"{float(value):.4f}" for name, value in zip(LossParts._fields, parts, strict=True)}


def result_row(
    epoch: int, losses: LossParts, metrics: Metrics, schedule: Schedule, seconds: float
) -> dict[str, float | int]:
    """One row of results.csv, under YOLOv5's column names."""
    val = metrics.loss or LossParts(*[torch.tensor(math.nan)] * 3)
    return (
        {"epoch": epoch}
        | {f"train/{k}_loss": float(v) for k, v in losses._asdict().items()}
        | {"metrics/precision": metrics.precision, "metrics/recall": metrics.recall}
        | {"metrics/mAP_0.5": metrics.map50, "metrics/mAP_0.5:0.95": metrics.map50_95}
        | {f"val/{k}_loss": float(v) for k, v in val._asdict().items()}
        | {f"x/lr{i}": rate for i, rate in enumerate(schedule.rates())}
        | {"seconds": seconds}
    )


def epoch_line(epoch: int, epochs: int, losses: LossParts, metrics: Metrics, seconds: float) -> str:
    """What a person reads about an epoch."""
    text = " ".join(f"{k} {v}" for k, v in loss_text(losses).items())
    return (
        f"{epoch + 1:>4}/{epochs}  {text}  P {metrics.precision:.3f} R {metrics.recall:.3f} "
        f"mAP50 {metrics.map50:.3f} mAP50-95 {metrics.map50_95:.3f}  {seconds:.1f} s, {peak_memory():.2f} GB"
    )


def peak_memory() -> float:
    """Peak memory so far in GB: of the GPU if one is used, else of this process without its loader workers."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "win32":
        return math.nan  # Python has no portable way to ask
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def report(run: Run, val_loader: DataLoader, names: dict[int, str], device: torch.device, cfg: TrainConfig) -> Metrics:
    """Validate the best checkpoint once more, print its table, write metrics.json."""
    best: Path = run.weights / "best.pt"
    model = build_model(load_checkpoint(best)).to(device)
    metrics = evaluate(model, val_loader, names, device, single_cls=cfg.single_cls)
    LOGGER.info(metrics.table())
    write_atomic(run.dir / "metrics.json", json.dumps(metrics.as_dict(), indent=2))
    LOGGER.info(f"best weights: {best}")
    return metrics


if __name__ == "__main__":
    run_script(main, TrainConfig)
