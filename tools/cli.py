"""The command `yolov5-mobilevit` of the installed package; in a clone `python -m tools.cli`.

`yolov5-mobilevit train --imgsz 320` is `python train.py --imgsz 320` from any folder.
"""

from __future__ import annotations

import ast
import importlib
import runpy
import sys
from typing import NamedTuple

from utils.commands import PROGRAM
from utils.files import REPO, VERSION
from utils.interrupts import quit_on_interrupt


class Command(NamedTuple):
    """Which module a command runs.

    Attributes:
        module: as it is imported in a clone.
        config: the class in it that holds the flags; without one, main() reads the command line itself.
        flags: the module that defines this class; empty: `module` does.
        purpose: one line for the list of commands; without it, the first line of the config's docstring.
    """

    module: str
    config: str = ""
    flags: str = ""
    purpose: str = ""


COMMANDS = {
    "train": Command("train", "TrainConfig", "utils.train.flags"),
    "val": Command("val", "ValConfig"),
    "detect": Command("detect", "DetectConfig"),
    "export": Command("export", "ExportConfig"),
    "demo": Command("tools.demo", "DemoConfig"),
    "shapes": Command("data.make_shapes", purpose="Draw the built-in data set."),
    "summary": Command("models.yolo", purpose="Print the layers, parameters and GFLOPs of model YAMLs."),
    "doctor": Command("tools.doctor", "DoctorConfig"),
    "compare": Command("tools.compare", "CompareConfig"),
    "rank": Command("tools.rank", "RankConfig"),
    "import": Command("tools.import_labels", "ImportConfig"),
    "report": Command("utils.train.report", "ReportConfig"),
    "serve": Command("tools.serve", "ServeConfig"),
    "convert": Command("tools.convert", "ConvertConfig"),
    "hub": Command("tools.hub", "HubConfig"),
    "classify": Command("tools.classify", "ClassifyConfig"),
    "benchmark": Command("tools.benchmark", "BenchmarkConfig"),
    "study": Command("tools.study", "StudyConfig"),
}


def main() -> None:
    """Run the command that the first word of the command line names; exits with 2 if there is none of that name."""
    quit_on_interrupt()
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
    """Run the module of a command as a script with these words; one without a config class, its main function."""
    command = COMMANDS[name]
    sys.argv = [f"{PROGRAM} {name}", *words]  # its usage line begins like this
    above = (__package__ or "").removesuffix("tools")  # "" in a clone, "yolov5_mobilevit." in the installed package
    if command.config:  # as a script, it answers --help before the imports that take seconds
        runpy.run_module(above + command.module, run_name="__main__", alter_sys=True)
    else:
        sys.exit(importlib.import_module(above + command.module).main())


def overview() -> str:
    """The help text: the commands with a line each."""
    lines = [f"  {name:<10} {command.purpose or first_line(command)}" for name, command in COMMANDS.items()]
    usage = f"usage: {PROGRAM} COMMAND [flags]"
    more = f"{PROGRAM} COMMAND --help lists the flags of a command, {PROGRAM} --version prints the version."
    return "\n".join([usage, "", *lines, "", more])


def first_line(command: Command) -> str:
    """Of the docstring of a command's config class, read from its source: importing it imports torch, for seconds."""
    path = REPO.joinpath(*(command.flags or command.module).split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    config = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == command.config)
    return (ast.get_docstring(config) or "").partition("\n")[0]


if __name__ == "__main__":
    main()
