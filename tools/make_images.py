"""Make the images of the README and the docs from a trained run on the built-in data set.

    python tools/make_images.py --weights runs/demo-full/train/weights/best.pt --out docs/images

detections.jpg: six validation images with what the model finds. report.png: the top of the run's report.html.
phone.png: the demo page of `export.py --include web` on a phone. The last two are screenshots by Chromium.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import export
import hubconf
from data.make_shapes import ensure_shapes, shapes_folder
from utils.config import flag, run_script
from utils.drawing import draw_boxes

LOGGER = logging.getLogger(__name__)
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SHAPE = (320, 240)  # width and height of the images that are shown: all alike, to fit into the sheet
TILE, GAP = (397, 298), 4  # each of them in the sheet, 3 x 2, about 1200 pixels wide
REPORT, PHONE = (1280, 900), (390, 844)  # width and height of the screenshots
NARROWEST = 500  # pixels; a window of Chromium is not narrower
SECONDS = 60  # that the demo page may need to show what it finds
# The demo page in a frame as wide as a phone. The screenshot is made when all has loaded, and `wait` is answered only
# after `ready` was asked for: when the page has shown what it finds.
FRAME = """<!doctype html><style>body { margin: 0 }</style>
<iframe id="page" src="index.html?image=example.jpg" style="border: 0; width: 390px; height: 844px"></iframe>
<img src="wait" hidden>
<script>
  const timer = setInterval(() => {
    if (!document.getElementById("page").contentDocument?.body?.dataset.ready) return;
    clearInterval(timer);
    setTimeout(() => fetch("ready"), 300);
  }, 50);
</script>"""


@dataclass(frozen=True)
class ImagesConfig:
    """Make the images of the README and the docs from a trained run on the built-in data set."""

    weights: str = flag("runs/demo-full/train/weights/best.pt", "checkpoint in the folder of its run")
    out: str = flag("docs/images", "folder for the images")
    imgsz: int = flag(192, "side of the model's input, pixels", "--img")
    conf_thres: float = flag(0.4, "confidence threshold of detections.jpg")
    ort_web: str = flag("", "folder of the npm package onnxruntime-web; empty: npm fetches it")


def main(cfg: ImagesConfig) -> None:
    """Write the images into the folder `cfg.out`."""
    out, report = Path(cfg.out), Path(cfg.weights).resolve().parents[1] / "report.html"
    images = choose_images(ensure_shapes(shapes_folder()).parent)
    out.mkdir(parents=True, exist_ok=True)
    draw_sheet(cfg, images).save(out / "detections.jpg", quality=90, subsampling=0)
    LOGGER.info(f"wrote {out / 'detections.jpg'}")
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    if chromium is None:
        LOGGER.warning(f"no report.png and phone.png: they need Chromium, none of {', '.join(BROWSERS)} was found")
        return
    if not report.is_file():
        raise FileNotFoundError(f"{report}: not found, expected the report of the run that wrote {cfg.weights}")
    take_screenshot(chromium, report.as_uri(), out / "report.png", REPORT)
    with tempfile.TemporaryDirectory() as folder:
        page = export_page(cfg, images, Path(folder))
        take_phone_screenshot(chromium, page, out / "phone.png")


def choose_images(root: Path, count: int = 6) -> list[Path]:
    """The validation images of SHAPE with the most classes in them; of those, the ones with the fewest objects."""

    def order(path: Path) -> tuple[int, int, str]:
        labels = [line.split()[0] for line in (root / "labels/val" / f"{path.stem}.txt").read_text().splitlines()]
        return -len(set(labels)), len(labels), path.name

    fitting = [path for path in sorted(root.glob("images/val/*.jpg")) if Image.open(path).size == SHAPE]
    return sorted(fitting, key=order)[:count]


def draw_sheet(cfg: ImagesConfig, images: list[Path]) -> Image.Image:
    """The images with their detections, in rows of three."""
    model = hubconf.load(cfg.weights, device="cpu")
    model.conf = cfg.conf_thres
    (w, h), rows = TILE, -(-len(images) // 3)
    sheet = Image.new("RGB", (3 * (w + GAP) - GAP, rows * (h + GAP) - GAP), "white")
    for i, (path, boxes) in enumerate(zip(images, model(images, size=cfg.imgsz).boxes, strict=True)):
        tile = np.array(Image.open(path).convert("RGB").resize(TILE, Image.Resampling.LANCZOS))
        enlarged = boxes.at(boxes.xyxy * (w / SHAPE[0], h / SHAPE[1], w / SHAPE[0], h / SHAPE[1]))
        sheet.paste(Image.fromarray(draw_boxes(tile, enlarged, model.names)), (i % 3 * (w + GAP), i // 3 * (h + GAP)))
    return sheet


def export_page(cfg: ImagesConfig, images: list[Path], folder: Path) -> Path:
    """The folder of the demo page, with one of the images as example.jpg."""
    export.main(
        export.ExportConfig(
            weights=cfg.weights,
            include=("web",),
            imgsz=(cfg.imgsz,),
            images=tuple(map(str, images)),
            out=str(folder),
            ort_web=cfg.ort_web,
        )
    )
    page = next(folder.glob("*_web"))
    example = Image.open(images[len(images) // 2])
    example.resize((2 * example.width, 2 * example.height), Image.Resampling.LANCZOS).save(page / "example.jpg")
    (page / "frame.html").write_text(FRAME, encoding="utf-8")
    return page


class PageServer(ThreadingHTTPServer):
    """Serves a folder on a free port of this machine."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), partial(PageHandler, directory=str(folder)))
        self.ready = threading.Event()


class PageHandler(SimpleHTTPRequestHandler):
    """Answers for files, and `wait` once `ready` was asked for."""

    server: PageServer

    def do_GET(self) -> None:
        if self.path == "/ready":
            self.server.ready.set()
        elif self.path == "/wait":
            self.server.ready.wait(SECONDS)
        else:
            return super().do_GET()
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """No lines about requests."""


def take_phone_screenshot(chromium: str, page: Path, path: Path) -> None:
    """Write the demo page in the folder `page`, with what it finds in example.jpg, to `path`.

    Raises:
        TimeoutError: it does not show it in time.
    """
    with PageServer(page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        take_screenshot(chromium, f"http://127.0.0.1:{server.server_address[1]}/frame.html", path, PHONE)
        server.shutdown()
        if not server.ready.is_set():
            raise TimeoutError(f"{path}: the demo page did not show its detections within {SECONDS} s")


def take_screenshot(chromium: str, url: str, path: Path, size: tuple[int, int]) -> None:
    """Write the top left `size` (width, height) of a web page in light colors to `path`.

    Raises:
        OSError: Chromium failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder, "shot.png")
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
        flags += [f"--window-size={max(size[0], NARROWEST)},{size[1]}", "--blink-settings=preferredColorScheme=1"]
        flags += [f"--user-data-dir={folder}/profile", f"--screenshot={shot}"]
        result = subprocess.run([chromium, *flags, url], capture_output=True, text=True)
        if not shot.is_file():
            raise OSError(f"{chromium} made no screenshot of {url}: {' '.join(result.stderr.split()[-20:])}")
        Image.open(shot).convert("RGB").crop((0, 0, *size)).save(path, optimize=True)
    LOGGER.info(f"wrote {path}")


if __name__ == "__main__":
    run_script(main, ImagesConfig)
