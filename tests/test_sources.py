"""Sources: live streams that break and come back, broken files, videos that end badly, the screen, standard input."""

from __future__ import annotations

import io
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

import utils.predict.streams as streams
from utils.predict.frames import Broken, Frame
from utils.predict.sources import open_source, read_ahead
from utils.predict.streams import parse_screen, unique_names

SIZE = (48, 64)


def jpeg(value: int = 90, size: tuple[int, int] = SIZE) -> bytes:
    noise = np.random.default_rng(value).integers(0, 40, (*size, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", noise + np.uint8(value))[1].tobytes()


class Camera(ThreadingHTTPServer):
    """An MJPEG camera at http://127.0.0.1:port/cam; the gray of its frames counts connections in steps of 40."""

    daemon_threads = True

    def __init__(self, per_connection: int, connections: int):
        super().__init__(("127.0.0.1", 0), self.handler())
        self.per_connection, self.connections, self.served = per_connection, connections, 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/cam"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @staticmethod
    def handler() -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.server.serve(self)

            def log_message(self, *args: object) -> None:
                pass

        return Handler

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        """One connection: some frames, then the line is cut; later connections get a 503."""
        self.served += 1
        if self.served > self.connections:
            request.send_error(503)
            return
        request.send_response(200)
        request.send_header("Content-Type", "multipart/x-mixed-replace; boundary=next")
        request.end_headers()
        image = jpeg(40 * self.served)
        head = f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {len(image)}\r\n\r\n".encode()
        for _ in range(self.per_connection):
            request.wfile.write(head + image + b"\r\n")
            request.wfile.flush()
            time.sleep(0.02)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "FIRST_WAIT", 0.05)
    monkeypatch.setattr(streams, "LONGEST_WAIT", 0.2)


def brightness(frame: Frame) -> int:
    return int(round(float(frame.image.mean()) - 20) / 40 + 0.5)


def test_a_stream_that_is_cut_is_reconnected_and_closed_in_the_end(quick: None, caplog) -> None:
    camera = Camera(per_connection=12, connections=2)
    frames, end = [], None
    for item in open_source(camera.url, stream_timeout=1.5):
        if isinstance(item, Broken):
            end = item
        else:
            frames.append(item)
    assert {brightness(f) for f in frames} == {1, 2}  # frames of both connections
    assert frames[0].path.name == "127_0_0_1_cam" and frames[0].image.shape == (*SIZE, 3)
    numbers = [f.number for f in frames]
    assert numbers == sorted(set(numbers)) and numbers[-1] <= 24
    assert frames[0].video is not None and frames[0].video.live and frames[0].video.frames == 0
    assert "reconnecting in" in caplog.text
    assert end is not None and "stream closed" in end.reason
    assert not [t for t in threading.enumerate() if isinstance(t, streams.Stream)]
    camera.shutdown()


def test_several_streams_have_a_thread_each_and_stop_when_closed(quick: None, tmp_path: Path) -> None:
    cameras = [Camera(per_connection=500, connections=9) for _ in range(2)]
    listing = tmp_path / "my.streams"
    listing.write_text("# two cameras\n" + "\n".join(c.url for c in cameras) + "\n")
    source = open_source(str(listing))
    seen = [next(source).path.name for _ in range(20)]
    assert set(seen) == {"127_0_0_1_cam", "127_0_0_1_cam-2"}
    source.close()
    assert not [t for t in threading.enumerate() if isinstance(t, streams.Stream)]
    for camera in cameras:
        camera.shutdown()


def test_a_slow_reader_gets_the_newest_frame(quick: None) -> None:
    camera = Camera(per_connection=500, connections=9)
    source = open_source(camera.url)
    first = next(source)
    time.sleep(0.5)
    next(source)  # may have been taken before the pause
    assert next(source).number - first.number > 5
    source.close()
    camera.shutdown()


def test_stream_names_and_lists(tmp_path: Path) -> None:
    names = unique_names(["rtsp://user:secret@host/live", "rtsp://host/live", "0", "rtsp://host/live"])
    assert [n.name for n in names] == ["host_live", "host_live-2", "webcam0", "host_live-3"]
    with pytest.raises(FileNotFoundError, match=r"none\.streams"):
        open_source(str(tmp_path / "none.streams"))
    (tmp_path / "a.streams").write_text("# nothing\n")
    with pytest.raises(ValueError, match="no streams"):
        open_source(str(tmp_path / "a.streams"))
    (tmp_path / "a.streams").write_text("image.jpg\n")
    with pytest.raises(ValueError, match=r"'image\.jpg' is not a URL"):
        list(open_source(str(tmp_path / "a.streams")))
    with pytest.raises(ValueError, match="--stream-timeout"):
        open_source("rtsp://host/live", stream_timeout=-1)


def test_a_camera_that_is_not_there_is_reported(quick: None) -> None:
    items = list(open_source("97"))
    assert len(items) == 1 and isinstance(items[0], Broken) and "webcam97" in items[0].reason


# ---- files ----------------------------------------------------------------------------------------------------------


def broken_corpus(root: Path) -> tuple[set[str], set[str]]:
    """Writes good and bad files; the names of both."""
    root.mkdir()
    whole = jpeg(90, (300, 400))
    (root / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "nearly.jpg").write_bytes(whole[:-600])
    (root / "zero.png").write_bytes(b"")
    (root / "text.jpg").write_text("these are words")
    png = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8))[1].tobytes()
    (root / "half.png").write_bytes(png[: len(png) // 2])
    (root / "words.mp4").write_text("no video")
    bad = {p.name for p in root.iterdir()}
    Image.fromarray(np.full((*SIZE, 4), 60, np.uint8), "CMYK").save(root / "cmyk.jpg")
    cv2.imwrite(str(root / "deep.png"), np.full((*SIZE, 3), 40_000, np.uint16))
    cv2.imwrite(str(root / "gray.tif"), np.full(SIZE, 40_000, np.uint16))
    cv2.imwrite(str(root / "wide.png"), np.zeros((40, 30_000, 3), np.uint8))
    images = [Image.fromarray(np.full((*SIZE, 3), 50 * k, np.uint8)) for k in range(4)]
    images[0].save(root / "moving.gif", save_all=True, append_images=images[1:], duration=100)
    (root / "good.jpg").write_bytes(whole)
    return bad, {p.name for p in root.iterdir()} - bad


def test_broken_files_are_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    bad, good = broken_corpus(tmp_path / "in")
    items = list(open_source(str(tmp_path / "in")))
    broken = [item for item in items if isinstance(item, Broken)]
    frames = {f.path.name: f.image for f in items if isinstance(f, Frame)}
    assert {item.path.name for item in broken} == bad
    assert all(item.path.name in item.reason for item in broken)
    assert set(frames) == good and len(items) - len(broken) == len(good) + 3  # the GIF has four frames
    assert frames["wide.png"].shape == (40, 30_000, 3)
    assert all(image.dtype == np.uint8 and image.shape[2] == 3 for image in frames.values())
    assert abs(int(frames["deep.png"][0, 0, 0]) - 156) <= 1 and abs(int(frames["gray.tif"][0, 0, 0]) - 156) <= 1
    expected = np.asarray(Image.open(tmp_path / "in" / "cmyk.jpg").convert("RGB")).astype(int)
    assert np.abs(frames["cmyk.jpg"].astype(int) - expected).max() <= 6


def write_avi(path: Path, frames: int) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (320, 240))
    rng = np.random.default_rng(0)
    for _ in range(frames):
        writer.write(rng.integers(0, 255, (240, 320, 3), dtype=np.uint8))
    writer.release()
    return path


def test_a_video_that_ends_badly_gives_its_frames_and_is_reported(tmp_path: Path) -> None:
    path = write_avi(tmp_path / "cut.avi", 30)
    assert len(list(open_source(str(path)))) == 30
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * 0.6)])
    *frames, last = open_source(str(path))
    assert isinstance(last, Broken) and str(path) in last.reason and "frames" in last.reason
    assert 10 <= len(frames) < 25 and all(isinstance(f, Frame) for f in frames)


def test_a_video_is_decoded_ahead_but_not_held(tmp_path: Path) -> None:
    source = open_source(str(write_avi(tmp_path / "long.avi", 60)))
    next(source)
    time.sleep(0.2)
    assert sum(t.name == "decoder" for t in threading.enumerate()) == 1
    source.close()
    assert not [t for t in threading.enumerate() if t.name == "decoder"]


def test_read_ahead_keeps_order_depth_and_errors() -> None:
    made = []

    def numbers():
        for k in range(20):
            made.append(k)
            yield k
        raise ValueError("the end")

    got = read_ahead(numbers(), depth=3)
    assert next(got) == 0
    time.sleep(0.1)
    assert len(made) <= 6  # one read, three waiting, one or two under way
    with pytest.raises(ValueError, match="the end"):
        for expected, value in enumerate(got, start=1):
            assert value == expected
    assert made == list(range(20))


def test_standard_input_names_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(jpeg())
    lines = f"{tmp_path / 'a b.jpg'}\n\n{tmp_path / 'gone.jpg'}\n{tmp_path / 'c.jpg'}\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    items = list(open_source("-"))
    assert [item.path.name for item in items] == ["a b.jpg", "gone.jpg", "c.jpg"]
    assert [isinstance(item, Broken) for item in items] == [False, True, False]


def test_the_default_source_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(list(open_source("data/images"))) >= 2


# ---- the screen -----------------------------------------------------------------------------------------------------


class FakeScreens:
    """Two monitors side by side, 200 x 100 each; blue is x / 2, green is y. Stands for the package mss."""

    class ScreenShotError(Exception):
        pass

    def MSS(self) -> FakeScreens:
        return self

    monitors = [  # noqa: RUF012
        {"left": 0, "top": 0, "width": 400, "height": 100},
        {"left": 0, "top": 0, "width": 200, "height": 100},
        {"left": 200, "top": 0, "width": 200, "height": 100},
    ]

    def grab(self, region: dict[str, int]) -> np.ndarray:
        y, x = np.mgrid[: region["height"], : region["width"]]
        bgra = np.zeros((*x.shape, 4), np.uint8)
        bgra[..., 0], bgra[..., 1] = (x + region["left"]) // 2, y + region["top"]
        return bgra

    def __enter__(self) -> FakeScreens:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def test_screen_regions(monkeypatch: pytest.MonkeyPatch) -> None:
    screens = FakeScreens()
    module = types.SimpleNamespace(MSS=screens.MSS, ScreenShotError=screens.ScreenShotError)
    monkeypatch.setitem(sys.modules, "mss", module)
    frame = next(open_source("screen"))
    assert frame.image.shape == (100, 400, 3) and frame.video.live
    part = next(open_source("screen 2 10 20 30 40")).image
    assert part.shape == (40, 30, 3) and part[0, 0].tolist() == [0, 20, 105]
    assert next(open_source("screen 10 20 30 40")).image[0, 0].tolist() == [0, 20, 5]
    with pytest.raises(ValueError, match="monitor 3"):
        open_source("screen 3")
    assert parse_screen("screen 1") == (1, None)
    for words in ("screen 1 2", "screen a", "screen 0 0 0 5"):
        with pytest.raises(ValueError, match=words):
            parse_screen(words)
    monkeypatch.setitem(sys.modules, "mss", None)
    with pytest.raises(ImportError, match="pip install mss"):
        open_source("screen")
