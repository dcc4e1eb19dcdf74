"""NIfTI files into images: the voxels of the file that was named, placed where its header says without contradiction.

``ct.nii.gz`` is read whatever lies next to it; versions 1 and 2; packed with gzip or not, whatever the name says.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from . import file_errors
from .geometry import HALF_A_VOXEL, ROUNDING, Placement, disagreement
from .limits import require_allowed_size
from .nifti_checks import NiftiHeader, open_content, read_header, reading_errors, require_end
from .voxels import assembled

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def nifti_header(path: Path) -> NiftiHeader:
    """The header of the file. Raises ImageError as ``nifti_checks.read_header`` does."""
    with open_content(path) as stream:
        return read_header(stream, path)


def read_nifti(path: Path, header: NiftiHeader, notes: list[str]) -> tuple[sitk.Image, Placement]:
    """The voxels (int16 where that loses nothing, else float32), and where they lie in LPS.

    ``header`` must be of a volume with one value per voxel. ``notes`` gets what a reader of the result must know.

    Raises ImageError where the header leaves open or contradicts itself about where the voxels lie, for a type of
    voxel that is not supported, and where the file is cut off or its checksum is wrong.
    """
    placement = _placement(path, header, notes)
    if header.dtype is None:
        raise ImageError(
            f"{path.name} has voxels of a type that is not supported (NIfTI data type {header.datatype}).",
            "Save it with 16-bit whole numbers or 32-bit floats.",
        )
    depth, height, width = header.shape[2], header.shape[1], header.shape[0]
    require_allowed_size(header.shape[:3], path.name)
    with open_content(path) as stream, reading_errors(path):
        stream.seek(header.data_offset)
        volume = assembled(_planes(stream, path, header), (depth, height, width))
        require_end(stream, path)
    return sitk.GetImageFromArray(volume), placement


def _planes(stream: BinaryIO, path: Path, header: NiftiHeader) -> Iterator[np.ndarray]:
    assert header.dtype is not None
    width, height, depth = header.shape[:3]
    plane_bytes = width * height * header.dtype.itemsize
    slope, intercept = header.scaling
    for index in range(depth):
        raw = stream.read(plane_bytes)
        if len(raw) < plane_bytes:
            raise file_errors.truncated(path, header.data_bytes, index * plane_bytes + len(raw))
        plane = np.frombuffer(raw, header.dtype).reshape(height, width)
        yield plane if (slope, intercept) == (1.0, 0.0) else plane * np.float64(slope) + intercept


def _placement(path: Path, header: NiftiHeader, notes: list[str]) -> Placement:
    """Where the voxels lie; sform, qform and pixdim must agree as far as they are stated."""
    if not all(math.isfinite(value) and value > 0 for value in header.spacing):
        raise file_errors.impossible_spacing(path, header.spacing)
    if not header.states_orientation:
        raise file_errors.missing_orientation(path, "its qform and sform codes are both 0")
    for name, matrix in (("qform", header.qform), ("sform", header.sform)):
        if matrix is not None and not (np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:3, :3])) > 1e-12):
            raise file_errors.contradiction(path, f"its {name} is no valid matrix", "Correct or remove it")
    size = header.shape[:3]
    chosen = header.sform if header.sform is not None else header.qform
    assert chosen is not None
    if header.sform is not None and header.qform is not None:
        voxels = disagreement(header.sform, header.qform, size)
        if voxels > HALF_A_VOXEL:
            raise file_errors.contradiction(
                path,
                f"its sform and its qform place the voxels differently, by up to {voxels:.3g} voxels"
                f"{_what_differs(header.sform, header.qform)}",
                "Find out which is right and give the other the code 0 (nibabel: img.set_sform(None, 0) or "
                "img.set_qform(None, 0))",
            )
        if voxels > ROUNDING:
            notes.append(f"{path.name}: sform and qform differ by {voxels:.2g} voxels; the sform was used.")
    if header.sform is not None and header.qform is None:
        steps = np.linalg.norm(header.sform[:3, :3], axis=0)
        off = max(abs(a - b) / b * n for a, b, n in zip(steps, header.spacing, size, strict=True))
        # Of a sheared matrix the columns are longer than the distance of the slices.
        if off > HALF_A_VOXEL and np.allclose(
            (header.sform[:3, :3] / steps).T @ (header.sform[:3, :3] / steps), np.eye(3), atol=1e-2
        ):
            raise file_errors.contradiction(
                path,
                f"its sform has a spacing of {_mm(steps)} mm, its pixdim of {_mm(header.spacing)} mm",
                "Find out which is right and correct the other",
            )
    affine = _RAS_TO_LPS @ chosen
    affine[:3] *= header.mm_per_unit
    if header.mm_per_unit != 1.0:
        unit = "meters" if header.mm_per_unit > 1 else "micrometers"
        notes.append(f"{path.name} states its geometry in {unit}; it was converted to mm.")
    return Placement(affine[:3, :3], affine[:3, 3])


def _what_differs(one: np.ndarray, other: np.ndarray) -> str:
    """In words, where there is a short one for it."""
    if np.linalg.det(one[:3, :3]) * np.linalg.det(other[:3, :3]) < 0:
        return ": one is the mirror image of the other"
    if np.allclose(one[:3, :3], other[:3, :3], rtol=1e-3, atol=1e-3):
        return f": they are shifted by {np.linalg.norm(one[:3, 3] - other[:3, 3]):.4g} mm"
    return ""


def _mm(values: np.ndarray | tuple[float, ...]) -> str:
    return " x ".join(f"{float(value):.4g}" for value in values)
