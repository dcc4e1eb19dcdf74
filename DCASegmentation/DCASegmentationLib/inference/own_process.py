"""What a process of our own (the command line, a worker; never Slicer's) sets before it imports the large libraries."""

from __future__ import annotations

import gc
import os
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
