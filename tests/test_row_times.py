"""tools/row_times.py: every row of every network has a time, the shares are of the whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from models.yolo import DetectionModel
from tools import row_times
from tools.row_times import RowTimesConfig


def cells(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines() if re.match(r"\| \d", line)]


def test_all_rows_in_order_and_the_most_expensive_first(tmp_path: Path) -> None:
    cfg = RowTimesConfig(cfg=("yolov5n.yaml",), imgsz=(64, 96), rounds=1, out=str(tmp_path / "rows.md"))
    tables = row_times.main(cfg)
    assert len(tables) == 2 and all(table in (tmp_path / "rows.md").read_text() for table in tables)
    rows = cells(tables[0])
    assert [row[0] for row in rows] == [str(i) for i in range(len(DetectionModel("yolov5n.yaml").model))]
    assert rows[0][1] == "Conv" and rows[-1][1] == "Detect" and all(float(row[2]) >= 0 for row in rows)
    assert sum(float(row[2]) for row in rows) == pytest.approx(float(tables[0].split(": ")[1].split()[0]), abs=0.3)
    best = cells(row_times.main(RowTimesConfig(cfg=("yolov5n.yaml",), imgsz=(64,), rounds=1, top=3))[0])
    times = [float(row[2]) for row in best]
    assert len(times) == 3 and times == sorted(times, reverse=True)


def test_without_names_all_networks_are_timed(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    class Small(DetectionModel):
        def __init__(self, cfg):
            seen.append(cfg)
            super().__init__("yolov5-mobilevit-fast.yaml" if len(seen) > 1 else "yolov5-mobilevit.yaml", nc=1)

    seen: list[str] = []
    monkeypatch.setattr(row_times, "DetectionModel", Small)
    with caplog.at_level("INFO"):
        tables = row_times.main(RowTimesConfig(imgsz=(96,), rounds=1, top=1))
    assert {"yolov5n.yaml", "yolov5-mobilevit-fast.yaml", "yolox-nano.yaml"} <= set(seen)
    assert len(tables) == len(seen) - 1 and "left out, it takes multiples of 64" in caplog.text
