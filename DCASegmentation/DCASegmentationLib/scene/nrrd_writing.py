"""A volume as an uncompressed NRRD file, in one copy to the disk: a library's writer stops Slicer for longer."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

_TYPES = {
    "int8": "int8", "uint8": "uint8", "int16": "int16", "uint16": "uint16", "int32": "int32", "uint32": "uint32",
    "int64": "int64", "uint64": "uint64", "float32": "float", "float64": "double",
}  # fmt: skip


def write_nrrd(voxels: np.ndarray, index_to_lps: np.ndarray, path: Path) -> None:
    """Write ``voxels`` (z, y, x), one value each.

    ``index_to_lps`` (4, 4) leads from voxel indices (i, j, k) to LPS (mm). Raises OSError where the file cannot be
    written, ValueError for a type of voxel that NRRD has no name for.
    """
    name = _TYPES.get(voxels.dtype.name)
    if name is None:
        raise ValueError(f"voxels of type {voxels.dtype} cannot be written as NRRD")
    vectors = [_vector(index_to_lps[:3, axis]) for axis in range(4)]
    header = (
        "NRRD0004",
        f"type: {name}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(size) for size in voxels.shape[::-1])}",
        f"space directions: {' '.join(vectors[:3])}",
        "kinds: domain domain domain",
        f"endian: {sys.byteorder}",
        "encoding: raw",
        f"space origin: {vectors[3]}",
        "",
        "",
    )
    with path.open("wb") as file:
        file.write("\n".join(header).encode("ascii"))
        file.write(np.ascontiguousarray(voxels).data.cast("B"))


def _vector(values: np.ndarray) -> str:
    return f"({','.join(repr(float(value)) for value in values)})"
