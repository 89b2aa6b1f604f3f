"""Interrupted runs: what is on disk, what a resumed run continues, and what the user reads."""

from __future__ import annotations

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_sets import rectangles, to_boxes, write_set

import train
from models.weights.checkpoint import build_model, load_checkpoint, save_checkpoint
from tools.kill_and_resume import differences
from utils.boxes import Targets
from utils.config import run_script
from utils.device import random_states, restore_random_states, seed_everything
from utils.distributed import Dist
from utils.files import REPO
from utils.hyp import Hyp
from utils.loss import DetectionLoss, LossGains
from utils.runs import newest_to_resume
from utils.train.memory import choose_batch_size


def config(data: Path, project: Path, **changes: Any) -> train.TrainConfig:
    base = {"data": str(data), "project": str(project), "imgsz": 64, "epochs": 4, "batch_size": 4, "workers": 0}
    return train.TrainConfig(**(base | {"cfg": "yolov5n.yaml", "device": "cpu", "noplots": True} | changes))


def interrupted(cfg: train.TrainConfig, at: int, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Train until `error` strikes in the middle of epoch `at`."""
    original, calls = DetectionLoss.__call__, [0]

    def strike(self: Any, *args: Any) -> Any:
        calls[0] += torch.is_grad_enabled()
        if calls[0] == 3 * at + 2:  # three batches an epoch
            raise error
        return original(self, *args)

    with monkeypatch.context() as patch, pytest.raises(BaseException) as caught:
        patch.setattr(DetectionLoss, "__call__", strike)
        train.main(cfg)
    assert caught.value is error or caught.value.__cause__ is error


@pytest.fixture(scope="module")
def whole(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Runs that nothing interrupts, each made once."""
    root, made = tmp_path_factory.mktemp("whole"), {}

    def run(**changes: Any) -> Path:
        name = "_".join(f"{k}-{v}" for k, v in changes.items()) or "plain"
        if name not in made:
            made[name] = train.main(config(small_set, root, name=name, **changes)) and root / name
        return made[name]

    return run


@pytest.mark.parametrize(
    "changes",
    [{}, {"optimizer": "AdamW", "image_weights": True, "multi_scale": True}, {"close_mosaic": 2, "fraction": 0.9}],
    ids=["plain", "weighted", "fraction"],
)
def test_a_resumed_run_ends_as_one_that_was_never_interrupted(
    changes: dict[str, Any],
    small_set: Path,
    tmp_path: Path,
    whole: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        interrupted(config(small_set, tmp_path, name="run", **changes), 2, monkeypatch, KeyboardInterrupt())
    last = tmp_path / "run" / "weights" / "last.pt"
    assert f"2 epochs are saved; resume with: python train.py --resume {last}" in caplog.text
    torch.rand(7), np.random.rand(3)  # other work in between
    train.main(train.TrainConfig(resume=str(last), device="cpu", workers=1))
    assert differences(tmp_path / "run", whole(**changes)) == []


def test_fitted_anchors_survive_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, boxes = [], []
    for i in range(12):  # about 60 x 2 px: no anchor of the YAML is near
        rows = [[0, 2 + i / 2, 5 * k, 62 - i / 2, 5 * k + 2 + k / 4 + i / 16] for k in range(12)]
        boxes.append(to_boxes(*rows))
        images.append(rectangles((64, 64), to_boxes(), gray=20 * i))
    thin = config(write_set(tmp_path / "thin", images, boxes, ["box"]), tmp_path, epochs=2, name="whole")
    train.main(thin)
    whole = load_checkpoint(tmp_path / "whole/weights/last.pt")
    key = next(k for k in whole.model if k.endswith("anchors"))
    assert not torch.equal(whole.model[key], train.DetectionModel("yolov5n.yaml", nc=1).state_dict()[key])
    interrupted(replace(thin, name="run"), 1, monkeypatch, KeyboardInterrupt())
    train.main(train.TrainConfig(resume=str(tmp_path / "run"), device="cpu", workers=0))
    assert differences(tmp_path / "run", tmp_path / "whole") == []


def test_an_early_stopped_run_that_was_killed_before_its_report_stays_stopped(small_set: Path, tmp_path: Path) -> None:
    train.main(config(small_set, tmp_path, name="run", patience=1, epochs=30))
    run = tmp_path / "run"
    before, rows = load_checkpoint(run / "weights/last.pt"), (run / "results.csv").read_text()
    assert before.epoch < 29
    (run / "metrics.json").unlink()
    train.main(train.TrainConfig(resume=str(run), device="cpu", workers=0))
    assert load_checkpoint(run / "weights/last.pt").epoch == before.epoch
    assert (run / "results.csv").read_text() == rows and (run / "metrics.json").exists()


def test_without_validation_patience_does_not_count(small_set: Path, tmp_path: Path) -> None:
    train.main(config(small_set, tmp_path, name="run", noval=True, patience=1))
    assert load_checkpoint(tmp_path / "run/weights/last.pt").epoch == 3


def test_a_finished_run_is_reported_and_more_epochs_continue_it(
    small_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train.main(config(small_set, tmp_path, name="run", epochs=1))
    with caplog.at_level(logging.INFO):
        train.main(train.TrainConfig(resume="newest", project=str(tmp_path), device="cpu"))
    assert "finished after 1 epoch;" in caplog.text
    train.main(train.TrainConfig(resume=str(tmp_path / "run"), epochs=3, device="cpu", workers=0))
    assert [r.split(",")[0] for r in (tmp_path / "run/results.csv").read_text().splitlines()] == ["epoch", *"012"]


def test_resume_needs_a_run(small_set: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run to resume, expected .*last.pt"):
        train.main(train.TrainConfig(resume="newest", project=str(tmp_path), device="cpu"))
    train.main(config(small_set, tmp_path, name="run", epochs=1))
    best = tmp_path / "run" / "weights" / "best.pt"
    with pytest.raises(ValueError, match=r"best.pt: holds weights only, nothing to resume"):
        train.main(train.TrainConfig(resume=str(best), device="cpu"))
    assert best.stat().st_size < 0.5 * best.with_name("last.pt").stat().st_size


@pytest.mark.parametrize("rate", ["fast", -1.0, float("nan")])
def test_a_run_with_an_impossible_hyp_is_refused_by_name(small_set: Path, tmp_path: Path, rate: Any) -> None:
    train.main(config(small_set, tmp_path, epochs=1, name="run"))
    last = tmp_path / "run/weights/last.pt"
    saved = load_checkpoint(last)
    save_checkpoint(last, replace(saved, hyp=saved.hyp | {"lr0": rate}))
    with pytest.raises(ValueError, match=r"last.pt: lr0 .*: expected"):
        train.main(train.TrainConfig(resume=str(last), epochs=2, device="cpu"))


def test_a_full_disk_leaves_the_previous_checkpoint(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train.main(config(small_set, tmp_path, name="run", epochs=1))
    last = tmp_path / "run" / "weights" / "last.pt"
    before = last.read_bytes()

    def full(file: int) -> None:
        if os.fstat(file).st_size > 1e6:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    monkeypatch.setattr(sys, "argv", ["train.py", "--resume", str(last), "--epochs", "2", "--workers", "0"])
    with pytest.raises(SystemExit) as stop:
        run_script(train.main, train.TrainConfig)
    assert stop.value.code == 2
    assert "No space left on device; not saved, an earlier file is unchanged" in capsys.readouterr().err
    assert last.read_bytes() == before and not list(last.parent.glob("*.part"))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_names_a_batch_size(
    error: Exception, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "train_one_epoch", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(ValueError, match=r"out of memory with --batch-size 4 --imgsz 64: try --batch-size 2"):
        train.main(config(small_set, tmp_path))


def test_ctrl_c_on_the_command_line(small_set: Path, tmp_path: Path) -> None:
    words = ["--data", str(small_set), "--project", str(tmp_path)]
    words += ["--imgsz", "64", "--cfg", "yolov5n.yaml", "--workers", "1"]
    code = (
        "import sys, signal, os; sys.path.insert(0, '.'); import train\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which jobs in the background ignore
        "save = train.save\n"
        "def stop(*a):\n save(*a); os.kill(os.getpid(), signal.SIGINT)\n"
        "train.save = stop\n"
        "from utils.config import run_script; run_script(train.main, train.TrainConfig)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 130
    assert "1 epoch is saved; resume with: python train.py --resume" in done.stdout
    assert "Traceback" not in done.stderr


def test_random_states_round_trip() -> None:
    states = random_states()
    drawn = torch.rand(3), np.random.rand(3)
    restore_random_states(states)
    assert torch.equal(drawn[0], torch.rand(3)) and np.array_equal(drawn[1], np.random.rand(3))


def test_many_boxes_and_threads_give_the_same_bits_again() -> None:
    """Gradients that threads add to one cell in any order would differ in 9 of 10 runs."""
    threads = torch.get_num_threads()
    seed_everything(0, torch.device("cpu"))
    torch.set_num_threads(4)
    model = train.DetectionModel("yolov5n.yaml", nc=80)
    criterion = DetectionLoss(model.head.anchors, model.stride, 80, LossGains(0.05, 1.0, 0.5))
    xywhn = torch.rand(480, 4) * torch.tensor([1, 1, 0.5, 0.5])
    targets = Targets(torch.arange(480) % 16, torch.randint(80, (480,)), xywhn)
    maps = [torch.randn(16, 3, side, side, 85) for side in (40, 20, 10)]
    results = []
    for _ in range(6):
        leaves = [level.clone().requires_grad_() for level in maps]
        loss, _ = criterion(leaves, targets)
        loss.backward()
        results.append([loss, *(leaf.grad for leaf in leaves)])
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(other, results[0], strict=True))


def test_frozen_layers_stay_as_they_were(small_set: Path, tmp_path: Path) -> None:
    train.main(config(small_set, tmp_path, name="first", epochs=1))
    first = str(tmp_path / "first" / "weights" / "best.pt")
    train.main(config(small_set, tmp_path, name="run", epochs=1, weights=first, cfg="", freeze=(10,)))
    before, after = build_model(load_checkpoint(first)), load_checkpoint(tmp_path / "run/weights/last.pt").model
    for key, value in before.state_dict().items():
        if int(key.split(".")[1]) < 10:
            assert torch.equal(value, after[key]), key
    assert not torch.equal(before.state_dict()["model.24.m.0.weight"], after["model.24.m.0.weight"])
    with pytest.raises(ValueError, match=r"--freeze 99: no such layer, expected 0..24"):
        train.main(config(small_set, tmp_path, freeze=(0, 99)))
    with pytest.raises(ValueError, match=r"--freeze 25: nothing is left to train"):
        train.main(config(small_set, tmp_path, freeze=(25,)))
    with pytest.raises(ValueError, match=r"--rect --image-weights"):
        train.main(config(small_set, tmp_path, rect=True, image_weights=True))


def test_nosave_save_period_noval_and_time(small_set: Path, tmp_path: Path) -> None:
    train.main(config(small_set, tmp_path, name="a", nosave=True, noval=True, epochs=2))
    assert {p.name for p in (tmp_path / "a/weights").iterdir()} == {"best.pt", "last.pt"}
    rows = (tmp_path / "a/results.csv").read_text().splitlines()
    assert rows[1].split(",")[6] == "nan" and rows[2].split(",")[6] != "nan"
    train.main(config(small_set, tmp_path, name="b", save_period=2, epochs=2))
    assert {p.name for p in (tmp_path / "b/weights").iterdir()} == {"best.pt", "last.pt", "epoch1.pt"}
    train.main(config(small_set, tmp_path, name="c", time=1e-9))
    assert len((tmp_path / "c/results.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_cached_images_train_as_files_do(
    cache: str, small_set: Path, tmp_path: Path, whole: Callable[..., Path]
) -> None:
    train.main(config(small_set, tmp_path, name="run", cache=cache))
    assert differences(tmp_path / "run", whole()) == []


def test_evolve_searches_and_resumes(small_set: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    base = {"epochs": 1, "cfg": "yolov5n.yaml", "name": "search", "exist_ok": True}
    for trials in (1, 2):
        train.main(config(small_set, tmp_path, evolve=trials, **base))
    assert len((tmp_path / "search/evolve.csv").read_text().splitlines()) == 3
    Hyp.from_yaml(tmp_path / "search/hyp_evolved.yaml")
    with pytest.raises(ValueError, match="search"):
        train.main(config(small_set, tmp_path, evolve=3, **(base | {"imgsz": 128})))


def test_an_earlier_run_in_the_folder_is_not_taken_for_this_one(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    train.main(config(small_set, tmp_path, name="run", epochs=1))
    best = (tmp_path / "run/weights/best.pt").read_bytes()
    again = config(small_set, tmp_path, name="run", epochs=2, exist_ok=True, nosave=True, seed=1)
    with caplog.at_level(logging.INFO):
        interrupted(again, 0, monkeypatch, KeyboardInterrupt())
    assert "no epoch was saved yet" in caplog.text
    assert (tmp_path / "run/weights/best.pt").read_bytes() == best  # nothing is lost before there is something new
    train.main(again)
    assert load_checkpoint(tmp_path / "run/weights/best.pt").opt["seed"] == 1


def test_resume_names_the_flags_that_it_ignores(
    small_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train.main(config(small_set, tmp_path, name="run", epochs=1))
    train.main(train.TrainConfig(resume=str(tmp_path / "run"), imgsz=128, batch_size=2, device="cpu"))
    assert "ignored: --imgsz --batch-size" in caplog.text


def test_resume_keeps_the_workers_of_the_run(small_set: Path, tmp_path: Path) -> None:
    train.main(config(small_set, tmp_path, name="run", epochs=1, workers=0))
    train.main(train.TrainConfig(resume=str(tmp_path / "run"), epochs=2, device="cpu"))
    assert load_checkpoint(tmp_path / "run/weights/last.pt").opt["workers"] == 0


def test_a_newer_run_without_a_checkpoint_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, time in (("exp", 1), ("exp2", 2)):
        (tmp_path / name / "weights").mkdir(parents=True)
        (tmp_path / name / "opt.yaml").touch()
        os.utime(tmp_path / name / "opt.yaml", (time, time))
    with pytest.raises(FileNotFoundError, match="no run to resume"):
        newest_to_resume(tmp_path)
    last = tmp_path / "exp/weights/last.pt"
    last.touch()
    os.utime(last, (1.5, 1.5))
    assert newest_to_resume(tmp_path) == last
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path / 'exp2'}: a newer run, which ended before its first checkpoint; resuming {last}, "
        "the newest one that can be"
    ]


def test_batch_size_is_chosen_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = train.DetectionModel("yolov5n.yaml", nc=1)
    sizes = []
    for free in (1e9, 4e9):
        monkeypatch.setattr("utils.train.memory.free_memory", lambda _, free=free: int(free))
        before = {k: v.clone() for k, v in model.state_dict().items()}
        sizes.append(choose_batch_size(model, 320, Dist(torch.device("cpu"))))
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert sizes[0] >= 1 and 3 <= sizes[1] / sizes[0] <= 5
