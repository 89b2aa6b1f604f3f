"""Train a detector: `python train.py --cfg yolov5-mobilevit.yaml --data data/shapes.yaml`.

Several processes: `torchrun --nproc_per_node 2 train.py ...`. After an interruption: `python train.py --resume`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.data import DataLoader
from tqdm import tqdm

from models.common import Attention, MobileViTBlock
from models.weights.checkpoint import build_model, load_checkpoint, model_state, save_checkpoint
from models.weights.imagenet import load_backbone
from models.weights.transfer import Transfer, fine_tune, freeze
from models.yolo import DetectionModel
from utils.config import Hyp, find, flag, run_script
from utils.data.dataset import Data, DetectionDataset, list_images, read_data_yaml, scan_split
from utils.data.image_cache import KINDS
from utils.data.loader import EpochBatches, build_loader, image_weights
from utils.data.scan import Scan
from utils.device import (
    AMP,
    Dist,
    activation_bytes,
    amp_type,
    explained,
    free_memory,
    seed_everything,
    setup_device,
)
from utils.evaluate.metrics import Metrics
from utils.images import check_imgsz, rescale, to_input
from utils.loss import DetectionLoss, LossParts, loss_gains
from utils.runs import EarlyStopping, Run, newest_checkpoint, write_atomic
from utils.train.autoanchor import check_anchors, label_sizes
from utils.train.optim import OPTIMIZERS, ModelEMA, Schedule, accumulation, build_optimizer, set_norm_momentum
from utils.train.plots import plot_batch, plot_labels, plot_results
from utils.train.progress import epoch_line, result_row, show_progress
from utils.train.recipe import CLIP, Facts, choose_recipe
from utils.train.report import write_report
from utils.train.state import TrainState
from utils.train.tensorboard import TensorBoard
from val import Judging, evaluate, rect_or_square

LOGGER = logging.getLogger(__name__)
SGD_DECAY = 0.005  # a greater weight decay than this is not meant for SGD
PICTURED = 3  # batches of the first epoch that are drawn as train_batch*.jpg
BATCHES = 256  # the largest batch that --batch-size -1 chooses
FEW_IMAGES = 5_000  # a MobileViT that starts from random weights on fewer gets a warning
FREE = "resume evolve evolve_space evolve_storage project name exist_ok device workers cache hyp seed nosave noplots"
FREE += " save_period"  # flags in which the workers of one search may differ; --hyp is compared by its values
UNMEASURED = Metrics(0, 0, math.nan, math.nan, math.nan, math.nan, [])  # an epoch without validation
Saved = dict[str, Any]  # what load_checkpoint returns
Tell = Callable[[int, float], bool]  # (epoch, fitness) -> whether the trial is hopeless


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
    hyp: str = flag("", "hyperparameter YAML, such as hyp.scratch-low.yaml; empty: fitted to the data (docs/recipe.md)")
    epochs: int | None = flag(None, "passes over the training pictures; 100 if not given")
    time: float = flag(
        0.0, "hours after which to end, the rate falls with the clock; 0: no limit; the rest follows --epochs"
    )
    batch_size: int = flag(16, "pictures a batch, over all processes; -1: as many as memory allows", "--batch")
    imgsz: int = flag(640, "side of the training and validation canvas, pixels", "--img", "--img-size")
    rect: bool = flag(False, "batches of one aspect ratio; off for models whose grid is coarser than their stride")
    resume: str = flag("", "go on with an interrupted run: its last.pt, or without a path the newest", bare="newest")
    nosave: bool = flag(False, "write the last checkpoint only")
    noval: bool = flag(False, "validate the last epoch only")
    noautoanchor: bool = flag(False, "keep the model's anchors however they fit the data")
    noplots: bool = flag(False, "no pictures and no report page")
    cache: str = flag("", "keep decoded pictures: ram, or disk (a file beside the labels)", bare="ram", choices=KINDS)
    evolve: int = flag(0, "search from --hyp (or YOLOv5's) in so many trainings; 300 without a number", bare=300)
    evolve_space: str = flag("space.yaml", "what --evolve searches, a YAML")
    evolve_storage: str = flag("", "database URL of the search, for several workers; empty: a file in the run folder")
    image_weights: bool = flag(False, "draw pictures more often whose classes do badly")
    fraction: float = flag(1.0, "share of the training pictures to use, 0..1")
    close_mosaic: int = flag(-1, "last epochs without mosaic; -1: fitted to the run, or with --hyp 0")
    multi_scale: bool = flag(False, "vary the size of each batch by +/- 50 %%, in steps of the grid")
    quad: bool = flag(False, "make every four pictures one of twice the side")
    single_cls: bool = flag(False, "treat all classes as one")
    optimizer: str = flag("", "optimizer; empty: fitted to the data, or with --hyp SGD", choices=("", *OPTIMIZERS))
    cos_lr: bool = flag(False, "cosine schedule instead of linear")
    label_smoothing: float = flag(0.0, "label smoothing, 0..1")
    clip_grad: float = flag(-1.0, "largest norm of the gradient; 0: any; -1: fitted to the run, or with --hyp 10")
    freeze: tuple[int, ...] = flag((0,), "layers to keep as they are: a number of them from the front, or a list")
    patience: int = flag(100, "epochs without a better fitness before the run stops; 0: never")
    save_period: int = flag(-1, "also keep a checkpoint every so many epochs; below 1: no")
    amp: str = flag("auto", "mixed precision; auto: fp16 on CUDA, else off", choices=AMP)
    sync_bn: bool = flag(False, "batch norm over the batches of all processes")
    seed: int = flag(0, "seed of everything random")
    workers: int = flag(2, "loader processes, for each training process")
    device: str = flag("", "cpu, mps, a GPU number, or 0,1 under torchrun; empty: the first GPU, else the CPU")
    project: str = flag("runs/train", "where run folders go")
    name: str = flag("exp", "name of the run folder")
    exist_ok: bool = flag(False, "write into an existing run folder")

    @property
    def last(self) -> int:
        """The number of epochs."""
        return 100 if self.epochs is None else self.epochs


def main(cfg: TrainConfig) -> Metrics:
    """Train as `cfg` says; return the best checkpoint's metrics. Writes only the run folder and label caches."""
    check_config(cfg)
    try:
        dist = setup_device(cfg.device)
    except RuntimeError as error:
        raise ConnectionError(f"the processes of the run do not find each other: {error}") from error
    if dist.rank:
        logging.getLogger().setLevel(logging.ERROR)  # rank 0 speaks for all
    metrics = start(cfg, dist)
    dist.close()  # not after an error: it would wait for processes that wait for this one
    return metrics


def start(cfg: TrainConfig, dist: Dist) -> Metrics:
    """Resume, search or train."""
    if cfg.resume:
        return resume(cfg, dist)
    hyp = Hyp.from_yaml(find(cfg.hyp, "data/hyps")) if cfg.hyp else None
    if cfg.evolve:
        return evolve(cfg, hyp or Hyp(), dist)
    return train(cfg, hyp, dist)


def check_config(cfg: TrainConfig) -> None:
    """Raise ValueError for a number out of range."""
    for name, low in (
        ("last", 1),
        ("workers", 0),
        ("patience", 0),
        ("time", 0),
        ("close_mosaic", -1),
        ("clip_grad", -1),
    ):
        if not getattr(cfg, name) >= low:  # nan is not
            flag_name = {"last": "epochs"}.get(name, name.replace("_", "-"))
            raise ValueError(f"--{flag_name} {getattr(cfg, name)}: expected at least {low}")
    if -1 < cfg.clip_grad < 0:
        raise ValueError(f"--clip-grad {cfg.clip_grad}: expected 0 or more, or -1 to choose it")
    if cfg.batch_size < 1 and cfg.batch_size != -1:
        raise ValueError(f"--batch-size {cfg.batch_size}: expected at least 1, or -1 to choose it")
    if not 0 <= cfg.label_smoothing < 1:
        raise ValueError(f"--label-smoothing {cfg.label_smoothing}: expected 0 or more, below 1")
    if cfg.rect and cfg.image_weights:
        raise ValueError(
            "--rect --image-weights: drawn pictures do not lie in batches of one shape, expected one of them"
        )
    if not 0 < cfg.fraction <= 1:
        raise ValueError(f"--fraction {cfg.fraction}: expected more than 0, at most 1")


def resume(cfg: TrainConfig, dist: Dist) -> Metrics:
    """Go on with the run of `cfg.resume` under its own settings; epochs (if given), device and workers are `cfg`'s."""
    path = Path(cfg.resume)
    if cfg.resume == "newest":
        path = newest_checkpoint(Path(cfg.project))
    elif path.is_dir():
        path = path / "weights" / "last.pt"
    saved = load_checkpoint(path)
    if "training" not in saved:
        raise ValueError(f"{path}: weights alone, nothing to resume; expected the last.pt of a run")
    known = {f.name for f in fields(TrainConfig)}
    old = TrainConfig(**{k: v for k, v in saved["opt"].items() if k in known})
    folder = path.resolve().parent.parent
    changes: dict[str, Any] = {
        "project": str(folder.parent),
        "name": folder.name,
        "exist_ok": True,
        "workers": cfg.workers,
    }
    taken = {"resume", "epochs", "device", "workers", "project"}
    ignored = [f.name for f in fields(cfg) if f.name not in taken and getattr(cfg, f.name) != f.default]
    if ignored:
        flags = " ".join(f"--{name.replace('_', '-')}" for name in ignored)
        LOGGER.warning(f"--resume keeps the settings of the run, ignored: {flags}")
    cfg = replace(old, **changes, resume=str(path), device=cfg.device, epochs=cfg.epochs or old.epochs)
    done = saved["epoch"] + 1
    more = cfg.last > old.last
    if saved["training"]["finished"] and not more and (folder / "metrics.json").exists():
        LOGGER.info(f"{folder}: this run is finished after {done} epochs; --epochs with a greater number goes on")
        return UNMEASURED
    LOGGER.info(f"{folder}: going on after epoch {done}, with the settings of the run")
    if more:  # what ended it, be it patience or time, starts anew
        saved["training"] |= {"finished": False, "seconds": 0.0}
        saved["training"]["stopper"]["best_epoch"] = done - 1
    known = {f.name for f in fields(Hyp)}
    try:
        hyp = Hyp(**{k: v for k, v in saved["hyp"].items() if k in known})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return train(cfg, hyp, dist, saved)


@dataclass(frozen=True)
class Job:
    """All parts of a training run; what changes from epoch to epoch is in `state`."""

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
    criterion: DetectionLoss
    state: TrainState
    board: TensorBoard | None


def evolve(cfg: TrainConfig, hyp: Hyp, dist: Dist) -> Metrics:
    """Search hyperparameters in many short trainings; the same command with --exist-ok goes on or shares the work."""
    from utils.train.search import read_space, search  # here, for it needs optuna

    if dist.world > 1:
        raise ValueError("--evolve under torchrun: expected single processes that share a folder or --evolve-storage")
    folder = Run(cfg.project, cfg.name, cfg.exist_ok).dir
    setting = {key: value for key, value in asdict(cfg).items() if key not in FREE.split()} | {"epochs": cfg.last}

    def trial(hyp: Hyp, tell: Tell) -> float:
        place: dict[str, Any] = {"project": str(folder / "trials"), "name": "trial", "exist_ok": False, "noplots": True}
        try:
            job = set_up(replace(cfg, **place), hyp, dist, None)
            while not job.state.finished:
                began = time.monotonic()
                metrics = end_epoch(job, train_one_epoch(job, job.state.epoch), began, keep=False)
                if tell(job.state.epoch - 1, metrics.fitness):
                    break
        except (MemoryError, RuntimeError) as error:
            raise explained(error, cfg.batch_size, cfg.imgsz) from error
        return job.state.stopper.best

    space, storage = read_space(find(cfg.evolve_space, "data/hyps")), cfg.evolve_storage
    search(trial, hyp, space, cfg.evolve, folder, epochs=cfg.last, storage=storage, seed=cfg.seed, setting=setting)
    return UNMEASURED


def train(cfg: TrainConfig, hyp: Hyp | None, dist: Dist, saved: Saved | None = None) -> Metrics:
    """Train, from the start or from where `saved` stands; return the best checkpoint's metrics."""
    job = set_up(cfg, hyp, dist, saved)
    state = job.state
    try:
        while not state.finished:
            began = time.monotonic()
            losses = train_one_epoch(job, state.epoch)
            if dist.rank == 0:
                end_epoch(job, losses, began)
            state.epoch, state.finished, state.class_maps = dist.agree((state.epoch, state.finished, state.class_maps))
        return report(job) if dist.rank == 0 else UNMEASURED
    except (KeyboardInterrupt, OSError, ValueError, MemoryError, RuntimeError, FloatingPointError) as error:
        say_how_to_resume(job)
        raise explained(error, job.cfg.batch_size, job.cfg.imgsz) from error


def set_up(cfg: TrainConfig, hyp: Hyp | None, dist: Dist, saved: Saved | None) -> Job:
    """Everything that is needed before the first batch; without `hyp` a recipe is fitted to the data."""
    seed_everything(cfg.seed, dist.device)
    data = read_data_yaml(find(cfg.data, "data"))
    names = {0: "item"} if cfg.single_cls else data.names
    model, taken = start_model(cfg, names) if saved is None else (resumed_model(saved), None)
    model = model.to(dist.device)
    if dist.device.type == "cpu":
        model = model.to(memory_format=torch.channels_last)  # a fifth less time; on a GPU it depends on the card
    imgsz = check_imgsz(cfg.imgsz, model.grid)
    scaler = grad_scaler(cfg, dist.device)
    if cfg.batch_size == -1:
        cfg = replace(cfg, batch_size=dist.agree(choose_batch(model, 1.5 * imgsz if cfg.multi_scale else imgsz, dist)))
    train_scan = training_pictures(cfg, data)
    cfg, hyp = fit_recipe(cfg, hyp, train_scan, model, taken)
    set_norm_momentum(model, hyp.norm_momentum)
    loader, val_loader = build_loaders(cfg, hyp, data, train_scan, model, imgsz, dist)

    if saved is None and not cfg.noautoanchor:
        wh = label_sizes(train_scan, imgsz)
        learned = taken is not None and taken.boxes
        anchors, line = check_anchors(wh, model.head.anchors, model.stride, hyp.anchor_t, cfg.seed, learned)
        model.head.anchors.copy_(anchors)
        LOGGER.info(line)

    run = Run(cfg.project, cfg.name, cfg.exist_ok, dist.rank)
    if saved is None:
        run.clear()
    run.dump("opt.yaml", asdict(replace(cfg, evolve_storage="")))  # which may hold a password
    run.dump("hyp.yaml", hyp.as_dict())
    LOGGER.info(model.summary(imgsz))
    if dist.rank == 0 and not cfg.noplots:
        labels = train_scan.labels * [0, 1, 1, 1, 1] if cfg.single_cls else train_scan.labels
        plot_labels(labels, names, run.dir / "labels.jpg")

    gains = loss_gains(hyp, len(names), imgsz, len(model.stride), cfg.label_smoothing)
    decay = hyp.weight_decay * cfg.batch_size * accumulation(hyp, cfg.batch_size) / hyp.nominal_batch
    optimizer = build_optimizer(model, cfg.optimizer, hyp, decay)
    schedule = Schedule(optimizer, hyp, cfg.last, len(loader), cfg.batch_size, cfg.cos_lr)
    frozen = freeze(model, cfg.freeze)
    state = TrainState(
        model, ModelEMA(model, hyp.ema_decay, hyp.ema_ramp), optimizer, scaler, schedule, EarlyStopping(cfg.patience)
    )
    if saved is not None:
        state.load_state_dict(saved["training"], saved["model"], saved["ema"])
        state.finished = state.finished or state.epoch >= cfg.last
    criterion = DetectionLoss(model.head.anchors, model.stride, len(names), gains, dist.total)  # the anchors restored
    parallel = dist.wrap(model, cfg.sync_bn)
    LOGGER.info(f"training for {cfg.last} epochs at {imgsz} px on {dist.device}; results go to {run.dir}")
    board = None
    if dist.rank == 0 and not cfg.noplots:
        board = TensorBoard(run.dir, start=state.epoch)
        board.graph(model, imgsz)
    return Job(
        cfg, hyp, dist, run, names, train_scan, loader, val_loader, model, parallel, frozen, criterion, state, board
    )


def start_model(cfg: TrainConfig, names: dict[int, str]) -> tuple[DetectionModel, Transfer | None]:
    """A new model, or that of --weights with its head fitted to `names`; and what was taken over, which is also said.

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
    done = None
    if checkpoint is not None:
        anchors = f"model.{len(model.model) - 1}.anchors"
        done = fine_tune(model, build_model(checkpoint), skip=[anchors] if cfg.cfg else [])
        LOGGER.info(done.report(cfg.weights))
    elif cfg.backbone_weights:
        done = load_backbone(model, cfg.backbone_weights, cfg.partial)
        LOGGER.info(done.report(cfg.backbone_weights))
    if done is None or done.share("backbone") < 0.5:
        warn_of_random_start(model, cfg)
    return model, done


def resumed_model(saved: Saved) -> DetectionModel:
    """The model of a run that goes on; its weights are filled in later, with the rest of its state."""
    model = DetectionModel(saved["yaml"])
    model.names = dict(saved["names"])
    return model


def grad_scaler(cfg: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss where half precision needs it, else does nothing."""
    return torch.amp.GradScaler(device.type, enabled=amp_type(cfg.amp, device) == torch.float16)


def choose_batch(model: DetectionModel, largest: float, dist: Dist) -> int:
    """The greatest multiple of 8 a process whose activations and gradients take 60 % of the free memory.

    Args:
        largest: side of the largest canvas, pixels; `model` is not modified.
    """
    side = math.ceil(largest / model.grid) * model.grid
    images = torch.zeros(2, 3, side, side, device=dist.device)
    probe = deepcopy(model).train()
    each = 1.5 * activation_bytes(probe, images) / 2  # half as much again for gradients and work space
    share = free_memory(dist.device) / (dist.world if dist.device.type == "cpu" else 1)
    batch = min(max(int(0.6 * share / each) // 8 * 8, 1), BATCHES)
    LOGGER.info(f"--batch-size -1: {batch} a process, {each / 1e9:.2f} GB an image, {share / 1e9:.1f} GB are free")
    return batch * dist.world


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


def fit_recipe(
    cfg: TrainConfig, hyp: Hyp | None, pictures: Scan, model: DetectionModel, taken: Transfer | None
) -> tuple[TrainConfig, Hyp]:
    """Fill in what is left to the rule; a hyp file, or an optimizer unlike the rule's, means YOLOv5's defaults."""
    if hyp is None:
        attention = any(isinstance(module, Attention) for module in model.modules())
        known = len(taken.classes) / model.nc if taken else 0.0
        fine_tuning = taken is not None and taken.share("neck") > 0.5
        backbone = bool(cfg.backbone_weights)
        counts = len(pictures), len(pictures.labels), cfg.last, cfg.batch_size
        facts = Facts(*counts, fine_tuning, known, attention, backbone)
        recipe = choose_recipe(facts)
        if cfg.optimizer in ("", recipe.optimizer):
            LOGGER.info(f"recipe: {recipe.why}")
            close = recipe.close_mosaic if cfg.close_mosaic < 0 else cfg.close_mosaic
            clip = recipe.clip_grad if cfg.clip_grad < 0 else cfg.clip_grad
            return replace(cfg, optimizer=recipe.optimizer, close_mosaic=close, clip_grad=clip), recipe.hyp
        LOGGER.info(f"recipe: YOLOv5's own, for --optimizer {cfg.optimizer} (the rule has {recipe.optimizer} here)")
        if cfg.optimizer != "SGD":
            LOGGER.warning(f"its rate of {Hyp.lr0} is one for SGD, {cfg.optimizer} needs about a tenth: give a --hyp")
    if cfg.hyp and hyp is not None and hyp.weight_decay > SGD_DECAY and not cfg.optimizer:
        LOGGER.warning(f"{cfg.hyp}: weight_decay {hyp.weight_decay} is one for AdamW; without --optimizer SGD is used")
    clip = CLIP if cfg.clip_grad < 0 else cfg.clip_grad
    close = max(cfg.close_mosaic, 0)
    return replace(cfg, optimizer=cfg.optimizer or "SGD", close_mosaic=close, clip_grad=clip), hyp or Hyp()


def training_pictures(cfg: TrainConfig, data: Data) -> Scan:
    """The train split, or --fraction of it.

    Raises:
        ValueError: it has no labels at all.
    """
    pictures = scan_split(data, "train")
    if cfg.fraction < 1:
        count = max(round(cfg.fraction * len(pictures)), 1)
        pictures = pictures.subset(np.random.default_rng(cfg.seed).permutation(len(pictures))[:count])
        LOGGER.info(f"--fraction {cfg.fraction}: {count} training images")
    if not len(pictures.labels):
        raise ValueError(f"{data.yaml}: the train split has no labels at all, nothing can be learned from it")
    return pictures


def build_loaders(
    cfg: TrainConfig, hyp: Hyp, data: Data, train_scan: Scan, model: DetectionModel, imgsz: int, dist: Dist
) -> tuple[DataLoader, DataLoader]:
    """Loaders of the train split (augmented) and the val split (square batches where the model needs them)."""
    stride = int(model.stride.max())
    rect = cfg.rect and rect_or_square(True, model.grid, stride)
    common: dict[str, Any] = {
        "imgsz": imgsz,
        "grid": model.grid,
        "seed": cfg.seed,
        "single_cls": cfg.single_cls,
        "cache": cfg.cache,
    }
    workers = min(cfg.workers, os.cpu_count() or 1)
    if dist.rank:
        dist.agree(None)  # rank 0 goes first, so that the others find the caches that it makes on disk
    train_set = DetectionDataset(
        train_scan,
        hyp=hyp,
        rect=rect,
        batch_size=cfg.batch_size,
        no_mosaic_from=cfg.last - cfg.close_mosaic,
        **common,
    )
    val_batch = 2 * cfg.batch_size
    val_scan = scan_split(data, "val")
    if dist.rank:
        common["cache"] = ""  # rank 0 validates
    val_set = DetectionDataset(val_scan, rect=model.grid == stride, batch_size=val_batch, **common)
    if not dist.rank:
        dist.agree(None)
    loader = build_loader(
        train_set, cfg.batch_size, workers, shuffle=True, seed=cfg.seed, quad=cfg.quad, rank=dist.rank, world=dist.world
    )
    return loader, build_loader(val_set, val_batch, workers)


def train_one_epoch(job: Job, epoch: int) -> LossParts:
    """One pass over the training pictures; returns the mean of the loss parts.

    Raises:
        FloatingPointError: the loss is not finite; names the pictures.
    """
    cfg, dist, state, loader = job.cfg, job.dist, job.state, job.loader
    began, device, dtype = time.monotonic(), dist.device, amp_type(cfg.amp, dist.device)
    schedule, scaler, optimizer = state.schedule, state.scaler, state.optimizer
    schedule.elapsed = dist.agree(state.seconds / 3600 / cfg.time if cfg.time else 0.0)
    cast(EpochBatches, loader.batch_sampler).set_epoch(epoch, drawing_odds(job))
    job.parallel.train()
    for layer in job.frozen:
        layer.eval()
    optimizer.zero_grad()  # of batches that completed no update, as in YOLOv5
    total, images_seen = torch.zeros(3, device=device), 0
    bar = tqdm(loader, f"epoch {epoch + 1}/{cfg.last}", leave=False, dynamic_ncols=True, disable=quiet(dist))
    for step, batch in enumerate(bar, start=epoch * len(loader)):
        schedule.set(step)
        images = to_input(batch.images, device)
        if cfg.multi_scale:
            images = rescale(images, job.model.grid, np.random.default_rng((cfg.seed, step)))
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            loss, parts = job.criterion(job.parallel(images), batch.targets.to(device))
        if not torch.isfinite(loss):
            pictures = ", ".join(batch.paths)
            raise FloatingPointError(
                f"loss is {loss.item()} in epoch {epoch + 1}; pictures, or those mixed into them: {pictures}"
            )
        if cfg.quad:
            loss = loss * 4  # a canvas stands for four pictures
        scaler.scale(loss * dist.world).backward()  # the processes' gradients are averaged, the loss is their sum
        if schedule.update_due(step):
            scaler.unscale_(optimizer)
            if cfg.clip_grad:
                clip_grad_norm_(job.model.parameters(), cfg.clip_grad)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            state.ema.update(job.model)
        total += torch.stack(parts)
        images_seen += len(batch.paths)
        if step < PICTURED and dist.rank == 0 and not cfg.noplots:
            plot_batch(batch.images, batch.targets, job.names, job.run.dir / f"train_batch{step}.jpg")
        if not bar.disable:
            mean = total * dist.world / (step - epoch * len(loader) + 1)
            show_progress(bar, mean, len(batch.targets), images, images_seen / (time.monotonic() - began))
    return LossParts(*(dist.total(total) / len(loader)))


def quiet(dist: Dist) -> bool | None:
    """Whether progress bars are off; None: unless a terminal is there to see them."""
    return True if dist.rank else None


def drawing_odds(job: Job) -> np.ndarray | None:
    """With --image-weights the odds of each training picture, else None."""
    if not job.cfg.image_weights:
        return None
    labels = job.scan.labels[:, 0].astype(int) * (not job.cfg.single_cls)
    return image_weights(labels, job.scan.offsets, job.state.class_maps or [0.0] * len(job.names))


def end_epoch(job: Job, losses: LossParts, began: float, keep: bool = True) -> Metrics:
    """Validate, log and (if `keep`) save after an epoch, and decide whether it was the last; rank 0 only.

    Args:
        began: when the epoch did, by time.monotonic().
    """
    cfg, state, epoch = job.cfg, job.state, job.state.epoch
    seconds = time.monotonic() - began
    no_time = bool(cfg.time) and state.seconds + 2 * seconds > 3600 * cfg.time  # for one more like this
    state.finished = epoch + 1 == cfg.last or no_time
    metrics = UNMEASURED
    if state.finished or not cfg.noval:
        metrics = measure(job, job.state.ema.module, job.criterion.alone())
        state.class_maps = [c.map50_95 for c in metrics.per_class]
    row = result_row(epoch, losses, metrics, state.schedule.rates(), seconds)
    job.run.log(row)
    if job.board is not None:
        job.board.scalars(row)
    LOGGER.info(epoch_line(epoch, cfg.last, losses, metrics, seconds))
    best = state.stopper.improved(metrics.fitness, epoch) or state.stopper.best == -math.inf
    if state.stopper.should_stop(epoch):
        state.finished = True
        LOGGER.info(
            f"stopped: no better fitness for {cfg.patience} epochs, best was epoch {state.stopper.best_epoch + 1}"
        )
    state.epoch = epoch + 1
    state.seconds += time.monotonic() - began
    if keep and (state.finished or not cfg.nosave):
        save(job, metrics, best or not state.kept_best)
    return metrics


def save(job: Job, metrics: Metrics, best: bool) -> None:
    """Write best.pt (the averaged weights alone), then last.pt (all that a resumed run needs)."""
    cfg, state = job.cfg, job.state
    epoch = state.epoch - 1
    about = {
        "epoch": epoch,
        "fitness": float(metrics.fitness),
        "metrics": {k: v for k, v in metrics.as_dict().items() if k != "speed_ms"},  # which differ from run to run
        "hyp": job.hyp.as_dict(),
        "opt": asdict(replace(cfg, data=str(find(cfg.data, "data").resolve()))),
    }
    if best:  # before last.pt: a run that is killed between the two writes it once more
        save_checkpoint(job.run.weights / "best.pt", model_state(state.ema.module) | about)
        state.kept_best = True
    if cfg.save_period > 0 and (epoch + 1) % cfg.save_period == 0:
        save_checkpoint(job.run.weights / f"epoch{epoch}.pt", model_state(state.ema.module) | about)
    whole = {"ema": model_state(state.ema.module)["model"], "training": state.state_dict()}
    save_checkpoint(job.run.weights / "last.pt", model_state(job.model) | about | whole)


def measure(
    job: Job, model: DetectionModel, criterion: DetectionLoss | None = None, plots: Path | None = None
) -> Metrics:
    """Metrics of `model` on the val split; `plots` is a folder for curves and pictures."""
    judging = Judging(single_cls=job.cfg.single_cls)
    return evaluate(
        model, job.val_loader, job.names, job.dist.device, judging=judging, criterion=criterion, plots=plots
    )


def say_how_to_resume(job: Job) -> None:
    """After an interruption: what is saved and the command that goes on."""
    last = job.run.dir / "weights" / "last.pt"
    if job.dist.rank == 0:
        if job.state.epoch and last.exists():
            epochs = load_checkpoint(last)["epoch"] + 1
            LOGGER.info(f"{epochs} epochs are saved; go on with: python train.py --resume {last}")
        else:
            LOGGER.info("no epoch was saved yet")


def report(job: Job) -> Metrics:
    """Validate the best checkpoint once more, print its table, write metrics.json."""
    best = job.run.weights / "best.pt"
    plots = None if job.cfg.noplots else job.run.dir
    metrics = measure(job, build_model(load_checkpoint(best)).to(job.dist.device), plots=plots)
    LOGGER.info(metrics.table())
    write_atomic(job.run.dir / "metrics.json", json.dumps(metrics.as_dict(), indent=2))
    if not job.cfg.noplots:
        plot_results(job.run.dir / "results.csv", job.run.dir / "results.png")
        if job.board is not None:
            job.board.pictures(sorted(job.run.dir.glob("*batch*.jpg")))
            job.board.close()
        LOGGER.info(f"report: {write_report(job.run.dir)}")
    LOGGER.info(f"best weights: {best}")
    return metrics


if __name__ == "__main__":
    run_script(main, TrainConfig)
