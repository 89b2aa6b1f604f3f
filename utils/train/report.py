"""The report of a training run as one HTML file: `python -m utils.train.report --run runs/train/exp`."""

from __future__ import annotations

from dataclasses import dataclass

from utils.config import check_cli, flag, run_script


@dataclass(frozen=True)
class ReportConfig:
    """Write report.html into a run folder, from the files that it has.

    Example: --run runs/train/exp
    """

    run: str = flag("", "run folder, such as runs/train/exp; required")


if __name__ == "__main__":
    check_cli(ReportConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import base64
import json
import logging
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from utils.files import read_yaml, write_atomic
from utils.train.plots import read_results, topic_charts

LOGGER = logging.getLogger(__name__)
TEMPLATE = "report.html.j2"
SCORES = {"images", "instances", "precision", "recall", "map50", "map50_95"}  # of metrics.json
IMAGES: dict[str, dict[str, str]] = {  # heading -> file pattern -> caption
    "Validation": {
        "val_batch*": "Validation images",
        "PR_curve.png": "Precision over recall",
        "F1_curve.png": "F1 over confidence",
        "P_curve.png": "Precision over confidence",
        "R_curve.png": "Recall over confidence",
        "confusion_matrix*.png": "Predicted class over true class",
    },
    "Training data": {
        "labels.jpg": "Classes, centers and sizes of the boxes",
        "train_batch*.jpg": "A training batch after augmentation, with its labels",
    },
}


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` into a run folder and return its path; missing and broken files are left out.

    Images and styles are embedded: the file can be sent alone and needs no network.

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
        charts=charts(columns),
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


def _read(path: Path, reader: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The content of a file; {} if it does not exist, {} and a warning if it is broken."""
    try:
        return reader(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        LOGGER.warning(f"{path}: left out of the report: {error}")
        return {}


def summary(
    columns: Mapping[str, np.ndarray], metrics: Mapping[str, Any], options: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Names and values of the most important numbers."""
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
        tiles.append(("Image size", f"{options['imgsz']} px"))
    model = options.get("cfg") or options.get("weights")
    return [*tiles, ("Model", Path(str(model)).stem)] if model else tiles


def best_epoch(columns: Mapping[str, np.ndarray]) -> str | None:
    """A sentence about the epoch of best.pt; None if no epoch was validated."""
    ap50, ap = columns.get("metrics/mAP_0.5", np.empty(0)), columns.get("metrics/mAP_0.5:0.95", np.empty(0))
    if len(ap50) != len(ap) or not np.isfinite(fitness := 0.1 * ap50 + 0.9 * ap).any():
        return None
    best = len(fitness) - 1 - int(np.nan_to_num(fitness[::-1], nan=-1).argmax())  # of equal ones the last
    return (
        f"The best weights are those of epoch {best + 1} of {len(fitness)}: fitness {fitness[best]:.3f}, "
        f"which is 0.1 mAP50 ({ap50[best]:.3f}) + 0.9 mAP50-95 ({ap[best]:.3f})."
    )


def from_here(path: Path) -> Path:
    """`path` relative to the working folder if it is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def commands(folder: Path, options: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Purposes and command lines for the checkpoints of the run."""
    best, last = folder / "weights" / "best.pt", folder / "weights" / "last.pt"
    size = f" --imgsz {options['imgsz']}" if "imgsz" in options else ""
    data = shlex.quote(from_here(Path(str(options.get("data", "my.yaml")))).as_posix())
    lines = []
    if best.is_file():
        weights = shlex.quote(best.as_posix())
        lines = [
            (
                "Detect objects in images or videos:",
                f"python detect.py --weights {weights} --source images/{size}",
            ),
            ("Evaluate the weights on a data set:", f"python val.py --weights {weights} --data {data}{size}"),
            (
                "Fine-tune the weights on another data set:",
                f"python train.py --weights {weights} --data my.yaml{size}",
            ),
        ]
    if last.is_file():
        lines.append(
            ("Resume the run if it was interrupted:", f"python train.py --resume {shlex.quote(last.as_posix())}")
        )
    return lines


def charts(columns: Mapping[str, np.ndarray]) -> list[dict[str, str]]:
    """The curves of results.csv as images with their last values and alternative texts."""
    found = []
    for title, svg, last in topic_charts(columns):
        values = ", ".join(f"{name} {value:.3g}" for name, value in last.items())
        alt = f"{title} over the epochs, in the last one: {values}"
        found.append({"src": data_uri("image/svg+xml", svg), "last": values, "alt": alt})
    return found


def epoch_table(columns: Mapping[str, np.ndarray]) -> dict[str, list]:
    """Header and rows of results.csv as text, with epochs counted from 1."""
    texts = [[f"{v + 1:.0f}" if name == "epoch" else f"{v:.4g}" for v in column] for name, column in columns.items()]
    return {"header": list(columns), "rows": list(zip(*texts, strict=True))}


def class_rows(metrics: Mapping[str, Any]) -> list[list[str]]:
    """Rows of text for all classes together and for each class with labels; [] without metrics."""
    if not metrics:
        return []
    keys = ("precision", "recall", "map50", "map50_95")
    rows = [("all classes", metrics), *((n, v) for n, v in metrics.get("per_class", {}).items() if v["instances"])]
    return [[n, str(v["images"]), str(v["instances"]), *(f"{v[key]:.3f}" for key in keys)] for n, v in rows]


class EmbeddedImage(NamedTuple):
    """An image as a data URI, its caption, the name of its file, and its size in pixels."""

    src: str
    caption: str
    name: str
    width: int
    height: int


def galleries(folder: Path) -> list[tuple[str, list[EmbeddedImage]]]:
    """Headings and the images of the run below them; headings without images are left out."""
    found = []
    for heading, patterns in IMAGES.items():
        images = []
        for pattern, caption in patterns.items():
            paths = sorted(p for p in folder.glob(pattern) if p.suffix in (".jpg", ".png"))
            images += [image for path in paths if (image := embed(path, caption))]
        if images:
            found.append((heading, images))
    return found


def embed(path: Path, caption: str) -> EmbeddedImage | None:
    """The image in a file; None and a warning if it cannot be read."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            kind = Image.MIME[image.format or ""]
        source = data_uri(kind, path.read_bytes())
    except OSError as error:
        LOGGER.warning(f"{path}: left out of the report: {error}")
        return None
    for ending, more in (("_labels", ": labels"), ("_pred", ": detections")):
        caption += more if path.stem.endswith(ending) else ""
    return EmbeddedImage(source, caption, path.name, width, height)


def data_uri(kind: str, content: bytes) -> str:
    """The content of a file of the MIME type `kind` as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def main(cfg: ReportConfig) -> None:
    """Write the report of `cfg.run` and log its path."""
    if not cfg.run:
        raise ValueError("--run is missing, expected a run folder")
    LOGGER.info(f"report in {write_report(cfg.run)}")


if __name__ == "__main__":
    run_script(main, ReportConfig)
