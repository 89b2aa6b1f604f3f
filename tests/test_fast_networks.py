"""The networks for CPUs: what they cost, that they export, and that published weights compute the same in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from inspection import READERS, refused
from shared import randomize_norms
from torch import Tensor, nn
from torch.testing import assert_close

from models.common import UIB, MobileViTBlock, MobileViTForm, MV2Block, MV3Block, SeparableAttention, activation
from models.export.metadata import Metadata
from models.export.writers import FORMATS, Job
from models.runtimes.load import load_backend
from models.visualize import record_activations
from models.weights.backbones import BACKBONES, IMAGENET, Backbone, backbone_of
from models.weights.imagenet import load_backbone
from models.yolo import DetectionModel
from tools import network_times

CPU = torch.device("cpu")
FAST = "yolov5-mobilevit-fast.yaml"
V4 = "yolov5-mobilenetv4-vit.yaml"
V3 = {"small": "yolov5-mobilenetv3.yaml", "large": "yolov5-mobilenetv3-large.yaml"}
SIZES = ("xxs", "xs", "s")
MOST = {FAST: 1_600_000, V4: 2_000_000}  # parameters at 80 classes
V3_OPTIONS = {"depthwise": True, "fusion_kernel": 1, "fuse_local": True, "residual": True}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- what they cost --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cfg", MOST)
def test_parameters_and_grid(cfg: str) -> None:
    model = DetectionModel(cfg)
    assert model.nc == 80 and parameters(model) <= MOST[cfg]
    assert model.grid == 32 and model.stride.tolist() == [8, 16, 32]
    assert any(isinstance(m, MobileViTBlock) for m in model.modules())


def test_operations_grow_linearly_with_pixels() -> None:
    """From 192 to 1280: little of the work is attention over all pairs of tokens."""
    model = DetectionModel(FAST)
    assert model.gflops(1280) / model.gflops(192) < 1.1 * (1280 / 192) ** 2
    assert model.gflops(640) < DetectionModel("yolov5n.yaml").gflops(640)


@pytest.mark.parametrize("cfg", V3.values())
def test_mobilenetv3_has_yolov5s_strides(cfg: str) -> None:
    model = DetectionModel(cfg)
    assert model.grid == 32 and model.stride.tolist() == [8, 16, 32]


@pytest.mark.parametrize("size", SIZES)
def test_patch_variants_take_the_same_weights(size: str) -> None:
    base, fast = (DetectionModel(f"yolov5-mobilevit-{size}{end}.yaml") for end in ("", "-fast"))
    fast.load_state_dict(base.state_dict(), strict=True)
    assert fast.grid == base.grid == 64
    assert [m.divides for m in fast.modules() if isinstance(m, MobileViTBlock)] == [(8, 8), (4, 4), (2, 2)]
    assert fast.gflops(640) < 0.9 * base.gflops(640)


# --- exports ---------------------------------------------------------------------------------------------------------


def spread(model: nn.Module) -> nn.Module:
    """`model` in eval mode with weights that give every output a size that a mistake would change."""
    torch.manual_seed(0)
    model = randomize_norms(model).eval()
    for block in model.modules():
        if isinstance(block, MobileViTBlock):
            nn.init.uniform_(block.fusion.bn.weight, 0.5, 1.5)
    return model.requires_grad_(False)


@pytest.mark.parametrize("name", ["onnx", "ncnn", "tflite", "torchscript"])
@pytest.mark.parametrize("cfg", [FAST, V4, *V3.values()])
def test_exported_files_give_the_same_rows(cfg: str, name: str, tmp_path: Path) -> None:
    if missing := FORMATS[name].missing():
        pytest.skip(f"{name} needs {', '.join(missing)}, see requirements-export.txt")
    model = spread(DetectionModel(cfg, nc=3))
    images = torch.rand(1, 3, 128, 96)
    path = tmp_path / f"model{FORMATS[name].ending}"
    FORMATS[name].write(Job(model, Metadata.of(model, (128, 96), 1), images), path)
    if path.name.endswith(tuple(READERS)):
        assert refused(path) == []  # operators and ranks
    expected = model(images)[0]
    got = load_backend(path, CPU, threads=1)(images)
    assert_close(got[..., 4:], expected[..., 4:], atol=2e-4, rtol=0)
    assert_close(got[..., :4], expected[..., :4], atol=2e-2, rtol=1e-3)


# --- blocks ----------------------------------------------------------------------------------------------------------


def test_zero_start_passes_the_features_unchanged() -> None:
    x = torch.randn(2, 16, 8, 12)
    block = MobileViTBlock(16, 16, 24, 1, patch_size=2, form=MobileViTForm(zero_start=True, **V3_OPTIONS))
    for training in (True, False):
        assert torch.equal(block.train(training)(x), x)
    block.train()(x).square().sum().backward()
    assert block.fusion.bn.weight.grad is not None and block.fusion.bn.weight.grad.any()  # it does begin to learn


def test_a_detector_begins_with_the_features_of_its_backbone() -> None:
    model = DetectionModel(V4, nc=2).eval()
    rows = model.yaml["backbone"]
    x = torch.rand(1, 3, 64, 96)
    for layer in model.model[: len(rows)]:
        x = layer(x)
    block = model.model[len(rows)]
    assert isinstance(block, MobileViTBlock) and torch.equal(block(x), x)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"residual": True}, r"8 channels in and 16 out"), ({"zero_start": True}, r"zero_start without residual")],
)
def test_residual_options_are_checked(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MobileViTBlock(8, 16, 8, 1, form=MobileViTForm(**options))


def test_fusion_takes_local_and_global_features() -> None:
    block = MobileViTBlock(16, 16, 24, 1, form=MobileViTForm(**V3_OPTIONS))
    assert block.local.conv.groups == 16
    assert block.fusion.conv.weight.shape == (16, 16 + 24, 1, 1)
    torch.manual_seed(0)
    x = torch.randn(1, 16, 4, 6)
    block.eval()
    local = block.expand(block.local(x))
    sequences = local.view(1, 24, 2, 2, 3, 2).permute(0, 3, 5, 2, 4, 1).reshape(4, 6, 24)
    seen = block.transformer(sequences).view(1, 2, 2, 2, 3, 24).permute(0, 5, 3, 1, 4, 2).reshape(1, 24, 4, 6)
    expected = x + block.fusion(torch.cat([block.project(seen), local], dim=1))
    assert_close(block(x), expected, atol=1e-5, rtol=1e-5)


def test_a_patch_of_one_pixel_is_the_whole_map_as_one_sequence() -> None:
    block = MobileViTBlock(8, 8, 12, 1, patch_size=1)
    x = torch.randn(2, 12, 3, 5)
    tokens = block.unfold(x)
    assert torch.equal(tokens, x.flatten(2).permute(0, 2, 1))
    assert torch.equal(block.fold(tokens, x.shape), x)


def test_separable_attention_equals_the_definition() -> None:
    torch.manual_seed(0)
    attention = SeparableAttention(6, qkv_bias=True)
    x = torch.randn(3, 5, 6)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    key, value, query = (F.linear(x, weight[rows], bias[rows]) for rows in (slice(6), slice(6, 12), slice(12, 13)))
    expected = torch.empty_like(x)
    for image in range(3):
        share = torch.softmax(query[image, :, 0], dim=0)
        context = sum(share[i] * key[image, i] for i in range(5))
        expected[image] = torch.stack([attention.out(value[image, i].clamp(min=0) * context) for i in range(5)])
    assert_close(attention(x), expected, atol=1e-6, rtol=1e-5)


def test_separable_attention_has_no_map_to_show() -> None:
    model = DetectionModel(FAST, nc=2).eval()
    shown = record_activations(model, torch.rand(1, 3, 64, 64), (0.5, 0.5))
    blocks = {f"{i:02}_MobileViTBlock": m for i, m in enumerate(model.model) if isinstance(m, MobileViTBlock)}
    separable = {n for n, block in blocks.items() if any(isinstance(m, SeparableAttention) for m in block.modules())}
    assert separable and separable < blocks.keys()
    assert shown.attention.keys() == blocks.keys() - separable and blocks.keys() < shown.features.keys()


def test_zero_heads_is_separable() -> None:
    block = MobileViTBlock(8, 8, 12, 2, form=MobileViTForm(heads=0))
    assert sum(isinstance(m, SeparableAttention) for m in block.modules()) == 2
    assert block(torch.randn(1, 8, 4, 4)).shape == (1, 8, 4, 4)


def test_uib_is_a_superset_of_mv2() -> None:
    torch.manual_seed(0)
    for stride, c2 in ((1, 8), (2, 16)):
        mv2 = randomize_norms(MV2Block(8, c2, stride, 3)).eval()
        uib = UIB(8, c2, 0, 3, stride, 3).eval()
        uib.load_state_dict({k.replace("depthwise", "middle"): t for k, t in mv2.state_dict().items()}, strict=True)
        x = torch.randn(2, 8, 6, 10)
        assert torch.equal(uib(x), mv2(x))


def test_blocks_refuse_what_they_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"UIB: stride 2 with kernels 0 and 0"):
        UIB(8, 8, 0, 0, 2)
    with pytest.raises(ValueError, match=r"MV3Block: stride 3, expected 1 or 2"):
        MV3Block(8, 8, 16, 3, 3)
    with pytest.raises(ValueError, match=r"act 'swish', expected true, false or one of relu, hardswish"):
        activation("swish")


# --- published weights -----------------------------------------------------------------------------------------------


def features(model: DetectionModel, x: Tensor, rows: tuple[int, ...]) -> list[Tensor]:
    """Outputs of rows of the backbone."""
    found = {}
    for i, layer in enumerate(model.model[: max(rows) + 1]):
        found[i] = x = layer(x)
    return [found[row] for row in rows]


def fill(cfg: str, backbone: Backbone, state: dict[str, Tensor]) -> DetectionModel:
    """A detector in eval mode with `state` in its backbone as it is, for images as the weights were trained on."""
    model = DetectionModel(cfg, nc=2).eval()
    rows = backbone.to_rows(state)
    own = {name for name in model.state_dict() if int(name.split(".")[1]) < len(model.yaml["backbone"])}
    assert own == rows.keys()
    model.load_state_dict(rows, strict=False)
    return model


def timm_v4() -> nn.Module:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install timm to compare with its networks")
    torch.manual_seed(0)
    return randomize_norms(timm.create_model("mobilenetv4_conv_small", pretrained=False)).eval()


def torchvision_v3(size: str) -> nn.Module:
    from torchvision.models import mobilenet_v3_large, mobilenet_v3_small

    torch.manual_seed(0)
    return randomize_norms({"small": mobilenet_v3_small, "large": mobilenet_v3_large}[size](weights=None)).eval()


@torch.inference_mode()
def test_mobilenetv4_equals_timm() -> None:
    theirs = timm_v4()
    state = theirs.state_dict()
    backbone = backbone_of(state)
    assert (backbone.family, backbone.source) == ("MobileNetV4-Conv-Small", "timm")
    model = fill(V4, backbone, state)
    x = torch.rand(1, 3, 96, 128)
    _, expected = theirs.forward_intermediates(x, indices=[2, 3, 4])
    got = features(model, x, (4, 7, 12))
    assert [m.shape[1] for m in got] == [64, 96, 128]
    y = theirs.bn1(theirs.conv_stem(x))
    stages = []
    for stage in theirs.blocks[:4]:
        stages.append(y := stage(y))
    for ours, stage in zip(got, stages[1:], strict=True):
        assert stage.std() > 0.01
        assert_close(ours, stage, atol=1e-4, rtol=1e-4)
    for ours, other in zip(got[:2], expected[:2], strict=True):
        assert_close(ours, other, atol=1e-4, rtol=1e-4)
    back = backbone.to_published(model.state_dict())
    assert back.keys() == {k for k in state if not k.startswith(("blocks.4", "conv_head", "norm_head", "classifier"))}
    assert all(torch.equal(t, state[k]) for k, t in back.items())


@torch.inference_mode()
@pytest.mark.parametrize(
    ("size", "rows", "widths"), [("small", (3, 8, 11), (24, 48, 96)), ("large", (6, 12, 15), (40, 112, 160))]
)
def test_mobilenetv3_equals_torchvision(size: str, rows: tuple, widths: tuple) -> None:
    theirs = torchvision_v3(size)
    state = theirs.state_dict()
    backbone = backbone_of(state)
    assert backbone.family.lower() == f"mobilenetv3-{size}"
    model = fill(V3[size], backbone, state)
    x = torch.rand(1, 3, 96, 128)
    got = features(model, x, rows)
    assert tuple(m.shape[1] for m in got) == widths
    for row, layer in enumerate(theirs.features[: rows[-1] + 1]):
        x = layer(x)
        if row in rows:
            assert x.std() > 0.01
            assert_close(got[rows.index(row)], x, atol=1e-4, rtol=1e-4)
    back = backbone.to_published(model.state_dict())
    assert back.keys() == {k for k in state if not k.startswith((f"features.{rows[-1] + 1}.", "classifier"))}
    assert all(torch.equal(t, state[k]) for k, t in back.items())


@torch.inference_mode()
@pytest.mark.parametrize("cfg", [V4, *V3.values()])
def test_files_load_for_images_that_are_not_normalized(cfg: str, tmp_path: Path, caplog) -> None:
    """The first layer of a loaded detector sees in 0..1 what the published one sees in a normalized image."""
    theirs = timm_v4() if cfg == V4 else torchvision_v3(next(size for size, yaml in V3.items() if yaml == cfg))
    first = nn.Sequential(theirs.conv_stem, theirs.bn1) if cfg == V4 else theirs.features[0]
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = DetectionModel(cfg, nc=2)
    done = load_backbone(model.eval(), str(tmp_path / "w.pth"))
    copied, count = done.parts["backbone"]
    assert copied == count > 100 and not done.skipped and "norm_eps" not in caplog.text
    x = torch.rand(1, 3, 64, 96)
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in IMAGENET)
    inside = (..., slice(1, None), slice(1, None))  # beside the padding
    assert_close(model.model[0](x)[inside], first((x - mean) / deviation)[inside], atol=1e-4, rtol=1e-4)


def test_safetensors_and_timm_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    theirs = timm_v4()
    state = {k: t.contiguous() for k, t in theirs.state_dict().items()}
    safetensors.save_file(state, tmp_path / "w.safetensors")
    by_file, by_name = DetectionModel(V4, nc=2), DetectionModel(V4, nc=2)
    load_backbone(by_file, str(tmp_path / "w.safetensors"))
    asked = []
    monkeypatch.setattr("timm.create_model", lambda name, pretrained: asked.append((name, pretrained)) or theirs)
    load_backbone(by_name, "timm:mobilenetv4_conv_small.e2400_r224_in1k")
    assert asked == [("mobilenetv4_conv_small.e2400_r224_in1k", True)]
    rows = by_file.model[:13], by_name.model[:13]
    assert all(
        torch.equal(a, b) for a, b in zip(rows[0].state_dict().values(), rows[1].state_dict().values(), strict=True)
    )


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(torchvision_v3("small").state_dict(), tmp_path / "small.pth")
    for cfg, message in (
        (
            V3["large"],
            r"small\.pth: \d+ tensors of the backbone do not match yolov5-mobilenetv3-large\.yaml, the first is",
        ),
        ("yolov5n.yaml", r"yolov5n\.yaml has no MobileNetV3-Small backbone, expected a yolov5-mobilenetv3\.yaml"),
    ):
        with pytest.raises(ValueError, match=message):
            load_backbone(DetectionModel(cfg, nc=2), str(tmp_path / "small.pth"))
    odd = torchvision_v3("small").state_dict() | {"features.3.extra.weight": torch.zeros(1)}
    torch.save(odd, tmp_path / "odd.pth")
    with pytest.raises(
        ValueError, match=r"1 tensors have no place in a MobileNetV3-Small, the first is features\.3\.extra"
    ):
        load_backbone(DetectionModel(V3["small"], nc=2), str(tmp_path / "odd.pth"))


def test_each_layout_is_known_by_its_own_mark() -> None:
    assert len({backbone.mark for backbone in BACKBONES}) == len(BACKBONES)
    for backbone in BACKBONES:
        assert len(set(backbone.names.values())) == len(backbone.names)


# --- the tool --------------------------------------------------------------------------------------------------------


def test_times_are_ratios_to_the_first_network(tmp_path: Path) -> None:
    runtimes = ("torch", "torchscript")
    cfg = network_times.TimesConfig(
        cfg=("yolov5n.yaml", FAST), imgsz=(32, 64), runtimes=runtimes, rounds=1, nc=2, out=str(tmp_path / "t.md")
    )
    first, second = network_times.main(cfg)
    assert first.ms.keys() == second.ms.keys() == {(r, s) for r in runtimes for s in (32, 64)}
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert "(1.00)" in lines[2] and "yolov5-mobilevit-fast" in lines[3]
    first.ms["torch", 32], first.ms["torch", 64] = 1.0, 4.0
    assert network_times.exponent(first, "torch", (32, 64)) == 1


def test_a_size_off_the_grid_and_an_unknown_runtime_are_errors() -> None:
    with pytest.raises(ValueError, match=r"--imgsz 96: yolov5-mobilevit takes multiples of 64"):
        network_times.main(network_times.TimesConfig(imgsz=(96,)))
    with pytest.raises(ValueError, match=r"--runtimes tpu: expected torch, torchscript"):
        network_times.main(network_times.TimesConfig(runtimes=("tpu",)))
