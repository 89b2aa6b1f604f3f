"""Tracking in detect.py: identities and counts in every output, sources of all kinds, runtimes, the last lines."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

import detect
import utils.track.tracking as tracking_module
from detect import DetectConfig
from tests.tiny import write_tiny
from utils.boxes import Boxes, Tracked
from utils.images import imread, imwrite
from utils.predict.frames import Frame, VideoInfo
from utils.predict.outputs import Output, OutputSettings
from utils.predict.predictor import Prediction
from utils.predict.sources import open_source
from utils.predict.writers import by_identity
from utils.runs import OutputFiles
from utils.track.bytetrack import TrackSettings
from utils.track.counting import parse_areas
from utils.track.overlay import draw_areas, draw_text
from utils.track.tracking import Tracking

NAMES = {0: "car", 1: "=cmd\x1b", 2: "Bär"}
SIZE = (96, 160)


def video_file(path: Path, length: int = 12) -> Path:
    """A video that is dark, so that a drawing on it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10, SIZE[::-1])
    for _ in range(length):
        writer.write(np.full((*SIZE, 3), 30, np.uint8))
    writer.release()
    return path


def moving(number: int) -> Prediction:
    """A car that goes right, and something that goes left below it: 10 pixels per frame."""
    xyxy = np.array([[10 * number, 20, 10 * number + 20, 40], [140 - 10 * number, 60, 160 - 10 * number, 80]], float)
    return Prediction(Boxes(xyxy, np.array([0, 1]), np.array([0.9, 0.8])), SIZE, (0.0, 0.0, 0.0))


def run(source: str, folder: Path, lines: tuple[str, ...] = (), zones: tuple[str, ...] = (), **flags: bool | str):
    """What detect.py does with a source, without a model: the boxes of `moving`."""
    folder.mkdir(parents=True, exist_ok=True)
    files, areas = OutputFiles(folder), parse_areas("line", lines) + parse_areas("zone", zones)
    tracking = Tracking(TrackSettings(), areas, files, NAMES)
    settings = OutputSettings(track=True, **flags)  # type: ignore[arg-type]
    with tracking, Output(settings, files, NAMES, None, tracking.overlay) as output:
        images = 0
        for frame in open_source(source):
            assert isinstance(frame, Frame)
            images += frame.video is None
            output.add(frame, tracking(frame, moving(frame.number or images)))
    return tracking


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tracking]:
    base = tmp_path_factory.mktemp("track")
    video_file(base / "in" / "v.mp4")
    flags = {"save_txt": "yolo", "save_csv": True, "save_json": True, "save_conf": True}
    tracking = run(str(base / "in" / "v.mp4"), base / "run", ("0.5,0,0.5,1",), ("0,0,60,0,60,96,0,96",), **flags)
    return base / "run", tracking


# ---- outputs --------------------------------------------------------------------------------------------------------


def test_tables_have_identities(written: tuple[Path, Tracking]) -> None:
    folder, _ = written
    for number in (1, 12):
        lines = (folder / "labels" / f"v_{number}.txt").read_text().splitlines()
        assert [line.split()[0] for line in lines] == ["0", "1"] and [line.split()[-1] for line in lines] == ["1", "2"]
        assert {len(line.split()) for line in lines} == {7}  # class, box, score, identity
    rows = list(csv.DictReader((folder / "predictions.csv").open()))
    assert list(rows[0])[-1] == "Track" and [row["Track"] for row in rows] == ["1", "2"] * 12
    assert [row["track_id"] for row in json.loads((folder / "predictions.json").read_text())] == [1, 2] * 12


def test_tracks_are_in_the_format_of_mot_challenge(written: tuple[Path, Tracking]) -> None:
    lines = (written[0] / "tracks" / "v.txt").read_text().splitlines()
    assert lines[:2] == ["1,1,11.00,21.00,20.00,20.00,0.9000,1,-1,-1", "1,2,131.00,61.00,20.00,20.00,0.8000,2,-1,-1"]
    assert len(lines) == 24 and lines[-1].startswith("12,2,21.00,")
    io = pytest.importorskip("motmetrics.io", reason="motmetrics is not installed: nothing to read it with")
    table = io.loadtxt(str(written[0] / "tracks" / "v.txt"), fmt="mot15-2D")
    assert table.loc[(1, 1), ["X", "Y", "Width", "Height"]].tolist() == [10, 20, 20, 20]


def test_counts_are_written_and_said(written: tuple[Path, Tracking]) -> None:
    folder, tracking = written
    rows = list(csv.DictReader((folder / "counts.csv").open()))
    own = [(row["Area"], row["Class"], row["In"], row["Out"]) for row in rows]
    assert own == [
        ("line 1", "car", "0", "1"),
        ("line 1", "'=cmd", "1", "0"),
        ("zone 1", "car", "0", "1"),
        ("zone 1", "'=cmd", "1", "0"),
    ]
    assert rows[0]["Source"].endswith("v.mp4") and rows[0]["Points"] == "0.5,0 0.5,1"
    lines = tracking.lines()
    assert lines[0].startswith("tracked: 1 car, 1 =cmd")
    assert lines[1] == "line 1 (0.5,0 0.5,1, fractions of the image): car 0 in 1 out, =cmd 1 in 0 out"
    assert lines[2].startswith("zone 1 (0,0 60,0 60,96 0,96, pixels): ")
    assert {"counts.csv", "tracks/v.txt"} <= OutputFiles(folder).known.keys()


def test_the_video_shows_line_zone_and_counts(written: tuple[Path, Tracking]) -> None:
    capture = cv2.VideoCapture(str(written[0] / "v.mp4"))
    frames = [frame for ok, frame in iter(capture.read, (False, None)) if ok]
    assert len(frames) == 12
    line, zone = frames[5][90, 78:83], frames[5][92, 58:63]  # BGR, on the line and on the zone's edge
    assert (line.max(axis=0)[[1, 2]] > 120).all() and (zone.max(axis=0)[[1, 2]] > 120).all()
    assert (frames[0][:30, :100] != frames[11][:30, :100]).any()  # the counts


def test_labels_name_identities_and_colors_are_theirs() -> None:
    boxes = Tracked(np.array([[0, 0, 9, 9.0]]), np.array([2]), np.array([0.5]), np.array([7]))
    plain, texts = by_identity(boxes, {2: "car"})
    assert texts == {7: "#7 car"} and plain.label.tolist() == [7]
    untracked = Boxes(boxes.xyxy, boxes.label, boxes.score)
    assert by_identity(untracked, {2: "car"}) == (untracked, {2: "car"})


def test_drawing_stays_inside_and_changes_a_copy() -> None:
    for size in ((20, 30), (96, 160), (1080, 1920)):
        image = np.zeros((*size, 3), np.uint8)
        tracking = Tracking(TrackSettings(), parse_areas("line", ["0,0,5000,7000"]), OutputFiles(Path(".")), NAMES)
        counter = tracking_module.AreaCounter(tracking.areas[0])
        counter(Tracked(np.zeros((0, 4)), *(np.zeros(0, int) for _ in range(3))), size, np.zeros(0, int))
        counter.counts.update({(k, "in"): 10**6 for k in range(20)})
        drawn = draw_areas(image, [counter], {k: "a very long name of a class" * 3 for k in range(20)})
        assert drawn.shape == image.shape and drawn.any() and not image.any()
        assert draw_text(image, [""]).shape == image.shape


# ---- sources --------------------------------------------------------------------------------------------------------


def test_each_video_has_its_own_tracks(tmp_path: Path) -> None:
    for name in ("a/v", "b/v"):
        video_file(tmp_path / f"{name}.mp4")
    tracking = run(str(tmp_path / "*" / "*.mp4"), tmp_path / "run", ("0.5,0,0.5,1",), nosave=True)
    texts = [(tmp_path / "run" / "tracks" / f"{name}.txt").read_text() for name in ("v", "v-2")]
    assert texts[0] == texts[1] and texts[0]
    assert len(list(csv.DictReader((tmp_path / "run" / "counts.csv").open()))) == 4
    assert tracking.lines()[1].endswith("car 0 in 2 out, =cmd 2 in 0 out") and tracking.objects == {0: 2, 1: 2}


def test_images_of_a_folder_are_one_sequence(tmp_path: Path) -> None:
    (tmp_path / "img1").mkdir()
    for number in range(1, 7):
        imwrite(tmp_path / "img1" / f"{number:06d}.png", np.zeros((*SIZE, 3), np.uint8))
    run(str(tmp_path / "img1"), tmp_path / "run", save_txt="yolo")
    lines = (tmp_path / "run" / "tracks" / "img1.txt").read_text().splitlines()
    assert [line.split(",")[:2] for line in lines] == [[str(k), i] for k in range(1, 7) for i in "12"]
    assert (tmp_path / "run" / "labels" / "000006.txt").read_text().splitlines()[1].endswith(" 2")


def streams(number: int, *names: str) -> Iterator[Frame]:
    info = VideoInfo(10.0, 0, SIZE, live=True)
    yield from (Frame(np.zeros((*SIZE, 3), np.uint8), Path(name), number, info) for name in names)


def test_streams_side_by_side_and_lost_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cameras in turn; one loses frames; its connection is lost for a minute, which no frame number shows."""
    clock = [0.0]
    monkeypatch.setattr(tracking_module.time, "monotonic", lambda: clock[0])
    tracking, found = Tracking(TrackSettings(), [], OutputFiles(tmp_path), NAMES), {}
    with tracking:
        for number in (1, 2, 3, 6, 7, 8):  # 4 and 5 are lost
            clock[0] = number / 10
            for frame in streams(number, "cam1", "cam2"):
                boxes = tracking(frame, moving(number if frame.path.name == "cam1" else 1)).boxes
                found.setdefault(frame.path.name, []).append(boxes.identity.tolist())
        clock[0] += 60
        for number in (9, 10):
            clock[0] += 0.1
            for frame in streams(number, "cam1"):
                found["cam1"].append(tracking(frame, moving(number)).boxes.identity.tolist())
    assert found == {"cam1": [[1, 2]] * 6 + [[], [3, 4]], "cam2": [[1, 2]] * 6}
    assert sorted(path.name for path in (tmp_path / "tracks").iterdir()) == ["cam1.txt", "cam2.txt"]
    numbers = {line.split(",")[0] for line in (tmp_path / "tracks" / "cam1.txt").read_text().splitlines()}
    assert numbers == {"1", "2", "3", "6", "7", "8", "10"}


def test_a_line_outside_of_the_image_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    video_file(tmp_path / "v.mp4", 3)
    run(str(tmp_path / "v.mp4"), tmp_path / "run", ("0,500,160,500", "0,50,300,50"), nosave=True)
    assert caplog.text.count("is outside of") == 1 and "line 1 (0,500 160,500, pixels) is outside of" in caplog.text


def test_files_are_complete_after_an_error(tmp_path: Path) -> None:
    files = OutputFiles(tmp_path)
    with (
        pytest.raises(ZeroDivisionError),
        Tracking(TrackSettings(), parse_areas("line", ["0,1,1,1"]), files, NAMES) as t,
    ):
        for frame in streams(1, "cam"):
            t(frame, moving(1))
        raise ZeroDivisionError
    assert (tmp_path / "tracks" / "cam.txt").read_text().count("\n") == 2 and (tmp_path / "counts.csv").exists()


def test_a_full_disk_leaves_no_half_file_and_completes_the_others(tmp_path: Path) -> None:
    class Full:
        def writelines(self, _: object) -> None:
            raise OSError(28, "No space left on device")

        def close(self) -> None:
            pass

    files = OutputFiles(tmp_path)
    with (
        pytest.raises(OSError, match=r"cam1\.txt"),
        Tracking(TrackSettings(), parse_areas("line", ["0,1,1,1"]), files, {}) as t,
    ):
        for number in (1, 2):
            for frame in streams(number, "cam2", "cam1"):
                t(frame, moving(number))
            t.sources[Path("cam1")].file.file = Full()  # type: ignore[assignment]
    assert [path.name for path in (tmp_path / "tracks").iterdir()] == ["cam2.txt"]
    assert len((tmp_path / "counts.csv").read_text().splitlines()) == 3


def test_a_track_file_of_somebody_else_stays(tmp_path: Path) -> None:
    (tmp_path / "tracks").mkdir()
    (tmp_path / "tracks" / "cam.txt").write_text("mine")
    with pytest.raises(FileExistsError), Tracking(TrackSettings(), [], OutputFiles(tmp_path), NAMES) as tracking:
        for frame in streams(1, "cam"):
            tracking(frame, moving(1))
    assert (tmp_path / "tracks" / "cam.txt").read_text() == "mine"


# ---- the script -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, and a video of an image that stays the same, in which it finds the same in every frame."""
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny(folder)
    image = imread(folder / "images" / "1.png")
    writer = cv2.VideoWriter(str(folder / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (128, 128))
    for _ in range(4):
        writer.write(image[..., ::-1])
    writer.release()
    return folder


def config(tiny: Path, out: Path, **flags: object) -> DetectConfig:
    flags = {"weights": str(tiny / "tiny.pt"), "imgsz": (128,), "max_det": 5, "project": str(out)} | flags
    return DetectConfig(source=str(tiny / "v.avi"), device="cpu", **flags)  # type: ignore[arg-type]


def test_detect_tracks_a_still_video(tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    folder = detect.main(config(tiny, tmp_path, track=True, conf_thres=0.6, save_txt="yolo"))
    texts = {(folder / "labels" / f"v_{number}.txt").read_text() for number in range(1, 5)}
    assert len(texts) == 1 and "tracked: " in caplog.text and str(folder / "tracks") in caplog.text
    plain = detect.main(config(tiny, tmp_path, conf_thres=0.6, save_txt="yolo"))
    lines = [line.rpartition(" ")[0] for line in texts.pop().splitlines()]
    assert lines == (plain / "labels" / "v_1.txt").read_text().splitlines()  # no other boxes than without tracking
    assert not (plain / "tracks").exists() and not (folder / "counts.csv").exists()


def test_counting_tracks_too_and_mistakes_come_first(tiny: Path, tmp_path: Path) -> None:
    folder = detect.main(config(tiny, tmp_path, count_line=("0,0.5,1,0.5",), conf_thres=0.6, nosave=True))
    assert (folder / "counts.csv").read_text().splitlines()[1].endswith('line 1,"0,0.5 1,0.5",,0,0')
    assert (folder / "tracks" / "v.txt").read_text()
    with pytest.raises(ValueError, match="--count-zone 1,2,3"):
        detect.main(config(tiny, tmp_path / "none", count_zone=("1,2,3",)))
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("include", ["torchscript", "onnx"])
def test_exported_files_give_the_same_tracks(tiny: Path, tmp_path: Path, include: str) -> None:
    if include == "onnx":
        pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    import export

    path = tiny / f"tiny.{include}"
    export.main(export.ExportConfig(weights=str(tiny / "tiny.pt"), imgsz=(128,), include=(include,)))
    own, other = (
        detect.main(config(tiny, tmp_path, weights=str(weights), track=True, conf_thres=0.6, nosave=True, rect=False))
        for weights in (tiny / "tiny.pt", path)
    )
    tables = [np.loadtxt(folder / "tracks" / "v.txt", delimiter=",") for folder in (own, other)]
    assert tables[0].shape == tables[1].shape and np.abs(tables[0] - tables[1]).max() < 0.05
