"""The web page in headless Chromium: what it detects in images, and a screenshot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from dataclasses import asdict, dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2

from utils.files import REPO

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PLACES = (os.environ.get("ORT_WEB", ""), str(REPO / "node_modules" / "onnxruntime-web"))
ORT_WEB = next((place for place in PLACES if place and Path(place).is_dir()), None)
NEEDS = "needs Chromium, and onnxruntime-web in node_modules (npm install --no-save onnxruntime-web) or in $ORT_WEB"
SECONDS = 120
DRIVER = """<!doctype html><style>html, body { margin: 0 } iframe { border: 0; display: block }</style>
<iframe id="page" src="index.html" style="width: WIDTHpx; height: HEIGHTpx"></iframe><img src="hold" hidden>
<script type="module">
const visit = VISIT;
const frame = document.getElementById("page");
const pause = (ms) => new Promise((go) => setTimeout(go, ms));
const until = async (ready) => { while (!ready()) await pause(50); };
const send = (what) => fetch("result", { method: "POST", body: JSON.stringify(what) });
try {
  await until(() => frame.contentDocument?.body?.dataset.ready);
  const page = frame.contentDocument, of = (id) => page.getElementById(id);
  const found = () => [...page.querySelectorAll("#found li")].map((li) => li.dataset.box.split(" ").map(Number));
  const heard = async (act) => {  // act, then wait until the image has a new label
    of("picture").setAttribute("aria-label", "waiting");
    act();
    await until(() => of("picture").getAttribute("aria-label") !== "waiting");
  };
  const holding = async (name) => {
    const files = new DataTransfer();
    files.items.add(new File([await (await fetch(name)).blob()], name));
    return files;
  };
  const slide = (value) => { of("confidence").value = value; of("confidence").dispatchEvent(new Event("input")); };
  const answer = { results: {}, dropped: {}, camera: null };
  if (visit.camera) {
    await heard(() => of("camera").click());
    const button = of("camera"), { width, height } = of("picture");
    answer.camera = { pressed: button.getAttribute("aria-pressed"), size: [width, height] };
    of("camera").click();
    answer.camera.after = of("camera").getAttribute("aria-pressed");
  }
  for (const name of visit.images) {
    const files = await holding(name);
    await heard(() => page.dispatchEvent(new DragEvent("drop", { dataTransfer: files, bubbles: true })));
    answer.dropped[name] = found();
    await heard(() => { of("file").files = files.files; of("file").dispatchEvent(new Event("change")); });
    answer.results[name] = found();
  }
  const all = found().length;
  slide(0.95);
  answer.sure = [found().length, all];
  slide(visit.confidence);
  const controls = [...page.querySelectorAll("input, button")];
  answer.unlabelled = controls.filter((e) => !e.labels?.length && !e.textContent.trim()).length;
  answer.small = controls.map((e) => (e.className === "hidden" ? e.parentElement : e).getBoundingClientRect())
    .filter((r) => r.width < 44 || r.height < 32).length;
  answer.status = of("status").textContent;
  answer.wide = page.documentElement.scrollWidth;
  await pause(200);
  send(answer);
} catch (error) { send({ error: String(error) }); }
</script>"""


@dataclass(frozen=True)
class Visit:
    """What to do with the page: its size in CSS pixels, the images given to it, and whether the camera is tried."""

    images: list[str]
    width: int = 390
    height: int = 844
    dark: bool = False
    scale: int = 1  # pixels of the screenshot per pixel of the page
    camera: bool = False
    confidence: float = 0.25


class Handler(SimpleHTTPRequestHandler):
    """Serves the folder; keeps what is posted, and answers `hold` only then: the screenshot waits for it."""

    def do_POST(self) -> None:
        self.server.posted = json.loads(self.rfile.read(int(self.headers["Content-Length"])))  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()
        self.server.done.set()  # type: ignore[attr-defined]

    def do_GET(self) -> None:
        if self.path != "/hold":
            return super().do_GET()
        self.server.done.wait(SECONDS)  # type: ignore[attr-defined]
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def browse(page: Path, visit: Visit, shot: Path, profile: Path) -> dict:
    """What the page in the folder `page` posted; a screenshot of it is written to `shot`."""
    assert CHROMIUM is not None
    driver = DRIVER.replace("WIDTH", str(visit.width)).replace("HEIGHT", str(visit.height))
    (page / "driver.html").write_text(driver.replace("VISIT", json.dumps(asdict(visit))), encoding="utf-8")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(page)))
    server.done, server.posted = threading.Event(), None  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    flags = [
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
        *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
        f"--user-data-dir={profile}",
        f"--window-size={max(visit.width, 500)},{visit.height}",  # a window is not narrower
        f"--force-device-scale-factor={visit.scale}",
        f"--blink-settings=preferredColorScheme={0 if visit.dark else 1}",
        f"--screenshot={shot}",
    ]
    command = [CHROMIUM, *flags, f"http://127.0.0.1:{server.server_address[1]}/driver.html"]
    try:
        subprocess.run(command, capture_output=True, timeout=SECONDS, check=True)
    finally:
        server.shutdown()
        server.server_close()
    screenshot = cv2.imread(str(shot))
    cv2.imwrite(str(shot), screenshot[:, : visit.width * visit.scale])
    return server.posted  # type: ignore[attr-defined]
