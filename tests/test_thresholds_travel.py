"""The confidence threshold on its way: from val.py and train.py through checkpoints and exported files to detect.py."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import torch
from tiny import tiny_model, write_tiny

import detect
import export
import hubconf
import train
import val
from models.export.metadata import Metadata
from models.runtimes.load import load_backend, load_model
from models.weights.checkpoint import (
    Checkpoint,
    load_checkpoint,
    save_checkpoint,
    save_safetensors,
    store_thresholds,
)
from tools import convert
from utils.files import REPO
from utils.proof.web import RUNTIME, write_page
from utils.thresholds import Thresholds

CPU = torch.device("cpu")
SCORE = 0.7  # the labels of `site` are the detections with at least this score
STORED = Thresholds(0.4321, "precision 0.9", "my.yaml, val", 0.91, 0.62, 0.73, {"cat": 0.4, "Bär": 0.5})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny.pt, three images, and a data.yaml whose labels are what tiny.pt finds with SCORE."""
    folder = tmp_path_factory.mktemp("travel")
    write_tiny(folder)
    run = detect.main(detection(folder, folder / "tiny.pt", conf_thres=SCORE, save_txt="yolo", save_conf=False))
    (run / "labels").rename(folder / "labels")
    (folder / "labels" / "classes.txt").unlink()
    (folder / "data.yaml").write_text("path: .\ntrain: images\nval: images\ntest: images\nnames: [cat, Bär, dog]\n")
    return folder


@pytest.fixture
def weights(site: Path, tmp_path: Path) -> Path:
    """A copy of tiny.pt without thresholds."""
    save_checkpoint(tmp_path / "tiny.pt", load_checkpoint(site / "tiny.pt"))
    return tmp_path / "tiny.pt"


def detection(site: Path, path: Path, **flags: Any) -> detect.DetectConfig:
    base = detect.DetectConfig(
        weights=str(path), source=str(site / "images"), imgsz=128, device="cpu", threads=1, rect=False,
        nosave=True, save_conf=True, project=str(path.parent / "detect"),
    )  # fmt: skip
    return replace(base, **flags)


def validation(site: Path, path: Path, **flags: Any) -> val.ValConfig:
    base = val.ValConfig(
        weights=str(path), data=str(site / "data.yaml"), imgsz=128, device="cpu", threads=1, rect=False, workers=0,
        iou_thres=0.45, plots=False, project=str(path.parent / "val"), name="run", exist_ok=True,
    )  # fmt: skip
    return replace(base, **flags)


def exported(site: Path, weights: Path, name: str, **flags: Any) -> Path:
    cfg = export.ExportConfig(str(weights), (name,), imgsz=(128,), images=(str(site / "images"),), threads=1)
    path = export.main(replace(cfg, **flags))[0].path
    assert path is not None
    return path


def labels(run: Path) -> dict[str, str]:
    """The label files of a run of detect.py, with all digits of confidences."""
    return {path.name: path.read_text() for path in sorted((run / "labels").glob("*.txt"))}


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_a_checkpoint_carries_them_and_an_old_one_has_none(tmp_path: Path, suffix: str) -> None:
    save, path = save_checkpoint if suffix == "pt" else save_safetensors, tmp_path / f"x.{suffix}"
    save(path, Checkpoint.of(tiny_model()))
    assert load_checkpoint(path).thresholds is None
    assert load_backend(path, CPU).limits.thresholds is None
    store_thresholds(path, STORED)
    assert load_checkpoint(path).thresholds == STORED == load_backend(path, CPU).limits.thresholds
    out = convert.main(convert.ConvertConfig(str(path), out=str(tmp_path / "y.safetensors"), format="safetensors"))
    assert load_checkpoint(out).thresholds == STORED


def test_storing_leaves_everything_else_as_it_was(small_set: Path, tmp_path: Path) -> None:
    train.main(runs.config(small_set, tmp_path, epochs=1))
    last = tmp_path / "run" / "weights" / "last.pt"
    before = torch.load(last, weights_only=True)
    store_thresholds(last, STORED)
    after = torch.load(last, weights_only=True)
    assert after.pop("thresholds") == STORED.as_dict()
    before.pop("thresholds", None)
    assert list(before) == list(after)
    assert same(before, after)
    assert [path.name for path in last.parent.iterdir() if "part" in path.name] == []


def same(a: Any, b: Any) -> bool:
    """Whether plain data and tensors are equal to the bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) or (a != a and b != b)


@pytest.mark.parametrize("values", [{}, [], 0.4, {"confidence": 7}, {"confidence": 0.4, "per_class": {"cat": "x"}}])
def test_a_checkpoint_with_something_else_there_is_refused(tmp_path: Path, values: Any) -> None:
    torch.save(Checkpoint.of(tiny_model()).as_dict() | {"thresholds": values}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt: thresholds.* expected "):
        load_checkpoint(tmp_path / "x.pt")


def test_only_checkpoints_of_this_project_are_written_to(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"x\.onnx: an exported file .* store them in the \.pt checkpoint"):
        store_thresholds(tmp_path / "x.onnx", STORED)
    with pytest.raises(FileNotFoundError, match=r"none\.pt"):
        store_thresholds(tmp_path / "none.pt", STORED)
    torch.save({"model": {"head.stems.0.conv.weight": torch.zeros(1)}}, tmp_path / "yolox.pt")
    content = (tmp_path / "yolox.pt").read_bytes()
    with pytest.raises(ValueError, match=r"yolox\.pt: a checkpoint of another project, .* tools/convert\.py"):
        store_thresholds(tmp_path / "yolox.pt", STORED)
    assert (tmp_path / "yolox.pt").read_bytes() == content


def test_val_prints_writes_and_stores_the_threshold(
    site: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    metrics = val.main(validation(site, weights, plots=True))
    chosen = metrics.thresholds
    assert chosen is not None and chosen.rule == "near the best F1" and chosen.data == f"{site.name}/data.yaml, val"
    assert chosen.confidence == pytest.approx(SCORE, abs=0.1) and chosen.f1 > 0.8
    assert (chosen.precision, chosen.recall) == pytest.approx((metrics.precision, metrics.recall), abs=0.05)
    assert f"confidence threshold: {chosen}" in caplog.messages
    assert any(line.startswith("calibration: expected calibration error 0.") for line in caplog.messages)
    folder = weights.parent / "val" / "run"
    written = json.loads((folder / "metrics.json").read_text())
    assert Thresholds.from_dict(written["thresholds"], "x") == chosen and 0 <= written["calibration"]["ece"] <= 1
    assert (folder / "reliability.png").is_file()
    assert load_checkpoint(weights).thresholds is None

    stored = val.main(validation(site, weights, save_thresholds=True)).thresholds
    assert load_checkpoint(weights).thresholds == stored == chosen
    assert f"confidence threshold: {chosen}; stored in {weights}" in caplog.messages
    assert "--conf-thres auto" in caplog.messages[-1]


def test_val_stores_the_threshold_of_a_wanted_precision_or_recall(site: Path, weights: Path) -> None:
    for name, wanted in (("recall", 0.6), ("precision", 0.9)):
        val.main(validation(site, weights, save_thresholds=True, **{f"at_{name}": wanted}))
        stored = load_checkpoint(weights).thresholds
        assert stored is not None and stored.rule == f"{name} {wanted:g}" and getattr(stored, name) >= wanted


def test_what_is_not_reached_is_an_error_that_stores_nothing(site: Path, weights: Path, tmp_path: Path) -> None:
    more = tmp_path / "more"
    (more / "labels").mkdir(parents=True)
    (more / "images").symlink_to(site / "images")
    for path in (site / "labels").glob("*.txt"):  # ten labels that nothing is near to
        rows = [f"2 {0.05 + 0.1 * i} 0.02 0.001 0.001" for i in range(10)]
        (more / "labels" / path.name).write_text(path.read_text() + "\n".join(rows) + "\n")
    (more / "data.yaml").write_text((site / "data.yaml").read_text())
    cfg = validation(more, weights, at_recall=0.999, save_thresholds=True)
    with pytest.raises(ValueError, match=r"--at-recall 0\.999: not reached at any confidence threshold, the best is 0"):
        val.main(cfg)
    assert load_checkpoint(weights).thresholds is None
    assert (weights.parent / "val" / "run" / "metrics.json").is_file()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"at_precision": 0.9, "at_recall": 0.9}, "exclude each other"),
        ({"at_precision": 0.0}, "--at-precision 0.0: expected more than 0, at most 1|at most 1, more than 0"),
        ({"save_thresholds": True, "weights": ("a.pt", "b.pt")}, "several --weights"),
        ({"save_thresholds": True, "task": "speed"}, "--save-thresholds with --task"),
        ({"save_thresholds": True, "augment": True}, "--save-thresholds with --augment"),
        ({"save_thresholds": True, "conf_thres": 0.3}, "--save-thresholds with --conf-thres"),
        ({"save_thresholds": True, "weights": "x.onnx"}, r"x\.onnx: an exported file"),
    ],
)
def test_flags_that_cannot_store_a_threshold_are_refused_at_once(
    site: Path, weights: Path, flags: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        val.main(validation(site, weights, **flags))
    assert not (weights.parent / "val").exists()


def test_a_training_run_stores_the_threshold_of_each_checkpoints_own_validation(
    small_set: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def measured(*args: Any, **kwargs: Any) -> Any:
        found.append(validate(*args, **kwargs))
        scores = {"map50_95": 0.5 if len(found) in (1, 3) else 0.1, "map50": 0.5}  # the first epoch is the best
        own = Thresholds(0.1 * len(found), data=found[-1].thresholds.data if found[-1].thresholds else "")
        found[-1] = replace(found[-1], **scores, thresholds=own)
        return found[-1]

    validate = train.validate
    monkeypatch.setattr(train, "validate", measured)
    caplog.set_level("INFO")
    train.main(runs.config(small_set, tmp_path, epochs=2))
    folder = tmp_path / "run"
    stored = {name: load_checkpoint(folder / "weights" / f"{name}.pt").thresholds for name in ("best", "last")}
    assert stored == {"best": found[0].thresholds, "last": found[1].thresholds}
    assert "thresholds" not in load_checkpoint(folder / "weights" / "best.pt").metrics
    assert any(line.startswith("confidence threshold, for --conf-thres auto: 0.3") for line in caplog.messages)


def test_best_pt_has_the_threshold_that_the_run_reports(site: Path, tmp_path: Path) -> None:
    start = {"cfg": "", "weights": str(site / "tiny.pt"), "imgsz": 128}
    train.main(runs.config(site / "data.yaml", tmp_path, epochs=1, **start))
    reported = json.loads((tmp_path / "run" / "metrics.json").read_text())["thresholds"]
    stored = load_checkpoint(tmp_path / "run" / "weights" / "best.pt").thresholds
    assert reported is not None and stored is not None
    assert stored == Thresholds.from_dict(reported, "x") and stored.data.endswith(", val")


@pytest.mark.parametrize("name", ["torchscript", "onnx"])
def test_exported_files_carry_it_and_detect_with_it_to_the_bit(
    site: Path, weights: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    if name == "onnx":
        pytest.importorskip("onnxscript")
    store_thresholds(weights, STORED)
    path = exported(site, weights, name)
    assert load_backend(path, CPU).limits.thresholds == STORED
    caplog.set_level("INFO")
    for file in (weights, path):
        flags = {"save_txt": "yolo", "source": str(site / "images")}
        auto = labels(detect.main(detection(site, file, conf_thres="auto", **flags)))
        assert f"confidence threshold of {file.name}: {STORED}" in caplog.messages
        number = labels(detect.main(detection(site, file, conf_thres=STORED.confidence, **flags)))
        other = labels(detect.main(detection(site, file, **flags)))
        assert auto == number != other and any(auto.values())


@pytest.mark.parametrize("stored", [None, STORED])
def test_metadata_in_both_forms(stored: Thresholds | None) -> None:
    meta = Metadata.of(tiny_model(), (64, 96), 1, thresholds=stored)
    assert Metadata.from_json(meta.to_json(), "x") == Metadata.from_strings(meta.to_strings(), "x") == meta
    old = {key: value for key, value in json.loads(meta.to_json()).items() if key != "thresholds"}
    assert Metadata.from_json(json.dumps(old), "x").thresholds is None
    for wrong in ({"confidence": 2}, "x", [1]):
        with pytest.raises(ValueError, match=r"x: no metadata of this project in it .*thresholds"):
            Metadata.from_json(json.dumps(old | {"thresholds": wrong}), "x")


def test_auto_without_a_stored_threshold_is_one_line_that_names_the_way(site: Path, weights: Path) -> None:
    for run in (
        lambda: detect.main(detection(site, weights, conf_thres="auto")),
        lambda: exported(site, weights, "torchscript", conf_thres="auto"),
        lambda: setattr(hubconf.load(weights, device="cpu"), "conf", "auto"),
        lambda: detect.main(detection(site, weights, weights=(str(weights), str(weights)), conf_thres="auto")),
    ):
        with pytest.raises(ValueError, match=r"auto: tiny\.pt.*: no threshold is stored .*--save-thresholds") as error:
            run()
        assert len(str(error.value)) < 380
    assert not (weights.parent / "detect").exists()
    joined = load_model([str(weights), str(weights)], CPU)
    assert joined.limits.thresholds is None


def test_nms_in_a_file_may_have_the_stored_threshold(site: Path, weights: Path) -> None:
    pytest.importorskip("onnxscript")
    store_thresholds(weights, STORED)
    limits = load_backend(exported(site, weights, "onnx", nms=True, conf_thres="auto"), CPU).limits
    assert limits.nms is not None and limits.nms.conf_thres == STORED.confidence and limits.thresholds == STORED


def test_the_python_api_takes_the_word(site: Path, weights: Path) -> None:
    store_thresholds(weights, STORED)
    model, images = hubconf.load(weights, device="cpu"), [str(p) for p in sorted((site / "images").iterdir())]
    assert model.conf == 0.25
    many = model(images, size=128).xyxy
    model.conf = "auto"  # type: ignore[assignment]
    assert model.conf == STORED.confidence
    few = model(images, size=128).xyxy
    for a, b in zip(few, many, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b)[: len(a)]) and (a[:, 4] > STORED.confidence).all()
    assert sum(map(len, few)) < sum(map(len, many))
    with pytest.raises(ValueError, match=r"model\.conf high: expected a number"):
        model.conf = "high"  # type: ignore[assignment]


def test_the_torch_free_example_takes_the_word(site: Path, weights: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    without = exported(site, weights, "onnx", out=str(weights.parent / "without"))
    store_thresholds(weights, STORED)
    path = exported(site, weights, "onnx")
    example = [sys.executable, str(REPO / "examples" / "onnx_detect.py")]

    def lines(file: Path, threshold: str) -> list[str]:
        command = [*example, str(file), str(site / "images"), "--conf-thres", threshold, "--threads", "1"]
        result = subprocess.run(command, capture_output=True, text=True)
        return (result.stdout + result.stderr).splitlines()

    first, *auto = lines(path, "auto")
    assert first == f"confidence threshold: {STORED}"
    number = lines(path, f"{STORED.confidence:g}")
    assert [line.partition(" boxes")[0] for line in auto] == [line.partition(" boxes")[0] for line in number]
    assert len(auto) > 3
    (error,) = lines(without, "auto")
    assert error.startswith("error: --conf-thres auto: ") and "--save-thresholds" in error


def test_the_page_starts_at_the_stored_threshold(tmp_path: Path) -> None:
    package = tmp_path / "package"
    (package / "dist").mkdir(parents=True)
    for name in RUNTIME:
        (package / "dist" / name).write_bytes(b"x" * 1000)
    (tmp_path / "model.onnx").write_bytes(b"onnx")
    found = []
    for stored in (STORED, None):
        meta = Metadata.of(tiny_model(), (64, 64), 1, thresholds=stored)
        write_page(tmp_path / f"{stored is None}", tmp_path / "model.onnx", meta.to_json(), str(package), "x")
        found.append(json.loads((tmp_path / f"{stored is None}" / "model.json").read_text()).get("conf_threshold"))
    assert found == [STORED.confidence, None]
    assert "conf_threshold" in (REPO / "examples" / "web" / "controls.mjs").read_text()


def test_the_study_measures_thresholds_on_the_split_that_did_not_choose_them(site: Path) -> None:
    from tools import threshold_study as study

    cfg = study.ThresholdStudyConfig((str(site / "tiny.pt"),), (str(site / "data.yaml"),), imgsz=128)
    (row,) = study.main(cfg)
    assert row["best possible"] == row["F1"] or float(row["best possible"]) - float(row["F1"]) < 0.05
    assert row["chosen on"].endswith(", val") and row["used on"].endswith(", test")
    halves = study.main(replace(cfg, choose=("val/1",), measure=("val/2",)))
    assert halves[0]["F1"] != row["F1"]
    for wrong in ({"data": ()}, {"choose": ("val", "test")}, {"choose": ("val/3",)}):
        with pytest.raises(ValueError, match="expected"):
            study.main(replace(cfg, **wrong))


def test_halves_lose_least_with_the_threshold_of_all_images(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tools import threshold_study as study

    caplog.set_level("INFO")
    study.main(study.ThresholdStudyConfig((str(site / "tiny.pt"),), (str(site / "data.yaml"),), imgsz=128, halves=5))
    row = caplog.messages[-1].splitlines()[-1].strip("| ").split(" | ")
    assert len(row) == len(study.HALVES)
    assert all(0 <= float(value) <= 1 for value in row[3:])
    matches = study.class_matches(
        [(np.array([0, 0, 1]), np.array([0.2, 0.9, 0.5]), np.array([False, True, True]), np.array([0, 0]))], 2
    )
    assert list(matches) == [0] and matches[0].labels == 2
    assert (matches[0].scores.tolist(), matches[0].hits.tolist()) == ([0.9, 0.2], [True, False])


def test_the_study_of_suspects_joins_splits(site: Path) -> None:
    from tools import suspect_study as study

    cfg = study.SuspectStudyConfig((str(site / "tiny.pt"),), str(site / "data.yaml"), ("val", "val+test"), 0.3, 2, 128)
    val, both = study.main(cfg)
    assert both["split"] == "val+test" and int(both["labels"]) > int(val["labels"])
    with pytest.raises(ValueError, match="expected"):
        study.main(replace(cfg, data=""))
    with pytest.raises(ValueError, match="none of the"):
        study.main(replace(cfg, errors=0.0))
