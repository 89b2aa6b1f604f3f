"""MobileViT blocks as ncnn gets them: the same features, and no batches of sequences in the file."""

from __future__ import annotations

import importlib.util
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from shared import randomize_norms
from torch.testing import assert_close

from models.common import MobileViTBlock, MobileViTForm
from models.export.merged import MergedBlock, merge_blocks
from models.export.metadata import Metadata
from models.export.writers import FORMATS, Job
from models.yolo import DetectionModel

KINDS = {
    "separable": {"heads": 0, "qkv_bias": True},
    "separable, no bias": {"heads": 0},
    "heads": {"heads": 2, "head_dim": None, "qkv_bias": True, "closing_norm": True},
    "pasted": {},
}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("patch", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_block_gives_the_same_features(kind: str, patch: int, fused: bool) -> None:
    torch.manual_seed(0)
    block = (
        randomize_norms(MobileViTBlock(16, 24, 32, 2, patch_size=patch, form=MobileViTForm(**KINDS[kind])))
        .eval()
        .requires_grad_(False)
    )
    for module in block.modules():
        if hasattr(module, "fused"):
            module.fused = fused
    x = torch.randn(1, 16, 8, 12)
    expected = block(x)
    merged = MergedBlock(deepcopy(block)).eval()
    assert_close(merged(x), expected, atol=1e-5, rtol=1e-5)
    local = torch.randn(1, 32, 8, 12)
    tokens = merged.unfold(local).reshape(patch * patch, -1, 32)
    assert torch.equal(tokens, block.unfold(local)), "the same sequences, one after another"
    assert torch.equal(merged.fold(merged.unfold(local), local.shape), local)
    with pytest.raises(ValueError, match="cannot be cut into patches"):
        merged(torch.randn(1, 16, 9, 12))


def test_blocks_without_square_patches_are_left_as_they_are() -> None:
    model = torch.nn.Sequential(
        MobileViTBlock(8, 8, 8, 1, patch_size=1),
        torch.nn.Sequential(MobileViTBlock(8, 8, 8, 1, patch_size=(2, 4)), MobileViTBlock(8, 8, 8, 1)),
    ).eval()
    x = torch.randn(1, 8, 4, 8)
    expected = model(x)
    merge_blocks(model)
    assert [type(m).__name__ for m in model.modules() if isinstance(m, MobileViTBlock)] == [
        "MobileViTBlock",
        "MobileViTBlock",
        "MergedBlock",
    ]
    assert_close(model(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ncnn", "pnnx")), reason="needs ncnn and pnnx"
)
@pytest.mark.parametrize("cfg", ["yolov5-mobilevit-fast.yaml", "yolov5-mobilevit.yaml"])
def test_ncnn_files_hold_no_emulated_batches(cfg: str, tmp_path: Path) -> None:
    """A Reshape with the parameters 12 or 13 moves a batch axis, number by number; one takes 1.5 ms at 320 px."""
    model = DetectionModel(cfg, nc=3).eval().requires_grad_(False)
    before = deepcopy(model.state_dict())
    path = tmp_path / "x_ncnn_model"
    FORMATS["ncnn"].write(Job(model, Metadata.of(model, (128, 128), 1), torch.rand(1, 3, 128, 128)), path)
    reshapes = [line.split() for line in (path / "model.ncnn.param").read_text().splitlines() if "Reshape" in line]
    assert reshapes and not [words for words in reshapes if any(w.startswith(("12=", "13=")) for w in words)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(m, MergedBlock) for m in model.modules())
