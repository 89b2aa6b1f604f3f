"""Thresholds against exhaustive search, calibration against known distributions, and the data that files hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.config import ZERO_TO_ONE_OR_AUTO, Config, flag, parse_cli
from utils.evaluate.curves import plot_reliability
from utils.evaluate.matching import ClassMatches, best_confidence
from utils.evaluate.thresholds import calibration, choose_thresholds, f1_at, scaled
from utils.thresholds import Thresholds, confidence_threshold, split_name


def matches_of(seed: int, labels: int = 200, power: float = 1.0) -> ClassMatches:
    """Detections whose share of right ones is confidence ** power."""
    chance = np.random.default_rng(seed)
    scores = -np.sort(-chance.uniform(0, 1, 2 * labels))
    hits = chance.uniform(0, 1, len(scores)) < scores**power
    return ClassMatches(max(labels, int(hits.sum())), scores, hits)


def kept(m: ClassMatches, confidence: float) -> np.ndarray:
    """Whether each detection that NMS keeps at a threshold is right."""
    return m.hits[m.scores > confidence]


def best_f1(parts: Mapping[int, ClassMatches]) -> float:
    """By trying every detection's own score, and less than all."""
    scores = np.concatenate([m.scores for m in parts.values()])
    return max(f1_at(parts, float(t)) for t in [*scores, 0.0])


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_near_the_best_f1(seed: int) -> None:
    parts = {0: matches_of(seed), 1: matches_of(seed + 100, 80)}
    chosen = choose_thresholds(parts, ["a", "b"])
    assert chosen is not None and chosen.rule == "near the best F1"
    assert best_f1(parts) - 0.02 < chosen.f1 <= best_f1(parts)
    assert f1_at(parts, chosen.confidence) == pytest.approx(chosen.f1)
    for k, name in enumerate(("a", "b")):
        assert f1_at({k: parts[k]}, chosen.per_class[name]) == pytest.approx(best_f1({k: parts[k]}), abs=0.03)
    assert round(chosen.confidence, 4) == chosen.confidence


def crowded(seed: int, labels: int, slope: float) -> ClassMatches:
    """Detections most of which have a low confidence, as a network's; the odds of being right grow with it."""
    chance = np.random.default_rng(seed)
    odds = -np.sort(-chance.normal(-3, 1.8, 5 * labels))
    hits = chance.uniform(0, 1, len(odds)) < 1 / (1 + np.exp(-slope * odds - 0.5))
    return ClassMatches(max(labels, int(hits.sum())), 1 / (1 + np.exp(-odds)), hits)


def test_on_other_images_it_is_better_than_the_threshold_of_the_very_best_f1() -> None:
    others = {0: crowded(1_000, 20_000, 1.0), 1: crowded(1_001, 20_000, 2.0)}
    own, very_best = list[float](), list[float]()
    for seed in range(60):
        few = {0: crowded(seed, 30, 1.0), 1: crowded(seed + 100, 15, 2.0)}
        chosen = choose_thresholds(few, ["a", "b"])
        assert chosen is not None
        own.append(f1_at(others, chosen.confidence))
        columns = ([getattr(m, key) for m in few.values()] for key in ("scores", "hits", "labels"))
        very_best.append(f1_at(others, best_confidence(*columns)))
    possible = max(f1_at(others, t / 100) for t in range(100))
    assert possible - np.mean(own) < 0.75 * (possible - np.mean(very_best))


@pytest.mark.parametrize("wanted", [0.5, 0.8, 0.9])
def test_a_wanted_precision_is_kept_and_no_lower_threshold_has_it(wanted: float) -> None:
    parts = {0: matches_of(3), 1: matches_of(4, 50)}
    chosen = choose_thresholds(parts, ["a", "b"], precision=wanted)
    assert chosen is not None and chosen.rule == f"precision {wanted}"
    right = np.concatenate([kept(m, chosen.confidence) for m in parts.values()])
    assert right.mean() >= wanted and right.mean() == pytest.approx(chosen.precision)
    for t in np.arange(0, 1, 0.0001)[: round(chosen.confidence * 10_000)]:
        below = np.concatenate([kept(m, float(t)) for m in parts.values()])
        assert below.mean() < wanted or len(below) == len(right)
    assert kept(parts[0], chosen.per_class["a"]).mean() >= wanted


@pytest.mark.parametrize("wanted", [0.3, 0.6, 0.9])
def test_a_wanted_recall_is_kept_and_no_higher_threshold_has_it(wanted: float) -> None:
    m = matches_of(3)
    m = m._replace(labels=int(m.hits.sum()))
    chosen = choose_thresholds({0: m}, ["a"], recall=wanted)
    assert chosen is not None and chosen.recall >= wanted
    assert kept(m, chosen.confidence).sum() / m.labels == pytest.approx(chosen.recall)
    higher = m.scores[m.scores > chosen.confidence].min()
    assert kept(m, higher).sum() / m.labels < wanted
    assert chosen.per_class == {"a": chosen.confidence}


def test_a_threshold_lies_in_the_middle_between_the_detections_that_decide_it() -> None:
    m = ClassMatches(2, np.array([0.9, 0.8, 0.2]), np.array([True, True, False]))
    for wanted in ({}, {"precision": 1.0}, {"recall": 1.0}):
        chosen = choose_thresholds({0: m}, ["a"], **wanted)
        assert chosen is not None and chosen.confidence == pytest.approx(0.5, abs=0.001)
        assert (chosen.precision, chosen.recall, chosen.f1) == (1, 1, 1)


def test_what_cannot_be_reached_comes_nearest_and_nothing_is_none() -> None:
    m = ClassMatches(10, np.array([0.9, 0.8]), np.array([True, False]))
    chosen = choose_thresholds({0: m}, ["a"], recall=0.5)
    assert chosen is not None and chosen.rule == "recall 0.5, not reached" and chosen.recall == pytest.approx(0.1)
    none, wrong = ClassMatches(3, np.zeros(0), np.zeros(0, bool)), ClassMatches(3, np.ones(1) / 2, np.zeros(1, bool))
    assert all(choose_thresholds(matches, ["a"]) is None for matches in ({}, {0: none}, {0: wrong}))
    with_silent_class = choose_thresholds({0: m, 1: none}, ["a", "b"])
    assert with_silent_class is not None and set(with_silent_class.per_class) == {"a"}


def test_calibrated_confidences_have_no_error_and_sharpened_ones_are_repaired(tmp_path: Path) -> None:
    fair = calibration({0: matches_of(0, 20_000)})
    assert fair is not None and fair.error < 0.02 and fair.temperature == pytest.approx(1, abs=0.1)
    m = matches_of(0, 20_000)
    sharp = calibration({0: ClassMatches(m.labels, scaled(m.scores, 0.5), m.hits)})
    assert sharp is not None and sharp.error > 0.05
    assert sharp.temperature == pytest.approx(2, abs=0.25) and sharp.error_after < 0.03
    assert sharp.as_dict() == {
        "ece": sharp.error, "temperature": sharp.temperature, "ece_with_temperature": sharp.error_after
    }  # fmt: skip
    assert fair.count.sum() == (m.scores >= 0.05).sum()
    assert calibration({}) is None
    plot_reliability(sharp, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 10_000


def test_the_error_of_two_bins_is_the_mean_of_their_differences_by_count() -> None:
    scores = np.array([0.91] * 4 + [0.51] * 12)
    hits = np.array([True] * 2 + [False] * 2 + [True] * 3 + [False] * 9)
    found = calibration({0: ClassMatches(9, scores, hits)})
    assert found is not None and found.error == pytest.approx((4 * (0.91 - 0.5) + 12 * (0.51 - 0.25)) / 16)


def test_thresholds_become_plain_data_and_back_and_are_a_line() -> None:
    whole = Thresholds(0.381, data="my.yaml, val", precision=0.812, recall=0.771, f1=0.79, per_class={"cat": 0.4})
    assert Thresholds.from_dict(whole.as_dict() | {"later": 1}, "x.pt") == whole
    assert str(whole) == "0.381 (near the best F1 on my.yaml, val: precision 0.81, recall 0.77)"
    assert "\n" not in str(Thresholds(0.1, rule="best\nF1", data="a\x1b[31mb\n" * 50))
    assert len(str(Thresholds(0.1, rule="r" * 9_000, data="d" * 9_000))) < 300


@pytest.mark.parametrize(
    "values",
    [
        [], {}, {"confidence": 2}, {"confidence": "0.5"}, {"confidence": True}, {"confidence": float("nan")},
        {"confidence": None}, {"confidence": 0.5, "f1": -1}, {"confidence": 0.5, "per_class": [1]},
        {"confidence": 0.5, "per_class": {"a": "b"}}, {"confidence": 0.5, "per_class": {0: 0.5}},
        {"confidence": 0.5, "rule": 3}, {"confidence": 0.5, "data": "d" * 20_000},
    ],
)  # fmt: skip
def test_other_data_in_a_file_are_an_error_that_names_it(values: Any) -> None:
    with pytest.raises(ValueError, match=r"^x\.pt: thresholds.* expected ") as error:
        Thresholds.from_dict(values, "x.pt")
    assert len(str(error.value)) < 400


def test_a_split_is_named_by_its_file_and_where_that_says_nothing_by_its_folder() -> None:
    assert split_name("sets/my.yaml", "val") == "my.yaml, val"
    assert split_name("sets/bccd/data.yaml", "test") == "bccd/data.yaml, test"


def test_auto_is_the_stored_number_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    stored = Thresholds(0.381, data="my.yaml, val", precision=0.812, recall=0.771)
    assert confidence_threshold(0.7, stored, "best.pt") == 0.7 and not caplog.messages
    assert confidence_threshold("auto", stored, "best.pt") == 0.381
    assert caplog.messages == [f"confidence threshold of best.pt: {stored}"]
    with pytest.raises(ValueError, match=r"^--conf-thres auto: best\.pt: no threshold is stored .* --save-thresholds"):
        confidence_threshold("auto", None, "best.pt")
    with pytest.raises(ValueError, match=r"^model\.conf high: expected a number from 0 to 1, or auto"):
        confidence_threshold("high", stored, "best.pt", "model.conf")


def test_a_flag_may_be_a_number_or_the_word(capsys: pytest.CaptureFixture[str]) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Some(Config):
        """Flags."""

        conf_thres: str | float = flag(0.25, "confidence threshold", bounds=ZERO_TO_ONE_OR_AUTO)

    globals()["Some"] = Some
    values = [parse_cli(Some, words).conf_thres for words in ([], ["--conf-thres", "0.5"], ["--conf_thres=auto"])]
    assert values == [0.25, 0.5, "auto"]
    for wrong in ("high", "Auto", ""):
        with pytest.raises(SystemExit):
            parse_cli(Some, ["--conf-thres", wrong])
        assert f"'{wrong}': expected a number or auto" in capsys.readouterr().err
    for outside in (1.5, -0.1, float("nan"), "high", True):
        with pytest.raises(ValueError, match=r"--conf-thres .*: expected at least 0, at most 1 or auto"):
            Some(conf_thres=outside)
