"""The blocks alone: equality with recorded and with independent implementations, shapes, ranks, gradients, errors."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import torch
from einops import rearrange
from shared import oracle, randomize_norms
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from models import common
from models.common import Attention, MobileViTBlock, MobileViTForm, MV2Block, Transformer
from models.heads import HEADS
from models.mobilevit import MobileViT
from models.rows import parse_row
from models.yolo import BLOCKS, DetectionModel

# --- recorded outputs of the pasted recipe ---------------------------------------------------------------------------

# The classifier's parts in the recipe and here.
PLACES = {f"mv2.{i}": f"features.{row}" for i, row in enumerate(("1", "2", "3.0", "3.1", "4", "6", "8"))}
PLACES |= {f"mvit.{i}": f"features.{row}" for i, row in enumerate((5, 7, 9))}
PLACES |= {"conv1.0": "features.0.conv", "conv1.1": "features.0.bn"}
PLACES |= {"conv2.0": "last.conv", "conv2.1": "last.bn", "fc": "classifier"}

NAMES = {
    r"layers\.(\d+)\.0\.norm": r"\1.norm1",
    r"layers\.(\d+)\.0\.fn": r"\1.attention",
    r"layers\.(\d+)\.1\.norm": r"\1.norm2",
    r"layers\.(\d+)\.1\.fn\.net\.0": r"\1.mlp.0",
    r"layers\.(\d+)\.1\.fn\.net\.3": r"\1.mlp.2",
    r"\bto_qkv": "qkv",
    r"\bto_out\.0": "out",
    r"\bconv1\.": "local.",
    r"\bconv2\.": "expand.",
    r"\bconv3\.": "project.",
    r"\bconv4\.": "fusion.",
    r"(local|expand|project|fusion)\.0": r"\1.conv",
    r"(local|expand|project|fusion)\.1": r"\1.bn",
}


def translate(state: dict[str, Tensor], places: dict[str, str] | None = None) -> dict[str, Tensor]:
    """A state dict of the pasted recipe under this project's names."""
    renamed = {}
    for key, value in state.items():
        prefix = key.rpartition("conv.")[0]  # an inverted residual numbers its layers through
        layers = ("expand", "depthwise", "project") if f"{prefix}conv.6.weight" in state else ("depthwise", "project")
        new = re.sub(
            r"\bconv\.(\d)", lambda m, layers=layers: f"{layers[int(m[1]) // 3]}.{('conv', 'bn')[int(m[1]) % 3]}", key
        )
        for old, place in (places or {}).items():
            if new.startswith(f"{old}."):
                new = place + new.removeprefix(old)
                break
        for pattern, name in NAMES.items():
            new = re.sub(pattern, name, new)
        renamed[new] = value
    assert len(renamed) == len(state)
    return renamed


def build_case(name: str, args: dict) -> nn.Module:
    if name.startswith("mv2"):
        return MV2Block(args["inp"], args["oup"], args["stride"], args["expansion"])
    if name == "attention":
        return Attention(args["dim"], args["heads"], args["dim_head"])
    if name == "transformer":
        return Transformer(args["dim"], args["depth"], args["heads"], args["dim_head"], args["mlp_dim"])
    if name.startswith("mvit"):
        c = args["channel"]
        return MobileViTBlock(
            c, c, args["dim"], args["depth"], args["kernel_size"], args["patch_size"], args["mlp_dim"]
        )
    assert name == "classifier_xxs"
    return MobileViT("xxs", published=False)


CASES = (
    "mv2_s1_res",
    "mv2_s2",
    "mv2_e1",
    "attention",
    "transformer",
    "mvit_p2",
    "mvit_p4",
    "mvit_p2x4",
    "classifier_xxs",
)


@pytest.mark.parametrize("fused", [True, False], ids=["sdpa", "matmul"])
@pytest.mark.parametrize("name", CASES)
def test_equals_the_recorded_recipe(name: str, fused: bool) -> None:
    cases = oracle("mobilevit_blocks.pt")
    assert set(cases) == set(CASES)
    case = cases[name]
    block = set_fused(build_case(name, case["args"]).eval(), fused)
    block.load_state_dict(translate(case["state_dict"], PLACES if name == "classifier_xxs" else None), strict=True)
    x = case["input"]
    if name in ("attention", "transformer"):  # the recipe keeps (image, pixel place) apart, here they are one axis
        x = x.flatten(0, 1)
    with torch.inference_mode():
        y = block(x)
    assert_close(y.reshape(case["output"].shape), case["output"], atol=1e-5, rtol=1e-5)


# --- attention and the patch transformer ----------------------------------------------------------------------------


def set_fused(module: nn.Module, fused: bool) -> nn.Module:
    for m in module.modules():
        if isinstance(m, Attention):
            m.fused = fused
    return module


@pytest.mark.parametrize("head_dim", [8, None])
@pytest.mark.parametrize("bias", [False, True])
def test_fused_attention_equals_the_definition(head_dim: int | None, bias: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(24, heads=3, head_dim=head_dim, qkv_bias=bias)
    x = torch.randn(5, 7, 24)
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(3):  # softmax(q k / sqrt(d)) v, head by head
        part = slice(h * attention.head_dim, (h + 1) * attention.head_dim)
        scores = torch.einsum("bnd,bmd->bnm", q[..., part], k[..., part]) / attention.head_dim**0.5
        heads.append(torch.softmax(scores, dim=2) @ v[..., part])
    expected = attention.out(torch.cat(heads, dim=-1))
    for fused in (True, False):
        assert_close(set_fused(attention, fused)(x), expected, atol=1e-5, rtol=1e-5)


def test_heads_must_share_the_width() -> None:
    with pytest.raises(ValueError, match=r"5 heads .* 24"):
        Attention(24, heads=5, head_dim=None)


def test_head_width_is_free_of_the_token_width() -> None:
    assert Attention(24, heads=5, head_dim=8)(torch.randn(2, 3, 24)).shape == (2, 3, 24)


PATCHES = pytest.mark.parametrize("patch", [1, 2, 4, (2, 4), (4, 1)], ids=str)


def small_block(patch: int | tuple[int, int] = 2, **keywords) -> MobileViTBlock:
    return MobileViTBlock(6, 6, 8, 1, patch_size=patch, form=MobileViTForm(**keywords))


@PATCHES
def test_unfold_equals_the_rank_six_pattern(patch: int | tuple[int, int]) -> None:
    block = small_block(patch)
    ph, pw = block.divides
    x = torch.randn(2, 3, 8, 12)
    expected = rearrange(x, "b c (h ph) (w pw) -> (b ph pw) (h w) c", ph=ph, pw=pw)
    assert torch.equal(block.unfold(x), expected)


@PATCHES
def test_fold_undoes_unfold_and_unfold_undoes_fold(patch: int | tuple[int, int]) -> None:
    block = small_block(patch)
    x = torch.randn(2, 3, 8, 12)
    tokens = block.unfold(x)
    assert torch.equal(block.fold(tokens, x.shape), x)
    other = torch.randn_like(tokens)
    assert torch.equal(block.unfold(block.fold(other, x.shape)), other)


def test_tokens_meet_only_at_the_same_place_of_their_patches() -> None:
    torch.manual_seed(0)
    block = small_block(2).eval()
    x = torch.randn(1, 8, 8, 8)
    y = x.clone()
    y[0, :, 3, 4] = torch.randn(8)  # place (1, 0) of a patch
    with torch.inference_mode():
        before, after = (block.fold(block.transformer(block.unfold(t)), t.shape) for t in (x, y))
    moved = (before - after).abs().amax(dim=1)[0] > 1e-7
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[1::2, 0::2] = True
    assert torch.equal(moved, expected)


def test_a_map_that_the_patch_does_not_divide_names_what_fits() -> None:
    with pytest.raises(ValueError) as error:
        small_block(4)(torch.zeros(1, 6, 42, 42))
    text = str(error.value)
    assert "MobileViTBlock" in text and "42x42" in text and "4x4" in text
    assert re.search(r"40\D+44", text)


@pytest.mark.parametrize("side", [40, 44])
def test_the_sizes_that_the_message_names_fit(side: int) -> None:
    assert small_block(4)(torch.zeros(1, 6, side, side)).shape == (1, 6, side, side)


def test_each_side_is_checked_by_its_own_patch_side() -> None:
    block = small_block((2, 4))
    assert block(torch.zeros(1, 6, 6, 8)).shape == (1, 6, 6, 8)
    with pytest.raises(ValueError, match="8x6"):
        block(torch.zeros(1, 6, 8, 6))


@pytest.mark.parametrize("depth", [False, True, 0, -1, 1.5, "2", None])
def test_depth_must_be_a_count(depth: object) -> None:
    with pytest.raises(ValueError, match=f"depth {re.escape(repr(depth))}"):
        MobileViTBlock(6, 6, 8, depth)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "patch",
    [
        0,
        -2,
        True,
        1.5,
        (2,),
        (2, 2, 2),
        (0, 2),
        (2, 1.5),
        (2, True),
    ],
)
def test_patch_size_must_be_one_or_two_counts(patch: object) -> None:
    with pytest.raises(ValueError, match="patch_size"):
        small_block(patch)  # type: ignore[arg-type]


@pytest.mark.parametrize("stride", [0, 3])
def test_inverted_residual_refuses_other_strides(stride: int) -> None:
    with pytest.raises(ValueError, match=f"stride {stride}"):
        MV2Block(8, 8, stride)


def test_inverted_residual_adds_its_input_only_where_shapes_agree() -> None:
    x = torch.randn(1, 8, 6, 6)
    for c2, stride, residual in ((8, 1, True), (8, 2, False), (16, 1, False)):
        block = MV2Block(8, c2, stride).eval()
        nn.init.zeros_(block.project.conv.weight)  # the branch gives nothing
        y = block(x)
        assert torch.equal(y, x) if residual else not y.any()


@pytest.mark.parametrize("published", [False, True], ids=["pasted", "published"])
def test_gradients_reach_every_weight_of_the_transformer(published: bool) -> None:
    torch.manual_seed(0)
    keywords = {"head_dim": None, "qkv_bias": True, "closing_norm": True, "bare_expand": True, "input_first": True}
    block = small_block(2, **(keywords if published else {}))
    y = block(torch.randn(2, 6, 8, 8))
    (y * torch.randn_like(y)).sum().backward()
    attention = block.transformer[0].attention
    for part, gradient in zip("qkv", attention.qkv.weight.grad.chunk(3), strict=True):
        assert gradient.abs().sum() > 0, part
    for name, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


# --- rank of what is computed ----------------------------------------------------------------------------------------


def computed_shapes(function, *inputs: Tensor) -> Iterator[tuple[str, torch.Size]]:
    """Shapes of all tensors on the way from the inputs to what `function` returns."""
    graph = make_fx(function)(*inputs).graph
    graph.eliminate_dead_code()
    for node in graph.nodes:
        if "tensor_meta" in node.meta:
            values = node.meta["tensor_meta"]
            for value in (values,) if hasattr(values, "dtype") else values:
                if hasattr(value, "shape"):
                    yield str(node), value.shape


@pytest.mark.parametrize("fused", [True, False], ids=["sdpa", "matmul"])
@PATCHES
def test_patch_transformer_stays_at_rank_four(patch: int | tuple[int, int], fused: bool) -> None:
    block = set_fused(small_block(patch).eval(), fused)
    shapes = list(computed_shapes(block, torch.zeros(2, 6, 8, 8)))
    assert len(shapes) > 20
    assert [s for s in shapes if len(s[1]) > 4] == []


def test_decoded_output_is_computed_at_rank_four() -> None:
    model = DetectionModel("yolov5-mobilevit.yaml").eval()
    shapes = list(computed_shapes(lambda x: model(x)[0], torch.zeros(1, 3, 64, 64)))
    assert len(shapes) > 200
    assert [s for s in shapes if len(s[1]) > 4] == []


def test_the_rank_walk_sees_a_rank_of_six() -> None:
    pattern = "b c (h i) (w j) -> (b i j) (h w) c"
    shapes = list(computed_shapes(lambda x: rearrange(x, pattern, i=2, j=2), torch.zeros(1, 3, 4, 4)))
    assert max(len(shape) for _, shape in shapes) == 6


# --- the other blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain", [2, 3])
def test_contract_and_expand_are_inverse(gain: int) -> None:
    contract, expand = common.Contract(gain), common.Expand(gain)
    x = torch.randn(2, 5, 4 * gain, 2 * gain)
    assert contract(x).shape == (2, 5 * gain**2, 4, 2)
    assert torch.equal(expand(contract(x)), x)
    y = torch.randn(2, 5 * gain**2, 4, 3)
    assert torch.equal(contract(expand(y)), y)


def test_contract_keeps_each_offset_together() -> None:
    x = torch.randn(1, 3, 4, 4)
    y = common.Contract(2)(x)
    for i in range(2):
        for j in range(2):
            first = (2 * i + j) * 3
            assert torch.equal(y[:, first : first + 3], x[:, :, i::2, j::2])


def test_focus_sees_every_pixel_once() -> None:
    focus = common.Focus(3, 12)
    focus.conv = nn.Identity()
    x = torch.arange(2 * 3 * 6 * 4.0).reshape(2, 3, 6, 4)
    y = focus(x)
    assert y.shape == (2, 12, 3, 2)
    assert torch.equal(y.flatten(1).sort().values, x.flatten(1).sort().values)
    for n, (row, column) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):  # the order that trained weights expect
        assert torch.equal(y[:, 3 * n : 3 * n + 3], x[:, :, row::2, column::2])


def test_sppf_equals_spp_of_the_sizes_it_stands_for() -> None:
    torch.manual_seed(0)
    spp, sppf = common.SPP(8, 12, (5, 9, 13)).eval(), common.SPPF(8, 12, 5).eval()
    sppf.load_state_dict(spp.state_dict(), strict=True)
    x = torch.randn(2, 8, 20, 17)
    assert torch.equal(sppf(x), spp(x))


@pytest.mark.parametrize("keywords", [{}, {"k": 3, "s": 2}, {"k": 3, "g": 4}, {"k": 3, "d": 2, "act": False}], ids=str)
def test_folded_norm_changes_nothing_but_the_layers(keywords: dict) -> None:
    torch.manual_seed(0)
    conv = randomize_norms(common.Conv(8, 12, **keywords)).eval()
    x = torch.randn(2, 8, 9, 9)
    before = conv(x)
    conv.fold_norm()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in conv.modules())
    assert conv.conv.bias is not None
    assert_close(conv(x), before, atol=1e-5, rtol=1e-5)
    conv.fold_norm()  # a second time does nothing
    assert_close(conv(x), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 5, (1, 3), (5, 1)])
@pytest.mark.parametrize("d", [1, 2, 3])
def test_same_padding_keeps_the_map(k: int | tuple[int, int], d: int) -> None:
    assert common.Conv(3, 4, k, d=d)(torch.zeros(1, 3, 11, 8)).shape == (1, 4, 11, 8)


def test_depthwise_takes_the_most_groups_that_fit() -> None:
    assert [common.DWConv(c1, c2).conv.groups for c1, c2 in ((8, 8), (8, 12), (5, 8))] == [8, 4, 1]


MORE_ARGUMENTS = {"MobileViTBlock": [24, 1], "MV3Block": [32]}  # what a row needs besides the width
WIDTH_BLOCKS = [name for name, cls in BLOCKS.items() if "c2" in cls.__init__.__annotations__]
CFG = {"nc": 2, "anchors": []}


def run_row(row: list, x: Tensor, maps: int = 1) -> tuple[Tensor, int]:
    """(output of one row on `maps` copies of x, width that the parser promises)."""
    parsed = parse_row(row, CFG, [x.shape[1]], BLOCKS)
    layer, width = parsed.build(), parsed.width
    return layer.eval()(x if maps == 1 else [x] * maps), width


def test_most_blocks_take_a_width() -> None:
    assert {"Conv", "C3", "SPPF", "MV2Block", "MobileViTBlock"} <= set(WIDTH_BLOCKS)
    assert set(BLOCKS) - set(WIDTH_BLOCKS) <= {
        *HEADS, "Concat", "Contract", "Expand", "nn.MaxPool2d", "nn.Upsample", "nn.ZeroPad2d",
    }  # fmt: skip


# A GhostBottleneck of stride 1 adds its input, so it keeps the width.
@pytest.mark.parametrize(
    ("name", "c2"), [(n, c2) for n in WIDTH_BLOCKS for c2 in (16, 24) if (n, c2) != ("GhostBottleneck", 24)]
)
def test_every_block_gives_its_width_and_keeps_the_map(name: str, c2: int) -> None:
    y, width = run_row([-1, 1, name, [c2, *MORE_ARGUMENTS.get(name, [])]], torch.randn(2, 16, 12, 8))
    scale = 2 if name == "Focus" else 1
    assert width == c2
    assert y.shape == (2, c2, 12 // scale, 8 // scale)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("Conv", [3, 2]),
        ("DWConv", [3, 2]),
        ("GhostConv", [3, 2]),
        ("GhostBottleneck", [3, 2]),
        ("CrossConv", [3, 2]),
        ("MV2Block", [2]),
        ("MV2Block", [2, 1]),
    ],
)
def test_stride_two_halves_the_map(name: str, args: list[int]) -> None:
    y, _ = run_row([-1, 1, name, [24, *args]], torch.randn(1, 16, 12, 8))
    assert y.shape == (1, 24, 6, 4)


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ([-1, 1, "Contract", [2]], (64, 6, 4)),
        ([-1, 1, "Contract", []], (64, 6, 4)),
        ([-1, 1, "Expand", [2]], (4, 24, 16)),
        ([-1, 1, "nn.Upsample", ["None", 2, "nearest"]], (16, 24, 16)),
        ([-1, 1, "nn.Upsample", [None, 2, "bilinear", {"align_corners": False}]], (16, 24, 16)),
        ([-1, 1, "nn.MaxPool2d", [2, 2, 0]], (16, 6, 4)),
        ([-1, 1, "nn.ZeroPad2d", [[0, 1, 0, 1]]], (16, 13, 9)),
    ],
    ids=str,
)
def test_blocks_without_a_width_promise_what_they_give(row: list, shape: tuple[int, int, int]) -> None:
    y, width = run_row(row, torch.randn(2, 16, 12, 8))
    assert (width, *y.shape[2:]) == shape
    assert y.shape[1] == width


def test_concat_promises_the_sum_along_channels_only() -> None:
    for dimension, factor in ((1, 3), (2, 1)):
        row = [[-1, -1, -1], 1, "Concat", [dimension]]
        y, width = run_row(row, torch.randn(2, 8, 4, 4), maps=3)
        assert width == y.shape[1] == 8 * factor


def test_bottleneck_skips_only_where_asked_and_widths_agree() -> None:
    x = torch.randn(1, 8, 6, 6)
    for c2, shortcut, skips in ((8, True, True), (8, False, False), (16, True, False)):
        block = common.Bottleneck(8, c2, shortcut).eval()
        nn.init.zeros_(block.cv2.conv.weight)
        assert torch.equal(block(x), x) if skips else not block(x).any()


def test_whole_map_transformer_does_not_know_where_a_cell_lies() -> None:
    """Tokens are a set: moving the cells moves the outputs along, for every order of the cells."""
    torch.manual_seed(0)
    block = common.TransformerBlock(16, 16, 4, 2).eval()
    x = torch.randn(2, 16, 4, 6)
    order = torch.randperm(24)
    with torch.inference_mode():
        moved = block(x.flatten(2)[..., order].view_as(x))
        expected = block(x).flatten(2)[..., order].view_as(x)
    assert_close(moved, expected, atol=1e-5, rtol=1e-5)
