"""A detector with every kind of block that is hard to export, small enough to be exported in a second or two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from models.weights.checkpoint import Checkpoint, save_checkpoint
from models.yolo import DetectionModel
from utils.images import imwrite

NAMES = {0: "cat", 1: "Bär", 2: "dog"}
CFG = {
    "nc": 3,
    "anchors": [[10, 12, 24, 20], [40, 30, 50, 64]],
    "backbone": [
        [-1, 1, "Focus", [16, 3]],
        [-1, 1, "MV2Block", [16, 2, 2]],
        [-1, 1, "MV2Block", [24, 2, 2]],
        [-1, 1, "MobileViTBlock", [24, 16, 1]],
        [-1, 1, "MV2Block", [32, 2, 2]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [[-1, 3], 1, "Concat", [1]],
        [[6, 4], 1, "Detect", ["nc", "anchors"]],
    ],
}


def tiny_model(seed: int = 0) -> DetectionModel:
    """In eval mode; it finds something in nearly every cell, with scores spread over 0..1."""
    torch.manual_seed(seed)
    model = DetectionModel(CFG)
    model.names = dict(NAMES)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain mean: statistics that fit, so that activations neither fade nor grow
    with torch.no_grad():
        for _ in range(4):
            model(torch.nn.functional.interpolate(torch.rand(8, 3, 7, 7), (128, 128)))
        for conv in model.head.m:
            bias = conv.bias.view(model.head.na, model.head.no)
            bias[:, 4:] = 1.0
    return model.eval()


def write_tiny(folder: Path) -> Path:
    """tiny.pt and three images in `folder`/images; returns the checkpoint."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i, size in enumerate([(96, 128), (128, 128), (130, 90)]):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = np.kron(coarse, np.ones((22, 22, 1), np.uint8))[: size[0], : size[1]]
        imwrite(folder / "images" / f"{i}.png", np.ascontiguousarray(image))
    save_checkpoint(folder / "tiny.pt", Checkpoint.of(tiny_model()))
    return folder / "tiny.pt"
