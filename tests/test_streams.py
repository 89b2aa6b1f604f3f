"""Sources that stall, drip, lie or never end: bounded in time, memory and redirects, one clean line, one Ctrl-C."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from fuzz_http import FAULTS, Server, check, fuzz_http, head, jpeg, part, read

import utils.predict.download as download_module
import utils.predict.frames as frames_module
import utils.predict.streams as streams
from utils.predict.download import download
from utils.predict.frames import Broken, Frame
from utils.predict.sources import list_files, open_source
from utils.predict.streams import stream_name, unique_names
from utils.reading import LIMITS

REPO = Path(__file__).resolve().parents[1]


# ---- faults of servers ----------------------------------------------------------------------------------------------

LINES = {  # fault -> what is said of an image
    "no answer": "not complete after 0.5 s",
    "header in drips": "not complete after 0.5 s",
    "header that stalls": "not complete after 0.5 s",
    "body in drips": "not complete after 0.5 s",
    "body that stalls": "not complete after 0.5 s",
    "continue without end": "not complete after 0.5 s",
    "header without end": "more than 100 headers",
    "body that is short": "the answer ends after 575 of 5000 bytes",
    "body that is huge": "larger than 200 MB",
    "chunks that are damaged": "damaged or ends early",
    "garbage": "not an answer of a web server",
    "escapes in the status": "HTTP error 404: [31m ]0;title 5nlong",
    "redirect in a circle": "more than 5 redirects",
    "redirects without end": "more than 5 redirects",
    "redirect to a file": "redirected, but not to a http or https URL",
    "redirect to ftp": "redirected to ftp://, expected http or https",
    "redirect with a body without end": "more than 5 redirects",
    "image that is a bomb": "not a readable image",
    "a web page": "not a readable image",
}


@pytest.mark.parametrize("name", LINES)
def test_an_image_at_a_bad_server_is_one_line_in_time(name: str) -> None:
    with Server(FAULTS[name]) as server:
        items, seconds = read(f"http://{server.address}/image.jpg", 0.5)
    line = check(items, seconds, 0.5)
    assert line.startswith("127_0_0_1_image.jpg: ") and LINES[name] in line
    assert seconds < 1.5


def test_an_answer_without_end_ends_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download_module, "MAX_BYTES", 1_000_000)
    for name in ("body without end", "zeros without end"):
        with Server(FAULTS[name]) as server:
            items, seconds = read(f"http://{server.address}/image.jpg", 5)
        assert "larger than 1 MB" in check(items, seconds, 0)


@pytest.mark.parametrize(
    "name", ["no answer", "header in drips", "frames in drips", "playlist without end", "frame that comes late"]
)
@pytest.mark.parametrize("kind", ["camera", "clip.mp4"])
def test_a_stream_obeys_its_timeout(name: str, kind: str) -> None:
    with Server(FAULTS[name]) as server:
        items, seconds = read(f"http://{server.address}/{kind}", 0.8)
    check(items, seconds, 0.8)
    assert seconds < 2.5 and (isinstance(items[-1], Broken) or name == "frame that comes late")


class EmptyCapture:
    """Grabs data, of which no frame can be made, as OpenCV does when a frame comes late."""

    def grab(self) -> bool:
        time.sleep(0.02)
        return True

    def retrieve(self) -> tuple[bool, None]:
        return False, None

    def get(self, _: int) -> float:
        return 0.0

    def release(self) -> None:
        pass


@pytest.mark.parametrize("vid_stride", [1, 3])
def test_data_without_frames_are_no_frames(vid_stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams.Stream, "open", lambda _: EmptyCapture())
    monkeypatch.setattr(streams, "FIRST_WAIT", 0.05)
    frames, start = open_source("rtsp://host/live", vid_stride, stream_timeout=0.5), time.monotonic()
    stop = threading.Timer(3, lambda: [t.fail("late") for t in threading.enumerate() if isinstance(t, streams.Stream)])
    stop.start()
    items = list(frames)
    stop.cancel()
    assert len(items) == 1 and isinstance(items[0], Broken) and "no frame for" in items[0].reason
    assert time.monotonic() - start < 2.5


def test_a_video_at_a_url_that_stalls_is_named() -> None:
    for name, frames in (("frames that stall", 3), ("no answer", 0)):
        with Server(FAULTS[name]) as server:
            items, _ = read(f"http://{server.address}/clip.mp4", 0.8, most=9)
        assert len(items) == frames + 1 and isinstance(items[-1], Broken)
        assert "no frame for 0." in items[-1].reason and f"s, closed after {frames} frames" in items[-1].reason


def test_a_thread_inside_the_decoder_does_not_hold_the_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = streams.time_limits(3, 3)  # longer than asked for
    monkeypatch.setattr(streams, "time_limits", lambda *_: limits)
    with Server(FAULTS["no answer"]) as server:
        items, seconds = read(f"http://{server.address}/camera", 0.5)
    assert "no frame for 1 s, stream closed" in check(items, seconds, 0.5) and seconds < 2.8


def test_a_redirect_is_followed_and_a_password_stays_with_its_server() -> None:
    with Server(lambda connection, _: connection.sendall(head() + jpeg())) as other:
        moved = head("302 Found", Location=f"http://{other.address}/b.jpg", Content_Length=0)
        with Server(lambda connection, _: connection.sendall(moved)) as first:
            assert download(f"http://me:secret@{first.address}/a.jpg", 5) == jpeg()
    assert "Authorization: Basic" in first.requests[0]
    assert "Authorization" not in other.requests[0] and "GET /b.jpg" in other.requests[0]


def test_frames_leave_no_descriptors_and_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """150 frames over 15 connections; `python tests/fuzz_http.py 10000` measures as many frames."""
    monkeypatch.setattr(streams, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(streams, "LONGEST_WAIT", 0.05)
    multipart = head(Content_Type="multipart/x-mixed-replace; boundary=next")

    def camera(connection: socket.socket, address: str) -> None:
        connection.sendall(multipart)
        for k in range(10):
            connection.sendall(part(jpeg(k)))
            time.sleep(0.003)

    with Server(camera) as server:
        source, numbers, opened = open_source(f"http://{server.address}/camera", stream_timeout=20), [], []
        for frame in source:
            assert isinstance(frame, Frame)
            numbers.append(frame.number)
            opened.append(len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)
            if frame.number > 150:
                break
        source.close()
    assert numbers == sorted(set(numbers)) and max(opened[len(opened) // 2 :]) <= max(opened[:20]) + 8
    assert not [t for t in threading.enumerate() if isinstance(t, streams.Stream)]


def test_one_interrupt_ends_a_process() -> None:
    """Also while a thread is inside the decoder, which would abort the process when it returns."""
    code = (
        "import signal, sys\nfrom dataclasses import dataclass\nfrom contextlib import closing\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which jobs in the background ignore
        "from utils.config import Config, run_script\nfrom utils.predict.sources import open_source\n"
        "from utils.predict.threads import ending_at_once\n"
        "@dataclass(frozen=True)\nclass C(Config):\n    'Nothing.'\n"
        "def main(cfg):\n    print('ready', flush=True)\n"
        "    with closing(open_source(address)) as frames:\n        list(frames)\n"
        "address = sys.argv.pop()\nwith ending_at_once():\n    run_script(main, C)\n"
    )
    env = os.environ | {"PYTHONPATH": str(REPO), "OPENCV_LOG_LEVEL": "OFF"}
    with Server(FAULTS["frame without end"]) as server:
        command = [sys.executable, "-c", code, f"http://{server.address}/camera"]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.7)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors.strip().splitlines()[-1] == "interrupted"
    assert time.monotonic() - start < 5


def test_random_answers(tmp_path: Path) -> None:
    chance, end = random.Random(7), time.monotonic() + 8
    for _ in range(40):
        fuzz_http(chance, tmp_path)
        if time.monotonic() > end:
            break


# ---- names of streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["tcp://host/live", "file:///etc/passwd", "ftp://host/a.jpg", "udp://host", "concat://a", "http://host/a\nb",
     "http://host/\x1b[31m", "http://[::1", "http://host/" + "x" * 5000, "gopher://h/a.mp4"],
)  # fmt: skip
def test_other_urls_are_refused_in_one_line(url: str) -> None:
    with pytest.raises(ValueError) as error:
        list(open_source(url))
    assert str(error.value).isprintable() and len(str(error.value)) < 400


def test_known_schemes_and_the_number_of_streams() -> None:
    for scheme in ("http", "https", "rtsp", "rtsps", "rtmp", "RTSP"):
        assert stream_name(f"{scheme}://user:secret@host/live") == Path("host_live")
    with pytest.raises(ValueError, match="expected at most 256"):
        streams.read_streams([f"rtsp://host/{k}" for k in range(257)], 1, 1)
    assert len(set(unique_names(["rtsp://host/a"] * 20))) == 20


# ---- files that are none --------------------------------------------------------------------------------------------


@pytest.fixture
def special(tmp_path: Path) -> Path:
    """A folder with a pipe, a socket, a loop of links, a link to a device, a folder and an image, all called *.jpg."""
    folder = tmp_path / "in"
    folder.mkdir()
    os.mkfifo(folder / "pipe.jpg")
    os.mkfifo(folder / "pipe.mp4")
    here = os.getcwd()
    os.chdir(folder)  # the name of a socket is short
    listener = socket.socket(socket.AF_UNIX)
    listener.bind("socket.jpg")
    listener.close()
    os.chdir(here)
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "folder.jpg").mkdir()
    (folder / "good.jpg").write_bytes(jpeg())
    return folder


@pytest.mark.skipif(os.name != "posix", reason="pipes are files on POSIX")
def test_pipes_sockets_and_devices_are_not_opened(special: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    items = list(open_source(str(special)))
    assert [item.path.name for item in items if isinstance(item, Frame)] == ["good.jpg"]
    reasons = {item.path.name: item.reason for item in items if isinstance(item, Broken)}
    assert {name: reason.rpartition(": ")[2] for name, reason in reasons.items() if name != "loop.jpg"} == {
        "pipe.jpg": "is a named pipe, expected a file",
        "pipe.mp4": "is a named pipe, expected a file",
        "socket.jpg": "is a socket, expected a file",
        "zero.jpg": "is a device, expected a file",
    }
    assert "loop.jpg" in reasons and time.monotonic() - start < 2
    for name, kind in (("pipe.jpg", "named pipe"), ("zero.jpg", "device")):
        with pytest.raises(ValueError, match=f"is a {kind}, expected a file"):
            list_files(str(special / name))
    listing = tmp_path / "list.txt"
    listing.write_text(f"{special / 'pipe.jpg'}\n")
    with pytest.raises(FileNotFoundError, match=r"line 1: .* not found"):
        list_files(str(listing))


def test_lists_with_absurd_names_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = tmp_path / "list.txt"
    for name in ("x" * 100_000 + ".jpg", "a\x00b.jpg", "\x1b[31m.jpg", "a\u2028b.jpg"):
        listing.write_text(f"\n{name}\n", encoding="utf-8")
        with pytest.raises((ValueError, FileNotFoundError)) as error:
            list_files(str(listing))
        message = str(error.value)
        assert message.isprintable() and len(message) < 400 + len(str(tmp_path)) and "line 2" in message
    (tmp_path / "a.jpg").touch()
    listing.write_text("a.jpg\r\n", encoding="utf-16")
    assert list_files(str(listing)) == [tmp_path / "a.jpg"]
    monkeypatch.setitem(LIMITS, "list of images", 10)
    with pytest.raises(ValueError, match="more than the 0 MiB of any list of images"):
        list_files(str(listing))


def test_a_video_of_absurd_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 25, (64, 48))
    for k in range(3):
        writer.write(np.full((48, 64, 3), 50 * k, np.uint8))
    writer.release()
    assert len(list(open_source(str(path)))) == 3
    monkeypatch.setattr(frames_module, "MAX_FRAME_PIXELS", 64 * 48 - 1)
    items = list(open_source(str(path)))
    assert (
        len(items) == 1 and isinstance(items[0], Broken) and "frames of 64x48 pixels are too large" in items[0].reason
    )


@pytest.mark.skipif(os.name != "posix", reason="pipes are files on POSIX")
def test_a_playlist_called_a_video_opens_no_other_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.ts")
    texts = {
        "concat": "ffconcat version 1.0\nfile pipe.ts\n",
        "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npipe.ts\n",
        "rtp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
        "dash": '<?xml version="1.0"?><MPD type="dynamic"></MPD>',
        "controls": "ffconcat version 1.0\n#\x01\x02\nfile pipe.ts\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.mp4").write_text(text)
    start = time.monotonic()
    for name in texts:
        items = list(open_source(str(tmp_path / f"{name}.mp4")))
        assert len(items) == 1 and isinstance(items[0], Broken) and "it is text" in items[0].reason
    assert time.monotonic() - start < 2
