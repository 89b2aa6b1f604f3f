"""Load randomly damaged copies of a checkpoint: `python tools/fuzz_checkpoint.py yolov5n.pt --count 2000`.

Each copy must load or be refused with an error of one line. A crash of the interpreter, a load of more than 10 s,
another exception or more than 2 GB of memory is a failure, and that copy is kept. POSIX only (it forks).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.config import AT_LEAST_1, Config, argument, check_cli, flag, run_script


@dataclass(frozen=True)
class FuzzConfig(Config):
    """Load randomly damaged copies of a checkpoint and count the outcomes.

    Example: yolov5n.pt --count 2000
    """

    weights: str = argument("checkpoint to damage")
    count: int = flag(2000, "number of copies", bounds=AT_LEAST_1)
    seed: int = flag(0, "random seed of the damage")
    out: str = flag("runs/fuzz", "folder for copies that caused a failure")


# --- kinds of damage: (bytes, rng) -> bytes ---------------------------------------------------------------------------


if __name__ == "__main__":
    check_cli(FuzzConfig)  # before the imports that take seconds: --help and mistakes are answered at once

import logging
import multiprocessing
import resource
import struct
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from multiprocessing.connection import Connection

import numpy as np
import torch

from models.weights.checkpoint import build_model, load_checkpoint

LOGGER = logging.getLogger(__name__)
HANG = 10.0  # seconds
MEMORY = 2.0  # GB
Rng = np.random.Generator


def flip_bytes(data: bytes, rng: Rng) -> bytes:
    """Up to 64 bytes changed."""
    damaged = bytearray(data)
    for _ in range(int(rng.integers(1, 65))):
        damaged[rng.integers(len(damaged))] = rng.integers(256)
    return bytes(damaged)


def move_slices(data: bytes, rng: Rng) -> bytes:
    """A slice removed, repeated, or copied over another one."""
    start, other = sorted(int(n) for n in rng.integers(len(data), size=2))
    length = int(rng.integers(1, 2 ** int(rng.integers(1, 12))))
    piece = data[start : start + length]
    how = rng.integers(3)
    if how == 0:
        return data[:start] + data[start + length :]
    if how == 1:
        return data[:start] + piece * int(rng.integers(2, 50)) + data[start:]
    return data[:other] + piece + data[other + length :]


def cut_short(data: bytes, rng: Rng) -> bytes:
    """The end removed."""
    return data[: int(rng.integers(len(data)))]


def damage_directory(data: bytes, rng: Rng) -> bytes:
    """flip_bytes in the directory at the end of the zip file."""
    start = data.rfind(b"PK\x01\x02", 0, max(data.find(b"PK\x01\x02"), 0) + 4)
    return data[:start] + flip_bytes(data[start:], rng) if start > 0 else flip_bytes(data, rng)


def extreme_numbers(program: bytes, rng: Rng) -> bytes:
    """Operands of number instructions (J, K, G) replaced by extreme ones."""
    damaged = bytearray(program)
    places = [i for i, code in enumerate(program[:-9]) if code in b"JKG"]
    for _ in range(int(rng.integers(1, 9))):
        i = places[rng.integers(len(places))]
        if damaged[i] == ord("G"):
            damaged[i + 1 : i + 9] = struct.pack(">d", rng.choice([0.0, -1.0, 1e9, 1e300, np.inf, np.nan]))
        elif damaged[i] == ord("J"):
            damaged[i + 1 : i + 5] = struct.pack("<i", rng.choice([0, -1, 2**31 - 1, -(2**31), 10**6]))
        else:
            damaged[i + 1] = rng.choice([0, 1, 2, 127, 255])
    return bytes(damaged)


def foreign_instructions(program: bytes, rng: Rng) -> bytes:
    """Instructions inserted, among them calls that a checkpoint must not make."""
    pieces = [
        b"cos\nsystem\nX\x01\x00\x00\x00:\x85R",
        b"cbuiltins\neval\n",
        b"\x85" * 5000,
        b"]" * 5000,
        b"(",
        b"u",
        b"b",
    ]
    pieces += [b"R", b"\x81", b"0", b"s", b"Q", b"\x82\x01", b"r\xff\xff\xff\xff", b"h\x03", b"t", b"e", b"N", b"."]
    for _ in range(int(rng.integers(1, 6))):
        at = int(rng.integers(2, len(program)))
        program = program[:at] + pieces[rng.integers(len(pieces))] + program[at:]
    return program


def in_member(change: Callable[[bytes, Rng], bytes], member: str) -> Callable[[bytes, Rng], bytes]:
    """`change` applied to a member of the archive (for "data/" any storage), with correct checksums."""

    def damage(data: bytes, rng: Rng) -> bytes:
        out = BytesIO()
        with zipfile.ZipFile(BytesIO(data)) as source, zipfile.ZipFile(out, "w") as target:
            names = source.namelist()
            fitting = [n for n in names if f"/{member}" in n and source.getinfo(n).file_size]
            chosen = fitting[rng.integers(len(fitting))]
            for name in names:
                content = source.read(name)
                target.writestr(name, change(content, rng) if name == chosen else content)
        return out.getvalue()

    return damage


DAMAGE = {
    "bytes of the file": flip_bytes,
    "slices of the file": move_slices,
    "end of the file": cut_short,
    "zip directory": damage_directory,
    "bytes of the pickle": in_member(flip_bytes, "data.pkl"),
    "slices of the pickle": in_member(move_slices, "data.pkl"),
    "numbers of the pickle": in_member(extreme_numbers, "data.pkl"),
    "instructions of the pickle": in_member(foreign_instructions, "data.pkl"),
    "a storage": in_member(move_slices, "data/"),
}


def damaged_copy(data: bytes, seed: int, index: int) -> tuple[str, bytes]:
    """(kind of damage, damaged bytes): the same for the same seed and index."""
    rng = np.random.default_rng((seed, index))
    kind = list(DAMAGE)[index % len(DAMAGE)]
    return kind, DAMAGE[kind](data, rng)


# --- loading in a process of its own ----------------------------------------------------------------------------------


def load_copies(data: bytes, seed: int, indices: range, path: Path, results: Connection) -> None:
    """In the child process: damage, load, and send (outcome, detail, GB) for each index; other exceptions end it."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    for index in indices:
        path.write_bytes(damaged_copy(data, seed, index)[1])
        try:
            build_model(load_checkpoint(path))
            outcome = ("loaded", "")
        except ValueError as error:
            outcome = (
                ("refused", "") if "\n" not in str(error) else ("other exception", f"error of several lines: {error}")
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
        results.send((*outcome, peak))


def main(cfg: FuzzConfig) -> Counter[str]:
    """Load the copies and print the outcomes by kind of damage; returns their counts, exits with 1 on failures."""
    build_model(load_checkpoint(cfg.weights))  # if the undamaged file did not load, every copy would count as refused
    data = Path(cfg.weights).read_bytes()
    folder = Path(cfg.out)
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "copy.pt"
    context = multiprocessing.get_context("fork")
    counts: Counter[str] = Counter()
    table = {kind: Counter[str]() for kind in DAMAGE}
    slowest, peak, index = 0.0, 0.0, 0
    while index < cfg.count:
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=load_copies, args=(data, cfg.seed, range(index, cfg.count), scratch, sender))
        child.start()
        sender.close()
        alive = True
        while alive and index < cfg.count:
            began = time.perf_counter()
            outcome, detail, memory, alive = "hang", "", 0.0, False
            if receiver.poll(HANG):
                try:
                    outcome, detail, memory = receiver.recv()
                    alive = True
                except EOFError:
                    child.join()  # Python ends with 1 after an exception, and has printed it
                    outcome = "other exception" if child.exitcode == 1 else "crash"
                    detail = f"exit code {child.exitcode}"
            slowest, peak = max(slowest, time.perf_counter() - began), max(peak, memory)
            kind = list(DAMAGE)[index % len(DAMAGE)]
            counts[outcome] += 1
            table[kind][outcome] += 1
            if outcome not in ("loaded", "refused"):
                kept = folder / f"{outcome.replace(' ', '-')}-{index}.pt"
                kept.write_bytes(damaged_copy(data, cfg.seed, index)[1])
                LOGGER.error(f"{outcome}: {kind}, {detail} -> {kept}")
            index += 1
        if not alive:
            child.kill()
        child.join()
    scratch.unlink(missing_ok=True)
    return report(counts, table, slowest, peak)


def report(counts: Counter[str], table: dict[str, Counter[str]], slowest: float, peak: float) -> Counter[str]:
    """Print the outcomes; exits with 1 if there are failures."""
    for kind, row in table.items():
        LOGGER.info(f"{kind:<28} {row['loaded']:>5} loaded {row['refused']:>5} refused")
    LOGGER.info(
        f"{counts.total()} copies: {counts['loaded']} loaded, {counts['refused']} refused with one line, "
        f"{counts['crash']} crashes, {counts['hang']} hangs, {counts['other exception']} other exceptions; "
        f"slowest {slowest:.1f} s, peak memory {peak:.2f} GB"
    )
    if counts["crash"] or counts["hang"] or counts["other exception"] or peak > MEMORY:
        sys.exit(1)
    return counts


if __name__ == "__main__":
    run_script(main, FuzzConfig)
