"""Time of networks in the runtimes that are installed, as rows of tools/bench.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tools.bench_rows import Row
from tools.network_times import Network, TimesConfig, measure, missing


def rows(cfg: Sequence[str], imgsz: Sequence[int], runtimes: Sequence[str], threads: int, rounds: int) -> list[Row]:
    """Milliseconds of a call by network, runtime and size, batch 1; runtimes that are not installed are left out."""
    torch.set_num_threads(threads)
    usable = [name for name in runtimes if not missing(name)]
    networks = [Network.of(name, 80) for name in cfg]
    settings = TimesConfig(cfg=tuple(cfg), imgsz=tuple(imgsz), runtimes=tuple(usable), threads=threads, rounds=rounds)
    measure(networks, settings)
    unit = "ms, CPU" if threads == 1 else "ms"
    return [
        Row(f"{network.name}, {runtime} {size}, {threads} thread{'s' * (threads > 1)}", unit, ms)
        for network in networks
        for (runtime, size), ms in network.ms.items()
    ]
