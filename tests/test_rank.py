"""Which images to label next: the ranking of planted sets, the views of an image, and what tools/rank.py writes."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import draw
from tiny import tiny_model

from models.runtimes.torch_backend import TorchBackend
from models.weights.checkpoint import Checkpoint, save_checkpoint
from tools.rank import RankConfig, listed, main
from utils.boxes import Boxes
from utils.images import imread, imwrite
from utils.predict.predictor import Predictor
from utils.rank.choice import EQUAL, Choice, bits, choose, reason, share_below, uncertainty
from utils.rank.page import RankedImage, write_ranking
from utils.rank.views import Impression, Viewer, disagreement, unmirrored

NAMES = {0: "cat", 1: "dog"}


def boxes(*rows: tuple[float, ...]) -> Boxes:
    """Boxes from rows of x1, y1, x2, y2, score, class."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Boxes(table[:, :4], table[:, 5].astype(np.int64), table[:, 4])


def seen(found: Boxes, disagreement: float = 0.0, *feature: float) -> Impression:
    return Impression(found, disagreement, np.array(feature, dtype=np.float64))


# ---- uncertainty ----------------------------------------------------------------------------------------------------


def test_entropy_is_highest_in_the_middle() -> None:
    assert bits(np.array([0.5]))[0] == pytest.approx(1) and bits(np.array([0.0, 1.0])).max() < 1e-6
    assert bits(np.array([0.2]))[0] == pytest.approx(bits(np.array([0.8]))[0])


def test_planted_hard_images_are_the_most_uncertain() -> None:
    easy = [seen(boxes((0, 0, 9, 9, 0.97, 0))) for _ in range(20)]
    doubtful = seen(boxes((0, 0, 9, 9, 0.5, 0), (20, 0, 29, 9, 0.4, 0)))
    unstable = seen(boxes((0, 0, 9, 9, 0.97, 0)), 0.9)
    nothing = seen(boxes())
    result = uncertainty([*easy, doubtful, unstable, nothing], nc=2)
    assert set(np.argsort(-result.total)[:3].tolist()) == {20, 21, 22}
    assert result.surprise.argmax() == 22 and result.surprise[:20].max() == 0
    assert result.total.min() >= 0 and result.total.max() <= 1


def test_nothing_found_is_no_surprise_where_little_is_found() -> None:
    mostly_empty = [seen(boxes()) for _ in range(19)] + [seen(boxes((0, 0, 9, 9, 0.6, 1)))]
    result = uncertainty(mostly_empty, nc=2)
    assert result.surprise.max() < 0.1 and result.total.argmax() == 19


def test_a_rare_class_counts_more() -> None:
    pool = [seen(boxes(*[(0, 0, 9, 9, 0.6, 0)] * 5)) for _ in range(10)]
    pool += [seen(boxes(*[(0, 0, 9, 9, 0.6, 0)] * 5, (0, 0, 9, 9, 0.6, 1))), seen(boxes(*[(0, 0, 9, 9, 0.6, 0)] * 6))]
    assert uncertainty(pool, nc=2).total.argmax() == 10


def test_pools_of_no_image_and_of_one() -> None:
    assert len(uncertainty([], nc=2).total) == 0 and choose(np.zeros(0), np.zeros((0, 4)), 5) == []
    assert uncertainty([seen(boxes())], nc=2).total.tolist() == [0]
    assert [c.row for c in choose(np.zeros(1), np.zeros((1, 4)), 5)] == [0]
    assert share_below(np.array([3.0, 1.0, 3.0])).tolist() == [0.5, 0.0, 0.5]


# ---- views ----------------------------------------------------------------------------------------------------------


def test_disagreement_by_hand() -> None:
    one = boxes((0, 0, 10, 10, 0.8, 0))
    assert disagreement(one, one) == 0 == disagreement(boxes(), boxes())
    assert disagreement(one, boxes()) == pytest.approx(0.4)
    assert disagreement(one, boxes((0, 0, 10, 10, 0.8, 1))) == pytest.approx(0.8)  # another class
    assert disagreement(one, boxes((0, 0, 10, 10, 0.4, 0))) == pytest.approx(0.5 * (0.8 + 0.4) / 2)
    other = boxes((0, 5, 10, 10, 0.6, 0), (50, 50, 60, 60, 0.1, 1))
    assert disagreement(one, other) == pytest.approx(disagreement(other, one))


def test_mirroring_twice_changes_nothing() -> None:
    found = boxes((3, 5, 17, 30, 0.5, 0), (40, 1, 60, 9, 0.9, 1))
    assert unmirrored(found, 64).xyxy[0].tolist() == [47, 5, 61, 30]
    assert np.array_equal(unmirrored(unmirrored(found, 64), 64).xyxy, found.xyxy)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rank") / "best.pt"
    save_checkpoint(path, Checkpoint.of(tiny_model()))
    return path


def test_features_have_one_value_for_each_channel_of_the_neck(weights: Path) -> None:
    backend = TorchBackend(weights, torch.device("cpu"))
    channels = sum(conv.in_channels for conv in backend.model.head.m)
    viewer = Viewer(Predictor(backend, backend.device, 64), backend.model.head)
    image = draw((60, 90), [[20, 20, 60, 40]])
    plain, again, mirrored = viewer(image), viewer(image), viewer(np.ascontiguousarray(image[:, ::-1]))
    assert plain.feature.shape == (channels,) and np.isfinite(plain.feature).all()
    assert np.array_equal(plain.feature, again.feature) and plain.disagreement == again.disagreement > 0
    changed = np.abs(plain.feature - viewer(draw((60, 90), [[5, 5, 15, 50]])).feature).max()
    assert np.abs(plain.feature - mirrored.feature).max() < changed  # two of three views are the same
    backend(torch.zeros(1, 3, 64, 64))
    assert not backend.model.head._forward_pre_hooks  # the model is left as it was


# ---- the choice -----------------------------------------------------------------------------------------------------


def test_a_copy_is_chosen_last() -> None:
    features = np.random.default_rng(0).normal(size=(12, 8))
    features[7] = features[3]
    total = np.full(12, 0.2)
    total[[3, 7]] = 1
    rows = [choice.row for choice in choose(total, features, 11)]
    assert rows[0] == 3 and 7 not in rows
    last = choose(total, features, 99)[-1]
    assert (last.row, last.nearest) == (7, 3) and last.distance < EQUAL
    found, paths = [boxes()] * 12, [f"images/{i}.jpg" for i in range(12)]
    doubts = uncertainty([seen(own) for own in found], 2)
    assert reason(last, doubts, found[7], NAMES, paths).startswith("nearly the same as 3.jpg")
    assert "with labels" in reason(Choice(1, 0.0, -1), doubts, found[1], NAMES, paths)


def test_only_the_most_unsteady_images_are_called_so() -> None:
    pool = [seen(boxes((0, 0, 9, 9, 0.97, 0)), 0.1 + i / 100) for i in range(21)]
    doubts, paths = uncertainty(pool, 2), [f"{i}.jpg" for i in range(21)]
    words = [reason(Choice(i, 0.5, -1), doubts, pool[i].found, NAMES, paths) for i in range(21)]
    assert [i for i, text in enumerate(words) if "mirrored" in text] == list(range(15, 21))
    assert words[15] == "detections change when it is mirrored or smaller, more than in 75% of the images"
    assert words[20].endswith("more than in all others")
    same = uncertainty(pool[:1] * 9, 2)  # none is worse than the others
    assert "mirrored" not in reason(Choice(3, 0.5, -1), same, pool[0].found, NAMES, paths)


def test_each_image_is_listed_once_and_a_longer_list_begins_like_a_shorter_one() -> None:
    rng = np.random.default_rng(1)
    total, features = rng.random(30), rng.normal(size=(30, 5))
    all_rows = [choice.row for choice in choose(total, features, 100)]
    assert sorted(all_rows) == list(range(30))
    assert [choice.row for choice in choose(total, features, 7)] == all_rows[:7]
    assert all_rows[0] == total.argmax()


def test_permuted_images_give_the_same_list() -> None:
    rng = np.random.default_rng(2)
    total, features, known = rng.random(40), rng.normal(size=(40, 6)), rng.normal(size=(3, 6))
    order = rng.permutation(40)
    rows = [choice.row for choice in choose(total, features, 15, known)]
    assert [order[choice.row] for choice in choose(total[order], features[order], 15, known)] == rows


def test_what_is_like_a_labeled_image_comes_late() -> None:
    features = np.vstack([np.eye(6), np.eye(6)[:1] * 1.001])
    rows = [choice.row for choice in choose(np.full(7, 0.5), features, 7, known=np.eye(6)[2:3])]
    assert 2 in rows[-2:] and {0, 6} & set(rows[-2:])


def test_clusters_are_all_visited_before_one_is_twice() -> None:
    rng = np.random.default_rng(3)
    centers = 10 * np.eye(5)
    features = np.repeat(centers, 8, axis=0) + rng.normal(scale=0.1, size=(40, 5))
    rows = [choice.row for choice in choose(rng.random(40), features, 5)]
    assert {row // 8 for row in rows} == set(range(5))


# ---- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Eight images, one of them twice."""
    folder, rng = tmp_path / "unlabeled", np.random.default_rng(0)
    folder.mkdir()
    for i in range(8):
        x, y = rng.integers(0, 40, 2).tolist()
        imwrite(folder / f"{i}.png", draw((64, 96), [[x, y, x + 30 + 2 * i, y + 20]]))
    imwrite(folder / "copy.png", imread(folder / "3.png"))
    return folder


def ranked(weights: Path, out: Path, source: str | Path, count: int = 4, **more: str) -> list[str]:
    cfg = RankConfig(weights=str(weights), source=str(source), count=count, imgsz=(64,), project=str(out), **more)
    return [Path(item.path).name for item in main(cfg)]


def test_files_of_a_run(weights: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    names = ranked(weights, tmp_path, images)
    folder = tmp_path / "exp"
    rows = list(csv.DictReader((folder / "rank.csv").open()))
    assert [Path(row["image"]).name for row in rows] == names and len(set(names)) == 4
    assert [row["rank"] for row in rows] == list("1234") and all(row["reason"] for row in rows)
    assert rows[0]["distance"] == "" and float(rows[1]["distance"]) > 0
    paths = (folder / "rank.txt").read_text().splitlines()
    assert [Path(path).name for path in paths] == names and all(Path(path).is_file() for path in paths)
    page = (folder / "rank.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4 and not re.search(r"https?://", page)
    assert "label these 4 of 9 images next" in caplog.text and rows[3]["reason"] in caplog.text
    assert "--annotate cvat" in caplog.text


def test_the_order_of_files_does_not_matter_and_copies_are_not_both_listed(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    names = ranked(weights, tmp_path, images, count=8)
    assert len({"3.png", "copy.png"} & set(names)) == 1
    paths = sorted(images.iterdir(), reverse=True)
    (tmp_path / "list.txt").write_text("".join(f"{path}\n" for path in [*paths, paths[0]]))
    assert ranked(weights, tmp_path, tmp_path / "list.txt", count=8) == names
    everything = ranked(weights, tmp_path, images, count=50)
    assert everything[:8] == names and len(everything) == 9 and everything[8] in ("3.png", "copy.png")


def test_images_with_labels_are_not_asked_for_again(weights: Path, images: Path, tmp_path: Path) -> None:
    labeled = tmp_path / "labeled"
    labeled.mkdir()
    imwrite(labeled / "known.png", imread(images / "5.png"))
    names = ranked(weights, tmp_path, images, count=9, labeled=str(labeled))
    assert names.index("5.png") >= 7  # beside the copy


def test_unreadable_images_are_left_out(
    weights: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (images / "broken.png").write_bytes(b"no image")
    assert "broken.png" not in ranked(weights, tmp_path, images, count=20)
    assert "1 image cannot be read" in caplog.text
    with pytest.raises(ValueError, match=r"broken\.png: no image can be read"):
        ranked(weights, tmp_path, images / "broken.png")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"source": ""}, ValueError, "--source is missing"),
        ({"source": "nowhere"}, FileNotFoundError, "nowhere"),
        ({"weights": "model.onnx"}, FileNotFoundError, "model.onnx"),
    ],
)
def test_mistakes(
    changes: dict[str, str], error: type[Exception], message: str, weights: Path, images: Path, tmp_path: Path
) -> None:
    common = {"weights": str(weights), "source": str(images), "project": str(tmp_path / "out")}
    with pytest.raises(error, match=message):
        main(RankConfig(**(common | changes)))
    assert not (tmp_path / "out").exists()


def test_an_exported_file_is_refused(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tools.rank.load_backend", lambda *_, **__: object())
    with pytest.raises(ValueError, match="hides its features, expected a checkpoint"):
        main(RankConfig(weights="best.onnx", source=str(images)))


def test_links_to_one_file_are_listed_once(images: Path) -> None:
    (images / "link.png").symlink_to(images / "2.png")
    assert len(listed(str(images))) == 9


# ---- the page -------------------------------------------------------------------------------------------------------


def test_names_are_escaped_and_lost_images_have_no_image(tmp_path: Path) -> None:
    name = tmp_path / "<b>=a.png"
    imwrite(name, draw((40, 60), [[5, 5, 30, 30]]))
    found = boxes((5, 5, 30, 30, 0.9, 0))
    items = [
        RankedImage(str(path), found, 0.5, 1.0, 1.0, 0.0, float("nan"), "=1+1 <i>")
        for path in (name, tmp_path / "gone.png")
    ]
    write_ranking(tmp_path, items, {0: "<i>cat"}, "<u>set")
    page = (tmp_path / "rank.html").read_text()
    assert not re.search(r"<(b|i|u)>[=cs]", page) and "&lt;b&gt;=a.png" in page
    assert "</i>&lt;i&gt;cat</span>" in page  # the key of colors
    assert page.count("<li>") == 2 and page.count("<img") == 1
    assert "'=1+1 <i>" in (tmp_path / "rank.csv").read_text()
    write_ranking(tmp_path, [], {}, "nothing")
    assert "No images." in (tmp_path / "rank.html").read_text()
