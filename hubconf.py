"""The Python API: `torch.hub.load(folder, 'custom', path='best.pt', source='local')`, or `from hubconf import load`.

    model = load("best.pt")
    results = model(["street.jpg", array, PIL.Image.open("x.png")], size=640)
    results.print()
    results.pandas().xyxy[0]

See docs/python-api.md. Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from models.runtimes.ensemble import Augmented
from models.runtimes.load import load_model
from utils.backend import Backend
from utils.classes import class_names
from utils.device import select_device
from utils.images import imread
from utils.nms import NmsSettings
from utils.predict.predictor import Predictor, class_indices
from utils.predict.results import Detections

dependencies = ["torch", "torchvision", "numpy", "cv2", "PIL", "pandas", "yaml", "einops"]
ImageLike: TypeAlias = "str | Path | np.ndarray | Image.Image | Tensor"


class Model:
    """A detector for images given as files, arrays, PIL images or tensors.

    Its settings may be changed between calls.

    Attributes:
        conf: confidence threshold. iou: IoU threshold of NMS. max_det: maximum detections per image.
        classes: keep only these, indices or names; None keeps all.
        agnostic: boxes suppress those of other classes too. multi_label: a box may count for several classes.
        names: class index -> name; may be set to a list or mapping of as many names, which replace those of the file
            by number. stride: pixels per cell of the coarsest level. grid: sides of the network's input
            are multiples of it, pixels.
    """

    def __init__(
        self,
        weights: str | Path | Sequence[str],
        device: torch.device,
        half: bool = False,
        threads: int = 0,
        compiled: bool = False,
    ):
        self.backend = load_model(weights, device, half, threads=threads, compiled=compiled)
        self.device, self.half = device, half
        self._names = dict(self.backend.names)
        self.stride, self.grid = self.backend.stride, self.backend.grid
        self.conf, self.iou, self.max_det = 0.25, 0.45, 1000
        self.classes: Sequence[int | str] | None = None
        self.agnostic = self.multi_label = False

    @property
    def names(self) -> dict[int, str]:
        """Class index -> name."""
        return self._names

    @names.setter
    def names(self, names: Mapping[int, str] | Sequence[str]) -> None:
        found = class_names(dict(names) if isinstance(names, Mapping) else names, "model", strict=False)
        if len(found) != self.backend.nc:
            raise ValueError(f"model.names: {len(found)} names, expected {self.backend.nc}, one for each class")
        self._names = found

    def __call__(
        self, ims: ImageLike | Sequence[ImageLike], size: int = 640, augment: bool = False, tile: int = 0
    ) -> Detections:
        """Detections in one image or in a list of images, of any sizes.

        Args:
            ims: a path; an array (H, W, 3), (H, W), (H, W, 4) or (3, H, W) of uint8, colors in the order RGB; a PIL
                image; a tensor (3, H, W) or (B, 3, H, W) of uint8, or of floats in 0..1; or a list of these.
            size: long side of the network's input, pixels. augment: test-time augmentation.
            tile: larger images are also cut into overlapping tiles of this many pixels; 0: never.

        Raises:
            ValueError, FileNotFoundError: an image that cannot be read or has another form.
        """
        images, files = gather(ims)
        backend: Backend = Augmented(self.backend) if augment else self.backend
        classes = class_indices(self.classes or (), self.names) or None
        nms = NmsSettings(self.conf, self.iou, self.max_det, classes, self.agnostic, self.multi_label)
        found = Predictor(backend, self.device, size, nms, self.half, tile=tile)(images)
        times = tuple(np.mean([f.times for f in found], axis=0).tolist()) if found else (0.0, 0.0, 0.0)
        largest = tuple(np.max([f.canvas for f in found], axis=0).tolist()) if found else (0, 0)
        return Detections(images, [f.boxes for f in found], files, self.names, times, (len(found), 3, *largest))


def gather(ims: ImageLike | Sequence[ImageLike]) -> tuple[list[np.ndarray], list[str]]:
    """Images as (H, W, 3) uint8 RGB, and a file name for each; see Model.__call__."""
    flat: list[ImageLike] = []
    for item in cast(Sequence[ImageLike], ims if isinstance(ims, list | tuple) else [ims]):
        flat += item if isinstance(item, Tensor | np.ndarray) and item.ndim == 4 else [item]
    images, files = [], []
    for i, item in enumerate(flat):
        images.append(to_image(item, i))
        name = item if isinstance(item, str | Path) else getattr(item, "filename", "") or f"image{i}.jpg"
        files.append(Path(name).name)
    return images, files


def to_image(item: ImageLike, i: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB from a path, array, PIL image or tensor; errors call it image `i`."""
    if isinstance(item, str | Path):
        if "://" in str(item):
            raise ValueError(f"image {i}: {item} is a URL, expected a file; nothing is downloaded")
        return imread(item)
    if isinstance(item, Image.Image):
        return np.array(ImageOps.exif_transpose(item).convert("RGB"))
    if isinstance(item, Tensor):
        item = item.detach().cpu().numpy()
    if not isinstance(item, np.ndarray):
        raise ValueError(f"image {i} is a {type(item).__name__}, expected a path, array, PIL image or tensor")
    shape = item.shape
    if item.ndim == 3 and shape[0] in (1, 3) and shape[2] not in (1, 3, 4):
        item = item.transpose(1, 2, 0)
    if item.ndim == 2:
        item = item[..., None]
    if item.ndim != 3 or item.shape[2] not in (1, 3, 4) or not item.size:
        raise ValueError(f"image {i} has the shape {shape}, expected (H, W, 3), (H, W), (H, W, 4) or (3, H, W)")
    if np.issubdtype(item.dtype, np.floating):
        if not (item.min() >= 0 and item.max() <= 1):
            raise ValueError(f"image {i} has floats in {item.min():.3g}..{item.max():.3g}, expected 0..1 or uint8")
        item = (item * 255).round().astype(np.uint8)
    if item.dtype != np.uint8:
        raise ValueError(f"image {i} is of {item.dtype}, expected uint8, or floats in 0..1")
    return np.ascontiguousarray(item[..., :3] if item.shape[2] > 1 else item.repeat(3, axis=2))


def custom(
    path: str | Path | Sequence[str] = "",
    device: str = "",
    half: bool = False,
    threads: int = 0,
    compiled: bool = False,
) -> Model:
    """The model in a weights file of any format that detect.py reads; an ensemble for several files.

    Args:
        device: cpu, mps or a GPU's number; empty: a GPU if there is one.
        half: half precision (fp16), GPU only. threads: CPU threads (0: runtime default).
        compiled: run .pt weights through torch.compile.

    Raises:
        ValueError, FileNotFoundError: see load_model.
    """
    return Model(path, select_device(device), half, threads, compiled)


def load(
    path: str | Path | Sequence[str], device: str = "", half: bool = False, threads: int = 0, compiled: bool = False
) -> Model:
    """The same as `custom`, for `from hubconf import load`."""
    return custom(path, device, half, threads, compiled)
