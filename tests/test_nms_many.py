"""NMS of many boxes is to the bit what torchvision's batched_nms and a stable sort of all candidates give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import batched_nms

from utils import nms
from utils.boxes import xywh2xyxy
from utils.nms import NmsSettings, non_max_suppression


def plain(rows: torch.Tensor, settings: NmsSettings) -> list[np.ndarray]:
    """Corners, classes and scores of the final boxes, in the plainest way."""
    rows = rows[rows[:, 4] > settings.conf_thres]
    scores = rows[:, 5:] * rows[:, 4:5]
    if settings.multi_label and scores.shape[1] > 1:
        box, label = (scores > settings.conf_thres).nonzero(as_tuple=True)
        score = scores[box, label]
    else:
        score, label = scores.max(dim=1)
        box = (score > settings.conf_thres).nonzero().flatten()
        score, label = score[box], label[box]
    order = score.argsort(descending=True, stable=True)[: nms.MAX_CANDIDATES]
    box, label, score = box[order], label[order], score[order]
    xyxy, group = xywh2xyxy(rows[box, :4]), torch.zeros_like(label) if settings.agnostic else label
    keep = batched_nms(xyxy, score, group, settings.iou_thres)[: settings.max_det]
    return [t[keep].numpy() for t in (xyxy, label, score)]


def random_rows(seed: int, n: int, nc: int, steps: int) -> torch.Tensor:
    """Rows around a few centers; objectness and classes in `steps` steps, so that scores tie where there are few."""
    g = torch.Generator().manual_seed(seed)
    centers = 40 + 560 * torch.rand(12, 2, generator=g)
    rows = torch.rand(n, 5 + nc, generator=g)
    rows[:, :2] = centers[torch.randint(12, (n,), generator=g)] + 30 * torch.randn(n, 2, generator=g)
    rows[:, 2:4] = 20 + 60 * rows[:, 2:4]
    rows[:, 4:] = (rows[:, 4:] ** 2 * steps).round() / steps
    return rows


@pytest.mark.parametrize("steps", [7, 10**7])
@pytest.mark.parametrize(("n", "nc"), [(0, 3), (60, 3), (900, 1), (1500, 1), (1500, 20)])
def test_equal_to_the_plain_way(n, nc, steps):
    for seed, (agnostic, multi_label, max_det) in enumerate(
        [(False, True, 20), (False, False, 300), (True, True, 40), (False, True, 5000), (False, True, 1)]
    ):
        rows = random_rows(seed, n, nc, steps)
        settings = NmsSettings(0.1, 0.6, max_det, agnostic=agnostic, multi_label=multi_label)
        (found,) = non_max_suppression(rows[None], settings)
        for values, wanted in zip((found.xyxy, found.label, found.score), plain(rows, settings), strict=True):
            assert np.array_equal(values, wanted)


def test_more_candidates_than_enter(monkeypatch):
    monkeypatch.setattr(nms, "MAX_CANDIDATES", 1200)
    rows, settings = random_rows(3, 1500, 20, 10**7), NmsSettings(0.01, 0.6, 400, multi_label=True)
    (found,) = non_max_suppression(rows[None], settings)
    assert np.array_equal(found.xyxy, plain(rows, settings)[0])


def test_the_best_boxes_are_looked_at_first(monkeypatch):
    """Where the best `FIRST` times max_det give enough, the others never enter NMS."""
    seen, real = [], nms.nms
    monkeypatch.setattr(nms, "nms", lambda boxes, *rest: seen.append(len(boxes)) or real(boxes, *rest))
    rows = random_rows(4, 3000, 10, 10**7)
    (found,) = non_max_suppression(rows[None], NmsSettings(0.01, 0.6, 20, multi_label=True))
    assert len(found) == 20 and 0 < sum(seen) <= nms.FIRST * 20


def test_equal_scores_keep_their_order():
    score = torch.tensor([0.5, 0.9, 0.5, 0.9, 0.1, 0.5])
    assert nms._best(score).tolist() == [1, 3, 0, 2, 5, 4]
    score = (torch.rand(5000, generator=torch.Generator().manual_seed(0)) * 50).round().div(50) + 1e-3
    assert torch.equal(nms._best(score), score.argsort(descending=True, stable=True))


def test_rows_of_each_image_as_a_list():
    rows = random_rows(5, 400, 4, 10**7)
    settings = NmsSettings(0.2)
    both = non_max_suppression([rows[:150], rows[150:]], settings)
    for found, part in zip(both, (rows[:150], rows[150:]), strict=True):
        assert np.array_equal(found.xyxy, non_max_suppression(part[None], settings)[0].xyxy)
