"""The errors for image files that cannot be used, with one wording for all formats, and checks that raise them."""

from __future__ import annotations

from pathlib import Path

from ..errors import ImageError


def empty(path: Path) -> ImageError:
    """The file has no content."""
    return ImageError(f"{path.name} is empty (0 bytes).", "Copy or export the image again.")


def truncated(path: Path, expected: int | None = None, found: int | None = None) -> ImageError:
    """The file ends too early; ``expected`` and ``found`` are bytes of (uncompressed) content if known."""
    detail = "" if expected is None or found is None else f": only {found} of {expected} bytes are present"
    return ImageError(f"{path.name} is incomplete{detail}.", "Copy, download or export it again.")


def damaged(path: Path, file_format: str) -> ImageError:
    """The file cannot be parsed as ``file_format``."""
    return ImageError(f"{path.name} is damaged or not a {file_format} file.", "Copy, download or export it again.")


def too_long(path: Path) -> ImageError:
    """The file continues with voxels after those that its header describes."""
    return ImageError(
        f"{path.name} is much larger than its header says: slices would be lost.",
        "Correct the size and the voxel type in the header, or export the image again.",
    )


def other_length(path: Path, data_file: Path, expected: int, found: int) -> ImageError:
    """The file with the voxels is longer than the header says, so it is unknown where in it the voxels are."""
    return ImageError(
        f"{path.name} describes {expected} bytes of voxels, but {data_file.name} has {found}.",
        "Correct the size, the voxel type or the offset of the voxels in the header, or export the image again.",
    )


def unsupported_encoding(path: Path, encoding: str) -> ImageError:
    """The voxels are stored in a way that cannot be read."""
    return ImageError(
        f"{path.name} stores its voxels with the encoding '{encoding}', which is not supported.",
        "Save it with the encoding gzip or raw, for instance in 3D Slicer.",
    )


def not_regular(path: Path) -> ImageError:
    """The path is a device, pipe or socket."""
    return ImageError(f"{path} is a device, pipe or socket, not a regular file.", "Choose an image file.")


def half_of_a_pair(path: Path) -> ImageError:
    """The file is the header of a NIfTI pair."""
    return ImageError(
        f"{path.name} is the header of a pair of NIfTI files (.hdr and .img), which is not supported.",
        "Save the image as one file: .nii.gz or .nrrd.",
    )


def several_data_files(path: Path) -> ImageError:
    """The voxels are spread over several files."""
    return ImageError(
        f"{path.name} stores its voxels in several files.", "Save the image as one file (.nrrd, .nii.gz, .mha)."
    )


def data_file_elsewhere(path: Path, name: str) -> ImageError:
    """The header refers to a data file in another folder."""
    return ImageError(
        f"{path.name} stores its voxels outside of its own folder ({name}).",
        "Put both files into one folder and refer to the data file without a path, or export the image as one file.",
    )


def contradiction(path: Path, what: str, remedy: str) -> ImageError:
    """The header states something in two ways that differ."""
    return ImageError(
        f"{path.name} contradicts itself: {what}.", f"{remedy}, or export the image again from the original DICOM."
    )


def not_finite(name: str, voxels: int) -> ImageError:
    """``voxels`` voxels are NaN or infinite."""
    return ImageError(
        f"{name} has {voxels} voxel{'s' if voxels > 1 else ''} without a finite value (NaN or infinite).",
        "Export it again from the original DICOM, or replace these values with -1024 HU.",
    )


def missing_data_file(path: Path, data_file: Path) -> ImageError:
    """The data file that the header refers to does not exist."""
    return ImageError(
        f"{path.name} stores its voxels in {data_file.name}, which is missing.",
        "Put both files into one folder, or export the image as one file (.nrrd, .nii.gz, .mha).",
    )


def missing_orientation(path: Path, field: str) -> ImageError:
    """The header does not state the orientation of the axes, so left and right cannot be distinguished."""
    return ImageError(
        f"{path.name} does not state the orientation of the image ({field}).",
        "Export it again from the original DICOM, or set the orientation in 3D Slicer and save it as .nrrd.",
    )


def missing_spacing(path: Path, field: str) -> ImageError:
    """The header does not state the spacing."""
    return ImageError(
        f"{path.name} does not state the size of its voxels ({field}).",
        "Export it again from the original DICOM, or set the spacing in 3D Slicer and save it as .nrrd.",
    )


def impossible_spacing(path: Path, spacing: tuple[float, ...] = ()) -> ImageError:
    """The spacing (mm) is not finite, or far from that of any scanner."""
    shown = f" ({' x '.join(f'{value:g}' for value in spacing)} mm)" if spacing else ""
    return ImageError(
        f"{path.name} has an impossible voxel spacing{shown}.",
        "Export it again from the original DICOM, or correct the spacing in 3D Slicer and save it as .nrrd.",
    )


def sheared(path: Path) -> ImageError:
    """The axes are not at right angles."""
    return ImageError(
        f"{path.name} has axes that are not at right angles (shear, as after a gantry tilt).",
        "Add --resample (dca segment, dca cohort) to resample it to a right-angled grid, or resample it beforehand.",
    )


def decode_header_text(raw: bytes) -> str:
    """A line of a header as text: UTF-8, as most programs write the names of files, or else Latin-1."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def exists(path: Path) -> bool:
    """Whether ``path`` exists. False, not an error, for a path from a file that no file system can have."""
    try:
        return path.exists()
    except (OSError, ValueError):
        # Too long, not accessible, or with a null character.
        return False


def require_text_name(path: Path) -> None:
    """Raise ImageError if ``path`` is not valid Unicode, which file systems allow but which crashes SimpleITK."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = path.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raise ImageError(f"{shown} cannot be opened: its name or path is not valid UTF-8.", "Rename it.") from None


def require_regular(path: Path) -> None:
    """Raise ImageError if ``path`` does not exist, or is a device or pipe, which may never end.

    Raises OSError if the file system refuses access.
    """
    if not path.exists():
        raise ImageError(f"There is no file {path}.", "Check the path.")
    if not path.is_file():
        raise not_regular(path)


def find_data_file(path: Path, name: str) -> Path:
    """The data file ``name`` that the header file ``path`` refers to.

    Raises ImageError if it is missing, not a regular file, or in another folder: a header from an untrusted source must
    not make this program read arbitrary files.
    """
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise data_file_elsewhere(path, name)
    data_file = path.parent / relative
    if data_file.exists() and not data_file.is_file():
        raise not_regular(data_file)
    if not data_file.is_file():
        raise missing_data_file(path, data_file)
    return data_file


def describe_missing_origin(path: Path, field: str) -> str:
    """A note that the origin is missing. The image can be used, as the origin matters only relative to other images."""
    return f"{path.name} does not state its position in the scanner ({field} in its header); its origin was set to 0."
