"""Export a detector to other runtimes, and prove each file against PyTorch.

python export.py --weights runs/train/exp/weights/best.pt --include onnx openvino
"""

from __future__ import annotations

import logging
import tempfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.export.graph import NmsSettings
from models.export.inspection import faults
from models.export.int8 import INT8_OPS
from models.export.metadata import Metadata
from models.export.writers import FORMATS, OPSET, Format, Job
from models.runtimes.load import load_backend
from models.weights.checkpoint import build_model, load_checkpoint
from models.yolo import DetectionModel
from utils.config import flag, run_script
from utils.data.dataset import list_images, read_data_yaml
from utils.files import move, remove, size_of
from utils.images import check_imgsz
from utils.proof.images import evenly, interleaved, medians, proof_pictures, quiet, read_pictures
from utils.proof.parity import LIMITS, compare
from utils.proof.table import Row, table
from utils.proof.web import write_page
from val import ValConfig
from val import main as validate

LOGGER = logging.getLogger(__name__)
NAMES = (*FORMATS, "web")
ELSEWHERE = {
    "engine": "TensorRT builds it on the GPU that is to run it: export onnx, then trtexec --onnx=best.onnx",
    "saved_model": "it needs TensorFlow: export onnx, then onnx2tf -i best.onnx; or take tflite",
    "pb": "it needs TensorFlow: export onnx, then onnx2tf -i best.onnx; or take tflite",
    "edgetpu": "Google's compiler makes it: tflite --int8 --int8-ops all, then edgetpu_compiler",
    "tfjs": "it needs TensorFlow: take web, which runs the ONNX file in the browser",
    "paddle": "it needs PaddlePaddle: export onnx, then x2paddle --framework=onnx --model=best.onnx",
}  # YOLOv5's other formats: what would help, none of it tried here
CALIBRATION = 64  # pictures for int8
INT8_LOSS = 0.010  # mAP50-95 that an int8 file may lose
ONE_AT_A_TIME = ("ncnn", "coreml", "web")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class ExportConfig:
    """Export a detector to other runtimes, and prove each file against PyTorch."""

    weights: str = flag("", "the checkpoint to export, required")
    include: tuple[str, ...] = flag(("torchscript", "onnx"), f"formats: {', '.join(NAMES)}; all: every one but web")
    imgsz: tuple[int, ...] = flag((640,), "side of the input in pixels, or height and width", "--img", "--img-size")
    batch_size: int = flag(1, "images the file takes at once", "--batch")
    dynamic: str = flag("none", "what may change afterwards; size includes batch", choices=("none", "batch", "size"))
    opset: int = flag(OPSET, "of ONNX")
    simplify: bool = flag(True, "slim the ONNX graph by onnxslim")
    half: bool = flag(False, "weights in float16")
    int8: bool = flag(False, "weights in int8, calibrated on --data, judged by its mAP")
    int8_ops: str = flag("conv", "computed in int8: nothing, convolutions, everything but the decode", choices=INT8_OPS)
    nms: bool = flag(False, "put the NMS into the graph (onnx, coreml)")
    conf_thres: float = flag(0.25, "with --nms: least score of a box")
    iou_thres: float = flag(0.45, "with --nms: boxes of a class that overlap more are merged")
    max_det: int = flag(300, "with --nms: rows that come out")
    data: str = flag("", "data YAML: its training pictures calibrate int8, its val pictures prove every format")
    images: tuple[str, ...] = flag(("data/images",), "without --data: pictures and folders that prove every format")
    threads: int = flag(0, "of the CPU while timing; 0: as the runtime likes")
    out: str = flag("", "folder for the files; empty: beside the weights")
    ort_web: str = flag("", "for web: folder of the package onnxruntime-web; empty: fetch it from the npm registry")


@dataclass(frozen=True)
class Subject:
    """The model, the pictures (n, 3, H, W) that prove its files, and those for calibration."""

    cfg: ExportConfig
    model: DetectionModel
    imgsz: tuple[int, int]
    pictures: Tensor
    calibration: Tensor | None
    jobs: list[Job] = field(default_factory=list)

    def reference(self, images: Tensor) -> Tensor:
        """The model as PyTorch runs it: decoded rows."""
        return self.model(images)[0]

    @cached_property
    def expected(self) -> Tensor:
        """PyTorch's rows of the pictures."""
        return self.reference(self.pictures)

    @cached_property
    def map50_95(self) -> float:
        """PyTorch's mAP on the val split of --data."""
        return mean_ap(self.cfg, self.cfg.weights, self.imgsz[0])

    def job(self, name: str) -> Job:
        """What to write; formats that want the same share one, so that the network is captured once for them."""
        cfg = self.cfg
        options: dict[str, Any] = {
            "dynamic": cfg.dynamic,
            "form": "nms" if cfg.nms else "decoded",
            "precision": precision(cfg, name),
        }
        if name == "tflite" and cfg.int8 and cfg.int8_ops == "all":
            options["form"] = "raw"
        if cfg.nms:
            options["conf_thres"] = cfg.conf_thres
        meta = Metadata.of(self.model, self.imgsz, cfg.batch_size, **options)
        shared = next((job for job in self.jobs if job.meta == meta), None)
        if shared is None:
            shared = Job(
                self.model,
                meta,
                self.pictures[:1].repeat(cfg.batch_size, 1, 1, 1),
                NmsSettings(cfg.conf_thres, cfg.iou_thres, cfg.max_det),
                cfg.half,
                cfg.opset,
                cfg.simplify,
                self.calibration,
                cfg.int8_ops if cfg.int8 else "",
            )
            self.jobs.append(shared)
        return shared


def precision(cfg: ExportConfig, name: str) -> str:
    """Of the file: "float32", "float16", or "int8 " and what is computed in it; Core ML only stores it."""
    if cfg.int8:
        return "int8 weights" if name == "coreml" else f"int8 {cfg.int8_ops}"
    return "float16" if cfg.half else "float32"


def tag(cfg: ExportConfig) -> str:
    """What follows the stem of a file's name, so that variants lie side by side."""
    return ("-int8" if cfg.int8 else "-fp16" if cfg.half else "") + ("-nms" if cfg.nms else "")


def prepare(cfg: ExportConfig) -> Subject:
    """Load all that every format needs; see check_config for the errors."""
    check_config(cfg)
    model = build_model(load_checkpoint(cfg.weights)).fuse().requires_grad_(False)
    sides = cfg.imgsz * 2 if len(cfg.imgsz) == 1 else cfg.imgsz
    imgsz = check_imgsz(sides[0], model.grid), check_imgsz(sides[1], model.grid)
    calibration = None
    if cfg.int8:
        if imgsz[0] != imgsz[1]:
            raise ValueError(f"--int8 at {imgsz[0]}x{imgsz[1]}: its mAP is judged on squares, expected one --imgsz")
        data = read_data_yaml(cfg.data)
        if data.nc != model.nc:
            raise ValueError(f"{cfg.weights} has {model.nc} classes, but {cfg.data} has {data.nc}; expected as many")
        if cfg.int8_ops != "weights":
            calibration = read_pictures(evenly(list(list_images(data.split("train"))), CALIBRATION), imgsz)
    return Subject(cfg, model, imgsz, read_pictures(proof_pictures(cfg.data, cfg.images), imgsz), calibration)


def check_config(cfg: ExportConfig) -> None:
    """Raise a ValueError for flags that do not go together."""
    unknown = [name for name in cfg.include if name not in (*NAMES, *ELSEWHERE, "all")]
    if unknown:
        raise ValueError(f"--include {unknown[0]}: expected all, or some of {', '.join(NAMES)}")
    if not cfg.weights:
        raise ValueError("--weights is missing, expected a checkpoint such as runs/train/exp/weights/best.pt")
    if len(cfg.imgsz) > 2:
        raise ValueError(f"--imgsz {' '.join(map(str, cfg.imgsz))}: expected one number, or height and width")
    if cfg.int8 and not cfg.data:
        raise ValueError("--int8 needs --data: a data YAML whose pictures calibrate and judge it")
    if cfg.int8 and cfg.half:
        raise ValueError("--int8 and --half: expected one of them")
    if cfg.batch_size < 1 or cfg.max_det < 1 or cfg.threads < 0:
        raise ValueError("--batch-size and --max-det must be at least 1, --threads at least 0")
    if cfg.nms and cfg.dynamic != "none":
        raise ValueError("--nms with --dynamic: the NMS in the graph is written for one batch size, leave one out")
    for option, value in (("--conf-thres", cfg.conf_thres), ("--iou-thres", cfg.iou_thres)):
        if not 0 <= value <= 1:
            raise ValueError(f"{option} {value}: expected 0..1")


def formats(cfg: ExportConfig) -> dict[str, Format]:
    """Every format; the page's is known here only: it is an ONNX file and what shows it."""

    def write_web(job: Job, path: Path) -> None:
        onnx = path.with_name("model.onnx")
        FORMATS["onnx"].write(job, onnx)
        write_page(path, onnx, job.meta.to_json(), cfg.ort_web)

    return {**FORMATS, "web": Format("_web", write_web, frozenset({"int8"}))}


def refusal(cfg: ExportConfig, name: str, form: Format) -> str:
    """Why the format cannot be made with these options; empty if it can."""
    asked = {"half": cfg.half, "int8": cfg.int8, "nms": cfg.nms, cfg.dynamic: cfg.dynamic != "none"}
    for option in (o for o, on in asked.items() if on and o not in form.takes):
        flag_name = f"--dynamic {option}" if option in ("batch", "size") else f"--{option}"
        able = ", ".join(n for n, f in formats(cfg).items() if option in f.takes)
        return f"no {flag_name} for {name}, only for {able}"
    if name in ONE_AT_A_TIME and cfg.batch_size > 1:
        return f"{name} takes one picture at a time: leave --batch-size out"
    return ""


def export(subject: Subject, name: str) -> Row:
    """Write one format and prove it; the file is renamed to *.failed where the proof fails."""
    cfg = subject.cfg
    if name in ELSEWHERE:
        return Row(name, note=f"not made here: {ELSEWHERE[name]}", missing=True)
    form = formats(cfg)[name]
    why = refusal(cfg, name, form)
    if why:
        return Row(name, note=why, missing=True)
    folder = Path(cfg.out or Path(cfg.weights).parent)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (Path(cfg.weights).stem + tag(cfg) + form.ending)
    failed, work = target.with_name(target.name + ".failed"), folder / f".{target.name}.part"
    remove(work)
    work.mkdir()
    made = work / target.name
    try:
        LOGGER.info(f"{name}: writing {target}")
        if name == "web" and not cfg.ort_web:
            LOGGER.info("web: fetching onnxruntime-web from the npm registry")
        with quiet():
            form.write(subject.job(name), made)
        row = prove(subject, name, made)
        row.path = failed if row.failed else target
        remove(failed)
        move(made, row.path)
        return row
    except ImportError as error:
        return Row(name, note=str(error), missing=True)
    except (ValueError, RuntimeError, FileNotFoundError) as error:  # of a converter or runtime: the others go on
        LOGGER.debug("", exc_info=True)
        if made.exists():
            move(made, failed)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Row(name, note=lines[0], failed=True)
    finally:
        remove(work)


def prove(subject: Subject, name: str, path: Path) -> Row:
    """Load the file in its runtime and compare it with PyTorch; what cannot run here is checked for its operators."""
    cfg = subject.cfg
    row = Row(name, path, megabytes=size_of(path) / 1e6)
    graph = path / "model.onnx" if name == "web" else path
    row.note = faults(graph)
    row.failed = bool(row.note)
    if name == "coreml" or row.failed:
        row.note = row.note or "operators and ranks checked; runs on Apple devices only"
        return row
    with quiet():
        backend = load_backend(graph, CPU, threads=cfg.threads)
    limits = LIMITS["float16" if cfg.half or cfg.int8 else "float32"]
    got = backend(subject.pictures)
    row.parity = compare(subject.expected, got, limits, cfg.conf_thres, cfg.iou_thres, cfg.max_det)
    times = interleaved([backend, subject.reference], subject.job(name).example)
    row.ms, base = medians(times)
    row.ratio = row.ms / base
    if cfg.int8:
        row.maps = subject.map50_95, mean_ap(cfg, str(graph), subject.imgsz[0])
        if row.maps[0] - row.maps[1] > INT8_LOSS:
            row.failed, row.note = True, f"lost more than {INT8_LOSS} mAP50-95"
    elif not row.parity.within(limits):
        row.failed, row.note = True, f"over the limit of {limits.box_px} px, {limits.score} score"
    elif cfg.nms and not row.parity.all:
        row.failed, row.note = True, "no detection in any picture: nothing was compared; use --images or --conf-thres"
    return row


def mean_ap(cfg: ExportConfig, weights: str, imgsz: int) -> float:
    """mAP50-95 on the val split of --data, on square canvases."""
    options: dict[str, Any] = {"device": "cpu", "rect": False, "workers": 0, "plots": False, "batch_size": 8}
    with quiet(), tempfile.TemporaryDirectory() as project:
        options |= {"imgsz": imgsz, "threads": cfg.threads, "project": project}
        return validate(ValConfig(weights=weights, data=cfg.data, **options)).map50_95


@torch.inference_mode()
def main(cfg: ExportConfig) -> list[Row]:
    """Write the formats asked for and print the table; returns its rows.

    Raises:
        ValueError: a format asked for by name that cannot be made, or any whose file differs from PyTorch.
    """
    subject = prepare(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    names = [name for name in NAMES if name in cfg.include or ("all" in cfg.include and name != "web")]
    rows = [export(subject, name) for name in (*names, *(name for name in ELSEWHERE if name in cfg.include))]
    LOGGER.info("\n" + table(rows))
    wrong = [row for row in rows if row.failed or (row.missing and row.format in cfg.include)]
    if wrong:
        raise ValueError("; ".join(f"{row.format}: {row.note}" for row in wrong))
    return rows


if __name__ == "__main__":
    run_script(main, ExportConfig)
