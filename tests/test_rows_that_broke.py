"""Rows of models that a fuzzing run found: each once ended in a traceback, or in an error that was long or unclean."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from models.yolo import DetectionModel
from tools.fuzz_models import fuzz_rows


@pytest.mark.parametrize("seed", [7670, 9287, 9650, 13264, 14274, 14354, 14685, 15182, 17743])
def test_an_input_that_once_broke(seed: int, tmp_path: Path) -> None:
    fuzz_rows(random.Random(seed), tmp_path)


@pytest.mark.parametrize("anchors", [[[8, 8]] * 60, "\ud800\x1b[31m", [[8, -8]], 5])
def test_wrong_anchors_are_one_short_line(anchors: object) -> None:
    rows = {"nc": 2, "anchors": anchors, "backbone": [[-1, 1, "Conv", [8, 3, 2]]]}
    with pytest.raises(ValueError, match="anchors") as got:
        DetectionModel(rows | {"head": [[[0], 1, "Detect", ["nc", "anchors"]]]})
    assert len(str(got.value)) < 400 and str(got.value).isprintable()
