"""Whether a CT is still the one that was segmented."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import slicer.util


def ct_checksum(node: Any) -> str:
    """A checksum (CRC-32) of the voxels of a volume node: it tells that something changed, not who meant it to."""
    voxels = np.ascontiguousarray(slicer.util.arrayFromVolume(node))
    return f"{zlib.crc32(voxels.data, zlib.crc32(repr(voxels.shape).encode())):08x}"
