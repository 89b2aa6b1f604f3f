"""The loss against recorded numbers of the reference, and laws that need no recording."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from shared import oracle
from torchvision.ops import nms as torchvision_nms

from utils.boxes import Boxes, Targets, paired_ciou, xywh2xyxy
from utils.loss import DetectionLoss, LossGains, assign_targets
from utils.nms import NmsSettings, non_max_suppression

ANCHORS = torch.tensor([[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326.0]])
STRIDE = torch.tensor([8.0, 16.0, 32.0])
GAINS = LossGains(box=0.05, obj=0.7, cls=0.3)


def targets_of(rows: torch.Tensor) -> Targets:
    """Targets from rows (M, 6) of image, class, center x, y, width, height."""
    return Targets(rows[:, 0].long(), rows[:, 1].long(), rows[:, 2:])


def make_loss(nc: int = 4) -> DetectionLoss:
    return DetectionLoss(ANCHORS.view(3, 3, 2), STRIDE, nc, GAINS)


def maps(size: int, nc: int = 4, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sides = [size // int(s) for s in STRIDE]
    return [torch.randn(batch, 3, s, s, 5 + nc, generator=generator).requires_grad_() for s in sides]


@pytest.mark.parametrize("case", range(4))
def test_equals_the_reference(case: int) -> None:
    c = oracle("yolov5_loss.pt")[case]
    h = c["hyp_scaled"]
    gains = LossGains(
        h["box"], h["obj"], h["cls"], h["cls_pw"], h["obj_pw"], h["anchor_t"], h["fl_gamma"], h["label_smoothing"]
    )
    criterion = DetectionLoss(c["anchors_grid"] * c["stride"].view(-1, 1, 1), c["stride"], c["nc"], gains)
    preds = [p.clone().requires_grad_() for p in c["preds"]]
    loss, parts = criterion(preds, targets_of(c["targets"]))
    loss.backward()
    torch.testing.assert_close(loss.detach().view(1), c["loss"], rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.stack([*parts.values()]), c["parts_box_obj_cls"], rtol=1e-5, atol=1e-8)
    for pred, grad in zip(preds, c["grads"], strict=True):
        torch.testing.assert_close(pred.grad, grad, rtol=1e-5, atol=1e-5 * float(grad.abs().max()))
    loss, parts = criterion(c["preds"], targets_of(torch.zeros(0, 6)))
    torch.testing.assert_close(loss.view(1), c["loss_no_targets"], rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.stack([*parts.values()]), c["parts_no_targets"], rtol=1e-5, atol=1e-8)


def test_no_targets_teaches_objectness_alone() -> None:
    preds = maps(64)
    loss, parts = make_loss()(preds, targets_of(torch.zeros(0, 6)))
    loss.backward()
    assert parts["box"] == 0 and parts["cls"] == 0 and parts["obj"] > 0
    assert all((p.grad[..., :4] == 0).all() and (p.grad[..., 5:] == 0).all() for p in preds)


def test_every_match_fits_its_anchor_and_lies_within_reach_of_its_cell() -> None:
    generator = torch.Generator().manual_seed(1)
    targets = torch.rand(200, 6, generator=generator)
    targets[:, 0] = targets[:, 0].mul(4).floor()
    m = assign_targets(targets_of(targets), ANCHORS[1].view(3, 2) / 16, (20, 30), 4.0)
    ratio = m.xywh[:, 2:] / m.anchor_wh
    assert len(m.image) > 0
    assert (torch.maximum(ratio, 1 / ratio) < 4).all()
    # the decode can reach -0.5..1.5 cells from the corner
    assert (m.xywh[:, :2] >= -0.5).all() and (m.xywh[:, :2] <= 1.5).all()
    assert (m.row < 20).all() and (m.column < 30).all()


def test_loss_falls_when_it_is_minimized() -> None:
    preds = maps(64)
    targets = targets_of(torch.tensor([[0, 1, 0.4, 0.4, 0.3, 0.3], [1, 3, 0.6, 0.5, 0.6, 0.5]]))
    optimizer = torch.optim.Adam(preds, lr=0.1)
    criterion = make_loss()
    first = criterion(preds, targets)[0].item()
    for _ in range(60):
        optimizer.zero_grad()
        loss, _ = criterion(preds, targets)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * first


def test_shares_of_a_batch_sum_up_to_its_loss() -> None:
    """As in two processes, which divide by the counts of the whole batch."""
    rows = torch.rand(20, 6, generator=torch.Generator().manual_seed(1))
    rows[:, 0] = (rows[:, 0] * 3).floor()
    rows[:, 1] = (rows[:, 1] * 4).floor()
    whole_preds, targets = maps(64, batch=3), targets_of(rows)
    loss, parts = make_loss()(whole_preds, targets)
    loss.backward()
    counts: list[torch.Tensor] = []
    for shared_counts in (False, True):
        losses, sums, grads = [], torch.zeros(3), []
        for first, last in ((0, 2), (2, 3)):
            own = targets[(targets.image >= first) & (targets.image < last)]
            own = Targets(own.image - first, own.label, own.xywhn)
            preds = [p.detach()[first:last].clone().requires_grad_() for p in whole_preds]

            def reduce(values: torch.Tensor) -> torch.Tensor:
                if shared_counts:  # noqa: B023 (it is called at once)
                    return torch.stack(counts).sum(0)
                counts.append(values)
                return values

            share, share_parts = DetectionLoss(ANCHORS.view(3, 3, 2), STRIDE, 4, GAINS, reduce)(preds, own)
            share.backward()
            losses.append(share.detach())
            sums += torch.stack([*share_parts.values()])
            grads.append([p.grad for p in preds])
    torch.testing.assert_close(sum(losses), loss.detach())
    torch.testing.assert_close(sums, torch.stack([*parts.values()]))
    for pred, *shares in zip(whole_preds, *grads, strict=True):
        torch.testing.assert_close(torch.cat(shares), pred.grad)


def test_nms_equals_torchvision_class_by_class() -> None:
    generator = torch.Generator().manual_seed(2)
    rows = torch.rand(1, 400, 8, generator=generator)
    rows[..., :4] *= 100
    before = rows.clone()
    (found,) = non_max_suppression(rows, NmsSettings(0.1, 0.5, max_det=1000))
    assert torch.equal(rows, before)
    half = rows[0, :, 2:4] / 2
    xyxy = torch.cat([rows[0, :, :2] - half, rows[0, :, :2] + half], 1)
    score, label = (rows[0, :, 5:] * rows[0, :, 4:5]).max(1)
    expected = []
    for c in range(3):
        chosen = ((label == c) & (score > 0.1)).nonzero().flatten()
        expected += chosen[torchvision_nms(xyxy[chosen], score[chosen], 0.5)].tolist()
    assert sorted(found.score.tolist()) == pytest.approx(sorted(score[expected].tolist()))
    assert (np.diff(found.score) <= 0).all()


def test_nms_options() -> None:
    box = torch.tensor([[50, 50, 20, 20, 0.9, 0.8, 0.7], [50, 50, 20, 20, 0.8, 0.1, 0.9], [9, 9, 4, 4, 0.01, 1, 1]])
    rows = box[None]

    def found(*thresholds: float, **settings: Any) -> Boxes:
        return non_max_suppression(rows, NmsSettings(*thresholds, **settings))[0]

    assert len(found(0.25, 0.45)) == 2
    assert len(found(0.25, 0.45, agnostic=True)) == 1
    assert found(0.05, 0.99, multi_label=True).label.tolist() == [0, 1]
    assert found(0.25, 0.45, classes=(1,)).label.tolist() == [1]
    assert len(found(0.25, 0.45, max_det=1)) == 1
    assert found(0.99, 0.45).xyxy.shape == (0, 4)
    with pytest.raises(ValueError, match=r"conf_thres is 1.5, expected 0..1"):
        found(1.5, 0.45)


@pytest.mark.parametrize("sides", [(0.0, 0.0), (0.0, 3.0), (3.0, 0.0), (1e-9, 1e-9), (1e-5, 40.0)])
@pytest.mark.parametrize("center", [0.5, 80.0, 640.0])
def test_a_collapsed_box_has_a_finite_iou_and_gradient(sides: tuple[float, float], center: float) -> None:
    """A side of 0 made the gradient NaN: a small side is lost when it is added to a center."""
    xywh = torch.tensor([[center, center, *sides], [center, center, 4.0, 5.0]], requires_grad=True)
    truth = torch.tensor([[center - 1, center - 2, center + 2, center + 2]]).repeat(2, 1)
    iou = paired_ciou(xywh2xyxy(xywh), truth)
    (1 - iou).sum().backward()
    assert torch.isfinite(iou).all() and torch.isfinite(xywh.grad).all()
    assert iou[1] > 0.5 > iou[0]


def test_logits_far_below_zero_teach_finite_gradients() -> None:
    raw = [(level.detach() - 60).requires_grad_() for level in maps(64)]
    total, parts = make_loss()(raw, targets_of(torch.tensor([[0, 1, 0.5, 0.5, 0.3, 0.4], [1, 2, 0.2, 0.7, 0.2, 0.1]])))
    total.backward()
    assert torch.isfinite(total) and all(torch.isfinite(part) for part in parts.values())
    assert all(torch.isfinite(level.grad).all() for level in raw)
