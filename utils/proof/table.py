"""The table of an export: one row per format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.proof.parity import Parity


@dataclass
class Row:
    """One format in the table.

    Attributes:
        path: of the file; None: not written. note: why not, or what is wrong with the file.
        ms: median time of a call. ratio: of it to PyTorch's. parity: None: not compared.
        maps: mAP50-95 of PyTorch and of the file. failed: the file differs, or writing it failed.
        missing: the format cannot be made here, or not with these options.
    """

    format: str
    path: Path | None = None
    note: str = ""
    megabytes: float = 0.0
    ms: float = 0.0
    ratio: float = 0.0
    parity: Parity | None = None
    maps: tuple[float, float] | None = None
    failed: bool = False
    missing: bool = False

    def cells(self) -> list[str]:
        """The texts under HEADER."""
        name = self.path.name if self.path else "-"
        if self.parity is None:
            size = f"{self.megabytes:.2f}" if self.path else "-"
            return [self.format, name, size, "-", "-", "-", "-", self.note]
        p = self.parity
        state = self.note if self.failed else "ok" if p.total else "ok, but the model finds nothing to compare"
        if self.maps:
            state += f", mAP50-95 {self.maps[0]:.3f} -> {self.maps[1]:.3f}"
        ms = f"{self.ms:.1f} ({self.ratio:.2f})"
        return [
            *(self.format, name, f"{self.megabytes:.2f}", ms),
            *(f"{p.box_px:.2g}", f"{p.score:.2g}", f"{p.same}/{p.total}", state),
        ]


HEADER = ("format", "file", "size MB", "ms (of PyTorch)", "max box px", "max score", "same boxes", "ok")


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, columns aligned."""
    cells = [list(HEADER), *(row.cells() for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(HEADER))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return "\n".join(lines)
