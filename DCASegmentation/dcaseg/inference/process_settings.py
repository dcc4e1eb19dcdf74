"""Settings of a process of our own (the command line, a worker; never Slicer's): threads and memory allocator.

glibc gives every large block back to the system when it is freed and asks for it anew for the next layer, and the
page faults of that cost about a third of the network's time on a CPU (two Zen 3 cores, patch 96). Kept memory is
reused instead. The setting holds for the whole process, so only processes of our own use it (the command line, the
worker), never Slicer's. What is freed and comes back in other sizes, though, piles up: it is given back between the
steps of a run.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_POLICY = "OMP_WAIT_POLICY"


def sleeping_threads() -> dict[str, str]:
    """The environment in which PyTorch's threads sleep while they have nothing to do. What the user has set stays.

    By default OpenMP keeps them turning for some milliseconds after each operation, so as to start the next a little
    sooner. Beside other work that costs many times what it gains: where one of them is without a core, all others
    turn until it gets one. OpenMP looks at the environment once, when PyTorch is imported.
    """
    return {_POLICY: os.environ.get(_POLICY, "PASSIVE")}


@contextmanager
def importing() -> Iterator[None]:
    """Around the imports of PyTorch and the like.

    They make a million objects that stay. The garbage collector would look through them again and again meanwhile, a
    sixth of the time of the imports, and at each full collection after that.
    """
    os.environ.update(sleeping_threads())
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_MMAP_MAX = -4
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep freed memory. False where the C library is another one."""
    libc = _glibc()
    if libc is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, _LARGEST), (_M_TRIM_THRESHOLD, _LARGEST), (_M_MMAP_MAX, 0))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)


def give_back_freed_memory() -> bool:
    """Give what is free within the process back to the system, kept or not. False where the C library is another."""
    libc = _glibc()
    if libc is None:
        return False
    libc.malloc_trim(0)
    return True


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    # Only glibc says which version of glibc it is; musl and others go without.
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
