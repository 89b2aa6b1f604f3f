"""The installed package: built from the source archive, used in a folder with a user's own `models` and `utils`."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from blobs import make_set
from tiny import write_tiny

import detect
from setup import PACKAGE, SHIPPED, check, rewrite
from tools import cli
from utils.config import parse_cli
from utils.files import REPO, VERSION

NOT_COPIED = (".git", ".venv*", "runs", "datasets", "node_modules", "build", "dist", "*.egg-info", "__pycache__")
DETECT = "--weights tiny.pt --source images --imgsz 128 --device cpu --save-txt --save-conf"
APP = """
import sys
path = list(sys.path)
import models, utils
import yolov5_mobilevit
from yolov5_mobilevit.tools import cli

early = (models.OWNER, utils.OWNER, yolov5_mobilevit.__version__, len(cli.overview()) > 0, "torch" in sys.modules)
from pathlib import Path
import importlib, json
root = Path(yolov5_mobilevit.__file__).parent
for file in sorted(root.rglob("*.py")):
    importlib.import_module(".".join(file.relative_to(root.parent).with_suffix("").parts).removesuffix(".__init__"))
results = yolov5_mobilevit.load("tiny.pt", device="cpu")("images/0.png", size=128)
import models, utils
own = [name for name, module in sys.modules.items() if str(root) in str(getattr(module, "__file__", ""))]
print(json.dumps({
    "early": early,
    "late": (models.OWNER, utils.OWNER),
    "same path": path == sys.path,
    "top": sorted({name.partition(".")[0] for name in own}),
    "all imported": len(own) == len(list(root.rglob("*.py"))),
    "boxes": results.xyxy[0].tolist(),
}))
"""


def run(command: Sequence[object], folder: Path, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    """The finished command, run in `folder` without the clone on its path; fails the test on another exit code."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | variables
    words = [str(word) for word in command]
    result = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == code, f"{' '.join(words)}\n{result.stdout}\n{result.stderr}"
    return result


def tree(folder: Path) -> dict[str, int]:
    """Time of the last change in nanoseconds of every file below a folder, by its path."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the clone: a build leaves files."""
    folder = tmp_path_factory.mktemp("package") / "source"
    shutil.copytree(REPO, folder, ignore=shutil.ignore_patterns(*NOT_COPIED))
    return folder


@pytest.fixture(scope="module")
def python(source: Path) -> Path:
    """The interpreter of an environment with the package; all else is that of the running one."""
    work = source.parent
    run([sys.executable, "-c", f"from setuptools.build_meta import build_sdist; build_sdist({str(work)!r})"], source)
    (archive,) = work.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", work, archive], work)
    run([sys.executable, "-m", "venv", "--without-pip", work / "env"], work)
    python = work / "env" / "bin" / "python"
    (packages,) = (work / "env").glob("lib/python*/site-packages")
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "shared.pth").write_text("\n".join(shared))
    (wheel,) = work.glob("*.whl")
    run([*pip, "--python", python, "install", "--no-index", "--no-deps", wheel], work)
    return python


@pytest.fixture(scope="module")
def mine(python: Path) -> Path:
    """A user's folder: modules of their own under our names, weights, images and a data set."""
    folder = python.parents[2] / "mine"
    (folder / "models").mkdir(parents=True)
    for name in ("models/__init__", "utils"):
        (folder / f"{name}.py").write_text(f"OWNER = 'user'\nprint({name!r}, 'of the user')\n")
    for name in ("train", "val", "detect", "export", "hubconf", "data", "tools", "examples"):
        (folder / f"{name}.py").write_text("raise AssertionError('the package imported a module of the user')\n")
    write_tiny(folder)
    make_set(folder / "set", count=2)
    (folder / "my.yaml").write_text("path: set\ntrain: images\nval: images\nnames: [wide, high, star]\n")
    return folder


@pytest.fixture
def command(python: Path, mine: Path):
    """A function that runs `yolov5-mobilevit` in the user's folder, whose modules come first on the path.

    Fails the test if one of these is imported or a file outside of the folder changes.
    """

    def call(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        before = {path: time for path, time in tree(mine.parent).items() if not path.startswith(str(mine))}
        result = run([python.parent / "yolov5-mobilevit", *words], mine, code, PYTHONPATH=str(mine))
        assert "of the user" not in result.stdout + result.stderr
        assert before == {path: time for path, time in tree(mine.parent).items() if not path.startswith(str(mine))}
        return result

    return call


def test_detect_finds_the_boxes_of_the_clone(command, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command("detect", *DETECT.split())
    monkeypatch.chdir(mine)
    detect.main(parse_cli(detect.DetectConfig, [*DETECT.split(), "--project", "clone"]))
    found, expected = (
        {path.name: path.read_text() for path in (mine / folder / "exp" / "labels").glob("*.txt")}
        for folder in ("runs/detect", "clone")
    )
    assert found == expected and len(found) == 4 and all(found.values())  # and classes.txt


def test_train_finds_its_yamls_and_writes_its_report(command, mine: Path) -> None:
    words = "--cfg yolov5n.yaml --hyp hyp.scratch-low.yaml --data my.yaml --epochs 1 --imgsz 64 --workers 0"
    command("train", *words.split(), "--device", "cpu")
    assert (mine / "runs/train/exp/report.html").stat().st_size and (mine / "runs/train/exp/weights/best.pt").is_file()
    command("detect", "--weights", "runs/train/exp/weights/best.pt", "--source", "data/images", "--name", "samples")
    assert len(list((mine / "runs/detect/samples").glob("*.jpg"))) == 2


def test_words_of_the_command(command) -> None:
    assert command("--version").stdout.split() == ["yolov5-mobilevit", VERSION]
    assert command().stdout == command("--help").stdout == cli.overview() + "\n"
    assert command("train", "--help").stdout.startswith("usage: yolov5-mobilevit train [flags]\n")
    assert command("shapes", "--help").stdout.startswith("usage: yolov5-mobilevit shapes [-h]")
    assert run([sys.executable, "-m", "tools.cli", "--version"], REPO).stdout == command("--version").stdout
    wrong = command("trian", code=2)
    assert wrong.stdout == "" and wrong.stderr.startswith("error: unknown command 'trian', expected one of: train, val")
    assert wrong.stderr.count("\n") == 1
    missing = command("detect", "--weights", "none.pt", code=2)
    assert missing.stderr.startswith("error: ") and "none.pt" in missing.stderr


def test_python_api_beside_modules_of_the_user(python: Path, mine: Path) -> None:
    """Every module is imported; none changes sys.path, becomes top-level or replaces a module of the user."""
    (mine / "app.py").write_text(APP)
    found = json.loads(run([python, "app.py"], mine).stdout.splitlines()[-1])
    assert found["early"] == ["user", "user", VERSION, True, False]
    assert found["late"] == ["user", "user"] and found["same path"] and found["top"] == [PACKAGE]
    assert found["all imported"] and found["boxes"]


def test_the_package_holds_every_file_of_the_clone(python: Path, source: Path) -> None:
    (package,) = python.parents[1].glob(f"lib/python*/site-packages/{PACKAGE}")
    folders = [pattern for pattern in SHIPPED if "/" not in pattern] + [
        "models/**/*",
        "utils/**/*",
        "tools/**/*",
        "examples/**/*",
    ]
    wanted = {path.relative_to(source) for pattern in folders for path in source.glob(pattern) if path.is_file()}
    found = {path.relative_to(package) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert wanted - found == {Path("tools/package_init.py"), Path("examples/first_steps.ipynb")}  # for a clone
    assert {str(path) for path in found - wanted if path.parts[0] != "data"} == {"__init__.py", "py.typed"}
    assert {"data/shapes.yaml", "data/hyps/space.yaml", "data/make_shapes.py"} <= {str(path) for path in found}


def test_requirements_are_those_of_the_files(python: Path) -> None:
    code = f"import json, importlib.metadata as m; print(json.dumps([m.version({PACKAGE!r}), m.requires({PACKAGE!r})]))"
    version, found = json.loads(run([python, "-c", code], python.parent).stdout)
    lines = [line.partition("#")[0].split() for line in (REPO / "requirements.txt").read_text().splitlines()]
    assert version == VERSION and [r for r in found if "extra ==" not in r] == ["".join(line) for line in lines if line]
    extras = {r.rpartition("extra == ")[2].strip('"') for r in found if "extra ==" in r}
    assert extras == {path.stem.removeprefix("requirements-") for path in REPO.glob("requirements-*.txt")}
    assert any(r.startswith("onnx>") and r.endswith('"export"') for r in found)


def test_a_build_leaves_out_what_an_earlier_one_left(source: Path) -> None:
    package = source / "build" / "lib" / PACKAGE
    (package / "models").mkdir(parents=True)
    (package / "models" / "moved_since.py").touch()
    run([sys.executable, "setup.py", "-q", "build_py"], source)
    assert (package / "models" / "yolo.py").is_file() and not (package / "models" / "moved_since.py").exists()


def test_an_editable_install_says_what_to_do(source: Path) -> None:
    result = run([sys.executable, "setup.py", "-q", "editable_wheel"], source, code=1)
    assert result.stderr.strip().splitlines()[-1].startswith("no editable installs: run `python train.py` in the clone")


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_commands_lead_to_a_main_function(name: str) -> None:
    command = cli.COMMANDS[name]
    module = importlib.import_module(command.module)
    assert callable(module.main) and (not command.config or hasattr(module, command.config))
    assert command.purpose or cli.first_line(command).endswith(".")


@pytest.mark.parametrize(
    ("clone", "package"),
    [
        ("from models.yolo import X", "from yolov5_mobilevit.models.yolo import X"),
        ("from models import common as c", "from yolov5_mobilevit.models import common as c"),
        (
            "from  \\\n utils . a import (\n  b, # why\n  c)",
            "from  \\\n yolov5_mobilevit.utils . a import (\n  b, # why\n  c)",
        ),
        ("import train", "from yolov5_mobilevit import train"),
        ("import val as v", "import yolov5_mobilevit.val as v"),
        ("import utils.a as a", "import yolov5_mobilevit.utils.a as a"),
        ("import utils.a", "import yolov5_mobilevit.utils.a; from yolov5_mobilevit import utils"),
        ("import os, train, re as r", "import os; from yolov5_mobilevit import train; import re as r"),
        ("if x: import train", "if x: from yolov5_mobilevit import train"),
        ("é = 'ü'; import train; ö = 1", "é = 'ü'; from yolov5_mobilevit import train; ö = 1"),
        (
            "def f():\n    from data.a import b\n    return b",
            "def f():\n    from yolov5_mobilevit.data.a import b\n    return b",
        ),
        ("if 1:\n    sys.path.insert(0, str(\n        p))", "if 1:\n    pass"),
        ("sys.path.append(x) # why", "pass # why"),
    ],
)
def test_imports_are_rewritten(clone: str, package: str) -> None:
    assert rewrite(clone, "a.py") == package


UNCHANGED = (
    "import os.path, torch.utils.data",
    "from . import utils",
    "'''from models import x'''",
    "# import train",
    "from valid import x",
)


@pytest.mark.parametrize("text", UNCHANGED)
def test_all_else_stays(text: str) -> None:
    assert rewrite(text, "a.py") == text


@pytest.mark.parametrize("text", ["sys.path = []", "sys.path[:0] = ['x']", "x = sys.path.insert(0, '')"])
def test_another_use_of_the_path_stops_the_build(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a.py: sys.path is used, expected"):
        check(text, "a.py")


@pytest.mark.parametrize("call", ["importlib.import_module('utils.a')", "__import__('train')", "find_spec('models')"])
def test_an_import_by_name_stops_the_build(call: str) -> None:
    with pytest.raises(ValueError, match=r"^a.py: \w+\('.*'\) fails in the installed package"):
        rewrite(f"x = {call}", "a.py")
    assert rewrite("importlib.import_module('onnx')", "a.py")
