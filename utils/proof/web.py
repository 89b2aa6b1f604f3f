"""The web page of a model: a folder for any static server, with page, model and runtime."""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from utils.files import REPO
from utils.palette import PALETTE

ORT_WEB = "1.30.0"  # of onnxruntime-web, the version the page was tested with
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PACKED = ".wasm"  # the page unpacks these itself: 14 MB become 4, whatever server sends them
PAGE = REPO / "examples" / "web"
LICENSE = "onnxruntime-LICENSE.txt"  # the npm package names its license, but does not contain the text


def write_page(folder: Path, onnx: Path, metadata: str, ort_web: str = "", title: str = "") -> None:
    """Make `folder` with the page, the model, its metadata, and the runtime with its license.

    Args:
        metadata: JSON of the ONNX file's metadata; model.json has it, the palette of drawings, `title` and a
            fingerprint of the ONNX file.
        ort_web: folder of an unpacked npm package onnxruntime-web; empty: download version ORT_WEB with `npm pack`.
        title: name of the model, see page_title.

    Raises:
        FileNotFoundError, ValueError: no npm, no such package, or one without the files of RUNTIME.
    """
    folder.mkdir()
    for file in sorted(PAGE.iterdir()):
        if file.suffix != ".txt":
            shutil.copyfile(file, folder / file.name)
    shutil.copyfile(onnx, folder / "model.onnx")
    if ort_web:
        copy_runtime(Path(ort_web), folder / "ort")
    else:
        with tempfile.TemporaryDirectory() as temporary:
            copy_runtime(download_runtime(Path(temporary)), folder / "ort")
    model = {"title": title, "fingerprint": digest([folder / "model.onnx"]), "palette": PALETTE} | json.loads(metadata)
    if model.get("thresholds"):
        model["conf_threshold"] = model["thresholds"]["confidence"]  # where the page's slider starts
    (folder / "model.json").write_text(json.dumps(model, ensure_ascii=False), encoding="utf-8")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in files]
    listed = {"version": digest(files), "files": [*names, "files.json"]}  # what the page keeps for offline use
    (folder / "files.json").write_text(json.dumps(listed), encoding="utf-8")


def page_title(weights: Path) -> str:
    """The name of a model: that of its run for .../NAME/weights/best.pt, else that of the file."""
    run = weights.resolve().parent
    return run.parent.name if run.name == "weights" and weights.stem in ("best", "last") else weights.stem


def digest(files: Sequence[Path]) -> str:
    """16 characters that differ for other contents or names."""
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]


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
        if source.suffix == PACKED:
            packed = gzip.compress(source.read_bytes(), mtime=0)  # without a time: equal files for an equal package
            (target / f"{name}.gz").write_bytes(packed)
        else:
            shutil.copyfile(source, target / name)
    shutil.copyfile(PAGE / LICENSE, target / "LICENSE.txt")
