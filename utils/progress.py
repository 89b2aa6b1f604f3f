"""Progress of a loop: a line that is rewritten on a terminal, elsewhere a line in the log every 30 seconds."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

LOGGER = logging.getLogger(__name__)
LOG_EVERY, DRAW_EVERY = 30.0, 0.1  # seconds between two lines of a log, between two states of a terminal's line
BAR = 12  # columns
T = TypeVar("T")


class TerminalLine:
    """The last line of a terminal, on stderr, which is rewritten."""

    def __init__(self) -> None:
        self.width = 0

    def draw(self, line: str) -> None:
        """Show `line` in place of the one before, cut to the width of the terminal."""
        line = line[: room()]
        sys.stderr.write("\r" + line.ljust(self.width))
        sys.stderr.flush()
        self.width = len(line)

    def erase(self) -> None:
        """Leave an empty line to what is written next."""
        if self.width:
            sys.stderr.write(f"\r{' ' * self.width}\r")
            sys.stderr.flush()
            self.width = 0


def room() -> int:
    """Columns of the terminal that a line may fill without a break."""
    return shutil.get_terminal_size().columns - 1


class Progress(Generic[T]):
    """The steps of a loop; iterating over it shows how far it is, see the module.

    Attributes:
        items: images or frames done so far, which the loop counts, for the speed; 0: no speed is shown.
    """

    def __init__(
        self, steps: Iterable[T], total: int, text: Callable[[], str], hidden: bool = False, unit: str = "img"
    ):
        """Prepare to show `text()`, share, time left and speed in `unit` per second; nothing if `hidden`."""
        self.steps, self.total, self.text, self.hidden, self.unit = steps, total, text, hidden, unit
        self.terminal = sys.stderr.isatty()
        self.began = time.monotonic()
        self.shown = -DRAW_EVERY if self.terminal else self.began  # when it was shown last
        self.done = self.items = 0
        self.last = TerminalLine()

    def __iter__(self) -> Iterator[T]:
        try:
            for step in self.steps:
                yield step
                self.done += 1
                if not self.hidden and time.monotonic() - self.shown >= (DRAW_EVERY if self.terminal else LOG_EVERY):
                    self.show()
        finally:
            self.last.erase()

    def show(self) -> None:
        """Draw the line, or log it."""
        self.shown = time.monotonic()
        if not self.terminal:
            LOGGER.info(self.line(None))
            return
        self.last.draw(self.line(room()))

    def line(self, columns: int | None) -> str:
        """Text, share done and time left; speed and a bar if they fit into `columns`. None: the line of a log."""
        share, seconds = self.done / max(self.total, self.done, 1), time.monotonic() - self.began
        left = clock(seconds / share - seconds) if share else "?"
        line = f"{self.text()} {share:>4.0%}"
        speed = f"  {self.items / max(seconds, 1e-9):.1f} {self.unit}/s" if self.items else ""
        if columns is None:
            return f"{line}{speed}  {left} left"
        full = round(BAR * share)
        for more in (f"  {left} left", speed, f"  {'=' * full}{'.' * (BAR - full)}"):
            line += more if len(line) + len(more) <= columns else ""
        return line[:columns]


def clock(seconds: float) -> str:
    """A duration as on a clock: '0:42', '1:09:18'."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"
