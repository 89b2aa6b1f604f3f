"""Hyperparameter search on a cheap objective: it improves, stops bad trials, resumes exactly, shares its trials."""

from __future__ import annotations

import csv
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from utils.files import REPO
from utils.hyp import Hyp

optuna = pytest.importorskip("optuna")

from utils.train import search as evolve  # noqa: E402 (it needs optuna)
from utils.train.search import NumberedTPE, Range, Report, SearchSettings, TrainTrial, read_space, search  # noqa: E402

EPOCHS = 5
SPACE = {"lr0": Range(1e-4, 1e-1, log=True), "scale": Range(0.0, 0.9), "nominal_batch": Range(choices=(16, 32, 64))}
BASE = Hyp(lr0=0.03, scale=0.7)


def goodness(hyp: Hyp) -> float:
    """1 at lr0 0.002, scale 0.2, nominal_batch 16; less elsewhere."""
    return math.exp(-abs(math.log10(hyp.lr0 / 0.002)) - 2 * abs(hyp.scale - 0.2)) * (
        1 if hyp.nominal_batch == 16 else 0.8
    )


def toy(hyp: Hyp, report: Report) -> float:
    fitness = 0.0
    for epoch in range(EPOCHS):
        fitness = goodness(hyp) * (epoch + 1) / EPOCHS
        if report(epoch, fitness):
            break
    return fitness


def make(tmp_path: Path, name: str = "evolve") -> Path:
    folder = tmp_path / name
    folder.mkdir(exist_ok=True)
    return folder


def run(folder: Path, trials: int, objective: TrainTrial = toy, **settings: Any) -> Hyp:
    return search(objective, BASE, SPACE, folder, SearchSettings(trials, EPOCHS, **settings))


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "evolve.csv").open() as file:
        return list(csv.DictReader(file))


def without_time(folder: Path) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)]


@pytest.fixture
def without_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out evolve.png, which takes longer than a toy search."""
    monkeypatch.setattr(evolve, "plot_trials", lambda study, path: None)


plain = pytest.mark.usefixtures("without_plot")


def test_search_finds_better_hyps_than_it_began_with(tmp_path: Path) -> None:
    folder = make(tmp_path)
    best = run(folder, 16)
    assert goodness(best) > 1.5 * goodness(BASE)
    assert replace(best, lr0=BASE.lr0, scale=BASE.scale, nominal_batch=BASE.nominal_batch) == BASE  # the rest is kept
    assert isinstance(best.nominal_batch, int)
    assert Hyp.from_yaml(folder / "hyp_evolved.yaml") == best
    table = rows(folder)
    assert [int(row["trial"]) for row in table] == list(range(16))
    assert (float(table[0]["lr0"]), float(table[0]["scale"]), int(table[0]["nominal_batch"])) == (0.03, 0.7, 64)
    for row in table:
        tried = Hyp(lr0=float(row["lr0"]), scale=float(row["scale"]), nominal_batch=int(row["nominal_batch"]))
        assert float(row["fitness"]) == pytest.approx(goodness(tried) * int(row["epochs"]) / EPOCHS, rel=1e-5)
    stopped = [row for row in table if row["state"] == "pruned"]
    assert stopped and all(2 < int(row["epochs"]) < EPOCHS for row in stopped)
    assert max(float(row["fitness"]) for row in table) == pytest.approx(goodness(best), rel=1e-5)
    assert {p.name for p in folder.iterdir()} == {"evolve.db", "evolve.csv", "evolve.png", "hyp_evolved.yaml"}


def test_the_plot_has_a_panel_for_each_hyperparameter_and_a_point_for_each_completed_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = []
    monkeypatch.setattr(evolve, "save_figure", lambda figure, path: figures.append(figure))
    folder = make(tmp_path)
    run(folder, 8)
    complete = [row for row in rows(folder) if row["state"] == "complete"]
    (figure,) = figures
    panels = {axes.get_xlabel(): axes for axes in figure.axes if axes.get_xlabel()}
    assert list(panels) == list(SPACE)
    for key, axes in panels.items():
        points = axes.collections[0].get_offsets()
        expected = [[float(row[key]), float(row["fitness"])] for row in complete]
        np.testing.assert_allclose(sorted(points.tolist()), sorted(expected), rtol=1e-4)
        assert axes.get_xscale() == ("log" if SPACE[key].log else "linear")


@plain
def test_a_search_in_two_parts_equals_one_in_one(tmp_path: Path) -> None:
    whole, parts = (make(tmp_path, name) for name in ("whole", "parts"))
    run(whole, 7)
    run(parts, 3)
    best = run(parts, 7)
    assert best == Hyp.from_yaml(whole / "hyp_evolved.yaml")
    assert without_time(parts) == without_time(whole)
    assert run(parts, 5) == best  # done: nothing is trained any more
    assert len(rows(parts)) == 7


def test_the_seed_and_the_number_of_a_trial_decide_what_it_tries() -> None:
    def tried(seed: int) -> list[float]:
        study = optuna.create_study(sampler=NumberedTPE(seed))
        return [study.ask().suggest_float("lr0", 0, 1) for _ in range(3)]

    assert tried(0) == tried(0)
    assert len({*tried(0), *tried(1)}) == 6


@plain
def test_ctrl_c_in_a_trial_loses_only_that_trial(tmp_path: Path) -> None:
    folder = make(tmp_path)
    calls = 0

    def interrupted(hyp: Hyp, report: Report) -> float:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return toy(hyp, report)

    with pytest.raises(KeyboardInterrupt):
        run(folder, 5, interrupted)
    assert len(rows(folder)) == 2
    run(folder, 5, interrupted)
    assert calls == 6 and [row["trial"] for row in rows(folder)] == ["0", "1", "3", "4", "5"]


FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
needs_fork = pytest.mark.skipif(FORK is None, reason="this system cannot fork, and starting Python anew takes seconds")


def killed_at_the_third(folder: Path) -> None:
    calls = []

    def objective(hyp: Hyp, report: Report) -> float:
        calls.append(hyp)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return toy(hyp, report)

    run(folder, 6, objective)


@plain
@needs_fork
def test_a_killed_search_is_resumed(tmp_path: Path) -> None:
    folder = make(tmp_path)
    victim = FORK.Process(target=killed_at_the_third, args=(folder,))
    victim.start()
    victim.join()
    assert victim.exitcode == -signal.SIGKILL
    assert len(rows(folder)) == 2
    best = run(folder, 4)
    assert [row["trial"] for row in rows(folder)] == ["0", "1", "3", "4"]
    assert Hyp.from_yaml(folder / "hyp_evolved.yaml") == best


def work(folder: Path, place: str) -> None:
    run(folder, 5, storage=place)


@plain
@needs_fork
def test_workers_share_a_study_and_never_try_the_same(tmp_path: Path) -> None:
    folder = make(tmp_path)
    place = f"sqlite:///{tmp_path / 'shared.db'}"
    run(folder, 1, storage=place)
    workers = [FORK.Process(target=work, args=(folder, place)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    run(folder, 5, storage=place)  # the tables as they stand now
    table = rows(folder)
    assert 5 <= len(table) <= 6  # the second worker may have been at its last trial
    assert len({row["lr0"] for row in table}) == len(table)
    assert not (folder / "evolve.db").exists()


def test_a_loss_that_is_not_finite_counts_as_bad(tmp_path: Path) -> None:
    folder = make(tmp_path)

    def explodes(hyp: Hyp, report: Report) -> float:
        if hyp.lr0 > 0.01:
            raise FloatingPointError("loss is nan in epoch 1")
        report(0, math.nan)  # an epoch without validation
        return toy(hyp, report)

    best = run(folder, 8, explodes)
    assert best.lr0 <= 0.01
    first = rows(folder)[0]
    assert (first["state"], first["fitness"], first["epochs"]) == ("pruned", "nan", "0")

    def hopeless(hyp: Hyp, report: Report) -> float:
        return math.nan

    with pytest.raises(FloatingPointError, match="none of 2 trials has a fitness"):
        run(make(tmp_path, "hopeless"), 2, hopeless)


@plain
def test_an_error_in_a_trial_ends_the_search_as_it_is(tmp_path: Path) -> None:
    def broken(hyp: Hyp, report: Report) -> float:
        raise ValueError("label error")

    with pytest.raises(ValueError, match="label error"):
        run(make(tmp_path), 2, broken)


@plain
def test_a_study_does_not_mix_settings(tmp_path: Path) -> None:
    folder = make(tmp_path)
    run(folder, 1, shared={"imgsz": 160, "data": "a.yaml"})
    run(folder, 1, shared={"imgsz": 160, "data": "a.yaml"})
    with pytest.raises(ValueError, match="study 'evolve' was started with another imgsz; expected the same, or a new"):
        run(folder, 2, shared={"imgsz": 320, "data": "a.yaml"})


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("here", ValueError, "--evolve-storage here: not a database URL"),
        ("sqlite:////nowhere/at/all.db", ValueError, "unable to open database file"),
        ("mysql+nodriver://host/name", ValueError, "mysql.nodriver"),
    ],
)
def test_a_bad_storage_is_one_line(url: str, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message) as raised:
        run(make(tmp_path), 1, storage=url)
    assert "\n" not in str(raised.value)


@plain
def test_a_start_outside_of_the_space_is_moved_to_its_edge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = make(tmp_path)
    search(toy, Hyp(lr0=0.5, nominal_batch=60), SPACE, folder, SearchSettings(1, EPOCHS))
    assert (rows(folder)[0]["lr0"], rows(folder)[0]["nominal_batch"]) == ("0.1", "64")
    assert "lr0 0.5 is outside of the search space; the first trial has 0.1" in caplog.messages


def test_the_space_of_the_repository_contains_the_defaults() -> None:
    path = REPO / "data" / "hyps" / "space.yaml"
    space = read_space(path)
    assert space["lr0"] == Range(0.0005, 0.05, log=True) and space["nominal_batch"].choices == (16, 32, 64)
    for key, span in space.items():
        assert span.nearest(getattr(Hyp(), key)) == getattr(Hyp(), key)  # the defaults lie inside


def test_every_range_of_the_space_can_be_used(tmp_path: Path) -> None:
    text = (REPO / "data" / "hyps" / "space.yaml").read_text()
    lines = [line.removeprefix("# ") for line in text.splitlines() if "{low" in line]
    (tmp_path / "all.yaml").write_text("\n".join(lines))
    assert len(read_space(tmp_path / "all.yaml")) == len(lines) >= 20


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: {low: 0, high: 1}", "unknown key lr, expected: .*lr0"),
        ("mosaic: {low: 0, high: 3}", "mosaic 3: expected at least 0, at most 1"),
        ("nominal_batch: {choices: [0, 16]}", "nominal_batch 0: expected more than 0"),
        ("lr0: 3", "lr0 is 3, expected {low: number, high: number"),
        ("lr0: {low: 1}", "lr0 is .*, expected {low: number"),
        ("lr0: {low: a, high: 1}", "lr0 is .*, expected {low: number"),
        ("lr0: {low: 2, high: 1}", "lr0 is .*, expected low below high"),
        ("lr0: {low: 0, high: 1, log: true}", "lr0 is .*, expected low below high, and above 0 where"),
        ("lr0: {choices: []}", "lr0 is .*, expected {low: number"),
        ("lr0: {choices: 5}", "lr0 is .*, expected {low: number"),
        ("lr0: {choices: [1, yes]}", "lr0 is .*, expected {low: number"),
        ("{}", "empty, expected at least one hyperparameter"),
    ],
)
def test_a_bad_space_names_the_file_and_the_key(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "space.yaml").write_text(text + "\n")
    with pytest.raises(ValueError, match=rf"space\.yaml: {message}"):
        read_space(tmp_path / "space.yaml")


def test_without_optuna_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "optuna.py").write_text("raise ModuleNotFoundError('optuna')\n")
    code = "import utils.train.search"
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPO}"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (
        result.stderr.splitlines()[-1]
        == "ImportError: --evolve needs the package optuna, expected after: pip install optuna"
    )
