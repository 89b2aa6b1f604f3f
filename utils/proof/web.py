"""The web page of a model: a folder for any static server, with page, model and runtime."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

from utils.files import REPO

ORT_WEB = "1.30.0"  # of onnxruntime-web, the version the page was tested with
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE = REPO / "examples" / "web"
LICENSE = "onnxruntime-LICENSE.txt"  # the npm package names its license, but does not contain the text


def write_page(folder: Path, onnx: Path, metadata: str, ort_web: str = "") -> None:
    """Make `folder` with the page, the model, its metadata, and the runtime with its license.

    Args:
        ort_web: folder of an unpacked npm package onnxruntime-web; empty: download version ORT_WEB with `npm pack`.

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
    with tempfile.TemporaryDirectory() as temporary:
        copy_runtime(download_runtime(Path(temporary)), folder / "ort")


def download_runtime(folder: Path) -> Path:
    """The folder of the unpacked npm package onnxruntime-web, downloaded into `folder`; no script of it is run.

    Raises:
        FileNotFoundError, ValueError: no npm; it failed.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm not found: install Node.js, or pass --ort-web FOLDER with onnxruntime-web in it")
    command = [npm, "pack", "--ignore-scripts", "--silent", f"onnxruntime-web@{ORT_WEB}"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    archives = list(folder.glob("*.tgz"))
    if result.returncode or len(archives) != 1:
        reason = (result.stderr or result.stdout).strip().splitlines()
        raise ValueError(f"npm pack onnxruntime-web@{ORT_WEB} failed: {reason[-1] if reason else result.returncode}")
    with tarfile.open(archives[0]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def copy_runtime(package: Path, target: Path) -> None:
    """Copy the files that the page loads, and the package's license, to the new folder `target`."""
    target.mkdir()
    for name in RUNTIME:
        source = package / "dist" / name
        if not source.is_file():
            raise FileNotFoundError(f"{source}: not found, expected the package onnxruntime-web {ORT_WEB} in {package}")
        shutil.copyfile(source, target / name)
    shutil.copyfile(PAGE / LICENSE, target / "LICENSE.txt")
