"""--help: in groups and in words, with an example that works, and before torch is imported."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from export import NAMES, OTHER_TOOLS
from models.export.int8 import INT8_OPS
from models.export.writers import FORMATS, OPSET
from tools.cli import COMMANDS
from utils.commands import command, program
from utils.config import EXAMPLE, Config, build_parser, flag, parse_cli
from utils.files import REPO
from utils.train.optim import OPTIMIZERS

CONFIGS = {
    name: getattr(importlib.import_module(entry.module), entry.config)
    for name, entry in COMMANDS.items()
    if entry.config
}
SCRIPTS = ("train", "val", "detect", "export")
HEAVY = {"torch", "cv2", "numpy", "PIL", "matplotlib"}


def helped(*words: str, **options: str) -> subprocess.CompletedProcess[str]:
    """A finished Python process in the repository."""
    return subprocess.run(
        [sys.executable, *words], cwd=REPO, env=os.environ | {"COLUMNS": "80"} | options, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_help_is_answered_before_the_imports_that_take_seconds(name: str) -> None:
    path = f"{COMMANDS[name].module.replace('.', '/')}.py"
    words = [path] if not path.startswith("utils") else ["-m", COMMANDS[name].module]
    for call in (words, ["-m", "tools.cli", name]):
        result = helped("-X", "importtime", *call, "--help")
        assert result.returncode == 0 and result.stdout.startswith("usage: python "), result.stderr[-300:]
        imported = {line.rpartition("|")[2].strip().split(".")[0] for line in result.stderr.splitlines()}
        assert "argparse" in imported and not imported & HEAVY


def test_a_mistake_is_answered_before_them_too() -> None:
    result = helped("-X", "importtime", "train.py", "--batch-size", "0")
    assert result.returncode == 2 and "torch" not in result.stderr
    assert result.stderr.splitlines()[-1] == "error: --batch-size 0: expected at least 1 or -1"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "--epohcs 3",
            "error: unrecognized arguments: --epohcs 3 (did you mean --epochs?); python train.py --help lists",
        ),
        ("--qqqq", "error: unrecognized arguments: --qqqq; python train.py --help lists"),
        ("--epochs x", "error: --epochs: invalid int value: 'x'; python train.py --help lists"),
        ("--amp fast", "error: --amp: invalid choice: 'fast' (choose from"),
        ("--no", "error: ambiguous option: --no could match"),
    ],
)
def test_a_mistake_is_one_line_with_what_was_probably_meant(line: str, expected: str, capsys) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_cli(CONFIGS["train"], line.split())
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(expected) and error.count("\n") == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_defaults_are_written_as_a_person_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for columns in (60, 80, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = build_parser(CONFIGS[name]).format_help()
        defaults = re.findall(r"\(default: (.*?)\)", " ".join(text.split()))
        assert not [d for d in defaults if d in ("", "None", "False", "True", "()") or d[0] in "('["]
        assert "()" not in text and "{," not in text and max(map(len, text.splitlines())) <= max(columns, 110)
    text = " ".join(build_parser(CONFIGS["train"]).format_help().split())
    assert "as many as fit (default: 16)" in text and "auto (the default) is fp16 on CUDA, else off" in text
    assert "number of epochs (default: 100)" in " ".join(build_parser(CONFIGS["train"]).format_help().split())


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_flag_is_in_a_group(name: str) -> None:
    headings = [line for line in build_parser(CONFIGS[name]).format_help().splitlines() if re.match(r"\w.*:$", line)]
    assert headings[0] == "options:" and len(headings) == len(set(headings)) >= 5
    options = build_parser(CONFIGS[name]).format_help().partition("options:")[2].partition("\n\n")[0]
    assert options.count("--") == 1 and "--help" in options


@pytest.mark.parametrize("name", CONFIGS)
def test_the_example_at_the_end_is_understood(name: str) -> None:
    config = CONFIGS[name]
    lines = build_parser(config).format_help().rstrip().splitlines()
    assert lines[-2] == "example:" and lines[-1].startswith(f"  {program(COMMANDS[name].module)} ")
    words = (config.__doc__ or "").replace("\n    ", "\n").partition(EXAMPLE)[2].split()
    needed = [f.name for f in fields(config) if f.metadata.get("positional")]
    assert words and parse_cli(config, words) != parse_cli(config, words[: len(needed)])


def test_words_that_a_flag_allows_are_those_that_are_known() -> None:
    """They are written twice, since the second place imports torch."""
    assert CONFIGS["train"].__dataclass_fields__["optimizer"].metadata["choices"] == ("", *OPTIMIZERS)
    fields = CONFIGS["export"].__dataclass_fields__
    assert fields["int8_ops"].metadata["choices"] == INT8_OPS and fields["opset"].default == OPSET
    assert (*FORMATS, "web") == NAMES and not set(NAMES) & set(OTHER_TOOLS)


def test_an_interruption_of_the_imports_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\n"
        f"sys.path.insert(0, {str(REPO)!r})\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in the background
        "from utils.config import Config, check_cli\n"
        "check_cli(Config)\n"
        "os.kill(os.getpid(), signal.SIGINT) if len(sys.argv) == 1 else {}[1]\n"
    )
    done = helped(str(script))
    assert (done.stderr, done.returncode) == ("interrupted\n", 130)
    text = script.read_text().replace("check_cli(Config)", "check_cli(Config); sys.argv.append('x')")
    script.write_text(text)
    assert "Traceback" in helped(str(script)).stderr


def test_a_group_holds_until_the_next_one() -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Example(Config):
        """An example."""

        a: int = flag(1, "first", group="one")
        b: int = flag(-1, "second", shown="none")
        c: bool = flag(True, "third", group="two")
        d: tuple[int, ...] = flag((3, 4), "fourth", group="one")

    globals()["Example"] = Example
    words = [line.split() for line in build_parser(Example).format_help().splitlines()]
    one, two = words.index(["one:"]), words.index(["two:"])
    assert words[one + 1 : one + 4] == [
        ["--a", "N", "first", "(default:", "1)"],
        ["--b", "N", "second", "(default:", "none)"],
        ["--d", "N", "...", "fourth", "(default:", "3", "4)"],
    ]
    assert words[two + 1] == ["--c,", "--no-c", "third", "(default:", "on)"]
    assert parse_cli(Example, []) == Example() and parse_cli(Example, ["--no-c", "--d", "5"]) == Example(
        c=False, d=(5,)
    )


def test_commands_are_those_of_the_clone_or_of_the_package() -> None:
    assert command("detect", "--weights", "my runs/best.pt") == "python detect.py --weights 'my runs/best.pt'"
    assert command("tools.doctor") == "python tools/doctor.py"
    assert command("yolov5_mobilevit.detect", "x", package="yolov5_mobilevit.utils") == "yolov5-mobilevit detect x"
