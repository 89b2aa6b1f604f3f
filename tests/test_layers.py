"""The layering: models/ and utils/ never import each other, and importing anything only defines names."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from utils.config import REPO

FILES = [*(REPO / "models").rglob("*.py"), *(REPO / "utils").rglob("*.py")]
SCRIPTS = ("train", "val", "detect", "export", "hubconf")


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").split(".")[0])
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(REPO)))
def test_no_upward_arrow(path: Path) -> None:
    other = {"models": "utils", "utils": "models"}[path.relative_to(REPO).parts[0]]
    assert not imported(path) & {other, *SCRIPTS}


def test_imports_print_nothing_and_make_nothing(tmp_path: Path) -> None:
    modules = [".".join(p.relative_to(REPO).with_suffix("").parts) for p in FILES if p.stem != "__init__"] + list(
        SCRIPTS
    )
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); import {', '.join(modules)}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
