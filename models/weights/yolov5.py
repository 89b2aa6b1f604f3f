"""YOLOv5's pickled checkpoints (v5 to v7, detection) as this project's: rows, names and a state dict.

`torch_file` reads the file as records; here the tree of module records becomes a state dict. The modules' settings
(strides, paddings, activations, ...) are compared with those that the rows build here, and a model that would compute
something else is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

from torch import Tensor

from models.plan import ModelPlan
from models.rows import ACTIVATIONS
from models.weights.safe_pickle import Record
from models.weights.transfer import check_fit
from models.yolo import NORM_EPS, plan_model
from utils.classes import class_names as read_names
from utils.plain_data import plain_data, state_dict
from utils.text import clean

MODELS = ("models.yolo.Model", "models.yolo.DetectionModel")
CFG_KEYS = ("nc", "depth_multiple", "width_multiple", "anchors", "ch", "activation", "backbone", "head")
MAX_MODULES = 20_000  # yolov5x has 567
MAX_DEPTH = 30
MAX_LEVELS = 32  # 3 or 4 in YOLOv5
MAX_NAME = 100  # characters of the name of a module or a tensor in its parent
MAX_ANCHORS = 1_000  # numbers of all levels; yolov5x has 18
SETTINGS = {  # attributes of a module that change what it computes and are not tensors
    "Conv2d": ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode"),
    "MaxPool2d": ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
    "Upsample": ("size", "scale_factor", "mode", "align_corners"),
    "ZeroPad2d": ("padding",),
    "LeakyReLU": ("negative_slope",),
    "MultiheadAttention": ("num_heads",),
    "Concat": ("d",),
    "Contract": ("gain",),
    "Expand": ("gain",),
    "Bottleneck": ("add",),
    "CrossConv": ("add",),
}
RENAMED = {"add": "skip"}  # attributes that have another name here
NO_OPS = ("Identity", "Dropout")  # modules that do nothing in eval mode


def holds_yolov5(content: Any) -> bool:
    """Whether the content that `torch_file.read` returned holds a pickled model."""
    return isinstance(content, Record) or isinstance(model_record(content), Record)


def model_record(content: Any) -> Any:
    """The model in a checkpoint's content: the averaged one where there is one."""
    if not isinstance(content, Mapping):
        return content
    return content["ema"] if isinstance(content.get("ema"), Record) else content.get("model")


def import_yolov5(content: Any) -> dict[str, Any]:
    """What `torch_file.read` returned -> yaml, names, model (state dict, float32) and plan of a checkpoint here.

    Raises:
        ValueError: not a YOLOv5 detection model of v5 to v7, or one whose layers compute something else here.
    """
    root = model_record(content)
    if not isinstance(root, Record) or root.name.removeprefix("yolov5.") not in MODELS:
        found = root.name if isinstance(root, Record) else type(root).__name__
        raise ValueError(
            f"it holds a {clean(found, 80)}, expected a YOLOv5 detection model (v5 to v7), models.yolo.Model"
        )
    modules = dict(walk(root))
    head = modules.get(f"model.{len(children(modules['model'])) - 1}") if "model" in modules else None
    if head is None or head.name.removeprefix("yolov5.") != "models.yolo.Detect":
        found = head.name if head else "nothing"
        raise ValueError(f"its head is {clean(found, 80)}, expected models.yolo.Detect (detection, not segmentation)")
    where = next(path for path, module in modules.items() if module is head)
    tensors = {f"{path}.{name}": t for path, module in modules.items() for name, t in own_tensors(module)}
    state_dict(tensors, "its model", "tensors")
    stride = level_numbers(attributes(head).get("stride"), attributes(root).get("stride"))
    anchors = tensors.pop(f"{where}.anchors", None)
    tensors.pop(f"{where}.anchor_grid", None)  # v5 has the anchors in pixels, too
    if anchors is None or anchors.ndim != 3 or len(anchors) != len(stride) or anchors.numel() > MAX_ANCHORS:
        raise ValueError("its Detect has no anchors, expected a buffer of (levels, anchors, 2)")
    if not anchors.isfinite().all():
        raise ValueError("the anchors of its Detect are infinite or no numbers, expected pixels")
    pixels = anchors.float() * stride.view(-1, 1, 1)  # kept in units of the stride there, in pixels here
    cfg = model_mapping(attributes(root), modules, pixels)
    state = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
    state |= {f"{where}.anchors": pixels, f"{where}.stride": stride}
    plan = plan_model(cfg)
    check_fit(plan, state)
    check_layers(plan, modules)
    names = class_names(attributes(root).get("names"), plan.yaml["nc"])
    return {"yaml": plan.yaml, "names": names, "model": state, "plan": plan}


def attributes(module: Record) -> dict[str, Any]:
    """The attributes of a module's record."""
    if not isinstance(module.state, dict):
        raise ValueError(f"its {clean(module.name, 80)} has no attributes")
    return module.state


def children(module: Record) -> dict[str, Any]:
    """The modules directly in a module."""
    found = attributes(module).get("_modules", {})
    if not isinstance(found, dict) or any(type(name) is not str or len(name) > MAX_NAME for name in found):
        raise ValueError(f"the modules of its {clean(module.name, 80)} are no mapping of names")
    return found


def walk(root: Record) -> Iterator[tuple[str, Record]]:
    """(path, module) of every module below `root`; the path is as in a state dict."""
    waiting: list[tuple[str, Any, int]] = [(name, child, 1) for name, child in children(root).items()]
    seen = 0
    while waiting:
        path, module, depth = waiting.pop()
        if module is None:  # registered without a module
            continue
        seen += 1
        if not isinstance(module, Record) or seen > MAX_MODULES or depth > MAX_DEPTH:
            raise ValueError("its modules do not form a tree of YOLOv5's size")
        yield path, module
        waiting.extend((f"{path}.{name}", child, depth + 1) for name, child in children(module).items())


def own_tensors(module: Record) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of a module's own parameters and buffers."""
    for kind in ("_parameters", "_buffers"):
        held = attributes(module).get(kind, {})
        if not isinstance(held, dict) or any(type(name) is not str or len(name) > MAX_NAME for name in held):
            raise ValueError(f"{kind} of its {clean(module.name, 80)} is no mapping of names")
        for name, value in held.items():
            if isinstance(value, Tensor):
                yield name, value
            elif value is not None:
                raise ValueError(
                    f"{kind} of its {clean(module.name, 80)} holds a {type(value).__name__}, expected tensors"
                )


def level_numbers(*candidates: Any) -> Tensor:
    """The first candidate that is a (levels,) tensor of positive numbers, as float32."""
    for value in candidates:
        if isinstance(value, Tensor) and value.ndim == 1 and 0 < len(value) <= MAX_LEVELS:
            numbers = value.float()
            if ((numbers > 0) & numbers.isfinite()).all():
                return numbers
    raise ValueError(f"it has no strides, expected a tensor of at most {MAX_LEVELS} positive numbers")


def as_lists(value: Any) -> Any:
    """Plain data with lists in place of tuples and words as keys, as a YAML has them."""
    if isinstance(value, list | tuple):
        return [as_lists(item) for item in value]
    if isinstance(value, dict):
        return {str(key): as_lists(item) for key, item in value.items()}
    return value


def model_mapping(state: dict[str, Any], modules: dict[str, Record], anchors: Tensor) -> dict[str, Any]:
    """The model mapping in this project's form, with the anchors and the activation of the modules."""
    cfg = as_lists(plain_data(state.get("yaml"), "its model mapping"))
    if not isinstance(cfg, dict):
        raise ValueError("it has no rows, expected a mapping 'yaml'")
    cfg = {key: cfg[key] for key in CFG_KEYS if cfg.get(key) is not None}
    cfg["anchors"] = [[int(n) if n == int(n) else n for n in level] for level in anchors.flatten(1).tolist()]
    file = state.get("yaml_file")
    cfg["name"] = clean(PurePath(file[:4096]).name, 80) if isinstance(file, str) else "YOLOv5"
    cfg |= norm_eps(modules)
    kinds = {
        module.name.rpartition(".")[2]: module
        for path, module in modules.items()
        if path.endswith(".act") and f"{path.removesuffix('act')}conv" in modules  # BottleneckCSP has its own
    }
    kinds = {name: module for name, module in kinds.items() if name not in NO_OPS}
    if "activation" not in cfg and len(kinds) == 1 and "SiLU" not in kinds:  # before v6.2 people edited the code
        (name, module), *_ = kinds.items()
        slope = attributes(module).get("negative_slope") if name == "LeakyReLU" else None
        if f"nn.{name}" in ACTIVATIONS:
            cfg["activation"] = f"nn.{name}({slope if type(slope) is float else ''})"
    return cfg


def norm_eps(modules: dict[str, Record]) -> dict[str, float]:
    """The key `norm_eps` of a model mapping, where the file's batch norms differ from this project's constant."""
    values = [attributes(m).get("eps") for m in modules.values() if m.name.endswith(".BatchNorm2d")]
    first = values[0] if values else NORM_EPS
    if type(first) is not float or any(type(value) is not float or value != first for value in values):
        raise ValueError("its batch norms do not agree on one eps")
    return {} if first == NORM_EPS else {"norm_eps": first}


def class_names(names: Any, nc: int) -> dict[int, str]:
    """Class index -> name, of a list or of a mapping in any order."""
    names = plain_data(names, "its names")
    if names is None:  # as YOLOv5 itself numbers them
        return {i: f"class{i}" for i in range(nc)}
    found = read_names(names, "its model", strict=False)
    if len(found) != nc:
        raise ValueError(f"its names do not fit its {nc} classes, there are {len(found)}")
    return found


def check_layers(plan: ModelPlan, modules: dict[str, Record]) -> None:
    """Raise ValueError unless the rows build the modules of the file."""
    built = {f"model.{path}": module for path, module in plan.layers.named_modules()}
    for path, module in modules.items():
        kind = module.name.rpartition(".")[2]
        if kind in NO_OPS:
            continue
        here = built.get(path)
        if module.name.startswith("torch.") and type(here).__name__ != kind and path != "model":
            found = type(here).__name__ if here is not None else "nothing"
            raise ValueError(
                f"{clean(path, 80)} is {clean(kind, 40)} in the file, {found} in the model that its rows build here"
            )
        for setting in SETTINGS.get(kind, ()):
            theirs = attributes(module).get(setting)
            ours = getattr(here, RENAMED.get(setting, setting), None)
            if not same_setting(theirs, ours):
                raise ValueError(
                    f"{clean(path, 80)} ({clean(kind, 40)}) has another {setting} in the file than in the model here"
                )


def same_setting(a: Any, b: Any) -> bool:
    """Equality of numbers, words and pairs; 5 and (5, 5) are the same."""
    a, b = (tuple(v) if isinstance(v, list | tuple) else v for v in (a, b))
    if isinstance(a, tuple) != isinstance(b, tuple):
        a, b = (v if isinstance(v, tuple) else (v, v) for v in (a, b))
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b)
    return type(a) in (bool, int, float, str, tuple, type(None)) and a == b
