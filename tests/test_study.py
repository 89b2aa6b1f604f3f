"""tools/study.py: what it trains, what it keeps, what it refuses. Training itself is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from models.heads import HEADS, DetectV8
from models.yolo import DetectionModel
from tools import study, study_table
from tools.study import StudyConfig
from tools.study_table import Line, compare, difference
from utils.files import REPO
from utils.hyp import HeadFactors, Hyp


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[train.TrainConfig]:
    """The trainings that were asked for; each leaves the files of a finished run, better with every seed."""
    asked: list[train.TrainConfig] = []

    def finish(cfg: train.TrainConfig) -> None:
        asked.append(cfg)
        folder = Path(cfg.project) / cfg.name
        folder.mkdir(parents=True, exist_ok=True)
        rows = [f"0.{k + cfg.seed},0.0{5 - k}" for k in range(3)]
        (folder / "results.csv").write_text("\n".join([",".join(study.COLUMNS), *rows]))
        (folder / "metrics.json").write_text("{}")

    monkeypatch.setattr(train, "main", finish)
    return asked


def config(folder: Path, arms: Any, **changes: Any) -> StudyConfig:
    path = folder / "arms.yaml"
    path.write_text(yaml.safe_dump(arms, sort_keys=False))
    common: dict[str, Any] = {"data": ("pets/data.yaml",), "arms": str(path), "project": str(folder / "runs")}
    return StudyConfig(**(common | changes))


def test_every_recipe_is_trained_once_and_the_table_has_mean_and_range(
    trained: list[train.TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arms = {"rule": {"rule": True}, "fast": {"lr0": 0.5, "flags": {"cos-lr": True, "freeze": [3]}}}
    for _ in range(2):
        study.main(config(tmp_path, arms, seeds=(0, 2)))
    assert [(cfg.name, cfg.hyp != "", cfg.cos_lr) for cfg in trained] == [
        ("pets-yolov5n-192-30-rule-s0", False, False),
        ("pets-yolov5n-192-30-rule-s2", False, False),
        ("pets-yolov5n-192-30-fast-s0", True, True),
        ("pets-yolov5n-192-30-fast-s2", True, True),
    ]
    assert Hyp.from_yaml(trained[2].hyp) == Hyp(lr0=0.5) and trained[2].freeze == (3,)
    assert "| pets | yolov5n | fast | 0.300 ± 0.100 | 0.050 ± 0.000 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "what"), [({"fraction": (0.5,)}, "fraction"), ({"batch_size": 8}, "batch_size"), ({"arms": 0.2}, "hyp")]
)
def test_a_run_with_other_settings_is_refused(
    trained: list[train.TrainConfig], tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    study.main(config(tmp_path, {"a": {"lr0": 0.1}}))
    rate = changes.pop("arms", 0.1)
    with pytest.raises(ValueError, match=f"a-s0.json: started with another {what}; expected another --project"):
        study.main(config(tmp_path, {"a": {"lr0": rate}}, **changes))
    assert len(trained) == 1


def test_a_run_of_another_version_of_the_recipe_is_refused(
    trained: list[train.TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study.main(config(tmp_path, {"rule": {"rule": True}}))
    monkeypatch.setattr("utils.train.recipe.LR", 0.1)
    with pytest.raises(ValueError, match="started with another rule"):
        study.main(config(tmp_path, {"rule": {"rule": True}}))


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        (3, "x is 3, expected hyperparameters"),
        ({"flags": None}, "expected hyperparameters and under 'flags'"),
        ({"lr": 1}, "unknown key lr"),
        ({"lr0": -1}, "x: lr0 -1: expected at least 0"),
        ({"lr0": "fast"}, "x: lr0 fast: expected at least 0"),
        ({"flags": {"lr": 1}}, "unknown flag lr"),
        ({"flags": {"clip_grad": "1"}}, "clip_grad is '1', expected a value like -1.0"),
        ({"flags": {"freeze": 10}}, "freeze is 10, expected a value like"),
        ({"rule": True, "lr0": 0.1}, "lets train.py choose the hyperparameters, expected none"),
    ],
)
def test_a_recipe_that_cannot_be_is_named(
    trained: list[train.TrainConfig], tmp_path: Path, arm: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"arms\.yaml: .*{message}"):
        study.main(config(tmp_path, {"x": arm}))
    assert not trained


def test_settings_that_cannot_be_read_are_named(trained: list[train.TrainConfig], tmp_path: Path) -> None:
    path = tmp_path / "runs" / "pets-yolov5n-192-30-a-s0.json"
    path.parent.mkdir()
    for text in ("{", "[1]", "3"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"a-s0\.json: not the settings of a run"):
            study.main(config(tmp_path, {"a": {"lr0": 0.1}}))
    assert not trained and path.read_text() == "3"


def heads_file(folder: Path, heads: Any) -> str:
    path = folder / "heads.yaml"
    path.write_text(yaml.safe_dump(heads))
    return str(path)


HEADS_OF_TEST = {"anchors": ["Detect", ["nc", "anchors"]], "v8": ["DetectV8", ["nc", {"reg_max": 1}]]}


def test_heads_are_put_on_every_body_and_compared_with_the_first(
    trained: list[train.TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    common: dict[str, Any] = {"heads": heads_file(tmp_path, HEADS_OF_TEST), "head": ("anchors", "v8"), "seeds": (0, 1)}
    common |= {"data": ("pets/data.yaml", "cars.yaml"), "fraction": (1.0, 0.2)}
    cfg = config(tmp_path, {"rule": {"rule": True}}, cfg=("yolov5n.yaml", "yolov5-mobilevit-fast.yaml"), **common)
    study.main(cfg)
    assert [(c.name.partition("-192")[0], c.fraction) for c in trained[::2]] == [
        ("pets-yolov5n", 1.0),
        ("pets-yolov5n-v8", 1.0),
        ("pets-yolov5-mobilevit-fast", 1.0),
        ("pets-yolov5-mobilevit-fast-v8", 1.0),
        ("cars-yolov5n", 0.2),
        ("cars-yolov5n-v8", 0.2),
        ("cars-yolov5-mobilevit-fast", 0.2),
        ("cars-yolov5-mobilevit-fast-v8", 0.2),
    ]
    model = DetectionModel(trained[2].cfg, nc=3)
    assert isinstance(model.head, DetectV8) and model.head.reg_max == 1 and "anchors" not in model.yaml
    assert trained[0].cfg == "yolov5n.yaml"  # its own head: nothing is written
    table = capsys.readouterr().out.rpartition("\n\n")[2].splitlines()
    assert table[0] == "| network | parameters | GFLOPs at 640 | pets | cars | difference to yolov5n |"
    assert table[2] == "| yolov5n | 1,872,157 | 4.5 | 0.050 ± 0.000 | 0.050 ± 0.000 |  |"
    assert table[3].startswith("| yolov5n-v8 | ") and table[3].endswith("| +0.000 (+0.000 to +0.000, 4 runs) |")
    saved = json.loads((tmp_path / "runs" / "pets-yolov5n-v8-192-30-rule-s0.json").read_text())
    assert saved["head"] == HEADS_OF_TEST["v8"] and "head" not in json.loads(
        (tmp_path / "runs" / "pets-yolov5n-192-30-rule-s0.json").read_text()
    )
    study.main(cfg)
    assert len(trained) == 16  # 4 networks, 2 data sets, 2 seeds: none is repeated
    with pytest.raises(ValueError, match=r"v8-192-30-rule-s0\.json: started with another head"):
        heads_file(tmp_path, HEADS_OF_TEST | {"v8": ["DetectV8", ["nc"]]})
        study.main(cfg)


def test_finished_trains_nothing(
    trained: list[train.TrainConfig], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    arms = {"rule": {"rule": True}}
    study.main(config(tmp_path, arms))
    study.main(config(tmp_path, arms, cfg=("yolov5n.yaml", "yolov5s.yaml"), seeds=(0, 1), finished=True))
    assert len(trained) == 1
    table = capsys.readouterr().out.splitlines()
    assert "| pets | yolov5n | rule | 0.200 | 0.050 |" in table and "| pets | yolov5s | rule | - | - |" in table
    assert table[-1].endswith("| - | - |")


def test_the_numbers_of_a_head_belong_to_the_rule(
    trained: list[train.TrainConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path, {"rule": {"rule": True}}, cfg=("yolov5n-v8.yaml",))
    study.main(cfg)
    monkeypatch.setattr(DetectV8, "recipe", HeadFactors(lr=0.5))
    with pytest.raises(ValueError, match="started with another rule"):
        study.main(cfg)
    study.main(config(tmp_path, {"rule": {"rule": True}}))  # of another head: as before


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (["DetectV9", ["nc"]], r"heads\.yaml: x is \['DetectV9', \['nc'\]\], expected \[a block of Detect, Decoupled"),
        (["Conv", [1]], "x is .* expected"),
        ("Detect", "x is 'Detect', expected"),
        (["Detect"], "x is .* expected"),
    ],
)
def test_heads_that_cannot_be_are_named(head: Any, message: str, tmp_path: Path) -> None:
    cfg = config(tmp_path, {"rule": {"rule": True}}, heads=heads_file(tmp_path, {"x": head}), head=("x",))
    with pytest.raises(ValueError, match=message):
        study.main(cfg)
    with pytest.raises(ValueError, match=r"heads\.yaml: no head y, it has x"):
        study.main(replace(cfg, head=("y",)))


def test_fractions_are_one_or_one_for_each_data_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--fraction has 2 numbers, expected one, or one for each of --data"):
        study.main(config(tmp_path, {"rule": {"rule": True}}, fraction=(1.0, 0.5)))


def test_every_head_of_the_study_builds_on_both_bodies(tmp_path: Path) -> None:
    names = tuple(yaml.safe_load((REPO / "tools" / "heads.yaml").read_text()))
    cfg = config(tmp_path, {}, cfg=("yolov5n.yaml", "yolov5-mobilevit-fast.yaml"), head=names)
    made = [DetectionModel(path, nc=2) for path in study.networks(cfg)]
    assert len(made) == 2 * len(names) >= 16 and all(model.grid == 32 for model in made)
    assert {type(model.head).__name__ for model in made} == set(HEADS)


def test_differences_are_between_runs_of_the_same_data_and_seed() -> None:
    first = {("a", 0): 0.5, ("a", 1): 0.4, ("b", 0): 0.1}
    own = {("a", 0): 0.6, ("a", 1): 0.4, ("b", 0): 0.2, ("b", 1): 0.9}
    assert difference(own, first) == "+0.075 (+0.000 to +0.100, 3 runs)"  # the mean of the data sets' 0.05 and 0.1
    assert difference({("b", 1): 0.9}, first) == "-"
    assert difference({("b", 0): 0.05}, first) == "-0.050 (-0.050 to -0.050, 1 run)"


def test_networks_are_timed_once_for_all_their_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(networks: Any, cfg: Any) -> None:
        asked.append(([n.name for n in networks], cfg.imgsz, cfg.runtimes))
        for i, network in enumerate(networks, start=1):
            network.ms.update({(runtime, size): 10.0 * i for runtime in cfg.runtimes for size in cfg.imgsz})

    monkeypatch.setattr(study_table, "measure", measure)
    lines = [Line("n, a", "yolov5n.yaml"), Line("n, b", "yolov5n.yaml"), Line("v8", "yolov5n-v8.yaml")]
    table = compare(lines, ["pets"], (320,)).splitlines()
    assert asked == [(["yolov5n", "yolov5n-v8"], (320,), ("torch", "onnx"))]
    assert "| torch 320 | onnx 320 |" in table[0] and "| 10.0 (1.00) | 10.0 (1.00) |" in table[3]
    assert "| 20.0 (2.00) | 20.0 (2.00) | - | - |" in table[4]
