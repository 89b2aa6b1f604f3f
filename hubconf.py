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
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from models.runtimes.ensemble import Augmented
from models.runtimes.load import load_model
from utils.backend import Backend
from utils.classes import class_names
from utils.decode import from_pillow
from utils.device import select_device
from utils.images import as_size, imread
from utils.nms import NmsSettings
from utils.predict.predictor import ClassesLike, Predictor, class_indices
from utils.predict.results import Detections

dependencies = ["torch", "torchvision", "numpy", "cv2", "PIL", "pandas", "yaml", "einops"]
ROUNDING = 1e-3  # by which floats in 0..1 may lie outside, as computed ones do
ImageLike: TypeAlias = "str | Path | np.ndarray | Image.Image | Tensor"


class Model:
    """A detector for images given as files, arrays, PIL images or tensors.

    It may be called from several threads. Its settings may be changed between calls.

    Attributes:
        conf: confidence threshold. iou: IoU threshold of NMS. max_det: maximum detections per image.
        classes: keep only these, indices or names: one, or an array, tensor or other collection; None keeps all.
        agnostic: boxes suppress those of other classes too. multi_label: a box may count for several classes.
        names: class index -> name; may be set to a list or mapping of as many names, which replace those of the file
            by number.
        stride: pixels per cell of the coarsest level. grid: sides of the network's input are multiples of it, pixels.
        device: where it computes. fp16: whether in half precision.
    """

    conf, iou, max_det = 0.25, 0.45, 1000  # as in YOLOv5
    classes: ClassesLike | None = None
    agnostic = multi_label = False

    def __init__(
        self,
        weights: str | Path | Sequence[str],
        device: torch.device,
        half: bool = False,
        threads: int = 0,
        compiled: bool = False,
    ):
        self.weights, self.threads, self.compiled = weights, threads, compiled
        self.load(device, half)
        self._names = dict(self.backend.names)

    def load(self, device: torch.device, half: bool) -> Model:
        """Read the weights for a device and a precision; see load_model for errors."""
        self.backend = load_model(self.weights, device, half, threads=self.threads, compiled=self.compiled)
        self.device, self.fp16 = device, half
        self.stride, self.grid = self.backend.stride, self.backend.grid
        self._latest: tuple[Any, Predictor | None] = None, None  # settings of a call, and what was made for them
        return self

    def to(self, device: str | int | torch.device | None) -> Model:
        """Move to a device; the weights are read again if it is another one. Returns the model, as the next ones do."""
        wanted = as_device(device)
        return self if wanted == self.device else self.load(wanted, self.fp16)

    def cpu(self) -> Model:
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device = 0) -> Model:
        return self.to(device)

    def half(self) -> Model:
        """Half precision, on a GPU only."""
        return self if self.fp16 else self.load(self.device, True)

    def float(self) -> Model:
        """Single precision."""
        return self.load(self.device, False) if self.fp16 else self

    def eval(self) -> Model:
        """Nothing changes: the model is always in eval mode."""
        return self

    @property
    def names(self) -> dict[int, str]:
        """Class index -> name."""
        return self._names

    @names.setter
    def names(self, names: Mapping[int, str] | Sequence[str]) -> None:
        found = class_names(dict(names) if isinstance(names, Mapping) else names, "model.names")
        if len(found) != self.backend.nc:
            raise ValueError(f"model.names: {len(found)} names, expected {self.backend.nc}, one for each class")
        self._names = found

    def __call__(
        self,
        ims: ImageLike | Sequence[ImageLike],
        size: int | Sequence[int] | None = None,
        augment: bool = False,
        tile: int = 0,
    ) -> Detections:
        """Detections in one image or in a list of images, of any sizes.

        Args:
            ims: a path; an array (H, W, 3), (H, W), (H, W, 4) or (3, H, W) of uint8, colors in the order RGB; a PIL
                image; a tensor (3, H, W) or (B, 3, H, W) of uint8, or of floats in 0..1; or a list of these.
            size: of the network's input, pixels: long side, or height and width; None: that of the weights, else 640.
            augment: test-time augmentation.
            tile: larger images are also cut into overlapping tiles of this many pixels; 0: never.

        Raises:
            ValueError, FileNotFoundError: an image that cannot be read or has another form.
        """
        images, files = gather(ims)
        found = self.predictor(size, augment, tile)(images)
        times = tuple(np.mean([f.times for f in found], axis=0).tolist()) if found else (0.0, 0.0, 0.0)
        largest = tuple(np.max([f.canvas for f in found], axis=0).tolist()) if found else (0, 0)
        return Detections(images, [f.boxes for f in found], files, self.names, times, (len(found), 3, *largest))

    def predictor(self, size: int | Sequence[int] | None, augment: bool, tile: int) -> Predictor:
        """The predictor of these settings: that of the latest call while they are the same, so that it warns once."""
        classes = None if self.classes is None else class_indices(self.classes, self.names)
        nms = NmsSettings(self.conf, self.iou, self.max_det, classes, self.agnostic, self.multi_label)
        imgsz = () if size is None else as_size(size)
        settings, (latest, predictor) = (imgsz, nms, augment, tile), self._latest
        if predictor is None or settings != latest:
            backend: Backend = Augmented(self.backend) if augment else self.backend
            predictor = Predictor(backend, self.device, imgsz, nms, self.fp16, tile=tile)
            self._latest = settings, predictor
        return predictor


def as_device(device: str | int | torch.device | None) -> torch.device:
    """The device of a name such as 'cpu', 'cuda:1' or '1', a GPU number or a torch.device; None: see select_device.

    Raises:
        ValueError: this machine has no such device.
    """
    text = "" if device is None else str(device)
    return select_device("0" if text == "cuda" else text.removeprefix("cuda:"))


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
        return from_pillow(item)
    if isinstance(item, Tensor):
        item = (item.float() if item.is_floating_point() else item).detach().cpu().numpy()  # NumPy lacks bfloat16
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
        if not (item.min() >= -ROUNDING and item.max() <= 1 + ROUNDING):
            raise ValueError(f"image {i} has floats in {item.min():.3g}..{item.max():.3g}, expected 0..1 or uint8")
        item = (item * 255).round().clip(0, 255).astype(np.uint8)
    if item.dtype != np.uint8:
        raise ValueError(f"image {i} is of {item.dtype}, expected uint8, or floats in 0..1")
    return np.ascontiguousarray(item[..., :3] if item.shape[2] > 1 else item.repeat(3, axis=2))


def custom(
    path: str | Path | Sequence[str] = "",
    device: str | int | torch.device | None = "",
    half: bool = False,
    threads: int = 0,
    compiled: bool = False,
    names: Sequence[str] | Mapping[int, str] | None = None,
) -> Model:
    """The model in a weights file of any format that detect.py reads; an ensemble for several files.

    Args:
        device: cpu, mps or a GPU's number; empty or None: a GPU if there is one.
        half: half precision (fp16), GPU only. threads: CPU threads (0: runtime default).
        compiled: run .pt weights through torch.compile.
        names: other names for the classes of the weights, in their order.

    Raises:
        ValueError, FileNotFoundError: see load_model; another number of names.
    """
    model = Model(path, as_device(device), half, threads, compiled)
    if names is not None:
        model.names = names
    return model


def load(
    path: str | Path | Sequence[str],
    device: str | int | torch.device | None = "",
    half: bool = False,
    threads: int = 0,
    compiled: bool = False,
    names: Sequence[str] | Mapping[int, str] | None = None,
) -> Model:
    """The same as `custom`, for `from hubconf import load`."""
    return custom(path, device, half, threads, compiled, names)
