"""Size, speed, agreement with PyTorch and mAP of every format, for models and sizes: a table, a CSV and a picture.

python -m tools.benchmark --weights best.pt --data data/shapes.yaml --include onnx openvino --imgsz 320 640

All formats of a model and size are timed in turns within one run, one picture at a time, so that a busy machine is busy
for all of them; compare ratios, not milliseconds. A model YAML in place of weights is built with random numbers: for
its speed, before it is trained. Formats whose packages need an environment of their own are measured there, by the same
script, with `--also .venv-litert/bin/python`: their ratio is to PyTorch in that environment.
"""

from __future__ import annotations

import csv
import logging
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import export
from export import CPU, ExportConfig, mean_ap
from models.export.int8 import INT8_OPS
from models.export.writers import FORMATS
from models.runtimes.load import Backend, load_backend
from models.weights.checkpoint import model_state, save_checkpoint
from models.yolo import DetectionModel
from tools.benchmark_table import Cells, merge, report
from utils.config import REPO, flag, run_script
from utils.proof.images import interleaved, proof_pictures, quiet, read_pictures
from utils.proof.table import Row
from utils.runs import Run

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Compare formats: size, speed, agreement with PyTorch, mAP."""

    weights: tuple[str, ...] = flag(("yolov5-mobilevit.yaml",), "checkpoints, or model YAMLs for speed alone")
    include: tuple[str, ...] = flag(("torchscript", "onnx"), f"formats: {', '.join(FORMATS)}; or all")
    imgsz: tuple[int, ...] = flag((320, 640), "sides of square inputs, pixels", "--img", "--img-size")
    data: str = flag("", "data YAML: its val pictures prove and give the mAP; empty: no mAP")
    images: tuple[str, ...] = flag(("data/images",), "without --data: pictures and folders that prove")
    int8: bool = flag(False, "also int8 in each form, with --data")
    half: bool = flag(False, "also float16")
    threads: tuple[int, ...] = flag((1, 2), "of the CPU, one after the other")
    rounds: int = flag(30, "timings of each")
    also: tuple[str, ...] = flag(
        (), "Python interpreters that make and measure the formats this one has no packages for"
    )
    project: str = flag("runs/benchmark", "folder of the runs")
    name: str = flag("exp", "folder of this run, numbered if it is there")


@dataclass
class Entry:
    """A row of the table. `ms`: threads -> times, ascending. `row`: export's, None for PyTorch itself."""

    model: str
    imgsz: int
    format: str
    weights: str
    megabytes: float
    row: Row | None = None
    map50_95: float | None = None
    ms: dict[int, list[float]] = field(default_factory=dict)

    def values(self, threads: tuple[int, ...], base: Entry) -> dict[str, str]:
        """The cells by their columns; `base` is PyTorch's entry of the same model and size."""
        parity = self.row.parity if self.row else None
        cells = {
            "model": self.model,
            "imgsz": str(self.imgsz),
            "format": self.format,
            "size MB": f"{self.megabytes:.2f}" if self.megabytes else "-",
        }
        for count in threads:
            times = self.ms.get(count)
            median, high = (statistics.median(times), percentile(times, 0.95)) if times else (None, None)
            cells[f"ms, {count} thr"] = "-" if median is None else f"{median:.1f}"
            cells[f"p95, {count} thr"] = "-" if high is None else f"{high:.1f}"
            ratio = "-" if median is None else f"{median / statistics.median(base.ms[count]):.2f}"
            cells[f"of PyTorch, {count} thr"] = ratio
        cells |= {
            "max box px": f"{parity.box_px:.2g}" if parity else "-",
            "max score": f"{parity.score:.2g}" if parity else "-",
            "same boxes": f"{parity.same}/{parity.all}" if parity else "-",
            "mAP50-95": "-" if self.map50_95 is None else f"{self.map50_95:.3f}",
        }
        cells["ok"] = (self.row.note or "ok") if self.row else ""
        return cells


def percentile(ascending: list[float], part: float) -> float:
    return ascending[min(int(part * len(ascending)), len(ascending) - 1)]


def labels(weights: tuple[str, ...]) -> list[str]:
    """What each is called in the table: its stem, with the run's folder before it where several have the same."""
    stems = [Path(w).stem for w in weights]
    runs = [
        path.parent.parent.name if path.parent.name == "weights" else path.parent.name for path in map(Path, weights)
    ]
    named = [s if stems.count(s) == 1 else f"{run}-{s}" for s, run in zip(stems, runs, strict=True)]
    return [n if named.count(n) == 1 else f"{n}-{i + 1}" for i, n in enumerate(named)]


def checkpoint_of(weights: str, folder: Path, cfg: BenchmarkConfig) -> str:
    """`weights`, or for a model YAML a checkpoint in `folder`: seeded random numbers, batch norm fitted to pictures."""
    if Path(weights).suffix not in (".yaml", ".yml"):
        return weights
    torch.manual_seed(0)
    model = DetectionModel(weights).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what is seen
    with torch.no_grad():
        model(read_pictures(proof_pictures(cfg.data, cfg.images), (320, 320)))
    path = folder / f"{Path(weights).stem}.pt"
    save_checkpoint(path, model_state(model.eval()))
    return str(path)


def variants(cfg: BenchmarkConfig) -> list[tuple[str, dict[str, object]]]:
    """(what is added to a format's name, flags of export.py)."""
    found: list[tuple[str, dict[str, object]]] = [("", {})]
    if cfg.half:
        found.append((" float16", {"half": True}))
    if cfg.int8:
        found += [(f" int8 {ops}", {"int8": True, "int8_ops": ops}) for ops in INT8_OPS]
    return found


def measurable(name: str, flags: dict[str, object]) -> bool:
    """Whether the variant is one of the format's own; Core ML only stores weights in int8, whatever `int8_ops` says."""
    if name == "coreml" and flags.get("int8_ops", "weights") != "weights":
        return False
    return not flags or bool(FORMATS[name].takes & flags.keys())


def export_all(cfg: BenchmarkConfig, model: str, weights: str, imgsz: int, folder: Path) -> list[Entry]:
    """Every format and variant of one model at one size, PyTorch first; what cannot be made has a note."""
    entries = [Entry(model, imgsz, "pytorch", weights, Path(weights).stat().st_size / 1e6)]
    names = list(FORMATS) if "all" in cfg.include else [name for name in FORMATS if name in cfg.include]
    for added, flags in variants(cfg):
        out = folder / f"{model}-{imgsz}{added.replace(' ', '-')}"
        config = ExportConfig(
            weights=weights,
            include=tuple(names),
            imgsz=(imgsz,),
            data=cfg.data,
            images=cfg.images,
            out=str(out),
            threads=1,
        )
        subject = export.prepare(replace(config, **flags))  # type: ignore[arg-type]
        for name in names:
            if not measurable(name, flags):
                continue
            row = export.export(subject, name)
            made = str(row.path) if row.path and row.parity else ""
            entry = Entry(model, imgsz, name + added, made, row.megabytes, row)
            entry.map50_95 = row.maps[1] if row.maps else None
            entries.append(entry)
    return entries


def time_all(entries: list[Entry], imgsz: int, threads: int, rounds: int) -> None:
    """Fill `ms[threads]` of every entry that runs here, in turns."""
    images = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0))
    torch.set_num_threads(threads)
    with quiet():
        running: list[tuple[Entry, Callable[[Tensor], Tensor] | Backend]] = [
            (e, load(e.weights, threads)) for e in entries if e.weights
        ]
    times = interleaved([backend for _, backend in running], images, rounds, warm=2)
    for (entry, _), spent in zip(running, times, strict=True):
        entry.ms[threads] = spent


def load(weights: str, threads: int) -> Backend:
    """The backend of a file; one that failed its proof is measured all the same."""
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
        ValueError: flags that do not go together, see export.check_config.
    """
    if min(*cfg.threads, cfg.rounds, *cfg.imgsz) < 1:
        raise ValueError("--threads, --rounds and --imgsz must be at least 1")
    if cfg.int8 and not cfg.data:
        raise ValueError("--int8 needs --data: a data YAML whose pictures calibrate and judge it")
    folder = Run(cfg.project, cfg.name).dir
    entries: list[Entry] = []
    paths = tuple(checkpoint_of(weights, folder, cfg) for weights in cfg.weights)
    for path, model in zip(paths, labels(cfg.weights), strict=True):
        for imgsz in cfg.imgsz:
            group = export_all(cfg, model, path, imgsz, folder)
            for threads in cfg.threads:
                time_all(group, imgsz, threads, cfg.rounds)
            if cfg.data:
                measure(group, cfg, path, imgsz)
            entries += group
            report(
                rows_of(entries, cfg.threads), cfg.threads[0], folder
            )  # after each: a run that is cut off keeps what it has
    rows = rows_of(entries, cfg.threads)
    for number, python in enumerate(cfg.also):
        lacking = [name for name in FORMATS if any(e.format == name and e.row and e.row.missing for e in entries)]
        if lacking:
            merge(rows, measured_by(python, replace(cfg, weights=paths, include=tuple(lacking)), folder, number))
            report(rows, cfg.threads[0], folder)
    LOGGER.info("\n" + (folder / "benchmark.md").read_text(encoding="utf-8") + f"results in {folder}")
    return entries


def measure(entries: list[Entry], cfg: BenchmarkConfig, weights: str, imgsz: int) -> None:
    """Fill the mAP of entries that run here and do not have it; `weights` are those all were made from."""
    base = ExportConfig(weights=weights, data=cfg.data, threads=cfg.threads[0])
    for entry in entries:
        if entry.map50_95 is None and entry.weights and not entry.weights.endswith(".failed"):
            LOGGER.info(f"{entry.model} at {imgsz}: mAP of {entry.format}")
            entry.map50_95 = mean_ap(base, entry.weights, imgsz)


def rows_of(entries: list[Entry], threads: tuple[int, ...]) -> list[Cells]:
    """The cells of every entry."""
    bases = {(e.model, e.imgsz): e for e in entries if e.format == "pytorch"}
    return [entry.values(threads, bases[entry.model, entry.imgsz]) for entry in entries]


def measured_by(python: str, cfg: BenchmarkConfig, folder: Path, number: int) -> list[Cells]:
    """The rows of this script run by another interpreter; its table and files stay below `folder`.

    Raises:
        ValueError: it failed; its last line tells.
    """
    cfg = replace(cfg, also=(), project=str(folder), name=f"also{number}")
    command = [python, "-m", "tools.benchmark", *words(cfg)]
    LOGGER.info(f"{', '.join(cfg.include)}: measured by {python}")
    result = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if result.returncode:
        lines = (result.stderr or result.stdout).strip().splitlines() or [f"exit code {result.returncode}"]
        raise ValueError(f"--also {python}: {lines[-1]}")
    with (folder / f"also{number}" / "benchmark.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def words(cfg: BenchmarkConfig) -> list[str]:
    """The command line that gives `cfg`; files as absolute paths."""
    found = []
    for f in fields(cfg):
        value = getattr(cfg, f.name)
        values = [str(v) for v in value] if isinstance(value, tuple) else [str(value)]
        if f.name in ("weights", "images", "data", "project"):
            values = [str(Path(v).resolve()) if Path(v).exists() else v for v in values]
        if value is True:
            found.append("--" + f.name)
        elif value not in (False, "", ()):
            found += ["--" + f.name, *values]
    return found


if __name__ == "__main__":
    plt.switch_backend("agg")
    run_script(main, BenchmarkConfig)
