"""The model that a training run starts from: new, from a detector's weights, from a backbone's, or resumed."""

from __future__ import annotations

import logging

from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint
from models.weights.imagenet import load_backbone
from models.weights.last import check_finite
from models.weights.transfer import TransferReport, fine_tune
from models.yolo import DetectionModel
from utils.files import find

LOGGER = logging.getLogger(__name__)


def start_model(
    names: dict[int, str],
    cfg: str = "",
    weights: str = "",
    backbone_weights: str = "",
    partial: bool = False,
    verbose: bool = False,
) -> tuple[DetectionModel, TransferReport | None]:
    """A model for the classes `names`, and what was transferred into it, which is logged; None from random weights.

    Anchors are those of `cfg` where it is given, else those of the weights.

    Args:
        cfg: model YAML; empty: the rows of `weights`, else yolov5-mobilevit.yaml.
        weights: a detector's checkpoint. backbone_weights, partial: see load_backbone.
        verbose: log the name of every tensor that was not transferred.

    Raises:
        FileNotFoundError, ValueError: no such file; both kinds of weights are given; they do not fit, or hold NaN.
    """
    if weights and backbone_weights:
        raise ValueError("--weights and --backbone-weights both give a backbone, expected one of them")
    checkpoint = load_checkpoint(weights) if weights else None
    if cfg or checkpoint is None:
        model = DetectionModel(find(cfg or "yolov5-mobilevit.yaml", "models"), nc=len(names))
    else:
        model = DetectionModel(checkpoint.yaml, nc=len(names))
    model.names = names
    report = None
    if checkpoint is not None:
        anchors = f"model.{len(model.model) - 1}.anchors"
        report = fine_tune(model, build_model(checkpoint), skip=[anchors] if cfg else [])
    elif backbone_weights:
        report = load_backbone(model, backbone_weights, partial)
    if report is not None:
        LOGGER.info(report.text(weights or backbone_weights, verbose))
        check_finite(model.state_dict(), weights or backbone_weights)
    return model, report


def resumed_model(checkpoint: Checkpoint) -> DetectionModel:
    """The model of a run that is resumed; its weights are loaded later, with the rest of the run's state."""
    model = DetectionModel(checkpoint.yaml)
    model.names = dict(checkpoint.names)
    return model
