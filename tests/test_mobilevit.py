"""The MobileViT classifiers: sizes, and equality with timm and with a recorded CVNets model."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shared import ROOT, oracle, randomize_norms
from torch import Tensor, nn
from torch.testing import assert_close

from models.mobilevit import DEPTHS, SIZES, MobileViT

# Published: the paper's Table 4 in full digits, as timm counts them. Pasted: as the recipe counts them.
PARAMETERS = {
    ("xxs", True): 1_272_024,
    ("xs", True): 2_317_848,
    ("s", True): 5_578_632,
    ("xxs", False): 1_331_472,
    ("xs", False): 2_382_944,
    ("s", False): 5_636_720,
}


def count(size: str, published: bool) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in MobileViT(size, published=published).parameters())


@pytest.mark.parametrize(("size", "published"), PARAMETERS)
def test_parameters(size: str, published: bool) -> None:
    assert count(size, published) == PARAMETERS[size, published]


@pytest.mark.parametrize("size", SIZES)
def test_the_two_forms_differ_by_what_the_docstring_says(size: str) -> None:
    """Heads that share the width, biases in qkv and classifier, closing norms, no norm after the 1x1, narrower MLPs."""
    difference = 1000
    for dim, depth, pasted_mlp in zip(SIZES[size].dims, DEPTHS, (2, 4, 4), strict=True):
        attention = 4 * dim * (dim - 32) + 3 * dim  # q, k, v, out; the biases of q, k, v
        mlp = (2 - pasted_mlp) * dim * (2 * dim + 1)
        difference += depth * (attention + mlp) + 2 * dim - 2 * dim  # the closing norm for the one after the 1x1
    assert count(size, True) - count(size, False) == difference


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_shapes(size: str, published: bool) -> None:
    model = MobileViT(size, classes=7, published=published).eval()
    x, strides = torch.rand(2, 3, 64, 128), {0: 2, 2: 4, 5: 8, 7: 16, 9: 32}
    widths = {2: 1, 5: 2, 7: 3, 9: 4}
    with torch.inference_mode():
        assert model(x).shape == (2, 7)
        for row, layer in enumerate(model.features):
            x = layer(x)
            if row in strides:
                assert x.shape[2:] == (64 // strides[row], 128 // strides[row])
            if row in widths:
                assert x.shape[1] == SIZES[size].widths[widths[row]]
    assert row == 9


def test_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'m'.*xxs, xs, s"):
        MobileViT("m")


# --- other implementations -------------------------------------------------------------------------------------------

TIMM = {
    r"^stem": "features.0",
    r"^stages\.0\.0": "features.1",
    r"^stages\.1\.0": "features.2",
    r"^stages\.1\.([12])\.": lambda m: f"features.3.{int(m[1]) - 1}.",
    r"^stages\.([234])\.([01])\.": lambda m: f"features.{2 * int(m[1]) + int(m[2])}.",
    r"^features\.([579])\.norm": lambda m: f"features.{m[1]}.transformer.{DEPTHS[(int(m[1]) - 5) // 2]}",
    r"conv1_1x1": "expand",
    r"conv2_kxk": "depthwise",
    r"conv3_1x1": "project",
    r"conv_kxk": "local",
    r"conv_1x1": "expand",
    r"conv_proj": "project",
    r"conv_fusion": "fusion",
    r"attn\.proj": "attention.out",
    r"attn": "attention",
    r"mlp\.fc1": "mlp.0",
    r"mlp\.fc2": "mlp.2",
    r"^final_conv": "last",
    r"^head\.fc": "classifier",
}

CVNETS = {
    r"^conv_1\.": "features.0.",
    r"^layer_1\.0": "features.1",
    r"^layer_2\.0": "features.2",
    r"^layer_2\.([12])\.": lambda m: f"features.3.{int(m[1]) - 1}.",
    r"^layer_([345])\.([01])\.": lambda m: f"features.{2 * int(m[1]) - 2 + int(m[2])}.",
    r"^conv_1x1_exp": "last",
    r"^classifier\.fc": "classifier",
    r"\bconv_3x3\.block\.(conv\.weight|norm\..*)$": r"local.block.\1",
    r"local_rep\.local": "local",
    r"local_rep\.conv_1x1\.block\.conv": "expand",
    r"block\.exp_1x1": "expand",
    r"block\.local": "depthwise",
    r"block\.red_1x1": "project",
    r"conv_proj": "project",
    r"global_rep\.(\d+)\.pre_norm_mha\.0": r"transformer.\1.norm1",
    r"global_rep\.(\d+)\.pre_norm_mha\.1\.qkv_proj": r"transformer.\1.attention.qkv",
    r"global_rep\.(\d+)\.pre_norm_mha\.1\.out_proj": r"transformer.\1.attention.out",
    r"global_rep\.(\d+)\.pre_norm_ffn\.0": r"transformer.\1.norm2",
    r"global_rep\.(\d+)\.pre_norm_ffn\.1": r"transformer.\1.mlp.0",
    r"global_rep\.(\d+)\.pre_norm_ffn\.4": r"transformer.\1.mlp.2",
    r"global_rep": "transformer",
    r"\.block\.conv": ".conv",
    r"\.block\.norm": ".bn",
}


def translate(state: dict[str, Tensor], names: dict) -> dict[str, Tensor]:
    """`state` with each pattern of `names` applied to its keys, in their order."""
    renamed = {}
    for key, value in state.items():
        for pattern, name in names.items():
            key = re.sub(pattern, name, key)
        renamed[key] = value
    return renamed


@pytest.mark.parametrize("size", SIZES)
def test_equals_timm(size: str) -> None:
    timm = pytest.importorskip("timm", reason="timm is not installed: pip install timm to compare with its MobileViT")
    torch.manual_seed(0)
    theirs = timm.create_model(f"mobilevit_{size}", pretrained=False).eval()
    randomize_norms(theirs)
    nn.init.normal_(theirs.head.fc.weight, std=0.1)  # timm starts it so small that logits say little

    ours = MobileViT(size).eval()
    ours.load_state_dict(translate(theirs.state_dict(), TIMM), strict=True)
    x = torch.rand(1, 3, 128, 192)
    with torch.inference_mode():
        expected = theirs(x)
        assert expected.std() > 0.01
        assert_close(ours(x), expected, atol=1e-4, rtol=1e-4)


def test_equals_the_recorded_cvnets_model() -> None:
    recorded = oracle("cvnets_mobilevit_xxs.pt")
    model = MobileViT("xxs").eval()
    model.load_state_dict(translate(recorded["state_dict"], CVNETS), strict=True)
    features = {5: "out_l3", 7: "out_l4", 9: "out_l5"}
    x = recorded["input"]
    with torch.inference_mode():
        assert_close(model(x), recorded["logits"], atol=1e-4, rtol=1e-4)
        for row, layer in enumerate(model.features):
            x = layer(x)
            if row in features:
                assert_close(x, recorded["features"][features[row]], atol=1e-4, rtol=1e-4)


def test_runs_as_a_file_from_anywhere(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, str(ROOT / "models" / "mobilevit.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = run.stdout.splitlines()
    assert len(lines) == 6
    printed = {int(re.search(r"([\d,]+) parameters", line)[1].replace(",", "")) for line in lines}
    assert printed == set(PARAMETERS.values())
    assert list(tmp_path.iterdir()) == []
