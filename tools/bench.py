"""What each stage between a picture file and its results costs: `python tools/bench.py --stages --weights best.pt`.

Each stage is run over all pictures, several times; its time is the least mean over the pictures of a pass. The network
is yolov5n at 640 unless --weights says otherwise, and every stage is also given as a part of the network's time.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.runtimes.ensemble import load_model
from models.yolo import DetectionModel
from utils.config import flag, run_script
from utils.data.labels import label_path, read_labels
from utils.device import select_device
from utils.drawing import draw_boxes
from utils.evaluate.metrics import DetectionMetrics
from utils.images import check_imgsz, fit_canvas, imread, imwrite, letterbox, to_input
from utils.nms import non_max_suppression
from utils.predict.sources import list_files
from utils.predict.writers import label_text, write_labels

LOGGER = logging.getLogger(__name__)
LIMIT = 1 / 3  # of a forward pass, that no other stage should take


@dataclass(frozen=True)
class BenchConfig:
    """Measure the stages around the network."""

    stages: bool = flag(False, "a table of every stage between a picture file and its results")
    weights: str | tuple[str, ...] = flag("", "the model; empty: a new yolov5n")
    source: str = flag("data/images", "pictures: a folder, glob or list.txt; labels beside them are used for AP")
    imgsz: int = flag(640, "long side of the input, pixels", "--img")
    images: int = flag(64, "most pictures")
    repeats: int = flag(3, "passes over the pictures, of which the fastest counts")
    threads: int = flag(0, "threads of PyTorch; 0: as it chooses")
    device: str = flag("", "cpu, or a GPU's number; empty: a GPU if there is one")


class Clock:
    """Runs one stage over a list of items, several times, and remembers its milliseconds an item."""

    def __init__(self, device: torch.device, repeats: int):
        self.device, self.repeats = device, max(repeats, 1)
        self.ms: dict[str, float] = {}

    def run(self, name: str, work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """The results of `work` on each of `items`."""
        best, out = float("inf"), []
        for _ in range(self.repeats):
            start = self.now()
            out = [work(item) for item in items]
            best = min(best, self.now() - start)
        self.ms[name] = 1000 * best / len(items)
        return out

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


class NewModel:
    """A yolov5n with random weights, fused, as a backend."""

    def __init__(self, device: torch.device):
        torch.manual_seed(0)
        self.model = DetectionModel("yolov5n.yaml").fuse().to(device).requires_grad_(False)
        self.names, self.grid = {i: str(i) for i in range(80)}, self.model.grid

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return self.model(images)[0]


def main(cfg: BenchConfig) -> dict[str, float]:
    """Milliseconds a picture of each stage, also printed.

    Raises:
        ValueError, FileNotFoundError: no pictures, no such weights, nothing to measure.
    """
    if not cfg.stages:
        raise ValueError("nothing to measure, expected --stages")
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    device = select_device(cfg.device)
    model: Any = load_model(cfg.weights, device) if cfg.weights else NewModel(device)
    paths = list_files(cfg.source)[: cfg.images]
    imgsz, clock = check_imgsz(cfg.imgsz, model.grid), Clock(device, cfg.repeats)
    with tempfile.TemporaryDirectory() as folder:
        measure(clock, model, paths, imgsz, Path(folder))
    LOGGER.info(table(clock.ms, len(paths), imgsz))
    return clock.ms


def measure(clock: Clock, model: Any, paths: Sequence[Path], imgsz: int, folder: Path) -> None:
    """Run every stage on what the one before gave."""
    images = clock.run("decode", imread, paths)
    placed = clock.run("letterbox", lambda im: letterbox(im, fit_canvas(im.shape[:2], imgsz, model.grid)), images)
    pixels = [torch.from_numpy(canvas).permute(2, 0, 1).contiguous()[None] for canvas, _ in placed]
    batches = clock.run("to tensor", lambda p: to_input(p, clock.device), pixels)
    model(batches[0])  # the first pass also prepares kernels
    decoded = clock.run("network", model, batches)
    sure = clock.run("NMS, conf 0.25", lambda d: non_max_suppression(d, 0.25, 0.45)[0].cpu(), decoded)
    every = clock.run(
        "NMS, conf 0.001", lambda d: non_max_suppression(d, 0.001, 0.6, multi_label=True)[0].cpu(), decoded
    )
    places = [place for _, place in placed]
    boxes = [torch.cat([p.to_image(b[:, :4]), b[:, 4:]], dim=1).numpy() for b, p in zip(sure, places, strict=True)]
    work = list(zip(images, boxes, strict=True))
    drawn = clock.run("draw", lambda pair: draw_boxes(*pair, model.names), work)
    clock.run("write picture", lambda k: imwrite(folder / f"{k}{paths[k].suffix}", drawn[k]), range(len(paths)))
    texts = lambda k: write_labels(folder / f"{k}.txt", label_text(boxes[k], images[k].shape[:2], True))  # noqa: E731
    clock.run("write labels", texts, range(len(paths)))
    found = [torch.cat([p.to_image(b[:, :4]), b[:, 4:]], dim=1) for b, p in zip(every, places, strict=True)]
    measure_metrics(clock, model.names, paths, found, [image.shape[:2] for image in images])


def measure_metrics(
    clock: Clock, names: dict[int, str], paths: Sequence[Path], found: Sequence[torch.Tensor], sizes: Sequence[tuple]
) -> None:
    """COCO's evaluation, and matching for P and R, of detections at conf 0.001 with the labels beside the pictures."""
    metrics = DetectionMetrics(names)
    for path, boxes, (h, w) in zip(paths, found, sizes, strict=True):
        rows = torch.from_numpy(read_labels(label_path(path), len(names))[0]).double()
        centre, half = rows[:, 1:3], rows[:, 3:] / 2
        corners = torch.cat([centre - half, centre + half], dim=1) * torch.tensor([w, h, w, h])
        metrics.update(boxes, torch.cat([rows[:, :1], corners], dim=1), (h, w))
    count = len(paths)
    for name, work in (("AP", metrics.average_precision), ("P and R", metrics.precision_recall)):
        clock.run(name, lambda _, work=work: work(), [0])
        clock.ms[name] /= count


def table(ms: dict[str, float], images: int, imgsz: int) -> str:
    """A line a stage: milliseconds, and its part of the network's time."""
    lines = [
        f"{images} pictures at {imgsz}, {torch.get_num_threads()} thread(s)",
        f"{'stage':<18}{'ms':>8}  of the network",
    ]
    for name, value in ms.items():
        part = value / ms["network"]
        over = "  over a third" if name != "network" and part > LIMIT else ""
        lines.append(f"{name:<18}{value:>8.2f}{part:>11.1%}{over}")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main, BenchConfig)
