"""Core ML: the pipeline that ends in Apple's NMS layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from models.export.metadata import Metadata
from utils.nms import NmsSettings
from utils.optional import import_optional


class AppleNmsInputs(nn.Module):
    """Decoded rows of one image as Apple's NMS layer takes them: scores (N, nc), boxes (N, 4) cx, cy, w, h in 0..1."""

    def __init__(self, decoded: nn.Module, imgsz: tuple[int, int]):
        super().__init__()
        self.decoded = decoded
        self.register_buffer("size", torch.tensor([imgsz[1], imgsz[0]] * 2, dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.decoded(x)[0]
        return rows[:, 5:] * rows[:, 4:5], rows[:, :4] / self.size


def with_nms(converted: Any, meta: Metadata, settings: NmsSettings) -> Any:
    """A program with the outputs "scores" and "boxes" -> a pipeline from image and thresholds to final boxes.

    Its outputs are confidence (n, nc) and coordinates (n, 4), which Vision returns as recognized objects with names.
    """
    ct = import_optional("coremltools")
    detector = converted.get_spec()
    kinds = ct.proto.FeatureTypes_pb2
    nms = ct.proto.Model_pb2.Model(specificationVersion=detector.specificationVersion)
    layer = nms.nonMaximumSuppression
    layer.confidenceInputFeatureName, layer.coordinatesInputFeatureName = "scores", "boxes"
    layer.confidenceOutputFeatureName, layer.coordinatesOutputFeatureName = "confidence", "coordinates"
    layer.iouThresholdInputFeatureName, layer.confidenceThresholdInputFeatureName = (
        "iouThreshold",
        "confidenceThreshold",
    )
    layer.iouThreshold, layer.confidenceThreshold = settings.iou_thres, settings.conf_thres
    layer.pickTop.perClass = True
    layer.stringClassLabels.vector.extend(meta.names.values())
    nms.description.input.extend(detector.description.output)
    for name in ("iouThreshold", "confidenceThreshold"):
        feature = nms.description.input.add(name=name)
        feature.type.doubleType.SetInParent()
        feature.type.isOptional = True
    for name, width in (("confidence", len(meta.names)), ("coordinates", 4)):
        array = nms.description.output.add(name=name).type.multiArrayType
        array.dataType = kinds.ArrayFeatureType.ArrayDataType.Value("FLOAT32")
        for low, high in ((0, -1), (width, width)):  # any number of boxes
            array.shapeRange.sizeRanges.add(lowerBound=low, upperBound=high)
    pipeline = ct.proto.Model_pb2.Model(specificationVersion=detector.specificationVersion)
    pipeline.pipeline.models.extend([detector, nms])
    pipeline.pipeline.names.extend(["detector", "nms"])
    pipeline.description.input.extend([*detector.description.input, *nms.description.input[2:]])
    pipeline.description.output.extend(nms.description.output)
    return ct.models.MLModel(pipeline, weights_dir=converted.weights_dir, skip_model_load=True)
