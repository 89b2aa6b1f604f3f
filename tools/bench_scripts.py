"""Time of whole scripts by their command lines: --help, one image, a video, validation, an epoch.

The command lines are those that YOLOv5 has too, so a checkout of it is measured in the same way, without importing it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tools.bench_rows import Row, children_seconds, environment

SCRIPTS = ("train.py", "val.py", "detect.py", "export.py")


def rows(folder: str, weights: str, image: str, video: str, data: str, cfg: str, threads: int = 1) -> list[Row]:
    """Seconds of CPU time of the scripts in `folder`; parts without weights, video or data are left out."""
    top = Path(folder)
    found = [Row(f"{name} --help", "s, CPU", run(top, [name, "--help"])[0]) for name in SCRIPTS]
    if not weights:
        return found
    words = ["detect.py", "--weights", weights, "--device", "cpu"]
    cold, cold_wall = run(top, [*words, "--source", image])
    found.append(Row("detect.py, start to file, one image", "s, CPU", cold))
    if video:
        frames = frames_of(video)
        name = f"detect.py, {Path(video).stem}"
        cpu, wall = run(top, [*words, "--source", video], threads)
        found.append(Row(f"{name}, a frame", "ms, CPU", 1000 * max(cpu - cold, 0) / frames))
        found.append(Row(f"{name}, {threads} threads", "frames/s", frames / max(wall - cold_wall, 1e-3)))
    if data:
        words = ["val.py", "--weights", weights, "--data", data, "--device", "cpu", "--workers", "0"]
        found.append(Row("val.py, start to end", "s, CPU", run(top, words)[0]))
        words = ["train.py", "--data", data, "--cfg", cfg, "--weights", "", "--epochs", "1", "--imgsz", "320"]
        words += ["--batch-size", "16", "--workers", "0", "--device", "cpu", "--noval", "--noplots"]
        found.append(Row(f"train.py, {Path(cfg).stem}, an epoch at 320", "s, CPU", run(top, words)[0]))
    return found


def run(folder: Path, words: Sequence[str], threads: int = 1) -> tuple[float, float]:
    """Seconds of CPU time and of the clock of a script, which writes into a folder that is deleted.

    Raises:
        ValueError: it failed; its last line is the reason.
    """
    with tempfile.TemporaryDirectory() as out:
        project = [] if "--help" in words else ["--project", out]
        before, start = children_seconds(), time.monotonic()
        result = subprocess.run(
            [sys.executable, *words, *project], cwd=folder, env=environment(threads), capture_output=True, text=True
        )
        spent = children_seconds() - before, time.monotonic() - start
    if result.returncode:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()]
        raise ValueError(f"{folder}: {' '.join(words)}: {lines[-1] if lines else result.returncode!s:.300}")
    return spent


def frames_of(video: str) -> int:
    """The number of frames of a video file.

    Raises:
        ValueError: it has none.
    """
    import cv2

    capture = cv2.VideoCapture(video)
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    if frames < 1:
        raise ValueError(f"--video {video}: not a readable video")
    return frames
