"""Tracking: pairs, the filter, drawn scenes judged by MOTA, IDF1 and switches, gaps; counts of hand-made paths."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scenes import Quality, Scene, best_total, quality, scenes

from utils.boxes import Boxes, Tracked
from utils.track.assignment import best_pairs
from utils.track.bytetrack import Tracker, TrackSettings
from utils.track.counting import Area, AreaCounter, parse_areas
from utils.track.kalman import Kalman

SIZE = (100, 200)


def track(found: list[Boxes], numbers: list[int] | None = None, **settings: float) -> list[Tracked]:
    tracker = Tracker(TrackSettings(**settings))  # type: ignore[arg-type]
    return [tracker(boxes, k) for k, boxes in zip(numbers or range(1, len(found) + 1), found, strict=True)]


def at(x: float, y: float = 50, score: float = 0.9, label: int = 0, side: float = 20) -> Boxes:
    """One box around a point."""
    h = side / 2
    return Boxes(np.array([[x - h, y - h, x + h, y + h]]), np.array([label]), np.array([score]))


def ids(tracked: list[Tracked]) -> list[list[int]]:
    return [boxes.identity.tolist() for boxes in tracked]


# ---- pairs and the filter -------------------------------------------------------------------------------------------


def test_pairs_have_the_largest_total() -> None:
    rng = np.random.default_rng(0)
    for _ in range(150):
        n, m = rng.integers(0, 7, 2)
        gain = np.where(rng.random((n, m)) < 0.6, rng.integers(-2, 6, (n, m)), 0).astype(float)
        rows, columns = best_pairs(gain)
        assert len(set(rows.tolist())) == len(rows) and len(set(columns.tolist())) == len(columns)
        assert (gain[rows, columns] > 0).all()
        assert gain[rows, columns].sum() == best_total(gain)[0]


def test_pairs_equal_those_of_scipy() -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed: nothing to compare with")
    rng = np.random.default_rng(1)
    for shape in ((30, 45), (60, 60), (50, 20)):
        gain = rng.random(shape)
        rows, columns = optimize.linear_sum_assignment(gain, maximize=True)
        own = best_pairs(gain)
        assert own[0].tolist() == rows.tolist() and own[1].tolist() == columns.tolist()


def test_filter_finds_the_speed_and_goes_on_without_boxes() -> None:
    rng = np.random.default_rng(0)
    truth = [np.array([[10 + 3 * t, 20 - t, 50 + 3 * t, 80 - t]], float) for t in range(60)]
    kalman = Kalman(truth[0])
    for box in truth[1:40]:
        kalman.predict(1)
        kalman.update(np.array([0]), box + rng.normal(0, 1, box.shape))
    assert np.allclose(kalman.speed[0], [3, -1, 0, 0], atol=0.5)
    for _ in range(10):
        kalman.predict(1)
    assert np.abs(kalman.xyxy - truth[49]).max() < 6  # ten frames unseen
    before = kalman.var.copy()
    kalman.update(np.array([0]), truth[49])
    assert (kalman.var < before).all()


def test_one_step_of_many_frames_is_many_steps() -> None:
    boxes = np.array([[10, 20, 50, 80], [0, 0, 9, 9]], float)
    once, often = Kalman(boxes), Kalman(boxes)
    for kalman in (once, often):
        kalman.predict(1)
        kalman.update(np.array([0]), boxes[:1] + 4)
    once.predict(5)
    for _ in range(5):
        often.predict(1)
    assert np.allclose(once.value, often.value) and once.speed[0, 0] > 1


# ---- drawn scenes ---------------------------------------------------------------------------------------------------

# MOTA and IDF1 at least, identities of objects that change at most. Detections that are missing bound MOTA.
LEAST = {
    "walkers": Quality(0.99, 0.99, 0),
    "crossing": Quality(0.95, 0.97, 0),
    "behind a pole": Quality(0.92, 0.95, 0),
    "crowd": Quality(0.97, 0.98, 0),
    "entering and leaving": Quality(0.98, 0.99, 0),
    "curves": Quality(0.99, 0.99, 0),
    "missed detections": Quality(0.73, 0.84, 0),
    "false detections": Quality(0.98, 0.99, 0),
    "all of it": Quality(0.81, 0.89, 1),
}


@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene.name)
def test_objects_keep_their_identities(scene: Scene) -> None:
    tracked, least = track(scene.found), LEAST[scene.name]
    result = quality(scene.truth, tracked)
    assert result.mota >= least.mota and result.idf1 >= least.idf1 and result.switches <= least.switches, result
    assert ids(track(scene.found)) == ids(tracked)


def test_measures_see_what_is_wrong() -> None:
    """So that a perfect result of the tests above is not one of the measures."""
    scene = scenes()[1]
    assert quality(scene.truth, scene.truth) == Quality(1.0, 1.0, 0)
    swapped = [
        boxes if k < 55 else Tracked(boxes.xyxy, boxes.label, boxes.score, 3 - boxes.identity)
        for k, boxes in enumerate(scene.truth)
    ]
    result = quality(scene.truth, swapped)
    assert result.switches == 2 and 0.45 < result.idf1 < 0.55 and result.mota == pytest.approx(1 - 2 / 220, abs=0.01)
    nothing = [boxes[:0] for boxes in scene.truth]
    assert quality(scene.truth, nothing) == Quality(0.0, 0.0, 0)


def test_measures_equal_those_of_motmetrics() -> None:
    mm = pytest.importorskip("motmetrics", reason="motmetrics is not installed: nothing to compare with")
    from utils.boxes import pairwise_iou

    for scene in scenes():
        tracked = track(scene.found, iou_new=0.6, keep=3)  # a bad tracker, so that there is something to count
        accumulator = mm.MOTAccumulator(auto_id=True)
        for real, own in zip(scene.truth, tracked, strict=True):
            iou = pairwise_iou(real.xyxy.astype(float), own.xyxy.astype(float))
            accumulator.update(real.identity, own.identity, np.where(iou >= 0.5, 1 - iou, np.nan))
        row = mm.metrics.create().compute(accumulator, metrics=["mota", "idf1", "num_switches"]).iloc[0]
        result = quality(scene.truth, tracked)
        assert (result.mota, result.idf1, result.switches) == pytest.approx(tuple(row), abs=1e-9), scene.name


# ---- rules of the tracker -------------------------------------------------------------------------------------------


def test_frames_without_boxes() -> None:
    empty = Boxes.empty()
    assert ids(track([empty, empty, at(50), at(51), empty, at(53)])) == [[], [], [], [1], [], [1]]
    assert ids(track([empty])) == [[]] and ids(track([])) == []


def test_a_box_of_one_frame_is_no_object_but_in_the_first() -> None:
    assert ids(track([at(50), at(150), at(52), at(150), at(54), at(150)])) == [[1], [], [1], [], [1], []]


def test_low_scores_continue_a_track_but_begin_none() -> None:
    assert ids(track([at(50, score=0.2), at(50, score=0.2), at(50, score=0.2)])) == [[], [], []]
    assert ids(track([at(50), at(51, score=0.15), at(52, score=0.12), at(53)])) == [[1]] * 4
    assert ids(track([at(50), at(51, score=0.05)])) == [[1], []]
    assert ids(track([at(50, score=0.6), at(51, score=0.3)], score=0.5)) == [[1], [1]]


def test_classes_are_not_mixed() -> None:
    both = Boxes.join([at(50, label=0), at(53, label=1)])
    other = both[np.array([1, 0])]
    tracked = track([both, other, both])
    assert [dict(zip(t.label.tolist(), t.identity.tolist(), strict=True)) for t in tracked] == [{0: 1, 1: 2}] * 3
    assert ids(track([at(50, label=0), at(50, label=1), at(50, label=1)])) == [[1], [], [2]]


def test_objects_come_back_within_the_time_and_not_after() -> None:
    shown = [at(50 + k) for k in range(5)]
    for away, same in ((29, True), (31, False)):
        tracked = track([*shown, *[Boxes.empty()] * away, at(55 + away), at(56 + away)])
        assert (tracked[-1].identity.tolist() == [1]) == same


def test_frames_that_are_left_out_or_lost() -> None:
    """Every 5th frame, every 10th, and a gap of some frames: objects are where their speed has brought them."""
    path = [at(20 + 0.8 * k) for k in range(120)]
    for step in (5, 10):
        tracked = track(path[::step], list(range(1, 121, step)))
        assert ids(tracked) == [[1]] * len(tracked)
    numbers = [*range(1, 21), *range(46, 61)]
    assert ids(track([at(20 + 2 * k) for k in numbers], numbers)) == [[1]] * len(numbers)
    numbers = [*range(1, 21), *range(1000, 1003)]
    assert ids(track([at(50) for _ in numbers], numbers)) == [[1]] * 20 + [[], [2], [2]]
    assert ids(track([at(50)] * 4, [7, 8, 8, 3])) == [[1]] * 4  # a source that numbers its frames wrongly


def test_boxes_keep_order_score_and_place() -> None:
    boxes = Boxes.join([at(150, score=0.9), at(50, score=0.8), at(100, score=0.7)])
    for tracked in track([boxes, boxes]):
        assert tracked.identity.tolist() == [1, 2, 3] and (tracked.xyxy == boxes.xyxy).all()
        assert tracked.score.tolist() == boxes.score.tolist()


# ---- counting -------------------------------------------------------------------------------------------------------

LINE = Area("line", "line 1", ((100, 0), (100, 100)), False)  # downwards: its right-hand side is at the left, x < 100
ZONE = Area("zone", "zone 1", ((80, 20), (120, 20), (120, 80), (80, 80)), False)


def count(area: Area, *paths: list[tuple[float, float]], labels: tuple[int, ...] = ()) -> dict[tuple[int, str], int]:
    """Counts of objects of 20 x 20 pixels whose centers are those of `paths`; None: not seen in that frame."""
    counter = AreaCounter(area)
    everyone = np.arange(1, len(paths) + 1)
    for places in zip(*paths, strict=True):
        seen = [k for k, place in enumerate(places) if place is not None]
        rows = [np.array([places[k][0] - 10, places[k][1] - 10, places[k][0] + 10, places[k][1] + 10]) for k in seen]
        label = np.array([labels[k] if labels else 0 for k in seen], int)
        boxes = Tracked(np.array(rows, float).reshape(-1, 4), label, np.ones(len(seen)), everyone[seen])
        counter(boxes, SIZE, everyone)
    return dict(counter.counts)


def across(*xs: float, y: float = 50) -> list[tuple[float, float]]:
    return [(x, y) for x in xs]


IN, OUT = (0, "in"), (0, "out")
LINE_CASES = {
    "to the right": (across(80, 90, 110, 120), {OUT: 1}),
    "to the left": (across(120, 110, 90, 80), {IN: 1}),
    "back and forth": (across(80, 95, 110, 120, 110, 90, 80, 120), {OUT: 2, IN: 1}),
    "along it": ([(98, y) for y in range(0, 100, 10)], {}),
    "along it, trembling": ([(99 if y % 20 else 101, y) for y in range(0, 100, 10)], {}),
    "touching": (across(80, 90, 99, 100, 99, 90, 80), {}),
    "stopping on it": (across(80, 90, 100, 100.5, 99.5, 100, 101, 100), {}),
    "stopping on it, then on": (across(80, 90, 100, 99.5, 100, 101, 100, 110, 120), {OUT: 1}),
    "stopping on it, then back": (across(80, 90, 100, 99.5, 100.5, 100, 90, 80), {}),
    "beginning on it": (across(100, 100, 110, 120), {}),
    "in one step": (across(10, 190), {OUT: 1}),
    "around the end": ([(80, 90), (80, 120), (120, 120), (120, 90)], {}),
    "around the end and back through": ([(80, 90), (80, 120), (120, 120), (120, 90), (80, 90)], {IN: 1}),
    "through and back around the end": ([(80, 90), (120, 90), (120, 120), (80, 120), (80, 90)], {OUT: 1}),
    "through an end": ([(80, 100), (120, 100)], {OUT: 1}),
    "past it in its extension": ([(80, 110), (120, 110)], {}),
}


@pytest.mark.parametrize("case", LINE_CASES)
def test_counts_at_a_line(case: str) -> None:
    path, expected = LINE_CASES[case]
    assert count(LINE, path) == expected
    assert count(LINE, path[::-1]) == {(k, "in" if way == "out" else "out"): n for (k, way), n in expected.items()} or (
        case == "beginning on it"
    )


def test_two_objects_cross_at_once() -> None:
    right, left = across(80, 95, 105, 120), across(120, 105, 95, 80)
    assert count(LINE, right, left) == {OUT: 1, IN: 1}
    assert count(LINE, right, right, left, labels=(0, 2, 2)) == {OUT: 1, (2, "out"): 1, (2, "in"): 1}


def test_an_object_that_is_not_seen_on_the_line_counts() -> None:
    gap = [(80, 50), None, None, (120, 50)]
    assert count(LINE, gap) == {OUT: 1}  # type: ignore[arg-type]
    forgotten = AreaCounter(LINE)
    for x, alive in ((80, [1]), (80, []), (120, [1])):
        forgotten(Tracked(*_fields(x)), SIZE, np.array(alive))
    assert not forgotten.counts and len(forgotten.passages) == 1


def _fields(x: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    boxes = at(x)
    return boxes.xyxy, boxes.label, boxes.score, np.array([1])


ZONE_CASES = {
    "enters": (across(50, 75, 90, 100), {IN: 1}),
    "leaves": (across(100, 110, 125, 150), {OUT: 1}),
    "enters, leaves, enters": (across(50, 100, 150, 100), {IN: 2, OUT: 1}),
    "leaves and comes back": (across(100, 150, 100), {OUT: 1, IN: 1}),
    "touches it": (across(50, 79, 80, 79, 50), {}),
    "trembles on its edge": (across(50, 79, 81, 79, 81, 79), {}),
    "appears and stays": (across(100, 101, 100), {}),
    "vanishes in it": (across(50, 100, 100), {IN: 1}),
    "passes beside": (across(50, 100, 150, y=90), {}),
    "jumps over it": (across(50, 150), {}),
}


@pytest.mark.parametrize("case", ZONE_CASES)
def test_counts_in_a_zone(case: str) -> None:
    path, expected = ZONE_CASES[case]
    assert count(ZONE, path) == expected


def test_who_is_in_a_zone_now() -> None:
    counter = AreaCounter(ZONE)
    inside = []
    for x, alive in ((50, [1]), (100, [1]), (150, [1]), (100, [1]), (100, [])):
        counter(Tracked(*_fields(x)), SIZE, np.array(alive))
        inside.append(counter.inside())
    assert inside == [0, 1, 0, 1, 0]


def test_nothing_to_count() -> None:
    assert count(LINE) == {} and count(ZONE, [None, None]) == {}  # type: ignore[list-item]


def test_counts_of_tracked_scenes() -> None:
    """Walkers that cross the middle of the image: counted by tracking as by the truth."""
    for scene in scenes():
        area = parse_areas("line", ["0.5,0,0.5,1"])[0]
        real, own, tracker = AreaCounter(area), AreaCounter(area), Tracker()
        for number, (truth, found) in enumerate(zip(scene.truth, scene.found, strict=True), start=1):
            real(truth, (360, 640), np.arange(100))
            own(tracker(found, number), (360, 640), tracker.identity)
        assert own.counts == real.counts, scene.name


@pytest.mark.parametrize(
    ("kind", "text", "fractions"),
    [
        ("line", "0,0.5,1,0.5", True),
        ("line", "0,0,1,1", True),
        ("line", "10,20,30,40.5", False),
        ("zone", "0,0,100,0,100,100", False),
        ("zone", "0.1,0.1,0.9,0.1,0.9,0.9,0.1,0.9", True),
    ],
)
def test_areas_in_pixels_and_fractions(kind: str, text: str, fractions: bool) -> None:
    (area,) = parse_areas(kind, [text])
    assert area.fractions == fractions and ("fractions" if fractions else "pixels") in str(area)
    numbers = np.array(text.split(","), float).reshape(-1, 2)
    assert np.allclose(area.pixels((100, 200)), numbers * ([200, 100] if fractions else 1))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("line", "1,2,3", "3 numbers, expected x1,y1,x2,y2"),
        ("line", "1,2,3,4,5,6", "6 numbers"),
        ("line", "a,b,c,d", "expected x1,y1,x2,y2, pixels or fractions"),
        ("line", "", "expected x1,y1,x2,y2"),
        ("line", "5,5,5,5", "both ends are the same point"),
        ("line", "0.5,0,300,200", "fractions and pixels are mixed"),
        ("line", "-1,0,300,200", "expected numbers from 0"),
        ("line", "nan,0,300,200", "expected numbers from 0"),
        ("zone", "1,2,3,4", "4 numbers, expected x1,y1,x2,y2,x3,y3,... of three corners or more"),
        ("zone", "1,2,3,4,5", "5 numbers"),
        ("zone", "0,0,10,10,20,20", "has no area"),
        ("zone", ",".join("1" * 4000), "4000 numbers"),
    ],
)
def test_areas_that_are_none(kind: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"--count-{kind}") as caught:
        parse_areas(kind, [text])
    assert message in str(caught.value) and len(str(caught.value)) < 400


def test_a_slanted_line_has_its_right_hand_side() -> None:
    slanted = Area("line", "line 1", ((0, 0), (100, 100)), False)
    below, above = (20.0, 80.0), (80.0, 20.0)
    assert count(slanted, [above, below]) == {IN: 1} and count(slanted, [below, above]) == {OUT: 1}
    assert math.isclose(AreaCounter(slanted).points.size, 0)
