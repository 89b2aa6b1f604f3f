"""Detections in the form of other packages: equal boxes, scores and names, also where there are none."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from utils.boxes import Boxes
from utils.files import REPO
from utils.predict.results import Detections

NAMES = {0: "cat", 1: "Bär"}


@pytest.fixture
def results() -> Detections:
    """Two images, 200 wide and 100 high; two boxes in the first, of classes with and without a name."""
    xyxy = np.array([[20.0, 10, 120, 60], [0, 0, 50, 100]])
    found = Boxes(xyxy, np.array([1, 7]), np.array([0.75, 0.5], np.float32))
    images = [np.zeros((100, 200, 3), np.uint8)] * 2
    return Detections(images, [found, Boxes.empty()], ["a.jpg", "b.jpg"], NAMES)


def check_supervision(results: Detections) -> None:
    first, second = results.to_supervision()
    assert first.xyxy.tolist() == [[20, 10, 120, 60], [0, 0, 50, 100]] and first.xyxy.dtype == np.float32
    assert first.confidence.tolist() == [0.75, 0.5] and first.class_id.tolist() == [1, 7]
    assert first.data["class_name"].tolist() == ["Bär", "7"]
    assert second.xyxy.shape == (0, 4) and second.confidence.shape == second.class_id.shape == (0,)
    first.xyxy[:] = 0  # a copy
    assert results.xyxy[0][0, 2] == 120


def check_fiftyone(results: Detections) -> None:
    first, second = results.to_fiftyone()
    assert [found.label for found in first.detections] == ["Bär", "7"]
    assert [found.confidence for found in first.detections] == [0.75, 0.5]
    boxes = [found.bounding_box for found in first.detections]
    np.testing.assert_allclose(boxes, [[0.1, 0.1, 0.5, 0.5], [0, 0, 0.25, 1]], atol=1e-7)
    assert list(second.detections) == []
    assert os.environ["FIFTYONE_DO_NOT_TRACK"] == "true"


def test_supervision(results: Detections) -> None:
    """With the package: its own reader of YOLOv5's results finds the same in ours."""
    supervision = pytest.importorskip("supervision", reason="no supervision here (requirements-supervision.txt)")
    theirs = supervision.Detections.from_yolov5(results)
    np.testing.assert_array_equal(theirs.xyxy, results.to_supervision()[0].xyxy)
    check_supervision(results)
    first, second = results.to_supervision()
    assert isinstance(first, supervision.Detections) and len(first) == 2 and len(second) == 0
    assert len(first[first.confidence > 0.6]) == 1
    merged = supervision.Detections.merge([first, second])
    assert merged.data["class_name"].tolist() == ["Bär", "7"]


def test_fiftyone(results: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
    fiftyone = pytest.importorskip("fiftyone", reason="no fiftyone here (requirements-fiftyone.txt)")
    check_fiftyone(results)
    assert all(isinstance(own, fiftyone.Detections) for own in results.to_fiftyone())


@dataclass
class SupervisionDetections:
    """The fields of supervision's class that are set."""

    xyxy: np.ndarray
    confidence: np.ndarray
    class_id: np.ndarray
    data: dict[str, np.ndarray]


@dataclass
class FiftyoneDetection:
    """The fields of FiftyOne's class that are set."""

    label: str
    bounding_box: list[float]
    confidence: float


@dataclass
class FiftyoneDetections:
    detections: list[FiftyoneDetection]


def test_the_same_with_stand_ins(results: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the packages are not installed, classes of the same fields take what would go to theirs."""
    supervision: Any = ModuleType("supervision")
    supervision.Detections = SupervisionDetections
    fiftyone: Any = ModuleType("fiftyone")
    fiftyone.Detection, fiftyone.Detections = FiftyoneDetection, FiftyoneDetections
    monkeypatch.setitem(sys.modules, "supervision", supervision)
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "")  # so that it is restored
    monkeypatch.delenv("FIFTYONE_DO_NOT_TRACK")
    check_supervision(results)
    check_fiftyone(results)


@pytest.mark.parametrize("package", ["supervision", "fiftyone"])
def test_a_missing_package_is_named(package: str, results: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIFTYONE_DO_NOT_TRACK", "true")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package} is missing: pip install -r requirements-{package}.txt, or pip "):
        getattr(results, f"to_{package}")()
    assert (REPO / f"requirements-{package}.txt").is_file()


def test_the_packages_are_imported_only_when_they_are_asked_for() -> None:
    modules = "utils.predict.results, utils.train.mlflow_log, tools.hub"
    packages = {"supervision", "fiftyone", "mlflow", "huggingface_hub"}
    code = f"import sys, {modules}; print({packages} & {{*sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO)
    assert result.stdout.strip() == "set()", result.stderr
