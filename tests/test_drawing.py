"""Boxes and labels in images: every number that is drawn can be read, whatever the image, the boxes and the names."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from tiny import NAMES

from utils.boxes import Boxes
from utils.drawing import EDGE, draw_boxes
from utils.fonts import DEJAVU, MIN_FONT, Label, characters, font_file, font_size, label_font
from utils.label_places import overlap, place_labels
from utils.palette import class_color

GRAY = (128, 128, 128)
HOSTILE = {
    "chinese": "红色的猫",
    "arabic": "قطة حمراء",
    "emoji": "👩\u200d🚀🐈",
    "newline": "two\nlines",
    "escape": "\x1b[31mred\x00\x07\x7f\t",
    "surrogate": "half\udc80",
    "reversed": "abc\u202e50.0 cba",
    "marks": "z" + "\u0301\u0316" * 60,
    "long": "a very long name " * 20,
    "spaces": "   ",
    "empty": "",
}


def image(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), GRAY, np.uint8)


def crowd(count: int, size: tuple[int, int], seed: int = 0, spread: float = 1.0) -> Boxes:
    """`count` random boxes in an image of `size` (height, width), best first; `spread` of it is used."""
    rng, (h, w) = np.random.default_rng(seed), size
    low = rng.uniform(0, spread, (count, 2)) * (w, h)
    high = low + rng.uniform(0.01, 0.3, (count, 2)) * (w, h)
    xyxy = np.concatenate([low, high], axis=1).clip(0, [w, h, w, h])
    return Boxes(xyxy, rng.integers(0, 80, count), np.sort(rng.uniform(0.25, 1, count))[::-1])


def found(drawn: np.ndarray, patch: np.ndarray) -> bool:
    """Whether a part of the image is the patch, to the bit."""
    (h, w), middle = patch.shape[:2], patch.shape[0] // 2
    wanted = patch[middle].tobytes()
    for y, row in enumerate(drawn):
        data = row.tobytes()
        at = data.find(wanted)
        while at >= 0:
            if at % 3 == 0 and y >= middle:
                part = drawn[y - middle : y - middle + h, at // 3 : at // 3 + w]
                if part.shape == patch.shape and (part == patch).all():
                    return True
            at = data.find(wanted, at + 1)
    return False


def patches(boxes: Boxes, names: dict[int, str], size: tuple[int, int]) -> list[np.ndarray]:
    """The labels of boxes in an image of `size`, where they are short enough to be whole."""
    return [
        Label(names.get(label, str(label)), f"{score:.2f}", font_size(*size), size[1]).draw(class_color(label), EDGE)
        for label, score in zip(boxes.label.tolist(), boxes.score.tolist(), strict=True)
    ]


@pytest.mark.parametrize("size", [(150, 200), (416, 416), (600, 800), (3000, 4000)])
def test_every_label_can_be_read_where_there_is_room(size: tuple[int, int]) -> None:
    """Two boxes on one object, as of two classes, three at the edges, and two small ones side by side."""
    h, w = size
    unit = font_size(*size)
    xyxy = [[0.4, 0.3, 0.9, 0.8], [0.405, 0.3, 0.9, 0.81], [0, 0, 0.1, 0.1], [0.95, 0.9, 1, 1], [0, 0.93, 0.4, 1]]
    small = [[w * 0.2, h * 0.5, w * 0.2 + unit, h * 0.5 + unit], [w * 0.2 + unit, h * 0.5, w * 0.25 + unit, h * 0.6]]
    boxes = Boxes(
        np.concatenate([np.array(xyxy) * [w, h, w, h], small]),
        np.array([0, 1, 2, 3, 4, 0, 0]),
        np.array([0.85, 0.67, 0.6, 0.5, 0.4, 0.3, 0.29]),
    )
    drawn = draw_boxes(image(*size), boxes, {0: "ace", 1: "ten"})
    assert all(found(drawn, patch) for patch in patches(boxes, {0: "ace", 1: "ten"}, size))


@pytest.mark.parametrize("count", [30, 300])
def test_labels_in_a_crowd_are_whole_or_left_out(count: int) -> None:
    """All pixels that are drawn belong to lines or to whole labels; the best ones have theirs."""
    size = (416, 416)
    boxes = crowd(count, size)
    drawn, plain = (draw_boxes(image(*size), boxes, {}, hide_labels=hide) for hide in (False, True))
    whole = patches(boxes, {}, size)
    assert all(found(drawn, patch) for patch in whole[:20])
    sizes = np.array([patch.shape[1::-1] for patch in whole])
    corners = np.clip(boxes.xyxy.round(), 0, 416).astype(int)
    places = place_labels(corners, sizes, size)
    for patch, (x, y) in zip(whole, places.tolist(), strict=True):
        if x >= 0:
            assert (drawn[y : y + patch.shape[0], x : x + patch.shape[1]] == patch).all()
    assert (places[:, 0] >= 0).sum() >= min(count, 60)
    assert (drawn != plain).any()


@pytest.mark.parametrize("spread", [1.0, 0.2])
@pytest.mark.parametrize("seed", range(5))
def test_places_are_inside_and_apart(seed: int, spread: float) -> None:
    frame = (300, 500)
    boxes = crowd(60, frame, seed, spread).xyxy.astype(int)
    sizes = np.random.default_rng(seed).integers([20, 12], [90, 20], (60, 2))
    sizes[7] = (501, 10)  # wider than the image
    places = place_labels(boxes, sizes, frame)
    shown = places[:, 0] >= 0
    rects = np.concatenate([places, places + sizes], axis=1)[shown]
    assert rects.min() >= 0 and rects[:, 2].max() <= 500 and rects[:, 3].max() <= 300
    assert overlap(rects, rects).sum() == np.prod(sizes[shown], axis=1).sum()  # each with itself only
    assert shown[:10].sum() == 9 and not shown[7]


def test_a_label_stands_above_its_box_if_nothing_is_there() -> None:
    boxes = np.array([[100, 100, 200, 200], [100, 0, 200, 50], [290, 100, 300, 200]])
    assert place_labels(boxes, np.full((3, 2), (60, 15)), (300, 300)).tolist() == [[100, 85], [100, 0], [240, 85]]


def test_a_label_keeps_off_small_objects() -> None:
    boxes = np.array([[100, 100, 200, 200], [105, 86, 125, 98]])
    places = place_labels(boxes, np.full((2, 2), (60, 15)), (300, 300))
    rects = np.concatenate([places, places + (60, 15)], axis=1)  # noqa: RUF005
    assert overlap(rects, boxes)[:, 1].sum() == 0


@pytest.mark.parametrize("size", [(24, 32), (150, 200), (416, 416), (3000, 4000)])
def test_lines_have_two_pixels_or_more(size: tuple[int, int]) -> None:
    h, w = size
    box = Boxes(np.array([[w // 4, h // 4, w // 2, h // 2]], float), np.array([3]), np.array([0.5]))
    row = draw_boxes(image(*size), box, {}, hide_labels=True)[h // 4 + h // 8]
    colored = (row == class_color(3)).all(axis=1)
    left = int(colored[: w * 3 // 8].sum())
    assert left == int(colored[w * 3 // 8 :].sum()) == max(round(font_size(*size) / 6), 2)
    assert colored[w // 4] and not colored[w // 4 - 1] and colored[w // 2 - 1] and not colored[w // 2]
    assert (row[w // 4 - 1] < 100).all() and (row[w // 2] < 100).all()  # the dark edge
    assert (row[: w // 4 - 1] == GRAY).all() and (row[w // 2 + 1 :] == GRAY).all()


def test_text_has_one_size_in_all_images_of_a_size() -> None:
    """Whatever the boxes and names are, so that it is steady over the frames of a video."""
    size = font_size(480, 640)
    heights = {Label(name, "0.50", size, 640).height for name in (*HOSTILE.values(), "person")}
    assert len(heights) == 1
    sides = [font_size(side * 3 // 4, side) for side in (20, 200, 416, 800, 1280, 4000)]
    assert sides == sorted(sides) and sides[0] == MIN_FONT and sides[-1] >= 48


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE.keys())
def test_any_name_is_drawn_and_keeps_its_number(name: str) -> None:
    label = Label(name, "0.85", 14, 200)
    assert label.tail.endswith("0.85") and label.width <= 200
    patch = label.draw(class_color(1), EDGE)
    assert patch.shape == (label.height, label.width, 3)
    edge = np.concatenate([patch[0], patch[-1], patch[:, 0], patch[:, -1]])
    assert (edge == EDGE).all()  # no mark sticks out
    box = Boxes(np.array([[20.0, 50, 120, 100]]), np.array([1]), np.array([0.85]))
    drawn = draw_boxes(image(200, 200), box, {1: name})
    assert found(drawn, Label(name, "0.85", font_size(200, 200), 200).draw(class_color(1), EDGE))


def test_a_long_name_is_cut_and_its_number_is_not() -> None:
    label = Label("a very long name " * 20, "0.85", 14, 300)
    assert label.name.startswith("a very long name a") and label.tail == "… 0.85" and 270 < label.width <= 300
    assert Label("cat", "", 14, 300).tail == "" and Label("", "0.85", 14, 300).tail == "0.85"
    assert (Label("cat", "0.85", 14, 40).name, Label("cat", "0.85", 14, 40).tail) == ("", "0.85")


def test_the_number_is_the_same_after_any_name() -> None:
    """Also after one that is read from the right, and one whose font may lack digits."""
    others = {c for p in Path(DEJAVU).parent.glob("STIX*.ttf") for c in characters(str(p))} - characters(DEJAVU)
    rare = next(chr(c) for c in sorted(others) if not chr(c).isspace())
    ends = []
    for name in ("cat", HOSTILE["arabic"], HOSTILE["reversed"], rare):
        label = Label(name, "0.85", 20, 400)
        ends.append(label.draw((255, 255, 255), EDGE)[:, label.pad + label.name_width :])
    assert Label(rare, "0.85", 20, 400).name_font.path != DEJAVU
    assert all((end == ends[0]).all() for end in ends[1:])


@pytest.mark.parametrize("size", [(8, 8), (20, 30), (200, 150), (1500, 4000), (4000, 40)])
@pytest.mark.parametrize("hide_conf", [True, False])
def test_draw_boxes_does_not_modify_its_input(size: tuple[int, int], hide_conf: bool) -> None:
    before = image(*size)
    h, w = size
    xyxy = np.array([[0, 0, 12, 12], [w - 8, h - 8, w + 9, h + 9], [5, 5, 5, 5], [w + 50, -9, w + 60, -5]], float)
    boxes = Boxes(xyxy, np.array([0, 1, 99, 3]), np.array([0.5, 0.9, 0.3, 0.2]))
    table = boxes.table().copy()
    names = {0: "Ärger-δοκιμή-проверка" * 3, 1: "star"}
    drawn = draw_boxes(before, boxes, names, hide_conf=hide_conf)
    assert (before == image(*size)).all() and (boxes.table() == table).all()
    assert drawn.shape == before.shape and drawn.dtype == np.uint8 and (drawn != before).any()
    nothing = draw_boxes(before, Boxes.empty(), names, hide_conf=hide_conf)
    assert (nothing == before).all() and not np.shares_memory(nothing, before)


def test_a_thousand_boxes_are_drawn_in_time() -> None:
    boxes, start = crowd(1000, (1080, 1920)), time.process_time()
    draw_boxes(image(1080, 1920), boxes, NAMES)
    assert time.process_time() - start < 10


def test_class_names_find_a_font(caplog: pytest.LogCaptureFixture) -> None:
    assert font_file("Bär δοκιμή проверка") == DEJAVU
    others = {c for p in Path(DEJAVU).parent.glob("STIX*.ttf") for c in characters(str(p))} - characters(DEJAVU)
    rare = next(chr(c) for c in sorted(others) if not chr(c).isspace())
    assert ord(rare) in characters(font_file(f"a{rare}"))
    assert ord(rare) in characters(font_file(f"{rare}\U0010fffd"))  # one of two is better than none
    assert font_file("\U0010fffd") == DEJAVU and "no installed font" in caplog.text
    tofu = label_font(20).getmask("\uffff").getbbox()
    assert label_font(20).getmask("ß").getbbox() != tofu


def test_a_font_without_outlines_is_not_used(tmp_path: Path) -> None:
    """As of colored emoji: it cannot be drawn at the size of the label."""
    from fontTools.ttLib import TTFont

    with TTFont(DEJAVU) as font:
        del font["glyf"], font["loca"]
        font.save(tmp_path / "bitmaps.ttf")
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert not characters(str(tmp_path / "bitmaps.ttf")) and not characters(str(tmp_path / "broken.ttf"))
    assert ord("a") in characters(DEJAVU)
