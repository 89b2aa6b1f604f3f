"""Detect objects with an exported ONNX file; needs only NumPy, OpenCV and ONNX Runtime.

pip install numpy opencv-python-headless onnxruntime
python onnx_detect.py best.onnx image.jpg folder/ --out results
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidProtobuf, NoSuchFile

DEFAULTS = {"conf_thres": 0.25, "iou_thres": 0.45}
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class Detector:
    """An image (H, W, 3) uint8 BGR -> (n, 6) x1, y1, x2, y2 in its pixels, score, class; best first."""

    def __init__(
        self, path: str, threads: int = 0, conf_thres: float | str | None = None, iou_thres: float | None = None
    ):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        meta = self.session.get_modelmeta().custom_metadata_map
        if "form" not in meta:
            raise ValueError(f"{path}: no metadata in it, expected a file written by export.py")
        self.names = {int(k): v for k, v in json.loads(meta["names"]).items()}
        self.imgsz, self.grid, self.batch = (json.loads(meta[key]) for key in ("imgsz", "grid", "batch"))
        self.form, self.dynamic_size = meta["form"], meta["dynamic"] == "size"
        self.centered = meta.get("letterbox", "center") == "center"
        inside = {name: json.loads(meta[name]) for name in DEFAULTS if name in meta and self.form == "nms"}
        if conf_thres == "auto":
            conf_thres = self.stored_threshold(path, meta)
        asked = {"conf_thres": conf_thres, "iou_thres": iou_thres}
        used = {name: inside.get(name, DEFAULTS[name]) if value is None else value for name, value in asked.items()}
        self.conf_thres, self.iou_thres = used["conf_thres"], used["iou_thres"]
        if inside and (self.conf_thres < inside["conf_thres"] or self.iou_thres != inside.get("iou_thres")):
            print(f"warning: {path} has NMS inside with {inside}, {used} cannot be applied", file=sys.stderr)

    def stored_threshold(self, path: str, meta: dict[str, str]) -> float:
        """The confidence threshold that the checkpoint's validation chose, which is printed."""
        stored = json.loads(meta.get("thresholds", "null"))
        if stored is None:
            raise ValueError(
                f"--conf-thres auto: {path}: no threshold is stored there; store one in the checkpoint with "
                "`val.py --weights best.pt --data my.yaml --save-thresholds` and export it again, or give a number"
            )
        where = f"{stored['rule']} on {stored['data']}: precision {stored['precision']:.2f}"
        print(f"confidence threshold: {stored['confidence']:g} ({where}, recall {stored['recall']:.2f})")
        return float(stored["confidence"])

    def __call__(self, image: np.ndarray) -> np.ndarray:
        canvas, scale, shift = self.letterbox(image)
        pixels = canvas[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
        outputs = self.session.run(None, {"images": np.repeat(pixels, self.batch, axis=0)})
        if self.form == "nms":
            boxes, scores, classes, count = (output[0] for output in outputs)
            found = np.column_stack([boxes, scores, classes])[:count]
            found = found[found[:, 4] > self.conf_thres]
        else:
            found = suppress(outputs[0][0], self.conf_thres, self.iou_thres)
        found[:, :4] = ((found[:, :4] - shift) / scale).clip(0, [*image.shape[1::-1]] * 2)
        return found[(found[:, 2:4] > found[:, :2]).all(axis=1)]

    def letterbox(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(canvas, scale, shift): a point p of the image is at p * scale + shift; both are x, y, x, y."""
        (h, w), (height, width) = image.shape[:2], self.imgsz
        if self.dynamic_size:  # the smallest canvas in multiples of the grid
            ratio = max(self.imgsz) / max(h, w)
            height, width = (max(-(-round(side * ratio) // self.grid), 1) * self.grid for side in (h, w))
        ratio = min(height / h, width / w)
        new_h, new_w = max(round(h * ratio), 1), max(round(w * ratio), 1)
        top, left = ((height - new_h) // 2, (width - new_w) // 2) if self.centered else (0, 0)
        canvas = np.full((height, width, 3), 114, dtype=np.uint8)
        canvas[top : top + new_h, left : left + new_w] = cv2.resize(image, (new_w, new_h))
        return canvas, np.array([new_w / w, new_h / h] * 2), np.array([left, top] * 2)


def suppress(rows: np.ndarray, conf_thres: float, iou_thres: float) -> np.ndarray:
    """(N, 5+nc) cx, cy, w, h, objectness, class probabilities -> (n, 6) after NMS within each class."""
    rows = rows[rows[:, 4] > conf_thres]
    classes, scores = rows[:, 5:].argmax(axis=1), (rows[:, 5:] * rows[:, 4:5]).max(axis=1, initial=0)
    order = np.argsort(-scores, kind="stable")[: (scores > conf_thres).sum()]
    rows, scores, classes = rows[order], scores[order], classes[order]
    corners = np.hstack([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2])
    areas, kept, rest = rows[:, 2] * rows[:, 3], [], np.arange(len(rows))
    while len(rest):
        best, rest = rest[0], rest[1:]
        kept.append(best)
        low, high = np.maximum(corners[best], corners[rest])[:, :2], np.minimum(corners[best], corners[rest])[:, 2:]
        overlap = (high - low).clip(0).prod(axis=1)
        far = overlap <= iou_thres * (areas[best] + areas[rest] - overlap)
        rest = rest[far | (classes[rest] != classes[best])]
    return np.column_stack([corners[kept], scores[kept], classes[kept]])


def draw(image: np.ndarray, found: np.ndarray, names: dict[int, str]) -> None:
    """Draw boxes and labels on `image`, in place."""
    for x1, y1, x2, y2, score, index in found:
        cv2.rectangle(image, (round(x1), round(y1)), (round(x2), round(y2)), (0, 200, 0), 2)
        text, place = f"{names[int(index)]} {score:.2f}", (round(x1), max(round(y1) - 4, 12))
        cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 200, 0), 1, cv2.LINE_AA)


def number_or_auto(text: str) -> float | str:
    return text if text == "auto" else float(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("weights", help="ONNX file written by export.py, with or without --nms")
    parser.add_argument("source", nargs="+", help="image files and folders")
    parser.add_argument("--out", help="folder for annotated copies of the images")
    parser.add_argument(
        "--conf-thres",
        type=number_or_auto,
        help="confidence threshold, 0..1 (0.25, or that of NMS in the file); auto: the one stored in the file",
    )
    parser.add_argument("--iou-thres", type=float, help="NMS IoU threshold, 0..1 (0.45, or that of NMS in the file)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: runtime default)")
    args = parser.parse_args()
    detector = Detector(args.weights, args.threads, args.conf_thres, args.iou_thres)
    Path(args.out or ".").mkdir(parents=True, exist_ok=True)
    for place in map(Path, args.source):
        for path in sorted(p for p in place.iterdir() if p.suffix.lower() in SUFFIXES) if place.is_dir() else [place]:
            image = cv2.imread(str(path))
            if image is None:
                raise ValueError(f"{path}: not a readable image")
            start = time.perf_counter()
            found = detector(image)
            print(f"{path}: {len(found)} boxes, {1000 * (time.perf_counter() - start):.1f} ms")
            for *xyxy, score, index in found:
                print(f"  {detector.names[int(index)]} {score:.3f} at {' '.join(f'{v:.1f}' for v in xyxy)}")
            if args.out:
                draw(image, found, detector.names)
                cv2.imwrite(str(Path(args.out, path.name)), image)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, Fail, InvalidProtobuf, NoSuchFile) as error:
        sys.exit(f"error: {error}")
