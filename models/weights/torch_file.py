"""Files of torch.save in both of its formats, read without running anything in them."""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

from models.weights.safe_pickle import PICKLE_ERRORS, Machine

MAX_FILE = 4 * 2**30  # bytes
MAX_MEMBERS = 25_000  # a run of yolov5x has 4,000 tensors
ZIP_MAGIC = b"PK\x03\x04"
OLD_MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number at the start of older files
OLD_PROTOCOL = 1001
PROGRAMS = (  # a member of the archive, what it is then, and its usual suffix
    (r"[^/]+/constants\.pkl", "a TorchScript program", ".torchscript"),
    (r"[^/]+/models/[^/]+\.json", "a program of torch.export", ".pt2"),
)


Bytes = bytes | memoryview


class Archive:
    """The zip file of torch.save: its pickle and its storages, checked before anything is read.

    Raises:
        ValueError: not such a file, or one that claims more than it holds.
    """

    def __init__(self, data: Bytes):
        self.data = data
        try:
            self.zip = zipfile.ZipFile(BytesIO(self.data))
            members = self.zip.infolist()
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError, OverflowError) as error:
            raise ValueError(f"damaged zip archive ({error})") from error
        names = [m.filename for m in members]
        if len(names) > MAX_MEMBERS or len(set(names)) != len(names):
            raise ValueError("damaged zip archive (members that repeat, or too many)")
        for pattern, what, suffix in PROGRAMS:
            if any(re.fullmatch(pattern, name) for name in names):
                raise ValueError(f"it is {what}, not a checkpoint; if export.py wrote it, name it *{suffix}")
        if any(m.compress_type != zipfile.ZIP_STORED or m.flag_bits & 1 for m in members):
            raise ValueError("its members are compressed or encrypted; torch.save stores them as they are")
        if sum(m.file_size for m in members) > len(self.data):
            raise ValueError("its members claim more bytes than the file has")
        pickles = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(pickles) != 1:
            raise ValueError("no data.pkl in it, so torch.save did not write it")
        self.root = pickles[0].removesuffix("data.pkl")
        order = self.member("byteorder") if f"{self.root}byteorder" in names else b"little"
        if order != b"little":
            raise ValueError(f"byte order {order[:20]!r}, expected little")
        self.storages: dict[str, bytearray] = {}
        self.program = self.member("data.pkl")

    def member(self, name: str) -> bytes:
        """The bytes of a member, by its name below the archive's root."""
        try:
            return self.zip.read(self.root + name)
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            RuntimeError,
            OSError,
            EOFError,
            zlib.error,
            *PICKLE_ERRORS,
        ) as error:
            raise ValueError(f"damaged zip archive, member {name[:40]!r} ({error})") from error

    def storage(self, key: str) -> bytearray:
        """The bytes of a storage, read once: tensors are views of them."""
        if key not in self.storages:
            self.storages[key] = bytearray(self.member(f"data/{key}"))
        return self.storages[key]


class OldArchive:
    """The format of torch.save before 1.6, which timm still writes: five pickles, then the storages.

    Raises:
        ValueError: not such a file, or one that claims more than it holds.
    """

    def __init__(self, data: Bytes):
        self.data = data
        stream = BytesIO(self.data)
        stream.seek(len(OLD_MAGIC))
        system = [Machine(stream, None).run() for _ in range(2)]  # protocol, machine
        if system[0] != OLD_PROTOCOL or not isinstance(system[1], dict) or system[1].get("little_endian") is not True:
            raise ValueError(f"expected protocol {OLD_PROTOCOL} of a little-endian machine")
        start = stream.tell()
        outline = Machine(stream, None)
        outline.run()
        self.program = bytes(self.data[start : stream.tell()])
        keys = Machine(stream, None).run()
        if type(keys) is not list or len(keys) > MAX_MEMBERS or not all(type(key) is str for key in keys):
            raise ValueError("its list of storages is damaged")
        self.storages: dict[str, bytearray] = {}
        for key in keys:
            count = stream.read(8)
            size = outline.sizes.get(key, 0)
            content = bytearray(stream.read(size))
            if len(count) != 8 or len(content) != size or key in self.storages:
                raise ValueError("its storages are cut short or repeat")
            self.storages[key] = content

    def storage(self, key: str) -> bytearray:
        return self.storages[key]


def open_archive(data: Bytes) -> Archive | OldArchive:
    """The archive of either of torch.save's formats.

    Raises:
        ValueError: neither.
    """
    start = bytes(data[: len(OLD_MAGIC)])
    if start.startswith(ZIP_MAGIC):
        return Archive(data)
    if start != OLD_MAGIC:
        raise ValueError("torch.save did not write it (no zip archive, nor the format before torch 1.6)")
    return OldArchive(data)


def read(path: Path) -> Any:
    """The content of a file of torch.save, read once: see read_bytes."""
    if path.stat().st_size > MAX_FILE:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, expected at most {MAX_FILE:,}")
    return read_bytes(path.read_bytes())


def read_bytes(data: Bytes) -> Any:
    """What torch.save wrote, with Records in place of objects; tensors on the CPU, sharing storages.

    Raises:
        ValueError: not such data, or something in it that no checkpoint needs; nothing was run.
    """
    archive = open_archive(data)
    return Machine(archive.program, archive.storage, len(data)).run()
