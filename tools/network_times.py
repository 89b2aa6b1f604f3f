"""Time networks against each other: python tools/network_times.py --cfg yolov5n.yaml yolov5-mobilevit.yaml

Every network is built from its YAML with random weights. In each runtime and at each size the networks are called in
turns in one process, so that whatever else the machine does slows all of them alike; read the ratios to the first YAML.
Milliseconds are the least of the calls: CPU time with one thread, else the clock's. The last columns have the exponent
of time in pixels between the smallest and the largest size: 1 is linear.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import Bounds, Config, check_cli, flag, run_script

TORCH = "torch"
MARKERS = "osD^vPX"  # of the lines of the chart


@dataclass(frozen=True)
class TimesConfig(Config):
    """Time networks against the first of them.

    Example: --cfg yolov5n.yaml yolov5-mobilevit.yaml
    """

    cfg: tuple[str, ...] = flag(("yolov5n.yaml", "yolov5-mobilevit.yaml"), "model YAMLs; the first is the yardstick")
    imgsz: tuple[int, ...] = flag((320, 640), "input sizes, pixels", "--img", bounds=Bounds(low=32))
    runtimes: tuple[str, ...] = flag((TORCH, "onnx"), f"{TORCH}, or formats of export.py")
    threads: int = flag(1, "CPU threads", bounds=Bounds(low=1))
    rounds: int = flag(15, "calls of each network at each size", bounds=Bounds(low=1))
    nc: int = flag(80, "classes", bounds=Bounds(low=1))
    out: str = flag("", "file for the table, Markdown; empty: only printed")
    plot: str = flag("", "file for a chart of time against pixels, .png or .svg; needs two sizes; empty: none")


if __name__ == "__main__":
    check_cli(TimesConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
import math
import tempfile
import time
from collections.abc import Callable, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from models.export.metadata import Metadata
from models.export.writers import FORMATS, Job
from models.runtimes.load import load_backend
from models.yolo import DetectionModel
from utils.drawing import save_figure
from utils.files import write_atomic
from utils.proof.images import quiet
from utils.text import counted

LOGGER = logging.getLogger(__name__)
CPU = torch.device("cpu")
Call = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Network:
    """A network by its YAML, with the least milliseconds of a call by (runtime, size)."""

    name: str
    model: DetectionModel
    ms: dict[tuple[str, int], float]

    @classmethod
    def of(cls, cfg: str, nc: int) -> Network:
        torch.manual_seed(0)
        return cls(Path(cfg).stem, DetectionModel(cfg, nc=nc).fuse().requires_grad_(False), {})

    def runner(self, runtime: str, imgsz: int, threads: int, folder: Path) -> Call:
        """(1, 3, imgsz, imgsz) -> decoded rows, in `runtime`; an exported file goes into `folder`."""
        if runtime == TORCH:
            return lambda images: self.model(images)[0]
        path = folder / f"{self.name}-{imgsz}{FORMATS[runtime].ending}"
        meta = Metadata.of(self.model, (imgsz, imgsz), 1)
        with quiet():
            FORMATS[runtime].write(Job(self.model, meta, torch.rand(1, 3, imgsz, imgsz)), path)
            return load_backend(path, CPU, threads=threads)


def missing(runtime: str) -> list[str]:
    """The packages of a runtime that are not installed."""
    return [] if runtime == TORCH else FORMATS[runtime].missing()


def least(runners: Sequence[Call], images: Tensor, cfg: TimesConfig) -> list[float]:
    """Least milliseconds of a call of each of `runners`, called in turns; the first turn does not count."""
    clock = time.process_time if cfg.threads == 1 else time.perf_counter
    best = [math.inf] * len(runners)
    for turn in range(cfg.rounds + 1):
        for i, run in enumerate(runners):
            start = clock()
            run(images)
            if turn:
                best[i] = min(best[i], 1000 * (clock() - start))
    return best


@torch.inference_mode()
def measure(networks: Sequence[Network], cfg: TimesConfig) -> None:
    """Fill `ms` of the networks."""
    for imgsz in cfg.imgsz:
        images = torch.rand(1, 3, imgsz, imgsz)
        for runtime in cfg.runtimes:
            with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
                runners = [n.runner(runtime, imgsz, cfg.threads, Path(folder)) for n in networks]
            for network, ms in zip(networks, least(runners, images, cfg), strict=True):
                network.ms[runtime, imgsz] = ms
            LOGGER.info(f"measured {runtime} at {imgsz}")


def exponent(network: Network, runtime: str, sizes: Sequence[int]) -> float:
    """d in time ~ pixels^d, from the smallest and the largest of `sizes`."""
    low, high = min(sizes), max(sizes)
    return math.log(network.ms[runtime, high] / network.ms[runtime, low]) / math.log((high / low) ** 2)


def table(networks: Sequence[Network], cfg: TimesConfig) -> str:
    """A Markdown row a network: size, milliseconds, ratio to the first in brackets, exponents."""
    several = len(set(cfg.imgsz)) > 1
    columns = [(runtime, imgsz) for runtime in cfg.runtimes for imgsz in cfg.imgsz]
    heads = ["network", "parameters", f"GFLOPs at {max(cfg.imgsz)}", "grid"]
    heads += [f"{runtime} {imgsz}" for runtime, imgsz in columns]
    heads += [f"exponent, {runtime}" for runtime in cfg.runtimes if several]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for n in networks:
        parameters = sum(p.numel() for p in DetectionModel(n.model.yaml).parameters())  # before norms are folded
        cells = [n.name, f"{parameters:,}", f"{n.model.gflops(max(cfg.imgsz)):.1f}", str(n.model.grid)]
        cells += [f"{n.ms[column]:.1f} ({n.ms[column] / networks[0].ms[column]:.2f})" for column in columns]
        cells += [f"{exponent(n, runtime, cfg.imgsz):.2f}" for runtime in cfg.runtimes if several]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(networks: Sequence[Network], cfg: TimesConfig) -> None:
    """Write a chart of milliseconds against pixels on logarithmic axes, a panel a runtime, a line a network."""
    sizes = sorted(set(cfg.imgsz))
    figure = Figure(figsize=(5.2 * len(cfg.runtimes) + 2.4, 5), layout="constrained")
    panels = figure.subplots(1, len(cfg.runtimes), sharey=True, squeeze=False)[0]
    for axes, runtime in zip(panels, cfg.runtimes, strict=True):
        ends = max(sizes) ** 2 / min(sizes) ** 2
        least = min(n.ms[runtime, min(sizes)] for n in networks)
        axes.plot([min(sizes) ** 2, max(sizes) ** 2], [least, least * ends], ":", color="gray", label="linear")
        for i, n in enumerate(networks):
            label = f"{n.name}, d = {exponent(n, runtime, sizes):.2f}" if len(panels) == 1 else n.name
            times = [n.ms[runtime, size] for size in sizes]
            axes.plot(
                [size**2 for size in sizes], times, f"{MARKERS[i % len(MARKERS)]}-", color=f"C{i % 10}", label=label
            )
        axes.set(xscale="log", yscale="log", title=f"{runtime}, {counted(cfg.threads, 'thread')}")
        axes.set_xticks([size**2 for size in sizes], [f"{size}²" for size in sizes], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("pixels of the input")
        axes.grid(True, which="both", alpha=0.25)
    panels[0].set_ylabel("ms an image")
    panels[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)
    save_figure(figure, Path(cfg.plot))


def main(cfg: TimesConfig) -> list[Network]:
    """The networks with their times; the table is printed.

    Raises:
        ValueError, FileNotFoundError: a YAML, size or runtime that does not work or is not installed.
    """
    unknown = [name for name in cfg.runtimes if name not in (TORCH, *FORMATS)]
    if unknown:
        raise ValueError(f"--runtimes {unknown[0]}: expected {TORCH}, {', '.join(FORMATS)}")
    for name in cfg.runtimes:
        if packages := missing(name):
            raise ValueError(f"--runtimes {name}: not installed: {', '.join(packages)}; see requirements-*.txt")
    if cfg.plot and (Path(cfg.plot).suffix not in (".png", ".svg") or len(set(cfg.imgsz)) < 2):
        raise ValueError(f"--plot {cfg.plot}: expected a .png or .svg file, and at least two --imgsz")
    torch.set_num_threads(cfg.threads)
    networks = [Network.of(name, cfg.nc) for name in cfg.cfg]
    for n in networks:
        off = [imgsz for imgsz in cfg.imgsz if imgsz % n.model.grid]
        if off:
            raise ValueError(f"--imgsz {off[0]}: {n.name} takes multiples of {n.model.grid}")
    measure(networks, cfg)
    text = table(networks, cfg)
    LOGGER.info(f"batch 1, {counted(cfg.threads, 'thread')}, least of {cfg.rounds} calls in turns\n{text}")
    if cfg.out:
        write_atomic(Path(cfg.out), text + "\n")
    if cfg.plot:
        plot(networks, cfg)
    return networks


if __name__ == "__main__":
    run_script(main, TimesConfig)
