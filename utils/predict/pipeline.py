"""Several frames at once: workers that detect, and a thread that writes, both in the order of the source."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any, Self

import cv2
import torch

from utils.predict.frames import Broken, Frame
from utils.predict.predictor import Prediction, Predictor

MAX_WORKERS = 4  # each holds the maps of one image
WRITING = 4  # frames that wait to be written
# What can fail while a source is read: files, networks, decoders, memory, a package that a format needs.
SOURCE_ERRORS = (ImportError, MemoryError, OSError, RuntimeError, ValueError, cv2.error)
Found = Generator[tuple[Frame, Prediction] | Broken, None, None]


def shared_threads(threads: int) -> tuple[int, int]:
    """(workers, threads of each) for that many CPU threads: two frames side by side gain more than one on two cores."""
    workers = max(min(threads, MAX_WORKERS), 1)
    return workers, threads // workers


def detected(
    frames: Generator[Frame | Broken, None, None], predictor: Predictor, workers: int = 1, threads: int = 0
) -> Found:
    """Each frame with its detections, in the order of `frames`, which are closed at the end.

    With several workers as many frames are in work at once, and one more is read before the first is given; so they are
    for files, whose next frame is there at once.

    Args:
        workers: 1: a frame is read when the one before it is done with. threads: of PyTorch in each worker; 0: all.
    """
    with closing(frames):
        if workers < 2:
            for item in frames:
                yield item if isinstance(item, Broken) else (item, predictor([item.image])[0])
            return
        before = torch.get_num_threads()
        try:
            with ThreadPoolExecutor(workers, "detect", torch.set_num_threads, (threads or before,)) as pool:
                yield from side_by_side(frames, predictor, pool, workers)
        finally:
            torch.set_num_threads(before)


def side_by_side(
    frames: Iterator[Frame | Broken], predictor: Predictor, pool: ThreadPoolExecutor, workers: int
) -> Found:
    """`detected` by the workers of a pool; an error of the source is raised after the frames before it."""
    waiting: deque[tuple[Frame | Broken, Future[list[Prediction]] | None]] = deque()
    failure: Exception | None = None
    ended = False
    try:
        while waiting or not ended:
            while not ended and len(waiting) <= workers:
                try:
                    item = next(frames)
                except StopIteration:
                    ended = True
                except SOURCE_ERRORS as error:
                    failure, ended = error, True
                else:
                    job = None if isinstance(item, Broken) else pool.submit(predictor, [item.image])
                    waiting.append((item, job))
            if waiting:
                item, job = waiting.popleft()
                if isinstance(item, Broken):
                    yield item
                elif job is not None:
                    yield item, job.result()[0]
    finally:
        for _, job in waiting:
            if job is not None:
                job.cancel()
    if failure is not None:
        raise failure


class Later:
    """Calls functions in another thread, one after another in the order in which they are given; a context manager.

    An error of a call is raised by the next call, or at the end; what was given after it is left out. At the end all
    calls are done, after Ctrl-C only the one that has begun.

    Args:
        depth: calls that may wait; 0: they are made at once, in this thread.
    """

    def __init__(self, depth: int = WRITING):
        self.depth, self.waiting = depth, deque[Future[None]]()
        self.pool = ThreadPoolExecutor(1, "writer") if depth else None

    def __enter__(self) -> Self:
        return self

    def __call__(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call `function` when its turn comes.

        Raises:
            Exception: of an earlier call.
        """
        if self.pool is None:
            function(*arguments)
            return
        while self.waiting and (self.waiting[0].done() or len(self.waiting) > self.depth):
            self.waiting.popleft().result()
        before = self.waiting[-1] if self.waiting else None
        self.waiting.append(self.pool.submit(call_after, before, function, *arguments))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.pool is None:
            return
        try:
            self.pool.shutdown(cancel_futures=kind is not None and not issubclass(kind, Exception))
        except KeyboardInterrupt:  # a second Ctrl-C: what waits is left out
            self.pool.shutdown(cancel_futures=True)
            raise
        while kind is None and self.waiting:
            self.waiting.popleft().result()


def call_after(before: Future[None] | None, function: Callable[..., object], *arguments: Any) -> None:
    """Call `function` unless the call `before` it, which is done, has failed: its error is then that of this one."""
    if before is not None:
        before.result()
    function(*arguments)
