"""Time of every row of networks: python tools/row_times.py --imgsz 320 640 --top 5

Every network is built from its YAML with random weights and run by PyTorch; a row's time is the least of its calls, CPU
time with one thread, else the clock's. Networks whose grid does not divide a size are left out there, and said so.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import Bounds, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class RowTimesConfig(Config):
    """Time every row of networks in PyTorch.

    Example: --cfg yolov5n.yaml --imgsz 320 --top 5
    """

    cfg: tuple[str, ...] = flag((), "model YAMLs; without any: all of models/")
    imgsz: tuple[int, ...] = flag((320, 640), "input sizes, pixels", "--img", bounds=Bounds(low=32))
    threads: int = flag(1, "CPU threads", bounds=Bounds(low=1))
    rounds: int = flag(5, "calls of each network at each size", bounds=Bounds(low=1))
    top: int = flag(0, "print only so many rows, the most expensive first; 0: all, in order", bounds=Bounds(low=0))
    conf_thres: float = flag(
        0.25, "confidence threshold of the head's decoding", "--conf", bounds=Bounds(low=0.0, high=1.0)
    )
    out: str = flag("", "file for the tables, Markdown; empty: only printed")


if __name__ == "__main__":
    check_cli(RowTimesConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
import math
import time

import torch
from torch import nn

from models.yolo import DetectionModel
from utils.files import REPO, write_atomic
from utils.text import counted

LOGGER = logging.getLogger(__name__)


def row_times(model: DetectionModel, imgsz: int, cfg: RowTimesConfig) -> list[float]:
    """Least milliseconds of each row of `model` for one (1, 3, imgsz, imgsz) input; the first call does not count."""
    clock = time.process_time if cfg.threads == 1 else time.perf_counter
    layers, starts = list(model.model), [0.0] * len(model.model)
    best = [math.inf] * len(layers)

    def start(i: int) -> None:
        starts[i] = clock()

    def stop(i: int) -> None:
        best[i] = min(best[i], 1000 * (clock() - starts[i]))

    def before(i: int) -> torch.utils.hooks.RemovableHandle:
        return layers[i].register_forward_pre_hook(lambda *_: start(i))

    def after(i: int) -> torch.utils.hooks.RemovableHandle:
        return layers[i].register_forward_hook(lambda *_: stop(i))

    images = torch.rand(1, 3, imgsz, imgsz)
    with torch.inference_mode():
        model(images, cfg.conf_thres)
        hooks = [hook(i) for i in range(len(layers)) for hook in (before, after)]
        for _ in range(cfg.rounds):
            model(images, cfg.conf_thres)
    for handle in hooks:
        handle.remove()
    return best


def table(name: str, layers: nn.Sequential, imgsz: int, times: list[float], top: int) -> str:
    """A Markdown table of rows: number, block, milliseconds, share of the network."""
    total = sum(times)
    order = sorted(range(len(times)), key=lambda i: -times[i])[:top] if top else range(len(times))
    lines = [f"{name} at {imgsz}: {total:.1f} ms", "", "| row | block | ms | % |", "|---|---|---|---|"]
    lines += [f"| {i} | {block(layers[i])} | {times[i]:.2f} | {100 * times[i] / total:.0f} |" for i in order]
    return "\n".join(lines)


def block(layer: nn.Module) -> str:
    """The name of a row's block; of repeated ones with how often."""
    if isinstance(layer, nn.Sequential) and type(layer) is nn.Sequential:
        return f"{len(layer)} x {type(layer[0]).__name__}"
    return type(layer).__name__


def main(cfg: RowTimesConfig) -> list[str]:
    """The tables; they are printed.

    Raises:
        ValueError, FileNotFoundError: a YAML that does not work.
    """
    torch.set_num_threads(cfg.threads)
    LOGGER.info(f"PyTorch, batch 1, {counted(cfg.threads, 'thread')}, least of {counted(cfg.rounds, 'call')}")
    tables: list[str] = []
    for name in cfg.cfg or sorted(path.name for path in (REPO / "models").glob("*.yaml")):
        torch.manual_seed(0)
        model = DetectionModel(name).fuse().requires_grad_(False)
        for imgsz in cfg.imgsz:
            if imgsz % model.grid:
                LOGGER.info(f"{name} at {imgsz}: left out, it takes multiples of {model.grid}")
                continue
            times = row_times(model, imgsz, cfg)
            tables.append(table(Path(name).stem, model.model, imgsz, times, cfg.top))
            LOGGER.info(f"\n{tables[-1]}")
    if cfg.out:
        write_atomic(Path(cfg.out), "\n\n".join(tables) + "\n")
    return tables


if __name__ == "__main__":
    run_script(main, RowTimesConfig)
