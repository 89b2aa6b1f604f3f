"""What the C library does with memory that was freed."""

from __future__ import annotations

import os

KEPT = 256 * 2**20  # bytes: of the largest block that is reused, and of free memory that is not given back
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # parameters of glibc's mallopt
OWN = ("MALLOC_", "GLIBC_TUNABLES")  # environment variables by which a user sets them


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of freed tensors of up to KEPT bytes; whether it does.

    By default it gives the maps of one image back to the system and asks for them again at the next image: 4,000 to
    6,000 page faults at 640 px, a sixth of the time of a small network. The most memory in use stays the same.
    Another C library, and settings of the user in the environment, are left as they are.
    """
    if any(name.startswith(OWN) for name in os.environ) or not glibc():
        return False
    import ctypes  # only where it is used: --help does not wait for it

    library = ctypes.CDLL(None)
    return all([library.mallopt(parameter, KEPT) for parameter in (MMAP_THRESHOLD, TRIM_THRESHOLD)])


def glibc() -> bool:
    """Whether the C library of this process is glibc."""
    names = getattr(os, "confstr_names", {})
    if "CS_GNU_LIBC_VERSION" not in names:
        return False
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc")
    except (OSError, ValueError):
        return False
