"""Files that runs write: names, replaced results, full disks, real time, logins, any encoding."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tests.shared import shared
from utils.boxes import Boxes
from utils.files import write_atomic
from utils.images import imread, imwrite
from utils.predict.frames import Broken, Frame, VideoInfo, frame_rate, misses_bytes
from utils.predict.outputs import Output, OutputSettings
from utils.predict.predictor import Prediction
from utils.predict.results import Detections
from utils.predict.sources import ends_early, list_files, open_source, source_files
from utils.predict.streams import stream_name, without_secrets
from utils.predict.videos import VideoFile
from utils.predict.writers import Crops, CsvFile, ImageIds, JsonFile, Stems, shorten
from utils.runs import OutputFiles

REPO = Path(__file__).resolve().parents[1]
NAMES = {0: "a/b", 1: "a:b", 2: "A_B"}
SIZE = (60, 80)


def boxes(*labels: int) -> Boxes:
    n = len(labels)
    xyxy = np.array([[5 * k, 5, 5 * k + 20, 30] for k in range(n)], float).reshape(n, 4)
    return Boxes(xyxy, np.array(labels, int), np.linspace(0.9, 0.5, n))


def noise(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)


def image_file(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    imwrite(path, noise(seed))
    return path


def detect(source: str, folder: Path, found: Boxes, sources: list[Path] | None = None, **flags: bool | str) -> None:
    """What detect.py does with a source, without a model: every frame has the same boxes."""
    folder.mkdir(parents=True, exist_ok=True)
    files = OutputFiles(folder)
    files.remove_earlier(source_files(source) if sources is None else sources)
    with Output(OutputSettings(**flags), files, NAMES) as output:  # type: ignore[arg-type]
        for frame in open_source(source):
            assert isinstance(frame, Frame), frame
            output.add(frame, Prediction(found, SIZE, (0.0, 0.0, 0.0)))


def listing(folder: Path) -> list[str]:
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(name for name in found if name not in (".outputs", "labels/classes.txt"))


# ---- names ----------------------------------------------------------------------------------------------------------


def test_each_box_has_its_crop(tmp_path: Path) -> None:
    """Of classes whose names differ in what folders cannot hold, and of images whose numbered names meet."""
    images = [noise(k) for k in range(3)]
    found = [boxes(0, 0, 1), boxes(0, 2), boxes(0)]
    results = Detections(images, found, ["a.jpg", "a.png", "a_2.jpg"], NAMES)
    for calls in (1, 2):
        results.crop(save_dir=tmp_path / "out", exist_ok=True)
        assert len(listing(tmp_path / "out")) == 6 * calls
    assert sorted(p.name for p in (tmp_path / "out" / "crops").iterdir()) == ["A_B-3", "a_b", "a_b-2"]
    assert len(list((tmp_path / "out/crops/a_b-2").iterdir())) == 2
    folder = results.save(save_dir=tmp_path / "saved")
    before = {p: p.read_bytes() for p in folder.iterdir()}
    results.save(save_dir=tmp_path / "saved", exist_ok=True)
    assert len(listing(folder)) == 6 and all(p.read_bytes() == data for p, data in before.items())


def test_folders_of_classes_are_those_of_no_other_class(tmp_path: Path) -> None:
    names = dict(enumerate(["a/b", "a:b", "a_b", "A?B", "a_b-2", "..", "", "x" * 400]))
    crops = Crops(tmp_path, names)
    folders = [crops.folder_of(name) for name in names.values()]
    assert len({folder.casefold() for folder in folders}) == len(names) and "" not in folders and ".." not in folders
    assert all(len(os.fsencode(folder)) <= 255 for folder in folders)


def test_image_ids_differ(caplog: pytest.LogCaptureFixture) -> None:
    ids = ImageIds()
    given = [ids(stem) for stem in ("000000000007", "7", "b", "007", "7-2", "000000000007")]
    assert given == [7, "7-2", "b", "007-2", "7-2-2", 7]
    assert "image 7: its image_id is '7-2', 7 is that of 000000000007" in caplog.text


def test_rows_carry_the_path_and_renamed_stems_are_listed(tmp_path: Path) -> None:
    for cam in ("cam1", "cam2"):
        image_file(tmp_path / cam / "frame.jpg")
    detect(str(tmp_path / "cam*" / "*.jpg"), tmp_path / "run", boxes(0, 1), save_csv=True, save_json=True)
    rows = list(csv.DictReader((tmp_path / "run" / "predictions.csv").open()))
    paths = [str(tmp_path / cam / "frame.jpg") for cam in ("cam1", "cam2") for _ in range(2)]
    assert [row["Path"] for row in rows] == paths and list(rows[0])[:3] == ["Image Name", "Prediction", "Confidence"]
    found = json.loads((tmp_path / "run" / "predictions.json").read_text())
    assert [row["path"] for row in found] == paths and {row["image_id"] for row in found} == {"frame", "frame-2"}
    renamed = list(csv.reader((tmp_path / "run" / "renamed.csv").open()))
    assert renamed == [["Path", "Stem"], [paths[2], "frame-2"]]
    detect(str(tmp_path / "cam1"), tmp_path / "other", boxes(0))
    assert listing(tmp_path / "other") == ["frame.jpg"]
    detect(str(tmp_path / "cam1"), tmp_path / "none", boxes(), save_txt="yolo", save_crop=True, nosave=True)
    assert list((tmp_path / "none").iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="names are bytes only on POSIX")
def test_names_of_any_bytes_and_length(tmp_path: Path) -> None:
    source = os.fsencode(tmp_path) + b"/in"
    os.mkdir(source)
    data = cv2.imencode(".jpg", noise())[1].tobytes()
    names = [b"bad\xff.jpg", b"a:b.jpg", "ü".encode() * 125 + b".jpg", b"x" * 251 + b".jpg"]
    for name in names:
        Path(os.fsdecode(source + b"/" + name)).write_bytes(data)
    clip = write_video(tmp_path / "clip.mp4", 3)
    for name in (b"v\xff.mp4", b"v" * 251 + b".mp4", b"p:q.mp4"):
        Path(os.fsdecode(source + b"/" + name)).write_bytes(clip.read_bytes())
    flags = {"save_csv": True, "save_json": True, "save_crop": True, "save_txt": "yolo"}
    detect(str(tmp_path / "in"), tmp_path / "run", boxes(0, 0), **flags)
    made = listing(tmp_path / "run")
    assert len([name for name in made if name.endswith(".jpg") and "/" not in name]) == 4
    assert len([name for name in made if name.endswith(".mp4")]) == 3
    assert len([name for name in made if name.startswith("labels/")]) == 4 + 3 * 3
    assert os.fsencode(tmp_path / "run" / "labels") + b"/bad\xff.txt" in [
        os.fsencode(p) for p in (tmp_path / "run" / "labels").iterdir()
    ]
    paths = {row["path"] for row in json.loads((tmp_path / "run" / "predictions.json").read_text(encoding="utf-8"))}
    assert paths == {str(p) for p in (tmp_path / "in").iterdir()}
    assert len(list(csv.reader((tmp_path / "run" / "predictions.csv").open(encoding="utf-8")))) == 1 + 2 * (4 + 3 * 3)
    assert len((tmp_path / "run" / "renamed.csv").read_text(encoding="utf-8").splitlines()) == 4


def test_long_stems_stay_different() -> None:
    a, b = "ü" * 150 + "a", "ü" * 150 + "b"
    assert shorten("short") == "short" and shorten(a) != shorten(b)
    assert len(os.fsencode(shorten(a))) <= 200
    stems = Stems()
    assert stems(Path(f"{a}.jpg"), False) != stems(Path(f"{b}.jpg"), False)
    assert len(stems.renamed()) == 2


def test_a_relative_video_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", 3).rename(tmp_path / "tcp:b.mp4")
    assert len(list(open_source("tcp:b.mp4"))) == 3


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_ends_no_run(tmp_path: Path, encoding: str) -> None:
    code = (
        "import os\nfrom dataclasses import dataclass\nfrom utils.config import Config, run_script\nimport logging\n"
        "@dataclass(frozen=True)\nclass C(Config):\n    'Nothing.'\n"
        "def main(cfg):\n    name = 'größe-図-' + os.fsdecode(b'\\xff')\n"
        "    logging.getLogger('x').info(name)\n    print(name)\n    raise ValueError(name)\nrun_script(main, C)\n"
    )
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONPATH": str(REPO)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, timeout=60)
    assert done.returncode == 2 and b"Traceback" not in done.stderr and b"Logging error" not in done.stderr
    assert done.stdout.count(b"\\udcff") == 2 and done.stderr.count(b"\\udcff") == 1


def test_results_print_to_any_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    Detections([noise()], [boxes(0)], ["a.jpg"], {0: "Bär"}).print()
    out.flush()
    assert b"1 B\\xe4r" in out.buffer.getvalue()


# ---- results of an earlier run --------------------------------------------------------------------------------------


def test_a_run_replaces_the_earlier_one_as_a_whole(tmp_path: Path) -> None:
    flags = {"save_txt": "yolo", "save_csv": True, "save_crop": True}
    image_file(tmp_path / "one" / "a.jpg")
    image_file(tmp_path / "two" / "b.jpg")
    run = tmp_path / "run"
    detect(str(tmp_path / "one"), run, boxes(0), **flags)
    own = run / "labels" / "mine.txt"
    own.write_text("kept")
    detect(str(tmp_path / "two"), run, boxes(1))
    assert listing(run) == ["b.jpg", "labels/mine.txt"] and own.read_text() == "kept"
    assert not (run / "crops").exists()
    detect(str(tmp_path / "two"), run, boxes(1))
    assert listing(run) == ["b.jpg", "labels/mine.txt"]


def test_a_result_that_somebody_changed_is_not_touched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image_file(tmp_path / "in" / "a.jpg")
    run, label = tmp_path / "run", tmp_path / "run" / "labels" / "a.txt"
    detect(str(tmp_path / "in"), run, boxes(0), save_txt="yolo", nosave=True)
    label.write_text("0 0.5 0.5 0.1 0.1 corrected\n")
    for found in (boxes(0), boxes()):  # an image without detections has no label file: this one would pass for it
        with pytest.raises(FileExistsError, match=r"labels/a\.txt exists and is not a result"):
            detect(str(tmp_path / "in"), run, found, save_txt="yolo", nosave=True)
    assert "1 changed result of an earlier run is kept" in caplog.text and "corrected" in label.read_text()


def test_files_of_others_and_links_are_not_overwritten(tmp_path: Path) -> None:
    source, run = image_file(tmp_path / "in" / "a.jpg"), tmp_path / "run"
    before = source.read_bytes()
    run.mkdir()
    for name, flags in (("a.jpg", {}), ("predictions.csv", {"save_csv": True}), ("labels/a.txt", {"save_txt": "yolo"})):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).symlink_to(source)
        with pytest.raises(FileExistsError, match=name):
            detect(str(tmp_path / "in"), run, boxes(0), nosave=name != "a.jpg", **flags)
        (run / name).unlink()
    clip = write_video(tmp_path / "clips" / "v.mp4", 3)
    (run / "v.mp4").symlink_to(clip)
    with pytest.raises(FileExistsError, match=r"v\.mp4"):
        detect(str(clip), run, boxes(0))
    assert source.read_bytes() == before and len(list(open_source(str(clip)))) == 3


def test_a_source_among_the_earlier_results_is_kept(tmp_path: Path) -> None:
    image_file(tmp_path / "in" / "a.jpg")
    run = tmp_path / "run"
    detect(str(tmp_path / "in"), run, boxes(0))
    before = (run / "a.jpg").read_bytes()
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "b.jpg").symlink_to(run / "a.jpg")
    for source in (run / "a.jpg", tmp_path / "links"):
        with pytest.raises(ValueError, match="is a source"):
            detect(str(source), run, boxes(0))
    assert (run / "a.jpg").read_bytes() == before and (run / ".outputs").read_text()


def test_the_list_of_files_is_no_other_file(tmp_path: Path) -> None:
    (tmp_path / ".outputs").write_text("words\n")
    with pytest.raises(ValueError, match=r"\.outputs: not the list"):
        OutputFiles(tmp_path)


# ---- full disks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk():
    """No file may grow beyond 20 kB: writes fail as on a full disk, though with another number."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def big_video(folder: Path, frames: int = 40) -> None:
    frame = Frame(noise(), Path("v.mp4"), 1, VideoInfo(25, frames, (240, 320)))
    video = VideoFile(folder / "v.mp4", frame, 1)
    for k in range(frames):
        video.add(frame, noise(k, (240, 320)))
    video.close()


def test_a_full_disk_names_the_file_and_leaves_no_half_of_it(tmp_path: Path, small_disk: None) -> None:
    with pytest.raises(OSError, match=r"a\.png"):
        imwrite(tmp_path / "a.png", noise(0, (300, 300)))
    with pytest.raises(OSError, match=r"a\.txt"):
        write_atomic(tmp_path / "a.txt", "x" * 30_000)
    for file in (CsvFile(tmp_path / "p.csv", ["a"]), JsonFile(tmp_path / "p.json")):
        with pytest.raises(OSError, match=file.path.name):
            for _ in range(2000):
                file.add([["0123456789"]] if isinstance(file, CsvFile) else [{"a": "0123456789"}])  # type: ignore
            file.close()
        file.close()  # as leaving a `with` block does
    with pytest.raises(OSError, match=r"v\.mp4: the video could not be written"):
        big_video(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_noticed_while_a_video_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utils.predict.videos.LEAST_SPACE", 1 << 62)
    with pytest.raises(OSError, match=r"No space left.*v\.mp4"):
        big_video(tmp_path)


def test_a_video_that_fits_is_complete(tmp_path: Path) -> None:
    big_video(tmp_path, 5)
    assert listing(tmp_path) == ["v.mp4"] and len(list(open_source(str(tmp_path / "v.mp4")))) == 5


# ---- videos in real time --------------------------------------------------------------------------------------------


def write_video(path: Path, frames: int, fps: float = 25) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, SIZE[::-1])
    for k in range(frames):
        writer.write(noise(k))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("times", "fps", "length"),
    [
        ([k / 25 for k in range(50)], 25.0, 2.0),  # steady
        ([5 + k / 25 for k in range(50)], 25.0, 2.0),  # starts late
        ([k / 25 for k in range(25)] + [9 + k / 25 for k in range(25)], 25.0, 10.0),  # stands still for 8 s
        ([k * 0.4 for k in range(25)], 25.0, 9.64),  # slower than stated
        ([k / 25 for k in range(25)] + [4000 + k / 25 for k in range(25)], 25.0, 2.0),  # the clock was set
        ([4000 + k / 25 for k in range(25)] + [k / 25 for k in range(25)], 25.0, 2.0),
        ([round(k / 29.97, 3) for k in range(300)], 29.97, 300 / 29.97),  # milliseconds, as in Matroska
    ],
)
def test_the_output_keeps_real_time(tmp_path: Path, times: list[float], fps: float, length: float) -> None:
    info = VideoInfo(fps, 0, SIZE)
    frames = [Frame(noise(k), Path("v"), k + 1, info, t) for k, t in enumerate(times)]
    video = VideoFile(tmp_path / "v.mp4", frames[0], 1)
    for frame in frames:
        video.add(frame, frame.image)
    video.close()
    assert video.count >= len(times) and video.count / video.fps == pytest.approx(length, abs=2 / fps)
    if fps == 29.97:
        assert video.count == len(times)


def test_the_rate_is_one_that_leaves_no_frame_out() -> None:
    steady = [k / 25 for k in range(8)]
    assert frame_rate(25, steady) == 25 and frame_rate(29.97, [round(k / 29.97, 3) for k in range(8)]) == 29.97
    assert frame_rate(8.3, steady) == pytest.approx(25)  # the mean of a variable rate
    assert frame_rate(1000, steady) == 30  # the clock of an AVI file
    assert frame_rate(25, [k / 5 for k in range(8)]) == 25 and frame_rate(float("nan"), []) == 30


def test_what_is_cut_and_what_only_looks_so(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "a.mp4", 60)
    whole = clip.read_bytes()
    assert misses_bytes(clip) is None
    assert not ends_early(clip, 60, 60, 60) and ends_early(clip, 30, 30, 60)
    assert not ends_early(clip, 30, 60, 60)  # a variable rate: half the frames, but to the end
    header = b"\x1a\x45\xdf\xa3" + b"\x84" + b"\0" * 4 + b"\x18\x53\x80\x67" + b"\x01" + struct.pack(">Q", 50)[1:]
    for name, data, missing in (
        ("late.mkv", header + b"\0" * 50, False),
        ("cut.mkv", header + b"\0" * 30, True),
        ("live.mkv", header[:-8] + b"\x01" + b"\xff" * 7 + b"\0" * 30, None),
        ("header.mkv", header[:6], True),
        ("fragment.mp4", whole[:-20], True),
        ("words.mp4", b"words", None),
    ):
        (tmp_path / name).write_bytes(data)
        assert misses_bytes(tmp_path / name) is missing, name
    assert not ends_early(tmp_path / "late.mkv", 100, 100, 225)  # the length counts the time before the first frame
    assert ends_early(tmp_path / "cut.mkv", 100, 100, 0) and ends_early(tmp_path / "live.mkv", 56, 56, 100)


# ---- animations and pages -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_animations_give_all_frames_with_their_times(tmp_path: Path, suffix: str) -> None:
    images = [Image.fromarray(np.full((*SIZE, 3), 60 * k, np.uint8)) for k in range(4)]
    path, durations = tmp_path / f"a{suffix}", [100, 300, 100, 500]
    options = {"lossless": True} if suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, **options)
    frames = [item for item in open_source(str(path)) if isinstance(item, Frame)]
    assert [int(f.image.mean()) for f in frames] == pytest.approx([0, 60, 120, 180], abs=1)
    assert [f.seconds for f in frames] == pytest.approx([0, 0.1, 0.4, 0.5]) and [f.number for f in frames] == [
        1,
        2,
        3,
        4,
    ]
    detect(str(path), tmp_path / "run", boxes(0))
    made = [f for f in open_source(str(tmp_path / "run" / "a.mp4")) if isinstance(f, Frame)]
    assert made[0].video is not None and len(made) / made[0].video.fps == pytest.approx(1.0)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 60 if suffix != ".png" else int(len(data) * 0.6)])
    assert any(isinstance(item, Broken) for item in open_source(str(path)))


def test_still_images_stay_images(tmp_path: Path) -> None:
    for suffix in (".png", ".webp", ".jpg"):
        frames = list(open_source(str(image_file(tmp_path / f"a{suffix}"))))
        assert len(frames) == 1 and isinstance(frames[0], Frame) and frames[0].video is None


def test_pages_that_are_left_out_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pages = [Image.fromarray(np.full((*SIZE, 3), 50 * k, np.uint8)) for k in range(4)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.tif")
    assert len(list(open_source(str(tmp_path)))) == 2
    assert len(caplog.records) == 1 and "a.tif: only the first of 4 pages is read, 3 left out" in caplog.text


# ---- sources --------------------------------------------------------------------------------------------------------


def test_hidden_files_and_unknown_suffixes_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    image_file(tmp_path / "photo.jpg")
    for name in ("._photo.jpg", ".hidden.png", "a.abc", "b.ABC", "noext"):
        (tmp_path / name).write_bytes(b"\0" * 4096)
    (tmp_path / "sub").mkdir()
    assert [p.name for p in list_files(str(tmp_path))] == ["photo.jpg"]
    assert "2 hidden files left out: ._photo.jpg, .hidden.png" in caplog.text
    assert "2 .abc, 1 no suffix, 1 sub-folder" in caplog.text and len(caplog.records) == 2
    caplog.clear()
    source_files(str(tmp_path))
    list_files(str(tmp_path / "*.jpg"))
    assert not caplog.records


def test_a_folder_of_a_number_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image_file(tmp_path / "2024" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    assert [frame.path for frame in open_source("2024")] == [Path("2024/a.jpg")]
    assert source_files("2024") == [Path("2024/a.jpg")] and source_files("7") == []


def test_standard_input_takes_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = cv2.imencode(".jpg", noise())[1].tobytes()
    names = [b"a.tmp", b"noext", b"._a.jpg", b"space .jpg", b"end.jpg "] + (
        [b"x\xff.jpg"] if os.name == "posix" else []
    )
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes(data)
    text = b"".join(os.fsencode(tmp_path) + b"/" + name + b"\n" for name in names)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text), encoding="ascii"))
    detect("-", tmp_path / "run", boxes(0))
    made = [os.fsencode(name) for name in listing(tmp_path / "run")]
    assert made[:2] == [b"a.png", b"end.jpg "] and b"noext.png" in made and len(made) == len(names) - 1
    assert "AppleDouble" in caplog.text and "no encoder for '.tmp' files" in caplog.text


def test_images_too_large_for_their_format_are_written_as_png(tmp_path: Path) -> None:
    imwrite(tmp_path / "a.png", np.zeros((4, 16400, 3), np.uint8))
    (tmp_path / "in").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "in" / "wide.webp")  # readers look at the content
    detect(str(tmp_path / "in"), tmp_path / "run", boxes(0))
    assert imread(tmp_path / "run" / "wide.png").shape == (4, 16400, 3)


SECRETS = [
    "rtsp://user:s3cret@cam/live",
    "rtsp://user:s3/cret@cam/live",
    "rtsp://user:s3?cret@cam/live",
    "rtsp://user:s3@cret@cam/live",
    "rtsp://cam/live?user=u&password=s3cret",
    "rtsp://cam/user=admin&password=s3cret&channel=1",
    "rtsp://cam:554/user=admin_password=s3_cret_channel=1_stream=0.sdp",
    "http://cam/mjpeg?token=s3cret&mail=a@b",
]


@pytest.mark.parametrize("url", SECRETS)
def test_logins_reach_no_name_and_no_message(url: str, tmp_path: Path) -> None:
    assert stream_name(url).name.startswith("cam") and not {"s3", "cret", "s3cret"} & set(
        stream_name(url).name.split("_")
    )
    hidden = without_secrets(f"source '{url}' not found")
    assert "s3" not in hidden and "cret" not in hidden and hidden.endswith("' not found") and "cam" in hidden
    broken = url.replace("://", ":/", 1)
    with pytest.raises((FileNotFoundError, ValueError)) as error:
        list(open_source(broken))
    assert "cret" not in str(error.value)
    (tmp_path / "a.streams").write_text(url.partition("://")[2])
    with pytest.raises(ValueError) as listed:
        open_source(str(tmp_path / "a.streams"))
    assert "cret" not in str(listed.value)


def test_names_without_logins_are_as_before() -> None:
    assert stream_name("rtsp://Host:554/live/1?x=2").name == "host_live_1"
    assert without_secrets("C:/images/a.jpg") == "C:/images/a.jpg"


# ---- recorded situations --------------------------------------------------------------------------------------------


def test_recorded_situations(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    root = shared("cases/detect")
    caplog.set_level(logging.WARNING)
    assert [p.name for p in list_files(str(root / "c01_appledouble"))] == ["photo.jpg"]
    assert "1 hidden file" in caplog.text
    detect(str(root / "c04_ids"), tmp_path / "ids", boxes(0), save_json=True, nosave=True)
    assert [r["image_id"] for r in json.loads((tmp_path / "ids/predictions.json").read_text())] == [7, "7-2"]
    assert len(list_files(str(root / "c08_mixed"))) == len(list((root / "c08_mixed").iterdir()))  # all are images
    names = sorted(p.name for p in (root / "c20_crop").iterdir())
    images = [imread(root / "c20_crop" / name) for name in names]
    Detections(images, [boxes(0, 0)] * 3, names, NAMES).crop(save_dir=tmp_path / "crop")
    assert len(listing(tmp_path / "crop")) == 6
    lines = "".join(f"{p}\n" for p in sorted((root / "c18_stdin").iterdir()))
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    detect("-", tmp_path / "stdin", boxes(0))
    assert {"upload.png", "noext.png", "b.png", "v.mp4"} <= set(listing(tmp_path / "stdin"))
    monkeypatch.chdir(root / "c14_numeric")
    assert len(list(open_source("2024"))) == 1
