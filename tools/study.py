"""Train one model under several recipes, one run after the other, and print the table.

    python tools/study.py --data my.yaml --cfg yolov5n.yaml --arms tools/recipes.yaml --seeds 0 1 2

`--arms` is a YAML: name -> hyp keys that differ from --base, and under `flags` those of train.py. A run that is already
in --project is not repeated, one that was interrupted goes on. Runs are trained in this process, with one thread.
"""

from __future__ import annotations

import csv
import logging
import statistics
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml

import train
from utils.config import Hyp, find, flag, read_yaml, run_script
from utils.runs import write_atomic

LOGGER = logging.getLogger(__name__)
COLUMNS = ("metrics/mAP_0.5", "metrics/mAP_0.5:0.95")


@dataclass(frozen=True)
class StudyConfig:
    """Compare recipes for training."""

    data: tuple[str, ...] = flag((), "data set YAMLs, required")
    cfg: tuple[str, ...] = flag(("yolov5n.yaml",), "model YAMLs")
    weights: str = flag("", "checkpoint to fine-tune, instead of --cfg")
    arms: str = flag("tools/recipes.yaml", "YAML of recipes")
    only: tuple[str, ...] = flag((), "names of the recipes to run; all of them if left out")
    base: str = flag("hyp.scratch-low.yaml", "hyp YAML that the recipes change")
    seeds: tuple[int, ...] = flag((0,), "seeds")
    imgsz: int = flag(192, "side of the canvas, pixels")
    batch_size: int = flag(16, "pictures a batch")
    epochs: int = flag(30, "epochs of each run")
    fraction: float = flag(1.0, "share of the training pictures")
    threads: int = flag(1, "threads of arithmetic; more may slow runs down where cores are shared")
    project: str = flag("runs/study", "where run folders and tables go")


def run_one(cfg: StudyConfig, data: str, model: str, name: str, arm: dict[str, Any], seed: int) -> Path:
    """The run folder of one training, trained now unless it is there; raises ValueError for unknown keys."""
    stem = Path(data).resolve().parent.name if Path(data).name == "data.yaml" else Path(data).stem
    folder = Path(cfg.project) / f"{stem}-{Path(model).stem}-{cfg.imgsz}-{cfg.epochs}-{name}-s{seed}"
    if (folder / "metrics.json").exists():
        return folder
    if (folder / "weights" / "last.pt").exists():
        train.main(train.TrainConfig(resume=str(folder), workers=0))
        return folder
    flags = {key.replace("-", "_"): value for key, value in arm.get("flags", {}).items()}
    unknown = set(flags) - {f.name for f in fields(train.TrainConfig)}
    if unknown:
        raise ValueError(f"{cfg.arms}: {name}: unknown flags {', '.join(sorted(unknown))}")
    hyp = ""
    if arm.get("rule"):
        if len(arm) > 1 + ("flags" in arm):
            raise ValueError(f"{cfg.arms}: {name}: 'rule: true' leaves the hyp to train.py, expected no hyp keys")
    else:
        changes = {key: value for key, value in arm.items() if key != "flags"}
        values = Hyp.from_yaml(find(cfg.base, "data/hyps")).as_dict() | changes
        folder.parent.mkdir(parents=True, exist_ok=True)
        hyp = str(folder.with_suffix(".hyp.yaml"))
        write_atomic(Path(hyp), yaml.safe_dump(values, sort_keys=False))
        Hyp.from_yaml(hyp)
    start = {"weights": cfg.weights} if cfg.weights else {"cfg": model}
    common = {"data": data, "imgsz": cfg.imgsz, "batch_size": cfg.batch_size, "epochs": cfg.epochs, "seed": seed}
    places = {"project": str(folder.parent), "name": folder.name, "exist_ok": True, "workers": 0, "noplots": True}
    train.main(train.TrainConfig(**({"hyp": hyp, "fraction": cfg.fraction} | start | common | places | flags)))
    return folder


def best(folder: Path) -> list[float]:
    """The best mAP50 and the best mAP50-95 of a run's epochs."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [max(float(row[column]) for row in rows) for column in COLUMNS]


def cell(values: list[float]) -> str:
    """Mean, and half of the range where there are several."""
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main(cfg: StudyConfig) -> None:
    if not cfg.data:
        raise ValueError("--data is missing, expected one or more data set YAMLs")
    arms = read_yaml(find(cfg.arms, "tools"))
    missing = set(cfg.only) - set(arms)
    if missing:
        raise ValueError(f"{cfg.arms}: no recipe {', '.join(sorted(missing))}, it has {', '.join(arms)}")
    torch.set_num_threads(cfg.threads)
    lines = ["| data | model | recipe | mAP50 | mAP50-95 |", "|---|---|---|---|---|"]
    table = Path(cfg.project) / "table.md"
    for data in cfg.data:
        for model in (cfg.weights,) if cfg.weights else cfg.cfg:
            for name in cfg.only or arms:
                results = [best(run_one(cfg, data, model, name, arms[name] or {}, seed)) for seed in cfg.seeds]
                scores = " | ".join(cell(list(values)) for values in zip(*results, strict=True))
                stem = Path(data).resolve().parent.name if Path(data).name == "data.yaml" else Path(data).stem
                lines.append(f"| {stem} | {Path(model).stem} | {name} | {scores} |")
                write_atomic(table, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main, StudyConfig)
