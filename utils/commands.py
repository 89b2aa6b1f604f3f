"""Command lines of this project's scripts, as they are typed in a clone and with the installed package."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

PACKAGE, PROGRAM = "yolov5_mobilevit", "yolov5-mobilevit"  # the installed package, and its command


def program(module: str, package: str = __package__) -> str:
    """What starts a module's command line: 'python train.py', 'python tools/doctor.py', 'yolov5-mobilevit train'.

    Args:
        module: its name; '__main__' is the script that was started. package: of this file, other than `utils` if it is
            installed.
    """
    if module == "__main__":
        main = sys.modules["__main__"]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name if spec else Path(file or sys.argv[0]).stem
        if spec is None and file and Path(file).resolve().parent.name == "tools":
            module = f"tools.{module}"
    if package.startswith(PACKAGE):
        return f"{PROGRAM} {module.rpartition('.')[2]}"
    if module.startswith("tools.") or "." not in module:
        return f"python {module.replace('.', '/')}.py"
    return f"python -m {module}"


def command(module: str, *words: object, package: str = __package__) -> str:
    """The command line that starts a module with these words, which are quoted where a shell needs it."""
    return f"{program(module, package)} {shlex.join(str(word) for word in words)}".rstrip()


def quoted(path: str | Path) -> str:
    """A path as it is typed here, quoted where a shell needs it."""
    return shlex.quote(relative(path))


def relative(path: str | Path) -> str:
    """A path as it is typed here: relative to the working folder if it is below it."""
    path = Path(path)
    return (path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path).as_posix()
