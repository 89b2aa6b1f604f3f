"""tools/study.py: what it trains, what it keeps, what it refuses. Training itself is left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import train
from tools import study
from tools.study import StudyConfig
from utils.hyp import Hyp


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
