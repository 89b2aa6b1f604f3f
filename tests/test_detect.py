"""detect.py, its sources and its drawing, mostly with a stand-in for the model that knows its boxes in advance."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import detect
from models.common import Attention
from models.runtimes.load import load_backend
from models.visualize import attention_of, record_activations
from models.weights.checkpoint import Checkpoint, save_checkpoint
from models.yolo import DetectionModel
from utils.backend import ModelLimits
from utils.data.voc import VocLabels
from utils.images import imread, imwrite, letterbox
from utils.palette import class_color
from utils.predict.frames import Broken, Frame, VideoInfo
from utils.predict.predictor import Predictor
from utils.predict.sources import open_source
from utils.predict.writers import Stems

REPO = Path(__file__).resolve().parents[1]
NAMES = {0: "ball", 1: "star", 2: "Bär/größe"}
BOX = (0.25, 0.5, 0.5, 0.75)  # x1, y1, x2, y2 as fractions of the image that FakeBackend sees


class FakeBackend:
    """Finds the same boxes, given in fractions of the image, in every image of the size `size` (h, w)."""

    names, nc, stride, grid, letterbox = NAMES, 3, 32, 32, "center"
    limits = ModelLimits()

    def __init__(self, size=(120, 160), boxes=((*BOX, 0.9, 0),)):
        self.size, self.boxes, self.seen = size, boxes, []

    def __call__(self, images):
        self.seen.append(tuple(images.shape))
        assert images.dtype == torch.float32 and images.max() <= 1
        h, w = self.size
        place = letterbox(np.zeros((h, w, 3), np.uint8), images.shape[-2:])[1]
        rows = torch.zeros(1, len(self.boxes) + 4, 8)  # four rows of nothing, as a model has many
        for row, (x1, y1, x2, y2, score, label) in zip(rows[0], self.boxes, strict=False):
            a, b, c, d = place.to_canvas(np.array([[x1 * w, y1 * h, x2 * w, y2 * h]]))[0]
            row[:5] = torch.tensor([(a + c) / 2, (b + d) / 2, c - a, d - b, 1.0])
            row[5 + label] = score
        return rows


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function: source, backend, flags -> the run's folder."""

    def start(source, backend=None, **flags):
        monkeypatch.setattr(detect, "load_model", lambda *_: backend or FakeBackend())
        base = detect.DetectConfig(weights="x.pt", imgsz=160, device="cpu", project=str(tmp_path / "runs"))
        return detect.main(replace(base, source=str(source), **flags))

    return start


def image_file(path, size=(120, 160), value=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    imwrite(path, np.full((*size, 3), value, np.uint8))
    return path


def video_file(path, frames=6, fps=12.5, size=(120, 160)):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size[::-1])
    for i in range(frames):
        writer.write(np.full((*size, 3), 20 * i, np.uint8))
    writer.release()
    return path


def files(folder):
    """All but the list of a run's own files, and of the names of the classes."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in found if name not in (".outputs", "labels/classes.txt"))


def labels(path):
    return np.array([line.split() for line in path.read_text().splitlines()], dtype=float)


def test_one_image_is_annotated_and_printed(run, tmp_path, caplog):
    source = image_file(tmp_path / "a.png")
    with caplog.at_level("INFO"):
        out = run(source)
    assert files(out) == ["a.png"]
    assert imread(out / "a.png").shape == (120, 160, 3)
    assert (imread(out / "a.png")[60, 41:79] == class_color(0)).all()  # the upper edge
    assert f"{source}: 128x160 1 ball, " in caplog.text
    assert str(out) in caplog.text


def test_folder_glob_and_list(run, tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.jpg"):
        image_file(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.md").write_text("not an image")
    video_file(tmp_path / "in" / "v.mp4", frames=2)
    listing = tmp_path / "in" / "list.txt"
    listing.write_text("sub/c.jpg\n\nb.jpg\nb.jpg\n")
    assert files(run(tmp_path / "in")) == ["a.PNG", "b.jpg", "v.mp4"]
    assert files(run(tmp_path / "in" / "*.jpg")) == ["b.jpg"]
    assert files(run(tmp_path / "in" / "**" / "*.jpg")) == ["b.jpg", "c.jpg"]
    listed = list(open_source(str(listing)))
    assert [f.path.name for f in listed] == ["c.jpg", "b.jpg"]
    assert all(f.number == 0 and f.video is None for f in listed)


@pytest.mark.parametrize(("fps", "stride"), [(12.5, 1), (12.5, 2), (29.97, 1)])
def test_video_keeps_its_rate_and_frames(run, tmp_path, fps, stride):
    source = video_file(tmp_path / "clip.mp4", fps=fps)
    out = run(source, save_txt="yolo", vid_stride=stride)
    numbers = range(1, 7, stride)
    assert files(out) == sorted(["clip.mp4", *(f"labels/clip_{n}.txt" for n in numbers)])
    made = list(open_source(str(out / "clip.mp4")))
    assert len(made) == len(numbers)
    video = made[0].video
    assert video is not None
    assert video.fps == pytest.approx(fps / stride, abs=1e-3)
    assert (video.size, video.frames) == ((120, 160), len(numbers))


@pytest.mark.parametrize("size", [(200, 200), (300, 400), (360, 640), (640, 360), (101, 333)])
@pytest.mark.parametrize("rect", [True, False])
def test_boxes_come_back_through_the_letterbox(size, rect):
    backend = FakeBackend(size, ((0.1, 0.2, 0.45, 0.9, 0.9, 0), (0.5, 0.0, 1.0, 0.6, 0.8, 1)))
    predictor = Predictor(backend, torch.device("cpu"), 320, rect=rect)
    found = predictor([np.zeros((*size, 3), np.uint8)])[0]
    h, w = size
    expected = np.array([[0.1, 0.2, 0.45, 0.9], [0.5, 0, 1, 0.6]]) * [w, h, w, h]
    assert np.abs(found.boxes.xyxy - expected).max() < 1
    assert found.boxes.score == pytest.approx([0.9, 0.8]) and found.boxes.label.tolist() == [0, 1]
    assert backend.seen[0][2:] == found.canvas
    assert (found.canvas == (320, 320)) or rect


def test_save_txt_is_normalized(run, tmp_path):
    out = run(image_file(tmp_path / "a.jpg"), save_txt="yolo", save_conf=True, nosave=True)
    assert files(out) == ["labels/a.txt"]
    assert (out / "labels/a.txt").read_text().split()[0] == "0"
    assert labels(out / "labels/a.txt")[0] == pytest.approx([0, 0.375, 0.625, 0.25, 0.25, 0.9], abs=1e-3)
    again = run(tmp_path / "a.jpg", save_txt="yolo", nosave=True)
    assert labels(again / "labels/a.txt").shape == (1, 5)
    repeated = run(tmp_path / "a.jpg", save_txt="yolo", nosave=True, name=again.name, exist_ok=True)
    assert repeated == again
    assert len(labels(again / "labels/a.txt")) == 1


def test_crops_and_names_that_are_not_ascii(run, tmp_path):
    backend = FakeBackend(boxes=((*BOX, 0.9, 2), (0.6, 0.1, 0.9, 0.3, 0.8, 2), (0.0, 0.0, 0.2, 0.3, 0.7, 1)))
    out = run(image_file(tmp_path / "größe-图.jpg"), backend, save_crop=True, save_txt="yolo")
    assert files(out) == sorted(
        [
            "crops/Bär_größe/größe-图.jpg",
            "crops/Bär_größe/größe-图_2.jpg",
            "crops/star/größe-图.jpg",
            "größe-图.jpg",
            "labels/größe-图.txt",
        ]
    )
    h, w = imread(out / "crops/Bär_größe/größe-图.jpg").shape[:2]
    assert abs(h - 30) <= 1 and abs(w - 40) <= 1


def test_inputs_of_one_name_do_not_overwrite_each_other(run, tmp_path):
    for i, name in enumerate(("1/a.jpg", "2/a.jpg", "2/a.png")):
        image_file(tmp_path / "in" / name, value=60 * i)
    out = run(tmp_path / "in" / "*" / "*", save_txt="yolo", save_crop=True)
    stems = ["a", "a-2", "a-3"]
    assert [p for p in files(out) if p.startswith("labels")] == sorted(f"labels/{s}.txt" for s in stems)
    assert sorted(p.name for p in out.glob("a*.*")) == ["a-2.jpg", "a-3.png", "a.jpg"]
    assert len(files(out / "crops")) == 3
    give = Stems()
    assert give(Path("v.mp4"), True) == "v"
    assert give(Path("v_3.jpg"), False) == "v_3-2"  # v_3.txt belongs to the third frame of v.mp4
    assert give(Path("x/v.avi"), True) == "v-2"
    assert give(Path("v.mp4"), True) == "v"


def test_no_detections(run, tmp_path, caplog):
    image_file(tmp_path / "a.jpg")
    with caplog.at_level("INFO"):
        out = run(tmp_path / "a.jpg", FakeBackend(boxes=()), save_txt="yolo", save_crop=True)
    assert files(out) == ["a.jpg"]
    assert "128x160 no detections, " in caplog.text


def test_classes_and_summary(run, tmp_path, caplog):
    boxes = tuple((0.2 * i, 0.1, 0.2 * i + 0.15, 0.4, 0.9, label) for i, label in enumerate((0, 1, 0, 0)))
    image_file(tmp_path / "a.jpg")
    with caplog.at_level("INFO"):
        run(tmp_path / "a.jpg", FakeBackend(boxes=boxes))
        run(tmp_path / "a.jpg", FakeBackend(boxes=boxes), classes=("star",))
    assert "3 balls, 1 star, " in caplog.text
    assert "160 1 star, " in caplog.text
    with pytest.raises(ValueError, match="--classes 7"):
        run(tmp_path / "a.jpg", classes=("7",))


def test_errors_say_where_and_what(run, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        run(tmp_path / "nowhere.jpg")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no file of the folder"):
        run(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no file of the pattern"):
        run(tmp_path / "*.jpg")
    (tmp_path / "a.xyz").write_text("?")
    with pytest.raises(ValueError, match=r"unknown suffix '\.xyz'"):
        run(tmp_path / "a.xyz")
    (tmp_path / "l.txt").write_text("a.xyz\nmissing.jpg\n")
    with pytest.raises(FileNotFoundError, match="line 2"):
        run(tmp_path / "l.txt")
    with pytest.raises(ValueError, match="scheme 'ftp://'"):
        run("ftp://host/a.jpg")
    with pytest.raises(ValueError, match="--vid-stride 0"):
        run(tmp_path / "a.jpg", vid_stride=0)
    assert not (tmp_path / "runs").exists()
    for name in ("broken.jpg", "broken.mp4"):
        (tmp_path / name).write_text("not what it says")
        with pytest.raises(ValueError, match=name):
            run(tmp_path / name)


def test_without_weights_the_newest_run_is_used(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    opened = []
    monkeypatch.setattr(detect, "load_model", lambda weights, *_: opened.append(weights) or FakeBackend())
    best = Path("runs", "train", "site", "a", "weights", "best.pt")
    best.parent.mkdir(parents=True)
    best.write_bytes(b"")
    with caplog.at_level("INFO"):
        out = detect.main(detect.DetectConfig(source=str(image_file(tmp_path / "a.jpg")), imgsz=160, device="cpu"))
    assert opened == [str(best)] and f"using {best}" in caplog.text
    assert out == Path("runs", "detect", "exp") and files(out) == ["a.jpg"]


def test_backend_refuses_other_weights(tmp_path):
    with pytest.raises(ValueError, match=r"\.pt"):
        load_backend(tmp_path / "model.xyz", torch.device("cpu"))
    with pytest.raises(FileNotFoundError, match=r"model\.pt"):
        load_backend(tmp_path / "model.pt", torch.device("cpu"))


def test_a_real_checkpoint_from_the_command_line(tmp_path):
    torch.manual_seed(0)
    model = DetectionModel("yolov5n.yaml", nc=3)
    model.names = dict(NAMES)
    weights = tmp_path / "tiny.pt"
    save_checkpoint(weights, Checkpoint.of(model))
    backend = load_backend(weights, torch.device("cpu"))
    assert (backend.names, backend.nc, backend.stride, backend.grid) == (NAMES, 3, 32, 32)
    x = torch.rand(1, 3, 64, 96)
    assert torch.allclose(backend(x), model.eval()(x)[0], atol=1e-2, rtol=1e-3)
    with pytest.raises(ValueError, match="--half"):
        load_backend(weights, torch.device("cpu"), half=True)
    source = image_file(tmp_path / "a.jpg")
    words = ["--weights", weights, "--source", source, "--img", "64", "--project", tmp_path / "r", "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "detect.py", *map(str, words)],
        cwd=REPO,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "r" / "exp" / "a.jpg").is_file()


def test_csv_json_and_voc(run, tmp_path):
    for name in ("000007.jpg", "b.jpg"):
        image_file(tmp_path / "in" / name)
    out = run(tmp_path / "in", save_txt="voc", save_csv=True, save_json=True, nosave=True)
    assert files(out) == ["labels/000007.xml", "labels/b.xml", "predictions.csv", "predictions.json"]
    read = VocLabels(out / "labels", NAMES).read(Path("b.jpg"), (120, 160))
    assert read.label.tolist() == [0] and read.xywhn[0] == pytest.approx([0.375, 0.625, 0.25, 0.25], abs=1e-3)
    rows = list(csv.reader((out / "predictions.csv").open()))
    assert rows[0][:3] == ["Image Name", "Prediction", "Confidence"] and len(rows) == 3
    assert rows[1][:2] == ["000007.jpg", "ball"] and float(rows[1][2]) == pytest.approx(0.9)
    assert [float(v) for v in rows[1][3:7]] == pytest.approx([40, 60, 80, 90], abs=0.1)
    found = json.loads((out / "predictions.json").read_text())
    assert [r["image_id"] for r in found] == [7, "b"]
    assert found[0]["bbox"] == pytest.approx([40, 60, 40, 30], abs=0.1) and found[0]["category_id"] == 0
    nothing = run(tmp_path / "in", FakeBackend(boxes=()), save_json=True, save_csv=True, save_txt="voc", nosave=True)
    assert json.loads((nothing / "predictions.json").read_text()) == [] and not (nothing / "labels").exists()
    with pytest.raises(ValueError, match="--save-txt coco"):
        run(tmp_path / "in", save_txt="coco")


def test_broken_inputs_do_not_stop_the_run_but_fail_it(run, tmp_path, caplog):
    image_file(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "b.jpg").write_text("words")
    (tmp_path / "in" / "c.mp4").write_bytes(b"")
    video_file(tmp_path / "in" / "d.mp4", frames=3)
    with pytest.raises(ValueError, match=r"2 inputs could not be read: .*b\.jpg, .*c\.mp4"):
        run(tmp_path / "in", save_json=True)
    out = tmp_path / "runs" / "exp"
    assert files(out) == ["a.jpg", "d.mp4", "predictions.json"]
    assert len(json.loads((out / "predictions.json").read_text())) == 4
    assert "b.jpg: not a readable image" in caplog.text and "c.mp4: not a readable video" in caplog.text


def test_results_never_overwrite_the_source(run, tmp_path):
    source = image_file(tmp_path / "runs" / "mine" / "a.png")
    before = source.read_bytes()
    with pytest.raises(ValueError, match="would overwrite"):
        run(tmp_path / "runs" / "mine", name="mine", exist_ok=True)
    assert source.read_bytes() == before and files(source.parent) == ["a.png"]


def test_streams_are_written_side_by_side(run, tmp_path, monkeypatch):
    def frames(*_):
        for number in range(1, 5):
            for name, size in (("one", (120, 160)), ("two", (120, 160) if number < 3 else (60, 80))):
                image = np.full((*size, 3), 50, np.uint8)
                yield Frame(image, Path(name), number, VideoInfo(25, 0, size, live=True))
        yield Broken(Path("two"), "two: stream closed")

    monkeypatch.setattr(detect, "open_source", frames)
    with pytest.raises(ValueError, match="two"):
        run("rtsp://x", FakeBackend(boxes=()))
    for name in ("one.mp4", "two.mp4"):
        made = list(open_source(str(tmp_path / "runs" / "exp" / name)))
        assert len(made) == 4 and made[0].image.shape == (120, 160, 3)


def test_view_img_shows_frames_and_q_ends(run, tmp_path, monkeypatch):
    source = video_file(tmp_path / "clip.mp4")
    with pytest.raises(ImportError, match="opencv-python"):
        run(source, view_img=True)  # the tests' OpenCV has no windows
    shown = []
    monkeypatch.setattr(detect, "open_window", lambda: lambda path, image: shown.append(image.shape) or len(shown) == 3)
    run(source, view_img=True, nosave=True)
    assert shown == [(120, 160, 3)] * 3


@pytest.fixture(scope="module")
def mobilevit(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("w") / "m.pt"
    save_checkpoint(path, Checkpoint.of(DetectionModel("yolov5-mobilevit-xxs.yaml", nc=3)))
    return path


def test_visualize_writes_maps_and_attention(mobilevit, tmp_path):
    source = image_file(tmp_path / "a.jpg", (128, 128))
    cfg = detect.DetectConfig(
        weights=str(mobilevit), source=str(source), imgsz=128, device="cpu", project=str(tmp_path), visualize=True
    )
    out = detect.main(cfg) / "visualize" / "a"
    made = files(out)
    model = load_backend(mobilevit, torch.device("cpu")).model
    blocks = [type(layer).__name__ for layer in model.model[:-1]]
    assert len([name for name in made if name.endswith("_features.png")]) == len(blocks)
    assert len([name for name in made if name.endswith("_attention.png")]) == blocks.count("MobileViTBlock") == 3
    assert all(imread(out / name).size for name in made)
    with pytest.raises(ValueError, match="--visualize"):
        detect.main(replace(cfg, augment=True))


def test_attention_shown_is_the_attention_computed(mobilevit):
    """Weights times values give what the block's own attention gives for that token."""
    torch.manual_seed(1)
    module = Attention(24, heads=3, head_dim=None, qkv_bias=True)
    tokens = torch.randn(2, 12, 24)
    values = module.qkv(tokens).chunk(3, dim=-1)[2].unflatten(-1, (3, 8))
    for query in (0, 7):
        weights = attention_of(module, tokens, query)
        assert torch.allclose(weights.sum(dim=-1), torch.ones(2, 3), atol=1e-5)
        mixed = torch.einsum("bhn,bnhd->bhd", weights, values).flatten(1)
        assert torch.allclose(module.out(mixed), module(tokens)[:, query], atol=1e-5)
    model = load_backend(mobilevit, torch.device("cpu")).model
    inside = record_activations(model, torch.rand(1, 3, 128, 192), (0.9, 0.1))
    shapes = {name: tuple(maps.shape) for name, maps in inside.attention.items()}
    assert list(shapes.values()) == [(2, 8, 12), (4, 4, 6), (3, 2, 3)]
    assert all(torch.allclose(m.sum(dim=(1, 2)), torch.ones(len(m)), atol=1e-4) for m in inside.attention.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
