"""Limits on the size of images, checked against the header before memory is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import ImageError

# A whole body at 0.7 x 0.7 x 0.7 mm has about 700 million voxels.
DEFAULT_MAX_VOXELS = 2**30
"""The default limit on the voxels of an image."""
MAX_VOXELS = "DCA_MAX_VOXELS"
"""The environment variable that sets another limit."""
# The volume as int16, and a second copy during conversion.
_BYTES_PER_VOXEL = 4


def require_allowed_size(size: Sequence[int], name: str, to_check: str = "") -> None:
    """Raise ImageError if an image of ``size`` (voxels along each axis) is too large.

    It may have at most 2^30 voxels, or the number in the environment variable DCA_MAX_VOXELS, and must fit into the
    memory of this computer. ``name`` is used in the message. For an image that is yet to be computed, ``to_check`` is
    a sentence about the probable cause, which precedes the remedy.
    """
    voxels, allowed = math.prod(size), _get_max_voxels()
    shown = " x ".join(str(length) for length in size)
    cause = f"{to_check} " if to_check else ""
    if voxels > allowed:
        raise ImageError(
            f"{name} has {shown} voxels, more than the limit of {allowed / 1e6:.0f} million.",
            f"{cause}If this size is right, set the environment variable {MAX_VOXELS} to at least {voxels}.",
        )
    memory = get_total_memory()
    if memory is not None and voxels * _BYTES_PER_VOXEL > memory:
        raise ImageError(
            f"{name} has {shown} voxels, which need {voxels * _BYTES_PER_VOXEL / 2**30:.1f} GiB of memory; "
            f"this computer has {memory / 2**30:.1f} GiB.",
            f"{cause}Crop or resample the image, or use a computer with more memory.",
        )


def get_total_memory() -> int | None:
    """The bytes of memory that this process may use: the computer's or its container's; None if unknown."""
    limits: list[int] = []
    with suppress(AttributeError, ValueError, OSError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):
            limits.append(int(Path(file).read_text(encoding="ascii")))
    return min(limits, default=None)


def _get_max_voxels() -> int:
    stated = os.environ.get(MAX_VOXELS, "")
    if not stated:
        return DEFAULT_MAX_VOXELS
    try:
        return int(float(stated))
    except (ValueError, OverflowError):
        raise ImageError(
            f"The environment variable {MAX_VOXELS} is '{stated}', which is not a number.",
            "Set it to a number of voxels, such as 2e9, or remove it.",
        ) from None
