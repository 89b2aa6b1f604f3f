"""The rows of a benchmark, texts by column: joined, and written as Markdown, CSV and a picture."""

from __future__ import annotations

import csv
import io
from operator import itemgetter
from pathlib import Path

import matplotlib.pyplot as plt

from utils.runs import write_atomic

Cells = dict[str, str]


def markdown(rows: list[Cells]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    return "\n".join(lines + ["| " + " | ".join(row.values()) + " |" for row in rows])


def plot(rows: list[Cells], threads: int, path: Path) -> None:
    """Milliseconds against mAP, or against megabytes where none was measured; a mark for each row."""
    figure, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    time = f"ms, {threads} thr"
    height = "mAP50-95" if any(row["mAP50-95"] != "-" for row in rows) else "size MB"
    shown = [row for row in rows if row[time] != "-" and row[height] != "-"]
    groups = list(dict.fromkeys((row["model"], row["imgsz"]) for row in shown))
    for index, (model, imgsz) in enumerate(groups):
        own = [row for row in shown if (row["model"], row["imgsz"]) == (model, imgsz)]
        places = [(float(row[time]), float(row[height])) for row in own]
        axes.scatter(*zip(*places, strict=True), color=f"C{index}", label=f"{model} at {imgsz}")
        for row, place in zip(own, places, strict=True):
            axes.annotate(row["format"], place, (4, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel=f"ms a picture, median, {threads} thread(s)", ylabel=height)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    write_atomic(path, buffer.getvalue())


def merge(rows: list[Cells], others: list[Cells]) -> None:
    """Put the other interpreter's rows of what it could make in the place of those that could not be made here."""
    key = itemgetter("model", "imgsz", "format")
    made = {key(row): row for row in others if row["size MB"] != "-"}
    rows[:] = [made.get(key(row), row) if row["size MB"] == "-" else row for row in rows]


def report(rows: list[Cells], threads: int, folder: Path) -> None:
    """Write benchmark.md, .csv and .png."""
    write_atomic(folder / "benchmark.md", markdown(rows) + "\n")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(folder / "benchmark.csv", text.getvalue())
    plot(rows, threads, folder / "benchmark.png")
