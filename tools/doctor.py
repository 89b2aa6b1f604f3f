"""Examine a data set: `python tools/doctor.py --data my.yaml --imgsz 320 --html page.html`.

Nothing is changed or written, but for the page and the repaired copy if they are asked for. Exit code 1: something
would make training wrong; 0: at most warnings; 2: the command cannot be carried out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_1, Config, check_cli, flag, run_script


@dataclass(frozen=True)
class DoctorConfig(Config):
    """Examine a data set: what would spoil training, what is odd, what it holds.

    Example: --data my.yaml --html doctor.html
    """

    data: str = flag("", "data YAML; required", group="data")
    imgsz: int = flag(
        640,
        "image size of the training, pixels",
        "--img",
        "--img-size",
        bounds=AT_LEAST_1,
        group="the training that is planned",
    )
    epochs: int = flag(100, "epochs of the training, for its recipe", bounds=AT_LEAST_1)
    batch_size: int = flag(16, "images per batch of the training, for its recipe", "--batch", bounds=AT_LEAST_1)
    weights: str = flag(
        "", "model file whose predictions are compared with the labels; empty: none", group="check with a model"
    )
    suspects: str = flag("", "suspects.csv of val.py or train.py, whose suspects are listed; empty: none")
    device: str = flag("", "for --weights: cpu, mps or a GPU number; empty: the first GPU, else the CPU")
    html: str = flag("", "file to write the page to, with images; empty: none", group="output")
    fix: str = flag("", "new folder for a repaired copy of the data in YOLO form; empty: none")


if __name__ == "__main__":
    check_cli(DoctorConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging

import numpy as np

from models.runtimes.load import load_model
from utils.data.data_yaml import Data
from utils.device import select_device
from utils.doctor.examine import Diagnosis, examine
from utils.doctor.findings import Finding
from utils.doctor.page import text_page, write_html
from utils.doctor.repair import check_target, repair
from utils.doctor.survey import Survey, all_records, survey
from utils.doctor.suspects import classes_by_name, findings, in_data_classes, nothing_found, read_suspects, suspects_of
from utils.evaluate.suspects import LOWEST
from utils.images import imread
from utils.nms import NmsSettings
from utils.predict.predictor import Predictor
from utils.progress import Progress
from utils.train.recipe import RunInfo, choose_recipe
from val import read_data

LOGGER = logging.getLogger(__name__)


def main(cfg: DoctorConfig) -> None:
    """Print the page, write what is asked for, and exit with 1 if something would make training wrong."""
    if not diagnose(cfg).healthy:
        sys.exit(1)


def diagnose(cfg: DoctorConfig) -> Diagnosis:
    """Examine `cfg.data`, print the page, write the HTML file and the repaired copy.

    Raises:
        ValueError, FileNotFoundError: a flag or the data YAML is wrong, or the model's classes are others.
    """
    if not cfg.data:
        raise ValueError("--data is missing, expected a data YAML")
    if cfg.html and Path(cfg.html).suffix.lower() not in (".html", ".htm"):  # so that no image is overwritten
        raise ValueError(f"--html is '{cfg.html}', expected a file that ends in .html")
    data = read_data(cfg.data)
    found = survey(data)
    if cfg.fix:
        check_target(Path(cfg.fix), found)  # before minutes of predictions
    result = examine(data, found, cfg.imgsz, recipe(cfg, data, found))
    if cfg.weights:
        result = result.with_findings(suspects(cfg, data, found))
    if cfg.suspects:
        listed = read_suspects(Path(cfg.suspects), [record for _, record in all_records(found)])
        result = result.with_findings(list(findings(listed, Path(cfg.suspects).name)))
    LOGGER.info(text_page(result))
    if cfg.fix:
        LOGGER.info("\n".join([f"repaired copy in {cfg.fix}:", *repair(result, Path(cfg.fix)).lines]))
    if cfg.html:
        write_html(result, Path(cfg.html))
        LOGGER.info(f"page with images in {cfg.html}")
    return result


def recipe(cfg: DoctorConfig, data: Data, found: Survey) -> tuple[str, ...]:
    """Lines about what train.py would choose for the train split; none without images and boxes."""
    split = found.get("train")
    images = split.usable if split else []
    boxes = sum(len(record.labels.label) for record in images)
    if not any((~record.labels.crowd).any() for record in images):
        return ()
    lines = []
    for attention, kind in ((True, "MobileViT"), (False, "YOLOv5")):
        info = RunInfo(len(images), boxes, cfg.epochs, cfg.batch_size, attention=attention)
        lines.append(f"recipe of train.py for {kind} models: {choose_recipe(info).summary}")
    same = lines[0].replace(", attention", "").partition(": ")[2] == lines[1].partition(": ")[2]
    return (lines[1].replace(" for YOLOv5 models", ""),) if same else tuple(lines)


def suspects(cfg: DoctorConfig, data: Data, found: Survey) -> list[Finding]:
    """Where the predictions of `cfg.weights` and the labels contradict each other."""
    device = select_device(cfg.device)
    model = load_model(cfg.weights, device)
    common = classes_by_name(model.names, data.label_names)
    predictor = Predictor(model, device, cfg.imgsz, NmsSettings(conf_thres=LOWEST, max_det=300))
    records = [record for _, record in all_records(found) if record.usable]
    predictions = [
        in_data_classes(predictor([read(record.path)])[0].boxes, common)
        for record in Progress(records, len(records), lambda: "predicting")
    ]
    if not any(len(boxes) for boxes in predictions):
        return [nothing_found(Path(cfg.weights).name)]
    listed = suspects_of(records, predictions, data.label_names, set(common.values()))
    return list(findings(listed, Path(cfg.weights).name))


def read(path: Path) -> np.ndarray:
    """The image in a file that was readable a moment ago; raises ValueError if it is not any more."""
    try:
        return imread(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: cannot be read any more: {error}") from error


if __name__ == "__main__":
    run_script(main, DoctorConfig)
