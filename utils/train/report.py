"""One self-contained page about a training run: `python -m utils.train.report --run runs/train/exp`."""

from __future__ import annotations

import base64
import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.ticker import MaxNLocator
from PIL import Image

from utils.config import flag, read_yaml, run_script
from utils.runs import write_atomic
from utils.train.plots import read_results

LOGGER = logging.getLogger(__name__)
TEMPLATE = "report.html.j2"
SCORES = {"images", "instances", "precision", "recall", "map50", "map50_95"}
CHARTS: dict[str, dict[str, str]] = {  # title -> name of a line -> column of results.csv
    "Box loss": {"training": "train/box_loss", "validation": "val/box_loss"},
    "Objectness loss": {"training": "train/obj_loss", "validation": "val/obj_loss"},
    "Class loss": {"training": "train/cls_loss", "validation": "val/cls_loss"},
    "Average precision": {"mAP50": "metrics/mAP_0.5", "mAP50-95": "metrics/mAP_0.5:0.95"},
    "Precision and recall": {"precision": "metrics/precision", "recall": "metrics/recall"},
    "Learning rate": {"weights": "x/lr2", "biases": "x/lr0"},
}
PICTURES: dict[str, dict[str, str]] = {  # heading -> file pattern -> caption
    "Validation": {
        "val_batch*": "Validation pictures",
        "PR_curve.png": "Precision over recall",
        "F1_curve.png": "F1 over confidence",
        "P_curve.png": "Precision over confidence",
        "R_curve.png": "Recall over confidence",
        "confusion_matrix*.png": "Which class was taken for which",
    },
    "Training data": {
        "labels.jpg": "Classes, places and sizes of the boxes",
        "train_batch*.jpg": "A training batch as the model sees it, with its boxes",
    },
}
LEFT, RIGHT, TOP, BOTTOM = 56, 392, 12, 208  # the plotting area of a chart in the units of its viewBox


@dataclass(frozen=True)
class ReportConfig:
    """Write report.html of a run folder, from whatever files are there."""

    run: str = flag("", "run folder, such as runs/train/exp; required")


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run folder and return its path; files that are missing or broken are left out.

    Pictures and styles are inside the page: it needs no network and may be sent as it is.

    Raises:
        FileNotFoundError: no such folder.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise FileNotFoundError(f"run folder '{folder}' not found")
    options, hyp = (_read(folder / name, read_yaml) for name in ("opt.yaml", "hyp.yaml"))
    columns, metrics = _read(folder / "results.csv", read_results), _read(folder / "metrics.json", read_json)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(TEMPLATE).render(
        title=folder.resolve().name,
        folder=folder,
        tiles=summary(columns, metrics, options),
        best=best_epoch(columns),
        uses=commands(folder, options),
        charts=[chart for title, lines in CHARTS.items() if (chart := draw_chart(title, lines, columns))],
        table=epoch_table(columns),
        classes=class_rows(metrics),
        unseen=[name for name, values in metrics.get("per_class", {}).items() if not values["instances"]],
        galleries=galleries(folder),
        settings=[
            (n, list(v.items())) for n, v in (("Flags (opt.yaml)", options), ("Hyperparameters (hyp.yaml)", hyp)) if v
        ],
    )
    target = folder / "report.html"
    write_atomic(target, page)
    return target


def read_json(path: Path) -> dict[str, Any]:
    """The object in a metrics.json.

    Raises:
        ValueError: not JSON, or not metrics.
    """
    values = json.loads(path.read_text(encoding="utf-8"))
    per_class = values.get("per_class", {}) if isinstance(values, dict) else None
    if not isinstance(per_class, dict) or not all(set(row) >= SCORES for row in (values, *per_class.values())):
        raise ValueError(f"expected {', '.join(sorted(SCORES))} of all classes and of each")
    return values


def _read(path: Path, reader: Any) -> dict[str, Any]:
    """What `reader` makes of a file; {} and a warning if it is broken, {} alone if it is not there."""
    try:
        return dict(reader(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        LOGGER.warning(f"{path}: left out of the report: {error}")
        return {}


def summary(
    columns: Mapping[str, np.ndarray], metrics: Mapping[str, Any], options: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Pairs of a name and a short text: what one wants to know first."""
    names = {"map50": "mAP50", "map50_95": "mAP50-95", "precision": "Precision", "recall": "Recall"}
    tiles = [(name, f"{metrics[key]:.3f}") for key, name in names.items() if key in metrics]
    if "per_class" in metrics:
        tiles.append(("Classes", str(len(metrics["per_class"]))))
    if len(columns.get("epoch", ())):
        tiles.append(("Epochs", str(len(columns["epoch"]))))
    if np.isfinite(columns.get("seconds", np.nan)).any():
        seconds = round(float(np.nansum(columns["seconds"])))
        short = f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
        long = f"{seconds // 3600} h {seconds % 3600 // 60} min"
        tiles.append(("Training time", long if seconds >= 3600 else short))
    if "imgsz" in options:
        tiles.append(("Picture size", f"{options['imgsz']} px"))
    model = options.get("cfg") or options.get("weights")
    return [*tiles, ("Model", Path(str(model)).stem)] if model else tiles


def best_epoch(columns: Mapping[str, np.ndarray]) -> str:
    """A sentence about the epoch of best.pt; '' if no epoch was validated."""
    ap50, ap = columns.get("metrics/mAP_0.5", np.empty(0)), columns.get("metrics/mAP_0.5:0.95", np.empty(0))
    if len(ap50) != len(ap) or not np.isfinite(fitness := 0.1 * ap50 + 0.9 * ap).any():
        return ""
    best = len(fitness) - 1 - int(np.nan_to_num(fitness[::-1], nan=-1).argmax())  # of equal ones the last is kept
    return (
        f"The best weights are those of epoch {best + 1} of {len(fitness)}: fitness {fitness[best]:.3f}, "
        f"which is 0.1 mAP50 ({ap50[best]:.3f}) + 0.9 mAP50-95 ({ap[best]:.3f})."
    )


def commands(folder: Path, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs of a purpose and the command line for it, for the checkpoints that are there."""
    best, last = folder / "weights" / "best.pt", folder / "weights" / "last.pt"
    size = f" --imgsz {options['imgsz']}" if "imgsz" in options else ""
    data = shlex.quote(str(options.get("data", "my.yaml")))
    lines = []
    if best.is_file():
        weights = shlex.quote(best.as_posix())
        lines = [
            (
                "Find objects in your pictures or videos:",
                f"python detect.py --weights {weights} --source pictures/{size}",
            ),
            ("Measure the weights on a data set:", f"python val.py --weights {weights} --data {data}{size}"),
            (
                "Train on from these weights, on other pictures:",
                f"python train.py --weights {weights} --data my.yaml{size}",
            ),
        ]
    if last.is_file():
        lines.append(("Go on with a run that was stopped:", f"python train.py --resume {shlex.quote(last.as_posix())}"))
    return lines


def draw_chart(title: str, lines: Mapping[str, str], columns: Mapping[str, np.ndarray]) -> dict[str, Any] | None:
    """Points and ticks of a line chart in the units of the template's viewBox; None if nothing was measured."""
    curves = {name: columns[column] for name, column in lines.items() if column in columns}
    curves = {name: values for name, values in curves.items() if np.isfinite(values).any()}
    if not curves:
        return None
    every = np.concatenate(list(curves.values()))
    epochs = columns.get("epoch", np.arange(len(next(iter(curves.values()))))) + 1
    every = every[np.isfinite(every)]
    marks = MaxNLocator(5).tick_values(every.min(), every.max() + 1e-9)
    low, high = marks[0], marks[-1]
    first, last = epochs.min(), max(epochs.max(), epochs.min() + 1)

    def across(epoch: float) -> float:
        return round(LEFT + (RIGHT - LEFT) * float((epoch - first) / (last - first)), 1)

    def down(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * float((value - low) / (high - low)), 1)

    drawn = [
        {
            "name": name,
            "last": f"{values[np.isfinite(values)][-1]:.3g}",
            "points": [(across(e), down(v)) for e, v in zip(epochs, values, strict=True) if np.isfinite(v)],
        }
        for name, values in curves.items()
    ]
    whole = [e for e in MaxNLocator(6, integer=True).tick_values(first, last) if first <= e <= epochs.max()]
    return {
        "title": title,
        "label": f"{title} over {len(epochs)} epochs: " + ", ".join(f"{d['name']} ends at {d['last']}" for d in drawn),
        "lines": drawn,
        "y_ticks": [(down(v), f"{v:.4g}") for v in marks],
        "x_ticks": [(across(e), f"{e:.0f}") for e in whole],
    }


def epoch_table(columns: Mapping[str, np.ndarray]) -> dict[str, list]:
    """Header and rows of results.csv as texts, epochs counted from 1."""
    texts = [[f"{v + 1:.0f}" if name == "epoch" else f"{v:.4g}" for v in column] for name, column in columns.items()]
    return {"header": list(columns), "rows": list(zip(*texts, strict=True))}


def class_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """A row of texts for all classes together, then for each class with labels; [] without metrics."""
    if not metrics:
        return []
    keys = ("precision", "recall", "map50", "map50_95")
    rows = [("all classes", metrics), *((n, v) for n, v in metrics.get("per_class", {}).items() if v["instances"])]
    return [[n, str(v["images"]), str(v["instances"]), *(f"{v[key]:.3f}" for key in keys)] for n, v in rows]


def galleries(folder: Path) -> list[tuple[str, list[dict[str, Any]]]]:
    """The pictures of a run below their headings, as data URIs; headings without pictures are left out."""
    found = []
    for heading, patterns in PICTURES.items():
        pictures = []
        for pattern, caption in patterns.items():
            paths = sorted(p for p in folder.glob(pattern) if p.suffix in (".jpg", ".png"))
            pictures += [picture for path in paths if (picture := embed(path, caption))]
        if pictures:
            found.append((heading, pictures))
    return found


def embed(path: Path, caption: str) -> dict[str, Any]:
    """A picture as a data URI with its size; {} and a warning if it is not one."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            kind = Image.MIME[picture.format or ""]
        data = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError as error:
        LOGGER.warning(f"{path}: left out of the report: {error}")
        return {}
    for ending, more in (("_labels", ": the labels"), ("_pred", ": what the model finds")):
        caption += more if path.stem.endswith(ending) else ""
    return {
        "src": f"data:{kind};base64,{data}",
        "caption": caption,
        "name": path.name,
        "width": width,
        "height": height,
    }


def main(cfg: ReportConfig) -> None:
    """Write the report of `cfg.run` and say where it is."""
    if not cfg.run:
        raise ValueError("--run is missing, expected a run folder")
    LOGGER.info(f"report in {write_report(cfg.run)}")


if __name__ == "__main__":
    run_script(main, ReportConfig)
