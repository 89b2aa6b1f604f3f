"""The input of the Python API: paths, folders, URLs, arrays, PIL images, tensors and videos as RGB arrays."""

from __future__ import annotations

import glob
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeAlias, cast
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from torch import Tensor

from utils.decode import from_pillow
from utils.images import IMAGE_SUFFIXES, imread
from utils.predict.frames import Broken
from utils.predict.sources import VIDEO_SUFFIXES, Frames, list_files, open_source
from utils.predict.streams import is_url
from utils.text import clean

ROUNDING = 1e-3  # by which floats in 0..1 may lie outside, as computed ones do
AT_ONCE = 1000  # images of a folder, which are all held in memory
ImageLike: TypeAlias = "str | Path | np.ndarray | Image.Image | Tensor"
Named: TypeAlias = tuple[np.ndarray, str]  # (H, W, 3) uint8 RGB, and a file name


def one_by_one(ims: object) -> Generator[Named, None, None] | None:
    """The images of an iterator, or the frames of a video, camera stream or .streams list; None for everything else."""
    if isinstance(ims, str | Path):
        text = str(ims)
        suffix = Path(urlsplit(text).path if is_url(text) else text).suffix.lower()
        if suffix == ".streams" or suffix in VIDEO_SUFFIXES or (is_url(text) and suffix not in IMAGE_SUFFIXES):
            return video_frames(open_source(text))
    elif isinstance(ims, Iterator):
        return ((to_image(item, i), name_of(item, i)) for i, item in enumerate(ims))
    return None


def video_frames(frames: Frames) -> Generator[Named, None, None]:
    """The frames of a source.

    Raises:
        ValueError: it cannot be read, or not to its end; after the frames before.
    """
    with closing(frames):
        for frame in frames:
            if isinstance(frame, Broken):
                raise ValueError(clean(frame.reason))
            yield frame.image, f"{frame.path.stem}_{frame.number}.jpg"


def gather(ims: ImageLike | Sequence[ImageLike]) -> tuple[list[np.ndarray], list[str]]:
    """Images as (H, W, 3) uint8 RGB, and a file name for each; see Model.__call__ of hubconf."""
    flat: list[ImageLike] = []
    for item in cast(Sequence[ImageLike], ims if isinstance(ims, list | tuple) else [ims]):
        if isinstance(item, str | Path) and is_collection(str(item)):
            flat += files_of(str(item))
        else:
            flat += item if isinstance(item, Tensor | np.ndarray) and item.ndim == 4 else [item]
    return [to_image(item, i) for i, item in enumerate(flat)], [name_of(item, i) for i, item in enumerate(flat)]


def is_collection(source: str) -> bool:
    """Whether a text names a folder, a list of files or a pattern."""
    if is_url(source):
        return False
    return os.path.isdir(source) or source.endswith(".txt") or (glob.has_magic(source) and not os.path.exists(source))


def files_of(source: str) -> list[Path]:
    """The images of a folder, a list of files or a pattern.

    Raises:
        ValueError, FileNotFoundError: there is none; a video; more than AT_ONCE.
    """
    files = list_files(source)
    for path in files:
        if path.suffix.lower() in VIDEO_SUFFIXES:
            raise ValueError(f"{clean(path)} is a video, expected images; call the model with the video itself")
    if len(files) > AT_ONCE:
        raise ValueError(
            f"{clean(source)}: {len(files):,} images, expected at most {AT_ONCE:,} at once; "
            "for one result after another: model(iter(paths))"
        )
    return files


def name_of(item: object, i: int) -> str:
    """The file name of an image; image<i>.jpg where it has none."""
    if isinstance(item, str) and is_url(item):
        item = urlsplit(item).path
    name = item if isinstance(item, str | Path) else getattr(item, "filename", "")
    return Path(name or f"image{i}.jpg").name or f"image{i}.jpg"


def from_web(url: str, i: int) -> np.ndarray:
    """The image at a http or https URL, (H, W, 3) uint8 RGB.

    Raises:
        ValueError: there is none; another URL.
    """
    if Path(urlsplit(url).path).suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"image {i}: the URL does not end in .jpg or so; call the model with a video or stream itself")
    with closing(open_source(url)) as frames:
        frame = next(frames)
    if isinstance(frame, Broken):
        raise ValueError(f"image {i}: {clean(frame.reason)}")
    return frame.image


def to_image(item: ImageLike, i: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB from a path, URL, array, PIL image or tensor; errors call it image `i`."""
    if isinstance(item, str | Path):
        return from_web(str(item), i) if is_url(str(item)) else imread(item)
    if isinstance(item, Image.Image):
        return from_pillow(item)
    if isinstance(item, Tensor):
        item = (item.float() if item.is_floating_point() else item).detach().cpu().numpy()  # NumPy lacks bfloat16
    if not isinstance(item, np.ndarray):
        raise ValueError(f"image {i} is a {type(item).__name__}, expected a path, URL, array, PIL image or tensor")
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
