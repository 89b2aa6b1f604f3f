"""The Python API: every kind of image, and the results in every form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from blobs import BlobBackend, draw
from PIL import Image
from shared import oracle, shared

import hubconf
from models.weights.checkpoint import Checkpoint, save_checkpoint
from models.yolo import DetectionModel
from utils.boxes import Boxes
from utils.images import imread, imwrite
from utils.predict.predictor import class_indices
from utils.predict.results import Detections

REPO = Path(hubconf.__file__).parent
BOXES = [[20, 30, 80, 60], [100, 20, 120, 90]]


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr(hubconf, "load_model", lambda *_, **__: BlobBackend())
    return hubconf.load("x.pt", device="cpu")


def test_every_kind_of_image_gives_the_same_boxes(model, tmp_path) -> None:
    image = draw((120, 160), BOXES)
    path = tmp_path / "a.png"
    imwrite(path, image)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    images = [
        str(path), path, image, image[..., 0], np.dstack([image, image[..., 0]]), Image.fromarray(image),
        Image.open(path), Image.fromarray(image).convert("L"), tensor, tensor.float() / 255,
        image.transpose(2, 0, 1), image / 255,
    ]  # fmt: skip
    results = model(images, size=160)
    assert len(results) == results.n == len(images)
    assert all(torch.equal(boxes, results.xyxy[0]) for boxes in results.xyxy)
    assert results.xyxy[0][:, :4].numpy() == pytest.approx(np.array(BOXES)[results.xyxy[0][:, 5].long()], abs=2)
    assert results.files[:3] == ["a.png", "a.png", "image2.jpg"] and results.files[6] == "a.png"
    batch = model(torch.stack([tensor, tensor]), size=160)
    assert len(batch) == 2 and torch.equal(batch.xyxy[1], results.xyxy[0])
    assert (image == draw((120, 160), BOXES)).all()
    assert len(model([])) == 0


def test_mixed_sizes_equal_one_by_one(model) -> None:
    images = [draw((120, 160), BOXES), draw((300, 200), BOXES[:1]), draw((64, 64), []), draw((300, 200), BOXES)]
    together = model(images, size=320)
    for image, boxes in zip(images, together.xyxy, strict=True):
        assert torch.equal(model(image, size=320).xyxy[0], boxes)
    assert [len(rows) for rows in together.xyxy] == [2, 1, 0, 2]
    augmented = model(images[0], size=320, augment=True)
    assert augmented.xyxy[0][:, :4].numpy() == pytest.approx(together.xyxy[0][:, :4].numpy(), abs=4)


def test_settings_of_the_model(model) -> None:
    image = draw((120, 160), BOXES)
    model.classes = ["high"]
    assert model(image, size=160).pandas().xyxy[0]["name"].tolist() == ["high"]
    model.classes, model.conf = None, 0.95
    assert not len(model(image, size=160).xyxy[0])
    model.conf, model.max_det = 0.25, 1
    assert len(model(image, size=160).xyxy[0]) == 1


@pytest.mark.parametrize(
    "one", [0, "wide", "0", 0.0, np.int64(0), np.array(0), np.array([0]), torch.tensor(0), torch.tensor([0.0]), [0],
            {0}, (torch.tensor(0),), ["wide"], range(1), iter([0])],
)  # fmt: skip
def test_classes_in_every_form(model, one) -> None:
    image = draw((120, 160), BOXES)
    model.classes = one
    assert model(image, size=160).pandas().xyxy[0]["name"].tolist() == ["wide"]


def test_no_class_and_wrong_classes(model, caplog) -> None:
    image = draw((120, 160), BOXES)
    model.classes = []
    assert len(model(image, size=160).xyxy[0]) == 0
    for wrong in (2, -1, 0.5, True, "fish", [None], np.array([[0]]), float("nan"), b"wide"):
        model.classes = wrong
        with pytest.raises(ValueError, match=r"^--classes .*: expected a name or 0\.\.1 \(wide, high\)"):
            model(image, size=160)
    assert class_indices("1", {0: "1", 1: "0"}) == (1,)
    assert [r.getMessage() for r in caplog.records] == [
        "--classes 1: using index 1, '0'; '1' is also the name of class 0"
    ]


def test_sizes_of_the_input(model, caplog) -> None:
    image = draw((120, 160), BOXES)
    assert model(image, size=(96, 160)).s == (1, 3, 96, 128)
    assert model(image, size=[160, 160]).s == model(image, size=160).s == (1, 3, 128, 160)
    assert model(draw((160, 120), []), size=(96, 160)).s == (1, 3, 96, 96)  # portrait
    assert model(image).s == (1, 3, 480, 640)
    for wrong in (0, (1, 2, 3), 0.5, "160"):
        with pytest.raises(ValueError, match="expected one number, or height and width"):
            model(image, size=wrong)
    for _ in range(3):
        model(image, size=150)
    assert len(caplog.records) == 1 and "--imgsz 150 is not a multiple" in caplog.text


def test_a_model_is_printed_in_words(model) -> None:
    assert repr(model) == "Model(x.pt: 2 classes, grid 32 px, cpu)"


def test_names_may_be_replaced(model) -> None:
    image = draw((120, 160), BOXES)
    model.names = ["broad", "tall"]
    assert model.names == {0: "broad", 1: "tall"}
    model.classes = "tall"
    assert model(image, size=160).pandas().xyxy[0]["name"].tolist() == ["tall"]
    model.names = {1: "b", 0: "a"}
    assert model.names == {0: "a", 1: "b"} and model.backend.names == {0: "wide", 1: "high"}
    for wrong in (["a"], ["a", "a"], {1: "a", 2: "b"}, "ab"):
        with pytest.raises(
            ValueError,
            match=r"^model\.names: .*expected ",
        ):
            model.names = wrong
    assert hubconf.load("x.pt", device="cpu", names=["x", "y"]).names[1] == "y"


def test_moving_as_with_a_module_of_torch(monkeypatch) -> None:
    read = []
    monkeypatch.setattr(hubconf, "load_model", lambda *args, **_: read.append(args[1:]) or BlobBackend())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cpu, gpu = torch.device("cpu"), torch.device("cuda:1")
    for device in (1, "1", "cuda:1", gpu):
        assert hubconf.load("x.pt", device=device).device == gpu
    assert (
        hubconf.load("x.pt", device="cuda").device == hubconf.load("x.pt", device=None).device == torch.device("cuda:0")
    )
    read.clear()
    model = hubconf.load("x.pt", device="cpu")
    model.names, model.conf = ["a", "b"], 0.5
    assert model.eval() is model.cpu() is model.float() is model.to(cpu) is model and read == [(cpu, False)]
    assert model.cuda(1) is model and model.device == gpu
    assert model.half() is model and model.fp16 and model.half() is model and model.to("cuda:1") is model
    assert model.float() is model and not model.fp16
    assert read == [(cpu, False), (gpu, False), (gpu, True), (gpu, False)]
    assert model.names == {0: "a", 1: "b"} and model.conf == 0.5
    with pytest.raises(ValueError, match="--device 5: 2 GPUs were found, expected 0 to 1, or cpu"):
        model.to("cuda:5")


def test_moving_real_weights(tmp_path) -> None:
    save_checkpoint(tmp_path / "w.pt", Checkpoint.of(DetectionModel("yolov5n.yaml", nc=2).eval()))
    model = hubconf.load(tmp_path / "w.pt", device="cpu")
    assert len(model.to("cpu").float().eval()(np.zeros((50, 70, 3), np.uint8), size=64)) == 1
    with pytest.raises(ValueError, match="--half on a CPU: expected a GPU"):
        model.half()
    assert not model.fp16 and len(model(np.zeros((50, 70, 3), np.uint8), size=64)) == 1


def test_an_empty_table_has_the_types_of_a_full_one(model) -> None:
    tables = model([draw((120, 160), BOXES), draw((60, 90), [])], size=160).pandas()
    for full, empty in (tables.xyxy, tables.xyxyn, tables.xywh, tables.xywhn):
        assert len(full) == 2 and len(empty) == 0 and full.dtypes.equals(empty.dtypes)
        assert full["name"].tolist() == [["wide", "high"][c] for c in full["class"]]
    joined = pd.concat(tables.xyxy)
    assert joined.dtypes.equals(tables.xyxy[0].dtypes)


def test_results_in_every_form(model, tmp_path, capsys) -> None:
    results = model([draw((120, 160), BOXES), draw((60, 90), [])], size=160)
    results.print()
    text = capsys.readouterr().out
    assert "image 1/2: 120x160 1 wide, 1 high" in text and "(no detections)" in text and "Speed:" in text
    assert str(results) in repr(results)

    size = torch.tensor([160, 120, 160, 120])
    xyxy = results.xyxy[0][:, :4]
    assert torch.allclose(results.xyxyn[0][:, :4] * size, xyxy)
    xywh = results.xywhn[0][:, :4] * size
    assert torch.allclose(xywh, results.xywh[0][:, :4])
    assert torch.allclose(
        torch.cat([xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2], dim=1), xyxy, atol=1e-4
    )
    assert results.pred is results.xyxy and results.xyxy[1].shape == (0, 6)

    tables = results.pandas()
    assert tables.xyxy[0].columns.tolist() == ["xmin", "ymin", "xmax", "ymax", "confidence", "class", "name"]
    assert tables.xywhn[0].columns.tolist()[:4] == ["xcenter", "ycenter", "width", "height"]
    assert len(tables.xyxy[1]) == 0 and tables.xyxy[0]["class"].dtype.kind == "i"
    read = json.loads(results.to_json())
    assert [len(p["boxes"]) for p in read] == [2, 0] and read[0]["boxes"][0].keys() == set(tables.xyxy[0].columns)

    assert len(results.tolist()) == 2 and results[1].n == 1 and [len(r.xyxy[0]) for r in results] == [2, 0]
    rendered = results.render()
    assert rendered[0].shape == (120, 160, 3) and (rendered[0] != results.ims[0]).any()
    assert (rendered[1] == results.ims[1]).all()


def test_save_and_crop(model, tmp_path) -> None:
    image = draw((120, 160), BOXES)
    results = model([image, image], size=160)
    folder = results.save(save_dir=tmp_path / "out")
    assert folder == tmp_path / "out" and results.save(save_dir=tmp_path / "out") == tmp_path / "out2"
    assert sorted(p.name for p in folder.iterdir()) == ["image0.jpg", "image1.jpg"]
    assert imread(folder / "image0.jpg").shape == (120, 160, 3)
    crops = results.crop(save_dir=tmp_path / "crops")
    assert len(crops) == 4 and set(crops[0]) == {"box", "conf", "cls", "label", "im"}
    for piece in crops:
        x1, y1, x2, y2 = piece["box"].tolist()
        assert piece["im"].shape[:2] == pytest.approx((y2 - y1, x2 - x1), abs=2) and piece["im"].mean() > 200
    assert len(list((tmp_path / "crops" / "crops").glob("*/*.jpg"))) == 4
    assert results.crop(save=False, save_dir=tmp_path / "none") and not (tmp_path / "none").exists()
    twice = Detections([image] * 2, [Boxes.empty()] * 2, ["a.png", "A.png"], {})
    assert twice.unique_files() == ["a.png", "A-2.png"]


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ("http://127.0.0.1:9/a.jpg", "image 1: 127_0_0_1_a.jpg: not downloaded"),
        ("rtsp://host/live", "image 1: the URL does not end in"),
        (3, "is a int, expected a path"),
        (np.zeros((4, 4, 2), np.uint8), r"shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.full((4, 4, 3), 255.0), "floats in 255..255"),
        (np.full((4, 4, 3), np.nan), "expected 0..1"),
        (np.zeros((4, 4, 3), np.int64), "is of int64"),
    ],
)
def test_mistakes_name_the_image(model, wrong, match) -> None:
    with pytest.raises(ValueError, match=match):
        model([np.zeros((32, 32, 3), np.uint8), wrong])


def test_through_torch_hub(tmp_path) -> None:
    torch.manual_seed(0)
    network = DetectionModel("yolov5n.yaml", nc=2)
    network.names = {0: "cat", 1: "dog"}
    weights = tmp_path / "w.pt"
    save_checkpoint(weights, Checkpoint.of(network))
    model = torch.hub.load(str(REPO), "custom", path=str(weights), source="local", device="cpu")
    assert model.names == {0: "cat", 1: "dog"} and model.grid == 32
    assert len(model(np.zeros((50, 70, 3), np.uint8), size=64).xyxy) == 1
    with pytest.raises(FileNotFoundError):
        hubconf.load(tmp_path / "none.pt")


def test_official_weights_give_the_recorded_boxes() -> None:
    """Upstream's own boxes at a square 640: the same objects, places to 2 px, scores to 0.02."""
    model = hubconf.load(shared("weights/yolov5n.pt"), device="cpu")
    expected = oracle("yolov5n_detections.pt")["zidane.jpg"]["detections_xyxy_conf_cls"]
    predictor = hubconf.Predictor(model.backend, torch.device("cpu"), 640, rect=False)
    found = torch.from_numpy(predictor([imread(shared("datasets/images/zidane.jpg"))])[0].boxes.table())
    assert found.shape == expected.shape
    assert (found[:, :4] - expected[:, :4]).abs().max() < 2 and (found[:, 4] - expected[:, 4]).abs().max() < 0.02
    assert found[:, 5].tolist() == expected[:, 5].tolist()
