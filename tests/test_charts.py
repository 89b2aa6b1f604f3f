"""Charts and sheets of images of a run: what is drawn where, and data sets of 1, 3, 80 and 200 classes."""

from __future__ import annotations

import math
import warnings
import xml.etree.ElementTree as ElementTree
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from utils.boxes import Targets
from utils.drawing import plot_batch
from utils.evaluate import curves as charts
from utils.evaluate.curves import plot_confusion, plot_curves
from utils.evaluate.matching import Curves
from utils.fonts import Label, font_size
from utils.images import imread
from utils.palette import class_color, class_hex
from utils.runs import Run
from utils.train.plots import TOPICS, draw_curves, panels, plot_labels, plot_results, read_results, smooth, topic_charts

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
    strip = Label("one.jpg", "", font_size(320, 320), 320).height  # below each image, so that a title hides nothing
    pitch = 322 + strip
    assert sheet.shape == (2 * pitch, 3 * 322, 3)
    tiles = [sheet[y * pitch : y * pitch + 320, x * 322 : x * 322 + 320] for y in range(2) for x in range(3)]
    assert [int(tile[100, 20, 0]) for tile in tiles] == [50, 51, 52, 53, 54, 255]
    assert all((tiles[i] == 50 + i).all() for i in (0, 2, 3))  # without boxes
    below = [sheet[y * pitch + 320 : (y + 1) * pitch, x * 322 : x * 322 + 320] for y in range(2) for x in range(3)]
    assert [bool((part < 100).any()) for part in below] == [True, *[False] * 5]  # one title
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


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures of the charts of metrics, laid out as in the files."""
    figures = []
    save = charts.save_figure

    def keep(figure: Figure, path: Path) -> None:
        save(figure, path)
        figure.set_dpi(120)  # as in the file
        figures.append(figure)

    monkeypatch.setattr(charts, "save_figure", keep)
    return figures


def confusion(count: int) -> np.ndarray:
    """Counts (count + 1, count + 1), largest on the diagonal; nothing is background in both."""
    rng = np.random.default_rng(0)
    matrix = rng.integers(1, 9, (count + 1, count + 1)) * 11.0 * (rng.random((count + 1, count + 1)) < 10 / count)
    matrix[range(count), range(count)] = 12345
    matrix[count, count] = 0
    return matrix


@pytest.mark.parametrize("count", [1, 3, 26, 80])
def test_confusion_matrix_has_square_cells_with_shares_and_counts(
    count: int, drawn: list[Figure], tmp_path: Path
) -> None:
    matrix = confusion(count)
    names = [*(f"class {i} $x_{i}" for i in range(count - 1)), "long " * 30 + "\n\udc80"]
    plot_confusion(matrix, names, tmp_path / "confusion_matrix.png")
    axes = drawn[0].axes[0]
    box = axes.get_window_extent()
    cell = box.width / (count + 1)
    assert box.height == pytest.approx(box.width, rel=0.01)
    assert box.width > (0.4 if count == 1 else 0.6) * drawn[0].bbox.width
    texts = {text.get_position(): text for text in axes.texts}
    assert len(texts) == np.count_nonzero(matrix)
    for (x, y), text in list(texts.items())[:200]:
        share = matrix[y, x] / matrix[:, x].sum()
        assert text.get_text() == f"{share:.2f}\n{matrix[y, x]:.0f}" and text.get_fontsize() >= 6
        extent = text.get_window_extent()
        assert extent.width < cell and extent.height < cell
    ticks = [axis.get_ticklabels() for axis in (axes.xaxis, axes.yaxis)]
    assert all(label.get_fontsize() >= 8 for labels in ticks for label in labels)
    assert all(len(labels) == count + 1 for labels in ticks)
    ends = sorted((e.x0, e.x1) for e in (label.get_window_extent() for label in ticks[0]))
    assert all(left[1] <= right[0] + 1 for left, right in pairwise(ends))
    colors = [to_hex(patch.get_facecolor()) for patch in axes.patches]
    assert colors == 2 * [class_hex(i) for i in range(count)]


def test_confusion_matrix_of_very_many_classes(drawn: list[Figure], tmp_path: Path) -> None:
    plot_confusion(np.eye(301), [f"class {i}" for i in range(300)], tmp_path / "confusion_matrix.png")
    axes = drawn[0].axes[0]
    assert not axes.texts and 50 < len(axes.get_yticklabels()) < 301
    assert max(imread(tmp_path / "confusion_matrix.png").shape) < 3500
    plot_confusion(np.zeros((2, 2)), ["none"], tmp_path / "confusion_matrix.png")  # neither labels nor detections
    assert not drawn[1].axes[0].texts


def curves_of(classes: list[int]) -> Curves:
    rng, k = np.random.default_rng(0), len(classes)
    rows = [np.sort(rng.random((k, n)))[:, ::-1] for n in (50, 50, 50, 101)]
    names = [f"class {c} $x^{{" for c in classes]
    return Curves(names, classes, np.linspace(0, 1, 50), *rows[:3], np.linspace(0, 1, 101), rows[3])


@pytest.mark.parametrize("count", [1, 3, 80, 150])
def test_curves_have_the_colors_of_their_classes_and_the_whole_canvas(
    count: int, drawn: list[Figure], tmp_path: Path
) -> None:
    classes = list(range(2, 2 + count))
    plot_curves(curves_of(classes), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{n}_curve.png" for n in ("F1", "PR", "P", "R")]
    for figure in drawn:
        axes, (legend,) = figure.axes[0], figure.legends
        assert [to_hex(line.get_color()) for line in axes.lines[:count]] == [class_hex(c) for c in classes]
        assert to_hex(axes.lines[count].get_color()) == "#000000"
        box = axes.get_window_extent()
        assert box.width > 0.88 * figure.bbox.width and box.height > 0.5 * figure.bbox.height
        named = legend.get_texts()
        assert len(named) == (count + 1 if count <= 100 else 1)
        extent = legend.get_window_extent()
        assert extent.x0 >= 0 and extent.x1 <= figure.bbox.width and extent.y0 >= 0 and extent.y1 < box.y0


def test_a_smoothed_line_follows_the_values() -> None:
    rng = np.random.default_rng(0)
    steps = np.arange(200.0)
    for values in (np.full(200, 3.0), 5 + steps):
        np.testing.assert_allclose(smooth(values)[15:-15], values[15:-15])
    np.testing.assert_allclose(smooth(np.full(200, 3.0)), 3)
    noise = rng.normal(size=200)
    assert smooth(noise).std() < 0.4 * noise.std()
    assert smooth(np.array([0.5])).tolist() == [0.5] and len(smooth(np.array([0.1, 0.9]))) == 2


def test_axes_of_metrics_end_at_one() -> None:
    columns = {"epoch": np.arange(3.0), "metrics/precision": np.ones(3), "metrics/recall": np.array([0.0, 0.5, 1.0])}
    axes = Figure().subplots()
    draw_curves(axes, "Precision and recall", TOPICS["Precision and recall"], columns)
    assert axes.get_ylim() == (0, 1)
