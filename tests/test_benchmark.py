"""tools/benchmark.py: every format has its row, and the numbers are those of the files."""

from __future__ import annotations

import csv
from dataclasses import replace

import pytest
from tiny import write_tiny

from tools.benchmark import BenchmarkConfig, labels, main, measurable, measured_by, words
from tools.benchmark_table import merge
from utils.config import parse_cli


def test_table_csv_and_picture(tmp_path):
    weights = write_tiny(tmp_path)
    (tmp_path / "labels").mkdir()
    for i in range(3):
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [cat, Bär, dog]\n")
    cfg = BenchmarkConfig(
        weights=(str(weights),),
        include=("torchscript", "executorch"),
        imgsz=(64, 128),
        data=str(tmp_path / "data.yaml"),
        threads=(1,),
        rounds=2,
        project=str(tmp_path / "runs"),
    )
    entries = main(cfg)
    assert [(e.imgsz, e.format) for e in entries] == [
        (size, name) for size in (64, 128) for name in ("pytorch", "torchscript", "executorch")
    ]
    folder = tmp_path / "runs" / "exp"
    rows = list(csv.DictReader((folder / "benchmark.csv").open(encoding="utf-8")))
    assert len(rows) == 6 and (folder / "benchmark.png").stat().st_size > 5000
    assert len((folder / "benchmark.md").read_text().splitlines()) == 8
    for entry, row in zip(entries, rows, strict=True):
        runs = bool(entry.weights)
        assert (row["ms, 1 thr"] != "-") == runs and (row["mAP50-95"] != "-") == runs
        if runs and entry.row:
            assert (
                row["max box px"] != "-"
                and 0 < entry.ms[1][0] <= entry.ms[1][1]
                and float(row["of PyTorch, 1 thr"]) > 0
            )
    same = {(e.imgsz, f"{e.map50_95:.3f}") for e in entries if e.weights}
    assert len(same) == 2  # one mAP a size, whatever the runtime


def test_weights_of_one_name_are_told_apart():
    assert labels(("a/best.pt", "b.yaml")) == ["best", "b"]
    assert labels(("runs/exp/weights/best.pt", "runs/exp2/weights/best.pt")) == ["exp-best", "exp2-best"]
    assert labels(("x/best.pt", "y/../x/best.pt")) == ["x-best-1", "x-best-2"]


def test_the_command_line_for_another_interpreter_says_the_same():
    cfg = BenchmarkConfig(
        weights=("a.pt", "b.pt"), imgsz=(64,), int8=True, threads=(1, 2), data="no/such.yaml", images=("none",)
    )
    assert parse_cli(BenchmarkConfig, words(cfg)) == cfg
    assert parse_cli(BenchmarkConfig, words(replace(cfg, int8=False, data=""))) == replace(cfg, int8=False, data="")


def test_rows_of_another_interpreter_take_the_place_of_what_is_missing():
    def row(name: str, size: str) -> dict[str, str]:
        return {"model": "m", "imgsz": "64", "format": name, "size MB": size}

    rows = [row("onnx", "1.00"), row("tflite", "-"), row("executorch", "-")]
    merge(rows, [row("pytorch", "3.00"), row("onnx", "9.00"), row("tflite", "2.00"), row("executorch", "-")])
    assert rows == [row("onnx", "1.00"), row("tflite", "2.00"), row("executorch", "-")]


def test_an_interpreter_that_fails_is_told_in_one_line(tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho a trace >&2\necho error: no torch >&2\nexit 2\n")
    broken.chmod(0o755)
    with pytest.raises(ValueError, match=r"--also .*python: error: no torch$"):
        measured_by(str(broken), BenchmarkConfig(), tmp_path, 0)


def test_a_variant_is_measured_where_it_is_one():
    assert measurable("coreml", {}) and measurable("coreml", {"int8": True, "int8_ops": "weights"})
    assert not measurable("coreml", {"int8": True, "int8_ops": "all"})
    assert not measurable("torchscript", {"half": True}) and measurable("onnx", {"half": True})
