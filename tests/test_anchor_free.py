"""The anchor-free head of distances against recorded numbers of an independent implementation, and its own laws."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from shared import oracle
from torch import Tensor
from torch.testing import assert_close

from models.heads import DetectV8
from models.yolo import DetectionModel
from utils.boxes import Targets, xywh2xyxy
from utils.hyp import Hyp
from utils.loss import CellGrid, cell_grid
from utils.loss_tal import TaskAlignedLoss, assign_task_aligned, bin_loss, cells_inside, distances_of

YAMLS = {  # parameters, bins
    "yolov5n-v8.yaml": (2_524_048, 16),
    "yolov5-mobilevit-v8.yaml": (2_810_992, 16),
    "yolov5-mobilevit-fast-v8.yaml": (1_260_973, 1),
}


def head_of(recorded: dict[str, Any]) -> DetectV8:
    head = DetectV8(recorded["nc"], ch=[64, 64, 64], reg_max=recorded["reg_max"]).eval()
    head.stride.copy_(torch.tensor(recorded["strides"], dtype=torch.float32))
    return head


def recorded_targets(recorded: dict[str, Any]) -> Targets:
    rows = recorded["targets_class_xyxy_01"]
    image, place = (rows[..., 0] >= 0).nonzero(as_tuple=True)
    low, high = rows[image, place, 1:3], rows[image, place, 3:5]
    return Targets(image, rows[image, place, 0].long(), torch.cat([(low + high) / 2, high - low], dim=1))


@pytest.mark.parametrize("case", [0, 1])
def test_decoding_assignment_and_loss_equal_the_recorded(case: int) -> None:
    recorded = oracle("tal_dfl_loss.pt")
    head, targets, expected = head_of(recorded), recorded_targets(recorded), recorded["cases"][case]
    maps = expected["maps"]
    decoded = head.decode_all(maps)
    xyxy = xywh2xyxy(decoded[..., :4])
    assert_close(xyxy, expected["boxes_xyxy_px"], rtol=1e-5, atol=1e-3)

    criterion = head.criterion(Hyp(nominal_batch=2), recorded["imgsz"])
    assert isinstance(criterion, TaskAlignedLoss)
    grid = cell_grid(maps, head.stride)
    truth = xywh2xyxy(targets.xywhn * grid.size)
    image, cell, box, weight = criterion.assign(decoded[..., 5:], xyxy, truth, targets, grid)
    valid = torch.zeros_like(expected["valid"])
    valid[image, cell] = True
    assert torch.equal(valid, expected["valid"])
    wanted = torch.zeros(expected["class_targets"].shape)
    wanted[image, cell, targets.label[box]] = weight
    assert_close(wanted, expected["class_targets"].float(), rtol=0, atol=2e-3)

    loss, parts = criterion(maps, targets)
    for name, part in parts.items():
        assert part.item() == pytest.approx(expected["loss"][name], rel=1e-5)
    assert loss.item() == pytest.approx(expected["loss"]["total_loss"], rel=1e-5)


@pytest.mark.parametrize("name", YAMLS)
def test_the_networks_have_this_head(name: str) -> None:
    model = DetectionModel(name)
    assert isinstance(model.head, DetectV8)
    assert (sum(p.numel() for p in model.parameters()), model.head.reg_max) == YAMLS[name]


def test_the_fast_network_keeps_its_body_and_costs_less_than_yolov5n() -> None:
    fast, own, small = (
        DetectionModel(f"{name}.yaml") for name in ("yolov5-mobilevit-fast", "yolov5-mobilevit-fast-v8", "yolov5n")
    )
    bodies = [{k: t.shape for k, t in m.state_dict().items() if not k.startswith("model.24.")} for m in (fast, own)]
    assert bodies[0] == bodies[1] and cast(DetectV8, own.head).enlarge == 2.0 and own.grid == 32
    assert own.gflops(640) < small.gflops(640)  # at most 1.2 times its time: docs/heads.md


def test_the_expectation_of_the_bins_is_the_distance() -> None:
    head = DetectV8(2, ch=[16], reg_max=16).eval()
    head.stride.fill_(8.0)
    sides = torch.tensor([3, 0, 15, 7])  # left, top, right, bottom
    level = torch.full((1, 64 + 2, 2, 3), -100.0)
    for side, bin_ in enumerate(sides.tolist()):
        level[:, 16 * side + bin_] = 100.0
    rows = head.decode(level, 0).view(2, 3, 7)
    x1, y1, x2, y2 = xywh2xyxy(rows[1, 2, :4]).tolist()  # the cell at row 1, column 2 has its center at 20, 12
    assert (x1, y1, x2, y2) == pytest.approx((20 - 24, 12 - 0, 20 + 120, 12 + 56))
    assert (rows[..., 4] == 1).all()


def test_one_bin_is_a_distance_of_its_own() -> None:
    head = DetectV8(1, ch=[16], reg_max=1).eval()
    head.stride.fill_(16.0)
    level = torch.tensor([0.0, 1.0, 2.0, -3.0, 0.5]).view(1, 5, 1, 1)
    left, top, right, bottom = (16 * F.softplus(torch.tensor(v)).item() for v in (0.0, 1.0, 2.0, -3.0))
    x1, y1, x2, y2 = xywh2xyxy(head.decode(level, 0)[0, 0, :4]).tolist()
    assert (x1, y1, x2, y2) == pytest.approx((8 - left, 8 - top, 8 + right, 8 + bottom), rel=1e-5)
    assert_close(distances_of(level.view(1, 5)[:, :4, None]), F.softplus(level.view(1, 5)[:, :4]))


@pytest.mark.parametrize("reg_max", [16, 1])
def test_the_loss_decodes_as_the_head_does(reg_max: int) -> None:
    """A prediction of exactly the labels has no box loss, and no distance loss with one bin."""
    head = DetectV8(2, ch=[16], reg_max=reg_max).eval()
    head.stride.fill_(8.0)
    level = torch.full((1, 4 * reg_max + 2, 8, 8), -20.0)
    xyxy = torch.tensor([12.0, 12.0, 44.0, 36.0])
    cell = (3, 3)  # its center is 28, 28
    distances = torch.cat([28 - xyxy[:2], xyxy[2:] - 28]) / 8
    for side, d in enumerate(distances.tolist()):
        if reg_max == 1:
            level[0, side, cell[0], cell[1]] = math.log(math.expm1(d))
        else:
            level[0, 16 * side + int(d), cell[0], cell[1]] = 40.0
    level[0, 4 * reg_max, cell[0], cell[1]] = 20.0
    box = torch.cat([(xyxy[:2] + xyxy[2:]) / 2, xyxy[2:] - xyxy[:2]]) / 64
    targets = Targets(torch.tensor([0]), torch.tensor([0]), box[None])
    _, parts = head.criterion(Hyp(), 64)([level], targets)
    assert parts["box"].item() < 1e-3 and parts[head.criterion(Hyp(), 64).names[1]].item() < 1e-3


def test_bin_loss_is_least_at_the_two_neighbors_in_proportion() -> None:
    wanted = torch.tensor([[2.25, 0.0, 13.9, 7.5]])
    share = torch.zeros(1, 4, 16)
    for side, value in enumerate(wanted[0].tolist()):
        share[0, side, int(value)] += 1 - value % 1
        share[0, side, int(value) + 1] += value % 1
    best = bin_loss((share + 1e-12).log(), wanted)
    entropy = -(share * share.clamp(min=1e-12).log()).sum(dim=2).mean(dim=1)
    assert_close(best, entropy, atol=1e-5, rtol=0)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        assert bin_loss(torch.randn(1, 4, 16, generator=generator) * 3, wanted) > best


def grid_of(imgsz: int) -> CellGrid:
    strides = (8, 16, 32)
    return cell_grid([torch.zeros(1, 1, imgsz // s, imgsz // s) for s in strides], torch.tensor(strides).float())


def perfect(grid: CellGrid, truth: Tensor) -> Tensor:
    """Every cell predicts the first box."""
    return truth[:1].expand(len(grid.stride), 4).clone()


def test_small_boxes_get_cells_if_they_are_enlarged() -> None:
    grid, label = grid_of(128), torch.tensor([0])
    truth = torch.tensor([[61.0, 61.0, 67.0, 67.0]])  # between four cells of stride 8, whose centers are 60 and 68
    p = torch.full((len(grid.stride), 2), 0.5)
    assert not cells_inside(truth, grid, 15.0, 0.0)[:, :256].any()
    plain = assign_task_aligned(p, perfect(grid, truth), truth, label, grid, 15.0)
    assert len(plain.cell) == 1 or (plain.cell >= 256).all()  # a coarser cell, or the one that it gets in any case
    enlarged = assign_task_aligned(p, perfect(grid, truth), truth, label, grid, 15.0, least=16.0)
    near = (grid.centers[enlarged.cell] - 64).abs().amax(dim=1)
    assert len(enlarged.cell) > len(plain.cell) and (near <= 8).all() and (enlarged.cell < 256).sum() == 4
    large = torch.tensor([[20.0, 20.0, 100.0, 100.0]])
    before, after = (cells_inside(large, grid, 15.0, least) for least in (0.0, 16.0))
    assert torch.equal(before, after)


def test_the_best_cell_of_a_box_has_its_best_iou_as_target() -> None:
    grid = grid_of(128)
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([[10.0, 10.0, 60.0, 50.0], [50.0, 40.0, 120.0, 110.0], [30.0, 20.0, 70.0, 60.0]])
    label = torch.tensor([0, 1, 1])
    which = torch.randint(0, 3, (len(grid.stride),), generator=generator)
    xyxy = truth[which] + torch.randn(len(which), 4, generator=generator) * 6
    p = torch.rand(len(which), 2, generator=generator)
    found = assign_task_aligned(p, xyxy, truth, label, grid, 15.0)
    assert len(found.cell.unique()) == len(found.cell)
    assert ((found.weight >= 0) & (found.weight <= 1)).all()
    for box in range(3):
        own = found.box == box
        assert 1 <= own.sum() <= 10
        x1, y1, x2, y2 = truth[box]
        x, y = grid.centers[found.cell[own]].T
        assert ((x > x1) & (x < x2) & (y > y1) & (y < y2)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reg_max": 0}, "DetectV8: reg_max 0, expected an int of at least 1"),
        ({"reg_max": True}, "DetectV8: reg_max True"),
        ({"enlarge": -1}, "DetectV8: enlarge -1, expected a number of strides of at least 0"),
        ({"bins": 4}, "unexpected keyword argument 'bins'"),
    ],
)
def test_wrong_options_name_the_row(options: dict[str, Any], message: str) -> None:
    cfg = {"nc": 2, "backbone": [[-1, 1, "Conv", [16, 3, 8]]], "head": [[[-1], 1, "DetectV8", ["nc", options]]]}
    with pytest.raises(ValueError, match=f"row 1: .*{message}"):
        DetectionModel(cfg)


def test_the_gains_of_hyp_scale_the_parts() -> None:
    torch.manual_seed(0)
    model = DetectionModel("yolov5n-v8.yaml", nc=2).train()
    raw = [level.detach() for level in model(torch.rand(1, 3, 64, 64))]
    targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.4, 0.3]]))
    usual = model.head.criterion(Hyp(), 64)(raw, targets)[1]
    other = model.head.criterion(Hyp(box=0.1, cls=0.25), 64)(raw, targets)[1]
    for name, factor in (("box", 2.0), ("dfl", 2.0), ("cls", 0.5)):
        assert_close(other[name], factor * usual[name])
    smooth = model.head.criterion(Hyp(), 64, smooth=0.1)(raw, targets)[1]
    assert smooth["cls"] != usual["cls"] and smooth["box"] == usual["box"]


@pytest.mark.parametrize("reg_max", [16, 1])
def test_mixed_precision_computes_the_loss_in_single(reg_max: int) -> None:
    torch.manual_seed(0)
    head = DetectV8(2, ch=[16], reg_max=reg_max)
    head.stride.fill_(8.0)
    level = torch.randn(1, 4 * reg_max + 2, 8, 8)
    targets = Targets(torch.tensor([0]), torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.4, 0.3]]))
    criterion = head.criterion(Hyp(), 64)
    with torch.autocast("cpu", torch.bfloat16):
        _, mixed = criterion([level], targets)
    for name, part in criterion([level], targets)[1].items():
        assert_close(mixed[name], part)
