"""YOLOX's published checkpoints as this project's: tensors renamed, the stem turned to RGB in 0..1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from models.weights.transfer import check_fit
from models.yolo import plan_model
from utils.files import REPO
from utils.text import clean

STEM = "backbone.backbone.stem.conv.conv.weight"
NEW_STEM = "model.0.conv.conv.weight"
STAGE = "backbone.backbone.dark2.1"
STRIDES = [8.0, 16.0, 32.0]
DEPTHWISE = "backbone.backbone.dark2.0.dconv.conv.weight"
ROWS = {  # name in YOLOX -> row of yolox-*.yaml
    "backbone.backbone.stem": 0,
    "backbone.backbone.dark2.0": 1,
    "backbone.backbone.dark2.1": 2,
    "backbone.backbone.dark3.0": 3,
    "backbone.backbone.dark3.1": 4,
    "backbone.backbone.dark4.0": 5,
    "backbone.backbone.dark4.1": 6,
    "backbone.backbone.dark5.0": 7,
    "backbone.backbone.dark5.1": 8,
    "backbone.backbone.dark5.2": 9,
    "backbone.lateral_conv0": 10,
    "backbone.C3_p4": 13,
    "backbone.reduce_conv1": 14,
    "backbone.C3_p3": 17,
    "backbone.bu_conv2": 18,
    "backbone.C3_n3": 20,
    "backbone.bu_conv1": 21,
    "backbone.C3_n4": 23,
    "head": 24,
}
PARTS = {  # of the names below a row
    "conv1": "cv1",
    "conv2": "cv2",
    "conv3": "cv3",
    "dconv": "0",
    "pconv": "1",
    "cls_convs": "class_towers",
    "reg_convs": "box_towers",
    "cls_preds": "classes",
    "reg_preds": "boxes",
    "obj_preds": "objectness",
}
COCO = """person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, backpack, umbrella, handbag,
tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard,
tennis racket, bottle, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop, mouse, remote,
keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock, vase, scissors, teddy bear,
hair drier, toothbrush"""  # the 80 classes of the published weights, which the files do not name


def holds_yolox(content: Any) -> bool:
    """Whether what `torch_file.read` returned holds YOLOX's state dict."""
    state = content.get("model") if isinstance(content, Mapping) else None
    return isinstance(state, Mapping) and STEM in state


def import_yolox(content: Any) -> dict[str, Any]:
    """What `torch_file.read` returned -> yaml, names, model (state dict, float32) and plan of a checkpoint here.

    Raises:
        ValueError: something other than tensors, or not a network of YOLOX's sizes.
    """
    state = content["model"]
    if not all(isinstance(name, str) and isinstance(t, Tensor) for name, t in state.items()):
        raise ValueError("its 'model' holds something other than tensors")
    plan = plan_model(REPO / "models" / f"yolox-{size_of(state)}.yaml", nc=class_count(state))
    cfg = plan.yaml
    cfg["name"] = plan.where
    renamed = {new_name(name): t.float() if t.is_floating_point() else t for name, t in state.items()}
    renamed["model.24.stride"] = torch.tensor(STRIDES)
    check_fit(plan, renamed)
    renamed[NEW_STEM] = rgb_stem(renamed[NEW_STEM])
    names = COCO.replace("\n", " ").split(", ")
    if cfg["nc"] != len(names):
        names = [f"class{i}" for i in range(cfg["nc"])]
    return {"yaml": cfg, "names": dict(enumerate(names)), "model": renamed, "plan": plan}


def size_of(state: Mapping[str, Tensor]) -> str:
    """The size, a word of yolox-*.yaml, by the widths, the depth and the kind of the first layers.

    Raises:
        ValueError: another one.
    """
    blocks = len({name.split(".")[5] for name in state if name.startswith(f"{STAGE}.m.") and name.count(".") > 5})
    found = (len(state[STEM]) if state[STEM].ndim else 0, blocks, DEPTHWISE in state)
    sizes = {"nano": (16, 1, True), "tiny": (24, 1, False), "s": (32, 1, False), "m": (48, 2, False)}
    sizes |= {"l": (64, 3, False), "x": (80, 4, False)}
    for size, expected in sizes.items():
        if found == expected:
            return size
    raise ValueError(
        f"a YOLOX whose stem has {found[0]} channels and whose first stage has {found[1]} blocks, "
        f"expected one of the sizes {', '.join(sizes)}"
    )


def class_count(state: Mapping[str, Tensor]) -> int:
    """The number of classes, by the last layer.

    Raises:
        ValueError: it is not there.
    """
    bias = state.get("head.cls_preds.0.bias")
    if bias is None or bias.ndim != 1 or not len(bias):
        raise ValueError("its head has no cls_preds.0.bias, expected a YOLOX detector")
    return len(bias)


def new_name(name: str) -> str:
    """A tensor's name in YOLOX -> its name in a model of this project.

    Raises:
        ValueError: not a name of YOLOX.
    """
    for old, row in ROWS.items():
        if name.startswith(f"{old}."):
            words = name.removeprefix(f"{old}.").split(".")
            return ".".join(["model", str(row), *(PARTS.get(word, word) for word in words)])
    raise ValueError(f"its tensor {clean(name, 80)} is none of a YOLOX detector")


def rgb_stem(weight: Tensor) -> Tensor:
    """The weights (c, 4*3, k, k) of a Focus stem for BGR in 0..255 -> those for RGB in 0..1, which give the same."""
    return weight.unflatten(1, (4, 3)).flip(2).flatten(1, 2) * 255
