"""What decoding, NMS, metrics and attention cost, each against the plain way to do it; rows for a benchmark's table.

Every function returns rows of (name, milliseconds of the plain way, milliseconds now), of CPU time of one thread: the
least of several calls in turns, so that whatever else the machine does slows both alike.

python tools/bench_core.py
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
import torch.nn.functional as F
from faster_coco_eval import COCO, COCOeval_faster
from torch import Tensor
from torchvision.ops import batched_nms

from models.common import Attention, MobileViTBlock
from models.heads import Detect
from models.yolo import DetectionModel
from utils.boxes import Boxes, Truth, areas, xywh2xyxy
from utils.evaluate.coco import detection_limits
from utils.evaluate.groups import AREAS
from utils.evaluate.matching import MATCH_IOU, covered, match_greedily
from utils.evaluate.metrics import DetectionMetrics
from utils.nms import NmsSettings, non_max_suppression

ROUNDS = 7


class BenchRow(NamedTuple):
    """One line of a table; milliseconds of CPU time."""

    name: str
    plain_ms: float
    now_ms: float

    @property
    def ratio(self) -> float:
        """How many times faster it is now."""
        return self.plain_ms / self.now_ms


def in_turns(calls: list[Callable[[], object]], rounds: int = ROUNDS) -> list[float]:
    """Least milliseconds of CPU time of each call; the first turn does not count."""
    best = [math.inf] * len(calls)
    for turn in range(rounds + 1):
        for i, call in enumerate(calls):
            start = time.process_time()
            call()
            if turn or not rounds:
                best[i] = min(best[i], 1000 * (time.process_time() - start))
    return best


def trained_like(nc: int = 80, share: float = 0.002) -> DetectionModel:
    """yolov5n with random weights whose objectness passes 0.25 in about `share` of the rows of an image of noise."""
    torch.manual_seed(0)
    model = DetectionModel("yolov5n.yaml", nc=nc).fuse().requires_grad_(False)
    with torch.inference_mode():
        _, raw = model(torch.rand(1, 3, 640, 640))
        logits = torch.cat([level[..., 4].flatten() for level in raw])
        shift = math.log(0.25 / 0.75) - logits.quantile(1 - share).item()
    head = cast(Detect, model.head)
    for conv in head.m:
        cast(Tensor, conv.bias).view(head.na, head.no)[:, 4] += shift
    return model


@torch.inference_mode()
def decode_rows(imgsz: int = 640, least: float = 0.25, rounds: int = ROUNDS) -> list[BenchRow]:
    """Decoding of yolov5n at a confidence threshold, the whole head, and the whole network, all rows against some."""
    model, images, kept = trained_like(), torch.rand(1, 3, imgsz, imgsz), list[list[Tensor]]()
    hook = model.head.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    model(images)
    hook.remove()
    head, features = model.head, kept[0]
    maps = head.maps(features)
    calls = [
        lambda: head.decode_all(maps),
        lambda: head.decode_above(maps, least),
        lambda: head(features),
        lambda: head(features, least),
        lambda: model(images),
        lambda: model(images, least),
    ]
    ms = in_turns(calls, rounds)
    names = (f"yolov5n at {imgsz}, conf {least:g}: decoding", "the whole head", "the whole network")
    return [BenchRow(name, ms[2 * i], ms[2 * i + 1]) for i, name in enumerate(names)]


def crowded_rows(rows: int = 2500, nc: int = 80, seed: int = 0) -> Tensor:
    """(25,200, 5+nc): decoded rows of a busy image; `rows` around 40 objects pass 0.001, most in few classes."""
    g = torch.Generator().manual_seed(seed)
    decoded = torch.rand(25_200, 5 + nc, generator=g)
    decoded[:, 4:] *= 1e-4
    own = torch.randperm(25_200, generator=g)[:rows].sort().values
    about, label = torch.randint(40, (rows,), generator=g), torch.randint(8, (40,), generator=g) * 9
    centers, sizes = 640 * torch.rand(40, 2, generator=g), 20 + 150 * torch.rand(40, 2, generator=g)
    decoded[own, :2] = centers[about] + 0.2 * sizes[about] * torch.randn(rows, 2, generator=g)
    decoded[own, 2:4] = sizes[about] * (0.6 + 0.8 * torch.rand(rows, 2, generator=g))
    decoded[own, 4] = 0.0012 + torch.rand(rows, generator=g) ** 6
    decoded[own, 5 + label[about]] = 0.9 + 0.1 * torch.rand(rows, generator=g)
    for other in torch.randint(nc, (2, rows), generator=g):
        decoded[own, 5 + other] += 0.2 * torch.rand(rows, generator=g) * (torch.rand(rows, generator=g) < 0.3)
    return decoded


def plain_nms(rows: Tensor, settings: NmsSettings) -> list[Tensor]:
    """Corners, classes and scores of the final boxes of (N, 5+nc): every candidate sorted, then torchvision's NMS."""
    rows = rows[rows[:, 4] > settings.conf_thres]
    scores = rows[:, 5:] * rows[:, 4:5]
    box, label = (scores > settings.conf_thres).nonzero(as_tuple=True)
    order = scores[box, label].argsort(descending=True, stable=True)
    box, label = box[order], label[order]
    xyxy, score = xywh2xyxy(rows[box, :4]), scores[box, label]
    keep = batched_nms(xyxy, score, label, settings.iou_thres)[: settings.max_det]
    return [xyxy[keep], label[keep], score[keep]]


@torch.inference_mode()
def nms_rows(rounds: int = ROUNDS) -> list[BenchRow]:
    """NMS of a busy image with the settings of val.py: of all rows in the plain way, of the sparse ones now."""
    settings, decoded = NmsSettings(0.001, 0.6, multi_label=True), crowded_rows()
    sparse = [decoded[decoded[:, 4] > settings.conf_thres]]
    ms = in_turns([lambda: plain_nms(decoded, settings), lambda: non_max_suppression(sparse, settings)], rounds)
    return [BenchRow("NMS at conf 0.001, a busy image", *ms)]


def random_detections(images: int, detections: int = 300, nc: int = 80, seed: int = 0) -> list[tuple[Boxes, Truth]]:
    """Of each image of 640 x 640 detections, best first, a third of them near its 1 to 14 labels."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(images):
        count = int(rng.integers(1, 15))
        low = rng.uniform(0, 500, (count, 2))
        truth = np.concatenate([low, low + rng.uniform(8, 140, (count, 2))], axis=1)
        label, about = rng.integers(0, nc, count), rng.integers(0, count, detections)
        near = rng.random(detections) < 0.3
        low = rng.uniform(0, 560, (detections, 2))
        far = np.concatenate([low, low + rng.uniform(5, 80, (detections, 2))], axis=1)
        xyxy = np.where(near[:, None], truth[about] + rng.normal(0, 4, (detections, 4)), far)
        xyxy[:, 2:] = np.maximum(xyxy[:, 2:], xyxy[:, :2] + 1)
        own = np.where(near & (rng.random(detections) < 0.8), label[about], rng.integers(0, nc, detections))
        score = np.sort(rng.beta(0.3, 3, detections))[::-1]
        labels = Truth(truth, label, np.ones(count), rng.random(count) < 0.02, areas(truth))
        out.append((Boxes(xyxy.astype(np.float32), own, score.astype(np.float32)), labels))
    return out


def collected(images: list[tuple[Boxes, Truth]], nc: int = 80, max_det: int = 300) -> DetectionMetrics:
    """The metrics of these images, not computed yet."""
    metrics = DetectionMetrics({i: str(i) for i in range(nc)}, max_det)
    for found, truth in images:
        metrics.update(found, truth, (640, 640))
    return metrics


def plain_coco(metrics: DetectionMetrics) -> tuple[np.ndarray, np.ndarray]:
    """COCO's arrays precision and recall by faster-coco-eval, see CocoResult."""
    truth, found = metrics.coco_annotations()
    images = [{"id": i, "height": h, "width": w} for i, (h, w) in enumerate(metrics.sizes)]
    shared = {"images": images, "categories": [{"id": c, "name": name} for c, name in metrics.names.items()]}
    evaluation = COCOeval_faster(
        COCO(shared | {"annotations": truth}),
        COCO(shared | {"annotations": found}),
        iouType="bbox",
        print_function=lambda *_: None,
    )
    evaluation.params.maxDets = detection_limits(metrics.max_det)
    evaluation.params.areaRng, evaluation.params.areaRngLbl = [list(r) for r in AREAS.values()], list(AREAS)
    evaluation.evaluate()
    evaluation.accumulate()
    column = {c: k for k, c in enumerate(evaluation.params.catIds)}
    order = [column[c] for c in metrics.names]
    precision, recall = (np.asarray(evaluation.eval[key]) for key in ("precision", "recall"))
    return precision[:, :, order][..., -1], recall[:, order]


def plain_matches(metrics: DetectionMetrics, c: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and matches of the detections of class `c`, see ClassMatches: image by image."""
    scores, hits = [np.empty(0)], [np.empty(0, dtype=bool)]
    for found, truth in zip(metrics.found, metrics.truth, strict=True):
        own = found[found.label == c]
        own = own[(-own.score).argsort(kind="stable")[: metrics.max_det]]
        same = truth.label == c
        hit = match_greedily(own.xyxy, truth.xyxy[same & ~truth.crowd]) >= 0
        counts = hit | (covered(own.xyxy, truth.xyxy[same & truth.crowd]) < MATCH_IOU)
        scores.append(own.score[counts])
        hits.append(hit[counts])
    score, hit = np.concatenate(scores), np.concatenate(hits)
    order = (-score).argsort(kind="stable")
    return score[order], hit[order]


def metrics_rows(images: int = 5000, detections: int = 300, part: int = 10) -> list[BenchRow]:
    """Matching and AP of all images; the plain way is run on one of `part` of them, and its time multiplied."""
    data = random_detections(images, detections)
    some, every = collected(data[: max(images // part, 1)]), collected(data)

    def plain() -> None:
        plain_coco(some)
        for c in some.names:
            plain_matches(some, c)

    ((plain_ms,), (now_ms,)) = in_turns([plain], rounds=0), in_turns([every.compute], rounds=0)
    name = f"matching and AP, {images:,} images x {detections} detections x 80 classes"
    return [BenchRow(name, plain_ms * images / len(some.sizes), now_ms)]


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v with the whole map of N x N in memory."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


@torch.inference_mode()
def attention_rows(rounds: int = 3) -> list[BenchRow]:
    """yolov5-mobilevit's attention and block at 80 x 80 (640 px): matmul and softmax, and the fused operator."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 1600, 4, 8).transpose(1, 2) for _ in range(3))
    ms = in_turns([lambda: plain_attention(q, k, v), lambda: F.scaled_dot_product_attention(q, k, v)], rounds)
    model = DetectionModel("yolov5-mobilevit.yaml").fuse().requires_grad_(False)
    block = next(layer for layer in model.model if isinstance(layer, MobileViTBlock))
    x, attentions = torch.rand(1, block.local.conv.in_channels, 80, 80), list[Attention]()
    attentions += [m for m in block.modules() if isinstance(m, Attention)]

    def run(fused: bool) -> Tensor:
        for m in attentions:
            m.fused = fused
        return block(x)

    both = in_turns([lambda: run(False), lambda: run(True)], rounds)
    return [
        BenchRow("attention, 16 heads x 1,600 tokens x 8 channels", *ms),
        BenchRow("MobileViTBlock of yolov5-mobilevit at 80 x 80", *both),
    ]


def all_rows() -> list[BenchRow]:
    """Every row above."""
    return [*decode_rows(), *nms_rows(), *metrics_rows(), *attention_rows()]


def main() -> None:
    """Print all rows as a Markdown table."""
    torch.set_num_threads(1)
    print("| what | plain, ms | now, ms | ratio |\n|---|---|---|---|")
    for row in all_rows():
        print(f"| {row.name} | {row.plain_ms:.2f} | {row.now_ms:.2f} | {row.ratio:.1f} |")


if __name__ == "__main__":
    main()
