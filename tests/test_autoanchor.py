"""AutoAnchor: recall means what the loss means, fitted anchors are better, and no set of boxes ends a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from shared import shared

from utils.boxes import Targets
from utils.data.data_yaml import read_data_yaml
from utils.data.scan import Scan
from utils.loss import assign_targets
from utils.train.autoanchor import best_possible_recall, check_anchors, fit_anchors, k_means, label_sizes

COCO = torch.tensor([10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326.0]).view(3, 3, 2)
STRIDES = torch.tensor([8.0, 16.0, 32.0])


def boxes(count: int, low: float, high: float, seed: int = 0) -> np.ndarray:
    return np.exp(np.random.default_rng(seed).uniform(np.log(low), np.log(high), (count, 2)))


@pytest.mark.parametrize("anchor_t", [1.5, 2.91, 4.0])
def test_recall_is_the_fraction_that_the_loss_assigns(anchor_t: float) -> None:
    side = 640
    wh = boxes(300, 2, 600)
    anchors = COCO.view(-1, 2)
    xywhn = torch.full((len(wh), 4), 0.5)
    xywhn[:, 2:] = torch.from_numpy(wh) / side
    index = torch.arange(len(wh))  # an image for each box: the image of a match identifies its box
    targets = Targets(index, torch.zeros_like(index), xywhn)
    assigned = assign_targets(targets, anchors / 8, (side // 8, side // 8), anchor_t).image.unique()
    recall = best_possible_recall(wh, anchors.numpy(), anchor_t)
    assert recall == len(assigned) / len(wh)
    assert 0 < recall < 1
    assert best_possible_recall(wh[:0], anchors.numpy(), anchor_t) == 0


def test_good_anchors_are_kept() -> None:
    anchors, line = check_anchors(boxes(200, 15, 250), COCO, STRIDES)
    assert anchors is COCO
    assert line == "AutoAnchor: 100.00% of 200 boxes can match the model's anchors; kept"


@pytest.mark.parametrize(("low", "high"), [(3, 9), (600, 2500)])
def test_other_sizes_get_better_anchors_sorted_over_the_levels(low: float, high: float) -> None:
    wh = boxes(400, low, high)
    before = COCO.clone()
    anchors, line = check_anchors(wh, COCO, STRIDES)
    assert torch.equal(COCO, before)
    assert anchors.shape == COCO.shape and anchors.dtype == COCO.dtype
    assert anchors.view(-1, 2).prod(1).diff().min() >= 0
    old, new = (best_possible_recall(wh, a.view(-1, 2).numpy(), 4.0) for a in (COCO, anchors))
    assert old < 0.98 < new and "which are used" in line
    assert len(anchors.view(-1, 2).unique(dim=0)) == 9
    again, _ = check_anchors(wh, COCO, STRIDES)
    assert torch.equal(anchors, again)
    assert not torch.equal(anchors, check_anchors(wh, COCO, STRIDES, seed=1)[0])
    coarse_first, _ = check_anchors(wh, COCO, STRIDES.flip(0))
    assert torch.equal(coarse_first, anchors.flip(0))


def test_anchors_of_a_trained_head_stay_unless_they_are_far_off() -> None:
    most = np.concatenate([boxes(190, 15, 250), boxes(10, 1800, 2500)])  # 95 % can match
    assert "which are used" in check_anchors(most, COCO, STRIDES)[1]
    anchors, line = check_anchors(most, COCO, STRIDES, trained_head=True)
    assert anchors is COCO and line.endswith("kept because the head was trained with them")
    assert "which are used" in check_anchors(boxes(200, 1800, 2500), COCO, STRIDES, trained_head=True)[1]


def test_clusters_that_are_there_are_found() -> None:
    centers = np.array([[5, 5], [20, 60], [70, 30], [200, 180], [500, 90], [12, 30]], dtype=float)
    noise = np.random.default_rng(0).normal(1, 0.02, (50, 6, 2))
    fitted = fit_anchors((centers * noise).reshape(-1, 2), 6)
    expected = centers[np.argsort(centers.prod(1))]
    np.testing.assert_allclose(fitted, expected, rtol=0.03)


def test_k_means_fills_every_cluster() -> None:
    points = np.concatenate([np.zeros((500, 2)), np.random.default_rng(0).uniform(5, 6, (9, 2))])
    centers = k_means(points, 9, np.random.default_rng(0))
    assert len(np.unique(centers, axis=0)) == 9
    owner = ((points[:, None] - centers) ** 2).sum(2).argmin(1)
    assert len(np.unique(owner)) == 9


NAN = float("nan")


@pytest.mark.parametrize(
    ("wh", "reason"),
    [
        (np.empty((0, 2)), "0 boxes are too few to fit 9 anchors"),
        (np.full((5, 2), 3.0), "5 boxes are too few to fit 9 anchors"),
        (np.full((500, 2), 2000.0), "1 box size is too few to fit 9 anchors"),
        (2000 + boxes(500, 0.1, 0.4), "1 box size is too few to fit 9 anchors"),
        (np.full((50, 2), NAN), "0 boxes are too few to fit 9 anchors"),
        (np.zeros((50, 2)), "(without 50 below 2 px)"),
        (np.array([[np.inf, 5.0], [5.0, -1.0]] * 20), "0 boxes are too few to fit 9 anchors"),
        (boxes(50, 0.01, 1), "0 boxes are too few to fit 9 anchors"),
    ],
    ids=["none", "few", "equal", "alike", "nan", "zero", "infinite", "tiny"],
)
def test_degenerate_sets_keep_the_anchors_and_say_why(wh: np.ndarray, reason: str) -> None:
    anchors, line = check_anchors(wh, COCO, STRIDES)
    assert anchors is COCO
    assert "; kept: " in line and reason in line and "\n" not in line


def test_bad_rows_among_good_ones_do_not_count() -> None:
    good = boxes(200, 3, 9)
    bad = np.array([[NAN, 4.0], [0.0, 4.0], [np.inf, 1.0]])
    assert torch.equal(
        check_anchors(np.concatenate([good, bad]), COCO, STRIDES)[0], check_anchors(good, COCO, STRIDES)[0]
    )


def test_anchors_that_cannot_be_bettered_stay() -> None:
    anchors, line = check_anchors(boxes(200, 4, 4000), COCO, STRIDES, anchor_t=1.0)
    assert anchors is COCO and "new ones fitted to the boxes reach 0.00%" in line


def test_label_sizes_are_pixels_of_the_scaled_images() -> None:
    label = np.array([0, 1, 0])
    xywhn = np.array([[0.5, 0.5, 0.5, 0.25], [0.5, 0.5, 1, 1], [0.5, 0.5, 0.1, 0.2]], np.float32)
    sizes, areas = np.array([[100, 200], [50, 50], [400, 100]]), np.full(3, np.nan)
    found = Scan(np.array(["a", "b", "c"]), sizes, label, xywhn, np.array([0, 2, 2, 3]), np.zeros(3, bool), areas)
    np.testing.assert_allclose(label_sizes(found, 64), [[32, 8], [64, 32], [1.6, 12.8]], rtol=1e-6)


@pytest.mark.parametrize("name", ["bccd", "aerial_maritime"])
def test_real_sets(name: str, tmp_path: Path) -> None:
    source = shared(f"datasets/{name}")
    (tmp_path / "images").symlink_to(source / "images")
    shutil.copytree(source / "labels", tmp_path / "labels")  # scanning leaves a cache beside the labels
    shutil.copy(source / "data.yaml", tmp_path)
    data = read_data_yaml(tmp_path / "data.yaml")
    wh = label_sizes(data.scan("train"), 160)
    anchors, line = check_anchors(wh, COCO, STRIDES)
    if name == "bccd":
        assert anchors is COCO, line
    else:
        assert best_possible_recall(wh, anchors.view(-1, 2).numpy(), 4.0) > 0.98, line
