"""The recipe of a run without --hyp: what follows from the data, the length of the run and the model.

Measured in docs/recipe.md; what the numbers rest on is said where they stand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from utils.config import Hyp

LONG = 20_000  # updates at YOLOv5's nominal batch of 64; from here on its own recipe has the time that it needs
WARMUP_SHARE = 0.1  # of a short run, at most
NOISY = 4  # images; batches below this are accumulated, for their gradients are mostly noise
CLOSING_SHARE, CLOSING_MOST = 0.2, 15  # epochs at the end on whole pictures, as in validation
EMA_SHARE, EMA_MOST = 0.1, 10_000  # of the updates of a run, and updates: the average's length at its end
NORM_SHARE, NORM_LEAST = 0.025, 10  # of the batches: what running statistics cover; fewer than 10 would be noisy
RATE, LONG_RATE = 0.004, 0.001  # of AdamW from scratch, in short runs and long ones
CLIP = 10.0  # YOLOv5's limit for the norm of a gradient, that of the loss summed over the pictures of an update
ADAM_CLIP = 1.0  # less than most have at 16 pictures and more: they come out about alike, and none outweighs others
MOSAIC = 4  # boxes; a picture with more of them is as crowded as a mosaic of pictures with one, and needs none
SHORT, GROWN = 30, 100  # epochs; crowded pictures become mosaics the more often, the more often they are seen
NEW_CLASSES_RATE, KNOWN_CLASSES_RATE = 0.002, 0.0001  # in fine-tuning: larger steps lose what the weights know


@dataclass(frozen=True)
class Facts:
    """What is known before the first step.

    Attributes:
        images, boxes: of the train split. epochs: of the run. batch_size: over all processes.
        fine_tuning: starts from a detector's weights. known: share of the classes that these know, 0..1.
        attention: the backbone has some. backbone: starts from weights of a backbone alone; this is named, no more.
    """

    images: int
    boxes: int
    epochs: int
    batch_size: int
    fine_tuning: bool = False
    known: float = 0.0
    attention: bool = False
    backbone: bool = False

    @property
    def batches(self) -> int:
        """Batches of the whole run."""
        return self.epochs * -(-self.images // self.batch_size)

    @property
    def default_updates(self) -> int:
        """Updates that the run would make at a nominal batch of 64."""
        return self.epochs * self.images // max(64, self.batch_size)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters, the optimizer, the last epochs without mosaic, the gradient's largest norm, and a line why."""

    hyp: Hyp
    optimizer: str
    close_mosaic: int
    clip_grad: float
    why: str


def choose_recipe(facts: Facts) -> Recipe:
    """The recipe for a run. A pure function of what is known before it; no result of a validation enters.

    Long runs of convolutional networks get YOLOv5's own recipe (SGD, nominal batch 64). All others are short of
    updates rather than of pictures a update: every batch is an update then, AdamW takes steps of full size from the
    start, and warm-up, average and closing epochs are shares of the run instead of fixed lengths.
    """
    known = f"{facts.images} pictures, {facts.boxes} boxes, {facts.batches} batches in {facts.epochs} epochs"
    if facts.default_updates >= LONG and not facts.attention:
        why = f"{known}: long enough for YOLOv5's own recipe (SGD, nominal batch 64)"
        return Recipe(Hyp(), "SGD", min(round(CLOSING_SHARE * facts.epochs), CLOSING_MOST), CLIP, why)
    wanted = 64 if facts.default_updates >= LONG else NOISY
    nominal = facts.batch_size * max(round(wanted / facts.batch_size), 1)  # whole batches
    updates = facts.batches * facts.batch_size / nominal
    rate = LONG_RATE if facts.default_updates >= LONG else RATE
    if facts.fine_tuning:
        rate = min(rate, KNOWN_CLASSES_RATE + (1 - facts.known) * (NEW_CLASSES_RATE - KNOWN_CLASSES_RATE))
    window = min(max(EMA_SHARE * updates, 2.0), EMA_MOST)
    hyp = replace(
        Hyp(),
        lr0=rate,
        momentum=0.9,
        weight_decay=0.01,  # the paper of MobileViT lost 1.0 point of top-1 with 1e-4
        warmup_epochs=min(3.0, WARMUP_SHARE * facts.epochs),
        warmup_min_steps=0,
        warmup_momentum=0.9,
        warmup_bias_lr=0.0,  # 0.1 is a step for SGD; Adam would move every bias by 0.1 at each step
        ema_decay=1 - 1 / window,
        ema_ramp=min(window, 2000.0),
        nominal_batch=nominal,
        norm_momentum=max(round(1 / max(NORM_SHARE * facts.batches, NORM_LEAST), 3), Hyp.norm_momentum),
        mosaic=1.0 if facts.default_updates >= LONG else mosaic_share(facts),
    )
    close = min(round(CLOSING_SHARE * facts.epochs), CLOSING_MOST) if hyp.mosaic else 0
    mosaic = f"mosaic {hyp.mosaic:.0%}, not in the last {close} epochs" if hyp.mosaic else "no mosaic"
    start = "from a trained backbone" if facts.backbone else "from scratch"
    kind = f"fine-tuned, {facts.known:.0%} of the classes known" if facts.fine_tuning else start
    why = (
        f"{known}, {kind}{', attention' if facts.attention else ''}: AdamW at {rate:g}, decay 0.01, "
        f"gradients of norm {ADAM_CLIP:g} at most, "
        f"an update for every {nominal} pictures, warm-up {hyp.warmup_epochs:g} epochs, "
        f"average over about {window:.0f} updates, "
        f"statistics of batch norms over {1 / hyp.norm_momentum:.0f} batches, {mosaic}"
    )
    return Recipe(hyp, "AdamW", close, ADAM_CLIP, why)


def mosaic_share(facts: Facts) -> float:
    """The share of mosaics, 0..1, in a short run.

    Pictures with few boxes need them from the start: with one box a picture little was learned without. Crowded ones
    lose more at the seams than they gain until they have been seen often, and so do weights that are fine-tuned.
    """
    start = 0.0 if facts.fine_tuning else min(MOSAIC * facts.images / max(facts.boxes, 1), 1.0)
    grown = min(max((facts.epochs - SHORT) / (GROWN - SHORT), 0.0), 1.0)
    return round(start + (1 - start) * grown, 2)
