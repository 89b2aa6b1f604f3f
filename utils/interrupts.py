"""Ctrl-C and SIGTERM at the scripts: an orderly end and one line, at any time and however often they come."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

GRACE = 5.0  # seconds in which a second signal does not disturb the handling of the first


class Terminated(KeyboardInterrupt):
    """SIGTERM was received."""


def quit_on_interrupt() -> None:
    """From now on Ctrl-C ends the process at once: for the seconds of a script's imports, which it may interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where it is ignored, as in the background
        signal.signal(signal.SIGINT, quit_now)


def quit_now(number: int, _: Any) -> None:
    """End the process without any cleaning up."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


@contextmanager
def interruptible() -> Iterator[None]:
    """In the block Ctrl-C raises KeyboardInterrupt, and SIGTERM its subclass Terminated, but only the first time.

    Signals within GRACE seconds after it are ignored, later ones end the process at once. Only for the main thread.
    """
    first: list[float] = []

    def handle(number: int, frame: Any) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated
        if time.monotonic() - first[0] > GRACE:
            quit_now(number, frame)

    defaults = {signal.SIGINT: (signal.default_int_handler, quit_now), signal.SIGTERM: (signal.SIG_DFL,)}
    before = {number: signal.getsignal(number) for number in defaults}
    changed = [number for number, handlers in defaults.items() if before[number] in handlers]
    for number in changed:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in changed:
            signal.signal(number, before[number])
