"""The three commands as a newcomer types them, in a fresh copy of the project and from another working folder."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from utils.files import REPO

LEFT_OUT = (".git", ".venv", "runs", "datasets", "node_modules", "site", "build", "__pycache__", ".*_cache")
SECONDS = 120  # in which Ctrl-C ends a command, on a busy machine
TINY = "--imgsz 64 --epochs 1 --batch-size 32 --fraction 0.2 --workers 0 --noplots"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project without anything that was made in it."""
    return Path(
        shutil.copytree(REPO, tmp_path_factory.mktemp("fresh") / "clone", ignore=shutil.ignore_patterns(*LEFT_OUT))
    )


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere")


def run(clone: Path, folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    script, *words = line.split()
    return subprocess.run([sys.executable, str(clone / script), *words], cwd=folder, capture_output=True, text=True)


def test_without_a_run_the_command_that_makes_one_is_named(clone: Path, elsewhere: Path) -> None:
    for script in ("val.py", "detect.py", "export.py"):
        ended = run(clone, elsewhere, script)
        assert ended.returncode == 2, script
        assert ended.stderr.count("\n") == 1 and "python train.py --cfg yolov5-mobilevit.yaml" in ended.stderr


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_train_draws_the_built_in_set_and_trains(clone: Path, elsewhere: Path) -> None:
    command = [sys.executable, "-u", str(clone / "train.py"), "--cfg", "yolov5-mobilevit.yaml"]
    seen = []
    # Where the tests run in the background of a shell, Ctrl-C is ignored: the command gets it back.
    interruptible = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "preexec_fn": interruptible}
    with subprocess.Popen(command, cwd=elsewhere, **pipes) as process:
        for line in process.stdout:
            seen.append(line)
            if line.startswith("training for 100 epochs at 640 px"):
                process.send_signal(signal.SIGINT)
                break
        try:
            process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    drawn = [line for line in seen if "drawing the built-in data set" in line]
    assert len(drawn) == 1 and "nothing is downloaded" in drawn[0]
    assert process.returncode == 130, seen
    assert len(list((clone / "datasets" / "shapes" / "images" / "train").iterdir())) == 480
    assert [path.name for path in elsewhere.iterdir()] == ["runs"]


def test_val_and_detect_take_the_newest_run(clone: Path, elsewhere: Path) -> None:
    trained = run(clone, elsewhere, f"train.py --cfg yolov5-mobilevit.yaml --name mine {TINY}")
    assert trained.returncode == 0, trained.stderr
    assert "drawing" not in trained.stdout  # once is enough
    best = Path("runs", "train", "mine", "weights", "best.pt")
    assert (elsewhere / best).is_file()
    measured = run(clone, elsewhere, "val.py --imgsz 64 --workers 0 --no-plots")
    assert measured.returncode == 0, measured.stderr
    assert f"using {best}" in measured.stdout and "120" in measured.stdout
    found = run(clone, elsewhere, "detect.py")
    assert found.returncode == 0, found.stderr
    assert f"using {best}" in found.stdout
    images = sorted(path.name for path in (elsewhere / "runs" / "detect" / "exp").glob("*.jpg"))
    assert images == ["shapes0.jpg", "shapes1.jpg"]
