"""Threads that decode, which cannot be interrupted inside the decoder, and the end of a process with such threads."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

END_WAIT = 1.0  # seconds that the threads of a source get to end
GRACE = 0.5  # seconds after the end of a source's time that its thread gets to report it


class DecoderThread(threading.Thread):
    """A thread that ends with the process, whatever it does."""

    def __init__(self, name: str, work: Callable[[], None] | None = None):
        super().__init__(name=name, target=work, daemon=True)


class Outcome:
    """A `with` block in a thread whose end is reported, with its error or None, to what waits in another thread.

    The error goes no further: whoever it is reported to raises it.
    """

    def __init__(self, report: Callable[[BaseException | None], object]):
        self.report = report

    def __enter__(self) -> None:
        """Nothing is bound."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> Literal[True]:
        self.report(error)
        return True


@contextmanager
def ending_at_once() -> Iterator[None]:
    """For the main program: the process ends with the block, also if a thread is inside the decoder.

    The interpreter would end such a thread when it returns, inside C++ code, which aborts the process.
    """
    code: object = 0
    try:
        yield
    except SystemExit as end:
        code = end.code or 0
    if any(isinstance(thread, DecoderThread) for thread in threading.enumerate()):
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)  # type: ignore[arg-type]
