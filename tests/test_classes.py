"""Classes are matched by name wherever weights meet data: fine-tuning, val, resume, export, ensembles, the API."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from blobs import BlobBackend, make_set
from shared import randomize_norms, shared
from tiny import write_tiny

import export
import hubconf
import train
import val
from models.runtimes.ensemble import Ensemble
from models.weights.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_safetensors
from models.weights.start import start_model
from models.weights.transfer import fine_tune
from models.weights.yolov5 import class_names as foreign_names
from models.yolo import DetectionModel
from utils.classes import ClassMatch, class_names, class_order
from utils.data.data_yaml import read_data_yaml

AB, BA = {0: "red", 1: "blue"}, {0: "blue", 1: "red"}


def permuted_set(data: Path, target: Path, order: list[int]) -> Path:
    """A copy of a data set in which class order[i] of the names has the number i; returns its data YAML."""
    shutil.copytree(data.parent, target, ignore=shutil.ignore_patterns("*.cache*"))
    content = yaml.safe_load(data.read_text())
    content["names"] = [content["names"][i] for i in order]
    (target / data.name).write_text(yaml.safe_dump(content))
    for path in (target / "labels").rglob("*.txt"):
        rows = [line.split() for line in path.read_text().splitlines()]
        path.write_text("".join(f"{order.index(int(row[0]))} {' '.join(row[1:])}\n" for row in rows))
    return target / data.name


# --- comparing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "data", "agreement", "index"),
    [
        (AB, AB, "equal", {0: 0, 1: 1}),
        (AB, BA, "reordered", {0: 1, 1: 0}),
        ({0: "a", 1: "b", 2: "c"}, {0: "c", 1: "a", 2: "b"}, "reordered", {0: 2, 1: 0, 2: 1}),
        (AB, {0: "red", 1: "navy"}, "partial", {0: 0}),
        (AB, {0: "blue"}, "partial", {0: 1}),
        (AB, {0: "crimson", 1: "navy"}, "different", {}),
        ({0: "café"}, {0: " cafe\u0301\r"}, "equal", {0: 0}),  # the other way to write é, and a Windows line end
        ({0: "a", 1: "a", 2: "b"}, {0: "a", 1: "b", 2: "c"}, "partial", {1: 2}),  # which "a" nobody can say
        ({0: "a", 1: "a"}, {0: "a", 1: "a"}, "equal", {0: 0, 1: 1}),
    ],
)
def test_two_lists_are_compared_by_name(model: dict, data: dict, agreement: str, index: dict) -> None:
    match = ClassMatch(model, data)
    assert (match.agreement, match.index) == (agreement, index)


def test_other_names_are_refused_with_both_lists_in_short(caplog: pytest.LogCaptureFixture) -> None:
    coco = {i: f"thing {i}" for i in range(80)}
    with pytest.raises(ValueError) as caught:
        class_order(coco, coco | {7: "x" * 300}, "m.pt", "d.yaml", by_number=True)
    assert str(caught.value) == (
        "m.pt has 80 classes (thing 0, thing 1, thing 2, thing 3, and 76 more), but d.yaml has 80 (thing 0, thing 1, "
        f"thing 2, thing 3, and 76 more); not in both: {'x' * 21}..., thing 7; expected the same names, in any order"
    )
    other = {0: "crimson", 1: "navy"}
    with pytest.raises(ValueError, match="expected the same names"):
        class_order(AB, other, "m.pt", "d.yaml")
    assert class_order(AB, other, "m.pt", "d.yaml", by_number=True) == (0, 1)
    assert "no class has the same name (red, blue in m.pt, crimson, navy in d.yaml): classes are matched by number" in (
        caplog.text
    )


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (None, "f: names is None, expected a list"),
        ([], r"f: names is \[\]"),
        ({0: "a", 2: "b"}, "f: names has 2 entries and the key 2, expected 0..1"),
        ({1: "a", 2: "b"}, "the key 2, expected 0..1"),
        ({"a": 0}, "the key 'a', expected 0..0"),
        ({True: "a", 0: "b"}, "the key True"),
        ({"0": "a", 0: "b"}, "the key 0 twice"),
        (["a", "b", "a"], "f: classes 0 and 2 are both 'a', expected different names"),
        (["a", " "], "the name of class 1 is ' ', expected a word"),
        (["a", ["b"]], r"the name of class 1 is \['b'\], expected a word"),
    ],
)
def test_a_list_of_names_that_cannot_be_read(names: object, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        class_names(names, "f")


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_mapping_of_names_is_read_by_its_keys(tmp_path: Path) -> None:
    assert list(foreign_names({2: "c", 0: "a", 1: "b"}, 3).items()) == [(0, "a"), (1, "b"), (2, "c")]
    assert foreign_names(["a", "a"], 2) == {0: "a", 1: "a"} and foreign_names(None, 2) == {0: "class0", 1: "class1"}
    with pytest.raises(ValueError, match=r"the key 3, expected 0\.\.2"):
        foreign_names({0: "a", 1: "b", 3: "c"}, 3)
    own = replace(Checkpoint.of(DetectionModel("yolov5n.yaml", nc=2)), names={1: "blue", 0: "red"})
    for path, write in ((tmp_path / "a.pt", save_checkpoint), (tmp_path / "a.safetensors", save_safetensors)):
        write(path, own)
        assert list(load_checkpoint(path).names.items()) == list(AB.items())
    gap = replace(own, names={0: "red", 2: "blue"})
    with pytest.raises(ValueError, match="names has 2 entries and the key 2"):
        save_checkpoint(tmp_path / "gap.pt", gap)
    torch.save(gap.as_dict(), tmp_path / "gap.pt")
    with pytest.raises(ValueError, match=r"gap\.pt: names has 2 entries and the key 2, expected 0\.\.1"):
        load_checkpoint(tmp_path / "gap.pt")


# --- fine-tuning ------------------------------------------------------------------------------------------------------


def model_of(names: dict[int, str], seed: int) -> DetectionModel:
    torch.manual_seed(seed)
    model = randomize_norms(DetectionModel("yolov5n.yaml", nc=len(names)))
    model.names = dict(names)
    return model.eval()


def test_a_head_follows_the_order_of_the_data() -> None:
    source = model_of({0: "a", 1: "b", 2: "c"}, 0)
    target = model_of({0: "c", 1: "a", 2: "b"}, 1)
    same = model_of(source.names, 2)
    report, plain = fine_tune(target, source), fine_tune(same, source)
    assert report.parts == plain.parts and report.boxes and set(report.classes) == {"a", "b", "c"} and not report.new
    assert "in another order: the head's rows of 3 classes follow it" in report.text("m.pt")
    assert plain.text("m.pt") == "transferred 349/349 tensors (backbone 198/198, neck 144/144, head 7/7) from m.pt"
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(same(x)[0], source(x)[0])
    assert torch.allclose(target(x)[0], source(x)[0][..., [0, 1, 2, 3, 4, 7, 5, 6]], atol=1e-5)


def test_of_as_many_classes_only_those_of_the_same_name_are_taken() -> None:
    source, target = model_of(AB, 0), model_of({0: "navy", 1: "red"}, 1)
    before = [conv.weight.detach().clone().view(3, 7, -1) for conv in target.head.m]
    report = fine_tune(target, source)
    assert report.classes == ("red",) and report.new == ("navy",) and report.by_rows
    text = report.text("m.pt", verbose=True)
    assert "1 new class: navy; 1 class known by name: red;" in text and "model.24.m.0.weight (other classes)" in text
    for own, old, other in zip(target.head.m, before, source.head.m, strict=True):
        rows, known = own.weight.view(3, 7, -1), other.weight.view(3, 7, -1)
        assert torch.equal(rows[:, 5], old[:, 5]) and torch.equal(rows[:, 6], known[:, 5])
        assert torch.equal(rows[:, :5], known[:, :5])


# --- val --------------------------------------------------------------------------------------------------------------


def test_val_on_permuted_names_gives_the_same_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(val, "load_model", lambda *_: BlobBackend())
    first = make_set(tmp_path / "set")
    base = val.ValConfig(
        weights="x.pt", imgsz=128, workers=0, batch_size=4, device="cpu", project=str(tmp_path), plots=False
    )
    plain = val.main(replace(base, data=str(first)))
    assert plain.map50_95 > 0.8
    second = permuted_set(first, tmp_path / "permuted", [1, 0])
    with caplog.at_level("INFO"):
        swapped = val.main(replace(base, data=str(second), save_txt=True, exist_ok=True, name="p"))
    assert f"{second} has the classes of x.pt in another order: they are matched by name" in caplog.text
    assert (swapped.map50, swapped.map50_95, swapped.precision) == (plain.map50, plain.map50_95, plain.precision)
    own, other = ({c.name: c for c in metrics.per_class} for metrics in (plain, swapped))
    assert own == other and [c.name for c in swapped.per_class] == ["high", "wide"]
    rows = np.loadtxt(tmp_path / "p/labels/000001.txt", ndmin=2)
    truth = np.loadtxt(second.parent / "labels/000001.txt", ndmin=2)
    assert sorted(rows[:, 0]) == sorted(truth[:, 0])  # files have the data's numbers

    second.write_text(second.read_text().replace("high", "tall"))
    with pytest.raises(ValueError, match=r"x\.pt has 2 classes \(wide, high\), but .* \(tall, wide\)"):
        val.main(replace(base, data=str(second)))
    first.write_text(first.read_text().replace("high", "tall").replace("wide", "broad"))
    renamed = val.main(replace(base, data=str(first)))
    assert "no class has the same name (wide, high in x.pt, broad, tall in" in caplog.text
    assert renamed.map50_95 == plain.map50_95


def test_an_ensemble_has_the_classes_of_its_first_model() -> None:
    first, other = BlobBackend(), BlobBackend()
    other.names = {0: "high", 1: "wide"}
    image = torch.zeros(1, 3, 64, 64)
    image[..., 10:20, 10:40] = 1
    rows = Ensemble([first, other])(image)[0]
    assert rows[0, 5:].tolist() == rows[40, 5:].tolist()[::-1] == [pytest.approx(0.9), 0.0]


# --- resume -----------------------------------------------------------------------------------------------------------


def config(data: Path, project: Path, **changes: object) -> train.TrainConfig:
    base = {"data": str(data), "project": str(project), "imgsz": 32, "epochs": 2, "batch_size": 4, "workers": 0}
    return train.TrainConfig(**(base | {"cfg": "yolov5n.yaml", "device": "cpu", "noplots": True} | changes))


def resumed(run: Path, **changes: object) -> train.TrainConfig:
    return train.TrainConfig(**({"resume": str(run), "epochs": 2, "device": "cpu", "workers": 0} | changes))


@pytest.fixture(scope="module")
def runs(small_set: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A data set, and a folder with a run of one epoch on it (half) and one of two epochs (whole)."""
    root = tmp_path_factory.mktemp("runs")
    data = permuted_set(small_set, root / "data", [0, 1])
    train.main(config(data, root, name="half", epochs=1))
    shutil.copytree(root / "half", root / "whole")
    train.main(resumed(root / "whole"))
    return data, root


@pytest.fixture
def half(runs: tuple[Path, Path], tmp_path: Path) -> Path:
    """A fresh copy of the run of one epoch."""
    return Path(shutil.copytree(runs[1] / "half", tmp_path / "half"))


def test_a_run_goes_on_with_the_same_classes_in_another_order(
    runs: tuple[Path, Path], half: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, root = runs
    swapped = permuted_set(data, tmp_path / "swapped", [1, 0])
    with caplog.at_level("INFO"):
        train.main(resumed(half, data=str(swapped)))
    assert f"--data {swapped} instead of {data}" in caplog.text and "they are matched by name" in caplog.text
    own, whole = (load_checkpoint(run / "weights/last.pt") for run in (half, root / "whole"))
    assert own.names == whole.names and own.metrics == whole.metrics
    assert all(torch.equal(t, own.model[name]) for name, t in whole.model.items())


def test_a_run_is_not_resumed_with_other_classes(runs: tuple[Path, Path], half: Path, tmp_path: Path) -> None:
    data = permuted_set(runs[0], tmp_path / "more", [0, 1])
    content = yaml.safe_load(runs[0].read_text()) | {"names": ["a", "b", "c"]}
    data.write_text(yaml.safe_dump(content))
    before = (half / "weights/last.pt").read_bytes()
    with pytest.raises(ValueError, match=r"last\.pt has 2 classes \(a, b\), but .*more/data\.yaml has 3 \(a, b, c\)"):
        train.main(resumed(half, data=str(data)))
    assert (half / "weights/last.pt").read_bytes() == before


def test_a_run_whose_data_moved_goes_on_with_data(half: Path, tmp_path: Path, runs: tuple[Path, Path]) -> None:
    data = permuted_set(runs[0], tmp_path / "old", [0, 1])
    last = half / "weights/last.pt"
    saved = load_checkpoint(last)
    save_checkpoint(last, replace(saved, opt=saved.opt | {"data": str(data)}))
    data.parent.rename(tmp_path / "new")
    with pytest.raises(FileNotFoundError, match=r"last\.pt: its data .*old/data\.yaml are gone, expected --data"):
        train.main(resumed(half))
    train.main(resumed(half, data=str(tmp_path / "new/data.yaml")))
    assert load_checkpoint(last).epoch == 1
    assert load_checkpoint(last).opt["data"] == str(tmp_path / "new/data.yaml")
    (tmp_path / "new/images").rename(tmp_path / "new/pictures")
    with pytest.raises(FileNotFoundError, match=r"its data .*new/data\.yaml are gone.*is 'images/all'"):
        train.main(resumed(half, epochs=3))


def test_a_run_goes_on_with_fewer_images(half: Path, tmp_path: Path, runs: tuple[Path, Path]) -> None:
    data = permuted_set(runs[0], tmp_path / "few", [0, 1])
    for path in sorted((data.parent / "images/all").iterdir())[4:]:
        path.unlink()
    before = load_checkpoint(half / "weights/last.pt")
    assert before.training["last_update"] == 2  # three batches an epoch; from now on one
    train.main(resumed(half, data=str(data), epochs=3))
    after = load_checkpoint(half / "weights/last.pt")
    assert after.training["ema_updates"] > before.training["ema_updates"]


def test_bare_resume_finds_a_run_in_a_nested_name(runs: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(runs[1] / "half", tmp_path / "site" / "a")
    train.main(train.TrainConfig(resume="newest", project=str(tmp_path), epochs=2, device="cpu", workers=0))
    assert load_checkpoint(tmp_path / "site/a/weights/last.pt").epoch == 1
    assert not (tmp_path / "a").exists()


# --- export and the Python API ----------------------------------------------------------------------------------------


def test_int8_compares_names_not_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    weights = write_tiny(tmp_path)
    data = tmp_path / "d.yaml"
    cfg = export.ExportConfig(weights=str(weights), data=str(data), imgsz=(128,), int8=True, int8_ops="weights")
    data.write_text("train: images\nval: images\nnames: [dog, cat, cow]\n")
    with pytest.raises(ValueError, match=r"tiny\.pt has 3 classes \(cat, Bär, dog\), but .*not in both: cow, Bär"):
        export.prepare(cfg)
    data.write_text("train: images\nval: images\nnames: [dog, cat, Bär]\n")
    with caplog.at_level("INFO"):
        export.prepare(cfg)
    assert "has the classes of" in caplog.text


def test_names_and_classes_of_the_python_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubconf, "load_model", lambda *_, **__: BlobBackend())
    model = hubconf.load("x.pt", device="cpu")
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:20, 10:40] = 255
    model.names = ["flat", "tall"]
    assert model.names == {0: "flat", 1: "tall"}
    for classes, count in ((["flat"], 1), (["tall"], 0), ([0], 1), (["1"], 0)):
        model.classes = classes
        assert len(model(image, size=64).xyxy[0]) == count
    model.names = {1: "0", 0: "1"}
    model.classes = ["0"]  # text of digits is an index
    assert model(image, size=64).pandas().xyxy[0]["name"].tolist() == ["1"]
    with pytest.raises(ValueError, match=r"model\.names: 3 names, expected 2"):
        model.names = ["a", "b", "c"]


# --- recorded cases ---------------------------------------------------------------------------------------------------


def test_recorded_lists_of_classes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model of [red, blue] and four YAMLs."""
    folder = shared("cases/train/g_perm")
    names = {path.stem: read_data_yaml(path).names for path in folder.glob("*.yaml")}
    assert names["cr"] == names["data"] == AB  # "red\r" is red
    assert ClassMatch(AB, names["dollar"]).agreement == "partial"
    assert ClassMatch(AB, names["renamed"]).agreement == "different"
    model = model_of(AB, 0)
    save_checkpoint(tmp_path / "m.pt", Checkpoint.of(model))
    started, _ = start_model(BA, weights=str(tmp_path / "m.pt"))
    x = torch.rand(1, 3, 64, 64)
    assert torch.allclose(started.eval()(x)[0], model(x)[0][..., [0, 1, 2, 3, 4, 6, 5]], atol=1e-5)
