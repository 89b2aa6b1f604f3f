"""Draw the built-in detection data set: six classes of objects on varied backgrounds, in YOLO format.

    python data/make_shapes.py --out datasets/shapes --train 480 --val 120 --seed 0

A class has a silhouette of its own; nine of ten objects also have a hue near that of their class, the tenth has any
color. Texture, light and outline do not depend on the class. The same arguments draw the same files.
How they are drawn is in shape_drawing.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.shape_drawing import (
    MAX_SIDE,
    MIN_SIDE,
    NAMES,
    TYPICAL_SIDE,
    Layer,
    background,
    colorize,
    draw_image,
    draw_object,
    to_bytes,
)

VERSION = 2  # raise it whenever the same arguments would draw other files
TRAIN, VAL, CLIP = 0, 1, 3  # part of the seed
PER_SECOND = 40  # images, on one core
LOG_EVERY = 30.0  # seconds between two lines about how far the drawing is
REPO = Path(__file__).resolve().parents[1]
LOGGER = logging.getLogger(__name__)


def label_text(layers: list[Layer], h: int, w: int) -> str:
    """YOLO label lines: class, then box center x, y, width, height as shares (0..1) of the image's size."""
    lines = []
    for layer in [layer for layer in layers if layer.label >= 0]:
        x, y, wide, tall = cv2.boundingRect(layer.mask(h, w))
        x1, y1, x2, y2 = x / w, y / h, (x + wide) / w, (y + tall) / h
        lines.append(f"{layer.label} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n")
    return "".join(lines)


def draw_clip(path: Path, seed: int, frames: int) -> None:
    """Write an mp4 of `frames` frames, 320x240 at 15 a second: objects move to and fro, the background pans."""
    rng, (h, w) = np.random.default_rng((seed, CLIP)), (240, 320)
    wide = background(rng, h, w + 120)
    movers = []
    for label in rng.permutation(len(NAMES)):
        layer = draw_object(rng, int(label), rng.uniform(40, 95))
        rgb = colorize(rng, layer, np.array(cv2.mean(wide)[:3]))
        movers.append((rgb, layer.alpha, rng.uniform(0, 640, 2), rng.uniform(2, 5, 2), rng.uniform(0, 6)))
    video = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 15, (w, h))
    if not video.isOpened():
        raise OSError(f"{path}: OpenCV cannot write mp4v videos here")
    for frame in range(frames):
        pan = abs(frame % 240 - 120)
        canvas = wide[:, pan : pan + w].copy()
        for rgb, alpha, start, speed, phase in movers:
            size = np.array(alpha.shape[::-1])
            room = (w, h) - size * 0.8  # they may leave by a tenth on every side
            at = np.abs((start + speed * frame) % (2 * room) - room)
            pose = np.array(cv2.getRotationMatrix2D((size / 2).tolist(), 12 * np.sin(phase + frame / 8), 1), float)
            pose[:, 2] += at - size * 0.1
            alpha, rgb = (cv2.warpAffine(raster, pose, (w, h)) for raster in (alpha, rgb))
            canvas += (rgb - canvas) * alpha[..., None]
        video.write(to_bytes(canvas[..., ::-1]))
    video.release()


def write_set(folder: Path, recipe: dict[str, int]) -> None:
    """Draw the whole set of `recipe` into the new `folder`."""
    shown, done, count = time.monotonic(), 0, recipe["train"] + recipe["val"]
    for split, name in ((TRAIN, "train"), (VAL, "val")):
        for kind in ("images", "labels"):
            (folder / kind / name).mkdir(parents=True)
        for index in range(recipe[name]):
            image, layers, quality = draw_image(recipe["seed"], split, index, recipe.get("side", TYPICAL_SIDE))
            jpeg = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
            (folder / f"images/{name}/{index:06d}.jpg").write_bytes(jpeg.tobytes())
            label = label_text(layers, *image.shape[:2])
            (folder / f"labels/{name}/{index:06d}.txt").write_text(label, newline="\n")
            done += 1
            if time.monotonic() - shown >= LOG_EVERY:
                shown = time.monotonic()
                LOGGER.info(f"{done} of {count} images drawn")
    if recipe["clip_frames"]:
        draw_clip(folder / "clip.mp4", recipe["seed"], recipe["clip_frames"])
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(NAMES))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nval: images/val\nnames:\n{names}", newline="\n")
    (folder / "made.json").write_text(json.dumps(recipe, indent=2) + "\n", newline="\n")


def holds(folder: Path, recipe: dict[str, int]) -> bool:
    """Whether `folder` holds the set of `recipe`; FileExistsError if it holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    with suppress(OSError, ValueError):
        if json.loads((folder / "made.json").read_text()) == recipe:
            return True
    raise FileExistsError(f"{folder} exists and does not hold this data set; delete it or choose another folder")


def ensure_shapes(
    out: Path, train: int = 480, val: int = 120, seed: int = 0, clip_frames: int = 60, side: int = TYPICAL_SIDE
) -> Path:
    """The data.yaml of the built-in set in the folder `out`; the set is drawn first if the folder is missing or empty.

    It is drawn beside `out`, then renamed: `out` never holds half a set, and of two processes at once one set stays.

    Raises:
        ValueError: a number that is too small.
        FileExistsError: `out` holds something else; nothing is changed.
    """
    recipe = {"version": VERSION, "train": train, "val": val, "seed": seed, "clip_frames": clip_frames}
    if side != TYPICAL_SIDE:  # which older sets do not name
        recipe["side"] = side
    if not MIN_SIDE < side < MAX_SIDE:
        raise ValueError(f"side {side}: expected more than {MIN_SIDE} and less than {MAX_SIDE} pixels")
    if min(train, val) < 1 or min(seed, clip_frames) < 0:
        given = f"train {train}, val {val}, seed {seed}, clip_frames {clip_frames}"
        raise ValueError(f"{given}: expected at least 1, 1, 0, 0")
    target, count = out.resolve(), train + val
    if not holds(target, recipe):
        seconds = math.ceil(count / PER_SECOND)
        LOGGER.info(f"{out}: drawing the built-in data set, {count} images, about {seconds} s; nothing is downloaded")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as private:
            fresh = Path(private, "set")  # a folder inside, as the outer one is closed to other users
            write_set(fresh, recipe)
            try:
                fresh.rename(target)
            except OSError:
                if not holds(target, recipe):  # then it was not another process that was faster
                    raise
    return out / "data.yaml"


def shapes_folder() -> Path:
    """The folder of the built-in set: in the repository, or in the working folder if the project is installed."""
    inside = REPO / "datasets" / "shapes"
    clone = (REPO / "pyproject.toml").is_file() and os.access(REPO, os.W_OK)
    return inside if inside.exists() or clone else Path("datasets", "shapes")


def draw_if_built_in(data_yaml: Path) -> Path:
    """`data_yaml`; for data/shapes.yaml the data.yaml in shapes_folder(), of a set that is drawn first if missing."""
    if data_yaml.resolve() != REPO / "data" / "shapes.yaml":
        return data_yaml
    drawn = shapes_folder() / "data.yaml"
    return drawn if drawn.exists() else ensure_shapes(drawn.parent)


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; a bad argument or folder ends it with one line and exit code 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description="Draw the built-in detection data set in YOLO format.")
    parser.add_argument("--out", type=Path, default=Path("datasets/shapes"), help="folder of the set")
    parser.add_argument("--train", type=int, default=480, help="training images")
    parser.add_argument("--val", type=int, default=120, help="validation images")
    parser.add_argument("--seed", type=int, default=0, help="the same seed draws the same files")
    parser.add_argument("--side", type=int, default=TYPICAL_SIDE, help="typical long side of an object, pixels")
    parser.add_argument("--clip-frames", type=int, default=60, help="frames of clip.mp4; 0: no clip")
    try:
        print(f"the data set is {ensure_shapes(**vars(parser.parse_args(argv)))}")
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
