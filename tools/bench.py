"""Time of all stages of this version, of an earlier one and of YOLOv5, as one table of ratios.

python tools/bench.py --weights yolov5n.pt --before ../earlier --upstream ../yolov5

Each part runs in a process of its own, the versions in turns, so that other load on the machine slows all of them;
a number is the median of the turns. CPU time has one thread. Of a checkout of YOLOv5 only the command lines of its
scripts are run; nothing of it is imported. A ratio is this version's number to the other's: below 1 is less time, and
for frames a second above 1 is faster.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_1, Bounds, Config, check_cli, flag, run_script

PARTS = ("scripts", "networks", "core", "loader")


@dataclass(frozen=True)
class BenchConfig(Config):
    """Time all stages, and compare them with an earlier version and with YOLOv5.

    Example: --weights yolov5n.pt --before ../earlier
    """

    parts: tuple[str, ...] = flag(PARTS, f"what is measured: {', '.join(PARTS)}", group="what is measured")
    weights: str = flag("", "checkpoint for the scripts, of YOLOv5 if --upstream is given; empty: only their --help")
    image: str = flag("data/images/shapes0.jpg", "image of detect.py's cold start")
    video: str = flag("", "video file for the frames a second of detect.py; empty: none")
    data: str = flag("", "data YAML of the loader, of val.py and of an epoch of train.py; empty: none of them")
    cfg: tuple[str, ...] = flag(
        ("yolov5n.yaml", "yolov5-mobilevit.yaml", "yolov5-mobilevit-fast.yaml"), "model YAMLs of the part networks"
    )
    imgsz: tuple[int, ...] = flag((320, 640), "input sizes of the networks, pixels", "--img", bounds=Bounds(low=32))
    runtimes: tuple[str, ...] = flag(
        ("torch", "onnx", "ncnn", "tflite"), "runtimes of the networks; those that are not installed are left out"
    )
    threads: tuple[int, ...] = flag((1, 2), "numbers of CPU threads of the networks", bounds=AT_LEAST_1)
    before: str = flag("", "folder of another version of this project", group="versions")
    upstream: str = flag("", "folder of a checkout of YOLOv5, whose scripts are run")
    turns: int = flag(3, "measurements of each version", bounds=AT_LEAST_1, group="how it is measured")
    rounds: int = flag(10, "calls of each network in a measurement", bounds=AT_LEAST_1)
    out: str = flag("", "file for the table, Markdown; empty: only printed", group="output")


if __name__ == "__main__":
    check_cli(BenchConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tools.bench_rows import Row, measure, overlay
from tools.bench_scripts import rows as script_rows
from utils.files import REPO, write_atomic

LOGGER = logging.getLogger(__name__)
NOW, BEFORE, UPSTREAM = "now", "before", "upstream"
Measure = Callable[[], list[Row]]
Numbers = dict[tuple[str, str], dict[str, list[float]]]  # name and unit of a row -> version -> number of each turn


def main(cfg: BenchConfig) -> Numbers:
    """The numbers of all parts; the table is printed, also while parts are still to come.

    Raises:
        ValueError, FileNotFoundError: a part, folder or file that is not there; a process failed.
    """
    unknown = [part for part in cfg.parts if part not in PARTS]
    if unknown:
        raise ValueError(f"--parts {unknown[0]}: expected {', '.join(PARTS)}")
    if cfg.upstream and not (Path(cfg.upstream) / "detect.py").is_file():
        raise FileNotFoundError(f"--upstream {cfg.upstream}: no checkout of YOLOv5, detect.py is missing")
    numbers: Numbers = {}
    with tempfile.TemporaryDirectory() as place:
        folders = {NOW: REPO}
        if cfg.before:
            folders[BEFORE] = overlay(Path(cfg.before).resolve(), Path(place) / "before")
        for what, versions in stages(cfg, folders):
            for turn in range(cfg.turns):
                for version, call in versions.items():
                    for row in call():
                        numbers.setdefault((row.name, row.unit), {}).setdefault(version, []).append(row.value)
                LOGGER.info(f"{what}: turn {turn + 1} of {cfg.turns}")
            text = f"{machine()}\n\n{table(numbers, bool(cfg.before), bool(cfg.upstream))}"
            if cfg.out:
                write_atomic(Path(cfg.out), text + "\n")
    LOGGER.info(text)
    return numbers


def stages(cfg: BenchConfig, folders: Mapping[str, Path]) -> Iterator[tuple[str, dict[str, Measure]]]:
    """(what is measured, version -> its rows) of every process of a turn."""
    if "scripts" in cfg.parts:
        threads = max(cfg.threads)
        files = [absolute(name) for name in (cfg.weights, cfg.image, cfg.video, cfg.data)]
        everywhere = {**folders, **({UPSTREAM: Path(cfg.upstream).resolve()} if cfg.upstream else {})}
        yield "scripts", {v: scripts(folder, files, threads) for v, folder in everywhere.items()}
    if "networks" in cfg.parts:
        for threads in cfg.threads:
            settings = {"cfg": cfg.cfg, "imgsz": cfg.imgsz, "runtimes": cfg.runtimes, "rounds": cfg.rounds}
            yield f"networks, {threads} threads", of_module(folders, "bench_networks", "rows", settings, threads)
    if "core" in cfg.parts and has("bench_core"):
        # It times each part beside a plain form of it in one process, and needs modules that earlier versions lack.
        yield "core", of_module({NOW: folders[NOW]}, "bench_core", "all_rows")
    if "loader" in cfg.parts and has("bench_loader"):
        if cfg.data:
            yield "loader", of_module(folders, "bench_loader", "loader_rows", {"data": absolute(cfg.data)})
        for name in cfg.cfg:
            yield f"training step of {name}", of_module(folders, "bench_loader", "step_rows", {"cfg": name})


def scripts(folder: Path, files: list[str], threads: int) -> Measure:
    """The rows of the scripts in a folder."""
    weights, image, video, data = files
    return lambda: script_rows(str(folder), weights, image, video, data, "yolov5n.yaml", threads)


def of_module(
    folders: Mapping[str, Path], module: str, function: str, settings: Mapping[str, Any] | None = None, threads: int = 0
) -> dict[str, Measure]:
    """The rows of a function of tools/<module>.py in each version; `threads`: an argument of it, 0: it has none."""
    values = dict(settings or {}) | ({"threads": threads} if threads else {})

    def call(folder: Path) -> Measure:
        return lambda: measure(folder, module, function, values, threads or 1)

    return {version: call(folder) for version, folder in folders.items()}


def has(module: str) -> bool:
    """Whether tools/ has a module."""
    return (REPO / "tools" / f"{module}.py").is_file()


def absolute(name: str) -> str:
    """The path of a file that is named relative to the working folder or the repository; '' stays.

    Raises:
        FileNotFoundError: it is in neither.
    """
    if not name:
        return ""
    found = next((path for path in (Path(name), REPO / name) if path.exists()), None)
    if found is None:
        raise FileNotFoundError(f"{name}: not found, in the working folder or in {REPO}")
    return str(found.resolve())


def table(numbers: Numbers, before: bool, upstream: bool) -> str:
    """A Markdown table with the median of each row by version, and the ratios of this version to the others."""
    others = [BEFORE] * before + [UPSTREAM] * upstream
    heads = ["what", "unit", NOW, *(head for other in others for head in (other, f"{NOW} / {other}"))]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (name, unit), versions in numbers.items():
        middle = {version: statistics.median(values) for version, values in versions.items()}
        cells = [name, unit, shown(middle.get(NOW))]
        for other in others:
            known = NOW in middle and middle.get(other)
            cells += [shown(middle.get(other)), f"**{middle[NOW] / middle[other]:.2f}**" if known else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(value: float | None) -> str:
    """A number with three digits or more; '-' for None."""
    return "-" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def machine() -> str:
    """The processor and the versions that the numbers are of."""
    from importlib.metadata import version

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cores = f"{len(names)} cores of {names[0]}" if names else platform.processor() or platform.machine()
    return f"{cores}; Python {platform.python_version()}, torch {version('torch')}"


if __name__ == "__main__":
    run_script(main, BenchConfig)
