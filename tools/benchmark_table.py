"""The rows of a benchmark: merging them, and writing them as Markdown, CSV and a chart."""

from __future__ import annotations

import csv
import io
from operator import itemgetter
from pathlib import Path

from matplotlib.figure import Figure

from utils.drawing import save_figure
from utils.files import write_atomic
from utils.text import cell

Cells = dict[str, str]  # column -> text


def markdown(rows: list[Cells]) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(row.values()) + " |" for row in rows])


def plot(rows: list[Cells], threads: int, path: Path) -> None:
    """Write a chart with bars for every row that was timed: time, megabytes and, where it is known, mAP."""
    time = f"of PyTorch, {threads} thr"  # milliseconds of several environments do not compare
    shown = [row for row in rows if row[time] != "-"][::-1]  # the first on top
    columns = [time, "size MB"] + ["mAP50-95"] * any(row["mAP50-95"] != "-" for row in shown)
    groups = list(dict.fromkeys((row["model"], row["imgsz"]) for row in shown))
    colors = [f"C{groups.index((row['model'], row['imgsz']))}" for row in shown]
    figure = Figure(figsize=(4 * len(columns) + 2, 0.24 * len(shown) + 1), layout="constrained")
    panels = figure.subplots(1, len(columns), sharey=True)
    for axes, column in zip(panels, columns, strict=True):
        values = [0.0 if row[column] == "-" else float(row[column]) for row in shown]
        bars = axes.barh(range(len(shown)), values, color=colors)
        axes.bar_label(bars, [row[column] for row in shown], padding=2, fontsize=7)
        axes.margins(x=0.15, y=0.01)
        axes.set_title(column, fontsize=9)
    names = [f"{row['model']} {row['imgsz']}  {row['format']}" for row in shown]
    panels[0].set_yticks(range(len(shown)), names, fontsize=8)
    save_figure(figure, path)


def merge(rows: list[Cells], others: list[Cells]) -> None:
    """Replace rows of formats that could not be made by the same rows in `others`, in place."""
    key = itemgetter("model", "imgsz", "format")
    made = {key(row): row for row in others if row["size MB"] != "-"}
    rows[:] = [made.get(key(row), row) if row["size MB"] == "-" else row for row in rows]


def write_tables(rows: list[Cells], threads: int, folder: Path) -> None:
    """Write benchmark.md, .csv and .png."""
    write_atomic(folder / "benchmark.md", markdown(rows) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows({key: text if text == "-" else cell(text) for key, text in row.items()} for row in rows)
    write_atomic(folder / "benchmark.csv", text.getvalue())
    plot(rows, threads, folder / "benchmark.png")
