"""Progress: what a terminal of 80 columns and a log file get while a loop runs."""

from __future__ import annotations

import io
import logging
import re
from itertools import count

import pytest
import torch

from utils import progress
from utils.progress import Progress, clock
from utils.train.progress import epoch_header, epoch_row

LOSSES = {"box": torch.tensor(0.1128), "obj": torch.tensor(12.5), "cls": torch.tensor(0.0)}


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is five seconds later whenever it is read."""
    ticks = count(0, 5)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_log_has_a_line_every_30_seconds(ticking, caplog: pytest.LogCaptureFixture, capsys) -> None:
    caplog.set_level(logging.INFO)
    bar = Progress(range(20), 20, lambda: "epoch 1")
    for _ in bar:
        bar.items += 8
    assert len(caplog.messages) == 3  # of about 100 seconds
    assert caplog.messages[0] == "epoch 1  30%  1.2 img/s  1:33 left"
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("columns", [80, 96, 112, 200])
def test_a_terminal_has_one_line_that_fits_and_is_cleared(
    columns: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(progress, "DRAW_EVERY", 0.0)
    row = epoch_row(0, 100, LOSSES, 4711, torch.empty(1, 3, 384, 1024))
    bar = Progress(iter("abc"), 3, lambda: row)
    for _ in bar:
        bar.items += 16
    *states, blank, last = screen.getvalue().split("\r")
    assert (states[0], blank.strip(), last) == ("", "", "") and not caplog.messages
    assert len(states) == 4 and all(len(state) < columns and "\n" not in state for state in states)
    assert states[1].startswith(row) and "33%" in states[1] and "left" in states[1] and "100%" in states[3]
    assert ("/s" in states[1]) == (columns >= 96) and ("====" in states[1]) == (columns >= 112)


def test_columns_are_under_their_headings_and_fit_into_80() -> None:
    header = epoch_header(LOSSES)
    row = epoch_row(0, 100, LOSSES, 47, torch.empty(1, 3, 640, 640))
    assert header.split()[0] == "Epoch" and header.split()[2:] == ["box", "obj", "cls", "Instances", "Size"]
    words = row.split()
    assert words[0] == "1/100" and words[1].endswith("G") and words[2:] == ["0.1128", "12.5000", "0.0000", "47", "640"]
    assert len(header) == len(row) <= 64
    for name, value in zip(header.split(), words, strict=True):
        ends = [found.end() for found in re.finditer(rf"(?<!\S){re.escape(value)}(?!\S)", row)]
        assert header.index(name) + len(name) in ends
    assert epoch_header(LOSSES, 4158.0) == header + "  1:09:18 left"


def test_an_empty_and_a_hidden_loop_and_an_interrupted_one(ticking, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    assert list(Progress([], 0, lambda: "x")) == [] and list(Progress(range(50), 50, lambda: "x", hidden=True))
    assert not caplog.messages
    screen = Screen()
    monkeypatch.setattr("sys.stderr", screen)
    with pytest.raises(KeyError):
        for step in (steps := iter(Progress(range(5), 5, lambda: "x"))):
            if step == 2:
                steps.throw(KeyError(1))
    assert screen.getvalue().endswith("\r") and screen.getvalue().split("\r")[-2].strip() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (42, "0:42"), (3599.6, "1:00:00"), (4158, "1:09:18")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
