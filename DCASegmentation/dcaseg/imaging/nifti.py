"""NIfTI files: their header, checks of their content, and their voxels.

ITK is not used for them: it reads a truncated NIfTI file without an error (leaving the missing voxels undefined),
replaces NaN or infinite voxels by 0 and a spacing of zero or NaN by 1 mm, accepts a header without a coordinate
system, and reads ``ct.nii`` if asked for ``ct.nii.gz`` and both exist.

Versions 1 and 2 are read, compressed with gzip or not, whatever the file's extension is.

Source: the definitions in nifti1.h and nifti2.h (NIFTI Data Format Working Group).
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from . import file_errors
from .geometry import MAX_DEVIATION_VOXELS, ROUNDING_TOLERANCE_VOXELS, Placement, compute_max_displacement
from .intensity import stack_planes
from .size_limits import require_allowed_size

_CHUNK = 1 << 20
# Some programs fill the last block after the voxels; as many bytes as a plane, or more, are voxels.
_BLOCK_BYTES = 4096
# How far the length of the quaternion's vector part may exceed 1 by rounding.
_ROUNDED_QUATERNION = 1e-3
# The end of a gzip file: CRC-32 and length modulo 2^32.
_TRAILER = struct.Struct("<2I")
_TYPES = {
    2: "u1", 4: "i2", 8: "i4", 16: "f4", 64: "f8", 256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8",
}  # fmt: skip
# RGB, RGBA, and complex numbers of two sizes.
_COMPONENTS = {128: 3, 2304: 4, 32: 2, 1792: 2}
# Meter and micrometer; everything else counts as mm, as in nibabel and ITK.
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}


@dataclass(frozen=True)
class _Layout:
    """The fields of a NIfTI version: (struct format, byte offset)."""

    header_bytes: int
    dim: tuple[str, int]
    datatype: tuple[str, int]
    pixdim: tuple[str, int]
    offset: tuple[str, int]
    scaling: tuple[str, int]
    codes: tuple[str, int]
    quaternion: tuple[str, int]
    sform: tuple[str, int]
    units: tuple[str, int]


_NIFTI_1 = _Layout(
    348, ("8h", 40), ("2h", 70), ("8f", 76), ("f", 108), ("2f", 112), ("2h", 252), ("6f", 256), ("12f", 280), ("B", 123)
)
_NIFTI_2 = _Layout(
    540, ("8q", 16), ("2h", 12), ("8d", 104), ("q", 168), ("2d", 176), ("2i", 344), ("6d", 352), ("12d", 400),
    ("i", 500),
)  # fmt: skip


@dataclass(frozen=True)
class NiftiHeader:
    """The header of a NIfTI file. ``shape`` and ``spacing`` (in the header's unit) belong to the axes x, y, z, …

    ``qform`` and ``sform`` are 4x4 matrices from voxel indices to RAS in mm, or None if the header states none.
    ``scaling`` is (slope, intercept). ``dtype`` is None for types without a single number per voxel.
    """

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    qform: np.ndarray | None
    sform: np.ndarray | None
    mm_per_unit: float
    header_bytes: int
    data_offset: int
    data_bytes: int
    datatype: int
    dtype: np.dtype | None
    components: int
    scaling: tuple[float, float]

    @property
    def states_orientation(self) -> bool:
        """Whether there is a qform or an sform."""
        return self.qform is not None or self.sform is not None


def check_content(path: Path) -> None:
    """Check the file before it is read, as far as ``check_voxels`` will not do that with less work.

    Raises ImageError if the file is truncated, its checksum is wrong, or voxels are NaN or infinite.
    """
    if _read_checksum(path) is None:
        read_through(path)


def check_voxels(path: Path, image: sitk.Image) -> None:
    """Check the file after ``image`` was read from or written to it.

    A compressed file contains a checksum. If the voxels in memory match it, nothing was lost, damaged or replaced, and
    the file need not be decompressed a second time. Raises ImageError as ``check_content`` does.
    """
    stated = _read_checksum(path)
    if stated is None:
        return
    with open_content(path) as stream:
        header = read_header(stream, path)
        before_voxels = stream.read(header.data_offset - header.header_bytes)
        stream.seek(0)
        checksum = zlib.crc32(before_voxels, zlib.crc32(stream.read(header.header_bytes)))
    if zlib.crc32(sitk.GetArrayViewFromImage(image).data, checksum) != stated:
        # The checksum also differs if the voxels in memory have another type or order than those in the file.
        read_through(path)


def read_through(path: Path) -> None:
    """Read the file to its end, 1 MiB at a time. Raises ImageError as ``check_content`` does."""
    found = not_finite = 0
    with open_content(path) as stream:
        header = read_header(stream, path)
        floats = header.dtype if header.dtype is not None and header.dtype.kind == "f" else None
        with reading_errors(path):
            stream.seek(header.data_offset)
            while found < header.data_bytes and (chunk := stream.read(min(_CHUNK, header.data_bytes - found))):
                found += len(chunk)
                if floats is not None and len(chunk) % floats.itemsize == 0:
                    not_finite += int(np.count_nonzero(~np.isfinite(np.frombuffer(chunk, floats))))
            if found < header.data_bytes:
                raise file_errors.truncated(path, header.data_bytes, found)
            require_end(stream, path, _count_plane_bytes(header))
    if not_finite:
        raise file_errors.not_finite(path.name, not_finite)


def require_end(stream: BinaryIO, path: Path, plane_bytes: int) -> None:
    """Read to the end of the file, where gzip compares the checksum.

    Raises ImageError if at least a plane of voxels is left, which would be lost.
    """
    extra = 0
    while chunk := stream.read(_CHUNK):
        extra += len(chunk)
        if extra >= max(plane_bytes, _BLOCK_BYTES):
            raise file_errors.too_long(path)


class reading_errors:  # noqa: N801 - used as a function
    """A context that turns gzip's exceptions into an ImageError about ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EOFError):
            raise file_errors.truncated(self._path) from None
        if isinstance(error, gzip.BadGzipFile | zlib.error):
            raise file_errors.damaged(self._path, "NIfTI") from None


def open_content(path: Path) -> BinaryIO:
    """Open the file's content, decompressed if it is a gzip file, whatever its extension is."""
    return cast(BinaryIO, gzip.open(path, "rb")) if _is_compressed(path) else path.open("rb")


def read_header(stream: BinaryIO, path: Path) -> NiftiHeader:
    """The header at the start of ``stream``. Raises ImageError if it is truncated or not of a single-file NIfTI."""
    with reading_errors(path):
        raw = stream.read(_NIFTI_1.header_bytes)
        layout = _NIFTI_2 if _read_header_size(raw) == _NIFTI_2.header_bytes else _NIFTI_1
        raw += stream.read(layout.header_bytes - len(raw))
    if len(raw) < layout.header_bytes:
        raise file_errors.truncated(path, layout.header_bytes, len(raw))
    order = "<" if struct.unpack_from("<i", raw)[0] == layout.header_bytes else ">"
    magic = raw[4:12] if layout is _NIFTI_2 else raw[344:348]
    if _read_header_size(raw) != layout.header_bytes or magic[:2] != b"n+" or magic[2:3] not in b"12":
        if magic[:2] == b"ni":
            raise file_errors.half_of_a_pair(path)
        raise file_errors.damaged(path, "NIfTI")

    def unpack(field: tuple[str, int]) -> tuple[float, ...]:
        return struct.unpack_from(order + field[0], raw, field[1])

    dimensions, *sizes = (int(value) for value in unpack(layout.dim))
    shape = tuple(sizes[: max(dimensions, 0)])
    if not 1 <= dimensions <= 7 or min(shape) < 1:
        raise file_errors.damaged(path, "NIfTI")
    datatype, bits = (int(value) for value in unpack(layout.datatype))
    type_bits = 8 * np.dtype(_TYPES[datatype]).itemsize if datatype in _TYPES else max(bits, 0)
    # 0 is taken as not stated.
    if bits not in (0, type_bits) and datatype in _TYPES:
        raise file_errors.contradiction(
            path, f"its voxel type has {type_bits} bits, but its bitpix is {bits}", "Find out which is right"
        )
    offset = unpack(layout.offset)[0]
    if not math.isfinite(offset) or not layout.header_bytes <= offset <= 2**31:
        raise file_errors.damaged(path, "NIfTI")
    pixdim = unpack(layout.pixdim)
    qform_code, sform_code = unpack(layout.codes)
    slope, intercept = unpack(layout.scaling)
    return NiftiHeader(
        shape=shape,
        spacing=tuple(float(value) for value in pixdim[1 : 1 + min(dimensions, 3)]),
        qform=_compute_qform(unpack(layout.quaternion), pixdim) if qform_code > 0 else None,
        sform=np.vstack([np.reshape(unpack(layout.sform), (3, 4)), [0, 0, 0, 1]]) if sform_code > 0 else None,
        mm_per_unit=_MM_PER_UNIT.get(int(unpack(layout.units)[0]) & 7, 1.0),
        header_bytes=layout.header_bytes,
        data_offset=int(offset),
        data_bytes=math.prod(shape) * type_bits // 8,
        datatype=datatype,
        dtype=np.dtype(order + _TYPES[datatype]) if datatype in _TYPES else None,
        components=_COMPONENTS.get(datatype, 1) * math.prod(shape[4:5]),
        # A slope of 0 means that the values are not scaled; nibabel writes NaN for that.
        scaling=(slope, intercept) if slope != 0 and math.isfinite(slope) else (1.0, 0.0),
    )


def _count_plane_bytes(header: NiftiHeader) -> int:
    return header.data_bytes // math.prod(header.shape[2:])


def _compute_qform(values: tuple[float, ...], pixdim: tuple[float, ...]) -> np.ndarray:
    """The matrix of the quaternion (b, c, d) and offsets (x, y, z): "method 2" of nifti1.h.

    Its values are NaN if the quaternion is not that of a rotation.
    """
    b, c, d = values[:3]
    a_squared = 1.0 - (b * b + c * c + d * d)
    if a_squared < -_ROUNDED_QUATERNION:
        return np.full((4, 4), math.nan)
    if a_squared < 1e-7:
        # A half turn: (b, c, d) has length one except for rounding.
        length = math.sqrt(b * b + c * c + d * d)
        a, b, c, d = 0.0, b / length, c / length, d / length
    else:
        a = math.sqrt(a_squared)
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = rotation * [pixdim[1], pixdim[2], pixdim[3] * (-1.0 if pixdim[0] < 0 else 1.0)]
    matrix[:3, 3] = values[3:]
    return matrix


def _read_header_size(raw: bytes) -> int:
    if len(raw) < 4:
        return 0
    either = struct.unpack("<i", raw[:4])[0], struct.unpack(">i", raw[:4])[0]
    return next((size for size in either if size in (_NIFTI_1.header_bytes, _NIFTI_2.header_bytes)), 0)


def _read_checksum(path: Path) -> int | None:
    """The checksum at the end of a compressed file, or None if the length stated with it does not match the header."""
    if not _is_compressed(path):
        return None
    with open_content(path) as stream:
        header = read_header(stream, path)
    with path.open("rb") as file:
        file.seek(-_TRAILER.size, os.SEEK_END)
        checksum, length = _TRAILER.unpack(file.read(_TRAILER.size))
    is_whole = (header.data_offset + header.data_bytes) % 2**32 == length
    return int(checksum) if is_whole else None


def _is_compressed(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_nifti_header(path: Path) -> NiftiHeader:
    """The header of the file. Raises ImageError as ``read_header`` does."""
    with open_content(path) as stream:
        return read_header(stream, path)


def read_nifti(path: Path, header: NiftiHeader, notes: list[str]) -> tuple[sitk.Image, Placement]:
    """The voxels (int16 if that loses nothing, else float32), and their placement in LPS.

    ``header`` must be that of a volume with one value per voxel. ``notes`` receives a sentence for each correction.

    Raises ImageError if the header does not state the position of the voxels or contradicts itself, if the voxel type
    is not supported, and if the file is truncated or its checksum is wrong.
    """
    placement = _compute_placement(path, header, notes)
    if header.dtype is None:
        raise ImageError(
            f"{path.name} has voxels of a type that is not supported (NIfTI data type {header.datatype}).",
            "Save it with 16-bit integers or 32-bit floats.",
        )
    depth, height, width = header.shape[2], header.shape[1], header.shape[0]
    require_allowed_size(header.shape[:3], path.name)
    with open_content(path) as stream, reading_errors(path):
        stream.seek(header.data_offset)
        volume = stack_planes(_read_planes(stream, path, header), (depth, height, width))
        require_end(stream, path, _count_plane_bytes(header))
    return sitk.GetImageFromArray(volume), placement


def _read_planes(stream: BinaryIO, path: Path, header: NiftiHeader) -> Iterator[np.ndarray]:
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


def _compute_placement(path: Path, header: NiftiHeader, notes: list[str]) -> Placement:
    """The placement of the voxels in mm (LPS). sform, qform and pixdim must agree as far as they are stated."""
    if not all(math.isfinite(value) and value > 0 for value in header.spacing):
        raise file_errors.impossible_spacing(path, header.spacing)
    if not header.states_orientation:
        raise file_errors.missing_orientation(path, "its qform and sform codes are both 0")
    for name, matrix in (("qform", header.qform), ("sform", header.sform)):
        if matrix is not None and not (np.isfinite(matrix).all() and abs(np.linalg.det(matrix[:3, :3])) > 1e-12):
            raise file_errors.contradiction(path, f"its {name} is not a valid matrix", "Correct or remove it")
    size = header.shape[:3]
    chosen = header.sform if header.sform is not None else header.qform
    assert chosen is not None
    if header.sform is not None and header.qform is not None:
        voxels = compute_max_displacement(header.sform, header.qform, size)
        if voxels > MAX_DEVIATION_VOXELS:
            raise file_errors.contradiction(
                path,
                f"its sform and its qform place the voxels differently, by up to {voxels:.3g} voxels"
                f"{_describe_difference(header.sform, header.qform)}",
                "Find out which is right and set the code of the other to 0 (nibabel: img.set_sform(None, 0) or "
                "img.set_qform(None, 0))",
            )
        if voxels > ROUNDING_TOLERANCE_VOXELS:
            notes.append(f"{path.name}: sform and qform differ by {voxels:.2g} voxels; the sform was used.")
    if header.sform is not None and header.qform is None:
        steps = np.linalg.norm(header.sform[:3, :3], axis=0)
        off = max(abs(a - b) / b * n for a, b, n in zip(steps, header.spacing, size, strict=True))
        # The columns of a sheared matrix are longer than the distance between slices.
        if off > MAX_DEVIATION_VOXELS and np.allclose(
            (header.sform[:3, :3] / steps).T @ (header.sform[:3, :3] / steps), np.eye(3), atol=1e-2
        ):
            raise file_errors.contradiction(
                path,
                f"its sform has a spacing of {_format_mm(steps)} mm, its pixdim of {_format_mm(header.spacing)} mm",
                "Find out which is right and correct the other",
            )
    affine = _RAS_TO_LPS @ chosen
    affine[:3] *= header.mm_per_unit
    if header.mm_per_unit != 1.0:
        unit = "meters" if header.mm_per_unit > 1 else "micrometers"
        notes.append(f"{path.name} states its geometry in {unit}; it was converted to mm.")
    return Placement(affine[:3, :3], affine[:3, 3])


def _describe_difference(one: np.ndarray, other: np.ndarray) -> str:
    """The difference between two matrices in words, if there is a short description."""
    if np.linalg.det(one[:3, :3]) * np.linalg.det(other[:3, :3]) < 0:
        return ": one is the mirror image of the other"
    if np.allclose(one[:3, :3], other[:3, :3], rtol=1e-3, atol=1e-3):
        return f": they are shifted by {np.linalg.norm(one[:3, 3] - other[:3, 3]):.4g} mm"
    return ""


def _format_mm(values: np.ndarray | tuple[float, ...]) -> str:
    return " x ".join(f"{float(value):.4g}" for value in values)
