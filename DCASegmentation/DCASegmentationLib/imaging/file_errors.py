"""The sentences for files that cannot be used, worded once for every format."""

from __future__ import annotations

from pathlib import Path

from ..errors import ImageError


def empty(path: Path) -> ImageError:
    return ImageError(f"{path.name} is empty (0 bytes).", "Copy or export the image again.")


def truncated(path: Path, expected: int | None = None, found: int | None = None) -> ImageError:
    """The file ends too early; ``expected`` and ``found`` are bytes of (uncompressed) content where known."""
    detail = "" if expected is None or found is None else f": {found} of {expected} bytes are there"
    return ImageError(f"{path.name} is incomplete{detail}.", "Copy, download or export it again.")


def damaged(path: Path, kind: str) -> ImageError:
    return ImageError(f"{path.name} is damaged or no {kind} file.", "Copy, download or export it again.")


def not_finite(name: str, voxels: int) -> ImageError:
    return ImageError(
        f"{name} has {voxels} voxel{'s' if voxels > 1 else ''} without a finite value (NaN or infinite).",
        "Export it again from the original DICOM, or replace those voxels by -1024 HU.",
    )


def missing_data_file(path: Path, data_file: Path) -> ImageError:
    return ImageError(
        f"{path.name} keeps its voxels in {data_file.name}, which is missing.",
        "Put both files into one folder, or export the image as one file (.nrrd, .nii.gz, .mha).",
    )


def missing_orientation(path: Path, field: str) -> ImageError:
    """The header leaves open which way the axes run, so left and right cannot be told apart."""
    return ImageError(
        f"{path.name} does not say how the patient lies in the image ({field}).",
        "Export it again from the original DICOM, or set the orientation in 3D Slicer and save it as .nrrd.",
    )


def missing_spacing(path: Path, field: str) -> ImageError:
    return ImageError(
        f"{path.name} does not say how large its voxels are ({field}).",
        "Export it again from the original DICOM, or set the spacing in 3D Slicer and save it as .nrrd.",
    )


def impossible_spacing(path: Path, spacing: tuple[float, ...] = ()) -> ImageError:
    shown = f" ({' x '.join(f'{value:g}' for value in spacing)} mm)" if spacing else ""
    return ImageError(
        f"{path.name} has an impossible voxel spacing{shown}.",
        "Export it again from the original DICOM, or correct the spacing in 3D Slicer and save it as .nrrd.",
    )


def sheared(path: Path) -> ImageError:
    return ImageError(
        f"{path.name} has axes that are not at right angles (shear, as after a gantry tilt).",
        "Resample it to a right-angled grid first, for instance in 3D Slicer: harden its transform, save as .nrrd.",
    )


def require_text_name(path: Path) -> None:
    """Raises ImageError where ``path`` is no Unicode text, as file systems allow: SimpleITK ends the process then."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = path.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raise ImageError(f"{shown} cannot be opened: its name or path is no text in UTF-8.", "Rename it.") from None
