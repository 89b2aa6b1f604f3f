"""From YAML rows to a detector: parameters, wiring, grid, outputs, decoding, counting, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from shared import ROOT, oracle
from torch import Tensor, nn
from torch.testing import assert_close

from models import common
from models.heads import Detect
from models.mobilevit import MobileViT
from models.rows import make_divisible, parse_activation
from models.yolo import BLOCKS, DetectionModel, plan_model, read_model_yaml

MODELS = sorted(path.name for path in (ROOT / "models").glob("*.yaml"))
MOBILE = "yolov5-mobilevit.yaml"
RECORDED = [MOBILE, *(f"yolov5{size}.yaml" for size in "nsmlx")]
ANCHORS = [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119], [116, 90, 156, 198, 373, 326]]


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def mapping(name: str) -> dict:
    return yaml.safe_load((ROOT / "models" / name).read_text())


@cache
def fresh(name: str) -> DetectionModel:
    """A model of models/ as it is built, shared between tests: not to be changed."""
    torch.manual_seed(0)
    return DetectionModel(name)


@cache
def built(name: str) -> DetectionModel:
    """The same in eval mode, with norms as after some training: their inputs keep their size from layer to layer."""
    model = deepcopy(fresh(name))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for m in norms:
        nn.init.uniform_(m.weight, 0.8, 1.2)
        nn.init.uniform_(m.bias, -0.2, 0.2)
        m.momentum = 1.0
    with torch.no_grad():
        model(images_of(8))
    for m in norms:
        m.momentum = 0.03
    return model.eval()


def images_of(n: int) -> Tensor:
    """(n, 3, 64, 128), each with its own color and contrast."""
    generator = torch.Generator().manual_seed(n)
    noise, color, contrast = (
        torch.rand(n, *shape, generator=generator) for shape in ((3, 64, 128), (3, 1, 1), (1, 1, 1))
    )
    return (color + contrast * (noise - 0.5)).clamp(0, 1)


def tiny(*rows: list, **changes) -> dict:
    """A detector of one level: a strided Conv to 8 channels, then `rows`, then Detect."""
    cfg = {
        "nc": 2,
        "anchors": [[8, 8, 16, 16]],
        "backbone": [[-1, 1, "Conv", [8, 3, 2]], *rows],
        "head": [[-1, 1, "Detect", ["nc", "anchors"]]],
    }
    return cfg | changes


# --- parameters and wiring -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_yaml_builds_and_has_the_three_strides(name: str) -> None:
    model = fresh(name)
    assert model.stride.tolist() == [8, 16, 32]
    assert model.grid == (64 if "mobilevit" in name and not name.startswith("yolov5-mobilevit-fast") else 32)
    assert model.training
    if isinstance(model.head, Detect):
        assert torch.equal(model.head.anchors.flatten(1), torch.tensor(ANCHORS, dtype=torch.float32))
    else:
        assert model.head.anchors is None


def test_known_totals() -> None:
    assert {name: count(fresh(name)) for name in (MOBILE, "yolov5n.yaml", "yolov5s.yaml")} == {
        MOBILE: 2_159_101,
        "yolov5n.yaml": 1_872_157,
        "yolov5s.yaml": 7_235_389,
    }
    rows = fresh(MOBILE).model
    assert [count(rows[i]) for i in (5, 7, 9)] == [134_016, 580_320, 633_888]


def assert_as_recorded(model: DetectionModel, name: str) -> None:
    expected = oracle("yolov5_models.json")[name]
    assert [count(layer) for layer in model.model] == expected["row_parameters"]
    assert count(model) == expected["parameters"]
    before_detect = len(model.model) - 2  # recorded as saved, here handed straight to Detect
    assert model.save | {before_detect} == set(expected["save"])
    assert model.stride.tolist() == expected["stride"]


@pytest.mark.parametrize("name", RECORDED)
def test_rows_as_recorded(name: str) -> None:
    assert_as_recorded(fresh(name), name)


def ghost(cfg: dict) -> None:
    others = {"Conv": "GhostConv", "C3": "C3Ghost"}
    for row in [*cfg["backbone"][1:], *cfg["head"]]:
        row[2] = others.get(row[2], row[2])


def transformer(cfg: dict) -> None:
    assert cfg["backbone"][8][2] == "C3"
    cfg["backbone"][8][2] = "C3TR"


def leaky(cfg: dict) -> None:
    cfg["activation"] = "nn.LeakyReLU(0.1)"


@pytest.mark.parametrize(
    ("edit", "name", "total"),
    [
        (ghost, "yolov5s-ghost.yaml", 3_897_605),
        (transformer, "yolov5s-transformer.yaml", 7_235_645),
        (leaky, "yolov5s-LeakyReLU.yaml", 7_235_389),
    ],
    ids=["ghost", "transformer", "leaky"],
)
def test_variants_of_s(edit: Callable[[dict], None], name: str, total: int) -> None:
    cfg = mapping("yolov5s.yaml")
    edit(cfg)
    model = DetectionModel(cfg)
    assert count(model) == total
    assert_as_recorded(model, name)


def four_levels(depth: float, width: float) -> dict:
    """Down to stride 64 with a level there: each width a C3 stage, up again with concats, down again."""
    widths, depths = (128, 256, 512, 768, 1024), (3, 6, 9, 3, 3)
    backbone: list[list] = [[-1, 1, "Conv", [64, 6, 2, 2]]]
    for w, n in zip(widths, depths, strict=True):
        backbone += [[-1, 1, "Conv", [w, 3, 2]], [-1, n, "C3", [w]]]
    backbone.append([-1, 1, "SPPF", [1024, 5]])
    head: list[list] = []
    for w, skip in ((768, 8), (512, 6), (256, 4)):
        up = [-1, 1, "nn.Upsample", ["None", 2, "nearest"]]
        head += [[-1, 1, "Conv", [w, 1, 1]], up, [[-1, skip], 1, "Concat", [1]], [-1, 3, "C3", [w, False]]]
    for w, out, skip in ((256, 512, 20), (512, 768, 16), (768, 1024, 12)):
        head += [[-1, 1, "Conv", [w, 3, 2]], [[-1, skip], 1, "Concat", [1]], [-1, 3, "C3", [out, False]]]
    head.append([[23, 26, 29, 32], 1, "Detect", ["nc", "anchors"]])
    multiples = {"depth_multiple": depth, "width_multiple": width}
    return {"nc": 80, "anchors": [*ANCHORS, [400, 400, 500, 500, 600, 600]], "backbone": backbone, "head": head} | (
        multiples
    )


@pytest.mark.parametrize(("size", "depth", "width"), [("n", 0.33, 0.25), ("s", 0.33, 0.5)])
def test_a_fourth_level(size: str, depth: float, width: float) -> None:
    model = DetectionModel(four_levels(depth, width))
    assert model.grid == 64
    assert model.stride.tolist() == [8, 16, 32, 64]
    assert_as_recorded(model, f"yolov5{size}6.yaml")


@pytest.mark.parametrize("size", ["xxs", "xs", "s"])
def test_backbone_takes_the_classifiers_weights(size: str) -> None:
    backbone = fresh(f"yolov5-mobilevit-{size}.yaml").model[:10]
    features = MobileViT(size).features
    shapes = [{name: p.shape for name, p in m.state_dict().items()} for m in (backbone, features)]
    assert shapes[0] == shapes[1]
    for ours, theirs in zip(backbone, features, strict=True):
        assert count(ours) == count(theirs)


def test_saved_rows_are_those_read_later() -> None:
    model = fresh(MOBILE)
    rows = [*model.yaml["backbone"], *model.yaml["head"]]
    read = {s for i, row in enumerate(rows) if isinstance(row[0], list) for s in row[0] if 0 <= s < i - 1}
    assert model.save == read == {5, 7, 10, 14, 17, 20}


def test_negative_and_absolute_sources_are_the_same() -> None:
    absolute = tiny([-1, 1, "Conv", [16, 3]], [[1, 0], 1, "Concat", [1]])
    relative = tiny([-1, 1, "Conv", [16, 3]], [[-1, -2], 1, "Concat", [1]])
    one, other = DetectionModel(absolute).eval(), DetectionModel(relative).eval()
    other.load_state_dict(one.state_dict())
    x = torch.rand(1, 3, 32, 32)
    assert one.routes == other.routes
    assert torch.equal(one(x)[0], other(x)[0])


def test_a_row_may_read_the_image() -> None:
    shrink = [-2, 1, "nn.MaxPool2d", [2, 2]]
    model = DetectionModel(tiny(shrink, [[-1, 0], 1, "Concat", [1]]))
    assert model.routes[1] == (-1,)
    assert model.head.m[0].in_channels == 3 + 8
    assert model(torch.rand(1, 3, 8, 8))[0].shape[2:4] == (4, 4)


def test_the_mapping_with_the_state_rebuilds_the_model() -> None:
    model = built(MOBILE)
    other = DetectionModel(model.yaml).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(other(x)[0], model(x)[0])


def test_building_leaves_the_mapping_alone() -> None:
    cfg = mapping(MOBILE)
    before = deepcopy(cfg)
    model = DetectionModel(cfg, nc=3)
    assert cfg == before
    assert model.nc == model.yaml["nc"] == model.head.nc == 3
    assert model.head.no == 8


def test_norms_have_the_constants_of_training() -> None:
    norms = [m for m in fresh(MOBILE).modules() if isinstance(m, nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.03)}


@pytest.mark.parametrize("name", ["yolov5n.yaml", MOBILE])
def test_first_predictions_expect_few_objects(name: str) -> None:
    """Eight objects in a 640 px image per anchor and level, 0.6 spread over the classes."""
    model = deepcopy(fresh(name))
    for conv in model.head.m:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)
    model.head.prior_bias()
    for conv, stride in zip(model.head.m, model.stride.tolist(), strict=True):
        bias = conv.bias.detach().view(model.head.na, -1)
        cells = (640 / stride) ** 2
        assert_close(bias[:, 4].exp() * cells, torch.full((3,), 8.0))
        assert_close(bias[:, 5:].exp().sum(1), torch.full((3,), 0.6 * 80 / 79), atol=1e-4, rtol=1e-4)
        assert not bias[:, :4].any()


# --- the grid --------------------------------------------------------------------------------------------------------


def with_patch(row: int, patch: int | list[int]) -> dict:
    cfg = mapping(MOBILE)
    assert cfg["backbone"][row][2] == "MobileViTBlock"
    cfg["backbone"][row][3][4] = patch
    return cfg


@pytest.mark.parametrize(
    ("cfg", "grid", "divisors"),
    [
        (mapping(MOBILE), 64, [2]),
        (mapping("yolov5n.yaml"), 32, [2]),
        (with_patch(9, 4), 128, [2]),
        (with_patch(9, [2, 4]), 128, [2]),
        (with_patch(9, [4, 2]), 128, [2]),
        (with_patch(9, 1), 32, [2]),
        (with_patch(5, 8), 64, [2]),
        (with_patch(5, 3), 192, [2, 3]),
    ],
    ids=["2", "none", "4", "2x4", "4x2", "1", "8 at stride 8", "3 at stride 8"],
)
def test_grid_is_the_least_that_every_layer_takes(cfg: dict, grid: int, divisors: list[int]) -> None:
    model = DetectionModel(cfg).eval()
    assert model.grid == grid
    with torch.inference_mode():
        assert model(torch.rand(1, 3, grid, 2 * grid))[0].shape[0] == 1
        model.grid = 1  # without the check in front, a layer refuses
        for divisor in divisors:
            with pytest.raises((ValueError, RuntimeError)):
                model(torch.rand(1, 3, grid // divisor, grid // divisor))


def test_focus_and_contract_count_in_the_grid() -> None:
    assert DetectionModel(tiny()).grid == 2
    assert DetectionModel(tiny([-1, 1, "Contract", [3]])).grid == 6
    assert DetectionModel(tiny([-1, 1, "Focus", [8]])).grid == 4


def test_an_input_off_the_grid_names_the_neighbors() -> None:
    with pytest.raises(ValueError) as error:
        built(MOBILE)(torch.zeros(1, 3, 416, 416))
    text = str(error.value)
    assert all(part in text for part in (MOBILE, "416x416", "64", "384", "448"))


def test_either_side_off_the_grid_is_refused() -> None:
    for h, w in ((64, 96), (96, 64)):
        with pytest.raises(ValueError, match=f"{h}x{w}"):
            built(MOBILE)(torch.zeros(1, 3, h, w))
    with pytest.raises(ValueError, match="height 64 or 64") as error:
        built(MOBILE)(torch.zeros(1, 3, 32, 64))
    assert "height 0" not in str(error.value)


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["yolov5n.yaml", MOBILE, "yolov5-mobilevit-xxs.yaml"])
@pytest.mark.parametrize("nc", [1, 3])
def test_shapes_and_names(name: str, nc: int) -> None:
    model = DetectionModel(name, nc=nc)
    x = torch.rand(2, 3, 64, 128)
    raw_shapes = [(2, 3, 64 // s, 128 // s, 5 + nc) for s in (8, 16, 32)]
    raw = model(x)
    assert [tuple(level.shape) for level in raw] == raw_shapes
    with torch.inference_mode():
        decoded, raw = model.eval()(x)
    assert [tuple(level.shape) for level in raw] == raw_shapes
    assert decoded.shape == (2, sum(a * h * w for _, a, h, w, _ in raw_shapes), 5 + nc)
    assert model.names == {i: str(i) for i in range(nc)}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def decode_by_hand(raw: list[Tensor], anchors: list[list[float]], strides: list[float]) -> np.ndarray:
    """Boxes cell by cell: the center lies -0.5..1.5 cells from the cell's corner, a side is 0..4 times the anchor's."""
    images = []
    for image in range(len(raw[0])):
        boxes = []
        for level, flat, stride in zip(raw, anchors, strides, strict=True):
            maps = level[image].double().numpy()
            for a, row, column in np.ndindex(maps.shape[:3]):
                t = sigmoid(maps[a, row, column])
                cx = (column + 2 * t[0] - 0.5) * stride
                cy = (row + 2 * t[1] - 0.5) * stride
                w = flat[2 * a] * (2 * t[2]) ** 2
                h = flat[2 * a + 1] * (2 * t[3]) ** 2
                boxes.append([cx, cy, w, h, *t[4:]])
        images.append(boxes)
    return np.array(images)


@pytest.mark.parametrize("name", ["yolov5n.yaml", MOBILE])
def test_decoding_equals_the_formula(name: str) -> None:
    torch.manual_seed(0)
    head = DetectionModel(name, nc=2).eval().head
    levels = [
        torch.randn(2, conv.in_channels, 64 // s, 128 // s) * 3 for conv, s in zip(head.m, (8, 16, 32), strict=True)
    ]
    with torch.inference_mode():
        decoded, raw = head(levels)
    assert max(level.std().item() for level in raw) > 0.5  # or all boxes would be anchors in the middle of cells
    assert_close(decoded.double().numpy(), decode_by_hand(raw, ANCHORS, [8, 16, 32]), atol=1e-3, rtol=1e-5)


def test_half_precision_maps_are_decoded_in_single() -> None:
    head = deepcopy(fresh("yolov5n.yaml").head)
    level = torch.randn(1, 3 * 85, 4, 4).half()
    expected = head.decode(level.float(), 2)
    assert expected.dtype == torch.float32
    assert torch.equal(head.half().decode(level, 2), expected)


@pytest.mark.parametrize("name", [MOBILE, "yolov5-mobilevit-xxs.yaml", "yolov5n.yaml"])
def test_a_batch_equals_its_images_alone(name: str) -> None:
    model, x = built(name), images_of(3)
    with torch.inference_mode():
        together = model(x)[0]
        alone = torch.cat([model(image[None])[0] for image in x])
    assert (together[0] - together[1]).abs().max() > 0.1
    assert_close(together, alone, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", [MOBILE, "yolov5-mobilevit-xxs.yaml", "yolov5n.yaml"])
def test_fusing_keeps_the_outputs(name: str) -> None:
    x = images_of(2).double()  # in double precision only a mistake shows, not rounding
    model = deepcopy(built(name)).double()
    with torch.inference_mode():
        decoded, raw = model(x)
        assert model.train().fuse() is model
        assert not model.training
        fused_decoded, fused_raw = model(x)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    for before, after in zip(raw, fused_raw, strict=True):
        assert_close(after, before, atol=1e-8, rtol=1e-8)
    assert_close(fused_decoded, decoded, atol=1e-4, rtol=1e-4)


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    model = DetectionModel(MOBILE, nc=2)
    sum((level * torch.randn_like(level)).sum() for level in model(torch.rand(2, 3, 64, 64))).backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


# --- measuring -------------------------------------------------------------------------------------------------------


def everything(model: DetectionModel) -> dict:
    """All that measuring a model must not change."""
    return {
        "state": {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()},
        "training": model.training,
        "fused": [m.fused for m in model.modules() if isinstance(m, common.Attention)],
        "gradients": {name: p.requires_grad for name, p in model.named_parameters()},
        "hooks": sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()),
        "outside": (model.grid, torch.is_grad_enabled(), torch.get_rng_state().tolist()),
    }


def assert_same(before: dict, after: dict) -> None:
    for name, (address, value) in before.pop("state").items():
        assert after["state"][name][0] == address and torch.equal(after["state"][name][1], value), name
    after.pop("state")
    assert before == after


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("look", [DetectionModel.gflops, lambda m: plan_model(m.yaml)])
def test_measuring_changes_nothing(look: Callable, training: bool) -> None:
    model = deepcopy(built(MOBILE)).train(training)
    model.model[7].transformer[1].attention.fused = False  # a mixture, so that setting all alike shows
    before = everything(model)
    look(model)
    assert_same(before, everything(model))


def test_measuring_keeps_the_mode_of_each_module() -> None:
    model = deepcopy(built(MOBILE)).train()
    model.model[0].eval()  # frozen statistics
    before = [m.training for m in model.modules()]
    model.gflops(64)
    assert [m.training for m in model.modules()] == before


def without_attention(self: common.Attention, x: Tensor) -> Tensor:
    return self.out(self.qkv(x).chunk(3, dim=-1)[2])


@pytest.mark.parametrize("imgsz", [64, 256])
def test_gflops_count_attention(imgsz: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(MOBILE)
    whole = model.gflops(imgsz)
    monkeypatch.setattr(common.Attention, "forward", without_attention)
    expected = 0
    for stride, layers in ((8, 2), (16, 4), (32, 3)):
        places, inner = 4, 4 * 8
        patches = (imgsz // stride) ** 2 // places
        expected += 2 * 2 * places * patches**2 * inner * layers  # q k and the sum of v, a product and a sum each
    assert (whole - model.gflops(imgsz)) * 1e9 == pytest.approx(expected, abs=1)


def test_gflops_of_one_convolution() -> None:
    model = DetectionModel(tiny())
    backbone = 2 * 16 * 16 * 8 * 3 * 9
    head = 2 * 16 * 16 * 8 * (2 * 7)
    assert model.gflops(32) * 1e9 == pytest.approx(backbone + head, abs=1)


def test_summary_has_a_line_for_each_row_and_the_totals() -> None:
    model = built(MOBILE)
    lines = model.summary().splitlines()[1:]
    counts = [
        int(re.match(r" *\d+ +(?:-?\d+|\[.*?\]) +\d+ +([\d,]+)  ", line)[1].replace(",", "")) for line in lines[:-1]
    ]
    assert counts == [count(layer) for layer in model.model]
    assert "2,159,101 parameters" in lines[-1] and "grid 64" in lines[-1] and "[8, 16, 32]" in lines[-1]
    assert f"{model.gflops(640):.1f} GFLOPs" in lines[-1]


def test_summary_has_the_rows_as_they_are_built() -> None:
    """Widths and repeats after the multiples, as the modules have them."""
    model = DetectionModel("yolov5n.yaml", nc=3)
    lines = [line.split(maxsplit=5) for line in model.summary().splitlines()[1:-1]]
    assert lines[0] == ["0", "-1", "1", "1,760", "Conv", "3, 16, 6, 2, 2"]
    assert lines[6] == ["6", "-1", "3", "156,928", "C3", "128, 128"]
    assert len(model.model[6].m) == 3 and model.model[0].conv.out_channels == 16
    assert model.summary().splitlines()[-2].endswith("[64, 128, 256]") and "\n  24" in model.summary()


# --- what a row may say ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repeats", "depth", "expected"),
    [(1, 0.33, 1), (2, 0.33, 1), (3, 0.33, 1), (6, 0.33, 2), (9, 0.33, 3), (9, 1.33, 12)],
)
def test_repeats_go_inside_where_the_block_has_a_place_for_them(repeats: int, depth: float, expected: int) -> None:
    model = DetectionModel(tiny([-1, repeats, "C3", [16]], depth_multiple=depth))
    assert isinstance(model.model[1], common.C3)
    assert len(model.model[1].m) == expected


@pytest.mark.parametrize("repeats", [2, 3])
def test_repeats_stack_other_blocks(repeats: int) -> None:
    model = DetectionModel(tiny([-1, repeats, "MV2Block", [16, 1, 2]]))
    stack = model.model[1]
    assert isinstance(stack, nn.Sequential)
    assert [m.expand.conv.in_channels for m in stack] == [8] + [16] * (repeats - 1)
    assert [m.residual for m in stack] == [False] + [True] * (repeats - 1)
    assert model.head.m[0].in_channels == 16


@pytest.mark.parametrize(
    ("width", "multiple", "expected"), [(64, 0.5, 32), (20, 1.0, 24), (16, 0.33, 8), (16, 1.25, 24)]
)
def test_widths_are_scaled_and_rounded_up_to_eight(width: int, multiple: float, expected: int) -> None:
    model = DetectionModel(tiny([-1, 1, "Conv", [width]], width_multiple=multiple))
    assert model.model[1].conv.out_channels == expected
    assert model.head.m[0].out_channels == 2 * 7  # never of the detections


def test_make_divisible_is_the_least_multiple_from_above() -> None:
    for width in np.arange(0.5, 70, 0.5):
        rounded = make_divisible(width, 8)
        assert rounded % 8 == 0 and 0 <= rounded - width < 8


def test_a_closing_mapping_names_arguments() -> None:
    named = DetectionModel(tiny([-1, 1, "MobileViTBlock", [8, 16, 1, {"patch_size": 4, "heads": 2, "head_dim": None}]]))
    block = named.model[1]
    assert block.divides == (4, 4)
    attention = block.transformer[0].attention
    assert (attention.heads, attention.head_dim) == (2, 8)
    assert named.grid == 8


@pytest.mark.parametrize("words", [["None", 2, "nearest"], [None, 2, "nearest"], [None, 2, "bilinear"]], ids=str)
def test_words_of_an_upsample_row(words: list) -> None:
    model = DetectionModel(tiny([-1, 1, "nn.Upsample", words], [-1, 1, "Conv", [8, 3, 2]]))
    up = model.model[1]
    assert (up.size, up.scale_factor, up.mode) == (None, 2, words[2])


def test_nc_and_anchors_are_words() -> None:
    words, numbers = tiny(), tiny()
    numbers["head"][0][3] = [2, [[8, 8, 16, 16]]]
    one, other = DetectionModel(words).head, DetectionModel(numbers).head
    assert (one.nc, one.na, one.no) == (other.nc, other.na, other.no) == (2, 2, 7)
    assert torch.equal(one.anchors, other.anchors)


def test_a_new_block_is_a_class_and_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        divides = (5, 1)

        def __init__(self, c1: int, c2: int, factor: float = 1.0, n: int = 1):
            super().__init__()
            self.mix, self.factor, self.n = nn.Conv2d(c1, c2, 1), factor, n

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x) * self.factor

    monkeypatch.setitem(BLOCKS, "Twice", Twice)
    model = DetectionModel(tiny([-1, 3, "Twice", [16, 2.5]], [-1, 1, "Twice", [24, {"factor": 4.0}]]))
    first, second = model.model[1], model.model[2]
    assert (first.factor, first.n, second.factor, second.n) == (2.5, 3, 4.0, 1)
    assert (first.mix.in_channels, second.mix.in_channels, model.head.m[0].in_channels) == (8, 16, 24)
    assert model.grid == 10
    assert model(torch.rand(1, 3, 10, 20))[0].shape == (1, 2, 5, 10, 7)


@pytest.mark.parametrize(
    ("text", "kind", "check"),
    [
        ("nn.SiLU()", nn.SiLU, lambda m: True),
        ("nn.LeakyReLU(0.1)", nn.LeakyReLU, lambda m: m.negative_slope == 0.1),
        (" nn.ReLU() ", nn.ReLU, lambda m: not m.inplace),
        ("nn.ReLU(True)", nn.ReLU, lambda m: m.inplace),
        ("nn.Hardswish()", nn.Hardswish, lambda m: True),
    ],
)
def test_activation_of_a_model(text: str, kind: type[nn.Module], check: Callable[[nn.Module], bool]) -> None:
    model = DetectionModel(tiny([-1, 1, "MV2Block", [8]], activation=text))
    assert type(model.model[0].act) is kind and check(model.model[0].act)
    block = model.model[1]
    assert type(block.depthwise.act) is kind
    assert isinstance(block.project.act, nn.Identity)  # what is linear stays linear


# --- what is refused -------------------------------------------------------------------------------------------------

ATTACKS = [
    "__import__('os').system('touch x')",
    "nn.SiLU(__import__('os').system('touch x'))",
    "nn.SiLU() or __import__('os').system('touch x')",
    "nn.SiLU().__class__(open('x', 'w'))",
    "nn.Sequential()",
    "nn.SiLU",
    "torch.nn.SiLU()",
    "nn.LeakyReLU(slope)",
    "nn.LeakyReLU(0.1",
    "nn.ReLU(1, 2, 3)",
]


@pytest.mark.parametrize("text", ATTACKS)
def test_activations_are_not_evaluated(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="activation"):
        parse_activation(text)
    with pytest.raises(ValueError, match="activation"):
        DetectionModel(tiny(activation=text))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["block", "argument", "source"])
def test_rows_are_not_evaluated(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = ATTACKS[0]
    row = {"block": [-1, 1, code, [8]], "argument": [-1, 1, "Conv", [8, code]], "source": [code, 1, "Conv", [8]]}
    with pytest.raises((ValueError, TypeError)):
        DetectionModel(tiny(row[place]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([-1, 1, "Cnov", [8]], "unknown block 'Cnov'.*Conv, "),
        ([-1, 1, "nn.Conv2d", [8, 8, 1]], "unknown block 'nn.Conv2d'"),
        ([-1, 1, "nn.Upsample", [None, 2, "neerest"]], "unknown word 'neerest'.*nearest"),
        ([-1, 1, "Conv", [8, "width"]], "unknown word 'width'.*nc, anchors, None"),
        ([-1, 1, "Conv", [8, 1, 1, None, 1, 1, True, 9, 9]], "c1, c2, k.*: 2 argument"),
        ([-1, 1, "Conv", [8, {"kernel": 3}]], "Conv: .*kernel"),
        ([-1, 1, "Conv", []], "first argument of Conv must be its width"),
        ([-1, 1, "Conv", [True]], "first argument of Conv must be its width"),
        ([-1, 1, "Conv", [8.5]], "first argument of Conv must be its width"),
        ([-1, 1, "MobileViTBlock", [8]], "MobileViTBlock.*dim"),
        ([-1, 1, "MobileViTBlock", [8, 16, False]], "depth False"),
        ([-1, 1, "MobileViTBlock", [8, 16, 1, 3, 0]], "patch_size 0"),
        ([-1, 1, "MV2Block", [8, 3]], "stride 3"),
        ([[-1, 0], 1, "Conv", [8]], "Conv takes one input, not 2"),
        ([1, 1, "Conv", [8]], "'from' is 1"),
        ([5, 1, "Conv", [8]], "'from' is 5"),
        ([-3, 1, "Conv", [8]], "'from' is -3"),
        ([[0, 7], 1, "Concat", [1]], "'from' is"),
        ([-1, 1, "Conv"], "expected \\[from, repeats, block, \\[args\\]\\]"),
        ([-1, 1, "Conv", 8], "expected \\[from, repeats, block, \\[args\\]\\]"),
        ("Conv", "expected \\[from, repeats, block, \\[args\\]\\]"),
    ],
    ids=str,
)
def test_a_bad_row_is_named(row: list, expected: str) -> None:
    with pytest.raises(ValueError, match=f"(?s)^mine: row 1: .*{expected}"):
        DetectionModel(tiny(row, name="mine"))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
@pytest.mark.parametrize(
    "row",
    [
        ["a", 1, "Conv", [8]],
        [0.5, 1, "Conv", [8]],
        [[], 1, "Concat", [1]],
        [-1, "3", "Conv", [8]],
        [-1, 0, "Conv", [8]],
        [-1, -2, "Conv", [8]],
        [-1, 1, ["Conv"], [8]],
        [-1, 1, "Conv", [0]],
        [-1, 1, "Conv", [-8]],
        [-1, 1, "Expand", [3]],
        [[-1, 0], 1, "nn.Upsample", [None, 2, "nearest"]],
        [-1, 1, "Detect", ["nc", "anchors"]],
    ],
    ids=str,
)
def test_more_bad_rows_are_named(row: list) -> None:
    with pytest.raises(ValueError, match="row 1"):
        DetectionModel(tiny(row))


def test_the_number_of_a_bad_row_counts_on_into_the_head() -> None:
    cfg = mapping(MOBILE)
    cfg["head"][3][2] = "C4"
    with pytest.raises(ValueError, match="row 13: unknown block 'C4'"):
        DetectionModel(cfg)


@pytest.mark.parametrize("key", ["nc", "backbone", "head"])
def test_a_missing_key_is_named(key: str) -> None:
    cfg = {k: v for k, v in tiny(name="mine").items() if k != key}
    with pytest.raises(ValueError, match=f"^mine: key '{key}' is missing"):
        DetectionModel(cfg)


def test_missing_anchors_are_named() -> None:
    with pytest.raises(ValueError, match="anchors"):
        DetectionModel({k: v for k, v in tiny().items() if k != "anchors"})


@pytest.mark.parametrize("nc", [0, -1, True, 1.5, "two"])
def test_nc_must_be_a_count(nc: object) -> None:
    with pytest.raises(ValueError, match=f"nc is {re.escape(repr(nc))}"):
        DetectionModel(tiny(nc=nc))
    with pytest.raises(ValueError, match=f"nc is {re.escape(repr(nc))}"):
        DetectionModel(tiny(), nc=nc)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "anchors",
    [
        3,
        [8, 8],
        [[8, 8, 8]],
        [[8, 8], [16, 16]],
        [[8, -8]],
        [[0, 8]],
        [["a", 8]],
        [[8, 8], [8]],
    ],
    ids=str,
)
def test_anchors_must_fit_the_levels(anchors: object) -> None:
    with pytest.raises(ValueError, match="anchors"):
        DetectionModel(tiny(anchors=anchors))


def test_the_last_row_must_be_detect() -> None:
    cfg = tiny()
    cfg["head"] = [[-1, 1, "Conv", [8]]]
    with pytest.raises(ValueError, match="last row must be Detect"):
        DetectionModel(cfg)


def test_files_are_found_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tiny()))
    for cfg in ("mine.yaml", tmp_path / "mine.yaml"):
        data, where = read_model_yaml(cfg)
        assert data == tiny() and where == "mine.yaml"
    assert read_model_yaml(MOBILE)[0] == mapping(MOBILE)
    with pytest.raises(FileNotFoundError, match=r"absent\.yaml"):
        DetectionModel("absent.yaml")


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "nc: [1\n", "nc: 1: 2\n"])
def test_a_file_that_is_no_model_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"bad\.yaml") as error:
        DetectionModel(tmp_path / "bad.yaml")
    assert "\n" not in str(error.value)


def test_errors_in_a_file_name_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(tiny([-1, 1, "Cnov", [8]])))
    with pytest.raises(ValueError, match=r"^mine\.yaml: row 1: "):
        DetectionModel(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    "changes",
    [{"activation": "nn.Foo()"}, {"activation": 5}, {"activation": True}, {"width_multiple": "x"}, {"backbone": None}],
    ids=str,
)
def test_bad_values_outside_the_rows_name_the_model(changes: dict) -> None:
    with pytest.raises(ValueError, match=r"^mine: "):
        DetectionModel(tiny(name="mine") | changes)


def test_parsing_alone_gives_layers_and_routes() -> None:
    plan = plan_model(tiny([-1, 1, "Conv", [16]], [[-1, 0], 1, "Concat", [1]]))
    layers, routes = plan.layers, plan.routes
    assert all(t.device.type == "meta" for t in layers.state_dict().values())
    assert len(layers) == len(routes) == 4
    assert routes == [(-1,), (0,), (1, 0), (2,)]
    assert isinstance(layers[-1], Detect)
