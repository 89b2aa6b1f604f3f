"""Images at http and https URLs: a download that is bounded in bytes, seconds and redirects."""

from __future__ import annotations

import base64
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import (
    BadStatusLine,
    HTTPConnection,
    HTTPException,
    HTTPMessage,
    HTTPResponse,
    HTTPSConnection,
    IncompleteRead,
    RemoteDisconnected,
)
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from utils.text import clean

MAX_BYTES = 200_000_000  # of an image; uncompressed, 65 million pixels
MAX_REDIRECTS = 5
SILENCE = 30.0  # seconds without an answer, where no time is given
CHUNK = 1 << 16  # bytes
WEB = ("http", "https")


class Sockets:
    """The sockets of one download, closed together when its time is over."""

    def __init__(self, seconds: float):
        self.seconds, self.opened, self.lock = seconds, list[socket.socket](), threading.Lock()
        self.deadline = time.monotonic() + (seconds or math.inf)

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.deadline

    def add(self, opened: socket.socket) -> None:
        with self.lock:
            self.opened.append(opened)
        if self.late:
            self.cut()

    def cut(self) -> None:
        """End whatever waits for these sockets."""
        with self.lock:
            for opened in self.opened:
                with suppress(OSError):  # closed already
                    opened.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def limited(self) -> Iterator[None]:
        """The block ends when the time is over: with a TimeoutError, whatever it was that failed.

        Socket timeouts would not do: each byte that arrives starts them again.
        """
        timer = threading.Timer(self.seconds, self.cut)
        timer.daemon = True
        if self.seconds:
            timer.start()
        try:
            yield
            if self.late:  # an answer may also end where it was cut
                raise TimeoutError
        except (OSError, ValueError, HTTPException) as error:
            if not self.late:
                raise
            raise TimeoutError(f"not complete after {self.seconds:g} s") from error
        finally:
            timer.cancel()


class Http(HTTPHandler):
    """Opens http URLs; `sockets` gets each connection."""

    def __init__(self, sockets: Sockets):
        super().__init__()
        self.sockets = sockets

    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(watched(HTTPConnection, self.sockets), req)


class Https(HTTPSHandler):
    """Opens https URLs; `sockets` gets each connection."""

    def __init__(self, sockets: Sockets):
        super().__init__()
        self.sockets = sockets

    def https_open(self, req: Request) -> HTTPResponse:
        connection = watched(HTTPSConnection, self.sockets)
        return self.do_open(connection, req, context=ssl.create_default_context())


def watched(kind: type[HTTPConnection], sockets: Sockets) -> type[HTTPConnection]:
    """A kind of connection that hands its socket to `sockets` when it is connected."""

    class Watched(kind):  # type: ignore[valid-type, misc]
        def connect(self) -> None:
            super().connect()
            sockets.add(self.sock)

    return Watched


class Redirects(HTTPRedirectHandler):
    """Follows a few redirects, to the web only; a password is not sent to another server."""

    max_repeats = max_redirections = 1000  # counted here

    def __init__(self) -> None:
        self.count = 0

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        fp.close()  # its body, which may have no end, would be read
        self.count += 1
        target, before = urlsplit(newurl), urlsplit(req.full_url)
        if target.scheme.lower() not in WEB:
            raise ValueError(f"redirected to {target.scheme}://, expected http or https")
        if self.count > MAX_REDIRECTS:
            raise ValueError(f"more than {MAX_REDIRECTS} redirects")
        following = super().redirect_request(req, fp, code, msg, headers, without_login(target))
        if following and (target.scheme, target.hostname, target.port) != (
            before.scheme,
            before.hostname,
            before.port,
        ):
            following.remove_header("Authorization")
        return following


def without_login(parts: SplitResult) -> str:
    """The URL without a user and password, and without a fragment."""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def request_of(url: str) -> Request:
    """A request for a URL; the login that it may hold is sent in a header."""
    parts = urlsplit(url)
    request = Request(without_login(parts))
    if parts.username:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
    return request


def download(url: str, seconds: float) -> bytes:
    """The file at a http or https URL, complete within `seconds`, at most MAX_BYTES long.

    Args:
        seconds: 0: as long as an answer does not stop for SILENCE.

    Raises:
        ValueError: why there is none, in one line.
    """
    sockets, opener = Sockets(seconds), OpenerDirector()  # without the handlers of files and of ftp
    for handler in (ProxyHandler(), Http(sockets), Https(sockets), HTTPDefaultErrorHandler(), Redirects()):
        opener.add_handler(handler)
    opener.add_handler(HTTPErrorProcessor())
    try:
        with sockets.limited(), opener.open(request_of(url), timeout=seconds or SILENCE) as answer:
            return body(answer)
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """Why a download failed, in one line, without what the server sent."""
    if isinstance(error, HTTPError) and error.code in (301, 302, 303, 307, 308):
        return "redirected, but not to a http or https URL"
    if isinstance(error, HTTPError):
        return f"HTTP error {error.code}: {clean(error.reason, 60)}"
    if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
        return "not an answer of a web server"
    if isinstance(error, IncompleteRead):
        return "the answer is damaged or ends early"
    return clean(error.reason if isinstance(error, URLError) else error) or type(error).__name__


def body(answer: HTTPResponse) -> bytes:
    """The bytes of an answer.

    Raises:
        ValueError: more than MAX_BYTES, or fewer than it states.
    """
    stated, data = answer.length, bytearray()
    too_long = f"the answer is larger than {MAX_BYTES / 1e6:.0f} MB, expected an image"
    if stated is not None and stated > MAX_BYTES:
        raise ValueError(too_long)
    while chunk := answer.read1(CHUNK):
        data += chunk
        if len(data) > MAX_BYTES:
            raise ValueError(too_long)
    if stated is not None and len(data) < stated:
        raise ValueError(f"the answer ends after {len(data)} of {stated} bytes")
    return bytes(data)
