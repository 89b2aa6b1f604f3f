"""The hyp files in data/hyps: every one is complete, and does to images what its name says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from data_sets import noise, to_boxes, write_set

from utils.data.data_yaml import read_data_yaml
from utils.data.dataset import Augmentation, DetectionDataset
from utils.files import REPO, read_yaml
from utils.hyp import Hyp
from utils.train.optim import build_optimizer, set_norm_momentum

FOLDER = REPO / "data" / "hyps"
FILES = sorted(FOLDER.glob("hyp.*.yaml"))
AUGMENTATIONS = ("hsv_h", "hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective")
AUGMENTATIONS += ("flipud", "fliplr", "mosaic", "mixup", "copy_paste")


def load(name: str) -> Hyp:
    return Hyp.from_yaml(FOLDER / f"hyp.{name}.yaml")


def test_the_promised_files_are_there() -> None:
    promised = {"scratch-low", "scratch-med", "scratch-high", "no-augmentation", "mobilevit"}
    assert promised <= {p.name.removeprefix("hyp.").removesuffix(".yaml") for p in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_every_file_names_every_key_once_and_loads(path: Path) -> None:
    assert Hyp.from_yaml(path).as_dict() == read_yaml(path)  # equal keys and values: nothing is left to a default
    keys = [line.split(":")[0] for line in path.read_text().splitlines() if not line.startswith("#")]
    assert keys == [line.split(":")[0] for line in (FOLDER / "hyp.scratch-low.yaml").read_text().splitlines()[1:]]


def test_augmentation_grows_from_none_to_high() -> None:
    steps = [load(name) for name in ("no-augmentation", "scratch-low", "scratch-med", "scratch-high")]
    assert all(getattr(steps[0], key) == 0 for key in AUGMENTATIONS)
    for weaker, stronger in pairwise(steps):
        pairs = [(getattr(weaker, key), getattr(stronger, key)) for key in AUGMENTATIONS]
        assert all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def test_no_augmentation_gives_the_image_as_validation_sees_it(tmp_path: Path) -> None:
    boxes = to_boxes([0, 16, 20, 36, 30], [1, 40, 4, 47, 28])
    found = read_data_yaml(write_set(tmp_path, [noise((48, 64), 0)], [boxes], ["a", "b"])).scan("train")
    plain, trained = (
        DetectionDataset(found, 64, 32, augment=hyp and Augmentation(hyp))[0, 0]
        for hyp in (None, load("no-augmentation"))
    )
    assert torch.equal(plain.image, trained.image)
    torch.testing.assert_close(plain.targets.xywhn, trained.targets.xywhn)
    assert plain.targets.label.tolist() == trained.targets.label.tolist() == [0, 1]
    changed = DetectionDataset(found, 64, 32, augment=Augmentation(load("scratch-low")))[0, 0]
    assert not torch.equal(plain.image, changed.image)


def test_mobilevit_decays_weights_alone() -> None:
    hyp = load("mobilevit")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.LayerNorm(4))
    optimizer = build_optimizer(model, "AdamW", hyp, hyp.weight_decay)
    decayed = [p for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]]
    assert len(decayed) == 1 and decayed[0] is model[0].weight
    assert optimizer.param_groups[2]["weight_decay"] == 0.01


def test_running_statistics_take_the_share_that_the_recipe_says() -> None:
    """Against the definition: (1 - m) * what was there + m * the batch's, whose variance is the unbiased one."""
    norm = torch.nn.BatchNorm2d(2)
    set_norm_momentum(torch.nn.Sequential(norm), 0.25)
    batch = torch.randn(3, 2, 4, 4)
    norm(batch)
    values = batch.transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean, 0.25 * values.mean(1))
    assert torch.allclose(norm.running_var, 0.75 + 0.25 * values.var(1))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("lr0: -0.1", "lr0 -0.1: expected at least 0"),
        ("lr0: .nan", "lr0 nan: expected at least 0"),
        ("box: .inf", "box inf: expected at least 0"),
        ("mosaic: 1.5", "mosaic 1.5: expected at least 0, at most 1"),
        ("nominal_batch: 0", "nominal_batch 0: expected more than 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_file(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(line)
    with pytest.raises(ValueError, match=f"mine.yaml: {expected}"):
        Hyp.from_yaml(path)
