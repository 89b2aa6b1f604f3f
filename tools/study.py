"""Train one model under several recipes, one run after the other, and print the table.

    python tools/study.py --data my.yaml --cfg yolov5n.yaml --arms tools/recipes.yaml --seeds 0 1 2

`--arms` is a YAML: name -> hyp keys that differ from --base, and under `flags` those of train.py. A run that is already
in --project is not repeated, one that was interrupted goes on, and one of other settings under its name is an error.
The last table is in table.md there. Runs are trained in this process, with one thread.
"""

from __future__ import annotations

import csv
import json
import logging
import statistics
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import yaml

import train
from utils.config import Hyp, find, flag, read_yaml, run_script
from utils.runs import write_atomic
from utils.train import recipe

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


def run_one(cfg: StudyConfig, data: str, model: str, name: str, arm: Any, seed: int) -> Path:
    """The run folder of one training, trained now unless it is there; ValueErrors of read_arm and keep_settings."""
    folder = Path(cfg.project) / f"{stem(data)}-{Path(model).stem}-{cfg.imgsz}-{cfg.epochs}-{name}-s{seed}"
    flags, hyp = read_arm(cfg, name, arm)
    start = {"weights": cfg.weights} if cfg.weights else {"cfg": model}
    common = {"data": data, "imgsz": cfg.imgsz, "batch_size": cfg.batch_size, "epochs": cfg.epochs, "seed": seed}
    settings = {"fraction": cfg.fraction} | start | common | flags
    rule = {key: value for key, value in vars(recipe).items() if key.isupper()}  # its numbers
    keep_settings(folder.with_suffix(".json"), settings | ({"hyp": hyp.as_dict()} if hyp else {"rule": rule}))
    if (folder / "metrics.json").exists():
        return folder
    if (folder / "weights" / "last.pt").exists():
        train.main(train.TrainConfig(resume=str(folder), workers=0))
        return folder
    if hyp:
        settings["hyp"] = str(folder.with_suffix(".hyp.yaml"))
        write_atomic(Path(settings["hyp"]), yaml.safe_dump(hyp.as_dict(), sort_keys=False))
    places = {"project": str(folder.parent), "name": folder.name, "exist_ok": True, "workers": 0, "noplots": True}
    train.main(train.TrainConfig(**(settings | places)))
    return folder


def stem(data: str) -> str:
    """A short name of a data set YAML: its folder's, where the file itself is called data.yaml."""
    return Path(data).resolve().parent.name if Path(data).name == "data.yaml" else Path(data).stem


def read_arm(cfg: StudyConfig, name: str, arm: Any) -> tuple[dict[str, Any], Hyp | None]:
    """Flags of train.py and the hyps of a recipe, None where these are left to the rule.

    Raises:
        ValueError: an unknown key, or a value of the wrong kind; names the file and the recipe.
    """
    where = f"{cfg.arms}: {name}"
    arm = {} if arm is None else arm
    if not isinstance(arm, dict) or not isinstance(arm.get("flags", {}), dict):
        raise ValueError(f"{where} is {arm!r}, expected hyp keys and under 'flags' those of train.py")
    flags = {key.replace("-", "_"): value for key, value in arm.get("flags", {}).items()}
    known = {f.name: f.default for f in fields(train.TrainConfig)}
    for key, value in flags.items():
        if key not in known:
            raise ValueError(f"{where}: unknown flag {key}")
        kind = (int, float) if isinstance(known[key], float) or known[key] is None else type(known[key])
        flags[key] = value = tuple(value) if isinstance(value, list) else value
        if not isinstance(value, kind):
            raise ValueError(f"{where}: {key} is {value!r}, expected a value like {known[key]!r}")
    changes = {key: value for key, value in arm.items() if key not in ("flags", "rule")}
    if arm.get("rule"):
        if changes:
            raise ValueError(f"{where}: 'rule: true' leaves the hyp to train.py, expected no hyp keys")
        return flags, None
    unknown = set(changes) - {f.name for f in fields(Hyp)}
    if unknown:
        raise ValueError(f"{where}: unknown key(s) {', '.join(sorted(unknown))}")
    try:
        return flags, replace(Hyp.from_yaml(find(cfg.base, "data/hyps")), **changes)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error


def keep_settings(path: Path, settings: dict[str, Any]) -> None:
    """Write what a run is made with beside its folder; raise ValueError where it was made with something else."""
    mine = json.loads(json.dumps(settings))
    if path.exists():
        try:
            theirs = dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: not the settings of a run, expected another --project: {error}") from error
        other = [key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key)]
        if other:
            raise ValueError(f"{path}: begun with another {', '.join(sorted(other))}; expected another --project")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(mine, indent=2))


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
                results = [best(run_one(cfg, data, model, name, arms[name], seed)) for seed in cfg.seeds]
                scores = " | ".join(cell(list(values)) for values in zip(*results, strict=True))
                lines.append(f"| {stem(data)} | {Path(model).stem} | {name} | {scores} |")
                write_atomic(table, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main, StudyConfig)
