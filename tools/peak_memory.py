"""Run a command and print the most memory that it and all its child processes held together (Linux).

    python tools/peak_memory.py python train.py --data my.yaml --epochs 3 --cache ram

Memory is proportional set size: a page that several processes share counts once in all.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PAUSE = 0.25  # seconds between looks


def children(process: int) -> list[int]:
    """The processes below `process`, with itself."""
    found = [process]
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            words = task.read_text().split()
        except OSError:  # it has ended
            continue
        for word in words:
            found += children(int(word))
    return found


def held(process: int) -> int:
    """Bytes of proportional set size; 0 once the process has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def main(command: list[str]) -> int:
    """Run `command`; returns its exit code, 2 where there is nothing to run or no /proc."""
    if not command or not Path("/proc/self/smaps_rollup").exists():
        print("error: expected a command, on Linux: python tools/peak_memory.py COMMAND ...", file=sys.stderr)
        return 2
    began, peak, most = time.monotonic(), 0, 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            family = children(process.pid)
            total = sum(held(member) for member in family)
            if total > peak:
                peak, most = total, len(family)
            time.sleep(PAUSE)
    print(f"peak {peak / 1e9:.2f} GB in {most} processes, {time.monotonic() - began:.0f} s")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
