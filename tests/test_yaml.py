"""YAML files: words stay words, numbers are decimal, and what would be lost in silence is one line with its number."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import yaml
from data_sets import noise, to_boxes, write_set
from shared import shared

from utils.data.data_yaml import read_data_yaml
from utils.files import REPO, read_yaml
from utils.hyp import Hyp

WORDS = [
    "on",
    "off",
    "yes",
    "no",
    "~",
    "007",
    "12:30",
    "1e3",
    "0x1F",
    "null",
    "true",
    "1.50",
    "2024-01-02",
    "<<",
    "0o7",
]


def data_yaml(folder: Path, names: str) -> Path:
    path = folder / "d.yaml"
    path.write_text(f"path: .\ntrain: .\n{names}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        f"names: [{', '.join(WORDS)}]",
        "names:\n" + "\n".join(f"- {word}" for word in WORDS),
        "names:\n" + "\n".join(f"  {i}: {word}" for i, word in reversed(list(enumerate(WORDS)))),
        "names: {" + ", ".join(f'"{i}": "{word}"' for i, word in enumerate(WORDS)) + "}",
    ],
    ids=["flow", "list", "mapping", "quoted"],
)
def test_names_are_the_text_that_was_written(text: str, tmp_path: Path) -> None:
    assert list(read_data_yaml(data_yaml(tmp_path, text)).names.values()) == WORDS


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (
            "names: {0: red, 1: blue, 1: green}",
            r"d\.yaml:3: not valid YAML: the key 1 is given twice, in lines 3 and 3",
        ),
        ("names:\n  0: a\n  00: b", r"d\.yaml:5: .*the key 00 is given twice, in lines 4 and 5"),
        ("names: [a]\ntrain: images", r"d\.yaml:4: .*the key train is given twice, in lines 2 and 4"),
        ("names:\n- car\n- bus\n- car", r"d\.yaml:6: classes 0 and 2 are both 'car', expected different names"),
        ("names:\n  0: a\n  2: b", r"d\.yaml:5: names has 2 entries and the key 2, expected 0\.\.1"),
        ("names:\n  on: a", r"d\.yaml:4: names has 1 entries and the key 'on', expected 0\.\.0"),
        ("names:\n  0: a\n  1:", r"d\.yaml:5: the name of class 1 is '', expected a word"),
        ("names: [a, [b]]", r"d\.yaml:3: the name of class 1 is \['b'\], expected a word"),
        ("names:", r"d\.yaml:3: names is None, expected a list of class names"),
        ("names: &a [*a]", r"d\.yaml:3: not valid YAML: .*an alias to what it is a part of"),
        (
            "names: !!python/object/apply:os.system [ls]",
            r"d\.yaml:3: not valid YAML: a tag, tag:yaml\.org,2002:python/object/apply:os\.system, expected none",
        ),
        ("names: [a\nnc: 1", r"d\.yaml:4: not valid YAML"),
        ("names: " + "[" * 5000, r"d\.yaml: not valid YAML: lists or mappings in too many levels"),
        ("nc: " + "9" * 5000 + "\nnames: [a]", r"d\.yaml: not valid YAML"),
    ],
)
def test_traps_are_one_line_with_its_number(text: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        read_data_yaml(data_yaml(tmp_path, text))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_aliases_are_bounded(tmp_path: Path) -> None:
    rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"bomb\.yaml:5: .*more than 60000 values, with the aliases filled in"):
        read_yaml(tmp_path / "bomb.yaml")
    (tmp_path / "few.yaml").write_text("base: &b {lr0: 1e-3, mosaic: 0.5}\nown: {<<: *b, mosaic: 1.0}\nagain: *b\n")
    base = {"lr0": 0.001, "mosaic": 0.5}
    assert read_yaml(tmp_path / "few.yaml") == {"base": base, "own": {"lr0": 0.001, "mosaic": 1.0}, "again": base}


def test_numbers_are_decimal_and_words_are_words(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "a: 1e-3\nb: 012\nc: 0x1F\nd: 12:30\ne: on\nf: true\ng: ~\nh:\ni: -.inf\n"
        "j: 2024-01-02\nk: +5\nl: .5\nm: 1_000\nn: 0o17\no: 3.\np: -1.5E+2\n"
    )
    assert read_yaml(tmp_path / "a.yaml") == {
        "a": 0.001, "b": 12, "c": 31, "d": "12:30", "e": "on", "f": True, "g": None, "h": None, "i": float("-inf"),
        "j": "2024-01-02", "k": 5, "l": 0.5, "m": "1_000", "n": 15, "o": 3.0, "p": -150.0,
    }  # fmt: skip


def test_hyperparameters_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "h.yaml"
    path.write_text("lr0: 1e-3\nwarmup_min_steps: 010\n")
    hyp = Hyp.from_yaml(path)
    assert (hyp.lr0, hyp.warmup_min_steps) == (0.001, 10)
    for text, match in (
        ("mosaic: on", r"h\.yaml: mosaic on: expected"),
        ("lr0: 1\nlr0: 2", r"h\.yaml:2: .*key lr0 is"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            Hyp.from_yaml(path)


@pytest.mark.parametrize(
    "path", sorted([*REPO.glob("models/*.yaml"), *REPO.glob("data/**/*.yaml")]), ids=lambda p: p.name
)
def test_the_projects_own_files_read_as_before(path: Path) -> None:
    assert read_yaml(path) == yaml.safe_load(path.read_text())


def test_paths_may_look_like_numbers(tmp_path: Path) -> None:
    write_set(tmp_path / "2024", [noise((32, 32), 0)], [to_boxes([0, 2, 2, 20, 20])], ["a"])
    (tmp_path / "d.yaml").write_text("path: 2024\ntrain: images\nval: images\ntest: ~\nnames: [a]\n")
    data = read_data_yaml(tmp_path / "d.yaml")
    assert data.scan("train").box_count == 1 and set(data.splits) == {"train", "val"}


# --- ../train/images --------------------------------------------------------------------------------------------------


def test_a_path_that_exists_only_without_its_dots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, boxes = [noise((32, 32), 0)], [to_boxes([0, 2, 2, 20, 20])]
    write_set(tmp_path / "set" / "train", images, boxes, ["a"])
    write_set(tmp_path / "set" / "valid", images, boxes, ["a"])
    path = tmp_path / "set" / "data.yaml"
    path.write_text("train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [a]\n")
    with caplog.at_level(logging.INFO):
        data = read_data_yaml(path)
    assert data.split("train") == [tmp_path / "set/train/images"] and data.scan("val").box_count == 1
    assert f"{path}: train is '../train/images', which does not exist: using 'train/images'" in caplog.text
    assert "test is" not in caplog.text
    with pytest.raises(FileNotFoundError, match=r"\.\./test/images"):
        data.scan("test")
    write_set(tmp_path / "train", images, boxes, ["a"])  # what is written wins where it exists
    assert read_data_yaml(path).split("train") == [tmp_path / "set/../train/images"]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("i_onoff", ["on", "off"]),
        ("i_under", ["_background_", "__ignore__"]),
        ("roboflow", ["red", "blue"]),
        ("i_dup", "classes 0 and 1 are both 'car'"),
        ("i_dupkey", "the key 1 is given twice"),
    ],
)
def test_recorded_cases(case: str, expected: list[str] | str) -> None:
    path = shared(f"cases/train/{case}/data.yaml")
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            read_data_yaml(path)
    else:
        assert list(read_data_yaml(path).names.values()) == expected
