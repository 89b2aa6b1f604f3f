"""A lock on a folder that ends with the process that holds it, however that ends."""

from __future__ import annotations

import errno
import os
import platform
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

HELD = {errno.EACCES, errno.EAGAIN, errno.EDEADLK}
LOCK_FILE = ".lock"


class FolderLock:
    """The right to write into `folder`, from creation to `release` or the end of the process.

    It is a record lock on the file `.lock`. The system drops it with the process, also after SIGKILL, and child
    processes do not inherit it. Within one process it excludes nobody.

    Raises:
        ValueError: another process has it.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path):
        self.path = folder / LOCK_FILE
        self.file: BinaryIO | None = self.path.open("a+b")
        try:
            lock(self.file)
            while not same_file(self.file, self.path):  # its holder ended and removed it while we waited
                self.file.close()
                self.file = self.path.open("a+b")
                lock(self.file)
        except OSError as error:
            if error.errno not in HELD:  # a disk without locks
                return
            self.file.seek(0)
            owner = self.file.read(200).decode(errors="replace").strip()
            self.file.close()
            raise ValueError(f"{folder}: another run writes into it ({owner}); choose another --name") from None
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {platform.node()}".encode())
        self.file.flush()

    def release(self) -> None:
        """Give the right back and remove the file; a second call does nothing."""
        if self.file is not None:
            if fcntl is not None:  # Windows removes no open file
                self.path.unlink(missing_ok=True)
            self.file.close()
            self.file = None


def lock(file: BinaryIO) -> None:
    """Lock a file without waiting; raises OSError if another process has the lock, or the disk has none."""
    if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        import msvcrt

        file.seek(1000)  # beyond the text, which others could not read otherwise
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]


def same_file(file: BinaryIO, path: Path) -> bool:
    """Whether `path` is the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
