"""Faults of processes: killed and stopped loader processes, signals at any time, two runs in one folder."""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import resource_sharer
from pathlib import Path
from typing import Any

import pytest
from runs import config, resume

import train
from tools.kill_and_resume import KillConfig, differences
from tools.kill_and_resume import main as kill_and_resume
from utils.config import run_script
from utils.data.dataset import DetectionDataset
from utils.data.loader import lost_worker
from utils.files import REPO, partial_path
from utils.interrupts import GRACE, interruptible
from utils.locks import FolderLock

FORK = multiprocessing.get_context("fork") if "fork" in multiprocessing.get_all_start_methods() else None
needs_fork = pytest.mark.skipif(FORK is None, reason="this system cannot fork, and starting Python anew takes seconds")
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
DEFAULT_SIGINT = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background ignore it


@pytest.fixture(scope="module")
def whole(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    root = tmp_path_factory.mktemp("whole")
    train.main(config(small_set, root))
    return root / "run"


def at_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], object]) -> None:
    original, steps = train.to_input, [0]

    def acting(*args: Any) -> Any:
        steps[0] += 1
        if steps[0] == step:
            action()
        return original(*args)

    monkeypatch.setattr(train, "to_input", acting)


def send(number: int) -> None:
    """Send a signal to the loader processes."""
    children = multiprocessing.active_children()
    assert children
    for child in children:
        assert child.pid
        os.kill(child.pid, number)


# ---- loader processes -----------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGKILL, "signal: Killed; if memory ran out, fewer --workers"), (signal.SIGSEGV, "")]
)
def test_a_loader_process_that_is_killed(
    number: int,
    words: str,
    small_set: Path,
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    with monkeypatch.context() as patch, pytest.raises(ChildProcessError, match=r"^data loader process \(pid") as got:
        at_step(patch, 5, lambda: send(number))
        train.main(config(small_set, tmp_path, workers=1))
    assert words in str(got.value) and "out of memory" not in str(got.value) and "\n" not in str(got.value)
    del got  # and with it the loaders, of whose processes torch would speak at the end of any other one
    gc.collect()
    assert "1 epoch is saved; resume with" in caplog.text
    resume(tmp_path / "run")
    assert differences(tmp_path / "run", whole) == []


@posix
@pytest.mark.parametrize(("step", "lines"), [(4, 1), (3, 0)], ids=["in an epoch", "between epochs"])
def test_a_loader_process_that_is_stopped_goes_on(
    step: int,
    lines: int,
    small_set: Path,
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("utils.data.loader.BATCH_TIMEOUT", 1.0)
    at_step(monkeypatch, step, lambda: send(signal.SIGSTOP))
    train.main(config(small_set, tmp_path, workers=1))
    assert caplog.text.count("no batch from the data loader processes for 1 s, waking them up") == lines
    assert differences(tmp_path / "run", whole) == []


@posix
def test_a_loader_process_that_is_stopped_while_it_hands_over_a_batch_goes_on(
    small_set: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """torch then waits for the process without a timeout."""
    original, calls = resource_sharer.DupFd.detach, []

    def detach(handed_over: resource_sharer.DupFd) -> int:
        calls.append(handed_over)
        if len(calls) == 5:
            send(signal.SIGSTOP)
        return original(handed_over)

    monkeypatch.setattr("utils.data.loader.BATCH_TIMEOUT", 1.0)
    monkeypatch.setattr(resource_sharer.DupFd, "detach", detach)
    train.main(config(small_set, tmp_path, workers=1))
    assert len(calls) > 5
    assert caplog.text.count("no batch from the data loader processes for 1 s, waking them up") == 1
    assert differences(tmp_path / "run", whole) == []


def test_a_loader_process_that_hangs_ends_the_run(
    small_set: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = DetectionDataset.__getitem__

    def hanging(self: DetectionDataset, key: tuple[int, int]) -> Any:
        if key[0] == 1:
            time.sleep(60)
        return original(self, key)

    began = time.monotonic()
    with monkeypatch.context() as patch, pytest.raises(ChildProcessError, match="processes give no batch") as got:
        patch.setattr("utils.data.loader.BATCH_TIMEOUT", 0.7)
        patch.setattr(DetectionDataset, "__getitem__", hanging)
        train.main(config(small_set, tmp_path, workers=1))
    assert time.monotonic() - began < 40 and "\n" not in str(got.value)
    resume(tmp_path / "run")
    assert differences(tmp_path / "run", whole) == []


def test_errors_of_loader_processes_are_told_apart() -> None:
    full = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out"
    assert "--shm-size" in str(lost_worker(RuntimeError(full)))
    gone = "DataLoader worker (pid(s) 7, 8) exited unexpectedly"
    assert str(lost_worker(RuntimeError(gone))) == "data loader process (pid(s) 7, 8) exited unexpectedly"
    assert lost_worker(RuntimeError("something else")) is None and lost_worker(ValueError("DataLoader ")) is None


# ---- signals --------------------------------------------------------------------------------------------------------


@posix
@pytest.mark.parametrize("script", ["train.py", "val.py", "detect.py", "export.py", "-m tools.cli train"])
def test_ctrl_c_during_the_imports(script: str, tmp_path: Path) -> None:
    for library in ("numpy", "torch", "cv2"):  # whichever is imported first
        (tmp_path / f"{library}.py").write_text(
            "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)"
        )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, *script.split()]
    done = subprocess.run(
        command, cwd=REPO, env=env, capture_output=True, text=True, timeout=60, preexec_fn=DEFAULT_SIGINT
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@posix
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["interrupt", "terminate"]
)
@pytest.mark.parametrize("place", ["step", "save", "validation"])
def test_two_signals(
    number: int,
    code: int,
    place: str,
    small_set: Path,
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """SIGTERM as Ctrl-C: what is saved is said, though a second signal comes while the first is handled."""
    caplog.set_level("INFO")
    name = {"step": "to_input", "save": "save_last", "validation": "evaluate"}[place]
    original, calls, said = getattr(train, name), [0], train.resume_line

    def struck(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == (5 if place == "step" else 2):
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    def again(*args: Any) -> str:
        os.kill(os.getpid(), number)
        return said(*args)

    before = [signal.signal(signal.SIGINT, signal.default_int_handler), signal.getsignal(signal.SIGTERM)]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(train, name, struck)
        patch.setattr(train, "resume_line", again)
        patch.setattr(sys, "argv", ["train.py"])
        run_script(lambda _: train.main(config(small_set, tmp_path)), train.TrainConfig)
    after = [signal.signal(signal.SIGINT, before[0]), signal.getsignal(signal.SIGTERM)]
    assert after == [signal.default_int_handler, before[1]]
    assert stop.value.code == code and capsys.readouterr().err == "interrupted\n"
    assert "1 epoch is saved; resume with: python train.py --resume" in caplog.text
    assert not list(tmp_path.rglob("*.part"))
    resume(tmp_path / "run")
    assert differences(tmp_path / "run", whole) == []


@posix
def test_a_late_second_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = list[int]()
    monkeypatch.setattr("utils.interrupts.quit_now", lambda number, _: ended.append(number))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with interruptible():
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            assert ended == []
            later = time.monotonic() + GRACE + 1
            monkeypatch.setattr("time.monotonic", lambda: later)
            os.kill(os.getpid(), signal.SIGINT)
            assert ended == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)


@posix
def test_signals_that_are_ignored_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# ---- two runs -------------------------------------------------------------------------------------------------------


def hold(folder: Path, ready: Any) -> None:
    """Lock a folder, start a process as loaders are, and wait."""
    lock = FolderLock(folder)
    assert FORK is not None
    FORK.Process(target=time.sleep, args=(20,)).start()
    ready.set()
    time.sleep(60)
    lock.release()


@needs_fork
def test_a_second_run_in_a_folder_is_refused_until_the_first_has_ended(
    small_set: Path, tmp_path: Path, whole: Path
) -> None:
    assert FORK is not None
    folder = tmp_path / "run"
    (folder / "weights").mkdir(parents=True)
    ready = FORK.Event()
    holder = FORK.Process(target=hold, args=(folder, ready))
    holder.start()
    assert ready.wait(30)
    settings = config(small_set, tmp_path, exist_ok=True)
    with pytest.raises(ValueError, match=rf"run: another run writes into it \(process {holder.pid} on .*--name"):
        train.main(settings)
    assert [path.name for path in folder.iterdir() if path.is_file()] == [".lock"]
    holder.kill()  # its own child lives on
    holder.join()
    left = partial_path(folder / "weights" / "last.pt")
    left.write_bytes(b"half")
    train.main(settings)
    assert differences(folder, whole) == [] and not left.exists() and not (folder / ".lock").exists()


def in_a_new_process(test: Callable[..., None]) -> Callable[..., None]:
    """Run a test by a pytest of its own: torch computes no gradients in a fork of a process whose engine has threads.

    Which tests start those threads, and whether they ran before in this process, depends on the order of the files.
    """

    @functools.wraps(test)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        if os.environ.get("IN_A_NEW_PROCESS") == test.__name__:
            return test(*args, **kwargs)
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{__file__}::{test.__name__}"]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        environment |= {"IN_A_NEW_PROCESS": test.__name__}
        ended = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout[-4000:]

    return wrapped


@needs_fork
@in_a_new_process
def test_two_runs_started_at_one_moment(small_set: Path, tmp_path: Path, whole: Path) -> None:
    """One of them trains, the other says why not."""
    assert FORK is not None
    barrier, outcomes = FORK.Barrier(2), FORK.Queue()
    original = train.set_up

    def one(number: int) -> None:
        train.set_up = lambda *args: (barrier.wait(60), original(*args))[1]
        try:
            train.main(config(small_set, tmp_path, exist_ok=True))
            outcomes.put("trained")
        except ValueError as error:
            outcomes.put(str(error))

    config(small_set, tmp_path)
    processes = [FORK.Process(target=one, args=(number,)) for number in range(2)]
    for process in processes:
        process.start()
    found = sorted(outcomes.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    assert found[1] == "trained" and ("another run writes into it" in found[0] or found[0] == "trained")
    assert differences(tmp_path / "run", whole) == []


def test_names_of_files_in_the_making_are_unique(tmp_path: Path) -> None:
    assert len({partial_path(tmp_path / "last.pt") for _ in range(100)}) == 100


@needs_fork
@in_a_new_process
def test_the_kill_matrix(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One cell of it; the whole is tools/kill_and_resume.py."""
    monkeypatch.setattr("tools.kill_and_resume.WORKERS", (0,))
    with pytest.raises(SystemExit) as ended:
        kill_and_resume(KillConfig(only="these four", epochs=2, images=8))
    assert ended.value.code == 0, capsys.readouterr().out
    assert "8 of 8 killed runs are equal bit for bit" in capsys.readouterr().out
