"""Chromium without a window, driven by its DevTools protocol over two pipes; and a server for the folder of a page."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from utils.files import REPO

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PLACES = (os.environ.get("ORT_WEB", ""), str(REPO / "node_modules" / "onnxruntime-web"))
ORT_WEB = next((place for place in PLACES if place and Path(place).is_dir()), None)
NEEDS = "needs Chromium, and onnxruntime-web in node_modules (npm install --no-save onnxruntime-web) or in $ORT_WEB"
SECONDS = 120
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream", "--remote-debugging-pipe"),
)
KEYS = {"Enter": 13, "Escape": 27, "Delete": 46, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
MODIFIERS = {"Alt": 1, "Control": 2, "Shift": 8}


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served(folder: Path, port: int = 0) -> Iterator[str]:
    """The address of a server for the files of a folder, until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


class Browser:
    """A running Chromium with its own profile; `close` ends it."""

    def __init__(self, profile: Path, *flags: str):
        assert CHROMIUM is not None
        commands, self.to = os.pipe()
        self.back, answers = os.pipe()
        high = [os.dup2(fd, number, inheritable=True) for fd, number in ((commands, 93), (answers, 94))]
        command = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
        # Chromium reads descriptor 3 and writes 4; sh knows numbers of one digit only, so the others have names here.
        shell = ["sh", "-c", 'exec "$@" 3</dev/fd/93 4>/dev/fd/94', "sh", *command]
        self.process = subprocess.Popen(shell, pass_fds=high, stderr=subprocess.DEVNULL)
        for fd in (commands, answers, *high):
            os.close(fd)
        self.rest, self.count = b"", 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, session: str = "", **params: Any) -> dict[str, Any]:
        """The result of a command of the DevTools protocol; events that arrive meanwhile are kept in `events`.

        Raises:
            RuntimeError: the browser refuses it. TimeoutError: no answer.
        """
        self.count += 1
        message = {"id": self.count, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") != self.count:
                self.events.append(answer)
                continue
            if "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            return answer["result"]

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            if not select.select([self.back], [], [], SECONDS)[0]:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self.back, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended")
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, url: str, width: int = 1280, height: int = 800, dark: bool = False, scale: float = 1) -> Page:
        """A new tab of this size in CSS pixels, with touch if it is as narrow as a phone."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        phone = width < 700
        page.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=phone
        )
        if phone:
            page.call("Emulation.setTouchEmulationEnabled", enabled=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.go(url)
        return page

    def downloads(self, folder: Path) -> None:
        """Files that pages hand over are written to this folder from now on."""
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder), eventsEnabled=True)

    def close(self) -> None:
        try:
            self.send("Browser.close")
        except (RuntimeError, TimeoutError, BrokenPipeError):
            self.process.kill()
        self.process.wait(SECONDS)
        os.close(self.to)
        os.close(self.back)


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str):
        self.browser, self.session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.send(method, self.session, **params)

    def go(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression, awaited.

        Raises:
            RuntimeError: it throws.
        """
        answer = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{code[:200]}: {answer['exceptionDetails'].get('exception', {}).get('description')}")
        return answer["result"].get("value")

    def wait(self, code: str, seconds: float = SECONDS) -> Any:
        """The value of an expression once it is true.

        Raises:
            TimeoutError: it never is; names the status of the page.
        """
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                value = self.run(code)
            except RuntimeError:  # the document is not there yet
                value = None
            if value:
                return value
            time.sleep(0.05)
        status = self.run("document.getElementById('status')?.textContent")
        raise TimeoutError(f"never true: {code}; status: {status!r}; problems: {self.problems()}")

    def ready(self) -> None:
        """Waits until the model is loaded."""
        self.wait("document.body?.dataset.ready")

    def choose(self, paths: Sequence[Path]) -> None:
        """Gives files to the page's file input."""
        handle = self.call("Runtime.evaluate", expression="document.getElementById('file')")["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(path) for path in paths], objectId=handle)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def touch(self, *path: tuple[float, float]) -> None:
        """One finger goes along a path in CSS pixels; a path of one point is a tap."""
        point = [{"x": path[0][0], "y": path[0][1]}]
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=point)
        for x, y in path[1:]:
            self.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x, "y": y}])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def pinch(self, *pairs: tuple[tuple[float, float], tuple[float, float]]) -> None:
        """Two fingers go along their paths."""
        for i, pair in enumerate(pairs):
            points = [{"x": x, "y": y, "id": k} for k, (x, y) in enumerate(pair)]
            self.call("Input.dispatchTouchEvent", type="touchMove" if i else "touchStart", touchPoints=points)
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def press(self, key: str, *held: str) -> None:
        """One key, while others (Alt, Control, Shift) are held."""
        code = KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
        params = {"key": key, "windowsVirtualKeyCode": code, "modifiers": sum(MODIFIERS[name] for name in held)}
        self.call("Input.dispatchKeyEvent", type="keyDown", **params)
        self.call("Input.dispatchKeyEvent", type="keyUp", **params)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def problems(self) -> list[str]:
        """Exceptions, and errors in the console, of this tab so far."""
        self.run("0")  # receives what has arrived
        found = []
        for event in (event for event in self.browser.events if event.get("sessionId") == self.session):
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"].get("exception", {}).get("description")))
            if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found
