"""The notebook runs from top to bottom on the built-in set, without a network, with small numbers in its first cell."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from utils.files import REPO

NOTEBOOK = REPO / "examples" / "first_steps.ipynb"
SMALL = {"IMAGES": 8, "EPOCHS": 1, "IMGSZ": 64}
NO_NETWORK = """
import socket

def refused(self, address):
    assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1"), f"a connection to {address}"
    return connect(self, address)

connect, socket.socket.connect = socket.socket.connect, refused
"""
WRITTEN = (
    "shapes/data.yaml", "train/report.html", "train/weights/best.pt", "val/confusion_matrix.png",
    "exported/best.torchscript",
)  # fmt: skip


def small(folder: Path) -> dict[str, Any]:
    """The notebook with other numbers after its cell of parameters, as papermill sets them."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    (place,) = (i for i, c in enumerate(notebook["cells"]) if "parameters" in c["metadata"].get("tags", ()))
    own = "".join(f"{name} = {value!r}\n" for name, value in {"FOLDER": str(folder), **SMALL}.items())
    for name in ("FOLDER", *SMALL):
        assert f"{name} = " in "".join(notebook["cells"][place]["source"])
    cell = {**notebook["cells"][place], "id": "small", "source": NO_NETWORK + own}
    notebook["cells"].insert(place + 1, cell)
    return notebook


def test_it_runs_as_plain_python(tmp_path: Path) -> None:
    cells = [cell for cell in small(tmp_path)["cells"] if cell["cell_type"] == "code"]
    program = "\n".join("".join(cell["source"]) for cell in cells)
    result = subprocess.run(
        [sys.executable, "-"], input=program, capture_output=True, text=True, cwd=NOTEBOOK.parent, timeout=600
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert [name for name in WRITTEN if not (tmp_path / name).is_file()] == []
    assert "image 1/2" in result.stdout and "mAP50" in result.stdout


def test_it_runs_in_jupyter(tmp_path: Path) -> None:
    """Each cell that ends in an image or a table shows it."""
    if not all(importlib.util.find_spec(name) for name in ("nbclient", "nbformat", "ipykernel")):
        pytest.skip("no Jupyter here (pip install nbclient ipykernel)")
    import nbclient
    import nbformat

    notebook = nbformat.reads(json.dumps(small(tmp_path)), as_version=4)
    nbformat.validate(notebook)
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    shown = [
        kind
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        for kind in output.get("data", ())
        if kind in ("image/png", "text/html")
    ]
    assert shown.count("image/png") >= 5 and shown.count("text/html") >= 1
    assert [name for name in WRITTEN if not (tmp_path / name).is_file()] == []


def test_it_is_kept_without_outputs() -> None:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in cells if c["cell_type"] == "code")
    assert len({cell["id"] for cell in cells}) == len(cells) and notebook["nbformat"] == 4
    text = "".join(line for cell in cells for line in cell["source"])
    for name in ("docs/export.md", "docs/detect.md", "docs/python-api.md", "docs/devices.md"):
        assert name in text and (REPO / name).is_file()
