"""Freed memory is reused by the scripts, and users' own settings are kept."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from utils.allocator import glibc
from utils.files import REPO

PROGRAM = """
import resource
from dataclasses import dataclass
from utils.config import Config, run_script

@dataclass(frozen=True)
class C(Config):
    "A test."

def main(cfg):
    counts = []
    for i in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        first, second = b"x" * (40 << 20), b"y" * (40 << 20)
        del first, second
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(counts[-1])

if {through_script}:
    run_script(main, C)
else:
    main(None)
"""


def faults(through_script: bool, **settings: str) -> int:
    """Page faults of filling 80 MiB that had been in use before."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))} | settings
    words = [sys.executable, "-c", PROGRAM.replace("{through_script}", str(through_script))]
    result = subprocess.run(words, cwd=REPO, env=env, capture_output=True, text=True, check=True)
    return int(result.stdout.split()[-1])


@pytest.mark.skipif(not glibc(), reason="the C library is not glibc")
def test_scripts_reuse_freed_memory() -> None:
    default, kept = faults(through_script=False), faults(through_script=True)
    assert default > 30  # 20,480 pages of 4 KiB, or 40 of 2 MiB
    assert kept < default / 10


@pytest.mark.skipif(not glibc(), reason="the C library is not glibc")
@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"])
def test_settings_of_the_user_are_kept(name: str) -> None:
    assert faults(through_script=True, **{name: "131072"}) > 30
