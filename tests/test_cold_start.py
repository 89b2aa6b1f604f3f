"""A cold start imports little: counts of modules, not seconds, and the shortcuts that make it so are equal to torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision import ops

from models import plan
from models.shapes import ShapeRules
from models.weights.checkpoint import Checkpoint, save_checkpoint
from models.yolo import DetectionModel, plan_model
from utils.boxes import pairwise_iou
from utils.files import REPO
from utils.torchvision_ops import batched_nms, nms

HEAVY = {  # each takes a tenth of a second or more, and reading an image, the network and drawing need none of them
    *("torch._dynamo", "torch._inductor", "torch.fx.experimental.symbolic_shapes", "torch.utils.flop_counter", "sympy"),
    *("torchvision", "matplotlib", "fontTools", "pandas", "jinja2", "scipy", "optuna", "onnx", "onnxruntime"),
    *("faster_coco_eval", "tensorboard", "mlflow", "IPython"),
}
AFTER = "import json, sys; print('MODULES', json.dumps(sorted(sys.modules)))"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with n.pt and v8.pt, of random weights, and image.jpg."""
    place = tmp_path_factory.mktemp("cold")
    torch.manual_seed(0)
    for name, cfg in {"n": "yolov5n.yaml", "v8": "yolov5-mobilevit-fast-v8.yaml"}.items():
        save_checkpoint(place / f"{name}.pt", Checkpoint.of(DetectionModel(cfg).eval()))
    image = np.random.default_rng(0).integers(0, 255, (6, 8, 3), np.uint8).repeat(40, 0).repeat(40, 1)
    cv2.imwrite(str(place / "image.jpg"), image)
    return place


def modules_after(code: str) -> set[str]:
    """The modules of a new Python process in the repository that ran `code`."""
    result = subprocess.run([sys.executable, "-c", f"{code}\n{AFTER}"], cwd=REPO, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    line = next(line for line in result.stdout.splitlines() if line.startswith("MODULES"))
    return set(json.loads(line.removeprefix("MODULES")))


@pytest.mark.parametrize("weights", ["n.pt", "v8.pt"])
def test_detecting_in_an_image_imports_neither_a_compiler_nor_charts(weights: str, folder: Path) -> None:
    shutil.rmtree(folder / "runs", ignore_errors=True)
    flags = (
        f"weights='{folder}/{weights}', source='{folder}/image.jpg', project='{folder}/runs', device='cpu', imgsz=(64,)"
    )
    code = f"import detect; detect.main(detect.DetectConfig({flags}, conf_thres=1e-6, max_det=5))"
    found = modules_after(code)
    assert {"torch", "cv2", "detect"} <= found and not found & HEAVY
    drawn = cv2.imread(str(folder / "runs/exp/image.jpg"))
    assert np.abs(drawn.astype(int) - cv2.imread(str(folder / "image.jpg"))).max() > 100  # boxes and labels are drawn


def test_the_python_api_imports_neither(folder: Path) -> None:
    code = f"import hubconf; m = hubconf.load('{folder}/n.pt', device='cpu'); m.conf = 1e-4; m.max_det = 5"
    found = modules_after(f"{code}\nresults = m('{folder}/image.jpg', size=64); results.print(); results.render()")
    assert "hubconf" in found and not found & HEAVY


@pytest.mark.parametrize("cfg", ["yolov5n-v8.yaml", "yolox-tiny.yaml", "yolov5-mobilevit-v8.yaml"])
def test_building_a_network_imports_neither(cfg: str) -> None:
    code = (
        f"from models.yolo import DetectionModel; m = DetectionModel('{cfg}'); assert m.stride.tolist() == [8, 16, 32]"
    )
    assert not modules_after(code) & HEAVY


def test_torchvision_and_the_compiler_work_after_it() -> None:
    code = """
import torch
from utils.torchvision_ops import nms
xyxy, score = torch.tensor([[0., 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]]), torch.tensor([0.5, 0.9, 0.1])
before = nms(xyxy, score, 0.5)
import sys
assert "torchvision" not in sys.modules
import torchvision
assert torchvision.ops.nms(xyxy, score, 0.5).tolist() == before.tolist() == [1, 2]
compiled = torch.compile(lambda a, b: torchvision.ops.nms(a, b, 0.5) + 1, backend="eager")
assert compiled(xyxy, score).tolist() == [2, 3]
assert torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [torch.tensor([[0., 0, 3, 3]])], 2).shape == (1, 1, 2, 2)
"""
    assert "torch._dynamo" in modules_after(code)


# ---- equality --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 300, 1500])  # of many the groups follow one another
def test_nms_is_that_of_torchvision(count: int) -> None:
    torch.manual_seed(count)
    low = torch.rand(count, 2) * 200
    xyxy = torch.cat([low, low + 5 + torch.rand(count, 2) * 80], dim=1)
    score, group = (torch.rand(count) * 20).round() / 20, torch.randint(0, 4, (count,))  # many equal scores
    for threshold in (0.2, 0.6):
        assert torch.equal(nms(xyxy, score, threshold), ops.nms(xyxy, score, threshold))
        assert torch.equal(batched_nms(xyxy, score, group, threshold), ops.batched_nms(xyxy, score, group, threshold))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_iou_is_that_of_torchvision(kind: type[np.floating]) -> None:
    rng = np.random.default_rng(0)
    a, b = (np.concatenate([low, low + rng.random((n, 2)) * 30], 1) for n in (70, 50) for low in [rng.random((n, 2))])
    a, b = a.astype(kind), b.astype(kind)
    found = pairwise_iou(a, b)
    assert found.dtype == kind and np.array_equal(found, ops.box_iou(torch.from_numpy(a), torch.from_numpy(b)).numpy())
    empty = np.zeros((1, 4), kind)
    assert pairwise_iou(empty, empty).tolist() == [[0.0]] and pairwise_iou(a[:0], b).shape == (0, 50)


@pytest.mark.parametrize("cfg", sorted(path.name for path in (REPO / "models").glob("*.yaml")))
def test_a_plan_by_rules_is_that_by_torch(cfg: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast = plan_model(cfg)
    monkeypatch.setattr(plan, "ShapeRules", nullcontext)
    slow = plan_model(cfg)
    assert (fast.grid, fast.strides, fast.cost) == (slow.grid, slow.strides, slow.cost)
    assert fast.shapes == slow.shapes and fast.cost.work > 1e8


LAYERS = {
    "strided": nn.Conv2d(8, 12, (3, 5), (2, 1), (1, 2)),
    "dilated": nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
    "norm": nn.BatchNorm2d(8).eval(),
    "pool": nn.MaxPool2d(3, 2, 1),
    "pool of its own stride": nn.MaxPool2d(2),
    "pool that rounds up": nn.MaxPool2d(2, ceil_mode=True),
    "mean": nn.AdaptiveAvgPool2d(1),
    "nearest": nn.Upsample(None, 2, "nearest"),
    "bilinear": nn.Upsample(None, 3, "bilinear"),
    "of a size": nn.Upsample((5, 6), None, "nearest"),
    "layer norm": nn.LayerNorm([13]),
    "linear": nn.Linear(13, 7),
    "silu": nn.SiLU(inplace=True),
    "softmax": nn.Softmax(dim=1),
}
CALLS = {
    "sum": lambda x: x + x[:, :1],
    "scaled": lambda x: 2 * x - 1.5,
    "cat": lambda x: torch.cat([x, x[:, :3]], 1),
    "cat from the end": lambda x: torch.cat([x, x], -1),
    "product": lambda x: x @ x.transpose(-2, -1),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x[..., :4]),
}


@pytest.mark.parametrize("name", [*LAYERS, *CALLS])
def test_a_rule_gives_the_shape_that_torch_gives(name: str) -> None:
    call = LAYERS.get(name) or CALLS[name]
    x = torch.rand(2, 8, 11, 13)
    expected = call(x.clone())
    layer = call.to("meta") if isinstance(call, nn.Module) else call
    with torch.device("meta"), ShapeRules():
        found = layer(x.to("meta"))
    assert (found.shape, found.dtype, found.device.type) == (expected.shape, expected.dtype, "meta")


@pytest.mark.parametrize(
    "call",
    [
        lambda x: nn.Conv2d(7, 8, 1, device="meta")(x),
        lambda x: nn.Conv2d(8, 8, 15, device="meta")(x),
        lambda x: nn.BatchNorm2d(7, device="meta").eval()(x),
        lambda x: nn.Linear(8, 8, device="meta")(x),
        lambda x: x + x[:, :3],
        lambda x: torch.cat([x, x[:, :, 1:]], 1),
        lambda x: x @ x,
    ],
)
def test_what_does_not_fit_is_an_error_as_in_torch(call) -> None:
    with torch.device("meta"), ShapeRules(), pytest.raises((RuntimeError, ValueError)):
        call(torch.empty(2, 8, 11, 13, device="meta"))


def test_other_tensors_are_computed() -> None:
    with ShapeRules():
        assert F.silu(torch.ones(1)).item() == pytest.approx(0.731, abs=1e-3) and (torch.ones(2) + 1).tolist() == [2, 2]
