"""Whether a CT is still the one that was segmented."""

from __future__ import annotations

from typing import Any

import slicer.util

from DCASegmentationLib.imaging.voxels import voxel_checksum


def ct_checksum(node: Any) -> str:
    """The checksum of the voxels of a volume node (see ``voxel_checksum``)."""
    return voxel_checksum(slicer.util.arrayFromVolume(node))
