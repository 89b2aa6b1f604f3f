"""Size, speed, agreement with PyTorch and mAP of every export format: a table, a CSV and a chart.

python -m tools.benchmark --weights best.pt --data data/shapes.yaml --include onnx openvino --imgsz 320 640

All formats of a model and size are timed in turns, one image at a time, so that other load on the machine affects all
of them; compare ratios, not milliseconds. A model YAML in place of weights is built with random numbers: for its speed,
before it is trained. Formats whose packages need another environment are measured there by the same script, with
`--also .venv-litert/bin/python`; their ratios are to PyTorch in that environment.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_1, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class BenchmarkConfig(Config):
    """Compare export formats: size, speed, agreement with PyTorch, mAP.

    Example: --weights best.pt --data my.yaml --include onnx openvino
    """

    weights: tuple[str, ...] = flag(
        ("yolov5-mobilevit.yaml",), "checkpoints; model YAMLs: speed of random weights", group="what is measured"
    )
    include: tuple[str, ...] = flag(("torchscript", "onnx"), "formats of export.py, or all")
    imgsz: tuple[int, ...] = flag(
        (320, 640), "sizes of square inputs, pixels", "--img", "--img-size", bounds=AT_LEAST_1
    )
    data: str = flag(
        "", "data YAML: its val images are compared and give the mAP; empty: no mAP", group="images that are compared"
    )
    images: tuple[str, ...] = flag(("data/images",), "without --data: images and folders that are compared")
    int8: bool = flag(False, "also int8 with each --int8-ops of export.py; needs --data", group="what is measured")
    half: bool = flag(False, "also float16")
    threads: tuple[int, ...] = flag(
        (1, 2), "numbers of CPU threads, measured one after another", bounds=AT_LEAST_1, group="how it is measured"
    )
    rounds: int = flag(30, "timed calls of each format", bounds=AT_LEAST_1)
    also: tuple[str, ...] = flag((), "Python interpreters of other environments, for formats whose packages they have")
    project: str = flag("runs/benchmark", "folder of the runs", group="output")
    name: str = flag("exp", "name of this run's folder, numbered if it exists")


if __name__ == "__main__":
    check_cli(BenchmarkConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import csv
import logging
import statistics
import subprocess
from dataclasses import field, fields, replace
from typing import Any

import torch
from torch import nn

from export import CPU, ExportConfig, export_format, mean_ap, prepare
from models.export.int8 import INT8_OPS
from models.export.writers import FORMATS
from models.runtimes.load import load_backend
from models.weights.checkpoint import Checkpoint, save_checkpoint
from models.yolo import DetectionModel
from tools.benchmark_table import Cells, merge, write_tables
from utils.backend import Backend
from utils.files import REPO
from utils.proof.images import comparison_images, interleaved, quiet, read_images
from utils.proof.table import Row
from utils.runs import Run

LOGGER = logging.getLogger(__name__)


@dataclass
class Entry:
    """One format of one model at one size.

    Attributes:
        weights: file that is timed; empty: none runs here. row: of the export; None for PyTorch itself.
        ms: number of threads -> milliseconds of each call, ascending.
    """

    model: str
    imgsz: int
    format: str
    weights: str
    megabytes: float
    row: Row | None = None
    map50_95: float | None = None
    ms: dict[int, list[float]] = field(default_factory=dict)

    def cells(self, threads: tuple[int, ...], base: Entry) -> Cells:
        """The cells of the table by column; `base` is PyTorch's entry of the same model and size."""
        parity = self.row.parity if self.row else None
        cells = {
            "model": self.model,
            "imgsz": str(self.imgsz),
            "format": self.format,
            "size MB": f"{self.megabytes:.2f}" if self.megabytes else "-",
        }
        for count in threads:
            times = self.ms.get(count)
            median = statistics.median(times) if times else None
            cells[f"ms, {count} thr"] = "-" if median is None else f"{median:.1f}"
            cells[f"p95, {count} thr"] = f"{percentile(times, 0.95):.1f}" if times else "-"
            ratio = "-" if median is None else f"{median / statistics.median(base.ms[count]):.2f}"
            cells[f"of PyTorch, {count} thr"] = ratio
        cells |= {
            "max box px": f"{parity.box_px:.2g}" if parity else "-",
            "max score": f"{parity.score:.2g}" if parity else "-",
            "same boxes": f"{parity.same}/{parity.total}" if parity else "-",
            "mAP50-95": "-" if self.map50_95 is None else f"{self.map50_95:.3f}",
        }
        cells["ok"] = (self.row.note or "ok") if self.row else ""
        return cells


def percentile(ascending: list[float], part: float) -> float:
    """The value below which `part` (0..1) of the sorted values lie."""
    return ascending[min(int(part * len(ascending)), len(ascending) - 1)]


def model_names(weights: tuple[str, ...]) -> list[str]:
    """Names for the table: the file's stem, with the run's folder before it where several stems are the same."""
    stems = [Path(w).stem for w in weights]
    runs = [
        path.parent.parent.name if path.parent.name == "weights" else path.parent.name for path in map(Path, weights)
    ]
    names = [s if stems.count(s) == 1 else f"{run}-{s}" for s, run in zip(stems, runs, strict=True)]
    return [n if names.count(n) == 1 else f"{n}-{i + 1}" for i, n in enumerate(names)]


def checkpoint_of(weights: str, folder: Path, cfg: BenchmarkConfig) -> str:
    """`weights`; for a model YAML a checkpoint in `folder` of seeded random weights, batch norms fitted to images."""
    if Path(weights).suffix not in (".yaml", ".yml"):
        return weights
    torch.manual_seed(0)
    model = DetectionModel(weights).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # statistics become the mean of all batches
    with torch.no_grad():
        model(read_images(comparison_images(cfg.data, cfg.images), (320, 320)))
    path = folder / f"{Path(weights).stem}.pt"
    save_checkpoint(path, Checkpoint.of(model.eval()))
    return str(path)


def variants(cfg: BenchmarkConfig) -> list[tuple[str, dict[str, Any]]]:
    """(suffix of a format's name in the table, flags of export.py)."""
    found: list[tuple[str, dict[str, Any]]] = [("", {})]
    if cfg.half:
        found.append((" float16", {"half": True}))
    if cfg.int8:
        found += [(f" int8 {ops}", {"int8": True, "int8_ops": ops}) for ops in INT8_OPS]
    return found


def has_variant(name: str, flags: dict[str, Any]) -> bool:
    """Whether the format has the variant; Core ML only stores weights in int8, whatever `int8_ops` is."""
    if name == "coreml" and flags.get("int8_ops", "weights") != "weights":
        return False
    return not flags or bool(FORMATS[name].options & flags.keys())


def export_all(cfg: BenchmarkConfig, model: str, weights: str, imgsz: int, folder: Path) -> list[Entry]:
    """Every format and variant of one model at one size, PyTorch first; what cannot be made has a note."""
    entries = [Entry(model, imgsz, "pytorch", weights, Path(weights).stat().st_size / 1e6)]
    names = list(FORMATS) if "all" in cfg.include else [name for name in FORMATS if name in cfg.include]
    for suffix, flags in variants(cfg):
        config = ExportConfig(
            weights=weights,
            include=tuple(names),
            imgsz=(imgsz,),
            data=cfg.data,
            images=cfg.images,
            out=str(folder / f"{model}-{imgsz}{suffix.replace(' ', '-')}"),
            threads=1,
        )
        task = prepare(replace(config, **flags))
        for name in names:
            if not has_variant(name, flags):
                continue
            row = export_format(task, name)
            runs = str(row.path) if row.path and row.parity else ""
            entry = Entry(model, imgsz, name + suffix, runs, row.megabytes, row)
            entry.map50_95 = row.maps[1] if row.maps else None
            entries.append(entry)
    return entries


def time_all(entries: list[Entry], imgsz: int, threads: int, rounds: int) -> None:
    """Fill `ms[threads]` of every entry that runs here; the formats are called in turns."""
    images = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(threads)
    running = [entry for entry in entries if entry.weights]
    with quiet():
        backends = [load(entry.weights, threads) for entry in running]
    for entry, times in zip(running, interleaved(backends, images, rounds, warm=2), strict=True):
        entry.ms[threads] = times


def load(weights: str, threads: int) -> Backend:
    """The backend of a file, also of one that export.py renamed to *.failed because it differs from PyTorch."""
    path = Path(weights)
    if path.suffix != ".failed":
        return load_backend(path, CPU, threads=threads)
    plain = path.with_suffix("")
    path.rename(plain)
    try:
        return load_backend(plain, CPU, threads=threads)
    finally:
        plain.rename(path)


@torch.inference_mode()
def main(cfg: BenchmarkConfig) -> list[Entry]:
    """Measure, print the table, write benchmark.md, .csv and .png.

    Raises:
        ValueError, FileNotFoundError: --int8 without --data; see export.prepare; an interpreter of --also failed.
    """
    if cfg.int8 and not cfg.data:
        raise ValueError("--int8 needs --data: expected a data YAML, whose images calibrate it and measure its mAP")
    folder = Run(cfg.project, cfg.name).dir
    entries: list[Entry] = []
    paths = tuple(checkpoint_of(weights, folder, cfg) for weights in cfg.weights)
    for path, model in zip(paths, model_names(cfg.weights), strict=True):
        for imgsz in cfg.imgsz:
            group = export_all(cfg, model, path, imgsz, folder)
            for threads in cfg.threads:
                time_all(group, imgsz, threads, cfg.rounds)
            if cfg.data:
                measure_map(group, cfg, path, imgsz)
            entries += group
            write_tables(rows_of(entries, cfg.threads), cfg.threads[0], folder)  # an interrupted run keeps these
    rows = rows_of(entries, cfg.threads)
    for number, python in enumerate(cfg.also):
        lacking = tuple(name for name in FORMATS if any(e.format == name and e.row and e.row.missing for e in entries))
        if lacking:
            other = replace(cfg, weights=paths, include=lacking, also=(), project=str(folder), name=f"also{number}")
            merge(rows, run_elsewhere(python, other))
            write_tables(rows, cfg.threads[0], folder)
    LOGGER.info("\n" + (folder / "benchmark.md").read_text(encoding="utf-8") + f"results in {folder}")
    return entries


def measure_map(entries: list[Entry], cfg: BenchmarkConfig, weights: str, imgsz: int) -> None:
    """Fill the missing mAP of entries that run here; `weights` is the checkpoint that all were made from."""
    base = ExportConfig(weights=weights, data=cfg.data, threads=cfg.threads[0])
    for entry in entries:
        if entry.map50_95 is None and entry.weights and not entry.weights.endswith(".failed"):
            LOGGER.info(f"{entry.model} at {imgsz}: mAP of {entry.format}")
            entry.map50_95 = mean_ap(base, entry.weights, imgsz)


def rows_of(entries: list[Entry], threads: tuple[int, ...]) -> list[Cells]:
    """The cells of every entry."""
    bases = {(e.model, e.imgsz): e for e in entries if e.format == "pytorch"}
    return [entry.cells(threads, bases[entry.model, entry.imgsz]) for entry in entries]


def run_elsewhere(python: str, cfg: BenchmarkConfig) -> list[Cells]:
    """The rows of this script with the flags `cfg`, run by the interpreter `python`.

    In a clone the interpreter runs the clone; the installed package must be installed for it, too.

    Raises:
        ValueError: it failed; its last line is the reason.
    """
    package = __package__ or "tools"  # "tools" in a clone, "yolov5_mobilevit.tools" in the installed package
    command = [python, "-m", f"{package}.benchmark", *command_line(cfg)]
    LOGGER.info(f"{', '.join(cfg.include)}: measured by {python}")
    result = subprocess.run(command, cwd=REPO if package == "tools" else None, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or [f"exit code {result.returncode}"]
        raise ValueError(f"--also {python}: {lines[-1]}")
    with (Path(cfg.project) / cfg.name / "benchmark.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def command_line(cfg: BenchmarkConfig) -> list[str]:
    """The words of the command line for `cfg`; existing files as absolute paths."""
    words = []
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        values = [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
        if f.name in ("weights", "images", "data", "project"):
            values = [str(Path(v).resolve()) if Path(v).exists() else v for v in values]
        if value is True:
            words.append("--" + f.name)
        elif value not in (False, "", ()):
            words += ["--" + f.name, *values]
    return words


if __name__ == "__main__":
    run_script(main, BenchmarkConfig)
