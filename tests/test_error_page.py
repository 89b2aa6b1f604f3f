"""errors.html and suspects.csv: what they say about planted errors, damaged images and hostile names."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.test_verdicts import boxes, truth
from utils.boxes import Boxes, Truth
from utils.evaluate.error_page import confusion, frequent_confusions, size_rows, suspect_card, write_errors
from utils.evaluate.suspects import MISSING, SHIFTED, SWAPPED, UNSUPPORTED, Suspect, find_suspects
from utils.evaluate.verdicts import ErrorAnalysis

NAMES = {0: "cat", 1: "dog"}


def clean_set(images: int = 40, seed: int = 0) -> tuple[list[Boxes], list[Truth]]:
    """Labels on a grid, and a detector that finds them with small shifts, some scores low, and some false ones."""
    chance = np.random.default_rng(seed)
    found, labels = [], []
    for _ in range(images):
        spots = chance.permutation(16)[:6]
        corners = np.column_stack([spots % 4 * 50.0 + 5, spots // 4 * 50.0 + 5])
        table = np.column_stack([corners, corners + chance.uniform(20, 38, (6, 2)), chance.integers(0, 2, 6)])
        labels.append(truth(*table.tolist()))
        shifted = table[:, :4] + chance.normal(0, 1.2, (6, 4))
        rows = [
            (*box, score, label)
            for box, score, label in zip(shifted, chance.uniform(0.3, 0.95, 6), table[:, 4], strict=True)
        ]
        free = np.setdiff1d(np.arange(16), spots)[:2]
        rows += [(f % 4 * 50 + 8.0, f // 4 * 50 + 8.0, f % 4 * 50 + 40.0, f // 4 * 50 + 40.0, 0.12, 0) for f in free]
        found.append(boxes(*rows))
    return found, labels


def spoiled(labels: list[Truth], seed: int = 1) -> tuple[list[Truth], list[tuple[str, int, np.ndarray]]]:
    """Twelve labels dropped, of another class, or shifted by half; with kind, image and corners of each."""
    chance = np.random.default_rng(seed)
    tables = [np.column_stack([t.xyxy, t.label]) for t in labels]
    planted = []
    for k, image in enumerate(chance.permutation(len(labels))[:12].tolist()):
        table, kind = tables[image], (MISSING, SWAPPED, SHIFTED)[k % 3]
        if kind == MISSING:
            planted.append((kind, image, table[0, :4].copy()))
            tables[image] = table[1:]
        elif kind == SWAPPED:
            table[0, 4] = 1 - table[0, 4]
            planted.append((kind, image, table[0, :4].copy()))
        else:
            table[0, [0, 2]] += 0.5 * (table[0, 2] - table[0, 0])
            planted.append((kind, image, table[0, :4].copy()))
    return [truth(*table.tolist()) for table in tables], planted


def test_planted_errors_come_first() -> None:
    found, labels = clean_set()
    wrong, planted = spoiled(labels)
    suspects = find_suspects(found, wrong, NAMES)
    first = suspects[: len(suspects) // 10]
    places = [[s.xyxy for s in first if s.image == image and s.kind == kind] for kind, image, _ in planted]
    hits = [any(np.abs(box - p[2]).max() < 8 for box in own) for own, p in zip(places, planted, strict=True)]
    assert sum(hits) >= 0.8 * len(planted)  # detections with a low score speak softly
    assert sum(s.row >= 0 for s in suspects) == sum(map(len, wrong))  # every label is in the list
    assert [s.score for s in suspects] == sorted((s.score for s in suspects), reverse=True)
    assert all(0 <= s.score <= 1 for s in suspects)


def test_right_labels_are_not_suspicious() -> None:
    found, labels = clean_set()
    scores = [s.score for s in find_suspects(found, labels, NAMES) if s.row >= 0]
    assert np.median(scores) < 0.05 and max(scores) < 0.5


def test_kinds_and_nothing() -> None:
    detections = boxes((0, 0, 40, 40, 0.9, 0), (60, 0, 100, 40, 0.9, 1))
    labels = truth((0, 0, 40, 40, 1), (150, 150, 190, 190, 0))
    found = {s.kind: s for s in find_suspects([detections], [labels], NAMES)}
    assert set(found) == {SWAPPED, MISSING, UNSUPPORTED}
    assert (found[SWAPPED].label, found[SWAPPED].suggested, found[MISSING].row) == (1, 0, -1)
    assert found[UNSUPPORTED].found is None
    assert find_suspects([], [], NAMES) == find_suspects([boxes()], [truth()], NAMES) == []
    crowd = truth((0, 0, 200, 200, 0), crowd=(0,))
    assert find_suspects([detections], [crowd], NAMES) == []


def write_images(folder: Path, count: int) -> list[str]:
    for i in range(count):
        cv2.imwrite(str(folder / f"{i}.jpg"), np.full((200, 200, 3), 90 + i, np.uint8))
    return [str(folder / f"{i}.jpg") for i in range(count)]


def test_the_page_holds_the_worst_images_and_all_suspects_are_in_the_table(tmp_path: Path) -> None:
    found, labels = clean_set(12)
    labels, _ = spoiled(labels)
    paths = write_images(tmp_path, 12)
    (tmp_path / "3.jpg").write_text("broken since")
    names = {0: "</script><b>cat", 1: "=dog\x1b[31m"}
    suspects = write_errors(tmp_path, ErrorAnalysis(names, found, labels, 0.25), paths, "my <set>")
    page = (tmp_path / "errors.html").read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    assert data["names"] == ["</script><b>cat", "=dog [31m"] and "\x1b" not in page and "<b>cat" not in page
    assert "my &lt;set&gt;" in page and not re.search(r"https?://(?!www\.w3\.org)", page)
    assert len(re.findall(r"<img [^>]*width=.[0-9]+. height=.[0-9]+. loading", page)) == min(len(suspects), 40) - sum(
        s.image == 3 for s in suspects[:40]
    )  # a page that does not move while images are loaded
    shown = [image["name"] for image in data["images"]]
    assert 0 < len(shown) <= 12 and "3.jpg" not in shown
    rows = list(csv.DictReader((tmp_path / "suspects.csv").open()))
    assert len(rows) == len(suspects) and {row["class"] for row in rows} <= {"", "</script><b>cat", "'=dog [31m"}
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)


def test_many_classes_have_a_list_of_confusions(tmp_path: Path) -> None:
    names = {c: f"c{c}" for c in range(40)}
    found = [boxes((0, 0, 40, 40, 0.9, 3), (60, 0, 100, 40, 0.9, 5)), boxes((0, 0, 40, 40, 0.8, 3))]
    labels = [truth((0, 0, 40, 40, 7), (60, 0, 100, 40, 5)), truth((0, 0, 40, 40, 7))]
    analysis = ErrorAnalysis(names, found, labels, 0.25)
    assert frequent_confusions(confusion(analysis)) == [(2, 3, 7)]
    write_errors(tmp_path, analysis, write_images(tmp_path, 2), "many")
    page = (tmp_path / "errors.html").read_text()
    assert "<table" in page and 'scope="col">c3<' not in page
    assert re.search(r'c3 for c7 <button [^>]*data-found="3" data-label="7">2</button>', page)


@pytest.mark.parametrize("box", [(80.0, 10, 84, 150), (10.0, 90, 180, 94), (150.0, 60, 200, 140)])
def test_what_is_shown_of_a_suspect_is_not_a_strip(tmp_path: Path, box: tuple[float, ...]) -> None:
    xyxy = np.array(box)
    suspect = Suspect(0.4, 0.4, UNSUPPORTED, 0, 0, 0, -1, xyxy, None)
    card = suspect_card(suspect, write_images(tmp_path, 1), ["cat"])
    assert card and max(card["size"]) <= 1.52 * min(card["size"])
    _, x, y, w, h = card["boxes"][0]
    assert x >= 0 and y >= 0 and x + w <= card["size"][0] and y + h <= card["size"][1]
    assert card["text"] == "labeled cat, nothing found"


def test_a_model_that_finds_nothing_is_said_to(tmp_path: Path) -> None:
    paths = write_images(tmp_path, 2)
    labels = [truth((0, 0, 40, 40, 0))] * 2
    assert write_errors(tmp_path, ErrorAnalysis(NAMES, [boxes()] * 2, labels, float("inf")), paths, "nothing") == []
    assert "No detections, nothing to compare" in (tmp_path / "errors.html").read_text()


@pytest.mark.parametrize("images", [0, 2])
def test_a_page_without_boxes(tmp_path: Path, images: int) -> None:
    paths = write_images(tmp_path, images)
    analysis = ErrorAnalysis(NAMES, [boxes()] * images, [truth()] * images, float("inf"))
    assert write_errors(tmp_path, analysis, paths, "nothing") == []
    assert "Where it fails" in (tmp_path / "errors.html").read_text()


def test_confusions_and_sizes_count_every_box() -> None:
    found, labels = clean_set(20)
    labels, _ = spoiled(labels)
    analysis = ErrorAnalysis(NAMES, found, labels, 0.25)
    matrix, sizes = np.array(confusion(analysis)), size_rows(analysis)
    assert matrix[:2].sum() == sum(int((f.score >= 0.25).sum()) for f in found)
    assert matrix[:2, :2].trace() == sum(int(row[2]) for row in sizes)
    assert sum(int(row[1]) for row in sizes) == sum(map(len, labels))
