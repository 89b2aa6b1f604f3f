"""The command `yolov5-mobilevit` of the installed package; in a clone `python -m tools.cli`.

`yolov5-mobilevit train --imgsz 320` is `python train.py --imgsz 320` from any folder.
"""

from __future__ import annotations

import ast
import importlib
import sys
from typing import NamedTuple

from utils.config import run_script
from utils.files import REPO, VERSION

PROGRAM = "yolov5-mobilevit"


class Command(NamedTuple):
    """Where a command's main function is.

    Attributes:
        module: as it is imported in a clone.
        config: the class in it that holds the flags; without one, main() reads the command line itself.
        purpose: one line for the list of commands; without it, the first line of the config's docstring.
    """

    module: str
    config: str = ""
    purpose: str = ""


COMMANDS = {
    "train": Command("train", "TrainConfig"),
    "val": Command("val", "ValConfig"),
    "detect": Command("detect", "DetectConfig"),
    "export": Command("export", "ExportConfig"),
    "demo": Command("tools.demo", "DemoConfig"),
    "shapes": Command("data.make_shapes", purpose="Draw the built-in data set."),
    "summary": Command("models.yolo", purpose="Print the layers, parameters and GFLOPs of model YAMLs."),
    "doctor": Command("tools.doctor", "DoctorConfig"),
    "report": Command("utils.train.report", "ReportConfig"),
    "convert": Command("tools.convert", "ConvertConfig"),
    "hub": Command("tools.hub", "HubConfig"),
    "classify": Command("tools.classify", "ClassifyConfig"),
    "benchmark": Command("tools.benchmark", "BenchmarkConfig"),
    "study": Command("tools.study", "StudyConfig"),
}


def main() -> None:
    """Run the command that the first word of the command line names; exits with 2 if there is none of that name."""
    name, *words = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(overview())
    elif name == "--version":
        print(PROGRAM, VERSION)
    elif name in COMMANDS:
        run(name, words)
    else:
        print(f"error: unknown command '{name}', expected one of: {', '.join(COMMANDS)}", file=sys.stderr)
        sys.exit(2)


def run(name: str, words: list[str]) -> None:
    """Import the module of a command and run its main function with these words."""
    command = COMMANDS[name]
    sys.argv = [f"{PROGRAM} {name}", *words]  # its usage line begins like this
    above = (__package__ or "").removesuffix("tools")  # "" in a clone, "yolov5_mobilevit." in the installed package
    module = importlib.import_module(above + command.module)
    if not command.config:
        sys.exit(module.main())
    run_script(module.main, getattr(module, command.config))


def overview() -> str:
    """The help text: the commands with a line each."""
    lines = [f"  {name:<10} {command.purpose or first_line(command)}" for name, command in COMMANDS.items()]
    usage = f"usage: {PROGRAM} COMMAND [flags]"
    more = f"{PROGRAM} COMMAND --help lists the flags of a command, {PROGRAM} --version prints the version."
    return "\n".join([usage, "", *lines, "", more])


def first_line(command: Command) -> str:
    """Of the docstring of a command's config class, read from its source: importing it imports torch, for seconds."""
    path = REPO.joinpath(*command.module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == command.config)
    return (ast.get_docstring(config) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
