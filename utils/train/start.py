"""The start of a training run: its folder and logs, how its images are loaded, the state before the first epoch."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from utils.data.loader import LoaderSettings
from utils.data.scan import Scan
from utils.hyp import Hyp
from utils.images import rect_or_square
from utils.runs import Run
from utils.text import counted
from utils.train.flags import TrainConfig
from utils.train.mlflow_log import MlflowLog
from utils.train.optim import ModelEMA, Schedule, accumulation, build_optimizer
from utils.train.plots import plot_labels
from utils.train.state import TrainState, data_digest
from utils.train.stopping import EarlyStopping
from utils.train.tensorboard import TensorBoard

LOGGER = logging.getLogger(__name__)


def log_tiles(scan: Scan, tile: int) -> None:
    """Log what --tile-train does to the images of the scan; a warning if it does nothing."""
    if not tile:
        return
    large = int((scan.sizes.max(axis=1) > tile).sum())
    if not large:
        LOGGER.warning(f"--tile-train {tile}: no training image is larger, so all are trained whole")
        return
    LOGGER.info(
        f"--tile-train {tile}: {large} of {counted(len(scan), 'image')} are larger; three of four times a random part "
        f"of each is trained, else the whole image. Validation is that of val.py --tile {tile}"
    )


def loader_settings(cfg: TrainConfig, grid: int, stride: int, letterbox: str) -> LoaderSettings:
    """How images are loaded; validation has rectangular batches where the model allows them.

    Args:
        grid, stride, letterbox: of the model, see Backend.
    """
    return LoaderSettings(
        cfg.imgsz,
        grid,
        cfg.batch_size,
        rect=cfg.rect and rect_or_square(True, grid, stride),
        val_rect=grid == stride,
        seed=cfg.seed,
        cache=cfg.cache,
        workers=cfg.workers,
        quad=cfg.quad,
        no_mosaic_from=cfg.total_epochs - cfg.close_mosaic,
        letterbox=letterbox,
        tile=cfg.tile_train,
    )


def start_run(cfg: TrainConfig, hyp: Hyp, scan: Scan, names: dict[int, str], rank: int) -> Run:
    """The run folder, locked, with opt.yaml, hyp.yaml and labels.jpg."""
    run = Run(cfg.project, cfg.name, cfg.exist_ok, rank)
    run.lock()
    run.clear()
    run.dump("opt.yaml", asdict(replace(cfg, evolve_storage="")))  # which may contain a password
    run.dump("hyp.yaml", hyp.as_dict())
    if rank == 0 and not cfg.noplots:
        plot_labels(scan.label, scan.xywhn, names, run.dir / "labels.jpg")
    return run


def start_state(
    cfg: TrainConfig, hyp: Hyp, model: nn.Module, scaler: torch.amp.GradScaler, scan: Scan, batches: int
) -> TrainState:
    """The state before the first epoch of `batches`: optimizer, schedule, averaged weights, early stopping."""
    decay = hyp.weight_decay * cfg.batch_size * accumulation(hyp, cfg.batch_size) / hyp.nominal_batch
    optimizer = build_optimizer(model, cfg.optimizer, hyp, decay)
    schedule = Schedule(optimizer, hyp, cfg.total_epochs, batches, cfg.batch_size, cfg.cos_lr)
    ema = ModelEMA(model, hyp.ema_decay, hyp.ema_ramp)
    return TrainState(model, ema, optimizer, scaler, schedule, EarlyStopping(cfg.patience), data=data_digest(scan))


def start_logs(
    cfg: TrainConfig, hyp: Hyp, folder: Path, model: nn.Module, epoch: int, rank: int
) -> tuple[TensorBoard | None, MlflowLog]:
    """The logs of a run in `folder` that goes on with `epoch`: TensorBoard, None without plots, and MLflow's."""
    board = None
    if rank == 0 and not cfg.noplots:
        board = TensorBoard(folder, start=epoch)
        board.graph(model, cfg.imgsz)
    return board, MlflowLog(folder if cfg.logger and rank == 0 else None, asdict(cfg), hyp.as_dict(), epoch)
