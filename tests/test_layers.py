"""The layout: the map in CONTRIBUTING.md is the tree, imports point one way, and importing only defines names."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from utils.files import REPO

SCRIPTS = ("train", "val", "detect", "export", "hubconf")
FILES = [*(REPO / "models").rglob("*.py"), *(REPO / "utils").rglob("*.py")]
# Room -> the rooms it may import, besides itself and the ground floor of utils.
MAY_IMPORT = {
    "utils": set(),
    "utils.data": set(),
    "utils.annotate": {"utils.data"},
    "utils.doctor": {"utils.data", "utils.evaluate"},
    "utils.evaluate": {"utils.data"},
    "utils.predict": {"utils.data"},
    "utils.proof": {"utils.data"},
    "utils.rank": {"utils.predict", "utils.evaluate"},
    "utils.track": {"utils.predict"},
    "utils.train": {"utils.data", "utils.evaluate"},
    "models": set(),
    "models.weights": {"models"},
    "models.export": {"models", "models.weights"},
    "models.runtimes": {"models", "models.weights", "models.export"},
}


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


MODULES = {dotted(path): path for path in FILES}
ROOMS = {dotted(path) for path in FILES if path.name == "__init__.py"}


def room_of(module: str) -> str:
    return module if module in ROOMS else module.rpartition(".")[0]


def imports(path: Path) -> Iterator[str]:
    """The project's modules that a file imports, inside functions and for type checks too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in inside]
        yield from (name for name in names if name.split(".")[0] in ("models", "utils", "data", "tools", *SCRIPTS))


def the_map() -> dict[str, set[str]]:
    """Room -> modules, as CONTRIBUTING.md has them."""
    text = (REPO / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"^```map\n(.*?)^```", text, re.M | re.S)
    assert block
    rows = re.findall(r"^((?:models|utils)\S*)/ +(.+)$", block[1], re.M)
    return {room.replace("/", "."): set(re.sub(r"\(.*?\)", "", words).split()) for room, words in rows}


def test_the_map_is_the_tree() -> None:
    tree: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module in MODULES.keys() - ROOMS:
        tree[room_of(module)].add(module.rpartition(".")[2])
    assert the_map() == tree
    assert set(MAY_IMPORT) == ROOMS


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_upward_arrow(module: str) -> None:
    room = room_of(module)
    allowed = MAY_IMPORT[room] | {room, "utils"}
    wrong = [name for name in imports(MODULES[module]) if room_of(name) not in allowed]
    assert not wrong, f"{module} imports {wrong}; {room} may import {sorted(allowed)}"


def test_no_cycles() -> None:
    """Modules can be put in an order in which each imports only earlier ones."""
    left = {module: {name for name in imports(path) if name in MODULES} for module, path in MODULES.items()}
    while left:
        free = [module for module, needs in left.items() if not needs & left.keys()]
        assert free, f"these import each other: {sorted(left)}"
        for module in free:
            del left[module]


def test_rooms_say_what_is_in_them_and_nothing_else() -> None:
    for room in ROOMS:
        tree = ast.parse(MODULES[room].read_text(encoding="utf-8"))
        assert len(tree.body) == 1 and ast.get_docstring(tree), room


def test_imports_print_nothing_and_make_nothing(tmp_path: Path) -> None:
    modules = [*(MODULES.keys() - ROOMS - {"utils.train.search"}), *SCRIPTS]  # a search needs optuna
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); import {', '.join(sorted(modules))}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
