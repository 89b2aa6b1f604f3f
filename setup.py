"""The build: copies the clone's tree below the package `yolov5_mobilevit` and changes its imports to match.

In a clone the modules are top-level (`train`, `models`, `utils`), the layout people know from YOLOv5. Installed there,
they would shadow a user's own modules of these names. So in the wheel `from models.yolo import X` is
`from yolov5_mobilevit.models.yolo import X`. The rest of the metadata is in pyproject.toml.
"""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.editable_wheel import editable_wheel

PACKAGE = "yolov5_mobilevit"
ROOT = Path(__file__).resolve().parent
INIT = "tools/package_init.py"  # becomes the package's __init__.py
SHIPPED = (  # patterns, so that weights and data sets that somebody keeps in the clone stay out
    *("train.py", "val.py", "detect.py", "export.py", "hubconf.py"),
    *(f"{folder}/**/*.{suffix}" for folder in ("models", "utils", "tools") for suffix in ("py", "yaml", "j2", "html")),
    *("data/*.py", "data/*.yaml", "data/hyps/*.yaml", "data/images/*.jpg"),
    *("examples/*.py", *(f"examples/web/*.{suffix}" for suffix in ("html", "css", "mjs", "js", "json", "svg", "txt"))),
)
OWN = {pattern.split("/")[0].removesuffix(".py") for pattern in SHIPPED}  # top-level names in a clone
IMPORTERS = {"__import__", "import_module", "find_spec", "run_module"}  # functions that take a module's name as text
CLONE_ONLY = "no editable installs: run `python train.py` in the clone, which is what you edit, or `pip install .`"


def shipped_files() -> list[str]:
    """Paths of the files that go into the package, relative to the clone, with forward slashes."""
    found = {path.relative_to(ROOT).as_posix() for pattern in SHIPPED for path in ROOT.glob(pattern)}
    return sorted(found)


def rewrite(source: str, where: str) -> str:
    """Python source with our own modules imported from PACKAGE, and without the lines that extend sys.path.

    Only the source ranges of these statements change; the rest stays as it is, character for character.

    Raises:
        ValueError: a use of sys.path or an import by name that this cannot translate; `where` is the file's name.
    """
    data = source.encode()  # ast counts columns in bytes of UTF-8
    starts = [0]
    for line in data.split(b"\n"):
        starts.append(starts[-1] + len(line) + 1)
    edits = []
    for node in ast.walk(ast.parse(source, where)):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr) and node.end_lineno and node.end_col_offset:
            begin, end = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            old = data[begin:end].decode()
            edits.append((begin, end, translate(node, old).encode()))
    for begin, end, new in sorted(edits, reverse=True):
        data = data[:begin] + new + data[end:]
    result = data.decode()
    check(result, where)
    return result


def translate(node: ast.Import | ast.ImportFrom | ast.Expr, source: str) -> str:
    """The source of a statement as it reads in the package; `source` itself if nothing of it changes."""
    if isinstance(node, ast.ImportFrom):
        return re.sub(r"\Afrom[\s\\]+", rf"\g<0>{PACKAGE}.", source) if not node.level and own(node.module) else source
    if isinstance(node, ast.Import):
        return "; ".join(map(translate_alias, node.names)) if any(own(alias.name) for alias in node.names) else source
    called = node.value.func if isinstance(node.value, ast.Call) else None
    return "pass" if isinstance(called, ast.Attribute) and is_sys_path(called.value) else source


def translate_alias(alias: ast.alias) -> str:
    """An import statement that binds what `import alias` binds in a clone."""
    if not own(alias.name):
        return f"import {ast.unparse(alias)}"
    if alias.asname:
        return f"import {PACKAGE}.{alias.name} as {alias.asname}"
    top, dot, _ = alias.name.partition(".")
    return f"import {PACKAGE}.{alias.name}; " * bool(dot) + f"from {PACKAGE} import {top}"


def check(source: str, where: str) -> None:
    """Raise ValueError if rewritten source still changes sys.path or imports one of our modules by a clone's name."""
    for node in ast.walk(ast.parse(source, where)):
        if is_sys_path(node):
            raise ValueError(f"{where}: sys.path is used, expected nothing but a statement sys.path.insert(...)")
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function, name = ast.unparse(node.func).rpartition(".")[2], node.args[0].value
            if function in IMPORTERS and isinstance(name, str) and own(name):
                raise ValueError(f"{where}: {function}({name!r}) fails in the installed package, expected an import")


def own(module: str | None) -> bool:
    """Whether a dotted name is that of one of our modules in a clone."""
    return (module or "").partition(".")[0] in OWN


def is_sys_path(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == "path" and ast.unparse(node.value) == "sys"


def requirements(name: str) -> list[str]:
    """The requirements in a file and in those that it includes with -r."""
    found = []
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].strip()
        if words.startswith("-r"):
            found += requirements(words.removeprefix("-r").strip())
        elif words:
            found.append(words)
    return found


class BuildPackage(build_py):
    """The command that fills the wheel; and sdist asks it for the files."""

    def run(self) -> None:
        target = Path(self.build_lib, PACKAGE)
        shutil.rmtree(target, ignore_errors=True)  # an earlier build may have left modules that were moved since
        for name in shipped_files():
            path = target / ("__init__.py" if name == INIT else name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":
                path.write_text(rewrite((ROOT / name).read_text(encoding="utf-8"), name), encoding="utf-8")
            else:
                shutil.copyfile(ROOT / name, path)
        (target / "py.typed").touch()

    def get_source_files(self) -> list[str]:
        return shipped_files()

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [str(path) for path in Path(self.build_lib, PACKAGE).rglob("*") if path.is_file()]


class NoEditable(editable_wheel):
    def run(self) -> None:
        raise SystemExit(CLONE_ONLY)


if __name__ == "__main__":
    base = requirements("requirements.txt")
    files = {path.stem.removeprefix("requirements-"): path.name for path in sorted(ROOT.glob("requirements-*.txt"))}
    setup(
        packages=[PACKAGE],
        install_requires=base,
        extras_require={extra: [r for r in requirements(file) if r not in base] for extra, file in files.items()},
        cmdclass={"build_py": BuildPackage, "editable_wheel": NoEditable},
    )
