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
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from utils.commands import relative
from utils.data.data_yaml import read_data_yaml
from utils.files import read_yaml, write_atomic
from utils.next_steps import IMAGES, Steps, after_training, threshold
from utils.templates import render
from utils.thresholds import AUTO, Thresholds
from utils.train.plots import read_results, topic_charts

LOGGER = logging.getLogger(__name__)
TEMPLATE = "report.html.j2"
BYTES = 1_800_000  # of all images before base64, so that a report can be sent by mail
SMALLER = ((1600, 85), (1600, 70), (1280, 70), (1024, 60), (800, 50))  # longest side and WebP quality, tried in turn
SCORES = {"images", "instances", "precision", "recall", "map50", "map50_95"}  # of metrics.json
GALLERIES: dict[str, dict[str, str]] = {  # heading -> file pattern -> caption
    "Validation": {
        "val_batch*": "Validation images",
        "PR_curve.png": "Precision over recall",
        "reliability.png": "Share of right detections over confidence",
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
    options, hyp = (read_or_empty(folder / name, read_yaml) for name in ("opt.yaml", "hyp.yaml"))
    columns, metrics = (
        read_or_empty(folder / "results.csv", read_results),
        read_or_empty(folder / "metrics.json", read_json),
    )
    page = render(
        Path(__file__).parent,
        TEMPLATE,
        title=folder.resolve().name,
        folder=folder,
        tiles=[scores(metrics), facts(columns, metrics, options)],
        best=[text for text in (best_epoch(columns), best_threshold(metrics)) if text],
        uses=run_steps(folder, options, finished=bool(metrics)),
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


def read_or_empty(path: Path, reader: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The content of a file; {} if it does not exist, {} and a warning if it is broken."""
    try:
        return reader(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        LOGGER.warning(f"{path}: left out of the report: {error}")
        return {}


def scores(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of the scores."""
    names = {"map50": "mAP50", "map50_95": "mAP50-95", "precision": "Precision", "recall": "Recall"}
    return [(name, f"{metrics[key]:.3f}") for key, name in names.items() if key in metrics]


def facts(
    columns: Mapping[str, np.ndarray], metrics: Mapping[str, Any], options: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Names and values of what the run was."""
    found = [("Classes", str(len(metrics["per_class"])))] if "per_class" in metrics else []
    if len(columns.get("epoch", ())):
        found.append(("Epochs", str(len(columns["epoch"]))))
    if np.isfinite(columns.get("seconds", np.nan)).any():
        seconds = round(float(np.nansum(columns["seconds"])))
        short = f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"
        long = f"{seconds // 3600} h {seconds % 3600 // 60} min"
        found.append(("Training time", long if seconds >= 3600 else short))
    if "imgsz" in options:
        found.append(("Image size", f"{options['imgsz']} px"))
    return [*found, ("Model", name)] if (name := model_name(options)) else found


def model_name(options: Mapping[str, Any]) -> str:
    """The model YAML of a run's flags, or the weights that it was fine-tuned from; best.pt with the run's name."""
    cfg, weights = options.get("cfg"), Path(str(options.get("weights") or ""))
    if cfg or (cfg == "" and weights == Path()):
        return Path(str(cfg or "yolov5-mobilevit.yaml")).stem
    own = weights.stem in ("best", "last") and weights.parent.name == "weights"
    return f"{weights.parent.parent.name}/{weights.name}" if own else weights.stem


def best_threshold(metrics: Mapping[str, Any]) -> str | None:
    """A sentence about the confidence threshold of the best F1; None if it is not in metrics.json."""
    if metrics.get("thresholds") is None:
        return None
    try:
        stored = Thresholds.from_dict(metrics["thresholds"], "metrics.json")
    except ValueError as error:
        LOGGER.warning(f"left out of the report: {error}")
        return None
    at, f1 = threshold(stored.confidence), stored.f1
    return (
        f"The best balance of precision and recall, a mean F1 of {f1:.2f}, is at a confidence threshold of {at}: "
        f"--conf-thres {at}, or --conf-thres {AUTO} where the weights carry it. A lower one finds more, a higher one "
        "is wrong less often."
    )


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


def run_steps(folder: Path, options: Mapping[str, Any], finished: bool = True) -> Steps:
    """Commands for the checkpoints of a run with these flags, with its data and images where they still are."""
    data, images = str(options.get("data", "my.yaml")), IMAGES
    with suppress(OSError, ValueError):  # the data of an old run may be gone
        (source, *_) = read_data_yaml(data).split("val")
        images = relative(source) + "/" * source.is_dir() if source.suffix != ".txt" else IMAGES
    tile = options.get("tile_train", 0)
    return after_training(folder, relative(data), images, finished, tile if isinstance(tile, int) else 0)


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
    files = {
        heading: [(p, caption) for pattern, caption in patterns.items() for p in image_files(folder, pattern)]
        for heading, patterns in GALLERIES.items()
    }
    budget = BYTES // max(sum(map(len, files.values())), 1)
    found = [(heading, [embed(path, about, budget) for path, about in paths]) for heading, paths in files.items()]
    readable = [(heading, [image for image in images if image]) for heading, images in found]
    return [(heading, images) for heading, images in readable if images]


def image_files(folder: Path, pattern: str) -> list[Path]:
    """The images in a folder whose names match a pattern, sorted."""
    return sorted(path for path in folder.glob(pattern) if path.suffix in (".jpg", ".png"))


def embed(path: Path, caption: str, budget: int) -> EmbeddedImage | None:
    """The image in a file, made smaller if it has more than `budget` bytes; None and a warning if it cannot be read."""
    try:
        with Image.open(path) as image:
            size, kind, content = image.size, Image.MIME[image.format or ""], path.read_bytes()
            for side, quality in SMALLER:
                if len(content) <= budget:
                    break
                small, buffer = image.convert("RGB"), BytesIO()
                small.thumbnail((side, side))
                small.save(buffer, "WEBP", quality=quality)
                size, kind, content = small.size, "image/webp", buffer.getvalue()
    except OSError as error:
        LOGGER.warning(f"{path}: left out of the report: {error}")
        return None
    for ending, more in (("_labels", ": labels"), ("_pred", ": detections")):
        caption += more if path.stem.endswith(ending) else ""
    return EmbeddedImage(data_uri(kind, content), caption, path.name, *size)


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
