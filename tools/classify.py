"""Classify an image with a published MobileViT: `python tools/classify.py image.jpg --weights mobilevit_xxs.pt`.

The image is prepared as the weights were tested: for CVNets' the short side 288, bilinear, BGR; for timm's 284
(256 / 0.9), bicubic, RGB; for both the middle 256 x 256, in 0..1, not normalized.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import Config, argument, check_cli, flag, run_script


@dataclass(frozen=True)
class ClassifyConfig(Config):
    """Print the five most probable ImageNet classes of an image, by a published MobileViT.

    Example: image.jpg --weights mobilevit_xxs.pt
    """

    image: str = argument("image file")
    weights: str = flag("", "MobileViT weights of CVNets or timm: .pt, .pth, .safetensors, or timm:NAME (a download)")


if __name__ == "__main__":
    check_cli(ClassifyConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging

import numpy as np
import torch
from torch import Tensor
from torchvision.models import MobileNet_V3_Small_Weights
from torchvision.transforms import functional as transforms

from models.mobilevit import SIZES, MobileViT, from_checkpoint, from_published
from models.weights.imagenet import read_published
from utils.images import imread

LOGGER = logging.getLogger(__name__)
TOP = 5
CROP = 256
SHORT_SIDE = {"BGR": 288, "RGB": 284}  # by color order, which CVNets and timm differ in
RESIZE = {"BGR": transforms.InterpolationMode.BILINEAR, "RGB": transforms.InterpolationMode.BICUBIC}


def load_classifier(source: str) -> MobileViT:
    """The classifier in `source`, of the size that its head has.

    Raises:
        FileNotFoundError, ImportError, ValueError: see read_published; no classifier in it.
    """
    state = read_published(source)
    try:
        head = from_published(state).get("classifier.weight")
        width = head.shape[1] if head is not None and head.ndim == 2 else 0
        size = next((name for name, spec in SIZES.items() if spec.last == width), "")
        if not size:
            raise ValueError(
                f"no classifier of a MobileViT's width (expected one of {[s.last for s in SIZES.values()]})"
            )
        return from_checkpoint(size, state)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def prepare(image: np.ndarray, color_order: str) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, 256, 256) in 0..1 in `color_order`, RGB or BGR."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    pixels = transforms.resize(pixels, [SHORT_SIDE[color_order]], RESIZE[color_order], antialias=True)
    pixels = transforms.center_crop(pixels, [CROP, CROP]).float()[None] / 255
    return pixels.flip(1) if color_order == "BGR" else pixels


@torch.inference_mode()
def main(cfg: ClassifyConfig) -> list[tuple[str, float]]:
    """Print and return the top five (class, probability), best first.

    Raises:
        FileNotFoundError, ImportError, ValueError: image or weights missing or unusable.
    """
    if not cfg.weights:
        raise ValueError("--weights is missing, expected a MobileViT file or timm:NAME (see docs/weights.md)")
    image = imread(cfg.image)
    model = load_classifier(cfg.weights)
    scores = model(prepare(image, model.color_order))[0].softmax(dim=0)
    names = MobileNet_V3_Small_Weights.DEFAULT.meta["categories"]  # torchvision's list of ImageNet's classes
    if len(scores) != len(names):
        names = [str(i) for i in range(len(scores))]
    best = scores.topk(min(TOP, len(scores)))
    top = [(names[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
    for name, probability in top:
        LOGGER.info(f"{probability:7.2%}  {name}")
    return top


if __name__ == "__main__":
    run_script(main, ClassifyConfig)
