"""Detect objects in pictures, videos, webcams and streams, and write annotated copies.

python detect.py --weights runs/train/exp/weights/best.pt --source data/images
"""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

from models.backends import Backend, load_backend
from utils.boxes import xyxy2xywhn
from utils.config import flag, run_script
from utils.images import check_imgsz, fit_canvas, imwrite, letterbox, to_input
from utils.nms import non_max_suppression
from utils.plots import draw_boxes
from utils.runs import Run
from utils.sources import Frame, open_source
from utils.torch_utils import select_device

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class DetectConfig:
    """Detect objects in pictures, videos, webcams and streams."""

    weights: str = flag("", "the model: a .pt checkpoint")
    source: str = flag("data/images", "picture, video, folder, 'glob', list.txt, webcam index or stream URL")
    imgsz: int = flag(640, "long side of the model's input, pixels", "--img", "--img-size")
    conf_thres: float = flag(0.25, "least score of a box")
    iou_thres: float = flag(0.45, "boxes of a class that overlap more are merged")
    max_det: int = flag(1000, "most boxes a picture")
    device: str = flag("", "cpu, or a GPU's number; empty: a GPU if there is one")
    save_txt: bool = flag(False, "write labels/*.txt: class cx cy w h, 0..1")
    save_conf: bool = flag(False, "with --save-txt: a sixth column, the score")
    save_crop: bool = flag(False, "write what is in the boxes to crops/<class>/")
    nosave: bool = flag(False, "write no annotated pictures and videos")
    classes: tuple[int, ...] = flag((), "keep only these class indices")
    agnostic_nms: bool = flag(False, "boxes suppress those of other classes too")
    vid_stride: int = flag(1, "of a video, every how manieth frame")
    line_thickness: int = flag(0, "of drawn boxes, pixels; 0: by the picture's size")
    hide_labels: bool = flag(False, "draw no labels")
    hide_conf: bool = flag(False, "draw labels without scores")
    half: bool = flag(False, "half precision, GPU only")
    rect: bool | None = flag(None, "the input takes the picture's shape, as by default; --no-rect: a square")
    project: str = flag("runs/detect", "folder of the runs")
    name: str = flag("exp", "folder of this run, numbered if it is there")
    exist_ok: bool = flag(False, "write into an existing run")


@dataclass(frozen=True)
class Found:
    """boxes: (n, 6) xyxy in pixels of the picture, score, class. canvas: (height, width). times: ms, see Detector."""

    boxes: np.ndarray
    canvas: tuple[int, int]
    times: tuple[float, float, float]


class Detector:
    """From a picture to its boxes; keeps the config, the backend and the fitted input size."""

    steps = ("letterbox", "model", "NMS")

    def __init__(self, cfg: DetectConfig, backend: Backend, device: torch.device):
        wrong = [c for c in cfg.classes if not 0 <= c < backend.nc]
        if wrong:
            raise ValueError(f"--classes {wrong[0]}: the model knows 0..{backend.nc - 1}")
        self.cfg, self.backend, self.device = cfg, backend, device
        self.imgsz = check_imgsz(cfg.imgsz, backend.grid)

    def clock(self) -> float:
        """Milliseconds, after all that the GPU has to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() * 1000

    def __call__(self, image: np.ndarray) -> Found:
        """(H, W, 3) uint8 RGB -> its boxes, best first."""
        cfg, start = self.cfg, self.clock()
        h, w = image.shape[:2]
        square = cfg.rect is False
        canvas = (self.imgsz, self.imgsz) if square else fit_canvas((h, w), self.imgsz, self.backend.grid)
        padded, place = letterbox(image, canvas)
        pixels = torch.from_numpy(padded).permute(2, 0, 1).contiguous()
        batch = to_input(pixels[None], self.device, cfg.half)
        ready = self.clock()
        decoded = self.backend(batch)
        done = self.clock()
        kept = non_max_suppression(
            decoded,
            cfg.conf_thres,
            cfg.iou_thres,
            classes=cfg.classes or None,
            agnostic=cfg.agnostic_nms,
            max_det=cfg.max_det,
        )[0].cpu()
        boxes = torch.cat([place.to_image(kept[:, :4]), kept[:, 4:]], dim=1).numpy()
        boxes = boxes[(boxes[:, 2:4] > boxes[:, :2]).all(axis=1)]  # nothing is left of a box that lay on the border
        return Found(boxes, canvas, (ready - start, done - ready, self.clock() - done))


class Stems:
    """Gives each input a stem that no other output of the run has; labels of a video v are v_1, v_2, ..."""

    def __init__(self) -> None:
        self.given: dict[Path, str] = {}
        self.pictures: set[str] = set()
        self.videos: set[str] = set()

    def taken(self, stem: str, is_video: bool) -> bool:
        stem = stem.casefold()
        head = re.fullmatch(r"(.+)_\d+", stem)
        if stem in self.pictures | self.videos or (head and head[1] in self.videos):
            return True
        return is_video and any(re.fullmatch(re.escape(stem) + r"_\d+", other) for other in self.pictures)

    def __call__(self, path: Path, is_video: bool) -> str:
        """The stem of `path`, followed by -2, -3, ... if another input has it."""
        if path not in self.given:
            stem, copy = path.stem, 1
            while self.taken(stem, is_video):
                copy += 1
                stem = f"{path.stem}-{copy}"
            self.given[path] = stem
            (self.videos if is_video else self.pictures).add(stem.casefold())
        return self.given[path]


class VideoFile:
    """An .mp4 under way and its progress bar. `fps` is written as it is: 29.97 stays 29.97.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path | None, frame: Frame, vid_stride: int):
        info = frame.video
        assert info is not None
        self.source, self.writer = frame.path, None
        frames = -(-info.frames // vid_stride) or None
        if path is not None:
            fps = info.fps / vid_stride
            fps = round(fps, 3 if fps < 65 else 2)  # MPEG-4 holds a rate as a fraction of 16-bit numbers
            size = info.size[::-1]
            self.writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
            if not self.writer.isOpened():
                raise OSError(f"{path}: could not start an mp4 video of {size[0]}x{size[1]} at {fps} fps")
        self.bar = tqdm(total=frames, desc=str(frame.path), unit="frame")

    def close(self) -> None:
        self.bar.close()
        if self.writer is not None:
            self.writer.release()


class Output:
    """Writes into the run's folder what the config asks for; a context manager that finishes the open video."""

    def __init__(self, cfg: DetectConfig, folder: Path, names: dict[int, str]):
        self.cfg, self.folder, self.names = cfg, folder, names
        self.stems, self.crops = Stems(), set[Path]()
        self.video: VideoFile | None = None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        self.end_video()

    def end_video(self) -> None:
        if self.video:
            self.video.close()
            self.video = None

    def add(self, frame: Frame, found: Found) -> None:
        """Everything for one frame: annotated copy, labels, crops, and its line or step of the bar."""
        stem = self.stems(frame.path, frame.video is not None)
        label = f"{stem}_{frame.number}" if frame.video else stem
        if self.cfg.save_txt:
            self.write_labels(self.folder / "labels" / f"{label}.txt", frame, found.boxes)
        if self.cfg.save_crop:
            self.write_crops(label, frame.image, found.boxes)
        text = count_classes(found.boxes, self.names)
        if self.video and self.video.source != frame.path:
            self.end_video()
        if frame.video:
            self.write_frame(stem, frame, found.boxes, text)
            return
        if not self.cfg.nosave:
            imwrite(self.folder / f"{stem}{frame.path.suffix}", self.annotate(frame.image, found.boxes))
        h, w = found.canvas
        LOGGER.info(f"{frame.path}: {h}x{w} {text}, {sum(found.times):.1f} ms")

    def annotate(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        cfg = self.cfg
        return draw_boxes(image, boxes, self.names, cfg.line_thickness or None, cfg.hide_labels, cfg.hide_conf)

    def write_frame(self, stem: str, frame: Frame, boxes: np.ndarray, text: str) -> None:
        if self.video is None:
            path = None if self.cfg.nosave else self.folder / f"{stem}.mp4"
            self.video = VideoFile(path, frame, self.cfg.vid_stride)
        if self.video.writer is not None:
            self.video.writer.write(cv2.cvtColor(self.annotate(frame.image, boxes), cv2.COLOR_RGB2BGR))
        self.video.bar.set_postfix_str(text, refresh=False)
        self.video.bar.update()

    def write_labels(self, path: Path, frame: Frame, boxes: np.ndarray) -> None:
        """A line a box, in 0..1; a picture without boxes has no file."""
        if not len(boxes):
            path.unlink(missing_ok=True)  # of an earlier run, with --exist-ok
            return
        path.parent.mkdir(exist_ok=True)
        rows = np.column_stack([xyxy2xywhn(boxes[:, :4], frame.image.shape[:2]), boxes[:, 4]])
        width = 5 if self.cfg.save_conf else 4
        lines = [
            " ".join([str(int(label)), *(f"{value:.6f}" for value in row[:width])])
            for label, row in zip(boxes[:, 5], rows, strict=True)
        ]
        path.write_text("\n".join(lines) + "\n")

    def write_crops(self, stem: str, image: np.ndarray, boxes: np.ndarray) -> None:
        """Each box's part of the picture to crops/<class>/<stem>.jpg, <stem>_2.jpg, ..."""
        for box in boxes:
            index = int(box[5])
            folder = self.folder / "crops" / folder_name(self.names.get(index, str(index)))
            folder.mkdir(parents=True, exist_ok=True)
            path, n = folder / f"{stem}.jpg", 1
            while path in self.crops:
                n += 1
                path = folder / f"{stem}_{n}.jpg"
            self.crops.add(path)
            (x1, y1), (x2, y2) = np.floor(box[:2]).astype(int), np.ceil(box[2:4]).astype(int)
            imwrite(path, np.ascontiguousarray(image[y1:y2, x1:x2]))


def folder_name(text: str) -> str:
    """A class name as a folder's: without characters that file systems refuse, never a way up."""
    return re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", text).strip(" .") or "_"


def count_classes(boxes: np.ndarray, names: dict[int, str]) -> str:
    """'3 ball, 1 star' for (n, 6) boxes, in the order of class indices."""
    counts = sorted(Counter(boxes[:, 5].astype(int).tolist()).items())
    words = [f"{n} {names.get(index, str(index))}" for index, n in counts]
    return ", ".join(words) or "nothing found"


def check_config(cfg: DetectConfig) -> None:
    """Raise a ValueError for what no later step would name clearly."""
    if not cfg.weights:
        raise ValueError("--weights is missing, expected a checkpoint such as runs/train/exp/weights/best.pt")
    if cfg.max_det < 1:
        raise ValueError(f"--max-det {cfg.max_det}: expected at least 1")
    if cfg.line_thickness < 0:
        raise ValueError(f"--line-thickness {cfg.line_thickness}: expected pixels, or 0 for a fitting one")
    for option, value in (("--conf-thres", cfg.conf_thres), ("--iou-thres", cfg.iou_thres)):
        if not 0 <= value <= 1:
            raise ValueError(f"{option} {value}: expected 0..1")


def main(cfg: DetectConfig) -> Path:
    """Detect in every frame of the source; returns the run's folder.

    Raises:
        ValueError, FileNotFoundError: see check_config, load_backend and open_source.
    """
    check_config(cfg)
    frames = open_source(cfg.source, cfg.vid_stride)
    device = select_device(cfg.device)
    backend = load_backend(cfg.weights, device, cfg.half)
    detector = Detector(cfg, backend, device)
    folder = Run(cfg.project, cfg.name, cfg.exist_ok).dir
    total, count, boxes = np.zeros(len(Detector.steps)), 0, 0
    with Output(cfg, folder, backend.names) as output:
        for frame in frames:
            found = detector(frame.image)
            output.add(frame, found)
            total, count, boxes = total + found.times, count + 1, boxes + len(found.boxes)
    speeds = ", ".join(f"{ms:.1f} ms {step}" for ms, step in zip(total / max(count, 1), Detector.steps, strict=True))
    LOGGER.info(f"{boxes} boxes in {count} frames; per frame: {speeds}")
    LOGGER.info(f"results in {folder}")
    return folder


if __name__ == "__main__":
    run_script(main, DetectConfig)
