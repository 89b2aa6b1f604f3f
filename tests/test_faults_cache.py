"""Files of --cache disk that are cut, damaged or of something else: written anew, and no run sees other pixels."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runs import config, resume

import train
from tools.kill_and_resume import differences
from utils.data.data_yaml import read_data_yaml
from utils.data.dataset import DetectionDataset
from utils.data.image_cache import DiskCache, cache_images, checksum
from utils.data.listing import list_images
from utils.data.scan import scan

SIZES = np.array([[4, 6], [50, 70], [3, 3], [40, 40]], dtype=np.int32)
IMAGES = [np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8) for i, size in enumerate(SIZES)]


def cached(folder: Path, sizes: np.ndarray = SIZES, files: str = "abcd") -> DiskCache:
    """The cache of IMAGES, of which the third cannot be read."""
    cache = cache_images("disk", sizes, lambda i: None if i == 2 else IMAGES[i], 0, folder / "train", list(files))
    assert isinstance(cache, DiskCache)
    return cache


def holds_the_images(cache: DiskCache) -> bool:
    return cache[2] is None and all(np.array_equal(cache[i], IMAGES[i]) for i in (0, 1, 3))


def test_a_cache_is_written_once_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = cached(tmp_path).file
    assert holds_the_images(cached(tmp_path)) and [*tmp_path.iterdir()] == [file]
    monkeypatch.setattr("utils.data.image_cache.write", lambda *_: pytest.fail("written again"))
    assert holds_the_images(cached(tmp_path))


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),  # cut, then grown with zeros
        lambda data: b"",
        lambda data: data + b"\0",
        lambda data: data[:-38] + b"\1" + data[-37:],  # of the third image, which could not be read
    ],
    ids=["half", "zeros", "empty", "longer", "readable"],
)
def test_a_damaged_file_is_written_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = cached(tmp_path).file
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    assert holds_the_images(cached(tmp_path)) and file.read_bytes() == whole
    assert "not a usable cache, caching the images again" in caplog.text and len(caplog.records) == 1


def test_any_flipped_byte_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of an image when it is read: it is None then, and the file is removed; of the rest when the file is opened."""
    file = cached(tmp_path).file
    whole, end = file.read_bytes(), int(cached(tmp_path).offsets[-1])
    rng = np.random.default_rng(0)
    for place in [*rng.integers(0, end, 60).tolist(), *range(end, len(whole))]:
        caplog.clear()
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(flipped)
        if place >= end:
            assert holds_the_images(cached(tmp_path)) and file.read_bytes() == whole
            continue
        cache = cached(tmp_path)
        i = int(np.searchsorted(cache.offsets, place, side="right")) - 1
        assert cache[i] is None and file.exists() == (i == 2)  # where no image is, nothing is read
        assert all(np.array_equal(cache[k], IMAGES[k]) for k in (0, 1, 3) if file.exists() and k != i)
        assert cache[i] is None and len(caplog.records) == (i != 2)


def test_blocks_that_changed_places_are_noticed() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 192, 3), dtype=np.uint8)
    other = np.concatenate([image.reshape(-1, 4096)[::-1].reshape(-1)]).reshape(image.shape)
    assert checksum(image) == checksum(image[:, ::-1][:, ::-1]) != checksum(other)


def test_a_file_of_other_images_or_sizes_is_not_used(tmp_path: Path) -> None:
    """Even under the right name."""
    one = cached(tmp_path)
    other = cached(tmp_path, files="abce")
    turned = cache_images("disk", SIZES[:, ::-1], lambda i: IMAGES[i].swapaxes(0, 1), 0, tmp_path / "train", "abcd")
    assert isinstance(turned, DiskCache) and len({one.file, other.file, turned.file}) == 3
    for wrong in (turned, other):
        shutil.copyfile(wrong.file, one.file)
        assert holds_the_images(cached(tmp_path))
    shutil.copyfile(other.file, one.file)
    with pytest.raises(ValueError, match="of other images"):
        DiskCache(one.file, SIZES, "the key of these images")
    assert holds_the_images(cached(tmp_path))


def test_a_file_of_another_version_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("utils.data.image_cache.LAYOUT", 2)
        older = cached(tmp_path).file
    newer = cached(tmp_path)
    assert newer.file != older
    shutil.copyfile(older, newer.file)
    assert holds_the_images(cached(tmp_path))


@pytest.mark.parametrize("fault", ["cut", "removed", "zeros"])
def test_a_file_that_is_damaged_while_it_is_used(fault: str, small_set: Path, tmp_path: Path, caplog) -> None:
    """Images come from their files then. A mapped file that is cut would end the process with SIGBUS."""
    root = Path(shutil.copytree(small_set.parent, tmp_path / "set"))
    found = scan(list_images(read_data_yaml(root / "data.yaml").split("val")), 2)
    plain, quick = DetectionDataset(found, 64, 32), DetectionDataset(found, 64, 32, cache="disk")
    assert isinstance(quick._cache, DiskCache)
    file = quick._cache.file  # others may have been copied with the set
    assert quick[0, 0].image.equal(plain[0, 0].image)
    if fault == "removed":
        file.unlink()
    else:
        size = file.stat().st_size
        os.truncate(file, 0)
        os.truncate(file, size if fault == "zeros" else 100)
    caplog.clear()
    assert all(quick[0, i].image.equal(plain[0, i].image) for i in range(len(plain)))
    assert "using the image files, the next run will cache them again" in caplog.text
    assert len(caplog.records) == 1 and not file.exists()


def test_no_bits_change_when_the_file_is_cut_between_and_in_epochs(
    small_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(small_set.parent, tmp_path / "set")) / "data.yaml"
    train.main(config(data, tmp_path, name="whole"))
    original, calls = train.to_input, [0]

    def cut(*args):
        calls[0] += 1
        if calls[0] == 2:
            for file in data.parent.rglob("*.pixels-*"):
                os.truncate(file, file.stat().st_size // 2)
        if calls[0] == 5:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "to_input", cut)
        train.main(config(data, tmp_path, cache="disk", workers=1))
    for file in data.parent.rglob("*.pixels-*"):
        file.write_bytes(b"PK")
    resume(tmp_path / "run")
    assert differences(tmp_path / "run", tmp_path / "whole") == []


def test_a_full_disk_only_means_no_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    assert cache_images("disk", SIZES, lambda i: IMAGES[i], 0, tmp_path / "train", "abcd") is None
    assert "--cache disk is off" in caplog.text and "No space left" in caplog.text and not [*tmp_path.iterdir()]
