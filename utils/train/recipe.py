"""The recipe of a run without --hyp: hyperparameters and optimizer fitted to the data, the epochs and the model.

The measurements behind the numbers are in docs/recipe.md.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from utils.hyp import NO_FACTORS, HeadFactors, Hyp
from utils.text import counted
from utils.train.flags import TrainConfig

LOGGER = logging.getLogger(__name__)
LONG_RUN = 20_000  # updates at a nominal batch of 64; from here on YOLOv5's own recipe has enough of them
WARMUP_SHARE = 0.1  # of a short run, at most
MIN_UPDATE_BATCH = 4  # images; gradients of smaller batches are mostly noise, so they are accumulated
CLOSE_SHARE, MAX_CLOSE = 0.2, 15  # last epochs without mosaic: share of the run, maximum
EMA_SHARE, MAX_EMA = 0.1, 10_000  # updates that the weights are averaged over: share of the run, maximum
NORM_SHARE, MIN_NORM = 0.025, 10  # batches that the statistics of batch norms cover: share of the run, minimum
LR, LONG_RUN_LR = 0.004, 0.001  # learning rate of AdamW from scratch
NEW_CLASSES_LR, KNOWN_CLASSES_LR = 0.002, 0.0001  # learning rates of fine-tuning: with larger ones models forget
SGD_CLIP = 10.0  # YOLOv5's limit for the norm of the gradient of the loss summed over the images of an update
ADAMW_CLIP = 1.0  # below the norm of most batches of 16 images and more, so that no outlier dominates
CROWDED = 4  # boxes per image; more crowded ones are like mosaics of images with one box, and need fewer mosaics
MOSAIC_GROWTH = 30, 100  # epochs of a run between which the probability of mosaics rises to 1 on crowded images
MAX_SGD_DECAY = 0.005  # a larger weight decay is not meant for SGD
FEW_IMAGES = 5_000  # a MobileViT that starts from random weights on fewer gets a warning


@dataclass(frozen=True)
class RunInfo:
    """What is known about a run before its first step.

    Attributes:
        images, boxes: of the train split. epochs: of the run. batch_size: over all processes.
        fine_tuning: the run starts from a detector's weights. known_classes: fraction of the classes that they have.
        attention: the model has attention. backbone: the run starts from backbone weights, which is only logged.
        head: what the recipe of the model's head differs in.
    """

    images: int
    boxes: int
    epochs: int
    batch_size: int
    fine_tuning: bool = False
    known_classes: float = 0.0
    attention: bool = False
    backbone: bool = False
    head: HeadFactors = NO_FACTORS

    @property
    def batches(self) -> int:
        """The number of batches of the run."""
        return self.epochs * -(-self.images // self.batch_size)

    @property
    def default_updates(self) -> int:
        """The number of updates of the run at a nominal batch of 64."""
        return self.epochs * self.images // max(64, self.batch_size)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters, and flags of train.py under their names; `basis` says what they were fitted to."""

    hyp: Hyp
    optimizer: str
    close_mosaic: int
    clip_grad: float
    batch_size: int
    basis: str = ""

    @property
    def summary(self) -> str:
        """A line with what a person needs: optimizer, learning rate, batch and mosaic."""
        last = "epoch" if self.close_mosaic == 1 else f"{self.close_mosaic} epochs"
        close = f", not in the last {last}" if self.close_mosaic else ""
        mosaic = f"mosaic {self.hyp.mosaic:.0%}{close}" if self.hyp.mosaic else "no mosaic"
        return f"{self.optimizer}, learning rate {self.hyp.lr0:g}, batch {self.batch_size}, {mosaic}"

    @property
    def details(self) -> str:
        """A line with the other values that differ from run to run."""
        hyp = self.hyp
        images = self.batch_size * max(round(hyp.nominal_batch / self.batch_size), 1)
        clip = f"at most {self.clip_grad:g}" if self.clip_grad else "without limit"
        return (
            f"weight decay {hyp.weight_decay:g}, gradient norm {clip}, an update every {images} images, "
            f"warm-up {hyp.warmup_epochs:g} epochs, weights averaged over about {1 / (1 - hyp.ema_decay):.0f} updates, "
            f"batch norm statistics over {1 / hyp.norm_momentum:.0f} batches"
        )


def choose_recipe(info: RunInfo) -> Recipe:
    """The recipe for a run, from what is known before it starts, without any validation result.

    Long runs of convolutional networks get YOLOv5's own recipe (SGD, nominal batch 64). Others have too few updates for
    it: every batch is an update, AdamW takes steps of full size from the start, and warm-up, average and last epochs
    without mosaic are shares of the run instead of fixed lengths.
    """
    long_run, close = info.default_updates >= LONG_RUN, min(round(CLOSE_SHARE * info.epochs), MAX_CLOSE)
    epochs = f"{counted(info.batches, 'batch', 'batches')} in {counted(info.epochs, 'epoch')}"
    size = f"{counted(info.images, 'image')}, {counted(info.boxes, 'box', 'boxes')}, {epochs}"
    if long_run and not info.attention:
        return Recipe(Hyp(), "SGD", close, SGD_CLIP, info.batch_size, f"{size}: enough for YOLOv5's own recipe")
    update_batch = 64 if long_run else MIN_UPDATE_BATCH
    nominal = info.batch_size * max(round(update_batch / info.batch_size), 1)  # whole batches
    updates = info.batches * info.batch_size / nominal
    lr = LONG_RUN_LR if long_run else LR
    if info.fine_tuning:
        lr = min(lr, KNOWN_CLASSES_LR + (1 - info.known_classes) * (NEW_CLASSES_LR - KNOWN_CLASSES_LR))
    window = min(max(EMA_SHARE * updates, 2.0), MAX_EMA)
    head = info.head
    hyp = replace(
        Hyp(),
        lr0=lr * head.lr,
        box=Hyp.box * head.box,
        obj=Hyp.obj * head.obj,
        cls=Hyp.cls * head.cls,
        momentum=0.9,
        weight_decay=0.01,  # with 1e-4 the paper of MobileViT lost 1.0 point of top-1 accuracy
        warmup_epochs=min(3.0, WARMUP_SHARE * info.epochs),
        warmup_min_steps=0,
        warmup_momentum=0.9,
        warmup_bias_lr=0.0,  # YOLOv5's 0.1 is for SGD; Adam would move every bias by 0.1 at each step
        ema_decay=1 - 1 / window,
        ema_ramp=min(window, 2000.0),
        nominal_batch=nominal,
        norm_momentum=max(round(1 / max(NORM_SHARE * info.batches, MIN_NORM), 3), Hyp.norm_momentum),
        mosaic=1.0 if long_run else mosaic_probability(info),
    )
    close = close if hyp.mosaic else 0
    start = "from a trained backbone" if info.backbone else "from scratch"
    kind = f"fine-tuning, {info.known_classes:.0%} of the classes known" if info.fine_tuning else start
    basis = f"{size}, {kind}{', attention' if info.attention else ''}"
    return Recipe(hyp, "AdamW", close, ADAMW_CLIP * head.clip, info.batch_size, basis)


def mosaic_probability(info: RunInfo) -> float:
    """The probability of mosaics, 0..1, in a short run.

    Images with few boxes need mosaics from the start: without them little was learned from one box per image. Crowded
    images and fine-tuned weights lose more at the seams than they gain until every image has been seen often.
    """
    start = 0.0 if info.fine_tuning else min(CROWDED * info.images / max(info.boxes, 1), 1.0)
    low, high = MOSAIC_GROWTH
    growth = min(max((info.epochs - low) / (high - low), 0.0), 1.0)
    return round(start + (1 - start) * growth, 2)


def fit_recipe(
    info: RunInfo,
    hyp: Hyp | None,
    optimizer: str,
    close_mosaic: int,
    clip_grad: float,
    hyp_file: str = "",
    verbose: bool = False,
) -> Recipe:
    """The recipe of a run: the values of the flags, and for the rest fitted or YOLOv5's values, which are logged.

    Args:
        hyp: None: fitted to the run, or YOLOv5's if `optimizer` is not the fitted one.
        optimizer, close_mosaic, clip_grad: values of the flags; '' and negative numbers mean not given.
        hyp_file: name of the file of `hyp` for messages. verbose: log `details`, too.
    """
    fitted = choose_recipe(info)
    if hyp is None and optimizer in ("", fitted.optimizer):
        close = fitted.close_mosaic if close_mosaic < 0 else close_mosaic
        recipe = replace(fitted, close_mosaic=close, clip_grad=fitted.clip_grad if clip_grad < 0 else clip_grad)
        source = f"fitted to {recipe.basis}"
    else:
        clip = SGD_CLIP if clip_grad < 0 else clip_grad
        recipe = Recipe(hyp or Hyp(), optimizer or "SGD", max(close_mosaic, 0), clip, info.batch_size)
        source = f"from {hyp_file or '--hyp'}"
        if hyp is None:
            source = f"YOLOv5's own, for --optimizer {optimizer} (the fitted one uses {fitted.optimizer})"
    LOGGER.info(f"recipe: {recipe.summary}")
    LOGGER.info(f"        {source}; " + (recipe.details if verbose else "the rest is in hyp.yaml (--verbose: here)"))
    if hyp is None and recipe.optimizer not in ("SGD", fitted.optimizer):
        LOGGER.warning(f"the learning rate {Hyp.lr0} is for SGD, {optimizer} needs about a tenth: give a --hyp")
    if hyp is not None and hyp_file and hyp.weight_decay > MAX_SGD_DECAY and not optimizer:
        LOGGER.warning(f"{hyp_file}: weight_decay {hyp.weight_decay} is for AdamW, but without --optimizer SGD is used")
    return recipe


def fill_in(cfg: TrainConfig, hyp: Hyp | None, info: RunInfo) -> tuple[TrainConfig, Hyp]:
    """The flags and hyperparameters of a run, with everything filled in that was left to the recipe."""
    source = cfg.hyp or ("the resumed run" if cfg.resume else "")
    recipe = fit_recipe(info, hyp, cfg.optimizer, cfg.close_mosaic, cfg.clip_grad, source, cfg.verbose)
    fitted = replace(cfg, optimizer=recipe.optimizer, close_mosaic=recipe.close_mosaic, clip_grad=recipe.clip_grad)
    return fitted, recipe.hyp


def warn_of_random_start(model: str, images: int, data: str) -> None:
    """Log a warning if a MobileViT starts from random weights on few images, with the command that would help.

    Args:
        model: name of the model YAML. images: of the train split. data: the data YAML.
    """
    if images >= FEW_IMAGES:
        return
    size = next((s for s in ("xxs", "xs", "s") if model == f"yolov5-mobilevit-{s}.yaml"), "xxs")
    LOGGER.warning(
        f"{model} starts from random weights on {images} images, on which transformers rarely learn well. "
        f"ImageNet weights help: python train.py --data {data} --cfg yolov5-mobilevit-{size}.yaml "
        f"--backbone-weights timm:mobilevit_{size}.cvnets_in1k (timm downloads them; files: docs/weights.md)"
    )
