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


def too_long(path: Path) -> ImageError:
    return ImageError(
        f"{path.name} goes on long after the voxels that its header announces.", "Copy, download or export it again."
    )


def not_regular(path: Path) -> ImageError:
    return ImageError(f"{path} is no regular file (a device, pipe or socket).", "Give an image file.")


def half_of_a_pair(path: Path) -> ImageError:
    return ImageError(
        f"{path.name} is the header of a pair of NIfTI files (.hdr and .img), which is not supported.",
        "Save the image as one file: .nii.gz or .nrrd.",
    )


def several_data_files(path: Path) -> ImageError:
    return ImageError(
        f"{path.name} keeps its voxels in several files.", "Save the image as one file (.nrrd, .nii.gz, .mha)."
    )


def data_file_elsewhere(path: Path, name: str) -> ImageError:
    return ImageError(
        f"{path.name} keeps its voxels outside of its own folder ({name}).",
        "Put both files into one folder and name the data file without a path, or export the image as one file.",
    )


def contradiction(path: Path, what: str, remedy: str) -> ImageError:
    return ImageError(
        f"{path.name} contradicts itself: {what}.", f"{remedy}, or export the image again from the original DICOM."
    )


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
        "Add --resample (dca segment, dca cohort) to have it resampled to a right-angled grid, or resample it first.",
    )


def require_text_name(path: Path) -> None:
    """Raises ImageError where ``path`` is no Unicode text, as file systems allow: SimpleITK ends the process then."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = path.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raise ImageError(f"{shown} cannot be opened: its name or path is no text in UTF-8.", "Rename it.") from None


def require_regular(path: Path) -> None:
    """Raises ImageError where there is no file, or a device or pipe, which may never end. Raises OSError where it
    cannot be looked at."""
    if not path.exists():
        raise ImageError(f"There is no file {path}.", "Check the path.")
    if not path.is_file():
        raise not_regular(path)


def data_file_beside(path: Path, name: str) -> Path:
    """The file ``name`` that the header ``path`` keeps its voxels in. Raises ImageError where it is missing, no regular
    file, or in another folder: a header from elsewhere must not make this program read any file it likes."""
    inner = Path(name)
    if inner.is_absolute() or ".." in inner.parts or "\\" in name:
        raise data_file_elsewhere(path, name)
    data_file = path.parent / inner
    if data_file.exists() and not data_file.is_file():
        raise not_regular(data_file)
    if not data_file.is_file():
        raise missing_data_file(path, data_file)
    return data_file


def no_origin(path: Path, field: str) -> str:
    """A note: where the image lies matters only if it is laid over another."""
    return f"{path.name} does not say where in the scanner it lies ({field} in its header): its origin was set to 0."
