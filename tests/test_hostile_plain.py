"""Absurd but legal data in model files: refused in one clean line, soon, without much memory; healthy files load."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_plain import ESCAPE, PLAIN, RECORDED, content, laughing, net, own_list
from shared import ROOT
from tiny import write_tiny

from models.cost import MAX_WORK, Cost, check_arguments
from models.export.metadata import Metadata
from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from models.yolo import DetectionModel, plan_model
from tools.fuzz import refused_or_read
from tools.fuzz_models import FUZZERS
from utils.classes import class_names
from utils.config import Config, run_script
from utils.files import read_yaml
from utils.hyp import Hyp
from utils.plain_data import LIMITS, load_json, plain_data
from utils.text import visible

SECONDS = 20.0  # of CPU time; on a free machine each takes less than 3


def one_clean_line(error: BaseException) -> str:
    text = str(error)
    assert len(text) < 400 and all(map(visible, text)), text[:500]
    return text


def test_the_corpus_is_large() -> None:
    assert RECORDED == 56 and len(PLAIN) >= RECORDED + 100


@pytest.mark.parametrize("title", PLAIN)
def test_an_absurd_file_is_refused_in_one_line(title: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    suffix, write = PLAIN[title]
    path = tmp_path / f"weights{suffix}"
    write(path)
    began = time.process_time()
    with warnings.catch_warnings(), pytest.raises(ValueError) as caught:
        warnings.simplefilter("error")
        build_model(load_checkpoint(path))
    assert time.process_time() - began < SECONDS
    assert one_clean_line(caught.value).count(str(path)[-20:]) == 1, "it names the file"
    assert capfd.readouterr() == ("", "")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


MEMORY = """
import resource, sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
from hostile_plain import PLAIN
from models.weights.checkpoint import build_model, load_checkpoint
paths = [Path(word) for word in sys.argv[1:]]
build_model(load_checkpoint(paths[0]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in paths[1:]:
    try:
        build_model(load_checkpoint(path))
    except ValueError:
        continue
    raise AssertionError(path)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted in other units there")
def test_the_largest_of_them_need_little_memory(tmp_path: Path) -> None:
    titles = ["two_readers_stride0_model", "own_anchors_million", "own_laughing_backbone", "own_mobilevit_patch_4096"]
    titles += ["st_metadata_names_flood", "hash_flood_ints_300k", "rows_a_billion_parameters", "rows_a_large_map"]
    paths = [write_tiny(tmp_path)]
    for title in titles:
        suffix, write = PLAIN[title]
        paths.append(tmp_path / f"{title}{suffix}")
        write(paths[-1])
    code = MEMORY.format(root=str(ROOT), tests=str(ROOT / "tests"))
    run = subprocess.run([sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 800_000, "kilobytes above a plain load"


# --- the gate ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (own_list(), r"is a list that holds itself, expected lists that end"),
        (laughing(5, 30), r"has more than 200,000 values, expected at most 200,000 values"),
        (laughing(3, 30, "x" * 200), r"has more than 4,000,000 characters"),
        (laughing(17, 1), r"levels deep or deeper, expected at most 16"),
        ({"a": {"b": [1, 2**200]}}, r"^F: a\.b\[1\] is an integer of 201 bits, expected at most 128"),
        ({"a": [float("nan")]}, r"^F: a\[0\] is nan, expected a finite number"),
        ({None: 1}, r"has a key of type NoneType, expected words or small numbers"),
        ({True: 1}, r"has a key of type bool"),
        ({10**10: 1}, r"has a number as a key that is negative or too large"),
        ([1j], r"\[0\] is a complex, expected numbers"),
        ([torch.zeros(1)], r"\[0\] is a Tensor, expected numbers"),
        ([{1, 2}], r"\[0\] is a set"),
        ({ESCAPE: 1j}, r"^F: \[2J \]0;owned is a complex"),
    ],
)
def test_what_is_no_plain_data_is_named(value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        plain_data(value, "F")
    one_clean_line(caught.value)


def test_plain_data_is_copied_and_equal() -> None:
    shared = [1, 2.5, None, True, "word", (3, [4])]
    value = {"a": shared, "b": shared, 5: {"c": {}}}
    copied = plain_data(value, "F")
    assert copied == value and copied["a"] is not copied["b"] and copied["a"] is not shared
    tensor = torch.ones(2)
    assert plain_data([tensor, float("inf")], "F", finite=False, tensors=True)[0] is tensor
    assert all(highest > 0 and unit and why for highest, unit, why in LIMITS.values())


@pytest.mark.parametrize("text", ["[" * 10**5, "9" * 5000, '{"a": 1' + "0" * 400 + "}", b"\xff", "[" + "1," * 10**7])
def test_json_is_bounded(text: str | bytes) -> None:
    with pytest.raises(ValueError) as caught:
        load_json(text, "F")
    one_clean_line(caught.value)


METADATA = {
    "names": {"0": "a"}, "stride": 32, "grid": 32, "imgsz": [64, 64], "batch": 1, "anchors": [], "strides": [8, 16, 32],
}  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {"names": laughing(5, 8)},
        {"names": {"0": "a", "1" * 4000: "b"}},
        {"stride": 10**30},
        {"grid": 8_000},
        {"batch": 10**9},
        {"imgsz": [10**6, 10**6]},
        {"imgsz": "64"},
        {"strides": [0]},
        {"strides": ["a", "b", "c"]},
        {"strides": [8] * 10},
        {"anchors": [[[1e300, 1]]] * 3},
        {"form": ["raw"]},
        {"form": ESCAPE * 50},
        {"head": "DetectV8", "form": "raw", "head_settings": {"reg_max": 10**9}},
        {"head": "DetectV8", "form": "raw", "head_settings": {"width": 10**9}},
        {"head_settings": []},
        {"letterbox": {"a": 1}},
        {"form": "nms", "max_det": 10**12, "conf_thres": 0.1, "iou_thres": 0.1},
        {ESCAPE: 1},
    ],
    ids=str,
)
def test_absurd_metadata_is_refused(change: dict) -> None:
    changed = METADATA | change
    if "strides" not in change or len(change["strides"]) != 10:
        with pytest.raises(ValueError) as caught:
            Metadata.from_json(json.dumps(changed), "F.onnx")
        assert one_clean_line(caught.value).startswith("F.onnx: ")
        with pytest.raises(ValueError):
            Metadata.from_strings({k: json.dumps(v) for k, v in changed.items()} | {"form": 5 * "x"}, "F.onnx")
    assert Metadata.from_json(json.dumps(METADATA), "F").names == {0: "a"}


# --- cost before work -------------------------------------------------------------------------------------------------


def test_a_plan_allocates_nothing_and_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    plan = plan_model("yolov5x.yaml")
    assert torch.equal(before, torch.get_rng_state())
    assert all(t.device.type == "meta" for t in plan.layers.state_dict().values())
    assert plan.cost.parameters == 86_749_405 and 100e9 < plan.cost.work < 110e9
    assert plan.grid == 32 and plan.strides == [8, 16, 32]


@pytest.mark.parametrize("name", sorted(p.name for p in (ROOT / "models").glob("*.yaml")))
def test_every_network_here_is_far_below_the_limits(name: str) -> None:
    cost = plan_model(name).cost
    big = Cost(cost.parameters, *(6 * value for value in (cost.work, cost.pairs, cost.largest, cost.maps)))
    big.check(name)


def test_a_network_with_p6_and_ten_times_yolov5x_in_parameters_is_allowed() -> None:
    rows = [[-1, 1, "Conv", [width, 3, 2]] for width in (32, 64, 128, 256, 512)]
    cfg = net(*rows, head=[[[3, 4, 5, 6], 1, "Detect", ["nc", "anchors"]]], anchors=[[8, 8]] * 4)
    cfg["backbone"].append([-1, 3, "C3", [512]])
    assert plan_model(cfg).grid == 64
    Cost(860_000_000, 1.03e12, 0, 80e6, 5e9).check("ten times")
    for cost in (Cost(10**9), Cost(10**9, MAX_WORK * 2), Cost(10**6, 160e9), Cost(0, 0, 1e12), Cost(1, 1, 1, 1e10)):
        with pytest.raises(ValueError, match=r"^F: the rows build a network of .*, expected at most"):
            cost.check("F")


def test_more_than_the_free_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.cost.free_memory", lambda: 10**6)
    with pytest.raises(
        ValueError, match=r"^yolov5n\.yaml: the rows build a network that needs 0\.0 GB, 0\.0 GB are free"
    ):
        plan_model("yolov5n.yaml")


def test_an_argument_out_of_range_names_the_limit_and_the_value() -> None:
    with pytest.raises(ValueError, match=r"^Conv: k is 0, expected 1 to 129 \(pixels of a kernel, 13 in yolov5x\)$"):
        check_arguments("Conv", {"k": 0})
    check_arguments("SPP", {"k": [5, 9, 13], "act": "relu", "bias": None, "flag": True})


# --- one reader -------------------------------------------------------------------------------------------------------


def test_a_file_is_read_once_and_its_rows_are_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny(tmp_path)
    calls = {"bytes": 0, "rows": 0, "torch": 0}

    def count(name: str, function: Any) -> Any:
        def counting(*args: Any, **more: Any) -> Any:
            calls[name] += 1
            return function(*args, **more)

        return counting

    from models import rows, yolo
    from models.weights import torch_file

    monkeypatch.setattr(torch_file, "read_bytes", count("bytes", torch_file.read_bytes))
    monkeypatch.setattr(yolo, "parse_rows", count("rows", rows.parse_rows))
    monkeypatch.setattr(torch, "load", count("torch", torch.load))
    build_model(load_checkpoint(path))
    assert calls == {"bytes": 1, "rows": 1, "torch": 0}


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    checkpoint = Checkpoint.of(DetectionModel(net()))
    for more in ({"metrics": {"a": torch.device("cpu")}}, {"opt": {"a": laughing()}}, {"names": {0: "a"}}):
        with pytest.raises(ValueError, match="a checkpoint may hold only tensors and plain data"):
            save_checkpoint(tmp_path / "w.pt", Checkpoint(**{**vars(checkpoint), **more}))
    assert not list(tmp_path.iterdir())


def test_names_with_escapes_and_300_characters_are_usable(tmp_path: Path) -> None:
    made = content() | {"names": {0: ESCAPE, 1: "n" * 300}}
    torch.save(made, tmp_path / "w.pt")
    assert list(build_model(load_checkpoint(tmp_path / "w.pt")).names) == [0, 1]


# --- printed text and YAML --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [ESCAPE * 50, "a\nb\nc", "x" * 5_000, "größe \udcff"])
def test_every_printed_error_is_one_short_line(
    text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(cfg: Config) -> None:
        raise ValueError(text)

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit) as ended:
        run_script(fail, Config)
    printed = capsys.readouterr().err
    assert ended.value.code == 2 and printed.startswith("error: ") and printed.endswith("\n")
    assert len(printed) < 400 and all(map(visible, printed[:-1]))


@pytest.mark.parametrize(
    "text",
    [
        "a: !!binary aGVsbG8=",
        "a: !!timestamp 2024-01-01",
        "a: !!set {x, y}",
        "a: ! x",
        "a: " + "9" * 4_000,
        "a: 0x" + "f" * 4_000,
        "a: " + "x" * 2_000_000,
        "a: " + "x" * 50_000,
        "{? {a: 1} : b}",
        "~: a",
        "a: [" + "x," * 70_000 + "]",
        f"a: {ESCAPE}",
        "'" + "k" * 900 + "': 1",
        "? '" + "k" * 2_000 + "'\n: 1",
    ],
    ids=lambda text: text[:16],
)
def test_yaml_is_bounded(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for read in (read_yaml, Hyp.from_yaml, DetectionModel):
        with pytest.raises(ValueError) as caught:
            read(path)  # type: ignore[operator]
        one_clean_line(caught.value)


@pytest.mark.parametrize(
    "names", [[ESCAPE, ESCAPE], {0: own_list()}, {"9" * 5_000: "a"}, laughing(), [b"a" * 10**6, []]]
)
def test_class_names_say_what_is_wrong_in_one_line(names: Any) -> None:
    with pytest.raises(ValueError) as caught:
        class_names(names, "F")
    one_clean_line(caught.value)


# --- short fuzzers; `make fuzz` runs them for longer ------------------------------------------------------------------


@pytest.mark.parametrize("name", FUZZERS)
def test_a_short_run_of_each_fuzzer(name: str, tmp_path: Path) -> None:
    ends, seed = time.monotonic() + 2.5, 0
    while time.monotonic() < ends or seed < 20:
        FUZZERS[name](random.Random(seed), tmp_path)
        seed += 1


def test_the_promise_of_the_fuzzers_can_be_broken() -> None:
    def fail(text: str) -> Any:
        raise ValueError(text)

    assert refused_or_read(lambda: 5) and not refused_or_read(lambda: fail("a line"))
    for text in ("two\nlines", "x" * 500, ESCAPE):
        with pytest.raises(AssertionError):
            refused_or_read(lambda text=text: fail(text))
