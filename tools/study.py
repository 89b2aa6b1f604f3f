"""Compare training recipes: train models with each of them and write a table of the results.

    python tools/study.py --data my.yaml --cfg yolov5n.yaml --arms tools/recipes.yaml --seeds 0 1 2

`--arms` is a YAML: name -> hyperparameters that differ from --base, and under `flags` flags of train.py. A finished run
in --project is not repeated, an interrupted one is resumed, and a run with the same name but other settings is an
error. The table is written to table.md in --project. Runs are trained one after the other in this process.

Several networks are also compared with the first: what they cost, mAP50-95 of each data set, differences between runs
of the same data and seed. `--head` puts other heads on every model: `--cfg yolov5n.yaml --head anchors yolox v8`.
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
    head: tuple[str, ...] = flag((), "heads to put on each of --cfg, by their names in --heads; not given: their own")
    heads: str = flag("tools/heads.yaml", "YAML of heads: name -> block and arguments of a last row")
    weights: str = flag("", "checkpoint to fine-tune, instead of --cfg")
    arms: str = flag("tools/recipes.yaml", "YAML of recipes", group="recipes")
    only: tuple[str, ...] = flag((), "names of the recipes to run; not given: all")
    base: str = flag("hyp.scratch-low.yaml", "hyperparameter YAML that the recipes change")
    seeds: tuple[int, ...] = flag((0,), "random seeds, a run for each", group="training")
    imgsz: int = flag(192, "image size, pixels")
    batch_size: int = flag(16, "images per batch")
    epochs: int = flag(30, "epochs of each run")
    fraction: tuple[float, ...] = flag(
        (1.0,), "fraction of the training images to use, 0..1: one number, or one for each of --data"
    )
    threads: int = flag(1, "CPU threads; more may be slower if cores are shared", group="hardware")
    project: str = flag("runs/study", "folder of the runs and the table", group="output")
    times: tuple[int, ...] = flag((), "input sizes, pixels, at which networks are timed for the table, such as 320 640")
    finished: bool = flag(False, "train nothing: the table of the runs that are finished")


if __name__ == "__main__":
    check_cli(StudyConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import csv
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any

import torch
import yaml

import train
from models.heads import HEADS
from models.weights.checkpoint import load_checkpoint
from models.yolo import read_model_yaml
from tools.study_table import Line, compare, mean_and_range
from utils.files import find, read_yaml, write_atomic
from utils.hyp import NO_FACTORS, Hyp
from utils.train import recipe

LOGGER = logging.getLogger(__name__)
COLUMNS = ("metrics/mAP_0.5", "metrics/mAP_0.5:0.95")


def folder_of(cfg: StudyConfig, data: str, model: str, name: str, seed: int) -> Path:
    """The folder of one run."""
    return Path(cfg.project) / f"{stem(data)}-{Path(model).stem}-{cfg.imgsz}-{cfg.epochs}-{name}-s{seed}"


def run_one(cfg: StudyConfig, data: str, fraction: float, model: str, name: str, arm: Any, seed: int) -> Path:
    """The folder of one run, which is trained unless it is finished.

    Raises:
        ValueError: see read_arm, check_settings.
    """
    folder = folder_of(cfg, data, model, name, seed)
    flags, hyp = read_arm(cfg, name, arm)
    start = {"weights": cfg.weights} if cfg.weights else {"cfg": model}
    common = {"data": data, "imgsz": cfg.imgsz, "batch_size": cfg.batch_size, "epochs": cfg.epochs, "seed": seed}
    settings: dict[str, Any] = {"fraction": fraction} | start | common | flags
    chosen = {"hyp": hyp.as_dict()} if hyp else {"rule": rule_constants(model)}
    network = {"head": row_of(model)} if Path(model).parent == Path(cfg.project) else {}  # of --head
    check_settings(folder.with_suffix(".json"), settings | chosen | network)
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


def row_of(model: str) -> list[Any]:
    """Block and arguments of the last row of a model YAML or checkpoint."""
    yaml_of = Path(model).suffix in (".yaml", ".yml")
    rows = (read_model_yaml(model)[0] if yaml_of else load_checkpoint(model).yaml)["head"]
    return list(rows[-1][2:])


def rule_constants(model: str) -> dict[str, Any]:
    """The numbers of the recipe that train.py chooses for a model; those of its head if they are not all 1."""
    constants = {name: v for name, v in vars(recipe).items() if name.isupper() and isinstance(v, int | float | tuple)}
    block = row_of(model)[0]
    factors = HEADS[block].recipe if block in HEADS else NO_FACTORS
    return constants | ({"HEAD": asdict(factors)} if factors != NO_FACTORS else {})


def networks(cfg: StudyConfig) -> Iterator[str]:
    """The model YAMLs of the study: those of --cfg, or with each of --head, written to --project.

    Raises:
        ValueError: a head that --heads has not, or a row that is no head.
    """
    heads = read_yaml(find(cfg.heads, "tools")) if cfg.head else {}
    for model in cfg.cfg:
        if not cfg.head:
            yield model
        for name in cfg.head:
            if name not in heads:
                raise ValueError(f"{cfg.heads}: no head {name}, it has {', '.join(map(str, heads))}")
            row = heads[name]
            if not isinstance(row, list) or len(row) != 2 or row[0] not in HEADS or not isinstance(row[1], list):
                raise ValueError(f"{cfg.heads}: {name} is {row!r:.80}, expected [a block of {', '.join(HEADS)}, [nc]]")
            yield with_head(model, name, row, Path(cfg.project))


def with_head(model: str, name: str, row: list[Any], folder: Path) -> str:
    """The YAML of a model with another head, `row`; the model's own if that is its head already."""
    network = read_model_yaml(model)[0]
    source, _, *own = network["head"][-1]
    if own == row:
        return model
    network["head"][-1] = [source, 1, *row]
    if "anchors" not in row[1]:
        network.pop("anchors", None)
    path = folder / f"{Path(model).stem}-{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, yaml.safe_dump(network, sort_keys=False, default_flow_style=None, width=120))
    return str(path)


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


def main(cfg: StudyConfig) -> None:
    """Train all runs and print the tables."""
    if not cfg.data:
        raise ValueError("--data is missing, expected one or more data YAMLs")
    if len(cfg.fraction) not in (1, len(cfg.data)):
        raise ValueError(f"--fraction has {len(cfg.fraction)} numbers, expected one, or one for each of --data")
    arms = read_yaml(find(cfg.arms, "tools"))
    missing = set(cfg.only) - set(arms)
    if missing:
        raise ValueError(f"{cfg.arms}: no recipe {', '.join(sorted(missing))}, it has {', '.join(arms)}")
    torch.set_num_threads(cfg.threads)
    fractions = cfg.fraction * (len(cfg.data) if len(cfg.fraction) == 1 else 1)
    models = [cfg.weights] if cfg.weights else list(networks(cfg))
    names = list(cfg.only or arms)
    rows = {(m, n): Line(Path(m).stem if len(names) == 1 else f"{Path(m).stem}, {n}", m) for m in models for n in names}
    lines = ["| data | model | recipe | mAP50 | mAP50-95 |", "|---|---|---|---|---|"]
    table = Path(cfg.project) / "table.md"
    for data, fraction in zip(cfg.data, fractions, strict=True):
        for model, name in rows:
            if cfg.finished:
                folders = {seed: folder_of(cfg, data, model, name, seed) for seed in cfg.seeds}
                folders = {seed: folder for seed, folder in folders.items() if (folder / "metrics.json").exists()}
            else:
                folders = {seed: run_one(cfg, data, fraction, model, name, arms[name], seed) for seed in cfg.seeds}
            results = {seed: best(folder) for seed, folder in folders.items()}
            rows[model, name].scores |= {(stem(data), seed): scores[1] for seed, scores in results.items()}
            cells = [mean_and_range([scores[k] for scores in results.values()]) for k in range(len(COLUMNS))]
            lines.append(f"| {stem(data)} | {Path(model).stem} | {name} | {' | '.join(cells)} |")
            write_atomic(table, "\n".join(lines) + "\n")
    if len(models) > 1:
        lines += ["", compare(list(rows.values()), [stem(data) for data in cfg.data], cfg.times)]
        write_atomic(table, "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    run_script(main, StudyConfig)
