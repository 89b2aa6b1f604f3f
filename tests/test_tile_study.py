"""tools/tile_study.py: what it trains and measures, and the enlarged copy of a data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from data_sets import noise, to_boxes, write_set

import train
import val
from tools import tile_study
from utils.data.data_yaml import read_data_yaml
from utils.images import imread


def test_four_figures_of_each_network_and_no_run_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []

    def finish(cfg: train.TrainConfig) -> None:
        asked.append((cfg.cfg or cfg.weights, cfg.tile_train, cfg.seed))
        folder = Path(cfg.project) / cfg.name
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text("{}")

    def figures(cfg: val.ValConfig) -> SimpleNamespace:
        value = 0.1 + 0.2 * (cfg.tile > 0) + 0.4 * ("tiles64" in cfg.weights) + 0.02 * ("-s1" in cfg.weights)
        return SimpleNamespace(coco=dict.fromkeys(tile_study.COLUMNS, value) | {"APs": -1.0})

    monkeypatch.setattr(train, "main", finish)
    monkeypatch.setattr(val, "main", figures)
    data = write_set(tmp_path / "set", [noise((40, 50), 0)], [to_boxes()], ["a"])
    cfg = tile_study.TileStudyConfig(
        data=str(data), cfg=("one.yaml", "two.yaml"), tile=64, seeds=(0, 1), project=str(tmp_path / "out")
    )
    for _ in range(2):
        tile_study.main(cfg)
    assert asked == [(f"{n}.yaml", tile, seed) for n in ("one", "two") for tile in (0, 64) for seed in (0, 1)]
    text = capsys.readouterr().out
    assert (tmp_path / "out" / "table.md").read_text() in text
    for trained_on, measured_on, mean in (
        ("whole", "whole", 0.11), ("whole", "tiles", 0.31), ("tiles", "whole", 0.51), ("tiles", "tiles", 0.71),
    ):  # fmt: skip
        assert f"| two | {trained_on} | {measured_on} | - | {mean:.3f} ± 0.010 |" in text
    asked.clear()
    tile_study.main(replace(cfg, weights="own.pt", seeds=(0,)))  # in place of the networks
    assert asked == [("own.pt", 0, 0), ("own.pt", 64, 0)]
    with pytest.raises(ValueError, match="--data is missing"):
        tile_study.main(tile_study.TileStudyConfig())


def test_the_enlarged_copy_has_the_same_boxes_in_larger_images(tmp_path: Path) -> None:
    image, boxes = noise((40, 50), 1), to_boxes([0, 5, 5, 20, 30], [1, 30, 10, 44, 33])
    data = str(write_set(tmp_path / "set", [image, image], [boxes, to_boxes()], ["a", "b"]))
    copy = tile_study.enlarge(data, 2, tmp_path / "x2")
    for split in ("train", "val"):
        old, new = (read_data_yaml(path).scan(split) for path in (data, copy))
        assert np.array_equal(new.sizes, 2 * old.sizes) and new.sizes.tolist() == [[80, 100]] * 2
        np.testing.assert_allclose(new.xywhn, old.xywhn, atol=1e-6)
        assert np.array_equal(new.label, old.label) and np.array_equal(new.offsets, old.offsets)
    assert imread(tmp_path / "x2" / "images" / "val" / "000000.png").shape == (80, 100, 3)
    before = (tmp_path / "x2" / "data.yaml").stat().st_mtime_ns
    assert tile_study.enlarge(data, 2, tmp_path / "x2") == copy
    assert (tmp_path / "x2" / "data.yaml").stat().st_mtime_ns == before
