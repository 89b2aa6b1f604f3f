"""One backend used from several threads gives each caller its own boxes, whatever the runtime."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import tiny_model, write_tiny

import export
import hubconf
from models.export.metadata import Metadata, append_metadata
from models.runtimes.load import load_backend

CPU = torch.device("cpu")
THREADS, CALLS = 8, 6  # calls of each thread; 200 were tried once with every runtime
NAMES = ("pytorch", *(name for name in export.FORMATS if name != "coreml"))


def images_of(seed: int) -> torch.Tensor:
    coarse = torch.rand(1, 3, 7, 7, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (64, 64))


def apart(backend, threads: int = THREADS, calls: int = CALLS) -> list[float]:
    """The difference of each call of each thread from a call of one thread with the same image."""
    images = [images_of(seed) for seed in range(threads)]
    alone = [backend(image) for image in images]
    assert all(float((alone[0] - other).abs().max()) > 1 for other in alone[1:])  # so that a mix-up shows
    start = threading.Barrier(threads)

    def work(i: int) -> float:
        start.wait()
        return max(float((backend(images[i]) - alone[i]).abs().max()) for _ in range(calls))

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(threads)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("threads")
    write_tiny(place)
    return place


def backend_of(name: str, folder: Path):
    """tiny.pt in a runtime; skips where its packages are missing."""
    if name != "pytorch" and (missing := export.FORMATS[name].missing()):
        pytest.skip(f"{name} needs {', '.join(missing)}, see requirements-export.txt")
    path = folder / "tiny.pt"
    if name != "pytorch":
        flags = {"imgsz": (64,), "images": (str(folder / "images"),), "threads": 1, "out": str(folder / name)}
        path = export.main(export.ExportConfig(weights=str(path), include=(name,), **flags))[0].path
    return load_backend(path, CPU, threads=1)


@pytest.mark.parametrize("name", NAMES)
def test_each_thread_gets_its_own_boxes(name, folder):
    assert max(apart(backend_of(name, folder))) < 1e-3


def test_threads_share_a_model_of_the_python_api(folder):
    model = hubconf.load(folder / "tiny.pt", device="cpu")
    model.conf = 0.4
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (6, 4 + i, 3), np.uint8).repeat(20, 0).repeat(20, 1) for i in range(THREADS)]
    alone = [model(image, size=64).xyxy[0] for image in images]
    assert min(map(len, alone)) > 0
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(2):
            together = list(
                pool.map(lambda i: model(images[i], size=64 if i % 2 else (64, 64)).xyxy[0], range(THREADS))
            )
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


# ---- runtimes that hold one input, played by a stand-in, where their packages are missing ----------------------------


class OneInput:
    """A runtime that holds one input and gives what it holds, a moment later."""

    def __init__(self, *_, **__):
        self.held = np.zeros(0)

    def allocate_tensors(self): ...

    def get_input_details(self):
        return [{"index": 0, "name": "in", "quantization": (0.0, 0), "dtype": np.float32}]

    def get_output_details(self):
        return [{"index": 1, "name": "out", "quantization": (0.0, 0), "dtype": np.float32}]

    def set_tensor(self, index, values):
        self.held = values

    def invoke(self):
        time.sleep(0.002)

    def get_tensor(self, index):
        return self.held.reshape(1, -1, 8)[:, :9] * 100

    def load_program(self, path):
        return SimpleNamespace(load_method=lambda name: self)

    def execute(self, inputs):
        self.set_tensor(0, inputs[0].numpy())
        self.invoke()
        return [torch.from_numpy(self.get_tensor(1))]


@pytest.mark.parametrize(
    ("suffix", "module"), [("tflite", "ai_edge_litert.interpreter"), ("pte", "executorch.runtime")]
)
def test_a_runtime_that_holds_one_input_is_locked(suffix, module, tmp_path, monkeypatch):
    stand_in = SimpleNamespace(Interpreter=OneInput, Runtime=SimpleNamespace(get=OneInput))
    monkeypatch.setitem(sys.modules, module.split(".")[0], SimpleNamespace())
    monkeypatch.setitem(sys.modules, module, stand_in)
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(b"some flatbuffer")
    append_metadata(path, Metadata.of(tiny_model(), (64, 64), 1))
    backend = load_backend(path, CPU)
    assert apart(backend) == [0.0] * THREADS
    monkeypatch.setattr(backend, "lock", threading.Semaphore(THREADS))  # no lock: the test sees a mix-up
    assert max(apart(backend)) > 1


def test_compiled_weights_run_one_call_at_a_time(folder, monkeypatch):
    """torch.compile compiles at the first call, which is not for several threads at once."""
    inside, most = [], []

    def slow(model, **_):
        def forward(images):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.001)
            output = model(images)
            inside.pop()
            return output

        return forward

    monkeypatch.setattr(torch, "compile", slow)
    monkeypatch.setattr("shutil.which", lambda name: name)
    assert max(apart(load_backend(folder / "tiny.pt", CPU, compiled=True), calls=2)) < 1e-3 and max(most) == 1
