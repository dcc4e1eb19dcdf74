"""CT volumes and label maps from files: NIfTI, NRRD, MetaImage, and folders of DICOM files."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, require_memory
from . import file_errors, metaimage_checks, nifti_checks, nrrd_checks
from .dicom_series import read_dicom_folder
from .itk_warnings import no_itk_warnings
from .voxels import compact_ct, compact_labels, require_finite

_FORMATS = {
    ".nii.gz": ("NIfTI", nifti_checks),
    ".nii": ("NIfTI", nifti_checks),
    ".nrrd": ("NRRD", nrrd_checks),
    ".nhdr": ("NRRD", nrrd_checks),
    ".mha": ("MetaImage", metaimage_checks),
    ".mhd": ("MetaImage", metaimage_checks),
}
_READABLE = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or a folder of DICOM files"
# Finer than any clinical scanner and coarser than any slice spacing in use: outside lies a wrong unit or a wrong field.
_SPACING_MM = (0.02, 50.0)


def read_ct(path: Path, series: str | None = None) -> sitk.Image:
    """Reads a CT volume.

    ``path`` is a NIfTI, NRRD or MetaImage file or a folder of DICOM files; ``series`` chooses among several DICOM
    series, by number in the list the error shows or by UID. Any orientation, oblique direction and anisotropic spacing.

    Returns a scalar 3D image, int16 where every voxel fits, else float32; every voxel finite. Whether the values look
    like HU is the question of ``ct_check.check_ct``.

    Raises ImageError for a file that is missing, empty, incomplete, damaged or of another format; for images of
    other than three dimensions, of several values per voxel, of a single slice; for voxels that are NaN or infinite;
    for a spacing that is missing or impossible, a missing orientation, and axes not at right angles. Raises MemoryError
    where the image does not fit into the memory.
    """
    path = Path(path)
    if path.is_dir():
        # "." has no name to tell the user about.
        path = path.absolute()
        image = read_dicom_folder(path, series)
        _require_volume(path, image.GetSize(), image.GetNumberOfComponentsPerPixel())
    elif series is not None:
        raise ImageError(f"{path.name} is no folder of DICOM files.", "Leave out the choice of a series.")
    else:
        image = _read_file(path)
    _require_geometry(path, image.GetSpacing(), image.GetDirection())
    require_finite(image, path.name)
    return compact_ct(image)


def read_labels(path: Path) -> sitk.Image:
    """Reads a label map: a 3D image of whole numbers, 0 for background. Returns uint8, or uint16 above label 255.

    Raises ImageError as ``read_ct`` does, and where a voxel is negative, fractional or above 65535.
    """
    path = Path(path)
    image = _read_file(path)
    _require_geometry(path, image.GetSpacing(), image.GetDirection())
    require_finite(image, path.name)
    return compact_labels(image, path.name)


def _read_file(path: Path) -> sitk.Image:
    kind, checks = _format_of(path)
    file_errors.require_text_name(path)
    try:
        if path.stat().st_size == 0:
            raise file_errors.empty(path)
        checks.check_content(path)
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        with no_itk_warnings():
            reader.ReadImageInformation()
            size = reader.GetSize()
            _require_volume(path, size, reader.GetNumberOfComponents())
            checks.check_geometry_stated(path)
            _require_geometry(path, reader.GetSpacing()[:3], None)
            # A fourth axis of length one is no time series: drop it.
            reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
            image = reader.Execute()
        if checks is nifti_checks:
            nifti_checks.check_voxels(path, image)
        return image
    except FileNotFoundError:
        raise ImageError(f"There is no file {path}.", "Check the path.") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}.", "Check its permissions.") from None
    except RuntimeError as error:
        require_memory(error)
        if checks is nifti_checks:
            nifti_checks.read_through(path)
        raise _from_itk(error, path, kind) from None


def _format_of(path: Path) -> tuple[str, ModuleType]:
    name = path.name.lower()
    for extension, found in _FORMATS.items():
        if name.endswith(extension):
            return found
    if not path.exists():
        raise ImageError(f"There is no file or folder {path}.", "Check the path.")
    if _is_dicom(path):
        raise ImageError(f"{path.name} is one DICOM file, a single slice.", f"Give its folder instead: {path.parent}")
    raise ImageError(f"{path.name} is of a format that is not supported.", f"Convert it to {_READABLE}.")


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            stream.seek(128)
            return stream.read(4) == b"DICM"
    except OSError:
        return False


def _require_volume(path: Path, size: tuple[int, ...], components: int) -> None:
    if components > 1:
        raise ImageError(
            f"{path.name} has {components} values per voxel (a color or vector image, or a sequence).",
            "Give a CT volume with one value per voxel.",
        )
    extra = [length for length in size[3:] if length > 1]
    if extra:
        raise ImageError(
            f"{path.name} is a 4D series of {int(np.prod(extra))} volumes.",
            "Extract one time point, for instance in 3D Slicer, and give that.",
        )
    if len(size) < 3 or min(size[:3]) < 2:
        shown = " x ".join(str(length) for length in size[:3])
        what = "2D image" if len(size) < 3 else "single slice"
        raise ImageError(f"{path.name} is a {what} ({shown}).", "Give the whole CT volume.")


def _require_geometry(path: Path, spacing: tuple[float, ...], direction: tuple[float, ...] | None) -> None:
    low, high = _SPACING_MM
    if not all(np.isfinite(value) and low <= value <= high for value in spacing):
        raise file_errors.impossible_spacing(path, tuple(spacing))
    if direction is not None:
        axes = np.reshape(direction, (3, 3))
        if not np.allclose(axes.T @ axes, np.eye(3), atol=1e-3):
            raise file_errors.sheared(path)


def _from_itk(error: RuntimeError, path: Path, kind: str) -> ImageError:
    """What ITK's exception means for the person who gave the file."""
    text = str(error)
    if "orthonormal" in text or "Bad direction" in text:
        return file_errors.sheared(path)
    if "bytes but received" in text or "hit end of" in text:
        return file_errors.truncated(path)
    if "trouble parsing spac" in text:
        return file_errors.impossible_spacing(path)
    return file_errors.damaged(path, kind)
