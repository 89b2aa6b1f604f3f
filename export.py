"""Export a detector to other runtimes, and compare each file with PyTorch.

python export.py --weights runs/train/exp/weights/best.pt --include onnx openvino
"""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import AT_LEAST_0, AT_LEAST_1, ZERO_TO_ONE, ZERO_TO_ONE_OR_AUTO, Config, check_cli, flag, run_script

NAMES = ("torchscript", "onnx", "openvino", "torch_export", "coreml", "tflite", "ncnn", "executorch", "web")


@dataclass(frozen=True)
class ExportConfig(Config):
    """Export a detector to other runtimes, and compare each file with PyTorch.

    Example: --weights best.pt --include onnx openvino
    """

    weights: str = flag("", "checkpoint to export; empty: best.pt of the newest training run", group="model")
    include: tuple[str, ...] = flag(
        ("torchscript", "onnx"), f"formats: {', '.join(NAMES)}; all: every one but web", group="formats"
    )
    imgsz: int | tuple[int, ...] = flag(
        (),
        "input size in pixels: one number, or height and width; empty: that of the weights, else 640",
        "--img",
        "--img-size",
        bounds=AT_LEAST_1,
        group="input",
    )
    batch_size: int = flag(1, "images per batch", "--batch", bounds=AT_LEAST_1)
    dynamic: str = flag("none", "dynamic axes; size includes batch", choices=("none", "batch", "size"))
    opset: int = flag(18, "ONNX opset version", group="formats")
    simplify: bool = flag(True, "simplify the ONNX graph with onnxslim")
    half: bool = flag(False, "weights in float16")
    int8: bool = flag(False, "weights in int8, calibrated on --data and checked by its mAP")
    int8_ops: str = flag(
        "conv",
        "what is computed in int8: nothing, convolutions, or all but the decoding",
        choices=("weights", "conv", "all"),
    )
    nms: bool = flag(False, "include NMS in the graph (onnx, coreml)", group="NMS in the file")
    conf_thres: str | float = flag(
        0.25,
        "with --nms: confidence threshold: auto for the one stored in the weights, or a number in 0..1",
        bounds=ZERO_TO_ONE_OR_AUTO,
    )
    iou_thres: float = flag(0.45, "with --nms: NMS IoU threshold, 0..1", bounds=ZERO_TO_ONE)
    max_det: int = flag(300, "with --nms: number of detections in the output", bounds=AT_LEAST_1)
    data: str = flag(
        "",
        "data YAML: its train images calibrate int8, its val images are compared in every format",
        group="images that are compared",
    )
    images: tuple[str, ...] = flag(
        ("data/images",), "without --data: images and folders that are compared in every format"
    )
    threads: int = flag(
        0, "CPU threads while timing (0: runtime default)", bounds=AT_LEAST_0, shown="", group="hardware"
    )
    out: str = flag("", "output folder; empty: beside the weights", group="output")
    ort_web: str = flag("", "for web: folder of the package onnxruntime-web; empty: download it from the npm registry")


if __name__ == "__main__":
    check_cli(ExportConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
import tempfile
from dataclasses import field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.export.metadata import Metadata
from models.export.writers import FORMATS, Format, Job
from models.runtimes.load import load_backend
from models.runtimes.torch_backend import checkpoint_limits
from models.weights.checkpoint import build_model, load_checkpoint
from models.yolo import DetectionModel
from utils.backend import input_size
from utils.classes import class_order
from utils.data.data_yaml import read_data_yaml
from utils.data.listing import list_images
from utils.files import move, remove, size_of
from utils.images import Size, as_size
from utils.next_steps import after_export, step_lines
from utils.nms import NmsSettings
from utils.proof.images import comparison_images, evenly, interleaved, medians, quiet, read_images
from utils.proof.parity import LIMITS, compare
from utils.proof.table import Row, table
from utils.proof.web import page_title, write_page
from utils.runs import weights_or_newest
from utils.thresholds import Thresholds, confidence_threshold
from val import ValConfig
from val import main as validate

LOGGER = logging.getLogger(__name__)
# YOLOv5's other formats, which other tools make; none of these was tried here.
OTHER_TOOLS = {
    "engine": "TensorRT builds it on the GPU that is to run it: export onnx, then trtexec --onnx=best.onnx",
    "saved_model": "it needs TensorFlow: export onnx, then onnx2tf -i best.onnx; or use tflite",
    "pb": "it needs TensorFlow: export onnx, then onnx2tf -i best.onnx; or use tflite",
    "edgetpu": "Google's compiler makes it: tflite --int8 --int8-ops all, then edgetpu_compiler",
    "tfjs": "it needs TensorFlow: use web, which runs the ONNX file in the browser",
    "paddle": "it needs PaddlePaddle: export onnx, then x2paddle --framework=onnx --model=best.onnx",
}
CALIBRATION_IMAGES = 64  # for int8
INT8_LOSS = 0.010  # mAP50-95 that an int8 file may lose
SINGLE_IMAGE = ("ncnn", "coreml", "web")  # formats without batches
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportTask:
    """What all formats are made from.

    Attributes:
        model: fused, in eval mode. imgsz: (height, width) of the input.
        images: (n, 3, H, W), on which files are compared with the model. calibration: the same for int8, else None.
        stored: the confidence thresholds in the checkpoint, which every file carries.
        jobs: what was written so far, see `job`.
    """

    cfg: ExportConfig
    model: DetectionModel
    imgsz: tuple[int, int]
    images: Tensor
    calibration: Tensor | None
    stored: Thresholds | None = None
    jobs: list[Job] = field(default_factory=list)

    def reference(self, images: Tensor) -> Tensor:
        """Decoded rows of the model, run by PyTorch."""
        return self.model(images)[0]

    @cached_property
    def expected(self) -> Tensor:
        """Decoded rows of `images` by PyTorch."""
        return self.reference(self.images)

    @cached_property
    def map50_95(self) -> float:
        """mAP50-95 of the model, run by PyTorch, on the val split of --data."""
        return mean_ap(self.cfg, self.cfg.weights, self.imgsz)

    def job(self, name: str) -> Job:
        """What to write as the format `name`; equal jobs are one object, so that the network is captured once."""
        cfg = self.cfg
        raw = name == "tflite" and cfg.int8 and cfg.int8_ops == "all"
        meta = Metadata.of(
            self.model,
            self.imgsz,
            cfg.batch_size,
            dynamic=cfg.dynamic,
            form="raw" if raw else "nms" if cfg.nms else "decoded",
            precision=precision(cfg, name),
            thresholds=self.stored,
            **thresholds(cfg),
        )
        shared = next((job for job in self.jobs if job.meta == meta), None)
        if shared is None:
            shared = Job(
                self.model,
                meta,
                example=self.images[:1].repeat(cfg.batch_size, 1, 1, 1),
                settings=nms_settings(cfg),
                half=cfg.half,
                opset=cfg.opset,
                simplify=cfg.simplify,
                calibration=self.calibration,
                int8_ops=cfg.int8_ops if cfg.int8 else "",
            )
            self.jobs.append(shared)
        return shared


def nms_settings(cfg: ExportConfig) -> NmsSettings:
    """The settings of the NMS in the file, and of the comparison of final boxes."""
    return NmsSettings(float(cfg.conf_thres), cfg.iou_thres, cfg.max_det)  # a number, see prepare


def thresholds(cfg: ExportConfig) -> dict[str, Any]:
    """Settings of the NMS in the file, by name; empty without --nms."""
    nms = nms_settings(cfg)
    return {"conf_thres": nms.conf_thres, "iou_thres": nms.iou_thres, "max_det": nms.max_det} if cfg.nms else {}


def precision(cfg: ExportConfig, name: str) -> str:
    """Precision of the file, for its metadata: "float32", "float16", or "int8 " and what is computed in it."""
    if cfg.int8:
        return "int8 weights" if name == "coreml" else f"int8 {cfg.int8_ops}"  # Core ML only stores weights in int8
    return "float16" if cfg.half else "float32"


def name_suffix(cfg: ExportConfig) -> str:
    """What follows the stem in a file's name, so that variants can be side by side."""
    return ("-int8" if cfg.int8 else "-fp16" if cfg.half else "") + ("-nms" if cfg.nms else "")


def prepare(cfg: ExportConfig) -> ExportTask:
    """Load the model and the images.

    Raises:
        ValueError, FileNotFoundError: flags that contradict each other; no such weights, data or images.
    """
    check_config(cfg)
    checkpoint = load_checkpoint(cfg.weights)
    stored = checkpoint.thresholds
    cfg = replace(cfg, conf_thres=confidence_threshold(cfg.conf_thres, stored, Path(cfg.weights).name))
    model = build_model(checkpoint).fuse().requires_grad_(False)
    imgsz = input_size(cfg.imgsz, checkpoint_limits(Path(cfg.weights), checkpoint), model.grid)
    calibration = None
    if cfg.int8:
        data = read_data_yaml(cfg.data)
        class_order(model.names, data.names, cfg.weights, cfg.data, by_number=True)
        if cfg.int8_ops != "weights":
            calibration = read_images(
                evenly(list(list_images(data.split("train"))), CALIBRATION_IMAGES), imgsz, model.letterbox
            )
    images = read_images(comparison_images(cfg.data, cfg.images), imgsz, model.letterbox)
    return ExportTask(cfg, model, imgsz, images, calibration, stored)


def check_config(cfg: ExportConfig) -> None:
    """Raise a ValueError for flags that contradict each other."""
    unknown = [name for name in cfg.include if name not in (*NAMES, *OTHER_TOOLS, "all")]
    if unknown:
        raise ValueError(f"--include {unknown[0]}: expected all, or some of {', '.join(NAMES)}")
    if cfg.imgsz != ():
        as_size(cfg.imgsz)
    if cfg.int8 and not cfg.data:
        raise ValueError("--int8 needs --data: expected a data YAML, whose images calibrate it and measure its mAP")
    if cfg.int8 and cfg.half:
        raise ValueError("--int8 and --half exclude each other, expected one of them")
    if cfg.nms and cfg.dynamic != "none":
        raise ValueError("--nms with --dynamic: the NMS in the graph is written for one batch size, leave one out")


def formats(cfg: ExportConfig) -> dict[str, Format]:
    """Every format by name: FORMATS, and the web page, which is an ONNX file in a folder with its page."""

    def write_web(job: Job, path: Path) -> None:
        onnx = path.with_name("model.onnx")
        FORMATS["onnx"].write(job, onnx)
        write_page(path, onnx, job.meta.to_json(), cfg.ort_web, page_title(Path(cfg.weights)))

    return {**FORMATS, "web": Format("_web", write_web, frozenset({"int8"}))}


def unsupported_option(cfg: ExportConfig, name: str, form: Format) -> str:
    """Which option of `cfg` the format does not have, as an error message; empty if it has all."""
    asked = {"half": cfg.half, "int8": cfg.int8, "nms": cfg.nms, cfg.dynamic: cfg.dynamic != "none"}
    for option in (o for o, on in asked.items() if on and o not in form.options):
        flag_name = f"--dynamic {option}" if option in ("batch", "size") else f"--{option}"
        formats_with = ", ".join(n for n, f in formats(cfg).items() if option in f.options)
        return f"no {flag_name} for {name}, only for {formats_with}"
    if name in SINGLE_IMAGE and cfg.batch_size > 1:
        return f"{name} takes one image at a time: leave --batch-size out"
    return ""


def export_format(task: ExportTask, name: str) -> Row:
    """Write one format and compare it with PyTorch; a file that differs is renamed to *.failed."""
    cfg = task.cfg
    if name in OTHER_TOOLS:
        return Row(name, note=f"not made here: {OTHER_TOOLS[name]}", missing=True)
    form = formats(cfg)[name]
    problem = unsupported_option(cfg, name, form)
    if problem:
        return Row(name, note=problem, missing=True)
    folder = Path(cfg.out or Path(cfg.weights).parent)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (Path(cfg.weights).stem + name_suffix(cfg) + form.ending)
    failed, work = target.with_name(target.name + ".failed"), folder / f".{target.name}.part"
    remove(work)
    work.mkdir()
    written = work / target.name
    try:
        LOGGER.info(f"{name}: writing {target}")
        if name == "web" and not cfg.ort_web:
            LOGGER.info("web: downloading onnxruntime-web from the npm registry")
        with quiet():
            form.write(task.job(name), written)
        row = verify(task, name, written)
        row.path = failed if row.failed else target
        remove(failed)
        move(written, row.path)
        return row
    except ImportError as error:
        return Row(name, note=str(error), missing=True)
    except (ValueError, RuntimeError, FileNotFoundError) as error:  # of a converter or runtime; other formats follow
        LOGGER.debug("", exc_info=True)
        if written.exists():
            move(written, failed)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Row(name, note=lines[0], failed=True)
    finally:
        remove(work)


def verify(task: ExportTask, name: str, path: Path) -> Row:
    """The table row of a file: it is loaded in its runtime and compared with PyTorch, in its outputs and in time."""
    cfg = task.cfg
    row = Row(name, path, megabytes=size_of(path) / 1e6)
    if name == "coreml":
        row.note = "not run here, only on Apple devices"
        return row
    graph = path / "model.onnx" if name == "web" else path
    with quiet():
        backend = load_backend(graph, CPU, threads=cfg.threads)
    limits = LIMITS["float16" if cfg.half or cfg.int8 else "float32"]
    row.parity = compare(task.expected, backend(task.images), limits, nms_settings(cfg))
    times = interleaved([backend, task.reference], task.job(name).example)
    row.ms, base = medians(times)
    row.ratio = row.ms / base
    if cfg.int8:
        row.maps = task.map50_95, mean_ap(cfg, str(graph), task.imgsz)
        if row.maps[0] - row.maps[1] > INT8_LOSS:
            row.failed, row.note = True, f"lost more than {INT8_LOSS} mAP50-95"
    elif not row.parity.within(limits):
        row.failed, row.note = True, f"over the limit of {limits.box_px} px, {limits.score} score"
    elif cfg.nms and not row.parity.total:
        row.failed, row.note = (
            True,
            "no detection in any image, so nothing was compared: use other --images or a lower --conf-thres",
        )
    return row


def mean_ap(cfg: ExportConfig, weights: str, imgsz: int | Size) -> float:
    """mAP50-95 on the val split of --data, every input of `imgsz`; with --nms at the thresholds in the file."""
    with quiet(), tempfile.TemporaryDirectory() as project:
        settings = ValConfig(
            weights=weights,
            data=cfg.data,
            imgsz=imgsz,
            batch_size=8,
            device="cpu",
            workers=0,
            rect=False,
            threads=cfg.threads,
            plots=False,
            project=project,
            **thresholds(cfg),
        )
        return validate(settings).map50_95


@torch.inference_mode()
def main(cfg: ExportConfig) -> list[Row]:
    """Write the formats of --include and print the table; returns its rows.

    Raises:
        ValueError, FileNotFoundError: see prepare; a format named in --include that cannot be made; a file that differs
            from PyTorch.
    """
    task = prepare(replace(cfg, weights=str(weights_or_newest(cfg.weights))))
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    names = [name for name in NAMES if name in cfg.include or ("all" in cfg.include and name != "web")]
    rows = [export_format(task, name) for name in (*names, *(name for name in OTHER_TOOLS if name in cfg.include))]
    LOGGER.info("\n" + table(rows))
    written = {row.format: row.path for row in rows if row.path and not row.failed}
    if written:
        LOGGER.info("\n" + step_lines(after_export(written, cfg.data)))
    wrong = [row for row in rows if row.failed or (row.missing and row.format in cfg.include)]
    if wrong:
        raise ValueError("; ".join(f"{row.format}: {row.note}" for row in wrong))
    return rows


if __name__ == "__main__":
    run_script(main, ExportConfig)
