"""The second table of tools/study.py: several networks, what they cost, and how far each is from the first."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from models.yolo import DetectionModel
from tools.network_times import Network, TimesConfig, measure

NC = 80  # classes of the networks whose parameters and times are counted
FLOPS_AT = 640
RUNTIMES = ("torch", "onnx")
Scores = Mapping[tuple[str, int], float]  # (data set, seed) -> mAP50-95 of a finished run


@dataclass
class Line:
    """A network with a recipe.

    Attributes:
        name: of the network, with the recipe's if there are several. model: path or name of its YAML.
        scores: mAP50-95 by data set and seed; runs that are not finished are missing.
        times: milliseconds by (runtime, size).
    """

    name: str
    model: str
    scores: dict[tuple[str, int], float] = field(default_factory=dict)
    times: dict[tuple[str, int], float] = field(default_factory=dict)


def compare(lines: Sequence[Line], datasets: Sequence[str], sizes: Sequence[int]) -> str:
    """A Markdown row a line: parameters, GFLOPs, milliseconds at `sizes`, mAP50-95 on each data set, difference."""
    if sizes:
        measure_times(lines, sizes)
    columns = [(runtime, size) for runtime in RUNTIMES for size in sizes]
    heads = ["network", "parameters", f"GFLOPs at {FLOPS_AT}", *(f"{runtime} {size}" for runtime, size in columns)]
    heads += [*datasets, f"difference to {lines[0].name}"]
    table = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in lines:
        model = DetectionModel(line.model, nc=NC)
        cells = [line.name, f"{sum(p.numel() for p in model.parameters()):,}", f"{model.gflops(FLOPS_AT):.1f}"]
        cells += [f"{line.times[c]:.1f} ({line.times[c] / lines[0].times[c]:.2f})" for c in columns]
        cells += [mean_and_range([v for (data, _), v in line.scores.items() if data == name]) for name in datasets]
        cells.append("" if line is lines[0] else difference(line.scores, lines[0].scores))
        table.append(f"| {' | '.join(cells)} |")
    return "\n".join(table)


def measure_times(lines: Sequence[Line], sizes: Sequence[int]) -> None:
    """Fill `times` of the lines; networks that several lines share are measured once."""
    networks = {model: Network.of(model, NC) for model in dict.fromkeys(line.model for line in lines)}
    measure(list(networks.values()), TimesConfig(cfg=tuple(networks), imgsz=tuple(sizes), runtimes=RUNTIMES))
    for line in lines:
        line.times = networks[line.model].ms


def mean_and_range(values: Sequence[float]) -> str:
    """The mean, and half of the range if there are several values; '-' for none."""
    if not values:
        return "-"
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{spread}"


def difference(scores: Scores, first: Scores) -> str:
    """The mean of the differences between runs of the same data and seed, their range and number.

    Every data set counts the same, however many of its seeds are finished.
    """
    own: dict[str, list[float]] = {}
    for data, seed in scores.keys() & first.keys():
        own.setdefault(data, []).append(scores[data, seed] - first[data, seed])
    if not own:
        return "-"
    every = [value for values in own.values() for value in values]
    mean = statistics.mean(statistics.mean(values) for values in own.values())
    return f"{mean:+.3f} ({min(every):+.3f} to {max(every):+.3f}, {len(every)} run{'s' * (len(every) > 1)})"
