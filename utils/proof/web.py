"""The demo page: a folder that any static server can serve, with the model and its runtime inside."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from utils.config import REPO

ORT_WEB = "1.30.0"  # of onnxruntime-web, the version the page was tested with
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = REPO / "examples" / "web"
LICENCE = "onnxruntime-LICENSE.txt"  # the npm package names its licence, but does not hold the text


def write_page(folder: Path, onnx: Path, metadata: str, ort_web: str = "") -> None:
    """Fill the new `folder` with page, model, its metadata and the runtime with its licence.

    Args:
        ort_web: folder of an unpacked npm package onnxruntime-web; empty fetches version ORT_WEB by `npm pack`.

    Raises:
        FileNotFoundError, ValueError: no npm, no such package, or one without the files of RUNTIME.
    """
    folder.mkdir()
    for file in sorted(PAGE.iterdir()):
        if file.suffix in (".html", ".mjs", ".svg"):
            shutil.copyfile(file, folder / file.name)
    shutil.copyfile(onnx, folder / "model.onnx")
    (folder / "model.json").write_text(metadata, encoding="utf-8")
    if ort_web:
        copy_runtime(Path(ort_web), folder / "ort")
        return
    with tempfile.TemporaryDirectory() as place:
        copy_runtime(fetch_runtime(Path(place)), folder / "ort")


def fetch_runtime(place: Path) -> Path:
    """Fetch onnxruntime-web from the npm registry into `place` -> the unpacked package. No script of it is run.

    Raises:
        FileNotFoundError, ValueError: no npm; it failed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm not found: install Node.js, or pass --ort-web FOLDER with onnxruntime-web in it")
    command = [npm, "pack", "--ignore-scripts", "--silent", f"onnxruntime-web@{ORT_WEB}"]
    result = subprocess.run(command, cwd=place, capture_output=True, text=True)
    archives = list(place.glob("*.tgz"))
    if result.returncode or len(archives) != 1:
        reason = (result.stderr or result.stdout).strip().splitlines()
        raise ValueError(f"npm pack onnxruntime-web@{ORT_WEB} failed: {reason[-1] if reason else result.returncode}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(place, filter="data")
    return place / "package"


def copy_runtime(package: Path, target: Path) -> None:
    """The files that the page loads, and the package's licence."""
    target.mkdir()
    for name in RUNTIME:
        source = package / "dist" / name
        if not source.is_file():
            raise FileNotFoundError(f"{source}: not found, expected the package onnxruntime-web {ORT_WEB} in {package}")
        shutil.copyfile(source, target / name)
    shutil.copyfile(PAGE / LICENCE, target / "LICENSE.txt")
