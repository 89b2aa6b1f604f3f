"""Charts and sheets of images of a run: what is drawn where, and data sets of 1, 3, 80 and 200 classes."""

from __future__ import annotations

import math
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch

from utils.boxes import Targets
from utils.drawing import class_color, plot_batch
from utils.images import imread
from utils.runs import Run
from utils.train.plots import TOPICS, panels, plot_labels, plot_results, read_results, topic_charts

SVG = "{http://www.w3.org/2000/svg}"

PANELS = panels(["train/box_loss", "train/obj_loss", "train/cls_loss"])


def row(epoch: int, **changes: float) -> dict[str, float | int]:
    return {"epoch": epoch} | {name: 1 / (epoch + 2) for name in PANELS} | {"x/lr0": 0.01, "seconds": 2.5} | changes


def test_results_come_back_as_they_were_logged(tmp_path: Path) -> None:
    run = Run(tmp_path, "run")
    rows = [row(0), row(1, **{"val/box_loss": math.nan}), row(2)]
    for values in rows:
        run.log(values)
    with (run.dir / "results.csv").open("a") as file:
        file.write("3,0.25,0.2")  # a process that was killed in the middle of a row
    columns = read_results(run.dir / "results.csv")
    assert list(columns) == list(rows[0])
    for name, values in columns.items():
        np.testing.assert_allclose(values, [r[name] for r in rows], rtol=1e-5)


def test_results_in_the_padded_form_of_yolov5_are_read(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("   epoch,  train/box_loss\n       0,         0.11\n       1,          \n\n")
    columns = read_results(tmp_path / "results.csv")
    np.testing.assert_array_equal(columns["train/box_loss"], [0.11, math.nan])


def test_results_png_draws_a_curve_for_what_was_measured(tmp_path: Path) -> None:
    run = Run(tmp_path, "run")
    for epoch in range(3):
        run.log(row(epoch, **{"metrics/mAP_0.5": math.nan}))
    plot_results(run.dir / "results.csv", run.dir / "results.png")
    blue = (np.abs(imread(run.dir / "results.png").astype(int) - [0x1F, 0x6F, 0xEB]) < 9).all(axis=2)
    h, w = blue.shape
    drawn = [blue[y : y + h // 2, x : x + w // 5].any() for y in (0, h // 2) for x in range(0, w, w // 5)]
    assert drawn == [name != "metrics/mAP_0.5" for name in PANELS]


def test_results_png_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "results.csv").write_text("")
    plot_results(tmp_path / "results.csv", tmp_path / "results.png")
    assert imread(tmp_path / "results.png").shape == (720, 1800, 3)


def test_charts_of_the_report_have_a_curve_for_each_column_that_was_measured() -> None:
    nan = math.nan
    columns = {"epoch": np.arange(3.0), "train/box_loss": np.array([0.3, 0.2, 0.1]), "x/lr0": np.full(3, nan)}
    columns |= {"val/box_loss": np.array([nan, 0.5, nan]), "metrics/recall": np.array([0.25, 0.5, nan])}
    charts = topic_charts(columns)
    assert [(chart.title, chart.last) for chart in charts] == [
        ("Box loss", {"training": 0.1, "validation": 0.5}),
        ("Precision and recall", {"recall": 0.5}),
    ]
    for chart, curves in zip(charts, (2, 1), strict=True):
        root = ElementTree.fromstring(chart.svg)
        lines = [path for path in root.iter(f"{SVG}path") if "stroke-width: 1.5" in path.get("style", "")]
        strokes = {path.get("style", "").split("stroke: ")[1].split(";")[0] for path in lines}
        assert len(strokes & {"#1f6feb", "#c2410c"}) == curves
    assert not topic_charts({})
    everything = {column: np.ones(1) for curves in TOPICS.values() for column in curves.values()}
    assert [chart.title for chart in topic_charts(everything)] == list(TOPICS)  # also without a column of epochs


@pytest.mark.parametrize(("nc", "boxes"), [(3, 0), (1, 40), (80, 40), (200, 40)])
def test_labels_jpg(nc: int, boxes: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label, xywhn = rng.integers(nc, size=boxes), rng.uniform(0.2, 0.4, (boxes, 4))
    names = {i: f"klasse {i} $x_{i} 猫" for i in range(nc)}  # $ is no formula, and not every font has every letter
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_labels(label, xywhn, names, tmp_path / "labels.jpg")
    assert imread(tmp_path / "labels.jpg").shape == (1200, 1800, 3)


def test_labels_jpg_has_the_longest_bar_at_the_most_frequent_class(tmp_path: Path) -> None:
    label, xywhn = np.array([0] * 3 + [2] * 9), np.array([[0.5, 0.5, 0.1, 0.1]] * 12)
    plot_labels(label, xywhn, {0: "a", 1: "b", 2: "c"}, tmp_path / "labels.jpg")
    bars = imread(tmp_path / "labels.jpg")[:550].astype(int)
    heights = [(np.abs(bars - class_color(c)).max(axis=2) < 40).sum(axis=0).max() for c in range(3)]
    assert heights[1] < 5 and heights[2] > 2.5 * heights[0] > 200


def test_the_sheet_of_a_batch_shows_each_image_and_its_boxes_in_place(tmp_path: Path) -> None:
    images = torch.full((5, 3, 320, 320), 50, dtype=torch.uint8) + torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1)
    xywhn = torch.tensor([[0.5, 0.5, 0.25, 0.5], [0.25, 0.75, 0.1, 0.1]])
    targets = Targets(torch.tensor([1, 4]), torch.tensor([2, 0]), xywhn)
    before = images.clone()
    plot_batch(images, targets, {0: "a", 2: "c"}, tmp_path / "train_batch0.png", ["one.jpg"])
    assert torch.equal(images, before)
    sheet = imread(tmp_path / "train_batch0.png")
    assert sheet.shape == (2 * 322, 3 * 322, 3)
    tiles = [sheet[y * 322 : y * 322 + 320, x * 322 : x * 322 + 320] for y in range(2) for x in range(3)]
    assert [int(tile[100, 20, 0]) for tile in tiles] == [50, 51, 52, 53, 54, 255]
    assert (tiles[2] == 52).all() and (tiles[3] == 53).all()  # neither boxes nor titles
    assert (tiles[0][:290] == 50).all() and (tiles[0][300:] == 255).any()  # its title
    ys, xs = np.nonzero((tiles[1] == class_color(2)).all(axis=2))
    assert (xs.min(), xs.max(), ys.max()) == (120, 199, 239)  # the label lies above the box
    assert (tiles[4] == class_color(0)).all(axis=2).any()


@pytest.mark.parametrize(("count", "side", "expected"), [(1, 64, (322, 322)), (20, 1000, (1928, 1928))])
def test_the_sheet_of_a_batch_is_readable_but_not_huge(
    count: int, side: int, expected: tuple[int, int], tmp_path: Path
) -> None:
    images = torch.zeros(count, 3, side, side, dtype=torch.uint8)
    none = torch.zeros(0, dtype=torch.long)
    plot_batch(images, Targets(none, none, torch.zeros(0, 4)), {}, tmp_path / "a.jpg")
    assert imread(tmp_path / "a.jpg").shape[:2] == expected
