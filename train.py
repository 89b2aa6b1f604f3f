"""Train a detector: `python train.py --cfg yolov5-mobilevit.yaml --data my.yaml`.

Several processes: `torchrun --nproc_per_node 2 train.py ...`. After an interruption: `python train.py --resume`.
The flags are in utils/train/flags.py; here is a training from top to bottom: main(), train(), then what it calls.
"""

from __future__ import annotations

from utils.config import check_cli, run_script
from utils.train.flags import TrainConfig

if __name__ == "__main__":
    check_cli(TrainConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import json
import logging
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader

from models.common import Attention, MobileViTBlock, SeparableAttention
from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from models.weights.last import check_finite, forget_previous, load_last, save_last
from models.weights.start import resumed_model, start_model
from models.weights.transfer import TransferReport, freeze
from models.yolo import DetectionModel
from utils.data.loader import EpochBatchSampler, image_weights, training_loaders, undisturbed_by_workers
from utils.data.scan import Scan, warn_of_shared_images
from utils.device import amp_dtype, seed_everything
from utils.distributed import Dist, connect
from utils.drawing import plot_batch
from utils.evaluate.evaluation import EvalSettings, evaluate
from utils.evaluate.metrics import Metrics
from utils.files import find, write_atomic
from utils.hyp import Hyp
from utils.images import check_imgsz, largest_side, rescale, to_input
from utils.loss import Criterion, LossParts
from utils.next_steps import step_lines
from utils.progress import Progress, clock
from utils.runs import Run
from utils.text import counted
from utils.thresholds import split_name
from utils.train.autoanchor import adapt_anchors
from utils.train.errors import check_batches, user_error
from utils.train.memory import choose_batch_size
from utils.train.mlflow_log import MlflowLog
from utils.train.optim import set_norm_momentum
from utils.train.plots import plot_results
from utils.train.progress import epoch_header, epoch_row, result_row, resume_line
from utils.train.recipe import RunInfo, fill_in, warn_of_random_start
from utils.train.report import run_steps, write_report
from utils.train.resume import last_checkpoint, resumed_flags, resumed_state, run_settings
from utils.train.start import loader_settings, log_tiles, start_logs, start_run, start_state
from utils.train.state import TrainState
from utils.train.tensorboard import TensorBoard
from val import read_data

LOGGER = logging.getLogger(__name__)
BUILT_IN = "data/shapes.yaml"  # the data set without --data
PLOTTED_BATCHES = 3  # of the first epoch, drawn as train_batch*.jpg


def main(cfg: TrainConfig) -> Metrics | None:
    """Train, resume or search as `cfg` says; writes only the run folder, caches and the built-in data set.

    Returns:
        the best checkpoint's metrics; None from a search, a run that was finished already, and ranks other than 0.
    """
    dist, metrics = connect(cfg.device), None
    hyp = Hyp.from_yaml(find(cfg.hyp, "data/hyps")) if cfg.hyp and not cfg.resume else None
    if cfg.resume:
        metrics = resume(cfg, dist)
    elif cfg.evolve:
        search(cfg, hyp or Hyp(), dist)
    else:
        metrics = train(cfg, hyp, dist)
    dist.close()  # not after an error: it would wait for processes that wait for this one
    return metrics


def train(cfg: TrainConfig, hyp: Hyp | None, dist: Dist, checkpoint: Checkpoint | None = None) -> Metrics | None:
    """Train, from the start or from where `checkpoint` stopped; return the best checkpoint's metrics (on rank 0)."""
    job = set_up(cfg, hyp, dist, checkpoint)
    state = job.state
    try:
        while not state.finished:
            began = time.monotonic()
            losses = train_one_epoch(job, state.epoch)
            if dist.rank == 0:
                metrics, best = end_epoch(job, losses, began)
                if state.finished or not cfg.nosave:
                    save(job, metrics, best)
            shared = (state.epoch, state.finished, state.class_maps)
            state.epoch, state.finished, state.class_maps = dist.broadcast(shared)
        return finish(job) if dist.rank == 0 else None
    except (KeyboardInterrupt, OSError, ValueError, MemoryError, RuntimeError, FloatingPointError) as error:
        job.mlflow.stop()
        with undisturbed_by_workers():
            if dist.rank == 0:
                LOGGER.info(resume_line(job.run.dir / "weights" / "last.pt", state.saved))
            raise user_error(error, job.cfg.batch_size, job.cfg.imgsz) from error
    finally:
        job.run.release()


@dataclass(frozen=True)
class Job:
    """The parts of a training run; what changes from epoch to epoch is in `state`."""

    cfg: TrainConfig
    hyp: Hyp
    dist: Dist
    run: Run
    names: dict[int, str]
    scan: Scan
    loader: DataLoader
    val_loader: DataLoader
    model: DetectionModel
    parallel: nn.Module  # the model as it is trained: itself, or wrapped for several processes
    frozen: list[nn.Module]
    criterion: Criterion
    state: TrainState
    board: TensorBoard | None
    mlflow: MlflowLog


def set_up(cfg: TrainConfig, hyp: Hyp | None, dist: Dist, checkpoint: Checkpoint | None = None) -> Job:
    """Everything that is needed before the first batch; without `hyp` a recipe is fitted to the data."""
    seed_everything(cfg.seed, dist.device)
    data = read_data(cfg.data or BUILT_IN, cfg.single_cls)
    if checkpoint is not None:
        data = data.numbered_as(checkpoint.names, cfg.resume)
        model, transferred = resumed_model(checkpoint), None
    else:
        start = (cfg.cfg, cfg.weights, cfg.backbone_weights, cfg.partial, cfg.verbose)
        model, transferred = start_model(data.names, *start)
    model = model.to(dist.device)
    if dist.device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # a fifth less time; on a GPU it depends on the card
    imgsz, stride = check_imgsz(cfg.imgsz, model.grid)[0], int(model.stride.max())
    # What opt.yaml, the checkpoint and the report say is what it was trained at.
    cfg = replace(cfg, data=str(Path(data.yaml).resolve()), imgsz=imgsz)
    scaler = torch.amp.GradScaler(dist.device.type, enabled=amp_dtype(cfg.amp, dist.device) == torch.float16)
    if cfg.batch_size == -1:
        largest = largest_side(imgsz, model.grid) if cfg.multi_scale else imgsz
        cfg = replace(cfg, batch_size=dist.broadcast(choose_batch_size(model, largest, dist)))
    with dist.rank_zero_first():  # the other processes find its caches on disk
        scan, val_scan = data.training_scan(cfg.fraction, cfg.seed), data.scan("val")
        if dist.rank == 0:
            warn_of_shared_images(scan, val_scan)
            log_tiles(scan, cfg.tile_train)
        cfg, hyp = fill_in(cfg, hyp, describe(cfg, scan, model, transferred))
        set_norm_momentum(model, hyp.norm_momentum)
        settings = loader_settings(cfg, model.grid, stride, model.letterbox)
        check_batches(len(scan), cfg.batch_size // dist.world, imgsz / stride)
        loader, val_loader = training_loaders(scan, val_scan, hyp, settings, dist.rank, dist.world)
    if checkpoint is None and model.head.anchors is not None and not cfg.noautoanchor:
        trained_head = transferred is not None and transferred.boxes
        adapt_anchors(model.head.anchors, model.stride, scan, cfg, hyp.anchor_t, trained_head)
    frozen = freeze(model, cfg.freeze)
    run = start_run(cfg, hyp, scan, data.names, dist.rank)
    LOGGER.info(model.summary(imgsz))
    state = start_state(cfg, hyp, model, scaler, scan, len(loader))
    if checkpoint is not None and checkpoint.training is not None:
        state.restore(checkpoint.training, checkpoint.model, checkpoint.ema or {}, cfg.total_epochs, len(loader))
    criterion = model.head.criterion(hyp, imgsz, cfg.label_smoothing, dist.all_reduce_sum)  # with the anchors restored
    parallel = dist.wrap(model, cfg.sync_bn)
    epochs = counted(cfg.total_epochs, "epoch")
    LOGGER.info(f"training for {epochs} at {imgsz} px on {dist.device}; results go to {run.dir}")
    board, mlflow = start_logs(cfg, hyp, run.dir, model, state.epoch, dist.rank)
    loaders = (scan, loader, val_loader)
    return Job(cfg, hyp, dist, run, data.names, *loaders, model, parallel, frozen, criterion, state, board, mlflow)


def describe(cfg: TrainConfig, scan: Scan, model: DetectionModel, transferred: TransferReport | None) -> RunInfo:
    """What is known about the run before its first step; a MobileViT from random weights may get a warning."""
    new_backbone = not cfg.resume and (transferred is None or transferred.share("backbone") < 0.5)
    if new_backbone and any(isinstance(module, MobileViTBlock) for module in model.modules()):
        warn_of_random_start(model.where, len(scan), cfg.data)
    return RunInfo(
        images=len(scan),
        boxes=scan.box_count,
        epochs=cfg.total_epochs,
        batch_size=cfg.batch_size,
        fine_tuning=transferred is not None and transferred.share("neck") > 0.5,
        known_classes=len(transferred.classes) / model.nc if transferred else 0.0,
        attention=any(isinstance(module, Attention | SeparableAttention) for module in model.modules()),
        backbone=bool(cfg.backbone_weights),
        head=model.head.recipe,
    )


def train_one_epoch(job: Job, epoch: int) -> LossParts:
    """One pass over the training images; returns the mean of the loss parts.

    Raises:
        FloatingPointError: the loss is not finite; names the images.
    """
    cfg, dist, state, loader = job.cfg, job.dist, job.state, job.loader
    began, device, dtype = time.monotonic(), dist.device, amp_dtype(cfg.amp, dist.device)
    state.schedule.elapsed = dist.broadcast(state.seconds / 3600 / cfg.time if cfg.time else 0.0)
    odds = image_weights(job.scan, state.class_maps or [0.0] * len(job.names)) if cfg.image_weights else None
    cast(EpochBatchSampler, loader.batch_sampler).set_epoch(epoch, odds)
    job.criterion.closing = epoch >= cfg.total_epochs - cfg.close_mosaic
    job.parallel.train()
    for layer in job.frozen:
        layer.eval()
    state.optimizer.zero_grad()  # of batches that completed no update, as in YOLOv5
    total = torch.zeros(len(job.criterion.names), device=device)

    def named(parts: Tensor) -> LossParts:
        return dict(zip(job.criterion.names, parts, strict=True))

    def row(losses: LossParts) -> str:
        return epoch_row(epoch, cfg.total_epochs, losses, len(batch.targets), images)

    left = state.seconds / epoch * (cfg.total_epochs - epoch) if epoch else None
    LOGGER.info(epoch_header(job.criterion.names, left))
    progress = Progress(
        loader, len(loader), lambda: row(named(total * dist.world / progress.done)), hidden=dist.rank > 0
    )
    for step, batch in enumerate(progress, start=epoch * len(loader)):
        state.schedule.set(step)
        update = state.schedule.update_due(step)
        images = to_input(batch.images, device)
        if cfg.multi_scale:
            images = rescale(images, job.model.grid, np.random.default_rng((cfg.seed, step)))
        with dist.gradient_sync(job.parallel, enabled=update):
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss, parts = job.criterion(job.parallel(images), batch.targets.to(device))
            if not torch.isfinite(loss):
                where = f"epoch {epoch + 1}; images, or those mixed into them: {', '.join(batch.paths)}"
                raise FloatingPointError(f"loss is {loss.item()} in {where}")
            if cfg.quad:
                loss = loss * 4  # a canvas stands for four images
            state.scaler.scale(loss * dist.world).backward()  # DDP averages gradients, the loss is their sum
        if update:
            apply_gradients(job)
        total += torch.stack([parts[name] for name in job.criterion.names])
        progress.items += len(batch.paths) * dist.world
        if step < PLOTTED_BATCHES and dist.rank == 0 and not cfg.noplots:
            plot_batch(batch.images, batch.targets, job.names, job.run.dir / f"train_batch{step}.jpg")
    losses = named(dist.all_reduce_sum(total) / len(loader))
    LOGGER.info(f"{row(losses)}  {clock(time.monotonic() - began)}")
    return losses


def apply_gradients(job: Job) -> None:
    """One optimizer step with clipped gradients, and the update of the averaged weights."""
    state = job.state
    state.scaler.unscale_(state.optimizer)
    if job.cfg.clip_grad:
        clip_grad_norm_(job.model.parameters(), job.cfg.clip_grad)
    state.scaler.step(state.optimizer)
    state.scaler.update()
    state.optimizer.zero_grad()
    state.ema.update(job.model)


def end_epoch(job: Job, losses: LossParts, began: float) -> tuple[Metrics | None, bool]:
    """Validate and log after an epoch, and decide whether it was the last; rank 0 only.

    Args:
        began: when the epoch did, by time.monotonic().

    Returns:
        the metrics, None if the epoch was not validated; whether its weights are the best so far.
    """
    cfg, state, epoch = job.cfg, job.state, job.state.epoch
    seconds = time.monotonic() - began
    no_time = bool(cfg.time) and state.seconds + 2 * seconds > 3600 * cfg.time  # for another epoch like this
    state.finished = epoch + 1 == cfg.total_epochs or no_time
    metrics = None
    if state.finished or not cfg.noval:
        metrics = validate(job, job.state.ema.module, job.criterion.for_one_process())
        state.class_maps = [c.map50_95 for c in metrics.per_class]
    row = result_row(epoch, losses, metrics, state.schedule.rates(), seconds)
    job.run.log(row)
    if job.board is not None:
        job.board.scalars(row)
    job.mlflow.scalars(row)
    if metrics:
        LOGGER.info("\n".join(metrics.table().splitlines()[:2]))
    fitness = metrics.fitness if metrics else math.nan
    best = state.stopper.improved(fitness, epoch) or state.stopper.best == -math.inf
    if state.stopper.should_stop(epoch):
        state.finished = True
        LOGGER.info(f"early stopping: {state.stopper.reason}")
    state.epoch = epoch + 1
    state.seconds += time.monotonic() - began
    return metrics, best


def validate(job: Job, model: DetectionModel, criterion: Criterion | None = None, plots: Path | None = None) -> Metrics:
    """Metrics of `model` on the val split; `plots` is a folder for curves and images."""
    settings = replace(EvalSettings.of(job.cfg.single_cls), tile=job.cfg.tile_train)
    title = f"best.pt on val of {job.cfg.data}"
    on = (job.val_loader, job.names, job.dist.device, settings)
    metrics = evaluate(model, *on, criterion=criterion, plots=plots, title=title)
    return metrics.on(split_name(job.cfg.data, "val"))


def save(job: Job, metrics: Metrics | None, best: bool) -> None:
    """Write best.pt (the averaged weights alone), then last.pt (all that a resumed run needs)."""
    cfg, state, folder = job.cfg, job.state, job.run.weights
    epoch = state.epoch - 1
    run: dict[str, Any] = {"epoch": epoch, "hyp": job.hyp.as_dict(), "opt": asdict(cfg)}
    if metrics is not None:
        numbers = metrics.as_dict()
        del numbers["speed_ms"], numbers["thresholds"]  # which differs from run to run; which has its own place
        run |= {"fitness": float(metrics.fitness), "metrics": numbers, "thresholds": metrics.thresholds}
    averaged, first = replace(Checkpoint.of(state.ema.module), **run), not state.kept_best
    check_finite(averaged.model, f"not saved after epoch {epoch + 1}")
    if best or not state.kept_best:  # before last.pt: a run that is killed between the two writes it once more
        save_checkpoint(folder / "best.pt", averaged)
        state.kept_best = True
    if cfg.save_period > 0 and (epoch + 1) % cfg.save_period == 0:
        save_checkpoint(folder / f"epoch{epoch}.pt", averaged)
    whole = replace(Checkpoint.of(job.model), ema=averaged.model, training=state.state_dict(), **run)
    save_last(folder, whole, first)
    state.saved = state.epoch


def finish(job: Job) -> Metrics:
    """Validate the best checkpoint once more, print its table, write metrics.json, plots and the report."""
    best = job.run.weights / "best.pt"
    plots = None if job.cfg.noplots else job.run.dir
    metrics = validate(job, build_model(load_checkpoint(best)).to(job.dist.device), plots=plots)
    LOGGER.info(f"best weights, on the validation images:\n{metrics.table()}")
    if metrics.thresholds:
        LOGGER.info(f"confidence threshold, for --conf-thres auto: {metrics.thresholds}")
    write_atomic(job.run.dir / "metrics.json", json.dumps(metrics.as_dict(), indent=2))
    if not job.cfg.noplots:
        plot_results(job.run.dir / "results.csv", job.run.dir / "results.png")
        if job.board is not None:
            job.board.images(sorted(job.run.dir.glob("*batch*.jpg")))
            job.board.close()
        LOGGER.info(f"report: {write_report(job.run.dir)}")
    job.mlflow.finish(metrics.as_dict())
    forget_previous(job.run.weights)
    LOGGER.info(f"best weights: {best}")
    LOGGER.info(step_lines(run_steps(job.run.dir, asdict(job.cfg))))
    return metrics


def resume(cfg: TrainConfig, dist: Dist) -> Metrics | None:
    """Resume the run of `cfg.resume` with its own settings; device, and if given workers, epochs and data, are `cfg`'s.

    Raises:
        FileNotFoundError, ValueError: no run; not one that can be resumed; its data are gone or have other classes.
    """
    path = last_checkpoint(cfg.resume, cfg.project)
    checkpoint = load_last(path)
    if checkpoint.training is None or checkpoint.epoch is None:
        raise ValueError(f"{path}: holds weights only, nothing to resume; expected the last.pt of a run")
    old, hyp = run_settings(path, checkpoint.opt, checkpoint.hyp)
    cfg = resumed_flags(cfg, old, path)
    training = resumed_state(checkpoint.training, checkpoint.epoch + 1, cfg, old, path)
    return train(cfg, hyp, dist, replace(checkpoint, training=training)) if training else None


def search(cfg: TrainConfig, hyp: Hyp, dist: Dist) -> None:
    """Search hyperparameters in many short trainings; the same command with --exist-ok goes on or shares the work."""
    from utils.train import search as hyp_search  # here, for it needs optuna

    if dist.world > 1:
        raise ValueError("--evolve under torchrun: expected single processes that share a folder or --evolve-storage")
    folder = Run(cfg.project, cfg.name, cfg.exist_ok).dir
    one = replace(cfg, project=str(folder / "trials"), name="trial", exist_ok=False, noplots=True)

    def train_trial(hyp: Hyp, report: hyp_search.Report) -> float:
        try:
            job = set_up(one, hyp, dist)
            while not job.state.finished:
                began = time.monotonic()
                metrics, _ = end_epoch(job, train_one_epoch(job, job.state.epoch), began)
                if report(job.state.epoch - 1, metrics.fitness if metrics else math.nan):
                    break
        except (MemoryError, RuntimeError) as error:
            raise user_error(error, cfg.batch_size, cfg.imgsz) from error
        job.run.release()
        return job.state.stopper.best

    space = hyp_search.read_space(find(cfg.evolve_space, "data/hyps"))
    hyp_search.search(train_trial, hyp, space, folder, hyp_search.SearchSettings.of(cfg))


if __name__ == "__main__":
    run_script(main, TrainConfig)
