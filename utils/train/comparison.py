"""Training runs side by side: a table, and a page with curves, settings that differ and images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from utils.files import read_yaml, write_atomic
from utils.progress import clock
from utils.templates import render
from utils.train.plots import LOSSES, read_results
from utils.train.report import data_uri, model_name, read_json, read_or_empty

TEMPLATE = "comparison.html.j2"
SCORES = {"map50": "mAP50", "map50_95": "mAP50-95", "precision": "P", "recall": "R"}
CLASSES = 12  # rows of classes in the table of the page
# Colors of the runs, which Okabe and Ito chose for color-blind people (https://jfly.uni-koeln.de/color/).
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
PLACES = {"name", "project", "exist_ok", "resume", "verbose"}  # flags that do not change a result
CURVES = {
    "mAP50-95": "metrics/mAP_0.5:0.95",
    "mAP50": "metrics/mAP_0.5",
    "Learning rate": "x/lr2",
    **{f"{title}, validation": f"val/{loss}" for loss, title in LOSSES.items()},
}


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run folder say; empty where a file is missing or broken.

    Attributes:
        label: short name, unique among the runs that are compared. columns: of results.csv. settings: flags and
            hyperparameters.
    """

    folder: Path
    label: str
    columns: dict[str, np.ndarray]
    metrics: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> Path:
        """The checkpoint that is compared."""
        return self.folder / "weights" / "best.pt"

    def row(self) -> dict[str, str]:
        """The cells of the table, by column."""
        epochs, seconds = self.columns.get("epoch", ()), self.columns.get("seconds", np.empty(0))
        scores = {title: f"{self.metrics[key]:.3f}" if key in self.metrics else "-" for key, title in SCORES.items()}
        return {
            "run": self.label,
            "model": model_name(self.settings) or "-",
            "px": str(self.settings.get("imgsz", "-")),
            "epochs": str(len(epochs)),
            **scores,
            "time": clock(float(np.nansum(seconds))) if len(seconds) else "-",
        }


def read_runs(folders: Sequence[str]) -> list[RunFiles]:
    """The runs in these folders, or in those of these checkpoints.

    Raises:
        FileNotFoundError, ValueError: not a folder; one of a run is named twice; nothing of a run is in it.
    """
    paths = [Path(name).resolve().parents[1] if Path(name).is_file() else Path(name) for name in folders]
    runs = []
    for path in paths:
        if not path.is_dir():
            raise FileNotFoundError(f"run folder '{path}' not found")
        if not (path / "opt.yaml").is_file() and not (path / "results.csv").is_file():
            raise ValueError(f"{path}: no opt.yaml and no results.csv in it, expected the folder of a training run")
        flags, hyp = (read_or_empty(path / name, read_yaml) for name in ("opt.yaml", "hyp.yaml"))
        columns, metrics = (
            read_or_empty(path / "results.csv", read_results),
            read_or_empty(path / "metrics.json", read_json),
        )
        runs.append(RunFiles(path, label(path, paths), columns, metrics, flags | hyp))
    return runs


def label(path: Path, paths: Sequence[Path]) -> str:
    """The last parts of `path`, as many as tell it from the other ones.

    Raises:
        ValueError: it is among them twice.
    """
    places = [p.resolve().parts for p in paths]
    own = path.resolve().parts
    if places.count(own) > 1:
        raise ValueError(f"{path}: given twice, expected different runs")
    count = next(n for n in range(1, len(own) + 1) if sum(place[-n:] == own[-n:] for place in places) == 1)
    return "/".join(own[-count:])


def differences(runs: Sequence[RunFiles]) -> dict[str, list[str]]:
    """Setting -> its value in each run, '-' where it has none; only those that are not the same in all."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in PLACES)
    values = {name: [text(run.settings.get(name, "-")) for run in runs] for name in names}
    return {name: row for name, row in values.items() if len(set(row)) > 1}


def text(value: Any) -> str:
    """A setting as it is shown: numbers with four digits, '' and lists as a person writes them."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return " ".join(map(text, value))
    return str(value) if value not in ("", None) else "not given"


def text_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows with the same keys as aligned text: the first two columns to the left, the others to the right."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = [
        [word.ljust(w) if i < 2 else word.rjust(w) for i, (word, w) in enumerate(zip(line, widths, strict=True))]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in cells)


def text_page(runs: Sequence[RunFiles]) -> str:
    """The table of the runs, and below it the settings that differ."""
    lines = [text_table([run.row() for run in runs])]
    if differ := differences(runs):
        heads = [f"{run.label}" for run in runs]
        rows = [{"setting": name, **dict(zip(heads, values, strict=True))} for name, values in differ.items()]
        lines += ["", text_table(rows)]
    return "\n".join(lines)


def curve_charts(runs: Sequence[RunFiles]) -> list[dict[str, str]]:
    """A chart for each of CURVES that was measured, with the curves of all runs on top of each other."""
    charts = []
    for title, column in CURVES.items():
        figure = Figure(figsize=(5, 3.1), layout="constrained")
        axes = figure.subplots()
        last = {}
        for i, run in enumerate(runs):
            values = run.columns.get(column, np.empty(0))
            measured = np.isfinite(values)
            if measured.any():
                epochs = run.columns.get("epoch", np.arange(len(values)))[measured] + 1
                marker = "o" if len(epochs) == 1 else ""
                axes.plot(epochs, values[measured], color=COLORS[i % len(COLORS)], marker=marker, label=run.label)
                last[run.label] = float(values[measured][-1])
        if not last:
            continue
        axes.set_title(title, fontsize=11)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        if column.startswith("metrics/"):
            axes.set_ylim(0, 1)
        svg = io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        values_text = ", ".join(f"{name} {value:.3f}" for name, value in last.items())
        charts.append({"src": data_uri("image/svg+xml", svg.getvalue()), "alt": f"{title}; last epoch: {values_text}"})
    return charts


def class_scores(runs: Sequence[RunFiles]) -> dict[str, list[float | None]]:
    """Class -> its mAP50-95 in each run, None where it has no labels; classes without labels in any are left out."""
    tables = [run.metrics.get("per_class", {}) for run in runs]
    rows = {name: [table.get(name, {}) for table in tables] for name in dict.fromkeys(n for t in tables for n in t)}
    values = {name: [s.get("map50_95") if s.get("instances") else None for s in row] for name, row in rows.items()}
    return {name: row for name, row in values.items() if any(v is not None for v in row)}


def score_rows(runs: Sequence[RunFiles]) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Name -> the value of each run, and whether it is the best of a score; of the classes those that differ most."""
    rows = [(title, [run.metrics.get(key) for run in runs]) for key, title in SCORES.items()]
    scores = class_scores(runs)
    widest = sorted(scores, key=lambda name: -np.ptp([v for v in scores[name] if v is not None]))[:CLASSES]
    rows += [(f"mAP50-95 of {name}", values) for name, values in scores.items() if name in widest]
    best = [max((v for v in values if v is not None), default=None) for _, values in rows]
    return [
        (title, [("-" if v is None else f"{v:.3f}", v is not None and v == top) for v in values])
        for (title, values), top in zip(rows, best, strict=True)
        if top is not None
    ]


def write_page(runs: Sequence[RunFiles], images: Mapping[str, Sequence[bytes]], path: Path) -> None:
    """Write the comparison as one HTML file that needs no other.

    Args:
        images: file name -> a JPEG for each run that has a checkpoint, in their order.
    """
    page = render(
        Path(__file__).parent,
        TEMPLATE,
        runs=[{"label": run.label, "color": COLORS[i % len(COLORS)], "row": run.row()} for i, run in enumerate(runs)],
        scores=score_rows(runs),
        more=len(class_scores(runs)) if len(class_scores(runs)) > CLASSES else 0,
        charts=curve_charts(runs),
        differ=differences(runs),
        drawn=[run.label for run in runs if run.best.is_file()],
        images={name: [data_uri("image/jpeg", jpeg) for jpeg in jpegs] for name, jpegs in images.items()},
    )
    write_atomic(path, page)
