"""Web servers that answer badly: faults with names, a fuzzer of random answers, and a table of what comes of them.

python tests/fuzz_http.py           the table: fault, seconds, MB, the line that is printed
python tests/fuzz_http.py 10000     descriptors and memory while a camera gives so many frames
"""

from __future__ import annotations

import os
import random
import resource
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.predict.frames import Broken, Frame
from utils.predict.sources import open_source
from utils.text import clean

TIMEOUT = 0.6  # seconds, the --stream-timeout of a case
SLACK = 2.5  # seconds that a case may take beyond it, on a busy machine
LONGEST_LINE = 400
KINDS = ("image.jpg", "clip.mp4", "camera")
ESCAPES = "\x1b[31m\x1b]0;title\x07\x9b5n"
Answer = Callable[[socket.socket, str], None]
FAULTS: dict[str, Answer] = {}


class Server:
    """Gives each connection to `answer(connection, address)`; a context manager."""

    def __init__(self, answer: Answer):
        self.answer, self.requests = answer, list[str]()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                threading.Thread(target=self.serve, args=[self.listener.accept()[0]], daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.settimeout(20)
            self.requests.append(connection.recv(65536).decode("latin-1"))
            self.answer(connection, self.address)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)  # which ends the thread that accepts
        self.listener.close()


def fault(function: Answer) -> Answer:
    FAULTS[function.__name__.replace("_", " ")] = function
    return function


def jpeg(value: int = 90) -> bytes:
    return cv2.imencode(".jpg", np.full((48, 64, 3), value, np.uint8))[1].tobytes()


def head(status: str = "200 OK", **fields: object) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{key.replace('_', '-')}: {value}" for key, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


MULTIPART = head(Content_Type="multipart/x-mixed-replace; boundary=next")


def part(data: bytes, length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return f"--next\r\nContent-Type: image/jpeg\r\nContent-Length: {size}\r\n\r\n".encode() + data + b"\r\n"


def forever(connection: socket.socket, data: bytes, pause: float = 0) -> None:
    while True:
        connection.sendall(data)
        time.sleep(pause)


def drip(connection: socket.socket, data: bytes) -> None:
    for k in range(len(data)):
        connection.sendall(data[k : k + 1])
        time.sleep(0.1)
    time.sleep(20)


# ---- faults ---------------------------------------------------------------------------------------------------------


@fault
def no_answer(connection: socket.socket, address: str) -> None:
    time.sleep(20)


@fault
def closed_at_once(connection: socket.socket, address: str) -> None:
    pass


@fault
def reset(connection: socket.socket, address: str) -> None:
    connection.sendall(head()[:20])
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@fault
def header_that_stalls(connection: socket.socket, address: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-")
    time.sleep(20)


@fault
def header_in_drips(connection: socket.socket, address: str) -> None:
    drip(connection, head(Content_Type="image/jpeg", X="y" * 500))


@fault
def header_without_end(connection: socket.socket, address: str) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    forever(connection, b"X-More: " + b"y" * 1000 + b"\r\n")


@fault
def header_line_without_end(connection: socket.socket, address: str) -> None:
    forever(connection, b"HTTP/1.1 200 OK" + b"y" * 100_000)


@fault
def continue_without_end(connection: socket.socket, address: str) -> None:
    forever(connection, b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


@fault
def body_that_stalls(connection: socket.socket, address: str) -> None:
    connection.sendall(head(Content_Type="image/jpeg", Content_Length=100_000) + jpeg()[:300])
    time.sleep(20)


@fault
def body_in_drips(connection: socket.socket, address: str) -> None:
    connection.sendall(head(Content_Type="image/jpeg", Content_Length=len(jpeg())))
    drip(connection, jpeg())


@fault
def body_without_end(connection: socket.socket, address: str) -> None:
    connection.sendall(head(Content_Type="image/jpeg"))
    forever(connection, random.Random(0).randbytes(1 << 18))


@fault
def zeros_without_end(connection: socket.socket, address: str) -> None:
    connection.sendall(head(Content_Type="video/mp4"))
    forever(connection, bytes(1 << 18))


@fault
def body_that_is_short(connection: socket.socket, address: str) -> None:
    connection.sendall(head(Content_Type="image/jpeg", Content_Length=5000) + jpeg()[:-100])


@fault
def body_that_is_huge(connection: socket.socket, address: str) -> None:
    connection.sendall(head(Content_Type="image/jpeg", Content_Length=10**15) + jpeg())


@fault
def chunks_that_are_damaged(connection: socket.socket, address: str) -> None:
    connection.sendall(head(Transfer_Encoding="chunked") + b"zz\r\n" + jpeg())


@fault
def chunk_that_is_huge(connection: socket.socket, address: str) -> None:
    connection.sendall(head(Transfer_Encoding="chunked") + b"f" * 15 + b"\r\n" + jpeg())


@fault
def garbage(connection: socket.socket, address: str) -> None:
    connection.sendall(random.Random(1).randbytes(50_000))


@fault
def a_web_page(connection: socket.socket, address: str) -> None:
    connection.sendall(head(Content_Type="text/html") + b"<html><script>alert(1)</script>" + b"x" * 5000)


@fault
def escapes_in_the_status(connection: socket.socket, address: str) -> None:
    connection.sendall(head(f"404 {ESCAPES}{'long ' * 500}", Content_Length=0))


@fault
def an_error_of_the_server(connection: socket.socket, address: str) -> None:
    connection.sendall(head("500 Failed", Content_Type="text/html") + b"x" * 5000)


@fault
def redirect_in_a_circle(connection: socket.socket, address: str) -> None:
    connection.sendall(head("302 Found", Location=f"http://{address}/image.jpg", Content_Length=0))


@fault
def redirects_without_end(connection: socket.socket, address: str) -> None:
    place = f"http://{address}/{random.randrange(10**9)}.jpg"
    connection.sendall(head("302 Found", Location=place, Content_Length=0))


@fault
def redirect_to_a_file(connection: socket.socket, address: str) -> None:
    connection.sendall(head("302 Found", Location="file:///etc/passwd", Content_Length=0))


@fault
def redirect_to_ftp(connection: socket.socket, address: str) -> None:
    connection.sendall(head("301 Moved", Location=f"ftp://{address}/a.jpg{ESCAPES}", Content_Length=0))


@fault
def redirect_to_nowhere(connection: socket.socket, address: str) -> None:
    connection.sendall(head("302 Found", Location="http://[::1", Content_Length=0))


@fault
def redirect_with_a_body_without_end(connection: socket.socket, address: str) -> None:
    connection.sendall(head("302 Found", Location=f"http://{address}/image.jpg"))
    forever(connection, bytes(1 << 18))


@fault
def image_that_is_a_bomb(connection: socket.socket, address: str) -> None:
    size = struct.pack(">HH", 65500, 65500)
    data = jpeg()
    start = data.index(b"\xff\xc0") + 5
    connection.sendall(head(Content_Type="image/jpeg") + data[:start] + size + data[start + 4 :])


@fault
def playlist_of_local_files(connection: socket.socket, address: str) -> None:
    lines = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n"
    connection.sendall(head(Content_Type="application/vnd.apple.mpegurl") + lines)


@fault
def playlist_without_end(connection: socket.socket, address: str) -> None:
    lines = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://{address}/a.ts\n".encode()
    connection.sendall(head(Content_Type="application/vnd.apple.mpegurl") + lines)


@fault
def frames_that_stall(connection: socket.socket, address: str) -> None:
    connection.sendall(MULTIPART + part(jpeg()) * 3)
    time.sleep(20)


@fault
def frames_of_garbage(connection: socket.socket, address: str) -> None:
    connection.sendall(MULTIPART)
    forever(connection, part(random.Random(2).randbytes(5000)), 0.01)


@fault
def frame_without_end(connection: socket.socket, address: str) -> None:
    connection.sendall(MULTIPART + part(jpeg(), 2**31 - 1)[:-2])
    forever(connection, bytes(1 << 18))


@fault
def frame_without_length(connection: socket.socket, address: str) -> None:
    connection.sendall(MULTIPART + b"--next\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg())
    forever(connection, bytes(1 << 18))


@fault
def frame_that_comes_late(connection: socket.socket, address: str) -> None:
    """Data that OpenCV grabs again and again, and never makes a frame of."""
    data = head(Content_Type="image/jpeg", Content_Length=len(jpeg()) + 100) + jpeg()
    for start in range(0, len(data), 148):
        connection.sendall(data[start : start + 148])
        time.sleep(0.02)


@fault
def frames_in_drips(connection: socket.socket, address: str) -> None:
    connection.sendall(MULTIPART)
    drip(connection, part(jpeg()) * 10)


# ---- cases ----------------------------------------------------------------------------------------------------------


def read(url: str, timeout: float, most: int = 3) -> tuple[list[Frame | Broken], float]:
    """What a source gives, at most so many frames, and the longest time in seconds that an item or the end took."""
    items, times = list[Frame | Broken](), [time.monotonic()]
    frames = open_source(url, stream_timeout=timeout)
    for item in frames:
        items.append(item)
        times.append(time.monotonic())
        if len(items) >= most:
            break
    frames.close()
    times.append(time.monotonic())
    return items, float(np.diff(times).max())


def check(items: list[Frame | Broken], seconds: float, timeout: float) -> str:
    """The line printed at the end of a source ('' if there is none); AssertionError if it is not as promised."""
    assert seconds < timeout + SLACK, f"{seconds:.1f} s"
    lines = [clean(item.reason, LONGEST_LINE) for item in items if isinstance(item, Broken)]
    assert len(lines) <= 1 and (items or lines)
    for line in lines:
        assert 0 < len(line) <= LONGEST_LINE and line.isprintable() and "secret" not in line, line
    return lines[0] if lines else ""


def random_answer(chance: random.Random) -> tuple[bytes, float]:
    """A correct answer with some bytes changed, moved, repeated or cut, and the pause between its pieces."""
    whole = chance.choice(
        [
            head(Content_Type="image/jpeg", Content_Length=len(jpeg())) + jpeg(),
            head(Transfer_Encoding="chunked") + f"{len(jpeg()):x}\r\n".encode() + jpeg() + b"\r\n0\r\n\r\n",
            MULTIPART + part(jpeg(30)) + part(jpeg(200)),
            head("302 Found", Location="/other.jpg", Content_Length=0),
            head("401 Who", WWW_Authenticate="Digest realm=x, nonce=y", Content_Length=0),
        ]
    )
    data = bytearray(whole)
    for _ in range(chance.choice((0, 1, 2, 5, 20))):
        start = chance.randrange(len(data) + 1) if chance.random() < 0.4 else chance.randrange(min(200, len(data)) + 1)
        end = min(start + chance.choice((1, 1, 2, 8, 100)), len(data))
        kind = chance.randrange(5)
        if kind == 0:
            data[start:end] = chance.randbytes(end - start)
        elif kind == 1:
            data[start:end] = b""
        elif kind == 2:
            data[start:start] = data[start:end] * chance.choice((1, 2, 50))
        elif kind == 3:
            data[start:end] = chance.choice((b"\r\n", b"\x00", b"-1", b"99999999999999999999", b"\xff" * 9, b": "))
        elif data:
            del data[chance.randrange(len(data)) :]
        if not data:
            data = bytearray(b"H")
    return bytes(data), chance.choice((0, 0, 0.02))


def fuzz_http(chance: random.Random, folder: Path) -> None:
    """One random answer, also written into `folder`, to one kind of source; AssertionError if a promise is broken."""
    data, pause = random_answer(chance)
    kind, waits = chance.choice(KINDS), chance.random() < 0.3

    def answer(connection: socket.socket, address: str) -> None:
        step = max(len(data) // 5, 1)
        for start in range(0, len(data), step):
            connection.sendall(data[start : start + step])
            time.sleep(pause)
        time.sleep(20 if waits else 0)

    with Server(answer) as server:
        (folder / "answer.bin").write_bytes(data)  # kept by tools/fuzz.py if the check fails
        check(*read(f"http://user:secret@{server.address}/{kind}?password=secret", TIMEOUT), TIMEOUT)


FUZZERS = {"http": fuzz_http}


def table_row(name: str, kind: str) -> str:
    """The row of a fault and a kind of source in the table."""
    with Server(FAULTS[name]) as server:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        items, seconds = read(f"http://{server.address}/{kind}", 1.0)
        megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    line = check(items, seconds, 1.0) or f"({len(items)} frames)"
    return f"| {name} | {kind} | {seconds:.1f} | {megabytes:.0f} | {line} |"


def long_run(count: int) -> None:
    """Print the descriptors and the memory of this process while a camera gives `count` frames, 200 a connection."""

    def camera(connection: socket.socket, address: str) -> None:
        connection.sendall(MULTIPART)
        for k in range(200):
            connection.sendall(part(jpeg(k)))
            time.sleep(0.002)

    with Server(camera) as server:
        following, step = 1, max(count // 10, 1)
        for frame in open_source(f"http://{server.address}/camera", stream_timeout=20):
            assert isinstance(frame, Frame), frame
            if frame.number >= following:
                descriptors = len(os.listdir("/proc/self/fd"))
                pages = int(Path("/proc/self/statm").read_text().split()[1])
                megabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
                print(f"frame {frame.number}: {descriptors} descriptors, {megabytes:.0f} MB", flush=True)
                following += step
            if frame.number >= count:
                break


def main() -> None:
    print("| fault | source | s | MB | line |\n|---|---|---:|---:|---|", flush=True)
    for name in FAULTS:
        for kind in KINDS:
            if child := os.fork():  # each with its own peak of memory
                os.waitpid(child, 0)
                continue
            print(table_row(name, kind), flush=True)
            os._exit(0)


if __name__ == "__main__":
    long_run(int(sys.argv[1])) if sys.argv[1:] else main()
