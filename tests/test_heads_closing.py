"""YOLOX's L1 loss: by hand, only in the last epochs without mosaic, exact after an interruption; heads' recipes."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runs import stop_after
from test_heads import ROWS, network, small_model, some_targets, two_images
from torch.testing import assert_close

import train
from models.heads import HEADS, Decoupled
from models.weights.checkpoint import load_checkpoint
from models.yolo import DetectionModel
from utils.boxes import Targets
from utils.hyp import HeadFactors, Hyp
from utils.loss_simota import SimOtaLoss
from utils.train.recipe import RunInfo, choose_recipe

SMALL = RunInfo(images=205, boxes=2500, epochs=30, batch_size=16)


def with_l1() -> dict[str, Any]:
    cfg = network("Decoupled")
    cfg["head"][-1][3] = ["nc", {"l1": True}]
    return cfg


def test_the_l1_loss_by_hand() -> None:
    """One box of 16 x 12 px around (20, 12); raw maps of 0 in which cell (row 1, column 2) of stride 8 is the surest.

    The sum of the greatest IoUs is below 2, so that one cell is responsible. It predicts its corner and a size of one
    stride; wanted are a center 20/8, 12/8 strides from the image's corner and a size of 2, 1.5 strides.
    """
    target = Targets(torch.tensor([0]), torch.tensor([0]), torch.tensor([[20 / 64, 12 / 64, 16 / 64, 12 / 64]]))
    maps = torch.zeros(1, 5 + 1, 8, 8)
    maps[:, 4:] = -9.0
    maps[0, 4:, 1, 2] = 9.0
    wanted = (20 / 8 - 2) + (12 / 8 - 1) + math.log(2) + math.log(1.5)

    plain = SimOtaLoss(torch.tensor([8.0]), 1, Hyp(nominal_batch=1))
    criterion = SimOtaLoss(torch.tensor([8.0]), 1, Hyp(nominal_batch=1), l1=True)
    assert plain.names == ("box", "obj", "cls") and criterion.names == ("box", "obj", "cls", "l1")
    before, parts = criterion([maps], target)
    assert parts["l1"] == 0 and before == plain([maps], target)[0]
    plain.closing = criterion.closing = True
    closing, parts = criterion([maps], target)
    assert parts["l1"].item() == pytest.approx(wanted, rel=1e-5)
    assert closing.item() == pytest.approx(before.item() + wanted, rel=1e-5)
    assert plain([maps], target)[0] == before

    half = SimOtaLoss(torch.tensor([8.0]), 1, Hyp(nominal_batch=1, box=0.025), l1=True)
    half.closing = True
    assert half([maps], target)[1]["l1"].item() == pytest.approx(wanted / 2, rel=1e-5)


def test_the_l1_loss_is_zero_where_the_raw_numbers_are_those_of_the_box() -> None:
    target = Targets(torch.tensor([0]), torch.tensor([0]), torch.tensor([[20 / 64, 12 / 64, 16 / 64, 12 / 64]]))
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    rest = torch.zeros(8, 8)
    maps = torch.stack([20 / 8 - x, 12 / 8 - y, rest + math.log(2), rest + math.log(1.5), rest, rest])[None]
    criterion = SimOtaLoss(torch.tensor([8.0]), 1, Hyp(), l1=True)
    criterion.closing = True
    parts = criterion([maps], target)[1]
    assert parts["l1"].item() == pytest.approx(0, abs=1e-5) and parts["box"].item() == pytest.approx(0, abs=1e-5)


def test_processes_share_the_l1_loss() -> None:
    torch.manual_seed(0)
    model, targets = DetectionModel(with_l1()).eval(), some_targets()
    with torch.no_grad():
        raw = model(two_images())[1]
    counts: list[torch.Tensor] = []

    def loss(maps: list, own: Targets, reduce: Any) -> Any:
        criterion = model.head.criterion(Hyp(), 128, all_reduce_sum=reduce)
        criterion.closing = True
        return criterion(maps, own)[1]["l1"]

    whole = loss(raw, targets, lambda values: values)
    halves = []
    for i in range(2):
        own = targets[targets.image == i]
        halves.append(([level[i : i + 1] for level in raw], Targets(own.image * 0, own.label, own.xywhn)))
    for half in halves:
        loss(*half, lambda values: counts.append(values) or values)
    total = torch.stack(counts).sum(dim=0)
    assert_close(sum(loss(*half, lambda values: total) for half in halves), whole)


def test_l1_that_is_no_switch_is_refused() -> None:
    cfg = with_l1()
    cfg["head"][-1][3][1]["l1"] = 1
    with pytest.raises(ValueError, match=r"row 8: Decoupled: l1 1, expected true or false"):
        DetectionModel(cfg)


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "results.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_last_epochs_have_it_and_a_resumed_run_is_exact(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(with_l1()))
    base: dict[str, Any] = {"data": str(small_set), "cfg": str(tmp_path / "net.yaml"), "imgsz": 64, "device": "cpu"}
    base |= {"batch_size": 4, "workers": 0, "noplots": True, "project": str(tmp_path), "epochs": 3, "close_mosaic": 2}
    train.main(train.TrainConfig(name="whole", **base))
    whole = rows_of(tmp_path / "whole")
    for key in ("train/l1_loss", "val/l1_loss"):
        assert [float(row[key]) > 0 for row in whole] == [False, True, True]

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped by the test"):
        stop_after(patch, 2)
        train.main(train.TrainConfig(name="parts", **base))
    train.main(train.TrainConfig(resume=str(tmp_path / "parts"), device="cpu", workers=0))
    assert rows_of(tmp_path / "parts")[2]["train/l1_loss"] == whole[2]["train/l1_loss"]
    states = [load_checkpoint(tmp_path / name / "weights" / "last.pt").model for name in ("whole", "parts")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_run_whose_mosaic_never_closes_has_none(small_set: Path, tmp_path: Path) -> None:
    (tmp_path / "net.yaml").write_text(yaml.safe_dump(with_l1()))
    train.main(
        train.TrainConfig(
            data=str(small_set),
            cfg=str(tmp_path / "net.yaml"),
            imgsz=64,
            device="cpu",
            batch_size=4,
            workers=0,
            noplots=True,
            project=str(tmp_path),
            epochs=1,
            close_mosaic=0,
        )
    )
    assert float(rows_of(tmp_path / "exp")[0]["train/l1_loss"]) == 0


def test_the_factors_of_a_head_are_those_of_its_recipe() -> None:
    usual = choose_recipe(SMALL)
    factors = HeadFactors(lr=0.5, box=2.0, obj=3.0, cls=4.0, clip=5.0)
    own = choose_recipe(replace(SMALL, head=factors))
    assert own.hyp == replace(usual.hyp, lr0=0.002, box=0.1, obj=3.0, cls=2.0) and own.clip_grad == 5.0
    long_run = RunInfo(images=118_287, boxes=850_000, epochs=300, batch_size=64, head=factors)
    assert choose_recipe(long_run).hyp == Hyp()  # they are fitted on short runs
    assert all(isinstance(head.recipe, HeadFactors) for head in HEADS.values())


def test_training_asks_the_head_for_its_factors(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoupled, "recipe", HeadFactors(lr=0.25))
    base: dict[str, Any] = {"data": str(small_set), "imgsz": 64, "device": "cpu", "batch_size": 4, "workers": 0}
    base |= {"noplots": True, "project": str(tmp_path), "epochs": 1}
    for name in ("Detect", "Decoupled"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(network(name)))
        train.main(train.TrainConfig(cfg=str(tmp_path / f"{name}.yaml"), name=name, **base))
    rates = [yaml.safe_load((tmp_path / name / "hyp.yaml").read_text())["lr0"] for name in ("Detect", "Decoupled")]
    assert rates[1] == rates[0] / 4


def test_options_of_every_row_are_kept_for_the_loss() -> None:
    assert set(ROWS) >= {"Detect", "Decoupled", "DetectV8"}
    model = small_model("DetectV8, no bins")
    assert model.head.criterion(Hyp(), 128).names == ("box", "l1", "cls")
