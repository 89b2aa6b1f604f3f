"""The rule that fits a recipe to what is known of a run, and how train.py applies it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import pytest

import train
from models.yolo import DetectionModel
from utils.config import REPO, Hyp, read_yaml
from utils.data.scan import Scan
from utils.train.optim import accumulation
from utils.train.recipe import LONG, Facts, choose_recipe

SMALL = Facts(images=205, boxes=2500, epochs=30, batch_size=16)
LARGE = Facts(images=118_287, boxes=850_000, epochs=300, batch_size=64)


def test_a_small_set_gets_an_update_from_every_batch() -> None:
    recipe = choose_recipe(SMALL)
    assert recipe.optimizer == "AdamW" and recipe.hyp.nominal_batch == 16
    assert recipe.hyp.warmup_min_steps == 0 and recipe.hyp.warmup_epochs <= 0.1 * SMALL.epochs
    assert 1 / (1 - recipe.hyp.ema_decay) == pytest.approx(39)  # updates that the average covers at the end, of 390
    middle = choose_recipe(replace(SMALL, epochs=60))
    assert recipe.hyp.norm_momentum == 0.1 > middle.hyp.norm_momentum > choose_recipe(LARGE).hyp.norm_momentum == 0.03
    assert all(
        word in recipe.why
        for word in ("205 pictures", "2500 boxes", "390 batches", "AdamW", "from scratch", "over 10 batches")
    )


def test_fine_tuning_takes_smaller_steps_the_more_the_weights_know() -> None:
    rates = [choose_recipe(replace(SMALL, fine_tuning=True, known=known)).hyp.lr0 for known in (0, 0.5, 1)]
    assert choose_recipe(SMALL).hyp.lr0 > rates[0] > rates[1] > rates[2] == pytest.approx(1e-4)
    assert "50% of the classes known" in choose_recipe(replace(SMALL, fine_tuning=True, known=0.5)).why


def test_mosaics_are_for_pictures_with_few_boxes_and_for_runs_that_see_them_often() -> None:
    def share(boxes: int, epochs: int, fine_tuning: bool = False) -> float:
        return choose_recipe(Facts(200, boxes, epochs, 16, fine_tuning)).hyp.mosaic

    assert share(200, 30) == share(800, 30) == 1 > share(1600, 30) == 0.5 > share(3200, 30) == 0.25
    assert share(1600, 10) == 0.5 < share(1600, 65) == 0.75 < share(1600, 100) == share(1600, 300) == 1
    assert share(200, 30, fine_tuning=True) == 0 < share(200, 65, fine_tuning=True) == 0.5
    assert share(200, 100, fine_tuning=True) == choose_recipe(replace(LARGE, boxes=10**8)).hyp.mosaic == 1
    plain = choose_recipe(Facts(200, 800, 10, 16, fine_tuning=True))
    assert plain.why.endswith("no mosaic") and plain.close_mosaic == 0


def test_the_study_varies_what_the_rule_chooses() -> None:
    arms = read_yaml(REPO / "tools" / "recipes.yaml")
    bccd = replace(SMALL, boxes=2804)
    for name, facts in (("small", bccd), ("ft", replace(bccd, epochs=10, fine_tuning=True))):
        recipe = choose_recipe(facts)
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
@pytest.mark.parametrize(("fine_tuning", "known"), [(False, 0.0), (True, 0.0), (True, 1.0)])
@pytest.mark.parametrize("batch", [1, 2, 8, 16, 64, 256])
@pytest.mark.parametrize("epochs", [1, 3, 10, 100, 1000])
@pytest.mark.parametrize("images", [1, 10, 300, 5_000, 200_000])
def test_every_run_gets_a_sound_recipe(
    images: int, epochs: int, batch: int, fine_tuning: bool, known: float, attention: bool
) -> None:
    facts = Facts(images, 5 * images, epochs, batch, fine_tuning, known, attention)
    recipe = choose_recipe(facts)
    hyp = recipe.hyp
    assert 0 <= recipe.close_mosaic <= 0.5 * epochs
    assert 0 < hyp.ema_ramp <= 2000 and 0 < hyp.ema_decay <= 0.9999
    assert "\n" not in recipe.why
    if recipe.optimizer == "SGD":
        return
    assert hyp.warmup_epochs <= min(0.1 * epochs, 3.0)
    pictures = batch * accumulation(hyp, batch)  # of an update, as train.py counts
    assert f"an update for every {pictures} pictures," in recipe.why
    assert hyp.weight_decay * pictures / hyp.nominal_batch == pytest.approx(0.01)  # as train.py scales it
    averaged = int(recipe.why.split("average over about ")[1].split(" updates")[0])
    assert averaged == pytest.approx(1 / (1 - hyp.ema_decay), abs=0.51)


def test_the_kind_of_run_changes_at_its_length_alone() -> None:
    edge = replace(SMALL, images=LONG * 64 // 100, epochs=100)
    assert choose_recipe(edge).optimizer == "SGD"
    assert choose_recipe(replace(edge, images=edge.images - 64)).optimizer == "AdamW"


def applied(**flags: object) -> tuple[train.TrainConfig, Hyp]:
    hyp = flags.pop("file", None)
    cfg = train.TrainConfig(**({"epochs": 30} | flags))
    empty = Scan.__new__(Scan)
    object.__setattr__(empty, "paths", [""] * 205)
    object.__setattr__(empty, "labels", [0] * 2500)
    return train.fit_recipe(cfg, hyp, empty, DetectionModel("yolov5n.yaml", nc=3), None)


def test_a_hyp_file_is_followed_to_the_letter() -> None:
    cfg, hyp = applied(file=Hyp(lr0=0.5))
    assert hyp == Hyp(lr0=0.5) and cfg.optimizer == "SGD" and cfg.close_mosaic == 0 and cfg.clip_grad == 10


def test_adam_without_a_hyp_is_warned_of_a_rate_for_sgd(caplog: pytest.LogCaptureFixture) -> None:
    applied(optimizer="Adam")
    assert "0.01 is one for SGD, Adam needs about a tenth: give a --hyp" in caplog.text


def test_a_trained_backbone_is_named() -> None:
    assert "from a trained backbone" in choose_recipe(replace(SMALL, backbone=True)).why


def test_what_the_user_says_counts(caplog: pytest.LogCaptureFixture) -> None:
    assert applied()[1] == choose_recipe(SMALL).hyp
    assert applied()[0].clip_grad == choose_recipe(SMALL).clip_grad == 1
    assert applied(close_mosaic=7)[0].close_mosaic == 7 and applied(clip_grad=0.0)[0].clip_grad == 0
    assert applied(optimizer="AdamW")[1] == choose_recipe(SMALL).hyp
    with caplog.at_level("INFO"):
        cfg, hyp = applied(optimizer="SGD")
    assert "YOLOv5's own, for --optimizer SGD (the rule has AdamW here)" in caplog.text
    assert "give a --hyp" not in caplog.text
    assert hyp == Hyp() and cfg.optimizer == "SGD" and cfg.close_mosaic == 0


def test_scratch_low_is_the_default_of_yolov5() -> None:
    assert Hyp.from_yaml(Path(train.__file__).parent / "data/hyps/hyp.scratch-low.yaml") == Hyp()
