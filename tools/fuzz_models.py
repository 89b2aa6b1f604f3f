"""Fuzzers of model files: checkpoints, rows, class names, YAML, JSON metadata and pickles, see tools/fuzz.py."""

from __future__ import annotations

import json
import random
import struct
import sys
import zipfile
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.export.metadata import Metadata
from models.weights.checkpoint import Checkpoint, build_model, load_checkpoint
from models.yolo import BLOCKS, DetectionModel, plan_model
from tools.fuzz import Fuzzer, refused_or_read
from tools.fuzz_checkpoint import DAMAGE
from utils.classes import class_names
from utils.files import read_yaml
from utils.hyp import Hyp

CFG: dict[str, Any] = {
    "nc": 2,
    "depth_multiple": 0.5,
    "width_multiple": 0.5,
    "anchors": [[8, 8], [16, 16]],
    "backbone": [
        [-1, 1, "Conv", [16, 3, 2]],
        [-1, 2, "C3", [16]],
        [-1, 1, "MobileViTBlock", [16, 8, 1, {"heads": 2}]],
        [-1, 1, "SPPF", [16, 5]],
    ],
    "head": [
        [-1, 1, "nn.Upsample", [None, 2, "nearest"]],
        [-1, 1, "Conv", [16, 3, 2]],
        [[-1, 1], 1, "Concat", [1]],
        [[6, 3], 1, "Detect", ["nc", "anchors"]],
    ],
}
METADATA = {"names": {"0": "a"}, "stride": 32, "grid": 32, "imgsz": [64, 64], "batch": 1, "anchors": [[[8, 8]]]}
METADATA |= {"strides": [32], "form": "raw", "head": "Detect", "head_settings": {}, "letterbox": "center"}
HARSH: list[Callable[[random.Random], Any]] = [  # values that a place does not expect
    lambda rng: rng.choice([0, -1, 1, 2, 3, 64, 255, 10**4, 10**9, 2**63, 10**40, -(2**70)]),
    lambda rng: rng.choice([0.0, -0.5, 1e-9, 1e9, 1e300, float("nan"), float("inf"), -float("inf")]),
    lambda rng: rng.choice(["", "x", "None", "nc", "nearest", "\x1b[2J\n", "y" * 20_000, "\u202e", "=1+1", "\ud800"]),
    lambda rng: rng.choice([None, True, False, [], {}, [[]], {"a": 1}, (1, 2), b"bytes"]),
    lambda rng: [rng.randrange(-3, 9) for _ in range(rng.randrange(200))],
    lambda rng: rng.choice(sorted(BLOCKS)),
    lambda rng: {rng.choice([0, "k", "depth", "e", "n", "c1", "c2", "ch", "act"]): rng.choice([1, 10**6, "x", None])},
]

SHARED: list[Callable[[random.Random], Any]] = [  # which a tree of text cannot hold
    lambda rng: laughing(rng.randrange(1, 40), rng.randrange(1, 12)),
    lambda rng: own_list(),
]


def laughing(levels: int, width: int) -> list:
    """Lists of the list before."""
    made: list = ["x"]
    for _ in range(levels):
        made = [made] * width
    return made


def own_list() -> list:
    """A list that holds itself."""
    made: list = []
    made.append(made)
    return made


def spoil(value: Any, rng: random.Random, times: int, shared: bool = True) -> Any:
    """A copy of lists and mappings with some of their values, at any depth, replaced, moved or repeated."""
    made = deepcopy(value)
    for _ in range(times):
        place, key = made, rng.choice(list(made))
        while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if place is place[key]:  # it holds itself
                break
        how = rng.random()
        if how < 0.6:
            place[key] = rng.choice([*HARSH, *SHARED] if shared else HARSH)(rng)
        elif how < 0.7 and isinstance(place, list):
            place[key:key] = [place[key]] * rng.choice([1, 2, 50])
        elif how < 0.8:
            del place[key]
        elif how < 0.9 and isinstance(place, list):
            rng.shuffle(place)
        else:
            place[key] = deepcopy(rng.choice([CFG["backbone"], CFG["head"], CFG["anchors"]]))
        if not isinstance(made, dict) or not made:
            return deepcopy(value)
    return made


@cache
def whole() -> bytes:
    """A healthy checkpoint."""
    buffer = BytesIO()
    torch.save(Checkpoint.of(DetectionModel(CFG)).as_dict() | {"opt": {"imgsz": 64}, "hyp": {"lr0": 0.1}}, buffer)
    return buffer.getvalue()


def load(path: Path) -> None:
    """Load and build a checkpoint, and run it if it is small."""
    build_model(load_checkpoint(path))


def fuzz_checkpoint(rng: random.Random, folder: Path) -> None:
    """A healthy checkpoint with damaged bytes, pickle or storages."""
    kind = rng.choice(list(DAMAGE.values()))
    (folder / "w.pt").write_bytes(kind(whole(), np.random.default_rng(rng.getrandbits(32))))
    refused_or_read(lambda: load(folder / "w.pt"))


def fuzz_plain(rng: random.Random, folder: Path) -> None:
    """A healthy checkpoint whose plain data are spoiled, in both formats."""
    made = torch.load(BytesIO(whole()), weights_only=True)
    state = made.pop("model")
    pickled = rng.random() < 0.5
    made = spoil(made, rng, rng.randrange(1, 4), shared=pickled)
    if pickled:
        try:
            torch.save(made | {"model": state}, folder / "w.pt")
        except (RecursionError, UnicodeEncodeError):  # not a file that can be written so
            return
        refused_or_read(lambda: load(folder / "w.pt"))
        return
    try:
        text = json.dumps(made, default=str)
    except (ValueError, RecursionError, TypeError, MemoryError):
        return
    if len(text) < 20_000_000:
        data = safetensors.torch.save(state, {"checkpoint": text.encode("utf-8", "replace").decode()})
        (folder / "w.safetensors").write_bytes(data)
        refused_or_read(lambda: load(folder / "w.safetensors"))


def fuzz_rows(rng: random.Random, folder: Path) -> None:
    """Spoiled rows of a network, and rows of random blocks."""
    cfg = spoil(CFG, rng, rng.randrange(1, 5))
    if rng.random() < 0.3:
        numbers = [0, 1, 2, 3, 5, 8, 16, 64, -1, 1000, 0.5, None, True, [3, 5], {"e": 0.5}]
        rows = [
            [-1, rng.choice([1, 1, 3]), rng.choice(sorted(BLOCKS)), rng.choices(numbers, k=rng.randrange(6))]
            for _ in range(rng.randrange(1, 4))
        ]
        cfg = deepcopy(CFG) | {"backbone": [CFG["backbone"][0], *rows], "head": [[[-1], 1, "Detect", ["nc", [[8, 8]]]]]}
        cfg["anchors"] = [[8, 8]]
        cfg["head"] = [[[-1], 1, "Detect", ["nc", "anchors"]]]
    refused_or_read(lambda: plan_model(cfg))


def fuzz_pickle(rng: random.Random, folder: Path) -> None:
    """Random instructions, most of them well-formed."""
    out = [b"\x80\x02}"]
    for _ in range(rng.randrange(1, 120)):
        word = rng.choice(
            ["yaml", "names", "model", "version", "a", "\x1b[2J", "w" * 400, "_modules", "state"]
        ).encode()
        out.append(
            rng.choice(
                [
                    b"X" + struct.pack("<I", len(word)) + word,
                    b"K" + bytes([rng.randrange(256)]),
                    b"\x8a\x08" + struct.pack("<q", rng.choice([2**62, -1, 0, 2**40])),
                    b"G" + struct.pack(">d", rng.choice([0.0, 1e300, float("nan")])),
                    b"h" + bytes([rng.randrange(4)]),
                    b"q" + bytes([rng.randrange(4)]),
                    rng.choice([b"}", b"]", b")", b"(", b"t", b"s", b"u", b"a", b"e", b"N", b"0", b"1", b"2", b"\x85"]),
                    rng.choice([b"\x86", b"\x87", b"\x88", b"b", b"R", b"\x81", b"Q", b"\x8f", b"\x90", b"\x94"]),
                    rng.choice(
                        [b"cos\nsystem\n", b"cmodels.yolo\nModel\n", b"ctorch\nFloatStorage\n", b"cbuiltins\nset\n"]
                    ),
                ]
            )
        )
    with zipfile.ZipFile(folder / "w.pt", "w") as archive:
        archive.writestr("a/data.pkl", b"".join(out) + b".")
        archive.writestr("a/data/0", bytes(64))
    refused_or_read(lambda: load(folder / "w.pt"))


def fuzz_yaml(rng: random.Random, folder: Path) -> None:
    """Model, hyp and data YAMLs with damaged text, and spoiled values written as YAML."""
    try:
        text = yaml.safe_dump(spoil(CFG, rng, rng.randrange(3)) if rng.random() < 0.5 else CFG)
    except (yaml.YAMLError, RecursionError):
        return
    letters = list(text[:20_000])
    for _ in range(rng.randrange(1, 20)):
        at = rng.randrange(len(letters))
        letters[at] = rng.choice(
            [*"&*!|>{}[]:,#?-%@`\"'\t\n~", "\x1b", "&a [*a]", "!!python/name:os ", "<<: ", "9" * 400]
        )
    path = folder / "a.yaml"
    path.write_bytes("".join(letters).encode("utf-8", "replace"))
    for read in (read_yaml, Hyp.from_yaml, plan_model):
        refused_or_read(lambda read=read: read(path))  # type: ignore[misc]


def fuzz_names(rng: random.Random, folder: Path) -> None:
    """Lists and mappings of class names, and the metadata of exported files."""
    names = spoil({"names": {0: "a", 1: "b", "2": "c"}}, rng, rng.randrange(1, 3)).get("names")
    refused_or_read(lambda: class_names(names, "F", strict=rng.random() < 0.5))
    made = spoil(METADATA, rng, rng.randrange(1, 4), shared=False)
    try:
        text = json.dumps(made, default=str)
    except (ValueError, RecursionError, TypeError, MemoryError):
        return
    if len(text) < 20_000_000:
        refused_or_read(lambda: Metadata.from_json(text, "F.onnx"))
        pairs = {
            key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in made.items()
        }
        refused_or_read(lambda: Metadata.from_strings(pairs, "F.onnx"))


FUZZERS: dict[str, Fuzzer] = {
    "checkpoint": fuzz_checkpoint,
    "plain": fuzz_plain,
    "rows": fuzz_rows,
    "pickle": fuzz_pickle,
    "yaml": fuzz_yaml,
    "names": fuzz_names,
}
