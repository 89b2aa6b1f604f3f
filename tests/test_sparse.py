"""Sparse decoding: the rows that can pass the threshold are those of the dense decoding to the bit, and no others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import noise
from shared import shared
from tiny import NAMES, tiny_model

from models.heads import Decoupled, Detect, DetectV8, Head
from models.runtimes.ensemble import Augmented, Ensemble, in_order
from models.runtimes.exported import ExportedBackend
from models.runtimes.load import load_backend
from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint, save_checkpoint
from models.yolo import DetectionModel
from utils.backend import rows_above
from utils.boxes import Boxes
from utils.evaluate.evaluation import run_network
from utils.images import imread, letterbox, to_input
from utils.nms import NmsSettings, non_max_suppression
from utils.predict.predictor import Predictor

CPU = torch.device("cpu")
HEADS = {
    "Detect": lambda nc: Detect(nc, [[10, 13, 16, 30, 33, 23], [30, 61, 62, 45, 59, 119]], [8, 8]),
    "Decoupled": lambda nc: Decoupled(nc, [8, 8]),
    "DetectV8": lambda nc: DetectV8(nc, [8, 8]),
    "DetectV8, no bins": lambda nc: DetectV8(nc, [8, 8], reg_max=1),
}


def raw_maps(head: Head, images: int, seed: int, shift: float) -> list[torch.Tensor]:
    """Random raw maps of levels of 32 x 16 and 16 x 8 cells; `shift` is added to all numbers."""
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(images, 8, h, h // 2, generator=generator) for h in (32, 16)]
    with torch.inference_mode():
        channels = [level.shape[1] for level in head.maps(features)]
    sizes = zip(channels, features, strict=True)
    return [2.5 * torch.randn(images, c, *level.shape[-2:], generator=generator) + shift for c, level in sizes]


def make_head(name: str, nc: int = 3) -> Head:
    head = HEADS[name](nc).eval()
    head.stride.copy_(torch.tensor([8.0, 16.0]))
    return head


def same(a: list[Boxes], b: list[Boxes]) -> bool:
    pairs = [
        (getattr(x, key), getattr(y, key)) for x, y in zip(a, b, strict=True) for key in ("xyxy", "label", "score")
    ]
    return all(p.dtype == q.dtype and np.array_equal(p, q) for p, q in pairs)


class Counting:
    """Counts the rows that a head decodes."""

    def __init__(self, head: Head, monkeypatch: pytest.MonkeyPatch):
        self.rows, dense, some = 0, head.decode, head.decode_rows
        monkeypatch.setattr(head, "decode", lambda level, i: self.add(dense(level, i)))
        monkeypatch.setattr(head, "decode_rows", lambda *where: self.add(some(*where)))

    def add(self, rows: torch.Tensor) -> torch.Tensor:
        self.rows += rows[..., 0].numel()
        return rows


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("least", [0.9, 0.5, 0.25, 0.05])
def test_rows_are_those_of_the_dense_decoding(name, least, monkeypatch):
    head = make_head(name, nc=16)
    with torch.inference_mode():
        maps = raw_maps(head, 3, seed=1, shift=-9.0 if "V8" in name else -5.0)
        dense = head.decode_all(maps)
        wanted = (dense[..., 4] * dense[..., 5:].max(dim=-1).values) > least
        bound = dense[..., 4] if name in ("Detect", "Decoupled") else dense[..., 5:].max(dim=-1).values
        counting = Counting(head, monkeypatch)
        found = head.decode_above(maps, least)
        for rows, all_rows, confidence, needed in zip(found, dense, bound, wanted, strict=True):
            near = confidence > least - 1e-6
            assert torch.equal(rows, all_rows[near]), "bits and order"
            assert not (needed & ~near).any()
        passing = int((bound > least - 1e-6).sum())
        assert counting.rows == passing < bound.numel() / 3
        assert passing > 0 or least == 0.9


@pytest.mark.parametrize("name", HEADS)
def test_where_many_pass_all_are_decoded_once(name, monkeypatch):
    head = make_head(name)
    with torch.inference_mode():
        maps = raw_maps(head, 2, seed=2, shift=1.0)
        dense = head.decode_all(maps)
        counting = Counting(head, monkeypatch)
        found = head.decode_above(maps, 0.01)
        assert counting.rows == dense.shape[0] * dense.shape[1]
        assert all(torch.equal(rows, own) for rows, own in zip(found, dense, strict=True))
        assert [len(rows) for rows in head.decode_above(maps, 0.0)] == [dense.shape[1]] * 2


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("multi_label", [False, True])
def test_boxes_at_thresholds_that_are_scores(name, multi_label):
    """The comparison with the threshold is that of NMS, whatever the last bit of a sigmoid is."""
    head = make_head(name, nc=16)
    with torch.inference_mode():
        maps = raw_maps(head, 2, seed=3, shift=-3.0)
        dense = head.decode_all(maps)
        column = dense[..., 4] if name in ("Detect", "Decoupled") else dense[..., 5]
        for value in column.flatten().sort(descending=True).values[10:400:30].tolist():
            settings = NmsSettings(value, 0.5, multi_label=multi_label)
            assert same(
                non_max_suppression(head.decode_above(maps, value), settings), non_max_suppression(dense, settings)
            )


def test_nothing_and_not_a_number():
    head = make_head("Detect")
    maps = [torch.full_like(level, -9.0) for level in raw_maps(head, 2, seed=0, shift=0.0)]
    assert [tuple(rows.shape) for rows in head.decode_above(maps, 0.5)] == [(0, 8)] * 2
    maps[0][1, 4, 0, 0] = torch.nan
    assert [len(rows) for rows in head.decode_above(maps, 0.5)] == [0, 1]
    assert [len(boxes) for boxes in non_max_suppression(head.decode_above(maps, 0.5))] == [0, 0]


def test_half_precision_maps():
    head = make_head("Detect", nc=16)
    maps = [level.half() for level in raw_maps(head, 1, seed=5, shift=-4.0)]
    dense = head.decode_all(maps)[0]
    assert torch.equal(head.decode_above(maps, 0.3)[0], dense[dense[:, 4] > 0.3 - 1e-6])


def test_a_head_that_knows_no_confidence_decodes_all():
    class Plain(Detect):
        def confidence(self, level):
            return None

    head = Plain(3, [[10, 13], [30, 61]], [8, 8]).eval()
    maps = raw_maps(head, 2, seed=6, shift=-5.0)
    assert torch.equal(torch.stack(head.decode_above(maps, 0.5)), head.decode_all(maps))


def rare_model(seed: int) -> DetectionModel:
    """A tiny model most of whose rows have a low objectness."""
    model = tiny_model(seed)
    with torch.no_grad():
        for conv in model.head.m:
            conv.bias.view(model.head.na, model.head.no)[:, 4] -= 4
    return model


@pytest.fixture
def backend(tmp_path: Path):
    save_checkpoint(tmp_path / "rare.pt", Checkpoint.of(rare_model(0)))
    return load_backend(tmp_path / "rare.pt", CPU)


def test_backends_of_every_kind(backend, tmp_path):
    """Tiles, views and ensembles give the boxes of their dense rows."""
    other = rare_model(1)
    other.names = {i: NAMES[2 - i] for i in NAMES}
    save_checkpoint(tmp_path / "other.pt", Checkpoint.of(other))
    second = load_backend(tmp_path / "other.pt", CPU)
    kinds = [backend, in_order(backend, [2, 0, 1], NAMES), Ensemble([backend, second]), Augmented(backend)]
    images = torch.rand(2, 3, 128, 128)
    for kind in kinds:
        for settings in (NmsSettings(0.4), NmsSettings(0.2, multi_label=True)):
            dense, some = kind(images), rows_above(kind, images, settings.conf_thres)
            assert 0 < sum(map(len, some)) < dense.shape[0] * dense.shape[1]
            assert same(non_max_suppression(some, settings), non_max_suppression(dense, settings))


def test_the_predictor_takes_only_rows_above_its_threshold(backend, monkeypatch):
    image = noise((200, 300), seed=1)
    for tile in (0, 128):
        predictor = Predictor(backend, CPU, 128, NmsSettings(0.3), tile=tile)
        counting = Counting(backend.model.head, monkeypatch)
        boxes = predictor([image])[0].boxes
        some = counting.rows
        with monkeypatch.context() as patch:
            patch.setattr(type(backend), "rows_above", lambda self, images, least: list(self(images)))
            assert same([boxes], [predictor([image])[0].boxes])
        assert 0 < some < (counting.rows - some) / 2


def test_a_file_of_raw_maps_is_decoded_sparsely():
    class Raw(ExportedBackend):
        def __init__(self, head, maps):
            self.detect, self.maps, self.pad = head, maps, lambda images: images
            self.meta = type("Meta", (), {"batch": 2, "dynamic": "none", "form": "raw"})

        def run(self, images):
            assert len(images) == 2
            return [level.numpy() for level in self.maps]

    head = make_head("Detect", nc=16)
    backend = Raw(head, raw_maps(head, 2, seed=7, shift=-5.0))
    images = torch.zeros(3, 3, 8, 8)  # one and a half batches
    dense, some = backend(images), backend.rows_above(images, 0.4)
    assert len(dense) == len(some) == 3
    for rows, own in zip(some, dense, strict=True):
        assert torch.equal(rows, own[own[:, 4] > 0.4 - 1e-6]) and len(rows) < len(own) / 3


def test_validation_decodes_sparsely_and_keeps_the_raw_maps(monkeypatch):
    model = rare_model(0)
    with torch.inference_mode():
        images = torch.rand(2, 3, 64, 64)
        dense, raw = model(images)
        counting = Counting(model.head, monkeypatch)
        some, also_raw = run_network(model, images, 0.3)
        assert counting.rows == sum(map(len, some)) < dense.shape[0] * dense.shape[1]
        assert all(torch.equal(a, b) for a, b in zip(raw, also_raw, strict=True))
        plain, nothing = run_network(lambda x: model(x)[0], images, 0.3)
        assert nothing is None and torch.equal(plain, dense)


def coco_batch(count: int) -> torch.Tensor:
    paths = sorted(shared("datasets/coco128/images").rglob("*.jpg"))[:count]
    canvases = [letterbox(imread(path), (640, 640))[0] for path in paths]
    return to_input(torch.from_numpy(np.stack(canvases).transpose(0, 3, 1, 2).copy()), CPU)


def test_coco128_to_the_bit(monkeypatch):
    """Published weights on photos, at the thresholds of detect.py and val.py; 25,200 rows an image, few are decoded."""
    model: DetectionModel = build_model(load_checkpoint(shared("weights/yolov5n.pt"))).fuse().requires_grad_(False)
    counting = Counting(model.head, monkeypatch)
    with torch.inference_mode():
        for images in coco_batch(6).split(3):
            dense, _ = model(images)
            for settings, share in ((NmsSettings(0.25), 0.01), (NmsSettings(0.001, 0.6, multi_label=True), 0.3)):
                counting.rows = 0
                some, _ = model(images, settings.conf_thres)
                assert counting.rows == sum(map(len, some)) < share * 25_200 * 3
                assert same(non_max_suppression(some, settings), non_max_suppression(dense, settings))
