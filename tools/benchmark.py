"""Size, speed, agreement with PyTorch and mAP of every format, for models and sizes: a table, a CSV and a picture.

python -m tools.benchmark --weights best.pt --data data/shapes.yaml --include onnx openvino --imgsz 320 640

All formats of a model and size are timed in turns within one run, one picture at a time, so that a busy machine is busy
for all of them. A model YAML in place of weights is built with random numbers: for its speed, before it is trained.
"""

from __future__ import annotations

import csv
import logging
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import export
from export import CPU, ExportConfig, mean_ap, quiet
from models.backends import Backend, load_backend
from models.checkpoint import model_state, save_checkpoint
from models.exporters import FORMATS
from models.quantize import INT8_OPS
from models.yolo import DetectionModel
from utils.config import flag, run_script
from utils.proof_table import Row
from utils.runs import Run, write_atomic

LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class BenchmarkConfig:
    """Compare formats: size, speed, agreement with PyTorch, mAP."""

    weights: tuple[str, ...] = flag(("yolov5-mobilevit.yaml",), "checkpoints, or model YAMLs for speed alone")
    include: tuple[str, ...] = flag(("torchscript", "onnx"), f"formats: {', '.join(FORMATS)}; or all")
    imgsz: tuple[int, ...] = flag((320, 640), "sides of square inputs, pixels", "--img", "--img-size")
    data: str = flag("", "data YAML: its val pictures prove and give the mAP; empty: no mAP")
    images: str = flag("data/images", "without --data: pictures that prove")
    int8: bool = flag(False, "also int8 in each form, with --data")
    half: bool = flag(False, "also float16")
    threads: tuple[int, ...] = flag((1, 2), "of the CPU, one after the other")
    rounds: int = flag(30, "timings of each")
    project: str = flag("runs/benchmark", "folder of the runs")
    name: str = flag("exp", "folder of this run, numbered if it is there")


@dataclass
class Entry:
    """A row of the table. `ms`: threads -> (median, 95th percentile). `row`: export's, None for PyTorch itself."""

    model: str
    imgsz: int
    format: str
    weights: str
    megabytes: float
    row: Row | None = None
    map50_95: float | None = None
    ms: dict[int, tuple[float, float]] = field(default_factory=dict)

    def values(self, threads: tuple[int, ...]) -> dict[str, str]:
        parity = self.row.parity if self.row else None
        cells = {
            "model": self.model,
            "imgsz": str(self.imgsz),
            "format": self.format,
            "size MB": f"{self.megabytes:.2f}" if self.megabytes else "-",
            "max box px": f"{parity.box_px:.2g}" if parity else "-",
            "max score": f"{parity.score:.2g}" if parity else "-",
            "same boxes": f"{parity.same}/{parity.all}" if parity else "-",
        }
        for count in threads:
            median, high = self.ms.get(count, (None, None))
            cells[f"ms, {count} thr"] = "-" if median is None else f"{median:.1f}"
            cells[f"p95, {count} thr"] = "-" if high is None else f"{high:.1f}"
        cells["mAP50-95"] = "-" if self.map50_95 is None else f"{self.map50_95:.3f}"
        cells["note"] = self.row.note if self.row else ""
        return cells


def checkpoint_of(weights: str, folder: Path, cfg: BenchmarkConfig) -> str:
    """`weights`, or for a model YAML a checkpoint in `folder`: seeded random numbers, batch norm fitted to pictures."""
    if Path(weights).suffix not in (".yaml", ".yml"):
        return weights
    torch.manual_seed(0)
    model = DetectionModel(weights).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the plain mean of what is seen
    proofs = export.proof_paths(ExportConfig(data=cfg.data, images=cfg.images))
    with torch.no_grad():
        model(export.read_pictures(proofs, (320, 320)))
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


def export_all(cfg: BenchmarkConfig, weights: str, imgsz: int, folder: Path) -> list[Entry]:
    """Every format and variant of one model at one size, PyTorch first; what cannot be made has a note."""
    stem = Path(weights).stem
    entries = [Entry(stem, imgsz, "pytorch", weights, Path(weights).stat().st_size / 1e6)]
    names = list(FORMATS) if "all" in cfg.include else [name for name in FORMATS if name in cfg.include]
    for added, flags in variants(cfg):
        out = folder / f"{stem}-{imgsz}{added.replace(' ', '-')}"
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
            if flags and not FORMATS[name].takes & {"half" if cfg.half and "half" in flags else "int8"}:
                continue
            row = export.export(subject, name)
            made = str(row.path) if row.path and row.parity else ""
            entry = Entry(stem, imgsz, name + added, made, row.megabytes, row)
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
    times: list[list[float]] = [[] for _ in running]
    for _ in range(rounds + 2):
        for (_, backend), spent in zip(running, times, strict=True):
            start = time.perf_counter()
            backend(images)
            spent.append(1000 * (time.perf_counter() - start))
    for (entry, _), spent in zip(running, times, strict=True):
        warm = sorted(spent[2:])
        entry.ms[threads] = statistics.median(warm), warm[min(int(0.95 * len(warm)), len(warm) - 1)]


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


def markdown(rows: list[dict[str, str]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(row.values()) + " |" for row in rows])


def plot(entries: list[Entry], threads: int, path: Path) -> None:
    """Milliseconds against megabytes, or against mAP where it was measured; a mark for each entry."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    measured = any(e.map50_95 is not None for e in entries)
    shown = [e for e in entries if threads in e.ms and (not measured or e.map50_95 is not None)]
    groups = list(dict.fromkeys((e.model, e.imgsz) for e in shown))
    for index, group in enumerate(groups):
        own = [e for e in shown if (e.model, e.imgsz) == group]
        heights = [e.map50_95 if measured else e.megabytes for e in own]
        label = f"{group[0]} at {group[1]}"
        axes.scatter([e.ms[threads][0] for e in own], heights, color=f"C{index}", label=label)  # type: ignore[arg-type]
        for entry, height in zip(own, heights, strict=True):
            axes.annotate(entry.format, (entry.ms[threads][0], height), (4, 3), textcoords="offset points", fontsize=8)  # type: ignore[arg-type]
    axes.set(xlabel=f"ms a picture, median, {threads} thread(s)", ylabel="mAP50-95" if measured else "size, MB")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    plt.close(figure)


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
    for weights in cfg.weights:
        path = checkpoint_of(weights, folder, cfg)
        for imgsz in cfg.imgsz:
            group = export_all(cfg, path, imgsz, folder)
            for threads in cfg.threads:
                time_all(group, imgsz, threads, cfg.rounds)
            if cfg.data:
                measure(group, cfg, path, imgsz)
            entries += group
            report(entries, cfg, folder)  # after each: a run that is cut off keeps what it has
    LOGGER.info("\n" + (folder / "benchmark.md").read_text(encoding="utf-8") + f"results in {folder}")
    return entries


def measure(entries: list[Entry], cfg: BenchmarkConfig, weights: str, imgsz: int) -> None:
    """Fill the mAP of entries that run here and do not have it; `weights` are those all were made from."""
    base = ExportConfig(weights=weights, data=cfg.data, threads=cfg.threads[0])
    for entry in entries:
        if entry.map50_95 is None and entry.weights and not entry.weights.endswith(".failed"):
            LOGGER.info(f"{entry.model} at {imgsz}: mAP of {entry.format}")
            entry.map50_95 = mean_ap(base, entry.weights, (imgsz, imgsz))


def report(entries: list[Entry], cfg: BenchmarkConfig, folder: Path) -> None:
    """Write benchmark.md, .csv and .png."""
    rows = [entry.values(cfg.threads) for entry in entries]
    write_atomic(folder / "benchmark.md", markdown(rows) + "\n")
    with (folder / "benchmark.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    plot(entries, cfg.threads[0], folder / "benchmark.png")


if __name__ == "__main__":
    plt.switch_backend("agg")
    run_script(main, BenchmarkConfig)
