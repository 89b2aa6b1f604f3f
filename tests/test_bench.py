"""tools/bench.py: one table of all versions, each measured with its own files, and upstream only by its scripts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tools import bench, bench_networks, network_times
from tools.bench import BEFORE, NOW, UPSTREAM, BenchConfig, main, table
from tools.bench_rows import MARK, Row, as_rows, measure, overlay
from tools.bench_scripts import SCRIPTS, frames_of, run
from utils.files import REPO


def checkout(folder: Path, number: int) -> Path:
    """A stand-in for a version of the project, whose utils.config says which one it is."""
    for name, text in (
        ("utils/__init__.py", ""),
        ("utils/config.py", f"VERSION = {number}"),
        ("models/__init__.py", ""),
        ("models/yolo.py", ""),
        ("tools/own.py", ""),
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


PART = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from utils.config import VERSION
from tools.bench_rows import Row
def rows(add, threads=0):
    import os
    print("other output")
    return [Row("version", "ms", VERSION + add), Row("threads", "ms", int(os.environ["OMP_NUM_THREADS"]))]
"""


def test_a_part_is_measured_with_the_files_of_its_version(tmp_path: Path) -> None:
    folder = overlay(checkout(tmp_path / "old", 7), tmp_path / "overlay")
    assert {path.name for path in (folder / "tools").glob("*.py")} >= {"own.py", "bench_rows.py", "bench_networks.py"}
    (folder / "tools" / "bench_part.py").write_text(PART)
    assert measure(folder, "bench_part", "rows", {"add": 1}, 2) == [Row("version", "ms", 8.0), Row("threads", "ms", 2)]
    assert {path.name for path in (tmp_path / "old/tools").iterdir()} == {"own.py"}  # the checkout stays as it is
    with pytest.raises(ValueError, match=r"bench_part\.rows in .*TypeError"):
        measure(folder, "bench_part", "rows", {})
    with pytest.raises(FileNotFoundError, match=r"--before .*no checkout of this project"):
        overlay(tmp_path, tmp_path / "none")


def test_the_table_has_medians_and_ratios() -> None:
    numbers = {
        ("a", "s, CPU"): {NOW: [1.0, 9.0, 2.0], BEFORE: [4.0, 4.0, 5.0], UPSTREAM: [8.0]},
        ("b", "ms"): {NOW: [250.0]},
    }
    lines = table(numbers, True, True).splitlines()
    assert lines[0] == "| what | unit | now | before | now / before | upstream | now / upstream |"
    assert lines[2] == "| a | s, CPU | 2 | 4 | **0.50** | 8 | **0.25** |"
    assert lines[3] == "| b | ms | 250 | - | - | - | - |"
    assert table(numbers, False, False).splitlines()[2] == "| a | s, CPU | 2 |"


def test_help_of_all_scripts_in_turns_for_this_version_and_upstream(tmp_path: Path) -> None:
    """The other project is a folder of scripts: each is run, and nothing of it is imported."""
    for name in SCRIPTS:
        (tmp_path / name).write_text("import sys\nopen('called', 'a').write(sys.argv[0] + ' ' + sys.argv[1] + '\\n')")
    cfg = BenchConfig(parts=("scripts",), upstream=str(tmp_path), turns=2, out=str(tmp_path / "table.md"))
    numbers = main(cfg)
    assert [name for name, _ in numbers] == [f"{name} --help" for name in SCRIPTS]
    assert all(len(found[NOW]) == len(found[UPSTREAM]) == 2 and found[NOW][0] > 0 for found in numbers.values())
    assert (tmp_path / "called").read_text().split("\n")[:2] == ["train.py --help", "val.py --help"]
    assert "now / upstream" in (tmp_path / "table.md").read_text()


def test_upstream_is_measured_by_scripts_only(tmp_path: Path) -> None:
    (tmp_path / "detect.py").touch()
    found = bench.stages(BenchConfig(upstream=str(tmp_path)), {NOW: REPO, BEFORE: tmp_path})
    kinds = {what: set(versions) for what, versions in found}
    assert kinds.pop("scripts") == {NOW, BEFORE, UPSTREAM}
    assert kinds.keys() >= {"networks, 1 threads", "networks, 2 threads"}
    kinds.pop("core", None)  # of this version only
    assert all(versions == {NOW, BEFORE} for versions in kinds.values())


def test_a_row_beside_its_plain_form_is_two() -> None:
    assert as_rows([SimpleNamespace(name="NMS", plain_ms=4, now_ms=2)]) == [
        Row("NMS", "ms, CPU", 2.0),
        Row("NMS, plain", "ms, CPU", 4.0),
    ]


def test_networks_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_networks, "missing", lambda name: ["ncnn"] * (name == "ncnn"))
    found = bench_networks.rows(["yolov5n.yaml"], [32, 64], ["torch", "torchscript", "ncnn"], 1, 1)
    assert [row.name for row in found] == [
        f"yolov5n, {runtime} {size}, 1 thread" for size in (32, 64) for runtime in ("torch", "torchscript")
    ]
    assert all(row.value > 0 and row.unit == "ms, CPU" for row in as_rows(found))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("speed",)}, "--parts speed: expected scripts, networks, core, loader"),
        ({"upstream": "nowhere"}, "--upstream nowhere: no checkout of YOLOv5"),
        ({"parts": ("scripts",), "weights": "no.pt"}, "no.pt: not found"),
    ],
)
def test_mistakes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(BenchConfig(**changes))


def test_a_script_that_fails_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "detect.py").write_text("raise SystemExit('no such flag')")
    with pytest.raises(ValueError, match=r"detect\.py --x: no such flag"):
        run(tmp_path, ["detect.py", "--x"])
    with pytest.raises(ValueError, match="not a readable video"):
        frames_of(str(tmp_path / "detect.py"))
    assert MARK.strip() == "ROWS"


def test_growth_is_drawn(tmp_path: Path) -> None:
    flags: dict[str, Any] = {"cfg": ("yolov5n.yaml",), "rounds": 1, "nc": 2, "runtimes": ("torch",)}
    network_times.main(network_times.TimesConfig(imgsz=(32, 64), plot=str(tmp_path / "g.svg"), **flags))
    text = (tmp_path / "g.svg").read_text()
    assert "<!-- linear -->" in text and "<!-- yolov5n, d = " in text and "<!-- pixels of the input -->" in text
    for changes in ({"imgsz": (32,), "plot": "g.png"}, {"imgsz": (32, 64), "plot": "g.txt"}):
        with pytest.raises(ValueError, match=r"--plot g.*: expected a \.png or \.svg file, and at least two"):
            network_times.main(network_times.TimesConfig(**(flags | changes)))


def test_a_runtime_that_is_not_installed_is_refused_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(network_times.FORMATS, "ncnn", replace(network_times.FORMATS["ncnn"], packages=("no_such",)))
    with pytest.raises(ValueError, match=r"--runtimes ncnn: not installed: no_such; see requirements"):
        network_times.main(network_times.TimesConfig(runtimes=("torch", "ncnn")))
    assert bench_networks.rows(["yolov5n.yaml"], [32], ["ncnn"], 1, 1) == []
