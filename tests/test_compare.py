"""Runs side by side: a table, the settings that differ, and one page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_report import Page
from tiny import tiny_model

from models.weights.checkpoint import Checkpoint, save_checkpoint
from tools.compare import CompareConfig, main
from utils.hyp import Hyp
from utils.runs import Run
from utils.train.comparison import CLASSES, curve_charts, differences, read_runs, score_rows, text_page

SCORES = {"precision": 0.5, "recall": 0.25, "map50": 0.75, "images": 8, "instances": 20}
EVIL = "<b>x</b>"


def make_run(project: Path, name: str, ap: float, data: str, **changes: object) -> Path:
    """A run folder with three epochs, metrics, settings and a checkpoint."""
    run = Run(project, name)
    for epoch in range(3):
        row = {"epoch": epoch, "metrics/mAP_0.5:0.95": ap * (epoch + 1) / 3, "val/box_loss": 1 / (epoch + 1)}
        run.log(row | {"x/lr2": 0.01, "seconds": 30.5})
    best = tiny_model()
    per_class = {name: SCORES | {"map50_95": ap} for name in [EVIL, "dog"]}
    (run.dir / "metrics.json").write_text(json.dumps(SCORES | {"map50_95": ap, "per_class": per_class}))
    run.dump("opt.yaml", {"cfg": "yolov5n.yaml", "imgsz": 64, "data": data, "name": name, "freeze": [0]} | changes)
    run.dump("hyp.yaml", Hyp(lr0=ap / 10).as_dict())
    save_checkpoint(run.weights / "best.pt", Checkpoint.of(best))
    return run.dir


@pytest.fixture
def runs(tmp_path: Path, small_set: Path) -> list[str]:
    return [
        str(make_run(tmp_path / "one", "exp", 0.25, str(small_set))),
        str(
            make_run(tmp_path / "two", "exp", 0.5, str(small_set), imgsz=128, cfg="", weights="runs/a/weights/best.pt")
        ),
    ]


def test_the_table_and_the_settings_that_differ(runs: list[str]) -> None:
    read = read_runs(runs)
    assert [run.label for run in read] == ["one/exp", "two/exp"]
    table, differ = text_page(read).split("\n\n")
    lines = [re.split(r"\s{2,}", line) for line in table.splitlines()]
    assert lines[0] == ["run", "model", "px", "epochs", "mAP50", "mAP50-95", "P", "R", "time"]
    assert lines[1] == ["one/exp", "yolov5n", "64", "3", "0.750", "0.250", "0.500", "0.250", "1:32"]
    assert lines[2][:3] == ["two/exp", "a/best.pt", "128"]
    assert differences(read) == {
        "cfg": ["yolov5n.yaml", "not given"],
        "imgsz": ["64", "128"],
        "weights": ["-", "runs/a/weights/best.pt"],
        "lr0": ["0.025", "0.05"],
    }
    assert [line.split()[0] for line in differ.splitlines()] == ["setting", "cfg", "imgsz", "lr0", "weights"]
    assert text_page(read[:1]).count("\n") == 1


def test_the_page_has_all_of_it_and_needs_nothing_else(runs: list[str], tmp_path: Path, caplog) -> None:
    caplog.set_level("INFO")
    path = main(CompareConfig(tuple(runs), count=3, device="cpu", conf_thres=0.0, out=str(tmp_path / "new" / "c.html")))
    page = Page(path)
    assert not re.search(r"https?:|url\(|@import|<script", page.source) and EVIL not in page.source
    words = " ".join(page.words.split())
    assert "2 training runs" in words and "mAP50-95 of dog 0.250 0.500" in words and "imgsz 64 128" in words
    images = [image for image in page.all("img") if image["src"].startswith("data:image/jpeg")]
    charts = [image for image in page.all("img") if image["src"].startswith("data:image/svg+xml")]
    assert len(images) == 3 * 2 and len(charts) == 3 == len(curve_charts(read_runs(runs)))
    assert [image["alt"].partition(": ")[2] for image in images[:2]] == ["what one/exp finds", "what two/exp finds"]
    assert charts[0]["alt"] == "mAP50-95; last epoch: one/exp 0.250, two/exp 0.500"
    assert "run      model" in caplog.text and f"comparison: {path}" in caplog.text


def test_the_best_of_a_row_is_marked_and_of_many_classes_those_that_differ_are_shown(runs: list[str]) -> None:
    for i, run in enumerate(runs):
        path = Path(run, "metrics.json")
        metrics = json.loads(path.read_text())
        per_class = {f"c{k}": SCORES | {"map50_95": 0.5 + (k > 10) * i / 4} for k in range(30)}
        path.write_text(
            json.dumps(metrics | {"per_class": per_class | {"none": SCORES | {"instances": 0, "map50_95": 0}}})
        )
    rows = dict(score_rows(read_runs(runs)))
    assert rows["mAP50-95"] == [("0.250", False), ("0.500", True)] and rows["P"] == [("0.500", True)] * 2
    classes = [name.removeprefix("mAP50-95 of c") for name in rows if " of " in name]
    assert len(classes) == CLASSES and all(int(k) > 10 for k in classes)


def test_runs_of_which_files_are_missing_are_compared_too(runs: list[str], tmp_path: Path, caplog) -> None:
    for name in ("metrics.json", "results.csv", "hyp.yaml", "weights/best.pt"):
        Path(runs[0], name).unlink()
    page = Page(main(CompareConfig(tuple(runs), count=1, device="cpu", out=str(tmp_path / "c.html"))))
    images = [image for image in page.all("img") if image["src"].startswith("data:image/jpeg")]
    assert len(images) == 1 and images[0]["alt"].endswith("what two/exp finds") and not caplog.records
    Path(runs[1], "opt.yaml").write_text("data: gone.yaml\n")
    Path(runs[0], "opt.yaml").write_text("data: gone.yaml\n")
    main(CompareConfig(tuple(runs), count=1, device="cpu", out=str(tmp_path / "c.html")))
    assert "no images are compared, their data is gone; --images FOLDER names others" in caplog.text


def test_a_checkpoint_stands_for_its_run_and_other_folders_are_refused(runs: list[str], tmp_path: Path) -> None:
    assert read_runs([f"{runs[0]}/weights/best.pt"])[0].folder == Path(runs[0])
    with pytest.raises(ValueError, match="given twice"):
        read_runs([runs[0], f"{runs[0]}/weights/best.pt"])
    with pytest.raises(FileNotFoundError, match="run folder 'nowhere' not found"):
        read_runs(["nowhere"])
    with pytest.raises(ValueError, match=r"expected the folder of a training run"):
        read_runs([str(tmp_path)])
