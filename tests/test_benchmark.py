"""tools/benchmark.py: every format has a row, and the numbers are those of the files."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from tiny import write_tiny

from tools import benchmark
from tools.benchmark import BenchmarkConfig, command_line, has_variant, main, model_names, run_elsewhere
from tools.benchmark_table import merge
from utils.config import parse_cli
from utils.files import REPO


def test_table_csv_and_chart(tmp_path):
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
    assert len(same) == 2  # one mAP per size, whatever the runtime


def test_weights_of_the_same_name_get_different_names():
    assert model_names(("a/best.pt", "b.yaml")) == ["best", "b"]
    assert model_names(("runs/exp/weights/best.pt", "runs/exp2/weights/best.pt")) == ["exp-best", "exp2-best"]
    assert model_names(("x/best.pt", "y/../x/best.pt")) == ["x-best-1", "x-best-2"]


def test_the_command_line_for_another_interpreter_says_the_same():
    cfg = BenchmarkConfig(
        weights=("a.pt", "b.pt"), imgsz=(64,), int8=True, threads=(1, 2), data="no/such.yaml", images=("none",)
    )
    assert parse_cli(BenchmarkConfig, command_line(cfg)) == cfg
    assert parse_cli(BenchmarkConfig, command_line(replace(cfg, int8=False, data=""))) == replace(
        cfg, int8=False, data=""
    )


def test_rows_of_another_interpreter_replace_those_that_are_missing():
    def row(name: str, size: str) -> dict[str, str]:
        return {"model": "m", "imgsz": "64", "format": name, "size MB": size}

    rows = [row("onnx", "1.00"), row("tflite", "-"), row("executorch", "-")]
    merge(rows, [row("pytorch", "3.00"), row("onnx", "9.00"), row("tflite", "2.00"), row("executorch", "-")])
    assert rows == [row("onnx", "1.00"), row("tflite", "2.00"), row("executorch", "-")]


def interpreter(folder: Path, script: str) -> str:
    """An executable that stands for another Python."""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_that_fails_is_an_error_of_one_line(tmp_path):
    broken = interpreter(tmp_path, "echo a trace >&2\necho error: no torch >&2\nexit 2\n")
    with pytest.raises(ValueError, match=r"--also .*python: error: no torch$"):
        run_elsewhere(broken, BenchmarkConfig())


@pytest.mark.parametrize("package", ["tools", "yolov5_mobilevit.tools"])
def test_another_interpreter_runs_the_clone_or_its_installed_package(tmp_path, monkeypatch, package):
    """With the same flags: in the clone's folder, or where the command was typed, from its own installed package."""
    monkeypatch.setattr(benchmark, "__package__", package)
    monkeypatch.chdir(tmp_path)
    cfg = BenchmarkConfig(weights=("a.pt",), imgsz=(64,), project=str(tmp_path), name="also0")
    (tmp_path / "also0").mkdir()
    table = tmp_path / "also0" / "benchmark.csv"
    python = interpreter(tmp_path, f'echo "$PWD" "$@" > {tmp_path}/called\nprintf "model,imgsz\\nm,64\\n" > {table}\n')
    assert run_elsewhere(python, cfg) == [{"model": "m", "imgsz": "64"}]
    folder, *words = (tmp_path / "called").read_text().split()
    assert Path(folder).samefile(REPO if package == "tools" else tmp_path)
    assert words == ["-m", f"{package}.benchmark", *command_line(cfg)]


@pytest.mark.parametrize("flags", [{"rounds": 0}, {"threads": (1, 0)}, {"imgsz": (0,)}, {"int8": True}])
def test_flags_out_of_range_are_refused(tmp_path, flags):
    with pytest.raises(ValueError, match=r"^--(rounds 0|threads 0|imgsz 0): expected at least 1|^--int8 needs --data"):
        main(BenchmarkConfig(project=str(tmp_path), **flags))
    assert not list(tmp_path.iterdir())


def test_a_variant_is_measured_only_for_formats_that_have_it():
    assert has_variant("coreml", {}) and has_variant("coreml", {"int8": True, "int8_ops": "weights"})
    assert not has_variant("coreml", {"int8": True, "int8_ops": "all"})
    assert not has_variant("torchscript", {"half": True}) and has_variant("onnx", {"half": True})
