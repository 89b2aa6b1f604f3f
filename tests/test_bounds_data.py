"""Every fault of a data set ends in a clean line, soon; the label cache is never trusted; names cost no square of time.

Fuzzers of the same files: tests/fuzz_data.py. The faults: tests/bad_data.py, whose table also has those of seconds.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from bad_data import FAULTS, IMAGES, LARGE, healthy, output, report, write_yaml
from fuzz_data import FUZZERS, SAVED, image_bytes
from PIL import Image, PngImagePlugin

from utils.data import label_cache
from utils.data import scan as scanning
from utils.data.coco import CocoLabels
from utils.data.data_yaml import read_data_yaml
from utils.data.json_rows import json_rows
from utils.data.labels import read_labels
from utils.data.listing import find_images
from utils.data.objects import MAX_LINES, match_ends
from utils.data.voc import VocLabels
from utils.decode import decode, from_pillow, pillow_formats, probe, to_uint8
from utils.files import REPO
from utils.image_header import header_of
from utils.images import imread
from utils.reading import lines_of, read_bytes

SOON = 30.0  # seconds, on a busy machine of CPU time


@pytest.fixture
def healthy_set(tmp_path: Path):
    root = tmp_path / "set"
    healthy(root)
    yield root
    subprocess.run(["rm", "-rf", str(root)], check=True)  # also a thousand folders in each other


@pytest.mark.skipif(os.name != "posix", reason="pipes and links of POSIX")
@pytest.mark.parametrize("name", [name for name in FAULTS if name not in LARGE])
def test_a_fault_is_a_clean_line(healthy_set: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    fault = FAULTS[name]
    fault.make(healthy_set)
    began = time.process_time()
    text = output(healthy_set)
    assert time.process_time() - began < SOON
    assert report(text, fault.says), text[:1000]
    for line in text.splitlines():
        assert len(line) < 400 and line.isprintable(), line[:600]
    if name in IMAGES:  # detect.py and the loaders read it by the same decoder, and say the same
        out = capfd.readouterr()
        assert len(out.out + out.err) < 2000
        path = healthy_set / "images/x.jpg"
        if not path.is_dir() and "left out" in fault.says and "escapes" not in name:
            with pytest.raises((OSError, ValueError)) as caught:
                imread(path)
            assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FUZZERS)
def test_fuzz(tmp_path: Path, name: str) -> None:
    for k in range({"label_cache": 200, "images": 250}.get(name, 150)):
        FUZZERS[name](random.Random(f"{name} {k}"), tmp_path)


def test_pipes_in_a_set_are_not_waited_for(tmp_path: Path) -> None:
    healthy(tmp_path / "set")
    for k in range(40):
        os.mkfifo(tmp_path / f"set/images/{k}.jpg")
        os.mkfifo(tmp_path / f"set/labels/{k}.txt")
    assert "40 label errors" in output(tmp_path / "set")


def test_pillow_does_not_print_its_warnings(tmp_path: Path) -> None:
    """The filter is set once in a process; pytest takes it away after each test."""
    healthy(tmp_path / "set")
    FAULTS["EXIF of 60 kB of noise"].make(tmp_path / "set")
    data = (tmp_path / "set/images/x.jpg").read_bytes()
    pillow_formats.cache_clear()
    with warnings.catch_warnings(record=True) as seen:
        warnings.filters[:] = []  # as outside of pytest
        Image.open(io.BytesIO(data)).getexif()
        assert seen
        seen.clear()
        decode(data, "x.jpg")
        probe(data, "x.jpg")
        warnings.warn("of others", stacklevel=1)
    assert [str(warning.message) for warning in seen] == ["of others"]
    pillow_formats.cache_clear()


def test_ctrl_c_ends_a_long_scan_at_once(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\nfrom utils.data import scan\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which jobs in the background ignore
        "def slow(*_):\n time.sleep(0.1)\n raise ValueError('slow')\n"
        "scan.probe = slow\nprint('started', flush=True)\n"
        "try:\n scan.scan([sys.argv[1]] * 5000, 2)\nexcept KeyboardInterrupt:\n print('ended')\n"
    )
    (tmp_path / "a.jpg").write_bytes(b"x")
    command = [sys.executable, "-c", code, str(tmp_path / "a.jpg")]
    with subprocess.Popen(command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout and process.stdout.readline() == "started\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        began = time.perf_counter()
        assert process.stdout.read() == "ended\n"
        assert time.perf_counter() - began < 25  # 5,000 images take 31 s on 16 threads, and more on fewer
    assert process.returncode == 0


# ---- images --------------------------------------------------------------------------------------------------------


def test_pixels_in_bands_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 255, (37, 23, 3), dtype=np.uint8))
    modes = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"]
    floats = [rng.normal(0, 300, (31, 7)), rng.random((31, 7)), rng.integers(0, 70000, (31, 7))]
    whole = [from_pillow(rgb.convert(mode)) for mode in modes], [to_uint8(values) for values in floats]
    monkeypatch.setattr("utils.decode.BAND", 60)
    assert all(np.array_equal(from_pillow(rgb.convert(m)), image) for m, image in zip(modes, whole[0], strict=True))
    assert all(np.array_equal(to_uint8(values), image) for values, image in zip(floats, whole[1], strict=True))


def test_headers_say_what_pillow_says() -> None:
    found = {kind: header_of(image_bytes(kind, (21, 34))) for kind in SAVED}
    known = {kind: header for kind, header in found.items() if header}
    assert {"jpg", "progressive.jpg", "png", "tif", "lzw.tif", "jpeg.tif", "webp", "bmp"} == known.keys()
    assert all((header.width, header.height) == (34, 21) for header in known.values())


def test_chunks_that_change_no_pixel_are_not_needed() -> None:
    pixels, out = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8), io.BytesIO()
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 99)
    Image.fromarray(pixels).save(out, "PNG", pnginfo=info, icc_profile=b"p" * 200, gamma=0.4)
    assert np.array_equal(decode(out.getvalue(), "x").image, pixels)


def test_opencv_keeps_its_log_level() -> None:
    level = cv2.utils.logging.getLogLevel()
    for _ in range(3):
        with pytest.raises(ValueError, match="not a readable image"):
            decode(b"BM" + bytes(99), "x.bmp")
    assert cv2.utils.logging.getLogLevel() == level


# ---- files that vanish, sizes, lines -------------------------------------------------------------------------------


def test_files_that_vanish_after_they_were_listed(tmp_path: Path) -> None:
    healthy(tmp_path / "set")
    data = read_data_yaml(tmp_path / "set/data.yaml")
    images = find_images(data.split("train")).images
    reader = data.reader("train")
    reader.match(images)
    (tmp_path / "set/labels/a.txt").unlink()
    assert "a.txt:1: gone since the files were listed" in reader.read(images[0], (48, 64)).errors[0]
    voc = VocLabels(tmp_path, {0: "cat"})
    (tmp_path / "a.xml").write_text("<a/>")
    voc.match(images)
    (tmp_path / "a.xml").unlink()
    assert "a.xml: gone since the files were listed" in voc.read(images[0], (48, 64)).errors[0]


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is exchanged between the check and the opening."""
    os.mkfifo(tmp_path / "x")
    monkeypatch.setattr("utils.reading.check_file", lambda *_: 0)
    with pytest.raises(ValueError, match="a named pipe, expected a file"):
        read_bytes(tmp_path / "x", "image")


@pytest.mark.parametrize("long", [False, True])
def test_lines_end_as_in_editors(monkeypatch: pytest.MonkeyPatch, long: bool) -> None:
    monkeypatch.setattr("utils.reading.LONG", 0 if long else 1 << 20)
    text = "a\n\x0cb\u2028\x85\r\nc\rd\x1ce"
    assert [line for line in lines_of(text) if line] == ["a", "\x0cb\u2028\x85", "c", "d\x1ce"]


def test_bad_rows_are_counted_and_few_are_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    healthy(tmp_path / "set")
    path = tmp_path / "set/labels/a.txt"
    path.write_text("0 0.5 0.5 0.2 0.2\n" * 30_001)
    found = read_labels(path, 2)
    assert len(found.label) == 1 and len(found.warnings) == MAX_LINES + 1
    assert found.warnings[-1] == f"{path}: {30_000 - MAX_LINES:,} more warnings"
    assert "29990 more messages" in output(tmp_path / "set")
    cache = next((tmp_path / "set").glob("*.cache"))
    assert cache.stat().st_size < 50_000
    path.write_text("x\n" * 30_000)
    assert "30,000 label errors:" in output(tmp_path / "set")
    assert "... and 29990 more label errors" in output(tmp_path / "set")


def test_a_set_of_bad_rows_has_a_bounded_file_of_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy(tmp_path / "set")
    monkeypatch.setattr(scanning, "MAX_KEPT", 40)
    (tmp_path / "set/labels/a.txt").write_text("x\n" * 300)
    text = output(tmp_path / "set")
    assert "300 label errors:" in text and "290 more label errors, the first 40 lines in " in text
    lines = next((tmp_path / "set").glob("*.messages.txt")).read_text().splitlines()
    assert len(lines) == 41 and lines[-1] == "... and 260 more"


# ---- the label cache -----------------------------------------------------------------------------------------------


def test_a_damaged_cache_is_rebuilt_with_a_line(tmp_path: Path) -> None:
    healthy(tmp_path / "set")
    first = output(tmp_path / "set")
    cache = next((tmp_path / "set").glob("*.cache"))
    whole = cache.read_bytes()
    damaged = [whole[:-1], whole + b"x", b"", whole[:40], whole.replace(b", 5\n", b", 4\n"), b"PK\x03\x04" + whole]
    damaged.append(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    for data in damaged:
        cache.write_bytes(data)
        assert output(tmp_path / "set").endswith(first)
        assert "not a usable label cache, scanning again" in output_of_a_cache(cache, data, tmp_path / "set")
        assert cache.read_bytes() == whole
    cache.unlink()
    os.mkfifo(cache)
    assert "a named pipe, expected a file" in output(tmp_path / "set")


def output_of_a_cache(cache: Path, data: bytes, root: Path) -> str:
    cache.write_bytes(data)
    return output(root)


def test_the_cache_keeps_every_name(tmp_path: Path) -> None:
    texts = {"a": [], "b": [""], "c": ["x\udce9", "\U0001f600", "", "line"]}
    arrays = {"n": np.zeros((0, 4), np.float32), "m": np.arange(6).reshape(2, 3), "b": np.array([True, False])}
    label_cache.save(tmp_path / "x.cache", "key\udce9", arrays, texts)
    found = label_cache.load(tmp_path / "x.cache", "key\udce9")
    assert found and found[1] == texts and label_cache.load(tmp_path / "x.cache", "other") is None
    assert all(np.array_equal(found[0][k], v) and found[0][k].dtype == v.dtype for k, v in arrays.items())


# ---- names and JSON ------------------------------------------------------------------------------------------------


def by_definition(images: list[tuple[str, ...]], names: list[tuple[str, ...]]) -> tuple[dict, set]:
    """match_ends by trying every pair."""

    def common(a: tuple[str, ...], b: tuple[str, ...]) -> int:
        return next((n for n in range(min(len(a), len(b)), 0, -1) if a[-n:] == b[-n:]), 0)

    claims: dict[int, list[int]] = {}
    for i, image in enumerate(images):
        whole = [k for k, name in enumerate(names) if common(image, name) == len(name)]
        if whole:
            claims.setdefault(max(whole, key=lambda k: len(names[k])), []).append(i)
    found = {owners[0]: k for k, owners in claims.items() if len(owners) == 1}
    unclear = {i for owners in claims.values() if len(owners) > 1 for i in owners}
    free = [i for i in range(len(images)) if i not in found and i not in unclear]
    left = [k for k in range(len(names)) if k not in claims]
    most = {i: max((common(images[i], names[k]) for k in left), default=0) for i in free}
    for i in free:
        best = [k for k in left if common(images[i], names[k]) == most[i] > 0]
        rivals = [j for k in best[:1] for j in free if common(images[j], names[k]) == most[j] > 0]
        top = max((most[j] for j in rivals), default=0)
        if len(best) == 1 and [j for j in rivals if most[j] == top] == [i]:
            found[i] = best[0]
        elif best:
            unclear.add(i)
    return found, unclear


def test_names_are_matched_as_by_definition() -> None:
    for seed in range(400):
        rng = random.Random(seed)
        both = [[tuple(rng.choices("ab", k=rng.randint(1, 3))) for _ in range(rng.randint(0, 6))] for _ in range(2)]
        images = list(dict.fromkeys(both[0]))
        found = match_ends(images, both[1])
        assert (found.found, set(found.unclear)) == by_definition(images, both[1]), seed


def test_equal_names_in_many_folders_take_no_square_of_time() -> None:
    images = [("data", f"video{k}", "000001.jpg") for k in range(20_000)]
    names = [("other", f"clip{k}", "000001.jpg") for k in range(20_000)]
    began = time.process_time()
    found = match_ends(images, names)
    assert len(found.unclear) == 20_000 and time.process_time() - began < SOON


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_rows_do_not_depend_on_the_pieces_that_are_read(tmp_path: Path, piece: int, monkeypatch) -> None:
    monkeypatch.setattr("utils.data.json_rows.PIECE", piece)
    content = {
        "info": {"x": [1, -2.5e3]},
        "rows": [{"a": 'é\\"\U0001f600', "b": [12345, None]}] * 3,
        "n": 17,
        "none": [],
    }
    path = tmp_path / "a.json"
    for indent in (None, 1):
        path.write_text(" " * 5 + json.dumps(content, indent=indent, ensure_ascii=False) + "\n ", encoding="utf-8")
        read = list(json_rows(path, ("rows", "none")))
        rows = [("rows", row) for row in content["rows"]]
        assert read == [("info", content["info"]), ("rows", None), *rows, ("n", 17), ("none", None)]


def test_the_lists_may_stand_in_any_order(tmp_path: Path) -> None:
    images = [{"id": 3, "file_name": "a.jpg"}]
    row = {"id": 1, "image_id": 3, "category_id": 2, "bbox": [1, 1, 5, 5]}
    rows = [row, row | {"id": 2, "bbox": [2, 2, 5, 5]}, row | {"id": 3, "image_id": 9}]
    lists = {"images": images, "annotations": rows, "categories": [{"id": 2, "name": "cat"}]}
    boxes = []
    for order in (["images", "annotations", "categories"], ["annotations", "categories", "images"]):
        (tmp_path / "a.json").write_text(json.dumps({key: lists[key] for key in order}))
        reader = CocoLabels(tmp_path / "a.json", {0: "cat"})
        assert any("1 annotation of images that it does not list" in note for note in reader.notes)
        boxes.append(reader.read(Path("a.jpg"), (20, 20)).xywhn)
    assert len(boxes[0]) == 2 and np.array_equal(*boxes)


def test_a_large_coco_file_is_read_in_little_memory(tmp_path: Path) -> None:
    """60,000 rows with polygons, 17 MB: the objects of json would take 170 MB."""
    head = '{"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [{"id": 1, "name": "cat"}], "annotations": ['
    row = (
        '{"id": %d, "image_id": 1, "category_id": 1, "bbox": [%.2f, 2, 3, 4], "segmentation": [['
        + "1.5, " * 45
        + "1]]}"
    )
    path = tmp_path / "a.json"
    path.write_text(head + ",".join(row % (k, k / 120) for k in range(60_000)) + "]}")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    CocoLabels(path, {0: "cat"})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024


def test_values_of_the_yaml_are_shown_short(tmp_path: Path) -> None:
    healthy(tmp_path / "set")
    write_yaml(tmp_path / "set", nc=["x" * 10_000] * 20)
    assert len(output(tmp_path / "set")) < 400


@pytest.mark.parametrize("seed", [3431, 5146])
def test_a_png_whose_chunk_claims_4_gb_takes_no_memory(seed: int, tmp_path: Path) -> None:
    """Found by tools/fuzz.py: OpenCV reserved what the length of a chunk said."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    FUZZERS["images"](random.Random(seed), tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
