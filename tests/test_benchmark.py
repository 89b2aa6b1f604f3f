"""tools/benchmark.py: every format has its row, and the numbers are those of the files."""

from __future__ import annotations

import csv

from tiny import write_tiny

from tools.benchmark import BenchmarkConfig, main


def test_table_csv_and_picture(tmp_path):
    weights = write_tiny(tmp_path)
    (tmp_path / "labels").mkdir()
    for i in range(3):
        (tmp_path / "labels" / f"{i}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images\nval: images\nnames: [cat, Bär, dog]\n")
    cfg = BenchmarkConfig(
        weights=(str(weights),),
        include=("torchscript", "torch_export", "executorch"),
        imgsz=(64, 128),
        data=str(tmp_path / "data.yaml"),
        threads=(1,),
        rounds=2,
        project=str(tmp_path / "runs"),
    )
    entries = main(cfg)
    assert [(e.imgsz, e.format) for e in entries] == [
        (size, name) for size in (64, 128) for name in ("pytorch", "torchscript", "torch_export", "executorch")
    ]
    folder = tmp_path / "runs" / "exp"
    rows = list(csv.DictReader((folder / "benchmark.csv").open(encoding="utf-8")))
    assert len(rows) == 8 and (folder / "benchmark.png").stat().st_size > 5000
    assert len((folder / "benchmark.md").read_text().splitlines()) == 10
    for entry, row in zip(entries, rows, strict=True):
        runs = bool(entry.weights)
        assert (row["ms, 1 thr"] != "-") == runs and (row["mAP50-95"] != "-") == runs
        if runs and entry.row:
            assert row["max box px"] != "-" and 0 < entry.ms[1][0] <= entry.ms[1][1]
    same = {(e.imgsz, f"{e.map50_95:.3f}") for e in entries if e.weights}
    assert len(same) == 2  # one mAP a size, whatever the runtime
