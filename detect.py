"""Detect objects in images, videos, webcams, streams and on the screen, and write annotated copies.

python detect.py --weights runs/train/exp/weights/best.pt --source data/images
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import AT_LEAST_0, AT_LEAST_1, ZERO_TO_ONE, ZERO_TO_ONE_OR_AUTO, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class DetectConfig(Config):
    """Detect objects in images, videos, webcams, streams and on the screen.

    Example: --weights best.pt --source images/ --save-txt
    """

    weights: str | tuple[str, ...] = flag(
        "", "model file; several: an ensemble; empty: best.pt of the newest training run", group="model"
    )
    source: str = flag(
        "data/images",
        "image, video, folder, 'glob', list.txt, webcam number, stream URL, list.streams, "
        "'screen [monitor] [left top width height]', or - for paths from standard input",
        group="source",
    )
    imgsz: int | tuple[int, ...] = flag(
        (),
        "size of the model's input, pixels: long side, or height and width; empty: that of the weights, else 640",
        "--img",
        "--img-size",
        bounds=AT_LEAST_1,
        group="model",
    )
    conf_thres: str | float = flag(
        0.25,
        "confidence threshold: auto for the one stored in the weights, or a number in 0..1",
        bounds=ZERO_TO_ONE_OR_AUTO,
        group="detections",
    )
    iou_thres: float = flag(
        0.45, "NMS IoU threshold, 0..1: of boxes that overlap more the best is kept", bounds=ZERO_TO_ONE
    )
    max_det: int = flag(1000, "maximum detections per image", bounds=AT_LEAST_1)
    device: str = flag("", "cpu, mps or a GPU number; empty: the first GPU, else the CPU", group="hardware")
    view_img: bool = flag(False, "show results in a window; q ends", group="output")
    save_txt: str = flag(
        "",
        "write labels/: yolo: .txt, class cx cy w h in 0..1; voc: Pascal VOC .xml",
        choices=("yolo", "voc"),
        bare="yolo",
    )
    save_csv: bool = flag(False, "write predictions.csv, one line per box")
    save_json: bool = flag(False, "write predictions.json, COCO's result format")
    save_conf: bool = flag(False, "with --save-txt yolo: the confidence as a sixth column")
    save_crop: bool = flag(False, "write the image inside each box to crops/<class>/")
    annotate: str = flag(
        "",
        "write annotations/: the boxes for an annotation tool, to be corrected there (docs/annotate.md)",
        choices=("", "yolo", "coco", "voc", "cvat", "labelstudio"),
    )
    annotate_root: str = flag(
        "", "with --annotate labelstudio: its LOCAL_FILES_DOCUMENT_ROOT; empty: the folder above that of the images"
    )
    nosave: bool = flag(False, "do not write annotated images and videos")
    classes: tuple[str, ...] = flag((), "detect only these classes, indices or names", group="detections")
    agnostic_nms: bool = flag(False, "class-agnostic NMS: boxes suppress those of other classes too")
    augment: bool = flag(False, "test-time augmentation: three views of each image", group="model")
    visualize: bool = flag(
        False, "write feature maps, and the attention of MobileViT blocks, to visualize/", group="output"
    )
    tile: int = flag(
        0, "also cut larger images into overlapping tiles of this many pixels; 0: off", bounds=AT_LEAST_0, group="model"
    )
    vid_stride: int = flag(1, "process every Nth frame of a video or stream", bounds=AT_LEAST_1, group="source")
    stream_timeout: float = flag(
        60.0, "seconds without a frame after which a stream is closed; 0: never", bounds=AT_LEAST_0
    )
    track: bool = flag(
        False,
        "follow objects from frame to frame: identities in all outputs, and tracks/ in MOT Challenge's format",
        group="tracking",
    )
    count_line: tuple[str, ...] = flag(
        (),
        "track and count what crosses these lines, each x1,y1,x2,y2: pixels, or fractions of the image if all are 0..1",
    )
    count_zone: tuple[str, ...] = flag(
        (), "track and count what enters and leaves these polygons, each x1,y1,x2,y2,x3,y3,...: pixels or fractions"
    )
    line_thickness: int = flag(
        0, "line width of boxes, pixels; 0: chosen by image size", bounds=AT_LEAST_0, group="output"
    )
    hide_labels: bool = flag(False, "hide labels")
    hide_conf: bool = flag(False, "hide confidences")
    half: bool = flag(False, "half precision (fp16), GPU only", group="hardware")
    threads: int = flag(0, "CPU threads (0: runtime default)", bounds=AT_LEAST_0, shown="")
    compile: bool = flag(False, "run .pt weights through torch.compile; the first image of each size takes a minute")
    rect: bool | None = flag(None, "input in the image's shape, the default; --no-rect: square", group="model")
    project: str = flag("runs/detect", "folder of the runs", group="output")
    name: str = flag("exp", "name of this run's folder, numbered if it exists")
    exist_ok: bool = flag(False, "write into an existing run folder")

    @property
    def confidence(self) -> float:
        """The confidence threshold; "auto" is replaced by its number once the weights are loaded."""
        return float(self.conf_thres)


if __name__ == "__main__":
    check_cli(DetectConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
import os
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import fields, replace
from pathlib import Path

import cv2
import numpy as np
import torch

from models.runtimes.load import load_model
from models.runtimes.torch_backend import TorchBackend
from models.visualize import record_activations
from utils.annotate.proposals import PreAnnotations
from utils.backend import Backend
from utils.commands import command, relative
from utils.device import select_device
from utils.next_steps import step_lines, threshold
from utils.nms import NmsSettings
from utils.predict.activations import save_attention, save_features
from utils.predict.frames import Broken, Frame
from utils.predict.outputs import Output, OutputSettings
from utils.predict.pipeline import WRITING, Later, detected, shared_threads
from utils.predict.predictor import Prediction, Predictor, class_indices
from utils.predict.progress import InputProgress
from utils.predict.sources import VIDEO_SUFFIXES, open_source, source_files
from utils.predict.streams import without_secrets
from utils.predict.summary import RunSummary, written
from utils.predict.threads import ending_at_once
from utils.predict.writers import count_classes
from utils.runs import OutputFiles, Run, weights_or_newest
from utils.text import clean, counted, first
from utils.thresholds import confidence_threshold
from utils.track.bytetrack import TrackSettings
from utils.track.counting import parse_areas
from utils.track.tracking import Tracking

LOGGER = logging.getLogger(__name__)
LOWEST = 0.001  # a confidence threshold below which boxes are noise, that of val.py


def main(cfg: DetectConfig) -> Path:
    """Detect in every frame of the source; returns the run's folder.

    Raises:
        ValueError, FileNotFoundError: see load_network, build_predictor, open_source, weights_or_newest, parse_areas,
            confidence_threshold; some inputs could not be read, after all others are done.
    """
    areas = parse_areas("line", cfg.count_line) + parse_areas("zone", cfg.count_zone)
    frames = open_source(cfg.source, cfg.vid_stride, cfg.stream_timeout)
    cfg = replace(cfg, weights=weights_or_newest(cfg.weights), track=cfg.track or bool(areas))
    show = open_window() if cfg.view_img else None
    workers, threads = division(cfg)
    backend = load_network(replace(cfg, threads=threads))
    stored = backend.limits.thresholds
    cfg = replace(cfg, conf_thres=confidence_threshold(cfg.conf_thres, stored, backend.limits.file))
    predictor = build_predictor(cfg, backend)
    folder = Run(cfg.project, cfg.name, cfg.exist_ok).dir
    files = replaced_files(cfg, folder)
    settings = OutputSettings(**{f.name: getattr(cfg, f.name) for f in fields(OutputSettings)})
    summary, broken = RunSummary(), list[Path]()
    progress = InputProgress(len(source_files(cfg.source)))
    names = predictor.backend.names
    annotations = PreAnnotations(cfg.annotate, files, names, cfg.annotate_root)
    tracking = Tracking(TrackSettings(cfg.confidence), areas, files, names) if cfg.track else None
    overlay = tracking.overlay if tracking else None
    output = Output(settings, files, names, progress, overlay)
    ended = False  # by the window

    def report(item: Broken) -> None:
        progress.clear()
        LOGGER.warning(clean(item.reason, 400))
        broken.append(item.path)
        progress.number(item.path)

    def finish(frame: Frame, found: Prediction) -> None:
        nonlocal ended
        found = tracking(frame, found) if tracking else found
        drawn = output.add(frame, found)
        annotations.add(frame.path, frame.image, found.boxes, output.stem(frame), frame.video is not None)
        if cfg.visualize:
            visualize(predictor, frame.image, found, files, output.stem(frame))
        summary.add(frame, found)
        progress.step(frame, count_classes(found.boxes, names))
        ended = show is not None and drawn is not None and show(frame.path, drawn)

    at_once = show is not None or cfg.visualize  # windows belong to this thread, and maps to the network of one frame
    results = detected(frames, predictor, workers, threads)
    with closing(results), annotations, tracking or nullcontext(), output, Later(0 if at_once else WRITING) as later:
        for item in results:
            if isinstance(item, Broken):
                later(report, item)
            else:
                later(finish, *item)
            if ended:
                break
    for line in [*summary.lines(names, cfg.agnostic_nms), *(tracking.lines() if tracking else ())]:
        LOGGER.info(line)
    LOGGER.info(f"results in {folder}")
    for what, path in written(files):
        LOGGER.info(f"  {what}: {path}")
    LOGGER.info(step_lines(next_commands(cfg, summary.classes.total() > 0)))
    if broken:
        raise ValueError(f"{counted(len(broken), 'input')} could not be read: {first(broken)}")
    return folder


def division(cfg: DetectConfig) -> tuple[int, int]:
    """(frames that the network works on at once, CPU threads for each; 0: the runtime's default).

    Several at once only for files, of runtimes that take several calls, on the CPU.
    """
    files, weights = source_files(cfg.source), [cfg.weights] if isinstance(cfg.weights, str) else cfg.weights
    several = len(files) > 1 or any(path.suffix.lower() in VIDEO_SUFFIXES for path in files)
    serial = cfg.compile or cfg.visualize or any(Path(path).suffix in (".tflite", ".pte") for path in weights)
    if not several or serial or select_device(cfg.device).type != "cpu":
        return 1, cfg.threads
    workers, threads = shared_threads(cfg.threads or torch.get_num_threads())
    return (workers, threads) if workers > 1 else (1, cfg.threads)


def next_commands(cfg: DetectConfig, found: bool = True) -> list[tuple[str, str]]:
    """What to do next, and the command for it, with the weights and the source of this run; `found`: any boxes."""
    weights = [cfg.weights] if isinstance(cfg.weights, str) else list(cfg.weights)
    words, rows = ["--weights", *map(relative, weights)], list[tuple[str, str]]()
    if not found and cfg.source != "-" and cfg.confidence > LOWEST:
        lower = ["--source", without_secrets(cfg.source), "--conf-thres", threshold(max(cfg.confidence / 10, LOWEST))]
        rows.append(("nothing was found; look with a lower confidence threshold", command("detect", *words, *lower)))
    elif found and not (cfg.save_txt or cfg.save_csv or cfg.save_json or cfg.save_crop) and cfg.source != "-":
        source = ["--source", without_secrets(cfg.source), "--save-txt", "--save-csv", "--save-crop"]
        rows.append(("write labels, a table and crops too", command("detect", *words, *source)))
    if cfg.annotate and Path(cfg.source).exists():
        back = ["EXPORT", "--images", without_secrets(cfg.source), "--out", "my-set"]
        rows.append(("read the corrected labels", command("tools.import_labels", *back)))
    rows.append(("measure it on a data set", command("val", *words)))
    if len(weights) == 1 and weights[0].endswith(".pt"):
        rows.append(("export it for other runtimes", command("export", *words, "--include", "onnx")))
    return rows


def replaced_files(cfg: DetectConfig, folder: Path) -> OutputFiles:
    """The files of the run's folder, those of an earlier run deleted, so that the results of two are never mixed.

    Raises:
        ValueError: one of them is a source, or may be.
    """
    files = OutputFiles(folder)
    if files.known:
        if cfg.source == "-":
            raise ValueError(f"--source - with the results of an earlier run in {folder}: choose another --name")
        files.remove_earlier(source_files(cfg.source))
    return files


def load_network(cfg: DetectConfig) -> Backend:
    """The model of the weights; see load_model for errors."""
    return load_model(cfg.weights, select_device(cfg.device), cfg.half, cfg.augment, cfg.threads, cfg.compile)


def build_predictor(cfg: DetectConfig, backend: Backend) -> Predictor:
    """How the model is run.

    Raises:
        ValueError: --visualize with an exported file; --classes that it does not have.
    """
    if cfg.visualize and not isinstance(backend, TorchBackend):
        raise ValueError("--visualize: expected one .pt checkpoint, without --augment")
    classes = class_indices(cfg.classes, backend.names) or None
    score = TrackSettings(cfg.confidence).low if cfg.track else cfg.confidence
    nms = NmsSettings(score, cfg.iou_thres, cfg.max_det, classes, cfg.agnostic_nms)
    return Predictor(backend, select_device(cfg.device), cfg.imgsz, nms, cfg.half, cfg.rect is not False, cfg.tile)


def visualize(predictor: Predictor, image: np.ndarray, found: Prediction, files: OutputFiles, stem: str) -> None:
    """Write feature maps of every row, and the attention from the best box (or the middle), to visualize/<stem>/.

    Raises:
        FileExistsError: that folder has files of somebody else.
    """
    folder = files.folder / "visualize" / stem
    for path in folder.glob("*"):
        files.check(path)
    backend = predictor.backend
    assert isinstance(backend, TorchBackend)  # checked by build_predictor
    h, w = image.shape[:2]
    batch, places = predictor.input([image], predictor.canvas((h, w)))
    best = found.boxes.xyxy[0] if len(found.boxes) else np.array([0, 0, w, h])
    middle = (best[:2] + best[2:]) / 2
    x, y = places[0].to_canvas(np.tile(middle, 2)[None])[0, :2] / np.array(batch.shape[:1:-1])
    inside = record_activations(backend.model, batch, (float(x), float(y)))
    canvas = (batch[0].permute(1, 2, 0).float().cpu().numpy() * 255).round().astype(np.uint8)
    save_features({name: maps.numpy() for name, maps in inside.features.items()}, folder)
    attention = {name: maps.numpy() for name, maps in inside.attention.items()}
    save_attention(attention, canvas, (float(x), float(y)), folder)
    for path in sorted(folder.iterdir()):
        files.add(path)


def open_window() -> Callable[[Path, np.ndarray], bool]:
    """A function that shows an image under a name and returns whether q was pressed.

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
        cv2.imshow(os.fsencode(path).decode(errors="replace"), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return cv2.waitKey(1) & 0xFF == ord("q")

    return show


if __name__ == "__main__":
    with ending_at_once():
        run_script(main, DetectConfig)
