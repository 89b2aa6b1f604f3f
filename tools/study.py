"""Compare training recipes: train models with each of them and write a table of the results.

    python tools/study.py --data my.yaml --cfg yolov5n.yaml --arms tools/recipes.yaml --seeds 0 1 2

`--arms` is a YAML: name -> hyperparameters that differ from --base, and under `flags` flags of train.py. A finished run
in --project is not repeated, an interrupted one is resumed, and a run with the same name but other settings is an
error. The table is written to table.md in --project. Runs are trained one after the other in this process.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import check_cli, flag, run_script


@dataclass(frozen=True)
class StudyConfig:
    """Compare training recipes.

    Example: --data my.yaml --cfg yolov5n.yaml --seeds 0 1 2
    """

    data: tuple[str, ...] = flag((), "data YAMLs, required", group="data and models")
    cfg: tuple[str, ...] = flag(("yolov5n.yaml",), "model YAMLs")
    weights: str = flag("", "checkpoint to fine-tune, instead of --cfg")
    arms: str = flag("tools/recipes.yaml", "YAML of recipes", group="recipes")
    only: tuple[str, ...] = flag((), "names of the recipes to run; not given: all")
    base: str = flag("hyp.scratch-low.yaml", "hyperparameter YAML that the recipes change")
    seeds: tuple[int, ...] = flag((0,), "random seeds, a run for each", group="training")
    imgsz: int = flag(192, "image size, pixels")
    batch_size: int = flag(16, "images per batch")
    epochs: int = flag(30, "epochs of each run")
    fraction: float = flag(1.0, "fraction of the training images to use, 0..1")
    threads: int = flag(1, "CPU threads; more may be slower if cores are shared", group="hardware")
    project: str = flag("runs/study", "folder of the runs and the table", group="output")


if __name__ == "__main__":
    check_cli(StudyConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import csv
import json
import logging
import statistics
from dataclasses import fields, replace
from typing import Any

import torch
import yaml

import train
from utils.files import find, read_yaml, write_atomic
from utils.hyp import Hyp
from utils.train import recipe

LOGGER = logging.getLogger(__name__)
COLUMNS = ("metrics/mAP_0.5", "metrics/mAP_0.5:0.95")


def run_one(cfg: StudyConfig, data: str, model: str, name: str, arm: Any, seed: int) -> Path:
    """The folder of one run, which is trained unless it is finished.

    Raises:
        ValueError: see read_arm, check_settings.
    """
    folder = Path(cfg.project) / f"{stem(data)}-{Path(model).stem}-{cfg.imgsz}-{cfg.epochs}-{name}-s{seed}"
    flags, hyp = read_arm(cfg, name, arm)
    start = {"weights": cfg.weights} if cfg.weights else {"cfg": model}
    common = {"data": data, "imgsz": cfg.imgsz, "batch_size": cfg.batch_size, "epochs": cfg.epochs, "seed": seed}
    settings: dict[str, Any] = {"fraction": cfg.fraction} | start | common | flags
    constants = {name: v for name, v in vars(recipe).items() if name.isupper() and isinstance(v, int | float | tuple)}
    check_settings(folder.with_suffix(".json"), settings | ({"hyp": hyp.as_dict()} if hyp else {"rule": constants}))
    if (folder / "metrics.json").exists():
        return folder
    if (folder / "weights" / "last.pt").exists():
        train.main(train.TrainConfig(resume=str(folder), workers=0))
        return folder
    if hyp:
        settings["hyp"] = str(folder.with_suffix(".hyp.yaml"))
        write_atomic(Path(settings["hyp"]), yaml.safe_dump(hyp.as_dict(), sort_keys=False))
    places: dict[str, Any] = {
        "project": str(folder.parent),
        "name": folder.name,
        "exist_ok": True,
        "workers": 0,
        "noplots": True,
    }
    train.main(train.TrainConfig(**(settings | places)))
    return folder


def stem(data: str) -> str:
    """A short name of a data YAML: the name of the file, or of its folder if the file is data.yaml."""
    return Path(data).resolve().parent.name if Path(data).name == "data.yaml" else Path(data).stem


def read_arm(cfg: StudyConfig, name: str, arm: Any) -> tuple[dict[str, Any], Hyp | None]:
    """The flags of train.py and the hyperparameters of a recipe; None if train.py chooses these.

    Raises:
        ValueError: an unknown key, or a value of the wrong type; names the file and the recipe.
    """
    where = f"{cfg.arms}: {name}"
    arm = {} if arm is None else arm
    if not isinstance(arm, dict) or not isinstance(arm.get("flags", {}), dict):
        raise ValueError(f"{where} is {arm!r}, expected hyperparameters and under 'flags' those of train.py")
    flags = {key.replace("-", "_"): value for key, value in arm.get("flags", {}).items()}
    defaults = {f.name: f.default for f in fields(train.TrainConfig)}
    for key, value in flags.items():
        if key not in defaults:
            raise ValueError(f"{where}: unknown flag {key}")
        default = defaults[key]
        kind = (int, float) if isinstance(default, float) or default is None else type(default)
        flags[key] = value = tuple(value) if isinstance(value, list) else value
        if not isinstance(value, kind):
            raise ValueError(f"{where}: {key} is {value!r}, expected a value like {default!r}")
    changes = {key: value for key, value in arm.items() if key not in ("flags", "rule")}
    if arm.get("rule"):
        if changes:
            raise ValueError(f"{where}: 'rule: true' lets train.py choose the hyperparameters, expected none here")
        return flags, None
    unknown = set(changes) - {f.name for f in fields(Hyp)}
    if unknown:
        raise ValueError(f"{where}: unknown key{'s' * (len(unknown) > 1)} {', '.join(sorted(unknown))}")
    try:
        return flags, replace(Hyp.from_yaml(find(cfg.base, "data/hyps")), **changes)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new run to `path`; raise ValueError if an existing run has others."""
    own = json.loads(json.dumps(settings))
    if path.exists():
        try:
            saved = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not the settings of a run, expected another --project: {error}") from error
        different = [key for key in own.keys() | saved.keys() if own.get(key) != saved.get(key)]
        if different:
            raise ValueError(f"{path}: started with another {', '.join(sorted(different))}; expected another --project")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(own, indent=2))


def best(folder: Path) -> list[float]:
    """The best mAP50 and the best mAP50-95 of the epochs of a run."""
    with (folder / "results.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [max(float(row[column]) for row in rows) for column in COLUMNS]


def cell(values: list[float]) -> str:
    """The mean, and half of the range if there are several values."""
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def main(cfg: StudyConfig) -> None:
    """Train all runs and print the table."""
    if not cfg.data:
        raise ValueError("--data is missing, expected one or more data YAMLs")
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
                results = [best(run_one(cfg, data, model, name, arms[name], seed)) for seed in cfg.seeds]
                scores = " | ".join(cell(list(values)) for values in zip(*results, strict=True))
                lines.append(f"| {stem(data)} | {Path(model).stem} | {name} | {scores} |")
                write_atomic(table, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main, StudyConfig)
