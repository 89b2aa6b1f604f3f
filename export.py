"""Export a detector to other runtimes, and prove each file against PyTorch.

python export.py --weights runs/train/exp/weights/best.pt --include onnx openvino
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.backends import load_backend
from models.checkpoint import build_model, load_checkpoint
from models.exporters import FORMATS, OPSET, Format, Job
from models.graph import NmsSettings
from models.inspection import faults
from models.metadata import Metadata
from models.quantize import INT8_OPS
from models.yolo import DetectionModel
from utils.config import REPO, flag, run_script
from utils.dataset import list_images, read_data_yaml
from utils.images import IMAGE_SUFFIXES, check_imgsz, imread, letterbox, to_input
from utils.parity import LIMITS, compare
from utils.proof_table import Row, table
from utils.web import write_page
from val import ValConfig
from val import main as validate

LOGGER = logging.getLogger(__name__)
NAMES = (*FORMATS, "web")
PROOFS = 8  # pictures compared
CALIBRATION = 64  # pictures for int8
ROUNDS = 11  # of timing, file and PyTorch in turns
INT8_LOSS = 0.010  # mAP50-95 that an int8 file may lose
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
    images: str = flag("data/images", "without --data: a picture or folder that proves every format")
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

    @property
    def reference(self) -> Callable[[Tensor], Tensor]:
        """The model as PyTorch runs it: decoded rows."""
        return lambda images: self.model(images)[0]

    def job(self, name: str) -> Job:
        cfg = self.cfg
        options: dict[str, Any] = {
            "dynamic": cfg.dynamic,
            "form": "nms" if cfg.nms else "decoded",
            "precision": precision(cfg),
        }
        if name == "tflite" and cfg.int8 and cfg.int8_ops == "all":
            options["form"] = "raw"
        if cfg.nms:
            options["conf_thres"] = cfg.conf_thres
        meta = Metadata.of(self.model, self.imgsz, cfg.batch_size, **options)
        return Job(
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


def precision(cfg: ExportConfig) -> str:
    return f"int8 {cfg.int8_ops}" if cfg.int8 else "float16" if cfg.half else "float32"


def tag(cfg: ExportConfig) -> str:
    """What follows the stem of a file's name, so that variants lie side by side."""
    return ("-int8" if cfg.int8 else "-fp16" if cfg.half else "") + ("-nms" if cfg.nms else "")


def read_pictures(paths: Sequence[str | Path], imgsz: tuple[int, int]) -> Tensor:
    """(n, 3, H, W) in 0..1, letterboxed."""
    canvases = [letterbox(imread(path), imgsz)[0] for path in paths]
    return to_input(torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).contiguous(), CPU)


def proof_paths(cfg: ExportConfig) -> list[str | Path]:
    """The pictures that prove: evenly from the val split of --data, else from --images.

    Raises:
        FileNotFoundError, ValueError: there are none.
    """
    if cfg.data:
        found: list[str | Path] = list(list_images(read_data_yaml(cfg.data).split("val")))
    else:
        place = next((p for p in (Path(cfg.images), REPO / cfg.images) if p.exists()), None)
        if place is None:
            raise FileNotFoundError(f"--images {cfg.images}: no such file or folder")
        found = sorted(place.iterdir()) if place.is_dir() else [place]
        found = [path for path in found if Path(path).suffix.lower() in IMAGE_SUFFIXES]
    if not found:
        raise ValueError(f"{cfg.data or cfg.images}: no pictures in it, expected some to compare the files on")
    return evenly(found, PROOFS)


def evenly(items: list, most: int) -> list:
    """At most `most` of `items`, equally far apart."""
    return [items[i * len(items) // min(most, len(items))] for i in range(min(most, len(items)))]


def prepare(cfg: ExportConfig) -> Subject:
    """Load all that every format needs; see check_config for the errors."""
    check_config(cfg)
    model = build_model(load_checkpoint(cfg.weights)).fuse().requires_grad_(False)
    sides = cfg.imgsz * 2 if len(cfg.imgsz) == 1 else cfg.imgsz
    imgsz = check_imgsz(sides[0], model.grid), check_imgsz(sides[1], model.grid)
    calibration = None
    if cfg.int8:
        data = read_data_yaml(cfg.data)
        if data.nc != model.nc:
            raise ValueError(f"{cfg.weights} has {model.nc} classes, but {cfg.data} has {data.nc}; expected as many")
        if cfg.int8_ops != "weights":
            calibration = read_pictures(evenly(list(list_images(data.split("train"))), CALIBRATION), imgsz)
    return Subject(cfg, model, imgsz, read_pictures(proof_paths(cfg), imgsz), calibration)


def check_config(cfg: ExportConfig) -> None:
    """Raise a ValueError for flags that do not go together."""
    unknown = [name for name in cfg.include if name not in (*NAMES, "all")]
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


def refusal(cfg: ExportConfig, name: str, form: Format) -> str:
    """Why the format cannot be made with these options; empty if it can."""
    asked = {"half": cfg.half, "int8": cfg.int8, "nms": cfg.nms, cfg.dynamic: cfg.dynamic != "none"}
    for option in (o for o, on in asked.items() if on and o not in form.takes):
        flag_name = f"--dynamic {option}" if option in ("batch", "size") else f"--{option}"
        able = ", ".join(n for n, f in FORMATS.items() if option in f.takes)
        return f"no {flag_name} for {name}, only for {able}"
    if name == "ncnn" and cfg.batch_size > 1:
        return "ncnn takes one picture at a time: leave --batch-size out"
    return ""


def export_web(subject: Subject) -> Row:
    """The demo page, with an ONNX file that was proved first."""
    cfg = subject.cfg
    folder = Path(cfg.out or Path(cfg.weights).parent)
    target = folder / f"{Path(cfg.weights).stem}{tag(cfg)}_web"
    work = folder / f".{target.name}.part"
    remove(work)
    work.mkdir(parents=True)
    try:
        LOGGER.info(
            f"web: writing {target}" + ("" if cfg.ort_web else ", fetching onnxruntime-web from the npm registry")
        )
        job = subject.job("onnx")
        with quiet():
            FORMATS["onnx"].write(job, work / "model.onnx")
        row = replace(prove(subject, "onnx", work / "model.onnx"), format="web")
        if not row.failed:
            write_page(work / "page", work / "model.onnx", job.meta.to_json(), cfg.ort_web)
            remove(target)
            os.replace(work / "page", target)
            row.path, row.megabytes = target, size_of(target) / 1e6
        return row
    finally:
        remove(work)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the converters' own chatter: warnings about their inner life, progress lines."""
    level = logging.root.manager.disable
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)


def export(subject: Subject, name: str) -> Row:
    """Write one format and prove it; the file is renamed to *.failed where the proof fails."""
    cfg, form = subject.cfg, FORMATS[name]
    why = refusal(cfg, name, form)
    if why:
        return Row(name, note=why, missing=True)
    folder = Path(cfg.out or Path(cfg.weights).parent)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (Path(cfg.weights).stem + tag(cfg) + form.ending)
    work = folder / f".{target.name}.part"
    remove(work)
    work.mkdir()
    try:
        LOGGER.info(f"{name}: writing {target}")
        job = subject.job(name)
        with quiet():
            form.write(job, work / target.name)
        row = prove(subject, name, work / target.name)
        final = target.with_name(target.name + ".failed") if row.failed else target
        remove(final)
        os.replace(work / target.name, final)
        row.path = final
        return row
    except ImportError as error:
        return Row(name, note=str(error), missing=True)
    except (ValueError, RuntimeError, NotImplementedError) as error:  # of a converter or runtime: the others go on
        LOGGER.debug("", exc_info=True)
        kept = target.with_name(target.name + ".failed")
        if (work / target.name).exists():
            remove(kept)
            os.replace(work / target.name, kept)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return Row(name, note=lines[0], failed=True)
    finally:
        remove(work)


def remove(path: Path) -> None:
    """Delete a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def prove(subject: Subject, name: str, path: Path) -> Row:
    """Load the file in its runtime and compare it with PyTorch; what cannot run here is checked for its operators."""
    cfg = subject.cfg
    row = Row(name, path, megabytes=size_of(path) / 1e6)
    row.note = faults(path)
    row.failed = bool(row.note)
    if name == "coreml" or row.failed:
        row.note = row.note or "operators and ranks checked; runs on Apple devices only"
        return row
    with quiet():
        backend = load_backend(path, CPU, threads=cfg.threads)
    limits = LIMITS["float32" if not (cfg.half or cfg.int8) else "float16"]
    expected, got = subject.reference(subject.pictures), backend(subject.pictures)
    row.parity = compare(expected, got, limits, cfg.conf_thres, cfg.iou_thres, cfg.max_det)
    row.ms, base = interleaved([backend, subject.reference], subject.pictures[: cfg.batch_size])
    row.ratio = row.ms / base
    if cfg.int8:
        row.maps = mean_ap(cfg, cfg.weights, subject.imgsz), mean_ap(cfg, str(path), subject.imgsz)
        if row.maps[0] - row.maps[1] > INT8_LOSS:
            row.failed, row.note = True, f"lost more than {INT8_LOSS} mAP50-95"
    elif not row.parity.within(limits):
        row.failed, row.note = True, f"over the limit of {limits.box_px} px, {limits.score} score"
    elif cfg.nms and not row.parity.all:
        row.failed, row.note = True, "no detection in any picture: nothing was compared; use --images or --conf-thres"
    return row


def size_of(path: Path) -> int:
    """Bytes of a file or of all in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def interleaved(models: Sequence[Callable[[Tensor], Tensor]], images: Tensor) -> list[float]:
    """Median milliseconds of each on the same input, measured in turns so that a busy machine is busy for all."""
    times: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for model, spent in zip(models, times, strict=True):
            start = time.perf_counter()
            model(images)
            spent.append(1000 * (time.perf_counter() - start))
    return [statistics.median(spent[1:]) for spent in times]  # the first one warms up


def mean_ap(cfg: ExportConfig, weights: str, imgsz: tuple[int, int]) -> float:
    """mAP50-95 on the val split of --data, on square canvases."""
    project = Path(cfg.out or Path(cfg.weights).parent) / ".val"
    try:
        with quiet():
            metrics = validate(
                ValConfig(
                    data=cfg.data,
                    weights=weights,
                    imgsz=max(imgsz),
                    device="cpu",
                    rect=False,
                    workers=0,
                    threads=cfg.threads,
                    plots=False,
                    batch_size=8,
                    project=str(project),
                )
            )
    finally:
        remove(project)
    return metrics.map50_95


@torch.inference_mode()
def main(cfg: ExportConfig) -> list[Row]:
    """Write the formats asked for and print the table; returns its rows.

    Raises:
        ValueError: a format asked for by name that cannot be made, or any whose file differs from PyTorch.
    """
    subject = prepare(cfg)
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    names = [name for name in FORMATS if name in cfg.include or "all" in cfg.include]
    rows = [export(subject, name) for name in names]
    if "web" in cfg.include:
        rows.append(export_web(subject))
    LOGGER.info("\n" + table(rows))
    wrong = [row for row in rows if row.failed or (row.missing and row.format in cfg.include)]
    if wrong:
        raise ValueError("; ".join(f"{row.format}: {row.note}" for row in wrong))
    return rows


if __name__ == "__main__":
    run_script(main, ExportConfig)
