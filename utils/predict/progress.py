"""How far a run of detect.py is: the number of each input, and of videos a line, in a log every 30 seconds."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

from utils.predict.frames import Frame
from utils.progress import DRAW_EVERY, LOG_EVERY, TerminalLine, clock
from utils.text import first

LOGGER = logging.getLogger(__name__)


class InputProgress:
    """Counts inputs and frames; shows share, speed and time left: of videos on a terminal, of all inputs in a log.

    Args:
        total: number of inputs; 0: unknown, as of streams.
    """

    def __init__(self, total: int = 0):
        self.total, self.frames = total, 0
        self.numbers: dict[Path, int] = {}
        self.in_log = not (sys.stderr.isatty() and sys.stdout.isatty())
        self.began = self.shown = time.monotonic()
        self.last = TerminalLine()

    def number(self, path: Path) -> int:
        """The number of an input, 1 for the first."""
        return self.numbers.setdefault(path, len(self.numbers) + 1)

    def name(self, frame: Frame) -> str:
        """'image 5/67 path', or 'video 5/67 path', or 'stream 1 name'."""
        kind = "image" if frame.video is None else "stream" if frame.video.live else "video"
        of = f"/{self.total}" if self.total else ""
        return f"{kind} {self.number(frame.path)}{of} {first([frame.path])}"

    def step(self, frame: Frame, text: str = "") -> None:
        """Count a frame that is done; draw or log how far the run is if it is time to.

        Args:
            text: what was found in the frame, for a terminal.
        """
        self.frames += 1
        self.number(frame.path)
        if time.monotonic() - self.shown < (LOG_EVERY if self.in_log else DRAW_EVERY):
            return
        if self.in_log:
            LOGGER.info(self.line(frame))
        elif frame.video:  # of every image there is a line anyway
            self.last.draw(self.line(frame) + (f": {text}" if text else ""))
        self.shown = time.monotonic()

    def clear(self) -> None:
        """Take the line off the terminal, before something else is written or at the end."""
        self.last.erase()

    def line(self, frame: Frame) -> str:
        """'video 1/3 a.mp4: frame 812/2400, 11%, 27.1 frames/s, 4:03 left'; without what is not known."""
        seconds, share = time.monotonic() - self.began, self.share(frame)
        parts, what = [], "images"
        if frame.video:
            parts, what = [f"frame {frame.number}" + (f"/{frame.video.frames}" if frame.video.frames else "")], "frames"
        parts += [f"{share:.0%}"] if share else []
        parts += [f"{self.frames / max(seconds, 1e-9):.1f} {what}/s"]
        parts += [f"{clock(seconds / share - seconds)} left"] if share else []
        return f"{self.name(frame)}: {', '.join(parts)}"

    def share(self, frame: Frame) -> float:
        """The fraction of the inputs that is done after this frame, 0 if unknown; each counts the same."""
        if not self.total or (frame.video and not frame.video.frames):
            return 0.0
        inside = min(frame.number / frame.video.frames, 1.0) if frame.video else 1.0
        return min((self.number(frame.path) - 1 + inside) / self.total, 1.0)
