"""Frames side by side and writing in a thread: the same results in the same order, and the same ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tiny import write_tiny

import detect
from utils.predict.frames import Broken, Frame
from utils.predict.outputs import Output
from utils.predict.pipeline import Later, detected, shared_threads
from utils.runs import LIST_OF_FILES

WAIT = 20.0  # seconds until a test that waits for another thread gives up


def frames(count: int, broken: tuple[int, ...] = (), error: int = -1) -> Iterator[Frame | Broken]:
    """Frames whose only pixel is their number."""
    for k in range(count):
        if k == error:
            raise OSError("the source ends here")
        path = Path(f"{k}.jpg")
        yield Broken(path, "no image") if k in broken else Frame(np.full((1, 1, 3), k, np.uint8), path)


def number_of(images: list[np.ndarray]) -> list[Any]:
    """A prediction by a stand-in: the number of the frame, the later ones first to be done."""
    number = int(images[0][0, 0, 0])
    time.sleep(0.004 * (3 - number % 4))
    return [number]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_are_in_the_order_of_the_source(workers: int) -> None:
    source = frames(13, broken=(0, 5, 6))
    found = list(detected(source, number_of, workers, 1))
    assert [item.path.stem if isinstance(item, Broken) else item[1] for item in found] == [
        str(k) if k in (0, 5, 6) else k for k in range(13)
    ]
    assert all(isinstance(item, Broken) or item[0].image[0, 0, 0] == item[1] for item in found)
    assert source.gi_frame is None  # closed


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_of_the_source_comes_after_the_frames_before_it(workers: int) -> None:
    got = []
    with pytest.raises(OSError, match="the source ends here"):
        for item in detected(frames(9, error=5), number_of, workers, 1):
            got.append(item[1])
    assert got == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_the_network_comes_in_its_turn(workers: int) -> None:
    def fails(images: list[np.ndarray]) -> list[Any]:
        if images[0][0, 0, 0] == 3:
            raise MemoryError("too large")
        return number_of(images)

    source, got = frames(9), []
    with pytest.raises(MemoryError):
        for item in detected(source, fails, workers, 1):
            got.append(item[1])
    assert got == [0, 1, 2] and source.gi_frame is None


def test_two_frames_are_in_work_at_once_and_few_are_held() -> None:
    together, read = threading.Barrier(2), []

    def meets(images: list[np.ndarray]) -> list[Any]:
        together.wait(WAIT)  # raises unless another frame is in work too
        return [int(images[0][0, 0, 0])]

    def counted() -> Iterator[Frame]:
        for frame in frames(12):
            read.append(frame)
            yield frame

    for done, item in enumerate(detected(counted(), meets, 2, 1)):
        assert item[1] == done and len(read) <= done + 4


def test_the_number_of_threads_is_as_before_at_the_end() -> None:
    before, seen = torch.get_num_threads(), []
    list(detected(frames(4), lambda images: seen.append(torch.get_num_threads()) or [0], 2, 1))
    assert seen == [1] * 4 and torch.get_num_threads() == before
    assert [shared_threads(n) for n in (1, 2, 3, 4, 8, 17)] == [(1, 1), (2, 1), (3, 1), (4, 1), (4, 2), (4, 4)]


# ---- writing ---------------------------------------------------------------------------------------------------------


def test_calls_are_made_in_order_in_another_thread() -> None:
    done, go = [], threading.Event()
    with Later(4) as later:
        later(go.wait, WAIT)  # would end the test here if it were made at once
        for k in range(3):
            later(done.append, k)
        assert done == []
        go.set()
        later(lambda: done.append(threading.current_thread().name))
    assert done[:3] == [0, 1, 2] and done[3].startswith("writer")
    with Later(0) as later:
        later(done.append, 9)
        assert done[-1] == 9


def fail() -> None:
    raise OSError("the disk is full")


def test_an_error_of_a_call_ends_the_run_and_what_follows_is_left_out() -> None:
    done: list[int] = []
    with pytest.raises(OSError, match="full"), Later(2) as later:
        later(done.append, 0)
        later(fail)
        for k in range(1, 99):
            time.sleep(0.001)
            later(done.append, k)
    assert done == [0]
    with pytest.raises(OSError, match="full"), Later(2) as later:  # at the end
        later(fail)


@pytest.mark.parametrize(("error", "expected"), [(ValueError, [0, 1]), (KeyboardInterrupt, [])])
def test_what_waits_is_done_after_an_error_of_the_source_and_left_out_after_ctrl_c(error: Any, expected: list) -> None:
    done, go = [], threading.Event()
    with pytest.raises(error), Later(4) as later:
        later(go.wait, 0.2)
        later(done.append, 0)
        later(done.append, 1)
        raise error
    assert done == expected and not [thread for thread in threading.enumerate() if thread.name.startswith("writer")]


# ---- detect.py -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.pt, images/ and clip.mp4 of 24 frames."""
    place = tmp_path_factory.mktemp("pipeline")
    write_tiny(place)
    writer = cv2.VideoWriter(str(place / "clip.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 20, (128, 96))
    rng = np.random.default_rng(1)
    for _ in range(24):
        writer.write(rng.integers(0, 256, (6, 8, 3), np.uint8).repeat(16, 0).repeat(16, 1))
    writer.release()
    return place


def config(folder: Path, project: Path, **changes: Any) -> detect.DetectConfig:
    base: dict[str, Any] = {"weights": str(folder / "tiny.pt"), "source": str(folder / "clip.mp4"), "imgsz": (128,)}
    base |= {"project": str(project), "device": "cpu", "conf_thres": 0.6, "max_det": 12}
    base |= {"save_txt": "yolo", "save_csv": True}
    return detect.DetectConfig(**(base | changes))


def content(run: Path) -> dict[str, bytes]:
    """The bytes of each file of a run, without the hidden list of them, which has times."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != LIST_OF_FILES]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize("source", ["clip.mp4", "images"])
@pytest.mark.parametrize("track", [False, True])
def test_files_are_equal_to_the_bit_with_one_worker_and_with_two(
    source: str, track: bool, folder: Path, tmp_path: Path
) -> None:
    flags = {"source": str(folder / source), "track": track}
    assert detect.division(config(folder, tmp_path, threads=2, **flags)) == (2, 1)
    assert detect.division(config(folder, tmp_path, threads=1, **flags)) == (1, 1)
    one, two = (content(detect.main(config(folder, tmp_path, threads=n, **flags))) for n in (1, 2))
    assert one == two and len(one) > 3


def test_live_sources_and_runtimes_with_one_input_have_one_worker(folder: Path, tmp_path: Path) -> None:
    for changes in (
        {"source": "0"},
        {"source": "-"},
        {"source": str(folder / "images" / "0.png")},
        {"weights": "x.tflite"},
        {"weights": ("a.pt", "b.pte")},
        {"compile": True},
        {"visualize": True},
    ):
        assert detect.division(config(folder, tmp_path, threads=2, **changes)) == (1, 2)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_full_disk_ends_the_run_with_the_frames_before(
    threads: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add = Output.add

    def full(self: Output, frame: Frame, found: Any) -> Any:
        if frame.number == 7:
            raise OSError("No space left on device")
        return add(self, frame, found)

    monkeypatch.setattr(Output, "add", full)
    with pytest.raises(OSError, match="No space left"):
        detect.main(config(folder, tmp_path, threads=threads))
    assert frames_in(tmp_path / "exp" / "clip.mp4") == 6 and len(list((tmp_path / "exp/labels").glob("clip_*"))) == 6


def frames_in(video: Path) -> int:
    capture = cv2.VideoCapture(str(video))
    count = 0
    while capture.read()[0]:
        count += 1
    capture.release()
    return count


def test_ctrl_c_leaves_whole_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = detect.open_source

    def interrupted(*arguments: Any) -> Iterator[Frame | Broken]:
        for frame in source(*arguments):
            if isinstance(frame, Frame) and frame.number == 15:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(detect, "open_source", interrupted)
    with pytest.raises(KeyboardInterrupt):
        detect.main(config(folder, tmp_path, threads=2))
    run = tmp_path / "exp"
    count = frames_in(run / "clip.mp4")
    assert 1 <= count < 15 and not list(run.glob(".*.mp4"))
    assert sorted(path.name for path in (run / "labels").glob("clip_*")) == sorted(
        f"clip_{k}.txt" for k in range(1, count + 1)
    )
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("writer", "detect"))]


def test_the_window_is_shown_by_the_main_thread(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = SimpleNamespace(threads=[])

    def show(path: Path, image: np.ndarray) -> bool:
        seen.threads.append(threading.current_thread())
        return len(seen.threads) == 3

    monkeypatch.setattr(detect, "open_window", lambda: show)
    detect.main(config(folder, tmp_path, threads=2, view_img=True))
    assert seen.threads == [threading.main_thread()] * 3
