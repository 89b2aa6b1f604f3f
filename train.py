"""Train a detector: `python train.py --cfg yolov5-mobilevit.yaml --data my.yaml`.

Several processes: `torchrun --nproc_per_node 2 train.py ...`. After an interruption: `python train.py --resume`.
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import AT_LEAST_0, AT_LEAST_1, Bounds, Config, check_cli, flag, known_fields, run_script

BATCH, CLIP = Bounds(low=1, also=(-1,)), Bounds(low=0, also=(-1,))


@dataclass(frozen=True)
class TrainConfig(Config):
    """Train a detector on a data set in YOLO format.

    Example: --data my.yaml --weights yolov5n.pt --imgsz 320 --epochs 50
    """

    data: str = flag(
        "",
        "data YAML, or the folder it is in; empty: the built-in set, drawn on first use, or that of --resume",
        group="data",
    )
    imgsz: int = flag(640, "image size for training and validation, pixels", "--img", "--img-size", bounds=AT_LEAST_1)
    single_cls: bool = flag(False, "treat all classes as one")
    fraction: float = flag(1.0, "fraction of the training images to use, 0..1", bounds=Bounds(above=0, high=1))
    image_weights: bool = flag(False, "sample images more often if their classes have a low mAP")
    rect: bool = flag(False, "rectangular batches; off for models whose grid is coarser than their stride")
    tile_train: int = flag(
        0,
        "train on random parts of this many pixels of images that are larger, and validate with --tile; 0: off",
        bounds=Bounds(low=32, also=(0,)),
    )
    cache: str = flag(
        "", "cache decoded images: ram, or disk (a file beside the labels)", bare="ram", choices=("", "ram", "disk")
    )
    cfg: str = flag("", "model YAML; empty: that of --weights, else yolov5-mobilevit.yaml", group="model")
    weights: str = flag("", "checkpoint to start from, this project's or YOLOv5's; empty: train from scratch")
    backbone_weights: str = flag("", "ImageNet weights of a MobileViT: a CVNets or timm file; timm:NAME downloads one")
    partial: bool = flag(False, "with --backbone-weights: load the tensors that fit, skip the others")
    freeze: tuple[int, ...] = flag((0,), "layers to freeze: the number of first layers, or a list of layers", shown="")
    noautoanchor: bool = flag(False, "keep the model's anchors even if they do not fit the data")
    epochs: int | None = flag(None, "number of epochs", bounds=AT_LEAST_1, group="training", shown="100")
    batch_size: int = flag(16, "images per batch over all processes; -1: as many as fit", "--batch", bounds=BATCH)
    time: float = flag(0.0, "hours after which training ends", bounds=AT_LEAST_0, shown="no limit")
    patience: int = flag(100, "early stopping: epochs without improvement; 0: never", bounds=AT_LEAST_0)
    resume: str = flag("", "resume an interrupted run: its last.pt; without a path the newest", bare="newest")
    optimizer: str = flag(
        "", "optimizer", choices=("", "SGD", "Adam", "AdamW"), shown="fitted to the data; with --hyp SGD"
    )
    hyp: str = flag("", "hyperparameter YAML, such as hyp.scratch-low.yaml; empty: fitted to the data (docs/recipe.md)")
    cos_lr: bool = flag(False, "cosine learning rate schedule instead of linear")
    label_smoothing: float = flag(0.0, "label smoothing, 0..1", bounds=Bounds(low=0, below=1))
    clip_grad: float = flag(-1.0, "gradient norm limit; 0: none", bounds=CLIP, shown="fitted; with --hyp 10")
    seed: int = flag(0, "random seed", bounds=AT_LEAST_0)
    noval: bool = flag(False, "validate only the final epoch")
    close_mosaic: int = flag(
        -1,
        "disable mosaic for the last N epochs",
        bounds=Bounds(low=-1),
        group="augmentation (more: --hyp)",
        shown="fitted; with --hyp 0",
    )
    multi_scale: bool = flag(False, "vary the image size of each batch by +/- 50 %%, in steps of the grid")
    quad: bool = flag(False, "combine every four images into one of twice the side")
    evolve: int = flag(
        0,
        "search hyperparameters in this many trials; without a number 300",
        bare=300,
        bounds=AT_LEAST_0,
        group="search",
        shown="no search",
    )
    evolve_space: str = flag("space.yaml", "YAML of the ranges that --evolve searches")
    evolve_storage: str = flag("", "database URL of the search, for several workers; empty: a file in the run folder")
    project: str = flag("runs/train", "folder of the runs", group="output")
    name: str = flag("exp", "name of this run's folder, numbered if it exists")
    exist_ok: bool = flag(False, "write into an existing run folder")
    nosave: bool = flag(False, "save only the final checkpoint")
    save_period: int = flag(-1, "save a checkpoint every N epochs", shown="never")
    noplots: bool = flag(False, "write no plots and no report")
    logger: str = flag(
        "", "also log to MLflow: locally, or to the server in MLFLOW_TRACKING_URI", choices=("", "mlflow"), shown="none"
    )
    verbose: bool = flag(False, "print every tensor that was not transferred, and the whole recipe")
    device: str = flag(
        "", "cpu, mps, a GPU number, or 0,1 under torchrun; empty: the first GPU, else the CPU", group="hardware"
    )
    workers: int = flag(2, "data loader processes per training process, at most one per CPU", bounds=AT_LEAST_0)
    amp: str = flag(
        "auto",
        "mixed precision; auto (the default) is fp16 on CUDA, else off",
        choices=("auto", "fp16", "bf16", "off"),
        shown="",
    )
    sync_bn: bool = flag(False, "batch norm over the batches of all processes (SyncBatchNorm)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rect and self.image_weights:
            raise ValueError("--rect --image-weights: sampled images cannot be batched by shape, expected one of them")
        if self.rect and self.tile_train:
            raise ValueError(f"--rect --tile-train {self.tile_train}: tiles are square, expected one of them")
        if self.logger and self.evolve:
            raise ValueError(f"--logger {self.logger} --evolve: a search's trials are not logged, expected one of them")

    @property
    def total_epochs(self) -> int:
        """The number of epochs."""
        return 100 if self.epochs is None else self.epochs


if __name__ == "__main__":
    check_cli(TrainConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import json
import logging
import math
import time
from dataclasses import asdict, fields, replace
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
from utils.data.loader import EpochBatchSampler, LoaderSettings, image_weights, training_loaders, undisturbed_by_workers
from utils.data.scan import Scan, warn_of_shared_images
from utils.device import amp_dtype, seed_everything
from utils.distributed import Dist, setup_device
from utils.drawing import plot_batch
from utils.evaluate.metrics import Metrics
from utils.files import find, write_atomic
from utils.hyp import Hyp
from utils.images import check_imgsz, rescale, to_input
from utils.loss import Criterion, LossParts
from utils.next_steps import step_lines
from utils.progress import Progress, clock
from utils.runs import Run, newest_to_resume
from utils.text import counted
from utils.thresholds import split_name
from utils.train.autoanchor import check_anchors, label_sizes
from utils.train.errors import check_batches, user_error
from utils.train.memory import choose_batch_size
from utils.train.mlflow_log import MlflowLog
from utils.train.optim import ModelEMA, Schedule, accumulation, build_optimizer, set_norm_momentum
from utils.train.plots import plot_labels, plot_results
from utils.train.progress import epoch_header, epoch_row, result_row, resume_line
from utils.train.recipe import RunInfo, fit_recipe, warn_of_random_start
from utils.train.report import run_steps, write_report
from utils.train.state import TrainState, data_digest
from utils.train.stopping import EarlyStopping
from utils.train.tensorboard import TensorBoard
from val import EvalSettings, evaluate, read_data, rect_or_square

LOGGER = logging.getLogger(__name__)
BUILT_IN = "data/shapes.yaml"  # the data set without --data
PLOTTED_BATCHES = 3  # of the first epoch, drawn as train_batch*.jpg


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
            state.epoch, state.finished, state.class_maps = dist.broadcast(
                (state.epoch, state.finished, state.class_maps)
            )
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
    cfg = replace(cfg, data=str(Path(data.yaml).resolve()))
    if checkpoint is None:
        model, transferred = start_model(
            data.names, cfg.cfg, cfg.weights, cfg.backbone_weights, cfg.partial, cfg.verbose
        )
    else:
        model, transferred = resumed_model(checkpoint), None
    model = model.to(dist.device)
    if dist.device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # a fifth less time; on a GPU it depends on the card
    imgsz = check_imgsz(cfg.imgsz, model.grid)[0]
    cfg = replace(cfg, imgsz=imgsz)  # what opt.yaml, the checkpoint and the report say is what it was trained at
    scaler = torch.amp.GradScaler(dist.device.type, enabled=amp_dtype(cfg.amp, dist.device) == torch.float16)
    if cfg.batch_size == -1:
        largest = math.ceil(1.5 * imgsz / model.grid) * model.grid if cfg.multi_scale else imgsz
        cfg = replace(cfg, batch_size=dist.broadcast(choose_batch_size(model, largest, dist)))
    with dist.rank_zero_first():  # the other processes find its caches on disk
        scan, val_scan = data.training_scan(cfg.fraction, cfg.seed), data.scan("val")
        if dist.rank == 0:
            warn_of_shared_images(scan, val_scan)
            log_tiles(scan, cfg.tile_train)
        cfg, hyp = choose_hyp(cfg, hyp, scan, model, transferred)
        set_norm_momentum(model, hyp.norm_momentum)
        settings = loader_settings(cfg, model, imgsz)
        check_batches(len(scan), cfg.batch_size // dist.world, imgsz / float(model.stride.max()))
        loader, val_loader = training_loaders(scan, val_scan, hyp, settings, dist.rank, dist.world)
    anchors = model.head.anchors
    if checkpoint is None and not cfg.noautoanchor and anchors is not None:
        trained_head = transferred is not None and transferred.boxes
        sizes = label_sizes(scan, imgsz, cfg.tile_train)
        fitted, line = check_anchors(sizes, anchors, model.stride, hyp.anchor_t, cfg.seed, trained_head)
        anchors.copy_(fitted)
        LOGGER.info(line)

    frozen = freeze(model, cfg.freeze)
    run = start_run(cfg, hyp, scan, model, data.names, imgsz, dist)
    decay = hyp.weight_decay * cfg.batch_size * accumulation(hyp, cfg.batch_size) / hyp.nominal_batch
    optimizer = build_optimizer(model, cfg.optimizer, hyp, decay)
    schedule = Schedule(optimizer, hyp, cfg.total_epochs, len(loader), cfg.batch_size, cfg.cos_lr)
    ema = ModelEMA(model, hyp.ema_decay, hyp.ema_ramp)
    state = TrainState(model, ema, optimizer, scaler, schedule, EarlyStopping(cfg.patience), data=data_digest(scan))
    if checkpoint is not None and checkpoint.training is not None:
        state.load_state_dict(checkpoint.training, checkpoint.model, checkpoint.ema or {})
        schedule.last_update = min(schedule.last_update, state.epoch * len(loader) - 1)  # of data with more batches
        state.finished = state.finished or state.epoch >= cfg.total_epochs
    criterion = model.head.criterion(hyp, imgsz, cfg.label_smoothing, dist.all_reduce_sum)  # with the anchors restored
    parallel = dist.wrap(model, cfg.sync_bn)
    LOGGER.info(
        f"training for {counted(cfg.total_epochs, 'epoch')} at {imgsz} px on {dist.device}; results go to {run.dir}"
    )
    board = None
    if dist.rank == 0 and not cfg.noplots:
        board = TensorBoard(run.dir, start=state.epoch)
        board.graph(model, imgsz)
    mlflow = MlflowLog(run.dir if cfg.logger and dist.rank == 0 else None, asdict(cfg), hyp.as_dict(), state.epoch)
    loaders = (scan, loader, val_loader)
    return Job(cfg, hyp, dist, run, data.names, *loaders, model, parallel, frozen, criterion, state, board, mlflow)


def choose_hyp(
    cfg: TrainConfig, hyp: Hyp | None, scan: Scan, model: DetectionModel, transferred: TransferReport | None
) -> tuple[TrainConfig, Hyp]:
    """The flags and hyperparameters of the run, with everything filled in that was left to the recipe."""
    random = not cfg.resume and (transferred is None or transferred.share("backbone") < 0.5)
    if random and any(isinstance(module, MobileViTBlock) for module in model.modules()):
        warn_of_random_start(model.where, len(scan), cfg.data)
    info = RunInfo(
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
    source = cfg.hyp or ("the resumed run" if cfg.resume else "")
    recipe = fit_recipe(info, hyp, cfg.optimizer, cfg.close_mosaic, cfg.clip_grad, source, cfg.verbose)
    fitted: dict[str, Any] = {
        "optimizer": recipe.optimizer,
        "close_mosaic": recipe.close_mosaic,
        "clip_grad": recipe.clip_grad,
    }
    return replace(cfg, **fitted), recipe.hyp


def loader_settings(cfg: TrainConfig, model: DetectionModel, imgsz: int) -> LoaderSettings:
    """How images are loaded; validation has rectangular batches where the model allows them."""
    stride = int(model.stride.max())
    return LoaderSettings(
        imgsz,
        model.grid,
        cfg.batch_size,
        rect=cfg.rect and rect_or_square(True, model.grid, stride),
        val_rect=model.grid == stride,
        seed=cfg.seed,
        cache=cfg.cache,
        workers=cfg.workers,
        quad=cfg.quad,
        no_mosaic_from=cfg.total_epochs - cfg.close_mosaic,
        letterbox=model.letterbox,
        tile=cfg.tile_train,
    )


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


def start_run(
    cfg: TrainConfig, hyp: Hyp, scan: Scan, model: DetectionModel, names: dict[int, str], imgsz: int, dist: Dist
) -> Run:
    """The run folder with opt.yaml, hyp.yaml and labels.jpg; logs the model's summary."""
    run = Run(cfg.project, cfg.name, cfg.exist_ok, dist.rank)
    run.lock()
    run.clear()
    run.dump("opt.yaml", asdict(replace(cfg, evolve_storage="")))  # which may contain a password
    run.dump("hyp.yaml", hyp.as_dict())
    LOGGER.info(model.summary(imgsz))
    if dist.rank == 0 and not cfg.noplots:
        plot_labels(scan.label, scan.xywhn, names, run.dir / "labels.jpg")
    return run


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
                names = ", ".join(batch.paths)
                raise FloatingPointError(
                    f"loss is {loss.item()} in epoch {epoch + 1}; images, or those mixed into them: {names}"
                )
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
        best_epoch = state.stopper.best_epoch + 1
        LOGGER.info(
            f"early stopping: no better fitness for {counted(cfg.patience, 'epoch')}, the best was epoch {best_epoch}"
        )
    state.epoch = epoch + 1
    state.seconds += time.monotonic() - began
    return metrics, best


def validate(job: Job, model: DetectionModel, criterion: Criterion | None = None, plots: Path | None = None) -> Metrics:
    """Metrics of `model` on the val split; `plots` is a folder for curves and images."""
    settings = replace(EvalSettings.of(job.cfg.single_cls), tile=job.cfg.tile_train)
    metrics = evaluate(
        model,
        job.val_loader,
        job.names,
        job.dist.device,
        settings,
        criterion=criterion,
        plots=plots,
        title=f"best.pt on val of {job.cfg.data}",
    )
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
    path = newest_to_resume(Path(cfg.project)) if cfg.resume == "newest" else Path(cfg.resume)
    path = path / "weights" / "last.pt" if path.is_dir() else path
    checkpoint = load_last(path)
    if checkpoint.training is None or checkpoint.epoch is None:
        raise ValueError(f"{path}: holds weights only, nothing to resume; expected the last.pt of a run")
    try:
        old = TrainConfig(**known_fields(TrainConfig, checkpoint.opt))
        hyp = Hyp(**known_fields(Hyp, checkpoint.hyp))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    own = {"resume", "epochs", "device", "workers", "project", "data", "verbose"}
    ignored = [f.name for f in fields(cfg) if f.name not in own and getattr(cfg, f.name) != f.default]
    if ignored:
        flags = " ".join(f"--{name.replace('_', '-')}" for name in ignored)
        LOGGER.warning(f"--resume keeps the settings of the run, ignored: {flags}")
    folder = path.resolve().parent.parent
    place: dict[str, Any] = {"project": str(folder.parent), "name": folder.name, "exist_ok": True}
    kept: dict[str, Any] = {
        "resume": str(path),
        "device": cfg.device,
        "workers": cfg.workers if cfg.workers != TrainConfig.workers else old.workers,
        "epochs": cfg.epochs or old.epochs,
        "verbose": cfg.verbose,
        "data": resumed_data(cfg.data, old.data, path),
    }
    cfg = replace(old, **place, **kept)
    done, training = checkpoint.epoch + 1, checkpoint.training
    more = cfg.total_epochs > old.total_epochs
    written_last = folder / ("metrics.json" if old.noplots else "report.html")
    if training["finished"] and not more and written_last.exists():
        LOGGER.info(f"{folder}: this run is finished after {counted(done, 'epoch')}; a larger --epochs continues it")
        return None
    LOGGER.info(f"{folder}: resuming after epoch {done}, with the settings of the run")
    if more:  # patience and time, which may have ended the run, start anew
        training |= {"finished": False, "seconds": 0.0}
        training["stopper"]["best_epoch"] = done - 1
    return train(cfg, hyp, dist, checkpoint)


def resumed_data(given: str, old: str, run: Path) -> str:
    """The data YAML to resume a run with: `given` where --data names one, else the `old` one.

    Raises:
        FileNotFoundError: the old one or its images are gone.
    """
    if given:
        if Path(given).resolve() != Path(old):
            LOGGER.info(f"{run}: --data {given} instead of {old}")
        return given
    try:
        read_data(old)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{run}: its data {old} are gone, expected --data with a YAML of the same classes ({error!s:.160})"
        ) from error
    return old


def search(cfg: TrainConfig, hyp: Hyp, dist: Dist) -> None:
    """Search hyperparameters in many short trainings; the same command with --exist-ok goes on or shares the work."""
    from utils.train import search as hyp_search  # here, for it needs optuna

    if dist.world > 1:
        raise ValueError("--evolve under torchrun: expected single processes that share a folder or --evolve-storage")
    folder = Run(cfg.project, cfg.name, cfg.exist_ok).dir
    place: dict[str, Any] = {"project": str(folder / "trials"), "name": "trial", "exist_ok": False, "noplots": True}

    def train_trial(hyp: Hyp, report: hyp_search.Report) -> float:
        try:
            job = set_up(replace(cfg, **place), hyp, dist)
            while not job.state.finished:
                began = time.monotonic()
                metrics, _ = end_epoch(job, train_one_epoch(job, job.state.epoch), began)
                if report(job.state.epoch - 1, metrics.fitness if metrics else math.nan):
                    break
        except (MemoryError, RuntimeError) as error:
            raise user_error(error, cfg.batch_size, cfg.imgsz) from error
        job.run.release()
        return job.state.stopper.best

    settings = hyp_search.SearchSettings(
        trials=cfg.evolve,
        epochs=cfg.total_epochs,
        storage=cfg.evolve_storage,
        seed=cfg.seed,
        shared=hyp_search.shared_flags(asdict(cfg)) | {"epochs": cfg.total_epochs},
    )
    space = hyp_search.read_space(find(cfg.evolve_space, "data/hyps"))
    hyp_search.search(train_trial, hyp, space, folder, settings)


def main(cfg: TrainConfig) -> Metrics | None:
    """Train, resume or search as `cfg` says; writes only the run folder, caches and the built-in data set.

    Returns:
        the best checkpoint's metrics; None from a search, a run that was finished already, and ranks other than 0.
    """
    try:
        dist = setup_device(cfg.device)
    except RuntimeError as error:
        raise ConnectionError(f"the processes of the run cannot connect: {error}") from error
    if dist.rank:
        logging.getLogger().setLevel(logging.ERROR)  # only rank 0 logs
    metrics = None
    if cfg.resume:
        metrics = resume(cfg, dist)
    else:
        hyp = Hyp.from_yaml(find(cfg.hyp, "data/hyps")) if cfg.hyp else None
        if cfg.evolve:
            search(cfg, hyp or Hyp(), dist)
        else:
            metrics = train(cfg, hyp, dist)
    dist.close()  # not after an error: it would wait for processes that wait for this one
    return metrics


if __name__ == "__main__":
    run_script(main, TrainConfig)
