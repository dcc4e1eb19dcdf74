"""The slices of a DICOM series: where each lies, and whether together they fill a volume.

ITK stacks whatever it is given at one common distance, so a missing slice or a tilted gantry would shift everything
above it with no more than a warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError

# Positions are stored in decimal strings, often of two or three digits.
_UNEVEN_MM = 0.05
_UNEVEN_SHARE = 0.05
_PARALLEL = 1e-3
_EXPORT_AGAIN = "Export the complete series again."
_REGULARIZE = (
    "Load it in 3D Slicer with the DICOM setting 'Acquisition geometry regularization', "
    "harden the transform, and save the volume as .nrrd."
)


@dataclass(frozen=True)
class Slice:
    """What the header of one file says.

    ``size`` is (columns, rows, frames) and ``spacing`` in mm along rows and columns (x, y); ``position`` (mm, LPS) is
    the center of the first voxel; ``axes`` (2, 3) are the unit vectors of x and y. Both are NaN where the header lacks
    them.
    """

    file: Path
    series_uid: str
    modality: str
    description: str
    size: tuple[int, ...]
    values_per_voxel: int
    spacing: tuple[float, float]
    position: np.ndarray
    axes: np.ndarray


def read_slice(file: Path) -> Slice:
    """Reads the header of one DICOM file. Raises RuntimeError (ITK) where it is no image."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    reader.ReadImageInformation()

    def text(tag: str) -> str:
        # DICOM pads to even length with blanks or zero bytes; ITK hands over bytes that are no UTF-8 as surrogates.
        raw = reader.GetMetaData(tag) if reader.HasMetaDataKey(tag) else ""
        return raw.strip(" \0").encode("utf-8", "replace").decode("utf-8")

    def numbers(tag: str, count: int) -> np.ndarray:
        try:
            values = np.array([float(value) for value in text(tag).split("\\")])
        except ValueError:
            values = np.empty(0)
        return values if len(values) == count else np.full(count, np.nan)

    return Slice(
        file=file,
        series_uid=text("0020|000e"),
        modality=text("0008|0060"),
        description=text("0008|103e"),
        size=reader.GetSize(),
        values_per_voxel=reader.GetNumberOfComponents(),
        spacing=(reader.GetSpacing()[0], reader.GetSpacing()[1]),
        position=numbers("0020|0032", 3),
        axes=numbers("0020|0037", 6).reshape(2, 3),
    )


def sorted_slices(slices: list[Slice], name: str) -> list[Slice]:
    """The slices in the order of their positions along the normal of the slice plane.

    Raises ImageError where they do not fill a volume of parallel slices at one distance; ``name`` is the folder's.
    """
    _require_ct(slices, name)
    if len(slices) == 1:
        raise _problem(name, "has a single slice", "Give the folder with all slices of the CT.")
    if len({one.size for one in slices}) > 1 or np.ptp([one.spacing for one in slices], axis=0).max() > 1e-3:
        raise _problem(name, "has slices of different size", "Choose a folder with one CT series only.")
    axes = _common_axes(slices, name)
    if not np.isfinite([one.position for one in slices]).all():
        raise _problem(name, "does not say where its slices lie (no ImagePositionPatient)", _EXPORT_AGAIN)
    normal = np.cross(axes[0], axes[1])
    ordered = sorted(slices, key=lambda one: float(one.position @ normal))
    positions = np.array([one.position for one in ordered])
    _require_even_gaps(positions @ normal, name)
    _require_no_tilt(positions, normal, min(slices[0].spacing), name)
    return ordered


def _require_ct(slices: list[Slice], name: str) -> None:
    other = sorted({one.modality for one in slices if one.modality not in ("", "CT")})
    if other:
        raise _problem(name, f"is no CT but {', '.join(other)}", "Give a CT series.")
    if any(one.values_per_voxel > 1 for one in slices):
        raise _problem(name, "holds color pictures", "Give a CT series.")
    if any(len(one.size) > 2 and one.size[2] > 1 for one in slices):
        raise _problem(
            name,
            "holds a multi-frame (enhanced) DICOM file, which is not supported",
            "Open it in 3D Slicer and save the volume as .nrrd.",
        )


def _common_axes(slices: list[Slice], name: str) -> np.ndarray:
    first = slices[0].axes
    if not np.isfinite([one.axes for one in slices]).all():
        raise _problem(name, "does not say how its slices lie (no ImageOrientationPatient)", _EXPORT_AGAIN)
    if not np.allclose([one.axes for one in slices], first, atol=_PARALLEL):
        raise _problem(
            name,
            "has slices that are not parallel (a localizer among them?)",
            "Choose a folder with one axial CT series only.",
        )
    return first


def _require_even_gaps(heights: np.ndarray, name: str) -> None:
    gaps = np.diff(heights)
    typical = float(np.median(gaps))
    if gaps.min() < 1e-3:
        doubled = int(np.count_nonzero(gaps < 1e-3))
        raise _problem(
            name,
            f"has {doubled + 1} or more slices at the same positions (several time points or reconstructions)",
            "Export one time point or reconstruction as a series of its own.",
        )
    tolerance = max(_UNEVEN_MM, _UNEVEN_SHARE * typical)
    worst = int(np.argmax(np.abs(gaps - typical)))
    if abs(gaps[worst] - typical) <= tolerance:
        return
    missing = gaps / typical
    if np.all(np.abs(gaps - np.rint(missing) * typical) <= tolerance):
        count = int(np.rint(missing - 1).sum())
        where = f"first gap after slice {int(np.argmax(missing > 1.5)) + 1}"
        raise _problem(name, f"lacks {count} slice{'s' if count > 1 else ''} ({where})", _EXPORT_AGAIN)
    raise _problem(name, f"has unevenly spaced slices ({gaps.min():g} to {gaps.max():g} mm)", _REGULARIZE)


def _require_no_tilt(positions: np.ndarray, normal: np.ndarray, pixel_mm: float, name: str) -> None:
    """A drift of the slices within their own plane, over the whole stack, of less than one pixel is rounding."""
    span = positions[-1] - positions[0]
    along = float(span @ normal)
    across = float(np.linalg.norm(span - along * normal))
    if across > pixel_mm:
        tilt = np.degrees(np.arctan2(across, along))
        raise _problem(name, f"was taken with the gantry tilted by {tilt:.1f} degrees", _REGULARIZE)


def _problem(name: str, what: str, remedy: str) -> ImageError:
    return ImageError(f"The DICOM series in {name} {what}.", remedy)
