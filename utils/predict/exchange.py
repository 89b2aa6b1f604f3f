"""Detections as objects of other packages: supervision, FiftyOne. Each package is imported when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from utils.optional import import_optional

if TYPE_CHECKING:
    import fiftyone
    import supervision


def to_supervision(rows: Tensor, names: Sequence[str]) -> supervision.Detections:
    """The detections of one image as supervision has them.

    Args:
        rows: (n, 6) corners in pixels, score and class. names: of the class of each row.

    Returns:
        xyxy (n, 4) and confidence (n,) float32, class_id (n,) int, data['class_name'] (n,) text.

    Raises:
        ImportError: the package is not installed.
    """
    package = import_optional("supervision", "requirements-supervision.txt")
    table = rows.numpy()
    return package.Detections(
        xyxy=table[:, :4].copy(),
        confidence=table[:, 4].copy(),
        class_id=table[:, 5].astype(int),
        data={"class_name": np.array(names, dtype=str)},
    )


def to_fiftyone(rows: Tensor, names: Sequence[str]) -> fiftyone.Detections:
    """The detections of one image as FiftyOne has them; usage reports of the package stay off unless they are set.

    Args:
        rows: (n, 6) corners in 0..1, score and class. names: of the class of each row.

    Returns:
        one Detection per row with label, confidence, and bounding_box: left, top, width, height in 0..1.

    Raises:
        ImportError: the package is not installed.
    """
    os.environ.setdefault("FIFTYONE_DO_NOT_TRACK", "true")  # before the import, which would report itself
    package = import_optional("fiftyone", "requirements-fiftyone.txt")
    found = []
    for (x1, y1, x2, y2, score, _), name in zip(rows.tolist(), names, strict=True):
        box = [x1, y1, x2 - x1, y2 - y1]
        found.append(package.Detection(label=name, bounding_box=box, confidence=score))
    return package.Detections(detections=found)
