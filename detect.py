"""Detect objects in pictures, videos, webcams, streams and on the screen, and write annotated copies.

python detect.py --weights runs/train/exp/weights/best.pt --source data/images
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from models.runtimes.ensemble import load_model
from models.runtimes.load import TorchBackend
from models.visualize import look_inside
from utils.config import flag, run_script
from utils.data.annotations import voc_xml
from utils.device import select_device
from utils.drawing import draw_boxes
from utils.evaluate.curves import save_attention, save_features
from utils.images import imwrite
from utils.predict.frames import Broken, Frame
from utils.predict.predictor import Found, NmsOptions, Predictor, class_indices
from utils.predict.sources import open_source
from utils.predict.writers import (
    Crops,
    CsvFile,
    JsonFile,
    Stems,
    VideoFile,
    coco_rows,
    image_id,
    label_text,
    write_labels,
)
from utils.runs import Run

LOGGER = logging.getLogger(__name__)
STEPS = ("letterbox", "model", "NMS")
CSV_HEADER = ("Image Name", "Prediction", "Confidence", "x1", "y1", "x2", "y2")


@dataclass(frozen=True)
class DetectConfig:
    """Detect objects in pictures, videos, webcams, streams and on the screen."""

    weights: str | tuple[str, ...] = flag("", "the model; several: an ensemble")
    source: str = flag(
        "data/images",
        "picture, video, folder, 'glob', list.txt, webcam index, stream URL, list.streams, "
        "'screen [monitor] [left top width height]', or - for paths from standard input",
    )
    imgsz: int = flag(640, "long side of the model's input, pixels", "--img", "--img-size")
    conf_thres: float = flag(0.25, "least score of a box")
    iou_thres: float = flag(0.45, "boxes of a class that overlap more are merged")
    max_det: int = flag(1000, "most boxes a picture")
    device: str = flag("", "cpu, or a GPU's number; empty: a GPU if there is one")
    view_img: bool = flag(False, "show the frames in a window; q ends")
    save_txt: str = flag(
        "",
        "write labels/: yolo: .txt, class cx cy w h in 0..1; voc: Pascal VOC .xml",
        choices=("yolo", "voc"),
        bare="yolo",
    )
    save_csv: bool = flag(False, "write predictions.csv: a line a box")
    save_json: bool = flag(False, "write predictions.json, COCO's result format")
    save_conf: bool = flag(False, "with --save-txt yolo: a sixth column, the score")
    save_crop: bool = flag(False, "write what is in the boxes to crops/<class>/")
    nosave: bool = flag(False, "write no annotated pictures and videos")
    classes: tuple[str, ...] = flag((), "keep only these classes, indices or names")
    agnostic_nms: bool = flag(False, "boxes suppress those of other classes too")
    augment: bool = flag(False, "test-time augmentation: three views of each picture")
    visualize: bool = flag(False, "write the model's maps, and what its MobileViT blocks look at, to visualize/")
    tile: int = flag(0, "also cut larger pictures into overlapping tiles of this many pixels; 0: do not")
    vid_stride: int = flag(1, "of a video or stream, every how manieth frame")
    stream_timeout: float = flag(60.0, "seconds without a picture after which a stream is given up; 0: never")
    line_thickness: int = flag(0, "of drawn boxes, pixels; 0: by the picture's size")
    hide_labels: bool = flag(False, "draw no labels")
    hide_conf: bool = flag(False, "draw labels without scores")
    half: bool = flag(False, "half precision, GPU only")
    threads: int = flag(0, "of the CPU for the model; 0: as its runtime likes")
    compile: bool = flag(False, "run .pt weights through torch.compile; the first picture of a size takes a minute")
    rect: bool | None = flag(None, "the input takes the picture's shape, as by default; --no-rect: a square")
    project: str = flag("runs/detect", "folder of the runs")
    name: str = flag("exp", "folder of this run, numbered if it is there")
    exist_ok: bool = flag(False, "write into an existing run")


class Output:
    """Writes into the run's folder what the config asks for; a context manager that finishes open files."""

    def __init__(self, cfg: DetectConfig, folder: Path, names: dict[int, str]):
        self.cfg, self.folder, self.names = cfg, folder, names
        self.stems, self.crops = Stems(), Crops(folder / "crops", names)
        self.videos: dict[Path, VideoFile] = {}
        self.csv = CsvFile(folder / "predictions.csv", CSV_HEADER) if cfg.save_csv else None
        self.json = JsonFile(folder / "predictions.json") if cfg.save_json else None

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *error: object) -> None:
        with ExitStack() as stack:  # all of them are closed, even if one cannot be
            for file in (*self.videos.values(), self.csv, self.json):
                if file:
                    stack.callback(file.close)

    def label(self, frame: Frame) -> str:
        """The stem of all files of a frame."""
        stem = self.stems(frame.path, frame.video is not None)
        return f"{stem}_{frame.number}" if frame.video else stem

    def add(self, frame: Frame, found: Found) -> np.ndarray | None:
        """Everything for one frame: annotated copy, labels, rows, crops, and its line or step of the bar.

        Returns:
            The annotated picture, where one was drawn.
        """
        if frame.path.parent.resolve() == self.folder.resolve():
            raise ValueError(f"{self.folder} holds the source {frame.path.name}: results would overwrite it")
        self.add_rows(frame, found.boxes)
        drawn = None
        if not self.cfg.nosave or self.cfg.view_img:
            cfg = self.cfg
            thickness = cfg.line_thickness or None
            drawn = draw_boxes(frame.image, found.boxes, self.names, thickness, cfg.hide_labels, cfg.hide_conf)
        text = count_classes(found.boxes, self.names)
        self.end_videos(frame)
        if frame.video:
            self.add_to_video(frame, drawn, text)
            return drawn
        if not self.cfg.nosave and drawn is not None:
            imwrite(self.folder / f"{self.label(frame)}{frame.path.suffix}", drawn)
        h, w = found.canvas
        LOGGER.info(f"{frame.path}: {h}x{w} {text}, {sum(found.times):.1f} ms")
        return drawn

    def add_rows(self, frame: Frame, boxes: np.ndarray) -> None:
        """Labels, crops, CSV and JSON."""
        cfg, label, size = self.cfg, self.label(frame), frame.image.shape[:2]
        if cfg.save_txt == "voc":
            names = [self.names.get(int(c), str(int(c))) for c in boxes[:, 5]]
            text = voc_xml(frame.path.name, size, names, boxes[:, :4]) if len(boxes) else ""
            write_labels(self.folder / "labels" / f"{label}.xml", text)
        elif cfg.save_txt:
            write_labels(self.folder / "labels" / f"{label}.txt", label_text(boxes, size, cfg.save_conf))
        if cfg.save_crop:
            self.crops.add(label, frame.image, boxes)
        if self.csv:
            rows = boxes.tolist()
            self.csv.add(
                [
                    frame.path.name if not frame.video else label,
                    self.names.get(int(r[5]), str(int(r[5]))),
                    f"{r[4]:.4f}",
                ]
                + [f"{v:.1f}" for v in r[:4]]
                for r in rows
            )
        if self.json:
            self.json.add(coco_rows(image_id(label), boxes))

    def end_videos(self, frame: Frame) -> None:
        """Finish video files before another input starts; live ones go on side by side."""
        for path, video in list(self.videos.items()):
            if path != frame.path and not video.live:
                self.videos.pop(path).close()

    def add_to_video(self, frame: Frame, drawn: np.ndarray | None, text: str) -> None:
        if frame.path not in self.videos:
            stem = self.stems(frame.path, True)
            path = None if self.cfg.nosave else self.folder / f"{stem}.mp4"
            self.videos[frame.path] = VideoFile(path, frame, self.cfg.vid_stride)
        self.videos[frame.path].add(frame.image if drawn is None else drawn, text)


def count_classes(boxes: np.ndarray, names: dict[int, str]) -> str:
    """'3 ball, 1 star' for (n, 6) boxes, in the order of class indices."""
    counts = sorted(Counter(boxes[:, 5].astype(int).tolist()).items())
    words = [f"{n} {names.get(index, str(index))}" for index, n in counts]
    return ", ".join(words) or "nothing found"


def visualize(predictor: Predictor, image: np.ndarray, boxes: np.ndarray, folder: Path) -> None:
    """Write the maps of every row, and the attention from the best box (or the middle), to `folder`."""
    h, w = image.shape[:2]
    batch, places = predictor.input([image], predictor.canvas((h, w)))
    middle = (boxes[0, :2] + boxes[0, 2:4]) / 2 if len(boxes) else np.array([w, h]) / 2
    x, y = places[0].to_canvas(np.tile(middle, 2)[None])[0, :2] / np.array(batch.shape[:1:-1])
    inside = look_inside(predictor.backend.model, batch, (float(x), float(y)))
    canvas = (batch[0].permute(1, 2, 0).float().cpu().numpy() * 255).round().astype(np.uint8)
    save_features({name: maps.numpy() for name, maps in inside.features.items()}, folder)
    save_attention(
        {name: maps.numpy() for name, maps in inside.attention.items()}, canvas, (float(x), float(y)), folder
    )


def open_window() -> Callable[[Path, np.ndarray], bool]:
    """A function that shows a picture under a name and tells whether q was pressed.

    Raises:
        ImportError: OpenCV has no windows.
    """
    try:
        cv2.namedWindow("probe")
        cv2.destroyWindow("probe")
    except cv2.error as error:
        raise ImportError(
            "--view-img needs a display and an OpenCV with windows: "
            "pip uninstall opencv-python-headless, pip install opencv-python"
        ) from error

    def show(path: Path, image: np.ndarray) -> bool:
        cv2.imshow(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(1) & 0xFF == ord("q")

    return show


def check_config(cfg: DetectConfig) -> None:
    """Raise a ValueError for what no later step would name clearly."""
    if cfg.save_txt not in ("", "yolo", "voc"):
        raise ValueError(f"--save-txt {cfg.save_txt}: expected yolo or voc")
    if cfg.max_det < 1:
        raise ValueError(f"--max-det {cfg.max_det}: expected at least 1")
    if cfg.line_thickness < 0:
        raise ValueError(f"--line-thickness {cfg.line_thickness}: expected pixels, or 0 for a fitting one")
    for option, value in (("--conf-thres", cfg.conf_thres), ("--iou-thres", cfg.iou_thres)):
        if not 0 <= value <= 1:
            raise ValueError(f"{option} {value}: expected 0..1")


def build_predictor(cfg: DetectConfig) -> Predictor:
    """The model and the way to its boxes.

    Raises:
        ValueError, FileNotFoundError: see load_model; --visualize with weights whose inside is not open.
    """
    device = select_device(cfg.device)
    backend: Any = load_model(cfg.weights, device, cfg.half, cfg.augment, cfg.threads, cfg.compile)
    if cfg.visualize and not isinstance(backend, TorchBackend):
        raise ValueError("--visualize: expected one .pt checkpoint, without --augment")
    classes = class_indices(cfg.classes, backend.names)
    nms = NmsOptions(cfg.conf_thres, cfg.iou_thres, cfg.max_det, classes, cfg.agnostic_nms)
    return Predictor(backend, device, cfg.imgsz, nms, cfg.half, cfg.rect is not False, cfg.tile)


def main(cfg: DetectConfig) -> Path:
    """Detect in every frame of the source; returns the run's folder.

    Raises:
        ValueError, FileNotFoundError: see check_config, build_predictor and open_source; some inputs could not be
            read, after all the others are done.
    """
    check_config(cfg)
    frames = open_source(cfg.source, cfg.vid_stride, cfg.stream_timeout)
    show = open_window() if cfg.view_img else None
    predictor = build_predictor(cfg)
    folder = Run(cfg.project, cfg.name, cfg.exist_ok).dir
    total, count, boxes, broken = np.zeros(len(STEPS)), 0, 0, list[Path]()
    with closing(frames), Output(cfg, folder, predictor.backend.names) as output:
        for frame in frames:
            if isinstance(frame, Broken):
                LOGGER.warning(frame.reason)
                broken.append(frame.path)
                continue
            found = predictor([frame.image])[0]
            drawn = output.add(frame, found)
            if cfg.visualize:
                visualize(predictor, frame.image, found.boxes, folder / "visualize" / output.label(frame))
            total, count, boxes = total + found.times, count + 1, boxes + len(found.boxes)
            if show and drawn is not None and show(frame.path, drawn):
                break
    speeds = ", ".join(f"{ms:.1f} ms {step}" for ms, step in zip(total / max(count, 1), STEPS, strict=True))
    LOGGER.info(f"{boxes} boxes in {count} frames; per frame: {speeds}")
    LOGGER.info(f"results in {folder}")
    if broken:
        raise ValueError(f"{len(broken)} input(s) could not be read: {', '.join(map(str, broken))}")
    return folder


if __name__ == "__main__":
    run_script(main, DetectConfig)
