"""Confidence thresholds that a validation chose, as checkpoints and exported files carry them."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from utils.plain_data import plain_data, refusal
from utils.text import clean

LOGGER = logging.getLogger(__name__)
NEAR_BEST_F1 = "near the best F1"  # the rule where no precision or recall is asked for
AUTO = "auto"  # the word for the stored threshold, where a number is expected
GENERIC = ("data", "dataset")  # names of data YAMLs that say nothing without their folder


@dataclass(frozen=True)
class Thresholds:
    """Confidence thresholds for one model; detections with a higher confidence are kept.

    Attributes:
        confidence: for all classes. per_class: class name -> its own, of the classes with right detections.
        rule: how they were chosen, in words. data: the split that they were chosen on.
        precision, recall, f1: there, above `confidence`, at IoU 0.5; of NEAR_BEST_F1 means over classes, else of the
            boxes of all classes together.
    """

    confidence: float
    rule: str = NEAR_BEST_F1
    data: str = ""
    precision: float = 0.0
    recall: float = 0.0
    f1: float = 0.0
    per_class: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for checkpoints, metrics.json and the metadata of exported files."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any, where: str) -> Thresholds:
        """The inverse of `as_dict`, for data of files; other keys are ignored.

        Raises:
            ValueError: not such data; starts with `where`.
        """
        values = plain_data({"thresholds": values}, where)["thresholds"]
        if type(values) is not dict or "confidence" not in values:
            raise refusal(where, ("thresholds",), "has no confidence", "a mapping with one")
        known = {f.name: values[f.name] for f in fields(cls) if f.name in values}
        own = known.get("per_class", {})
        if type(own) is not dict or not all(type(name) is str for name in own):
            raise refusal(where, ("thresholds", "per_class"), "is something else", "a mapping of class names")
        numbers = [(name, known[name]) for name in ("confidence", "precision", "recall", "f1") if name in known]
        for name, value in (*numbers, *own.items()):
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise refusal(where, ("thresholds", name), f"is {clean(value, 40)}", "a number from 0 to 1")
        for name in ("rule", "data"):
            if type(known.get(name, "")) is not str:
                raise refusal(where, ("thresholds", name), f"is {clean(known[name], 40)}", "a word")
        return cls(**known)

    def __str__(self) -> str:
        """'0.381 (near the best F1 on my.yaml, val: precision 0.81, recall 0.77)'."""
        where = f" on {clean(self.data, 120)}" if self.data else ""
        scores = f"precision {self.precision:.2f}, recall {self.recall:.2f}"
        return f"{self.confidence:g} ({clean(self.rule, 60)}{where}: {scores})"


def split_name(data: str | Path, split: str) -> str:
    """'my.yaml, val'; with the folder where the file's name says nothing: 'bccd/data.yaml, val'."""
    path = Path(data)
    name = f"{path.resolve().parent.name}/{path.name}" if path.stem in GENERIC else path.name
    return f"{name}, {split}"


def confidence_threshold(asked: float | str, stored: Thresholds | None, file: str, what: str = "--conf-thres") -> float:
    """The number that was `asked` for; for AUTO the threshold stored in the weights, which is logged.

    Args:
        stored: what the weights carry. file: their name, for messages. what: the setting's name.

    Raises:
        ValueError: AUTO, and nothing is stored; another word.
    """
    if not isinstance(asked, str):
        return asked
    if asked != AUTO:
        raise ValueError(f"{what} {clean(asked, 40)}: expected a number from 0 to 1, or {AUTO}")
    if stored is None:
        raise ValueError(
            f"{what} {AUTO}: {file}: no threshold is stored there; expected one checkpoint after "
            "`val.py --weights best.pt --data my.yaml --save-thresholds`, a file exported from it, or a number"
        )
    LOGGER.info(f"confidence threshold of {file}: {stored}")
    return stored.confidence
