"""Faults of disk, files and memory in a training run: one line, the last good state stays, the same bits afterwards."""

from __future__ import annotations

import errno
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import config, resume

import train
from models.weights.checkpoint import load_checkpoint, save_checkpoint
from tools.kill_and_resume import differences
from utils.files import write_atomic
from utils.images import imwrite
from utils.runs import Run
from utils.train.errors import user_error


@pytest.fixture(scope="module")
def whole(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    train.main(config(small_set, root))
    return root / "run"


def failing(monkeypatch: pytest.MonkeyPatch, number: int, wanted: Callable[[str], bool], at: int) -> list[str]:
    """Let the `at`th write of a file whose name is `wanted` fail with the error `number`; gives the names of all."""
    names, original = list[str](), Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "wb" and self.suffix == ".part" and wanted(self.name):
            names.append(self.name)
            if len(names) == at:
                raise OSError(number, "the words of the system", str(self))
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    return names


def test_every_write_of_a_run_may_fail(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, and a folder that became read-only, at each write in turn: resumed, the run ends as undisturbed."""
    with monkeypatch.context() as patch:
        writes = failing(patch, 0, lambda _: True, -1)
        train.main(config(small_set, tmp_path, name="whole", epochs=2))
    whole = tmp_path / "whole"
    stems = [name.split(".")[0] for name in writes]
    assert stems.count("results") == stems.count("last") == 2 and {"opt", "hyp", "best", "metrics"} < set(stems)
    for at in range(1, len(writes) + 1):
        run = tmp_path / f"run{at}"
        number = (errno.ENOSPC, errno.EROFS)[at % 2]
        with monkeypatch.context() as patch, pytest.raises(OSError, match="the words of the system; not saved") as got:
            failing(patch, number, lambda _: True, at)
            train.main(config(small_set, tmp_path, name=run.name, epochs=2))
        assert "\n" not in str(got.value) and not list(run.rglob("*.part"))
        if (run / "weights/last.pt").exists():
            assert load_checkpoint(run / "weights/last.pt").epoch is not None
            resume(run)
        else:
            train.main(config(small_set, tmp_path, name=run.name, epochs=2, exist_ok=True))
        assert differences(run, whole) == [], writes[at - 1]
        assert sorted(path.name for path in run.rglob("*.*")) == sorted(path.name for path in whole.rglob("*.*"))


@pytest.mark.parametrize("name", ["labels.jpg", "train_batch1.jpg", "report.html"])
def test_a_plot_that_cannot_be_written(
    name: str, small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(OSError, match=f"not saved.*{name}"):
        failing(patch, errno.ENOSPC, lambda file: file.startswith(name), 1)
        train.main(config(small_set, tmp_path, noplots=False, epochs=1))
    if name == "report.html":  # the last one
        resume(run)
        assert (run / name).exists() and (run / "metrics.json").exists()


def test_a_run_folder_that_is_deleted(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    run = tmp_path / "run"
    original = train.validate
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(train, "validate", lambda *args, **kw: (shutil.rmtree(run), original(*args, **kw))[1])
    with pytest.raises(FileNotFoundError, match=r"No such file.*not saved, its folder was deleted or moved"):
        train.main(config(small_set, tmp_path))
    assert f"{run}: nothing is left" in caplog.text


# ---- last.pt --------------------------------------------------------------------------------------------------------


def stopped(data: Path, project: Path, monkeypatch: pytest.MonkeyPatch, epochs: int = 2) -> Path:
    """The folder of a run that Ctrl-C ended after some epochs."""
    original = train.train_one_epoch

    def one(job: train.Job, epoch: int) -> Any:
        if epoch == epochs:
            raise KeyboardInterrupt
        return original(job, epoch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "train_one_epoch", one)
        train.main(config(data, project))
    return project / "run"


def test_a_damaged_last_checkpoint_is_replaced_by_the_one_before(
    small_set: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped(small_set, tmp_path, monkeypatch)
    last, before = run / "weights/last.pt", run / "weights/last.prev.pt"
    data, rng = last.read_bytes(), np.random.default_rng(0)
    assert (load_checkpoint(last).epoch, load_checkpoint(before).epoch) == (1, 0)
    damaged = [data[: len(data) // 2], b"", bytes(len(data))]
    for place in rng.integers(0, len(data), 2).tolist():
        damaged.append(data[:place] + bytes([data[place] ^ 255]) + data[place + 1 :])
    for i, content in enumerate([None, *damaged]):
        other = Path(shutil.copytree(run, tmp_path / f"copy{i}"))
        target = other / "weights/last.pt"
        target.unlink() if content is None else target.write_bytes(content)
        caplog.clear()
        resume(other)
        lines = [record.getMessage() for record in caplog.records if "one epoch older" in record.getMessage()]
        assert len(lines) == 1 and f"using {other}/weights/last.prev.pt" in lines[0] and "\n" not in lines[0]
        assert differences(other, whole) == [] and not (other / "weights/last.prev.pt").exists()


def test_both_damaged_is_an_error_about_the_last(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(small_set, tmp_path, monkeypatch)
    for name in ("last.pt", "last.prev.pt"):
        (run / "weights" / name).write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"last\.pt: not a usable checkpoint"):
        resume(run)
    assert (run / "weights/last.pt").read_bytes() == b"PK"


def test_the_checkpoint_before_is_of_this_run(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(small_set, tmp_path, monkeypatch)
    original = train.train_one_epoch
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "train_one_epoch", lambda job, epoch: original(job, epoch) if epoch < 1 else interrupt())
        train.main(config(small_set, tmp_path, exist_ok=True, seed=1))
    assert [path.name for path in (tmp_path / "run/weights").glob("last*")] == ["last.pt"]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_file_that_reads_otherwise_than_written_does_not_replace_a_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, previous = tmp_path / "last.pt", tmp_path / "last.prev.pt"
    for content in (b"1", b"2"):
        write_atomic(file, content, previous=previous)
    assert (file.read_bytes(), previous.read_bytes()) == (b"2", b"1")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="read back otherwise than it was written"):
        patch.setattr(Path, "read_bytes", lambda self: b"")
        write_atomic(file, b"3", previous=previous)
    assert (file.read_bytes(), previous.read_bytes()) == (b"2", b"1") and len([*tmp_path.iterdir()]) == 2
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no hard links")))
    write_atomic(file, b"3", previous=previous)
    assert (file.read_bytes(), previous.read_bytes()) == (b"3", b"2")


def test_results_that_are_damaged_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(tmp_path, "run")
    for epoch in range(3):
        run.log({"epoch": epoch, "loss": 0.5})
    file = run.dir / "results.csv"
    file.write_bytes(file.read_bytes()[:-3] + b"\n\xff\0,x\n")
    run.log({"epoch": 3, "loss": 0.25})
    assert file.read_text().splitlines() == ["epoch,loss", "0,0.5", "1,0.5", "2,0", "3,0.25"]
    assert "1 damaged line left out" in caplog.text


# ---- NaN, memory, the clock -----------------------------------------------------------------------------------------


def poisoned(path: Path, key: str) -> None:
    """Put NaN into the checkpoint `path`."""
    saved = load_checkpoint(path)
    if key == "optimizer":
        assert saved.training is not None
        next(iter(saved.training["optimizer"]["state"][0].values())).fill_(torch.nan)
    else:
        getattr(saved, key)["model.0.conv.weight"][0] = torch.nan
    save_checkpoint(path, saved)


def test_weights_with_nan_are_not_started_from(small_set: Path, tmp_path: Path, whole: Path) -> None:
    weights = Path(shutil.copy(whole / "weights/best.pt", tmp_path / "w.pt"))
    poisoned(weights, "model")
    with pytest.raises(ValueError, match=r"w\.pt: NaN or infinity in model\.0\.conv\.weight, expected finite"):
        train.main(config(small_set, tmp_path, weights=str(weights)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["model", "ema", "optimizer"])
def test_a_state_with_nan_is_not_resumed(
    key: str, small_set: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped(small_set, tmp_path, monkeypatch)
    poisoned(run / "weights/last.pt", key)
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    (alone / "weights/last.prev.pt").unlink()
    with pytest.raises(ValueError, match=r"last\.pt: NaN or infinity in "):
        resume(alone)
    resume(run)
    assert differences(run, whole) == []


@pytest.mark.parametrize("which", ["model", "average"])
def test_weights_that_become_nan_are_not_saved(
    which: str, small_set: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = train.end_epoch

    def poison(job: train.Job, *args: Any) -> Any:
        done = original(job, *args)
        if job.state.epoch == 2:
            model = job.model if which == "model" else job.state.ema.module
            next(iter(model.parameters())).data.fill_(torch.nan)
        return done

    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"^not saved.*NaN or infinity in model"):
        patch.setattr(train, "end_epoch", poison)
        train.main(config(small_set, tmp_path))
    assert load_checkpoint(tmp_path / "run/weights/last.pt").epoch == 0
    resume(tmp_path / "run")
    assert differences(tmp_path / "run", whole) == []


def test_a_loss_that_becomes_nan_ends_the_run_after_the_last_good_epoch(
    small_set: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, steps = train.to_input, [0]

    def poison(images: torch.Tensor, device: torch.device) -> torch.Tensor:
        steps[0] += 1
        return original(images, device) * (torch.nan if steps[0] == 5 else 1)

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError, match=r"loss is nan in epoch 2; images"):
        patch.setattr(train, "to_input", poison)
        train.main(config(small_set, tmp_path))
    resume(tmp_path / "run")
    assert differences(tmp_path / "run", whole) == []


@pytest.mark.parametrize(
    ("error", "batch", "advice"),
    [
        (MemoryError(), 8, "try --batch-size 4"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 3, "try --batch-size 1"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 1, "a smaller --imgsz"),
        (
            RuntimeError("Caught _ArrayMemoryError in worker\nUnable to allocate 3. GiB for an array"),
            2,
            "--batch-size 1",
        ),
    ],
)
def test_only_real_lack_of_memory_is_called_that(error: Exception, batch: int, advice: str) -> None:
    text = str(user_error(error, batch, 640))
    assert text.startswith(f"out of memory with --batch-size {batch} --imgsz 640: try ") and text.endswith(advice)
    killed = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    assert "out of memory" not in str(user_error(killed, 4, 640))


def test_a_batch_that_does_not_fit(small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real error of the allocator, in the middle of an epoch."""
    original = train.to_input
    monkeypatch.setattr(train, "to_input", lambda *args: original(*args).expand(10**9, 4, 3, 64, 64).contiguous())
    with pytest.raises(ValueError, match=r"^out of memory with --batch-size 4 --imgsz 64: try --batch-size 2$"):
        train.main(config(small_set, tmp_path))


def test_a_clock_that_is_set_back_changes_nothing(
    small_set: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.time()]

    def backwards() -> float:
        now[0] -= 1000.0
        return now[0]

    monkeypatch.setattr("time.time", backwards)
    train.main(config(small_set, tmp_path, time=1.0))
    train.main(config(small_set, tmp_path, name="plain"))
    assert differences(tmp_path / "plain", whole) == []
    assert load_checkpoint(tmp_path / "run/weights/last.pt").epoch == 2


# ---- the data -------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_set(small_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_set.parent, tmp_path / "set")) / "data.yaml"


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    original, steps = train.to_input, [0]

    def acting(*args: Any) -> torch.Tensor:
        steps[0] += 1
        if steps[0] == step:
            action()
        return original(*args)

    monkeypatch.setattr(train, "to_input", acting)


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_are_deleted(
    workers: int, own_set: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends in one line, and is resumed when they are back."""
    images, away = own_set.parent / "images", own_set.parent / "away"
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=r"can be read any more|cannot be read") as got:
        at_step(patch, 5, lambda: images.rename(away))
        train.main(config(own_set, tmp_path, workers=workers))
    assert "\n" not in str(got.value) and len(str(got.value)) < 400
    assert load_checkpoint(tmp_path / "run/weights/last.pt").epoch == 0
    with pytest.raises(FileNotFoundError, match=r"its data .* are gone"):
        resume(tmp_path / "run")
    away.rename(images)
    resume(tmp_path / "run")
    assert differences(tmp_path / "run", whole) == []


def test_images_that_are_replaced_are_named_once(
    own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def replace_all() -> None:
        for image in own_set.parent.rglob("*.png"):
            imwrite(image, np.zeros((64, 64, 3), np.uint8))

    at_step(monkeypatch, 4, replace_all)
    with caplog.at_level(logging.WARNING):
        train.main(config(own_set, tmp_path))
    lines = [record.getMessage() for record in caplog.records if "was replaced" in record.getMessage()]
    assert len(lines) == 2 and len(set(lines)) == 2  # of the train and the val split


def test_labels_that_changed_are_read_again_when_resumed(
    own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = stopped(own_set, tmp_path, monkeypatch)
    label = next(own_set.parent.rglob("*.txt"))
    label.write_text("0 0.5 0.5 0.25 0.25\n" * 2)
    resume(run)
    assert "the images or labels have changed since this run was started" in caplog.text
    assert replace(load_checkpoint(run / "weights/last.pt")).epoch == 2
