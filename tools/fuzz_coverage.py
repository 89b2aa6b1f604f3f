"""Coverage-guided fuzzing of the pickle machine and of the row parser, with atheris (Linux; `pip install atheris`).

    python tools/fuzz_coverage.py --target pickle --minutes 30
    python tools/fuzz_coverage.py --target rows --minutes 30

libFuzzer mutates bytes towards lines of the readers that no input has reached yet. What is promised is that of
tools/fuzz.py: an input is read, or refused in one clean line. The first other outcome ends the run with exit code 77,
and its input lies in the folder `--out` (`crash-...`, `timeout-...`, `oom-...`); give that file to `--input`.
"""

from __future__ import annotations

import importlib.util
import os
import pickle
import sys
import tempfile
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_0, Config, check_cli, flag, run_script

TARGETS = ("pickle", "rows")


@dataclass(frozen=True)
class CoverageConfig(Config):
    """Fuzz one reader, guided by the coverage of its code; exit code 77 on a breach.

    Example: --target rows --minutes 30
    """

    target: str = flag("pickle", "reader to fuzz", choices=TARGETS)
    minutes: float = flag(1.0, "time of the run", bounds=AT_LEAST_0)
    seed: int = flag(0, "random seed of the mutations")
    input: str = flag("", "file of an earlier breach: run this input once")
    out: str = flag("runs/fuzz-coverage", "folder for the corpus and the inputs of breaches")


if __name__ == "__main__":
    check_cli(CoverageConfig)  # before the imports that take seconds: --help and mistakes are answered at once

atheris: Any = importlib.import_module("atheris") if importlib.util.find_spec("atheris") else None
READ_BY = ["models.weights", "models.rows", "models.cost", "models.plan", "utils.plain_data"]
# Instrumented while they are imported, so this comes first.
with atheris.instrument_imports(include=READ_BY) if atheris else nullcontext():
    from models.weights.checkpoint import load_checkpoint

from models.yolo import BLOCKS, plan_model
from tools.fuzz import refused_or_read
from tools.fuzz_models import CFG, whole
from utils.files import write_atomic

NUMBERS = [0, 1, 2, 3, 5, 8, 16, 64, -1, 1000, 0.5, 1e300, None, True, False, 2**40]
WORDS = ["nearest", "nc", "anchors", "None", "nn.SiLU()", "e", "n", "act", "heads", "depth", "\x1b[2J"]
NAMES = sorted(BLOCKS)


def read_pickle(data: bytes) -> None:
    """Load a checkpoint whose pickle the bytes are, with one storage of 64 bytes."""
    path = Path(tempfile.gettempdir()) / f"fuzz-coverage-{os.getpid()}.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/data/0", bytes(64))
    refused_or_read(lambda: load_checkpoint(path))
    path.unlink()


def value(source: Any, depth: int = 2) -> Any:
    """One argument of a row: a number, a word, a list or a mapping."""
    kind = source.ConsumeIntInRange(0, 9)
    if kind < 5 or depth == 0:
        return source.PickValueInList(NUMBERS)
    if kind < 7:
        return source.ConsumeIntInRange(-4, 260)
    if kind == 7:
        return source.PickValueInList(WORDS)
    count = source.ConsumeIntInRange(0, 4)
    if kind == 8:
        return [value(source, depth - 1) for _ in range(count)]
    return {source.PickValueInList(WORDS): value(source, depth - 1) for _ in range(count)}


def read_rows(data: bytes) -> None:
    """Plan a network of up to six rows whose blocks, sources and arguments the bytes choose."""
    source = atheris.FuzzedDataProvider(data)
    rows: list[Any] = [[-1, 1, "Conv", [16, 3, 2]]]
    for here in range(1, 1 + source.ConsumeIntInRange(1, 6)):
        routes: Any = -1
        if source.ConsumeBool():
            routes = [source.ConsumeIntInRange(-2, here) for _ in range(source.ConsumeIntInRange(1, 3))]
        arguments = [value(source) for _ in range(source.ConsumeIntInRange(0, 6))]
        rows.append([routes, source.ConsumeIntInRange(0, 4), source.PickValueInList(NAMES), arguments])
    routes = [source.ConsumeIntInRange(-1, len(rows) - 1) for _ in range(source.ConsumeIntInRange(1, 3))]
    cfg: dict[str, Any] = {"nc": 2, "anchors": CFG["anchors"], "backbone": rows, "head": []}
    for key in ("depth_multiple", "width_multiple"):
        cfg[key] = source.PickValueInList([0.33, 0.5, 1.0, 0, -1, None])
    cfg["head"] = [[routes, 1, source.PickValueInList(["Detect", "Decoupled", "DetectV8"]), ["nc", "anchors"]]]
    refused_or_read(lambda: plan_model(cfg))


LONGEST = {"pickle": 16_384, "rows": 600}  # bytes of an input
READERS: dict[str, Callable[[bytes], None]] = {"pickle": read_pickle, "rows": read_rows}


def first_inputs() -> list[bytes]:
    """Pickles of a healthy checkpoint and of small objects, for the corpus."""
    archive = zipfile.ZipFile(BytesIO(whole()))
    program = next(archive.read(name) for name in archive.namelist() if name.endswith("data.pkl"))
    plain = {"names": {0: "a"}, "yaml": CFG, "epoch": -1, "values": [1.5, None, True, "x" * 30, (1, 2)]}
    return [program, *(pickle.dumps(plain, protocol) for protocol in range(6))]


def main(cfg: CoverageConfig) -> None:
    """Run libFuzzer on one target; does not return.

    Raises:
        ImportError: atheris is not installed.
    """
    if atheris is None:
        raise ImportError("the package atheris is missing: pip install atheris (Linux)")
    folder = Path(cfg.out) / cfg.target
    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    if cfg.target == "pickle":
        for number, data in enumerate(first_inputs()):
            write_atomic(corpus / f"first-{number}", data, sync=False)
    options = [f"-max_total_time={60 * cfg.minutes:.0f}", f"-seed={cfg.seed + 1}", "-timeout=10", "-rss_limit_mb=3000"]
    options += [f"-max_len={LONGEST[cfg.target]}", "-len_control=0", f"-artifact_prefix={folder}/"]
    options += ["-print_final_stats=1", "-verbosity=1"]
    places = [cfg.input] if cfg.input else [str(corpus)]
    atheris.Setup([sys.argv[0], *options, *places], READERS[cfg.target])
    atheris.Fuzz()


if __name__ == "__main__":
    run_script(main, CoverageConfig)
