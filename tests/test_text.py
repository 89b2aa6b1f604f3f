"""Text from files is shown short, on one line and without control characters; CSV cells are no formulas."""

from __future__ import annotations

import random
import unicodedata

import pytest

from utils.text import cell, clean, counted, first


def test_control_characters_and_line_breaks_become_spaces() -> None:
    assert clean("a\x1b[31mb\r\nc\u2028d\u202ee\x00f\ud800g\x7f") == "a [31mb c d e f g"
    assert clean("日本 é 👨\u200d👩 ok") == "日本 é 👨\u200d👩 ok"
    assert clean(["a\n"]) == "['a\\n']" and clean("") == "" and clean(None) == "None"


def test_any_text_becomes_one_short_line() -> None:
    chance = random.Random(0)
    for _ in range(2000):
        text = "".join(chr(chance.choice((chance.randrange(256), chance.randrange(0x110000)))) for _ in range(60))
        line = clean(text, 40)
        assert len(line) <= 40 and len(line.splitlines()) <= 1 and clean(line, 40) == line
        assert not {unicodedata.category(c) for c in line} & {"Cc", "Cs", "Zl", "Zp"}


def test_long_text_is_cut_and_costs_nothing() -> None:
    assert clean("x" * 10**7) == "x" * 197 + "..."
    assert clean("x" * 200) == "x" * 200 and clean("x" * 201).endswith("x...")
    assert clean(" " * 10**6 + "end") == "..."


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_formula_is_no_formula_in_a_cell(text: str) -> None:
    assert cell(text) == f"'{text}"


def test_other_cells_are_unchanged() -> None:
    for text in ("", "cat", "a=b", "7", "'=1"):
        assert cell(text) == text


def test_counts_and_first_names() -> None:
    assert counted(1, "image") == "1 image" and counted(0, "row") == "0 rows"
    assert counted(2000, "box", "boxes") == "2,000 boxes"
    assert first(["a", "b", "c", "d"]) == "a, b, c, ..." and first([]) == ""
    assert first(["x" * 200]) == "..." + "x" * 87 and first(["a\nb"]) == "a b"
