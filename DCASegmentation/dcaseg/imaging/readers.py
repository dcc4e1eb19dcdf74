"""Readers of CT volumes and label maps: NIfTI, NRRD, MetaImage, and folders of DICOM files."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, get_reason, require_memory
from . import file_errors
from . import metaimage as metaimage_checks
from . import nifti as nifti_checks
from . import nrrd as nrrd_checks
from .dicom_series import read_dicom_files, read_dicom_folder, read_dicom_image_header
from .geometry import Placement, apply_placement
from .intensity import compact_ct, compact_labels, require_finite
from .itk_environment import captured_stderr, no_itk_warnings, short_path
from .nifti import read_nifti, read_nifti_header
from .scan_edges import fill_outside_with_air, replace_impossible_values
from .size_limits import require_allowed_size
from .writers import temporary_folder

_FORMATS = {
    ".nii.gz": ("NIfTI", nifti_checks),
    ".nii": ("NIfTI", nifti_checks),
    ".nrrd": ("NRRD", nrrd_checks),
    ".nhdr": ("NRRD", nrrd_checks),
    ".mha": ("MetaImage", metaimage_checks),
    ".mhd": ("MetaImage", metaimage_checks),
}
_ITK_READERS = {"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}
_READABLE = "NIfTI (.nii, .nii.gz), NRRD (.nrrd, .nhdr), MetaImage (.mha, .mhd) or a folder of DICOM files"
# Finer than any clinical scanner, and coarser than any slice spacing in use: beyond them, a unit or a field is wrong.
_SPACING_MM = (0.02, 50.0)
_log = logging.getLogger(__name__)


def read_ct(
    path: Path, series: str | None = None, notes: list[str] | None = None, resample: bool = False
) -> sitk.Image:
    """Read a CT volume.

    ``path`` is a NIfTI, NRRD or MetaImage file, a multi-frame DICOM file, or a folder of DICOM files. ``series``
    selects one of several DICOM series: its number in the list of the error message, or its UID. Any orientation,
    oblique direction and anisotropic spacing are accepted. ``notes`` receives a sentence for everything that was
    corrected or left out; without it, they are logged as warnings. ``resample`` allows a volume with tilted or unevenly
    spaced slices to be resampled (linear) to a right-angled, evenly spaced grid.

    Returns a scalar 3D image, int16 if every voxel fits, else float32; every voxel is finite. Whether the values are
    HU is checked separately, by ``ct_checks.check_ct``. Where one value that is not air fills the outside of the field
    of view, air replaces it, as it does values far below those of air.

    Raises ImageError for a file that is missing, empty, truncated, damaged or of another format; for images that are
    not 3D, have several values per voxel or a single slice, or are larger than ``size_limits`` allows; for voxels that
    are NaN or infinite; for a spacing or an orientation that is missing, impossible or contradictory; and, unless
    ``resample``, for axes that are not at right angles by more than half a voxel.
    Raises MemoryError if the image does not fit into memory.
    """
    path = Path(path)
    collected: list[str] = []
    if path.is_dir():
        # A path such as "." has no name to show to the user.
        path = path.absolute()
        image = read_dicom_folder(path, series, collected, resample)
        _require_volume(path, image.GetSize(), image.GetNumberOfComponentsPerPixel())
        _require_spacing(path, image.GetSpacing())
    elif series is not None:
        raise ImageError(f"{path.name} is not a folder of DICOM files.", "Do not select a series.")
    else:
        image = _read_file(path, collected, resample)
    image = _clean_voxels(image, path.name, collected)
    _report(collected, notes)
    return image


def prepare_ct_image(image: sitk.Image, name: str, notes: list[str]) -> sitk.Image:
    """``image``, which another program made, with the checks and corrections of ``read_ct``; it is not changed itself.

    ``name`` is used in messages. Raises ImageError as ``read_ct`` does.
    """
    path = Path(name)
    _require_volume(path, image.GetSize(), image.GetNumberOfComponentsPerPixel())
    require_allowed_size(image.GetSize(), name)
    placement = Placement.from_image(image)
    _require_spacing(path, tuple(placement.spacing.tolist()))
    image = _clean_voxels(image, name, notes)
    axes = placement.columns / placement.spacing
    if np.allclose(axes.T @ axes, np.eye(3), atol=1e-6):
        return image
    return apply_placement(sitk.Image(image), placement, path, notes, False)


def _clean_voxels(image: sitk.Image, name: str, notes: list[str]) -> sitk.Image:
    """``image`` as int16 or float32, with finite values, and with air where something else fills the outside."""
    require_finite(image, name)
    image = compact_ct(image)
    # Float64 values too large for float32 have become infinite.
    require_finite(image, name)
    return fill_outside_with_air(replace_impossible_values(image, notes), notes)


def read_labels(path: Path, notes: list[str] | None = None) -> sitk.Image:
    """Read a label map: a 3D image of whole numbers, with 0 for background. Returns uint8, or uint16 above label 255.

    ``notes`` are those of ``read_ct``. Raises ImageError as ``read_ct`` does, and if a voxel is negative, fractional or
    above 65535.
    """
    path = Path(path)
    collected: list[str] = []
    image = _read_file(path, collected, False)
    require_finite(image, path.name)
    image = compact_labels(image, path.name)
    _report(collected, notes)
    return image


def _report(collected: Iterable[str], notes: list[str] | None) -> None:
    """Add the collected notes to ``notes``, or log them if it is None."""
    if notes is not None:
        notes += collected
        return
    for note in collected:
        _log.warning(note)


def _read_file(path: Path, notes: list[str], resample: bool) -> sitk.Image:
    file_errors.require_text_name(path)
    try:
        format_name, checks = _format_of(path)
        file_errors.require_regular(path)
        if path.stat().st_size == 0:
            raise file_errors.empty(path)
        if checks is None:
            image = read_dicom_files([path], path.name, notes, resample)
            _require_volume(path, image.GetSize(), image.GetNumberOfComponentsPerPixel())
            _require_spacing(path, image.GetSpacing())
            return image
        if checks is nifti_checks:
            header = read_nifti_header(path)
            _require_volume(path, header.shape, header.components)
            _require_spacing(path, tuple(step * header.mm_per_unit for step in header.spacing))
            image, placement = read_nifti(path, header, notes)
        else:
            image, placement = _read_with_itk(path, format_name, checks, notes)
    except FileNotFoundError:
        raise ImageError(f"There is no file {path}.", "Check the path.") from None
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {get_reason(error)}.", "Check its permissions.") from None
    _require_spacing(path, tuple(placement.spacing.tolist()))
    return apply_placement(image, placement, path, notes, resample)


def _read_with_itk(path: Path, format_name: str, checks: ModuleType, notes: list[str]) -> tuple[sitk.Image, Placement]:
    checks.check_content(path)
    with ExitStack() as stack:
        file = path
        if checks is nrrd_checks and (points := nrrd_checks.count_time_points(path)):
            if points > 1:
                raise _make_4d_error(path, points)
            file = nrrd_checks.copy_without_time_axis(path, stack.enter_context(temporary_folder("dca-nrrd")))
        image = _read_itk_image(file, path, format_name, checks)
    checks.check_voxels(path, image)
    notes += checks.check_header(path)
    return image, Placement.from_image(image)


def _read_itk_image(file: Path, path: Path, format_name: str, checks: ModuleType) -> sitk.Image:
    """The image in ``file``, which is ``path`` or a copy of it."""
    reader = sitk.ImageFileReader()
    try:
        with short_path(file) as short, no_itk_warnings():
            # ITK itself goes by the extension, and knows it only in lower case.
            reader.SetImageIO(_ITK_READERS[format_name])
            reader.SetFileName(str(short))
            # What its libraries print about a header is also the reason of the error.
            with captured_stderr():
                reader.ReadImageInformation()
            size = reader.GetSize()
            _require_volume(path, size, reader.GetNumberOfComponents())
            checks.check_geometry_stated(path)
            _require_spacing(path, reader.GetSpacing()[:3])
            # Drop a fourth axis of length one.
            reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
            image = reader.Execute()
            if "vector" in image.GetPixelIDTypeAsString():
                # A NRRD axis of length one that is not in space, such as that of a sequence with a single volume.
                image = sitk.VectorIndexSelectionCast(image, 0)
    except RuntimeError as error:
        require_memory(error)
        raise _from_itk(error, path, format_name) from None
    return image


def _format_of(path: Path) -> tuple[str, ModuleType | None]:
    """The name of the format and the module with its checks (None for a multi-frame DICOM file)."""
    name = path.name.lower()
    for extension, entry in _FORMATS.items():
        if name.endswith(extension):
            return entry
    if not path.exists():
        raise ImageError(f"There is no file or folder {path}.", "Check the path.")
    header = read_dicom_image_header(path) if path.is_file() else None
    if header is not None and header.frames > 1:
        return "DICOM", None
    if header is not None:
        raise ImageError(f"{path.name} is a single DICOM slice.", f"Choose its folder instead: {path.parent}")
    raise ImageError(f"{path.name} has a format that is not supported.", f"Convert it to {_READABLE}.")


def _require_volume(path: Path, size: tuple[int, ...], components: int) -> None:
    if components > 1:
        raise ImageError(
            f"{path.name} has {components} values per voxel (a color or vector image, or a sequence).",
            "Choose a CT volume with one value per voxel.",
        )
    extra = [length for length in size[3:] if length > 1]
    if extra:
        raise _make_4d_error(path, int(np.prod(extra)))
    if len(size) < 3 or min(size[:3]) < 2:
        shown = " x ".join(str(length) for length in size[:3])
        what = "2D image" if len(size) < 3 else "single slice"
        raise ImageError(f"{path.name} is a {what} ({shown}).", "Choose the whole CT volume.")


def _make_4d_error(path: Path, count: int) -> ImageError:
    return ImageError(
        f"{path.name} is a 4D series of {count} volumes.",
        "Extract one time point, for instance in 3D Slicer, and use that.",
    )


def _require_spacing(path: Path, spacing: tuple[float, ...]) -> None:
    low, high = _SPACING_MM
    if not all(np.isfinite(value) and low <= value <= high for value in spacing):
        raise file_errors.impossible_spacing(path, tuple(spacing))


def _from_itk(error: RuntimeError, path: Path, format_name: str) -> ImageError:
    """Translate ITK's exception into an error for the user."""
    text = str(error)
    if "Bad direction" in text:
        return file_errors.contradiction(path, "its axes do not span three dimensions", "Correct their directions")
    if "orthonormal" in text:
        return file_errors.sheared(path)
    if "bytes but received" in text or "hit end of" in text:
        return file_errors.truncated(path)
    if "trouble parsing spac" in text:
        return file_errors.impossible_spacing(path)
    return file_errors.damaged(path, format_name)
