"""report.html: one file that needs no other, from the files that a run folder has."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from data_sets import noise

from utils.hyp import Hyp
from utils.images import imwrite
from utils.runs import Run
from utils.train.plots import panels
from utils.train.report import ReportConfig, main, write_report

PANELS = panels(["train/box_loss", "train/obj_loss", "train/cls_loss"])
EVIL = "<script>alert('a & b')</script>"
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """A page's tags with their attributes and its text; fails on tags that are not closed in order."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {k: v or "" for k, v in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words += data + " "

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder with everything."""
    run = Run(tmp_path, "exp")
    for epoch in range(4):
        values = {name: (epoch + 1) / 10 for name in PANELS} | {"x/lr0": 0.1, "x/lr2": 0.01}
        values["metrics/mAP_0.5:0.95"] = [0.1, 0.4, 0.2, float("nan")][epoch]
        run.log({"epoch": epoch, "seconds": 30.0, **values})
    scores = {"precision": 0.5, "recall": 0.25, "map50": 0.75, "map50_95": 0.625, "images": 8, "instances": 20}
    unseen = dict.fromkeys(scores, 0)
    per_class = {"cat": scores | {"map50": 0.111}, EVIL: scores, "unicorn": unseen}
    best = {"thresholds": {"confidence": 0.371, "f1": 0.6149}}
    (run.dir / "metrics.json").write_text(json.dumps(scores | {"per_class": per_class} | best))
    run.dump("opt.yaml", {"cfg": "models/yolov5n.yaml", "imgsz": 320, "data": "my set/data.yaml", "name": EVIL})
    run.dump("hyp.yaml", Hyp().as_dict())
    for name in ("labels.jpg", "train_batch0.jpg", "val_batch0_labels.jpg", "val_batch0_pred.jpg", "PR_curve.png"):
        imwrite(run.dir / name, noise((20, 30), len(name)))
    for name in ("best.pt", "last.pt"):
        (run.weights / name).touch()
    return run.dir


def test_page_needs_nothing_but_itself(folder: Path) -> None:
    page = Page(write_report(folder))
    assert not re.search(r"https?:|url\(|@import", page.source)
    assert not page.all("link")
    for attrs in (attrs for _, attrs in page.tags):
        assert attrs.get("src", "data:").startswith("data:") and "href" not in attrs
    policy = [m["content"] for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert policy and policy[0].startswith("default-src 'none'; img-src data:;")
    assert not list(folder.glob("*.part"))


def test_images_are_the_files_and_have_captions(folder: Path) -> None:
    images = [image for image in Page(write_report(folder)).all("img") if "svg" not in image["src"][:20]]
    embedded = [base64.b64decode(image["src"].split(",", 1)[1]) for image in images]
    names = ["val_batch0_labels.jpg", "val_batch0_pred.jpg", "PR_curve.png", "labels.jpg", "train_batch0.jpg"]
    assert embedded == [(folder / name).read_bytes() for name in names]
    assert [image["src"].split(";")[0] for image in images] == [
        "data:image/png" if name.endswith("png") else "data:image/jpeg" for name in names
    ]
    assert images[1]["alt"] == "Validation images: detections"
    assert all(image["alt"] and (image["width"], image["height"]) == ("30", "20") for image in images)


def test_page_has_the_content_of_the_files(folder: Path) -> None:
    page = Page(write_report(folder))
    words = " ".join(page.words.split())
    assert "mAP50 0.750 mAP50-95 0.625 Precision 0.500 Recall 0.250 Classes 3 Epochs 4 Training time 2 min 0 s" in words
    assert "best weights are those of epoch 2 of 4: fitness 0.380" in words
    assert "cat 8 20 0.500 0.250 0.111 0.625" in words
    assert f"{EVIL} 8 20" in words and EVIL not in page.source  # shown as text, not run
    assert "not measured: unicorn." in words
    assert f"python detect.py --weights {folder}/weights/best.pt --source images/" in words
    assert f"python export.py --weights {folder}/weights/best.pt --include onnx openvino" in words
    assert "--data 'my set/data.yaml'" in words and "--resume" not in words
    assert (
        "a mean F1 of 0.61, is at a confidence threshold of 0.37: --conf-thres 0.37, or --conf-thres auto where"
        in words
    )
    assert "warmup_bias_lr 0.1" in words and "cfg models/yolov5n.yaml" in words


def test_the_page_links_to_the_errors_beside_it(folder: Path) -> None:
    (folder / "errors.html").write_text("")
    page = write_report(folder).read_text(encoding="utf-8")
    (folder / "errors.html").unlink()
    assert page.count('<a href="errors.html">') == 1 and "errors.html</code>" not in page


def test_a_run_that_is_not_finished_can_be_resumed(folder: Path) -> None:
    (folder / "metrics.json").unlink()
    assert f"python train.py --resume {folder}/weights/last.pt" in " ".join(Page(write_report(folder)).words.split())


def test_images_of_a_run_are_made_small_enough_to_send(folder: Path) -> None:
    for i in range(9):
        imwrite(folder / f"val_batch{i}_pred.jpg", noise((1200, 1600), i))  # noise is what compresses worst
    page = Page(write_report(folder))
    images = [image for image in page.all("img") if "svg" not in image["src"][:20]]
    assert len(page.source) < 3_000_000 and len(images) == 5 + 8
    large = [image for image in images if image["src"].startswith("data:image/webp")]
    assert len(large) == 9 and all(int(i["width"]) * 3 == int(i["height"]) * 4 >= 800 * 3 for i in large)


def test_page_is_usable_without_eyes_or_a_wide_screen(folder: Path) -> None:
    page = Page(write_report(folder))
    assert page.all("html")[0]["lang"] == "en"
    assert any(m.get("name") == "viewport" and "width=device-width" in m["content"] for m in page.all("meta"))
    charts = [image for image in page.all("img") if image["src"].startswith("data:image/svg+xml;base64,")]
    assert len(charts) == 6 and all(chart["width"] and chart["height"] for chart in charts)
    assert "Box loss over the epochs, in the last one: training 0.4, validation 0.4" in [c["alt"] for c in charts]
    assert all(b"<svg" in base64.b64decode(chart["src"].split(",", 1)[1]) for chart in charts)
    assert all(th.get("scope") in ("row", "col") for th in page.all("th"))
    assert all(d.get("aria-label") and d.get("tabindex") == "0" for d in page.all("div") if d.get("role") == "region")
    assert "prefers-color-scheme: dark" in page.source and "max-width: 480px" in page.source


FILES = ["opt.yaml", "hyp.yaml", "results.csv", "metrics.json", "labels.jpg", "train_batch0.jpg", "PR_curve.png"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_broken_is_left_out(
    name: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = Page(write_report(folder)).words
    (folder / name).unlink()
    missing = Page(write_report(folder)).words
    assert len(missing) < len(whole) and not caplog.records
    (folder / name).write_bytes(b"\xff\xfe{broken")
    assert Page(write_report(folder)).words == missing
    assert [r.message.split(":")[0] for r in caplog.records] == [str(folder / name)]


@pytest.mark.parametrize("text", ["[]", "{}", '{"per_class": []}', '{"map50": 1, "per_class": {"a": {}}}', "1"])
def test_a_json_of_something_else_is_left_out(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.json").write_text(text)
    assert not Page(write_report(tmp_path)).all("h2")
    assert len(caplog.records) == 1


def test_an_empty_folder_and_no_folder(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path))
    assert not page.all("h2") and tmp_path.name in page.words
    with pytest.raises(FileNotFoundError, match=r"run folder '.*nowhere' not found"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="--run is missing"):
        main(ReportConfig())
