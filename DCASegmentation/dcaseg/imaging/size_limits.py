"""How large an image may be: known from its header, before any memory is taken for it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import ImageError

# A whole body at 0.7 x 0.7 x 0.7 mm has some 700 million voxels.
MOST_VOXELS = 2**30
MAX_VOXELS = "DCA_MAX_VOXELS"
# The volume as int16, and a second time while it is being converted.
_BYTES_PER_VOXEL = 4


def require_allowed_size(size: Sequence[int], name: str) -> None:
    """Raises ImageError where an image of ``size`` (voxels along each axis) has more voxels than are allowed, which is
    2^30 or what the environment variable DCA_MAX_VOXELS says, or needs more memory than this computer has."""
    voxels, allowed = math.prod(size), _allowed_voxels()
    shown = " x ".join(str(length) for length in size)
    if voxels > allowed:
        raise ImageError(
            f"{name} has {shown} voxels, more than the limit of {allowed / 1e6:.0f} million.",
            f"If that is right, allow more: set the environment variable {MAX_VOXELS} to at least {voxels}.",
        )
    memory = total_memory()
    if memory is not None and voxels * _BYTES_PER_VOXEL > memory:
        raise ImageError(
            f"{name} has {shown} voxels, which need {voxels * _BYTES_PER_VOXEL / 2**30:.1f} GiB of memory; "
            f"this computer has {memory / 2**30:.1f} GiB.",
            "Crop or resample the image, or use a computer with more memory.",
        )


def total_memory() -> int | None:
    """Bytes of memory that this process may use: the computer's, or its container's; None where that is unknown."""
    found: list[int] = []
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            found.append(int(Path(limit).read_text(encoding="ascii")))
    return min(found, default=None)


def _allowed_voxels() -> int:
    stated = os.environ.get(MAX_VOXELS, "")
    if not stated:
        return MOST_VOXELS
    try:
        return int(float(stated))
    except (ValueError, OverflowError):
        raise ImageError(
            f"The environment variable {MAX_VOXELS} is '{stated}', which is not a number.",
            "Set it to a number of voxels, such as 2e9, or remove it.",
        ) from None
