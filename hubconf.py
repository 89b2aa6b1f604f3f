"""The Python API: `torch.hub.load(folder, 'custom', path='best.pt', source='local')`, or `from hubconf import load`.

    model = load("best.pt")
    results = model(["street.jpg", array, PIL.Image.open("x.png")], size=640)
    results.print()
    results.pandas().xyxy[0]

See docs/python-api.md. Nothing is downloaded but images whose URL is given.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import torch

from models.runtimes.ensemble import Augmented
from models.runtimes.load import load_model
from models.weights.checkpoint import Checkpoint, save_checkpoint
from models.yolo import DetectionModel
from utils.backend import Backend
from utils.classes import class_names
from utils.device import select_device
from utils.files import REPO, missing_weights
from utils.images import as_size
from utils.nms import NmsSettings
from utils.predict.inputs import ImageLike, Named, gather, one_by_one
from utils.predict.predictor import ClassesLike, Predictor, class_indices
from utils.predict.results import Detections
from utils.text import clean, counted
from utils.thresholds import confidence_threshold

dependencies = ["torch", "torchvision", "numpy", "cv2", "PIL", "pandas", "yaml", "einops"]


class Model:
    """A detector for images given as files, arrays, PIL images or tensors.

    It may be called from several threads. Its settings may be changed between calls.

    Attributes:
        conf: confidence threshold; "auto" sets the one stored in the weights. iou: IoU threshold of NMS.
        max_det: maximum detections per image.
        classes: keep only these, indices or names: one, or an array, tensor or other collection; None keeps all.
        agnostic: boxes suppress those of other classes too. multi_label: a box may count for several classes.
        names: class index -> name; may be set to a list or mapping of as many names, which replace those of the file
            by number.
        stride: pixels per cell of the coarsest level. grid: sides of the network's input are multiples of it, pixels.
        device: where it computes. fp16: whether in half precision.
    """

    folder: TemporaryDirectory[str] | None = None  # of random weights
    iou, max_det = 0.45, 1000  # as in YOLOv5
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
        self._names, self._conf = dict(self.backend.names), 0.25  # as in YOLOv5

    def load(self, device: torch.device, half: bool) -> Model:
        """Read the weights for a device and a precision; see load_model for errors."""
        self.backend = load_model(self.weights, device, half, threads=self.threads, compiled=self.compiled)
        self.device, self.fp16 = device, half
        self.stride, self.grid = self.backend.stride, self.backend.grid
        self._latest: tuple[Any, Predictor | None] = None, None  # settings of a call, and what was made for them
        return self

    def __repr__(self) -> str:
        weights = self.weights if isinstance(self.weights, str | Path) else ", ".join(self.weights)
        classes = counted(len(self.names), "class", "classes")
        return f"Model({clean(weights)}: {classes}, grid {self.grid} px, {self.device})"

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
    def conf(self) -> Any:
        """The confidence threshold, a number; "auto" sets the one stored in the weights."""
        return self._conf

    @conf.setter
    def conf(self, conf: Any) -> None:
        limits = self.backend.limits
        self._conf = confidence_threshold(conf, limits.thresholds, limits.file, "model.conf")

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
        ims: ImageLike | Sequence[ImageLike] | Iterator[ImageLike],
        size: int | Sequence[int] | None = None,
        augment: bool = False,
        tile: int = 0,
    ) -> Any:
        """Detections in one image or in a list of images, of any sizes; of a video or an iterator, one by one.

        Args:
            ims: a path or URL of an image; an array (H, W, 3), (H, W), (H, W, 4) or (3, H, W) of uint8, colors in the
                order RGB; a PIL image; a tensor (3, H, W) or (B, 3, H, W) of uint8, or of floats in 0..1; a folder,
                pattern or .txt list of images; or a list of these. A video, the URL of a stream, a .streams list, or an
                iterator of images gives an iterator of Detections, which reads as it goes.
            size: of the network's input, pixels: long side, or height and width; None: that of the weights, else 640.
            augment: test-time augmentation.
            tile: larger images are also cut into overlapping tiles of this many pixels; 0: never.

        Raises:
            ValueError, FileNotFoundError: an image that cannot be read or has another form.
        """
        if (frames := one_by_one(ims)) is not None:
            return self.each(frames, size, augment, tile)
        images, files = gather(cast("ImageLike | Sequence[ImageLike]", ims))
        return self.detect(images, files, size, augment, tile)

    def each(
        self, frames: Generator[Named, None, None], size: int | Sequence[int] | None, augment: bool, tile: int
    ) -> Iterator[Detections]:
        """The Detections of one image after another."""
        with closing(frames):
            for image, file in frames:
                yield self.detect([image], [file], size, augment, tile)

    def detect(
        self, images: list[np.ndarray], files: list[str], size: int | Sequence[int] | None, augment: bool, tile: int
    ) -> Detections:
        """Detections in (H, W, 3) uint8 RGB images; see __call__."""
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


def network(
    name: str,
    pretrained: bool | str | Path = True,
    classes: int | None = None,
    device: str | int | torch.device | None = "",
    half: bool = False,
    threads: int = 0,
    compiled: bool = False,
) -> Model:
    """The network of a model YAML: torch.hub.load(folder, 'yolov5n', source='local') is network('yolov5n').

    Args:
        pretrained: True: the weights in <name>.pt, here or in the repository, which is not downloaded; a path: those;
            False: random weights, to try a network or to time it.
        classes: number of classes. None: that of the weights, or of the YAML.

    Raises:
        FileNotFoundError: no such weights. ValueError: they have another number of classes; see load_model.
    """
    if pretrained is False:
        return untrained(name, classes, device, half, threads, compiled)
    path = Path(f"{name}.pt") if pretrained is True else Path(pretrained)
    found = next((p for p in (path, REPO / path) if p.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{missing_weights(path)}; pretrained=False: random weights")
    model = custom(found, device, half, threads, compiled)
    if classes not in (None, model.backend.nc):
        raise ValueError(f"{found} has {model.backend.nc} classes, expected {classes}; leave classes out")
    return model


def untrained(
    name: str, classes: int | None, device: str | int | torch.device | None, half: bool, threads: int, compiled: bool
) -> Model:
    """The network of a model YAML with random weights, see network. They are kept in a file as long as the model."""
    folder = TemporaryDirectory(prefix="yolov5-mobilevit-")
    path = Path(folder.name) / f"{name}.pt"
    save_checkpoint(path, Checkpoint.of(DetectionModel(f"{name}.yaml", nc=classes)))
    model = custom(path, device, half, threads, compiled)
    model.folder = folder
    return model


def networks() -> list[str]:
    """The names of the model YAMLs of this project."""
    return sorted(path.stem for path in (REPO / "models").glob("*.yaml"))


def __dir__() -> list[str]:
    """The entries of this module; torch.hub.load takes its second argument from them."""
    return [*globals(), *networks()]


def __getattr__(name: str) -> Callable[..., Model]:
    """The entry of a network: yolov5n(...) is network('yolov5n', ...)."""
    if name not in networks():
        raise AttributeError(f"hubconf has no '{name}', expected custom, load, or a network: {', '.join(networks())}")
    return partial(network, name)
