"""The recipe that is fitted to a run, and how train.py applies it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import train
from models.yolo import DetectionModel
from utils.data.scan import Scan
from utils.files import REPO, read_yaml
from utils.hyp import Hyp
from utils.train.optim import accumulation
from utils.train.recipe import LONG_RUN, RunInfo, choose_recipe, fill_in

SMALL = RunInfo(images=205, boxes=2500, epochs=30, batch_size=16)
LARGE = RunInfo(images=118_287, boxes=850_000, epochs=300, batch_size=64)


def test_a_small_set_gets_an_update_from_every_batch() -> None:
    recipe = choose_recipe(SMALL)
    assert recipe.optimizer == "AdamW" and recipe.hyp.nominal_batch == 16
    assert recipe.hyp.warmup_min_steps == 0 and recipe.hyp.warmup_epochs <= 0.1 * SMALL.epochs
    assert 1 / (1 - recipe.hyp.ema_decay) == pytest.approx(39)  # updates that the average covers at the end, of 390
    middle = choose_recipe(replace(SMALL, epochs=60))
    assert recipe.hyp.norm_momentum == 0.1 > middle.hyp.norm_momentum > choose_recipe(LARGE).hyp.norm_momentum == 0.03
    assert all(
        word in f"{recipe.summary}; {recipe.basis}; {recipe.details}"
        for word in ("205 images", "2,500 boxes", "390 batches", "AdamW", "from scratch", "over 10 batches")
    )


def test_fine_tuning_takes_smaller_steps_the_more_the_weights_know() -> None:
    rates = [choose_recipe(replace(SMALL, fine_tuning=True, known_classes=share)).hyp.lr0 for share in (0, 0.5, 1)]
    assert choose_recipe(SMALL).hyp.lr0 > rates[0] > rates[1] > rates[2] == pytest.approx(1e-4)
    assert "50% of the classes known" in choose_recipe(replace(SMALL, fine_tuning=True, known_classes=0.5)).basis


def test_mosaics_are_for_images_with_few_boxes_and_for_runs_that_see_them_often() -> None:
    def share(boxes: int, epochs: int, fine_tuning: bool = False) -> float:
        return choose_recipe(RunInfo(200, boxes, epochs, 16, fine_tuning)).hyp.mosaic

    assert share(200, 30) == share(800, 30) == 1 > share(1600, 30) == 0.5 > share(3200, 30) == 0.25
    assert share(1600, 10) == 0.5 < share(1600, 65) == 0.75 < share(1600, 100) == share(1600, 300) == 1
    assert share(200, 30, fine_tuning=True) == 0 < share(200, 65, fine_tuning=True) == 0.5
    assert share(200, 100, fine_tuning=True) == choose_recipe(replace(LARGE, boxes=10**8)).hyp.mosaic == 1
    plain = choose_recipe(RunInfo(200, 800, 10, 16, fine_tuning=True))
    assert plain.summary.endswith("no mosaic") and plain.close_mosaic == 0


def test_the_study_varies_what_the_rule_chooses() -> None:
    arms = read_yaml(REPO / "tools" / "recipes.yaml")
    bccd = replace(SMALL, boxes=2804)
    for name, info in (("small", bccd), ("ft", replace(bccd, epochs=10, fine_tuning=True))):
        recipe = choose_recipe(info)
        chosen = {key: value for key, value in arms[name].items() if key != "flags"}
        assert (Hyp().as_dict() | chosen) == pytest.approx(recipe.hyp.as_dict())
        assert arms[name]["flags"] == {key: getattr(recipe, key) for key in ("optimizer", "close_mosaic", "clip_grad")}
    for name, arm in arms.items():
        if not arm.get("rule"):
            Hyp(**(Hyp().as_dict() | {key: value for key, value in arm.items() if key != "flags"}))
            assert set(arm.get("flags", {})) <= {field.name for field in fields(train.TrainConfig)}, name


def test_a_long_run_of_a_convolutional_network_is_yolov5s_own() -> None:
    recipe = choose_recipe(LARGE)
    assert recipe.hyp == Hyp() and recipe.optimizer == "SGD" and recipe.clip_grad == 10
    attentive = choose_recipe(replace(LARGE, attention=True))
    assert attentive.optimizer == "AdamW" and attentive.hyp.nominal_batch == 64


@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize(("fine_tuning", "known_classes"), [(False, 0.0), (True, 0.0), (True, 1.0)])
@pytest.mark.parametrize("batch", [1, 2, 8, 16, 64, 256])
@pytest.mark.parametrize("epochs", [1, 3, 10, 100, 1000])
@pytest.mark.parametrize("images", [1, 10, 300, 5_000, 200_000])
def test_every_run_gets_a_sound_recipe(
    images: int, epochs: int, batch: int, fine_tuning: bool, known_classes: float, attention: bool
) -> None:
    info = RunInfo(images, 5 * images, epochs, batch, fine_tuning, known_classes, attention)
    recipe = choose_recipe(info)
    hyp = recipe.hyp
    assert 0 <= recipe.close_mosaic <= 0.5 * epochs
    assert 0 < hyp.ema_ramp <= 2000 and 0 < hyp.ema_decay <= 0.9999
    assert "\n" not in recipe.summary + recipe.basis + recipe.details
    if recipe.optimizer == "SGD":
        return
    assert hyp.warmup_epochs <= min(0.1 * epochs, 3.0)
    update_batch = batch * accumulation(hyp, batch)  # images of an update, as train.py counts
    assert f"an update every {update_batch} images," in recipe.details
    assert hyp.weight_decay * update_batch / hyp.nominal_batch == pytest.approx(0.01)  # as train.py scales it
    averaged = int(recipe.details.split("averaged over about ")[1].split(" updates")[0])
    assert averaged == pytest.approx(1 / (1 - hyp.ema_decay), abs=0.51)


def test_the_kind_of_run_changes_at_its_length_alone() -> None:
    edge = replace(SMALL, images=LONG_RUN * 64 // 100, epochs=100)
    assert choose_recipe(edge).optimizer == "SGD"
    assert choose_recipe(replace(edge, images=edge.images - 64)).optimizer == "AdamW"


def applied(file: Hyp | None = None, **flags: Any) -> tuple[train.TrainConfig, Hyp]:
    """What train.py makes of the flags and a hyp file for as many images and boxes as SMALL has."""
    label, xywhn = np.zeros(SMALL.boxes, np.int64), np.full((SMALL.boxes, 4), 0.5, np.float32)
    offsets = np.minimum(np.arange(SMALL.images + 1) * 13, SMALL.boxes)
    paths, sizes = np.full(SMALL.images, "a.png"), np.full((SMALL.images, 2), 64, np.int32)
    scan = Scan(paths, sizes, label, xywhn, offsets, label.astype(bool), label.astype(np.float32))
    cfg = train.TrainConfig(**({"epochs": SMALL.epochs} | flags))
    return fill_in(cfg, file, train.describe(cfg, scan, DetectionModel("yolov5n.yaml", nc=3), None))


def test_the_values_of_a_hyp_file_are_not_changed() -> None:
    cfg, hyp = applied(Hyp(lr0=0.5))
    assert hyp == Hyp(lr0=0.5) and cfg.optimizer == "SGD" and cfg.close_mosaic == 0 and cfg.clip_grad == 10


def test_adam_without_a_hyp_gets_a_warning_about_its_learning_rate(caplog: pytest.LogCaptureFixture) -> None:
    applied(optimizer="Adam")
    assert "the learning rate 0.01 is for SGD, Adam needs about a tenth: give a --hyp" in caplog.text


def test_a_trained_backbone_is_named() -> None:
    assert "from a trained backbone" in choose_recipe(replace(SMALL, backbone=True)).basis


def test_flags_override_the_fitted_values(caplog: pytest.LogCaptureFixture) -> None:
    assert applied()[1] == choose_recipe(SMALL).hyp
    assert applied()[0].clip_grad == choose_recipe(SMALL).clip_grad == 1
    assert applied(close_mosaic=7)[0].close_mosaic == 7 and applied(clip_grad=0.0)[0].clip_grad == 0
    assert applied(optimizer="AdamW")[1] == choose_recipe(SMALL).hyp
    with caplog.at_level("INFO"):
        cfg, hyp = applied(optimizer="SGD")
    assert "YOLOv5's own, for --optimizer SGD (the fitted one uses AdamW)" in caplog.text
    assert "give a --hyp" not in caplog.text
    assert hyp == Hyp() and cfg.optimizer == "SGD" and cfg.close_mosaic == 0


def test_a_weight_decay_for_adamw_without_an_optimizer_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    cfg, _ = applied(Hyp(weight_decay=0.01), hyp="mine.yaml")
    assert "mine.yaml: weight_decay 0.01 is for AdamW, but without --optimizer SGD is used" in caplog.text
    assert cfg.optimizer == "SGD"
    caplog.clear()
    applied(Hyp(weight_decay=0.01), hyp="mine.yaml", optimizer="AdamW")
    assert not caplog.records


def test_the_recipe_is_two_lines_and_the_rest_for_verbose(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    applied(close_mosaic=1)
    first, second = caplog.messages
    assert first == "recipe: AdamW, learning rate 0.004, batch 16, mosaic 33%, not in the last epoch"
    assert second.strip().startswith("fitted to 205 images, 2,500 boxes, 390 batches in 30 epochs, from scratch; ")
    assert "hyp.yaml" in second and "weight decay" not in second
    caplog.clear()
    applied(verbose=True, hyp="mine.yaml", file=Hyp(lr0=0.5))
    first, second = caplog.messages
    assert (
        "SGD, learning rate 0.5" in first and "from mine.yaml; weight decay 0.0005, gradient norm at most 10" in second
    )


def test_scratch_low_is_the_default_of_yolov5() -> None:
    assert Hyp.from_yaml(Path(train.__file__).parent / "data/hyps/hyp.scratch-low.yaml") == Hyp()
