"""From images to boxes: batches of mixed sizes, tiles, test-time augmentation, ensembles."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from blobs import BlobBackend, draw

from models.runtimes.ensemble import Augmented, Ensemble
from models.runtimes.load import load_model
from utils.nms import non_max_suppression
from utils.predict.predictor import Predictor, class_indices
from utils.tiles import OVERLAP, tiles

CPU = torch.device("cpu")


def sorted_boxes(found):
    xyxy = found.boxes.xyxy
    return xyxy[np.lexsort(xyxy.T[::-1].round())]


def same(a, b):
    """Whether two Boxes are equal to the bit."""
    return len(a) == len(b) and bool((a.table() == b.table()).all())


def test_a_batch_of_mixed_sizes_equals_one_by_one() -> None:
    sizes = [(96, 128), (128, 96), (96, 128), (300, 70), (200, 200)]
    images = [draw(size, [[5, 6, 35 + 3 * k, 30]]) for k, size in enumerate(sizes)]
    predictor = Predictor(BlobBackend(), CPU, 128)
    together = predictor(images)
    assert max(shape[0] for shape in predictor.backend.seen) == 2
    for k, (image, found) in enumerate(zip(images, together, strict=True)):
        single = predictor([image])[0]
        assert same(single.boxes, found.boxes) and single.canvas == found.canvas
        assert found.boxes.xyxy[0] == pytest.approx([5, 6, 35 + 3 * k, 30], abs=3)
    assert predictor([]) == []


@pytest.mark.parametrize(
    ("size", "side"), [((1000, 1500), 400), ((401, 400), 400), ((300, 200), 400), ((90, 4000), 250)]
)
def test_tiles_cover_everything_and_overlap(size: tuple[int, int], side: int) -> None:
    seen = np.zeros(size, int)
    places = list(tiles(size, side))
    for rows, columns in places:
        seen[rows, columns] += 1
        assert (rows.stop - rows.start, columns.stop - columns.start) == (side, side)
        assert rows.start >= 0 and columns.start >= 0
    assert seen.min() >= 1
    for axis in (0, 1):
        starts = sorted({place[axis].start for place in places})
        assert all(b - a <= side * (1 - OVERLAP) + 1 for a, b in pairwise(starts))
    assert len(places) == 1 or max(size) > side


def test_tiles_find_what_is_too_small_and_keep_what_is_large() -> None:
    small = [[x, y, x + 24, y + 16] for x in range(40, 1900, 310) for y in range(30, 1400, 290)]
    large = [[900, 500, 1900, 1400]]
    small = [b for b in small if not (b[2] > 880 and b[3] > 480)]
    image = draw((1500, 2000), small + large)
    whole = Predictor(BlobBackend(least=6), CPU, 320)([image])[0]
    assert len(whole.boxes) == 1  # the large one
    tiled = Predictor(BlobBackend(least=6), CPU, 320, tile=320)([image])[0]
    expected = np.array(sorted(small + large), dtype=float)
    assert sorted_boxes(tiled) == pytest.approx(expected[np.lexsort(expected.T[::-1])], abs=7)
    assert tiled.boxes.xyxy.min() >= 0
    tiny = draw((100, 100), [[10, 10, 40, 30]])
    tiled = Predictor(BlobBackend(), CPU, 320, tile=320)([tiny])[0]
    assert len(tiled.boxes) == 1 and same(tiled.boxes, Predictor(BlobBackend(), CPU, 320)([tiny])[0].boxes)
    with pytest.raises(ValueError, match="--tile -5"):
        Predictor(BlobBackend(), CPU, 320, tile=-5)


def test_views_come_back_to_the_same_place() -> None:
    boxes = [[20, 30, 120, 90], [180, 100, 230, 220]]
    image = torch.from_numpy(draw((256, 320), boxes)).permute(2, 0, 1)[None].float() / 255
    backend = BlobBackend()
    rows = Augmented(backend)(image)[0]
    assert rows.shape == (120, 7)
    sides = [shape[2:] for shape in backend.seen]
    assert sides == [(256, 320), (224, 288), (192, 224)] and all(s % 32 == 0 for side in sides for s in side)
    found = rows[rows[:, 4] > 0]
    assert len(found) == 6
    for (x1, y1, x2, y2), label in zip(boxes, (0, 1), strict=True):
        mine = found[found[:, 5 + label] > 0]
        assert len(mine) == 3
        target = torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
        assert (mine[:, :4] - target).abs().max() < 3
    assert len(non_max_suppression(rows[None])[0]) == 2


def test_an_ensemble_agrees_or_refuses(tmp_path) -> None:
    image = torch.from_numpy(draw((64, 64), [[8, 8, 40, 30]])).permute(2, 0, 1)[None].float() / 255
    other = BlobBackend()
    other.grid = 48
    pair = Ensemble([BlobBackend(), other])
    assert pair(image).shape == (1, 80, 7) and pair.grid == 96
    assert len(non_max_suppression(pair(image))[0]) == 1
    other.names = {0: "a", 1: "b"}
    with pytest.raises(ValueError, match="expected the same names, in any order"):
        Ensemble([BlobBackend(), other])
    for nothing in ("", (), ("",)):
        with pytest.raises(ValueError, match="--weights is missing"):
            load_model(nothing, CPU)
    with pytest.raises(FileNotFoundError):
        load_model((str(tmp_path / "a.pt"), "b.pt"), CPU)


def test_classes_by_name_and_index() -> None:
    names = {0: "cat", 1: "7", 2: "dog"}
    assert class_indices(["dog", "0", 1, "dog"], names) == (2, 0, 1)
    assert class_indices([], names) == ()
    assert class_indices(["7"], names) == (1,)  # no index, but a name
    assert class_indices(["1"], {0: "1", 1: "0"}) == (1,)  # an index, with a warning
    for word in (7, "cow", "-1"):
        with pytest.raises(ValueError, match=f"--classes {word}: expected a name or 0..2"):
            class_indices([word], names)
