"""Files made to harm whoever loads them do nothing and give one clear line; so do damaged copies of a real one."""

from __future__ import annotations

import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import CORPUS, Call
from shared import ROOT, shared

from models.weights.checkpoint import build_model, load_checkpoint
from models.weights.imagenet import read_published


def load(path: Path) -> None:
    build_model(load_checkpoint(path))


def test_the_corpus_is_large_and_its_payload_works(tmp_path: Path) -> None:
    """What the files would do if something ran them: the plain unpickler does."""
    assert len(CORPUS) >= 30
    left = tmp_path / "left behind"
    pickle.loads(pickle.dumps(Call(os.system, f"touch {shlex.quote(str(left))}")))
    assert left.exists()


REASONS = {  # where the reason is not the name that the file calls
    "inst_instruction": "instruction INST",
    "extension_registry": "instruction EXT1",
    "persistent_id_as_text": "instruction PERSID",
    "setstate_by_build": "it sets attributes of a Name",
    "call_of_a_call": "it calls something that is not a name",
    "bare_pickle": "torch.save did not write it",
    "memo_index_of_four_billion": "expected the keys",
    "claimed_string_of_terabytes": "expected 4398046511104 bytes in a bytes8",
    "bytearray_of_terabytes": "expected 4398046511104 bytes in a bytearray8",
    "nested_tuples_as_a_key": "malformed at byte 200005",
    "nested_lists": "expected the keys",
    "module_that_holds_itself": "do not form a tree",
    "laughing_modules": "do not form a tree",
    "laughing_mapping": "levels deep or deeper, expected at most 16",
    "tensor_beyond_its_storage": "does not fit its storage of 16 bytes",
    "tensor_of_stride_zero": "repeat their bytes to more than",
    "storage_that_claims_more": "does not fit its storage of 16 bytes",
    "negative_size": "no number of elements",
    "missing_storage": "damaged zip archive, member 'data/0'",
    "zip_bomb": "compressed or encrypted",
    "members_that_share_bytes": "claim more bytes than the file has",
    "two_pickles": "members that repeat",
    "torchscript_archive": "a TorchScript program",
    "big_endian": "byte order b'big'",
    "truncated_archive": "damaged zip archive",
    "truncated_pickle": "pickle exhausted before seeing STOP",
    "empty_pickle": "pickle exhausted before seeing STOP",
    "empty_file": "torch.save did not write it",
    "endless_instructions": "more than 1,000,000 instructions",
    "rows_that_ask_for_a_billion_layers": "row 0: repeats is 1000000000, expected 1 to 200",
    "rows_that_ask_for_terabytes": "row 0: Conv: c2 is 1048576, expected 1 to 16,384",
}


@pytest.mark.parametrize("title", CORPUS)
def test_a_hostile_file_does_nothing_and_gives_one_line(title: str, tmp_path: Path) -> None:
    path, left = tmp_path / "weights.pt", tmp_path / "left behind"
    CORPUS[title](path, f"touch {shlex.quote(str(left))}")
    for reader in (load, lambda p: read_published(str(p))):
        with pytest.raises(ValueError) as caught:
            reader(path)
        message = str(caught.value)
        assert "\n" not in message and len(message) < 400
        if reader is load:
            assert REASONS.get(title, ", which no checkpoint needs") in message
    assert not left.exists()
    assert {p.name for p in tmp_path.iterdir()} == {"weights.pt"}


def test_nothing_in_a_file_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of the file's choosing lies on the path, under a name that YOLOv5's files may mention."""
    from hostile import archive, name, yolov5_like

    (tmp_path / "ultralytics").mkdir()
    (tmp_path / "ultralytics" / "__init__.py").write_text(f"open({str(tmp_path / 'left')!r}, 'w')")
    monkeypatch.syspath_prepend(str(tmp_path))
    archive(tmp_path / "a.pt", yolov5_like(name("ultralytics.nn.tasks", "DetectionModel") + b")\x81}b"))
    with pytest.raises(ValueError, match=r"holds a ultralytics\.nn\.tasks\.DetectionModel, expected a YOLOv5"):
        load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "left").exists() and "ultralytics" not in sys.modules


def test_the_error_of_the_command_line_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    CORPUS["os_system"](path, f"touch {shlex.quote(str(tmp_path / 'left'))}")
    words = [sys.executable, str(ROOT / "tools" / "convert.py"), str(path)]
    run = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.count("\n") == 1 and "it names 'os.system', which no checkpoint needs" in run.stderr
    assert {p.name for p in tmp_path.iterdir()} == {"weights.pt"}


def test_a_few_damaged_copies_of_a_real_checkpoint(tmp_path: Path) -> None:
    words = [str(ROOT / "tools" / "fuzz_checkpoint.py"), str(shared("weights/yolov5n.pt")), "--count", "40"]
    run = subprocess.run([sys.executable, *words, "--out", str(tmp_path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "40 copies" in run.stdout and "0 crashes, 0 hangs, 0 other exceptions" in run.stdout
