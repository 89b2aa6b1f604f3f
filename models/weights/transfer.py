"""Transfer of weights from one model to another, and freezing of layers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from models.cost import MAX_GRID
from models.heads import Head
from models.plan import ModelPlan
from models.yolo import DetectionModel
from utils.classes import ClassMatch, short
from utils.text import clean, counted

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class TransferReport:
    """Which tensors were copied, and why the others were not.

    Attributes:
        parts: backbone, neck, head -> (tensors copied, tensors in all). skipped: tensor that was not copied -> reason.
        boxes: the head's boxes and objectness were transferred. classes: names of the classes that were.
        by_rows: the head has other classes, so that only rows of its tensors were copied.
        reordered: the head has the same classes in another order, so that its rows were copied by name.
        new: names of the classes that start from random weights.
    """

    parts: dict[str, tuple[int, int]]
    skipped: dict[str, str]
    boxes: bool = False
    classes: tuple[str, ...] = ()
    by_rows: bool = False
    reordered: bool = False
    new: tuple[str, ...] = ()

    @property
    def copied(self) -> int:
        return sum(count for count, _ in self.parts.values())

    def share(self, part: str) -> float:
        """How much of a part was copied, 0..1."""
        copied, count = self.parts[part]
        return copied / max(count, 1)

    def text(self, source: str, verbose: bool = False) -> str:
        """A line of counts and lines on the classes, for the log; with `verbose` every tensor that was not copied."""
        total = sum(count for _, count in self.parts.values())
        parts = ", ".join(f"{part} {copied}/{count}" for part, (copied, count) in self.parts.items())
        lines = [f"transferred {self.copied}/{total} tensors ({parts}) from {source}"]
        if self.reordered:
            count = counted(len(self.classes), "class", "classes")
            lines.append(f"the data has the classes in another order: the head's rows of {count} follow it")
        if self.by_rows:
            lines.append(f"{self.class_text()}; boxes and objectness of the head are transferred")
        elif self.skipped and not verbose:
            count = counted(len(self.skipped), "tensor starts", "tensors start")
            lines.append(f"{count} from new values (--verbose names them)")
        if verbose:
            lines += [f"  not transferred: {clean(name, 80)} ({why})" for name, why in self.skipped.items()]
        return "\n".join(lines)

    def class_text(self) -> str:
        """Which classes are new and which are known, by name."""
        new = f"{counted(len(self.new), 'new class', 'new classes')}: {short(self.new)}"
        if not self.classes:
            return f"all classes are new to the weights ({short(self.new)})"
        known = f"{counted(len(self.classes), 'class', 'classes')} known by name: {short(self.classes)}"
        return f"{new}; {known}" if self.new else known


def transfer(model: DetectionModel, state: Mapping[str, Tensor], skip: Iterable[str] = ()) -> TransferReport:
    """Copy into `model` the tensors of `state` that fit by name and shape.

    Args:
        skip: names of tensors that are not copied. Strides never are: they follow from the rows.
    """
    derived = f"model.{len(model.model) - 1}.stride"
    own = {name: t for name, t in model.state_dict().items() if name != derived}
    skip = set(skip)
    fitting = {name: state[name] for name, t in own.items() if name in state and state[name].shape == t.shape}
    fitting = {name: t for name, t in fitting.items() if name not in skip}
    model.load_state_dict(fitting, strict=False)
    parts = {"backbone": (0, 0), "neck": (0, 0), "head": (0, 0)}
    for name in own:
        copied, count = parts[part_of(model, name)]
        parts[part_of(model, name)] = (copied + (name in fitting), count + 1)
    skipped = {name: reason(name, t, state, skip) for name, t in own.items() if name not in fitting}
    return TransferReport(parts, skipped)


def fine_tune(model: DetectionModel, source: DetectionModel, skip: Iterable[str] = ()) -> TransferReport:
    """`transfer`, and where heads differ only in their classes, the rows that they share.

    These are the rows of boxes and objectness, and those of classes with the same name; the number of a class does not
    matter.
    """
    own, other = model.head, source.head
    match, state = ClassMatch(source.names, model.names), source.state_dict()
    other_classes, reordered = match.agreement in ("partial", "different"), match.agreement == "reordered"
    if reordered and type(own) is type(other):
        state |= reordered_rows(source, match.index)
    same_size = [name for name, *_ in class_tensors(model)] if other_classes and own.nc == other.nc else []
    report = transfer(model, state, [*skip, *same_size])
    skipped = report.skipped | {name: "other classes" for name in same_size if name in report.skipped}
    report = replace(report, skipped=skipped, reordered=reordered and report.share("head") > 0.5)
    if report.share("neck") < 1 or not differ_in_classes_only(own, other):
        return report
    if other_classes:
        for (_, to, to_class), (_, of, of_class) in zip(class_tensors(model), class_tensors(source), strict=True):
            copy_rows(to, to_class, of, of_class, {-1: -1} | match.index)
    classes = tuple(model.names[i] for i in match.index)
    new = tuple(name for i, name in model.names.items() if i not in match.index)
    return replace(report, boxes=True, classes=classes, by_rows=other_classes, new=new)


def differ_in_classes_only(a: Head, b: Head) -> bool:
    """Whether two heads have the same layers and decoding but for the classes."""
    if type(a) is not type(b) or a.settings() != b.settings():
        return False
    if a.anchors is not None and not torch.equal(a.anchors, cast(Tensor, b.anchors)):
        return False
    by_class = {id(conv) for head in (a, b) for conv, _ in head.class_rows()}
    shapes = [
        [t.shape for m in head.modules() if id(m) not in by_class for t in m.parameters(False)] for head in (a, b)
    ]
    inputs = zip(a.class_rows(), b.class_rows(), strict=True)
    return shapes[0] == shapes[1] and all(x.in_channels == y.in_channels for (x, _), (y, _) in inputs)


def class_tensors(model: DetectionModel) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name and value of each tensor of the head that depends on the classes, and the class of its rows; -1: of none."""
    names = {id(module): name for name, module in model.named_modules()}
    for conv, classes in model.head.class_rows():
        for kind, tensor in conv.named_parameters():
            yield f"{names[id(conv)]}.{kind}", tensor, classes


@torch.no_grad()
def copy_rows(to: Tensor, to_class: Tensor, of: Tensor, of_class: Tensor, pairs: Mapping[int, int]) -> None:
    """Copy the rows of `of` to those of `to` whose classes are a pair, in order.

    Args:
        to_class, of_class: class of each row of `to` and of `of`. pairs: class in `to` -> class in `of`.
    """
    for a, b in pairs.items():
        to[to_class == a] = of[of_class == b]


def reordered_rows(model: DetectionModel, pairs: Mapping[int, int]) -> dict[str, Tensor]:
    """The tensors of the head that depend on the classes, with the rows of class `pairs[i]` in the place of class i."""
    found = {}
    for name, tensor, classes in class_tensors(model):
        found[name] = tensor.detach().clone()
        copy_rows(found[name], classes, tensor, classes, pairs)
    return found


def freeze(model: DetectionModel, numbers: tuple[int, ...]) -> list[nn.Module]:
    """Freeze the first n layers (a single number) or the layers listed; returns them, to be kept in eval mode as well.

    Raises:
        ValueError: no such layer, or all parameters would be frozen.
    """
    count = len(model.model)
    if len(numbers) == 1 and not 0 <= numbers[0] <= count:
        raise ValueError(f"--freeze {numbers[0]}: expected a number of layers, 0..{count}")
    chosen = range(numbers[0]) if len(numbers) == 1 else numbers
    bad = [i for i in chosen if not 0 <= i < count]
    if bad:
        raise ValueError(f"--freeze {bad[-1]}: no such layer, expected 0..{count - 1}")
    layers = [model.model[i] for i in chosen]
    for layer in layers:
        layer.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"--freeze {' '.join(str(n) for n in numbers)}: nothing is left to train")
    if layers:
        LOGGER.info(f"frozen: layers {', '.join(str(i) for i in chosen)}")
    return layers


def part_of(model: DetectionModel, name: str) -> str:
    """The part of a tensor `model.{row}. ...`: the YAML's backbone; the head, its last row; between them the neck."""
    row = int(name.split(".")[1])
    if row < len(model.yaml["backbone"]):
        return "backbone"
    return "head" if row == len(model.model) - 1 else "neck"


def reason(name: str, own: Tensor, state: Mapping[str, Tensor], skip: set[str]) -> str:
    """Why the tensor `name` of a model was not copied from `state`."""
    if name in skip:
        return "kept"
    if name not in state:
        return "not in the file"
    return f"{shape(state[name])} in the file, {shape(own)} in the model"


def shape(tensor: Tensor) -> str:
    """'16x3x3x3', for messages."""
    return "x".join(map(str, tensor.shape)) or "one number"


def check_fit(plan: ModelPlan, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless `state` has exactly the tensors of a planned network, and strides; allocates nothing."""
    shapes = plan.shapes
    wrong = sorted(name for name in shapes.keys() | state.keys() if shape_in(state, name) != shapes.get(name))
    if wrong:
        name = wrong[0]
        count = counted(len(wrong), "tensor does", "tensors do")
        raise ValueError(
            f"{plan.where}: {count} not fit the rows, the first is {clean(name, 80)}: "
            f"{clean(shape_in(state, name), 60)} in the file, {shapes.get(name)} in the model"
        )
    strides = state[f"model.{len(plan.rows) - 1}.stride"]
    if not ((strides > 0) & (strides <= MAX_GRID)).all():  # NaN is neither
        found = clean(strides.tolist(), 80)
        raise ValueError(f"{plan.where}: its strides are {found}, expected more than 0 and at most {MAX_GRID:,} pixels")


def shape_in(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    """The shape of a tensor; None if it is not in `state`."""
    return tuple(state[name].shape) if name in state else None
