"""Process-wide settings: the threads and the memory allocator. For the command line and the worker, never for Slicer.

By default glibc returns each large block to the system when it is freed, and requests it again for the next layer. The
page faults cost about a third of the network's time on a CPU (two Zen 3 cores, patch 96). ``keep_freed_memory`` makes
glibc reuse the blocks. Blocks that are freed and requested again in other sizes pile up, however, so
``trim_freed_memory`` returns them to the system between the steps of a segmentation.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_POLICY = "OMP_WAIT_POLICY"
_NUMPY_THREADS = "OPENBLAS_NUM_THREADS"


def get_passive_wait_settings() -> dict[str, str]:
    """Return the environment variables that keep threads from spinning while they wait. Values set by the user stay.

    By default OpenMP lets PyTorch's threads spin for some milliseconds after each operation, so that the next one
    starts a little sooner. Under other load that costs many times what it saves: as long as one thread waits for a
    core, all others spin. NumPy's own threads (OpenBLAS) always spin, so there is only one: its products of matrices
    take a tenth of a second for a whole CT, but with two threads on a busy computer they took twelve. Both libraries
    read the environment once, when they are imported.
    """
    # OpenBLAS would follow this one, too.
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return {
        _POLICY: os.environ.get(_POLICY, "PASSIVE"),
        _NUMPY_THREADS: os.environ.get(_NUMPY_THREADS, threads),
    }


@contextmanager
def importing() -> Iterator[None]:
    """Context for the imports of PyTorch and similar libraries.

    The imports create a million permanent objects. The garbage collector would scan them again and again, which takes a
    sixth of the import time, and once more at each later full collection.
    """
    os.environ.update(get_passive_wait_settings())
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
_MAX_VALUE = 2**31 - 1


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for reuse. Returns False if the C library is not glibc."""
    libc = _load_glibc()
    if libc is None:
        return False
    settings = ((_M_MMAP_THRESHOLD, _MAX_VALUE), (_M_TRIM_THRESHOLD, _MAX_VALUE), (_M_MMAP_MAX, 0))
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)


def trim_freed_memory() -> bool:
    """Return the free memory of the process to the system. Returns False if the C library is not glibc."""
    libc = _load_glibc()
    if libc is None:
        return False
    libc.malloc_trim(0)
    return True


def _load_glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    # gnu_get_libc_version exists in glibc only, not in musl and others.
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
