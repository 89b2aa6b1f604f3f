"""Hyperparameters with YOLOv5's names, and the range of each."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from utils.config import Bounds
from utils.files import read_yaml
from utils.text import clean, first

POSITIVE = Bounds(above=0)


def number(default: float, bounds: Bounds = Bounds(low=0)) -> Any:  # noqa: B008 (it is frozen)
    """A field of Hyp, which is at least 0 by default."""
    return field(default=default, metadata={"bounds": bounds})


def fraction(default: float) -> Any:
    """A field of Hyp in 0..1."""
    return number(default, Bounds(low=0, high=1))


@dataclass(frozen=True)
class HeadFactors:
    """What a head's recipe for short runs differs in: factors of its learning rate, loss gains and gradient limit.

    They are fitted on one data set with the recipes of tools/recipes.yaml, see docs/heads.md.
    """

    lr: float = 1.0
    box: float = 1.0
    obj: float = 1.0
    cls: float = 1.0
    clip: float = 1.0


NO_FACTORS = HeadFactors()


@dataclass(frozen=True)
class Hyp:
    """Hyperparameters; the defaults are those of `hyp.scratch-low.yaml`.

    Raises:
        ValueError: a value is not a number or out of range.
    """

    lr0: float = number(0.01)  # learning rate after warm-up (SGD 1e-2, Adam 1e-3)
    lrf: float = number(0.01)  # the last learning rate is lr0 * lrf
    momentum: float = fraction(0.937)  # SGD momentum, Adam beta1
    weight_decay: float = number(0.0005)
    warmup_epochs: float = number(3.0)
    warmup_min_steps: int = number(100)  # warm-up lasts at least this many batches
    warmup_momentum: float = fraction(0.8)
    warmup_bias_lr: float = number(0.1)  # learning rate of biases at the start of warm-up
    ema_decay: float = fraction(0.9999)  # of the averaged weights (EMA) at each update, after the ramp
    ema_ramp: float = number(2000.0, POSITIVE)  # updates after which the decay is 63 % of ema_decay
    nominal_batch: int = number(64, POSITIVE)  # gradients are accumulated up to about this many images
    norm_momentum: float = fraction(0.03)  # momentum of batch norms: the fraction of each batch in their statistics
    box: float = number(0.05)  # box loss gain, for 3 levels
    cls: float = number(0.5)  # class loss gain, for 80 classes and 3 levels
    cls_pw: float = number(1.0)  # weight of positives in the class loss
    obj: float = number(1.0)  # objectness loss gain, for 640 px and 3 levels
    obj_pw: float = number(1.0)  # weight of positives in the objectness loss
    iou_t: float = number(0.20)  # read for compatibility, unused
    anchor_t: float = number(4.0, POSITIVE)  # a box matches an anchor if no side differs by more than this factor
    fl_gamma: float = number(0.0)  # focal loss gamma; 0 is plain BCE
    hsv_h: float = fraction(0.015)  # hue, fraction of the circle
    hsv_s: float = fraction(0.7)  # saturation, fraction
    hsv_v: float = fraction(0.4)  # brightness (value), fraction
    degrees: float = number(0.0)  # rotation, +/- degrees
    translate: float = fraction(0.1)  # translation, +/- fraction of the side
    scale: float = fraction(0.5)  # zoom, 1 +/- fraction
    shear: float = number(0.0)  # +/- degrees
    perspective: float = number(0.0)  # +/- fraction, useful up to 0.001
    flipud: float = fraction(0.0)  # probability
    fliplr: float = fraction(0.5)  # probability
    mosaic: float = fraction(1.0)  # probability
    mixup: float = fraction(0.0)  # probability, only of mosaics
    copy_paste: float = fraction(0.0)  # probability of a box to be pasted once more, mirrored

    def __post_init__(self) -> None:
        for f in fields(self):
            f.metadata["bounds"].check(getattr(self, f.name), f.name)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Hyp:
        """Read a hyp YAML; keys left out keep their defaults.

        Raises:
            ValueError: an unknown key, a value that is not a number or out of range, with the file's name.
        """
        values, keys = read_yaml(path), {f.name for f in fields(cls)}
        unknown = sorted(str(key) for key in set(values) - keys)
        if unknown:
            named = first([clean(key, 40) for key in unknown])
            near = ", ".join(get_close_matches(unknown[0][:40], sorted(keys), n=8, cutoff=0))
            which = f"unknown key{'s' * (len(unknown) > 1)} {named}"
            raise ValueError(f"{first([path])}: {which}, expected: keys such as {near}")
        try:
            return cls(**values)
        except ValueError as error:
            raise ValueError(f"{first([path])}: {clean(error)}") from error

    def as_dict(self) -> dict[str, float]:
        return asdict(self)
