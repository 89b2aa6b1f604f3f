"""tools/rank_study.py: which trainings it asks for, with which images, what it repeats. Training is left out."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from blobs import BlobBackend, make_set

import train
from tools import rank_study
from tools.rank_study import RankStudyConfig, Result, main, table


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[train.TrainConfig]:
    """The trainings that were asked for; each leaves the files of a finished run, better with more images."""
    asked: list[train.TrainConfig] = []

    def finish(cfg: train.TrainConfig) -> None:
        asked.append(cfg)
        folder = Path(cfg.project) / cfg.name
        (folder / "weights").mkdir(parents=True)
        score = len(images_of(cfg)) / 100
        (folder / "metrics.json").write_text(
            json.dumps({"map50": 2 * score, "map50_95": score, "thresholds": {"confidence": 0.3}})
        )

    def ranking(backend: object, imgsz: int, images: list[str], known: list[str], count: int) -> tuple[list, int]:
        assert not set(images) & set(known)
        return [SimpleNamespace(path=path) for path in sorted(images)[-count:]], len(images)

    monkeypatch.setattr(train, "main", finish)
    monkeypatch.setattr(rank_study, "rank", ranking)
    monkeypatch.setattr(rank_study, "load_ranker", lambda *_: None)
    monkeypatch.setattr(rank_study, "load_model", lambda *_, **__: BlobBackend())
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return asked


def images_of(cfg: train.TrainConfig) -> list[str]:
    path = Path(cfg.data)
    return path.with_name(f"{cfg.name}.train.txt").read_text().splitlines()


@pytest.fixture
def config(tmp_path: Path) -> RankStudyConfig:
    data = make_set(tmp_path / "set", count=18)
    return RankStudyConfig(
        data=(str(data),), shares=(1 / 9, 1 / 3), steps=(10,), batch_size=4, project=str(tmp_path / "runs")
    )


def test_arms_share_their_first_images_and_have_as_many(
    trained: list[train.TrainConfig], config: RankStudyConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    results = main(config)
    lists = {cfg.name.split("-")[-3]: images_of(cfg) for cfg in trained}
    assert {name: len(images) for name, images in lists.items()} == {"start": 2, "random": 6, "ranked": 6, "full": 18}
    assert set(lists["start"]) < set(lists["random"]) and set(lists["start"]) < set(lists["ranked"])
    rest = sorted(set(lists["full"]) - set(lists["start"]))
    assert set(lists["ranked"]) - set(lists["start"]) == set(rest[-4:])
    assert [cfg.epochs for cfg in trained] == [10, 5, 5, 2]  # of 1, 2, 2 and 5 batches
    assert [(r.arm, r.images) for r in results] == [
        ("ranked", 2), ("random", 2), ("random", 6), ("ranked", 6), ("full", 18),
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "| set | ranked | 33% | 6 | " in out and "| 0.060 | 33% |" in out
    folder = Path(config.project)
    assert (folder / "table.md").read_text() in out and (folder / "curves.png").stat().st_size > 5000


def test_finished_runs_are_not_repeated_and_seeds_do_not_mix(
    trained: list[train.TrainConfig], config: RankStudyConfig
) -> None:
    first = main(config)
    assert main(config) == first and len(trained) == 4
    both = main(RankStudyConfig(**(vars(config) | {"seeds": (0, 1)})))
    assert len(trained) == 8 and both[: len(first)] == first
    assert len({cfg.name for cfg in trained}) == 8
    with pytest.raises(ValueError, match="started with another batch_size"):
        main(RankStudyConfig(**(vars(config) | {"batch_size": 6, "steps": (10,)})))


def test_pseudo_labels_are_on_copies_of_all_other_images(
    trained: list[train.TrainConfig], config: RankStudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[float] = []
    settings = rank_study.NmsSettings
    monkeypatch.setattr(rank_study, "NmsSettings", lambda least: (used.append(least), settings(least))[1])
    before = {path: path.read_bytes() for path in Path(config.data[0]).parent.rglob("*.txt")}
    results = main(RankStudyConfig(**(vars(config) | {"arms": ("pseudo",)})))
    images = images_of(trained[-1])
    copies = [Path(path) for path in images if ".copies" in path]
    assert len(images) == 18 and len(copies) == 12 and results[-1].arm == "pseudo" and results[-1].images == 6
    labels = [path.parents[1] / "labels" / f"{path.stem}.txt" for path in copies]
    assert all(path.is_file() for path in copies + labels) and any(label.read_text() for label in labels)
    assert {path: path.read_bytes() for path in before} == before
    assert used == [0.3]


def test_pseudo_labels_need_a_threshold(trained: list[train.TrainConfig], config: RankStudyConfig) -> None:
    main(config)
    for metrics in Path(config.project).rglob("metrics.json"):
        metrics.write_text(json.dumps(json.loads(metrics.read_text()) | {"thresholds": None}))
    with pytest.raises(ValueError, match="has no confidence threshold, its model finds nothing right"):
        main(RankStudyConfig(**(vars(config) | {"arms": ("pseudo",)})))


def test_each_data_set_has_its_steps(trained: list[train.TrainConfig], config: RankStudyConfig, tmp_path: Path) -> None:
    other = str(make_set(tmp_path / "other", count=18))
    results = main(RankStudyConfig(**(vars(config) | {"data": (*config.data, other), "steps": (10, 20)})))
    assert [cfg.epochs for cfg in trained] == [10, 5, 5, 2, 20, 10, 10, 4]
    assert [r.data for r in results] == ["set"] * 5 + ["other"] * 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": ()}, "--data is missing"),
        ({"shares": (0.01, 0.02)}, "18 images in train are too few"),
        ({"shares": (0.5, 0.2)}, "expected each larger than the one before"),
        ({"steps": (10, 20)}, "2 numbers, expected one, or one for each"),
        ({"arms": ("best",)}, "--arms best: expected some of"),
    ],
)
def test_mistakes(changes: dict[str, object], message: str, config: RankStudyConfig) -> None:
    with pytest.raises(ValueError, match=message):
        main(RankStudyConfig(**(vars(config) | changes)))


def test_table_has_the_mean_over_seeds_and_half_of_the_range() -> None:
    rows = [Result("a", "full", 1.0, 9, 20, 0.8, 0.4), Result("a", "full", 1.0, 9, 20, 0.8, 0.6)]
    rows += [Result("a", "ranked", 1 / 3, 3, 10, 0.7, 0.45), Result("a", "ranked", 1 / 3, 3, 12, 0.7, 0.45)]
    assert table(rows)[2:] == [
        "| a | ranked | 33% | 3 | 11 | 0.700 ± 0.000 | 0.450 ± 0.000 | 90% |",
        "| a | full | 100% | 9 | 20 | 0.800 ± 0.000 | 0.500 ± 0.100 | 100% |",
    ]
