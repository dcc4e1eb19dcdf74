"""The slices of a DICOM series: where each lies, whether together they fill a grid, and their voxels in HU.

Uncompressed voxels are taken from the file as they are; what is compressed is decoded by ITK (GDCM). Rescaling is done
here for both: stored values become HU by slope and intercept alone, whatever the photometric interpretation says about
their display (DICOM PS3.3, C.11.1). ITK inverts the values of MONOCHROME1 images.

ITK stacks whatever it is given at one common distance, so a missing slice or a tilted gantry would shift everything
above it with no more than a warning.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .dicom_header import CT_IMAGE, ENHANCED_CT, DicomHeader, Frame, open_data_set

_MONOCHROME1, _MONOCHROME2 = b"MONOCHROME1 ", b"MONOCHROME2 "


def planes_in_hu(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    """The planes ``wanted`` (frame numbers, from 0) of ``image`` as arrays (rows, columns) in HU: whole numbers where
    slope and intercept are, else float64. Raises ImageError where they cannot be decoded, OSError where the file cannot
    be read."""
    stored = _decoded(image, wanted) if image.voxels.bytes is None else _taken(image, wanted)
    for number, plane in zip(wanted, stored, strict=True):
        yield _rescaled(plane, image.planes[number])


def same_voxels(one: DicomHeader, other: DicomHeader) -> bool:
    """Whether two images of one plane each show the same: equal stored voxels, rescaled alike. Raises OSError."""
    rescaling = [(image.planes[0].slope, image.planes[0].intercept) for image in (one, other)]
    return repr(rescaling[0]) == repr(rescaling[1]) and _digest(one) == _digest(other)


def _digest(image: DicomHeader) -> str:
    with open_data_set(Path(image.file)) as stream:
        stream.seek(image.voxels.offset)
        raw = stream.read() if image.voxels.bytes is None else stream.read(image.voxels.bytes)
    return hashlib.sha256(raw).hexdigest()


def _rescaled(plane: np.ndarray, frame: Frame) -> np.ndarray:
    if frame.slope == 1 and frame.intercept.is_integer():
        return plane.astype(np.int32) + int(frame.intercept)
    return plane * np.float64(frame.slope) + frame.intercept


def _taken(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    voxels = image.voxels
    if voxels.allocated not in (8, 16, 32) or not 0 < voxels.stored <= voxels.allocated:
        raise _cannot_be_decoded(image)
    dtype = np.dtype(f"{'>' if voxels.big_endian else '<'}u{voxels.allocated // 8}")
    count = image.rows * image.columns
    with open_data_set(Path(image.file)) as stream:
        for number in wanted:
            stream.seek(voxels.offset + number * count * dtype.itemsize)
            raw = stream.read(count * dtype.itemsize)
            if len(raw) < count * dtype.itemsize:
                raise _cannot_be_decoded(image)
            words = np.frombuffer(raw, dtype).astype(np.int64)
            yield _stored_values(words, image).reshape(image.rows, image.columns)


def _stored_values(words: np.ndarray, image: DicomHeader) -> np.ndarray:
    """The bits that count, from ``high`` downward: old scanners kept overlays in the others."""
    voxels = image.voxels
    values = (words >> max(voxels.high + 1 - voxels.stored, 0)) & ((1 << voxels.stored) - 1)
    if voxels.signed:
        values -= (values >> (voxels.stored - 1)) << voxels.stored
    return values


def _decoded(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    with _readable_by_itk(image) as file:
        try:
            decoded = sitk.ReadImage(str(file), imageIO="GDCMImageIO")
        except RuntimeError:
            raise _cannot_be_decoded(image) from None
    array = sitk.GetArrayViewFromImage(decoded)
    if array.size != image.rows * image.columns * image.frames:
        raise _cannot_be_decoded(image)
    array = array.reshape(image.frames, image.rows, image.columns)
    # ITK has rescaled all frames as it would the first.
    slope, intercept = image.planes[0].slope, image.planes[0].intercept
    for number in wanted:
        plane = array[number]
        yield plane if (slope, intercept) == (1.0, 0.0) else np.rint((plane - np.float64(intercept)) / slope)


@contextmanager
def _readable_by_itk(image: DicomHeader) -> Iterator[Path]:
    """The file of ``image``, or a copy of it in a private folder that says MONOCHROME2 where it says MONOCHROME1."""
    file = Path(image.file)
    if image.voxels.photometric != "MONOCHROME1":
        yield file
        return
    raw = file.read_bytes()
    at = raw.find(b"\x28\0\x04\0CS\x0c\0" + _MONOCHROME1, 0, image.voxels.offset)
    if at < 0:
        raise _cannot_be_decoded(image)
    with tempfile.TemporaryDirectory(prefix="dca-slice-") as folder:
        copy = Path(folder) / "slice.dcm"
        copy.write_bytes(raw[: at + 8] + _MONOCHROME2 + raw[at + 20 :])
        yield copy


def _cannot_be_decoded(image: DicomHeader) -> ImageError:
    file = Path(image.file)
    return ImageError(
        f"{file.name} in {file.parent.name} cannot be decoded (damaged, or an unusual compression).",
        "Export the series again, uncompressed if possible.",
    )


# Positions are stored in decimal strings, often of two or three digits.
_UNEVEN_MM = 0.05
_UNEVEN_SHARE = 0.05
_SAME_PLACE_MM = 1e-3
_PARALLEL = 1e-3
_FEWEST_APART = 3
_LOCALIZERS = frozenset(("LOCALIZER", "TOPOGRAM", "SCOUT", "SCANOGRAM", "SURVIEW"))
_EXPORT_AGAIN = "Export the complete series again."
_RESAMPLE = "Add --resample (dca segment, dca cohort) to have it resampled to an even, right-angled grid."


@dataclass(frozen=True)
class Slice:
    """One plane: frame ``number`` of ``image``."""

    image: DicomHeader
    number: int = 0

    @property
    def frame(self) -> Frame:
        """Where it lies."""
        return self.image.planes[self.number]

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return self.image.columns, self.image.rows


@dataclass(frozen=True)
class Stack:
    """Slices in the order of their ``heights`` (mm) along their normal; ``positions`` (n, 3) are of the first voxels in
    mm, ``axes`` (2, 3) the unit vectors of columns and rows. ``even`` and ``upright`` say whether the volume can be
    used as it is: slices at one distance, and straight above each other. ``notes`` name what was left out.
    """

    slices: tuple[Slice, ...]
    positions: np.ndarray
    heights: np.ndarray
    axes: np.ndarray
    even: bool
    upright: bool
    notes: tuple[str, ...]

    @property
    def files(self) -> list[Path]:
        """The files of the slices, each once, in order."""
        return [Path(file) for file in dict.fromkeys(one.image.file for one in self.slices)]


def is_localizer(image: DicomHeader) -> bool:
    """Whether its image type says that it is a scout view."""
    return any(value in _LOCALIZERS for value in image.image_type)


def stacked(images: Iterable[DicomHeader], name: str, resample: bool = False) -> Stack:
    """The slices of ``images`` as a stack; copies of a slice, and images among them that are none of its slices (a dose
    page, a scout view), are left out with a note.

    Raises ImageError where what is left does not fill a volume: no CT, slices that are missing or taken twice, of
    different size, without a place, spacing or rescaling, and, unless ``resample``, unevenly spaced or tilted ones.
    ``name`` is that of the series or its folder. Raises OSError where files must be compared and cannot be read.
    """
    images = list(images)
    likely = without_strays(images)
    _require_ct(likely, name)
    every = {image.file: [Slice(image, number) for number in range(image.frames)] for image in images}
    slices = _without_unlike([one for image in likely for one in every[image.file]])
    notes = _note_on_strays([one for each in every.values() for one in each], slices)
    _require_stated(slices, name)
    if len({one.size for one in slices}) > 1 or np.ptp([one.frame.spacing for one in slices], axis=0).max() > 1e-3:
        raise _problem(name, "has slices of different size", "Choose a folder with one CT series only.")
    axes = np.reshape(slices[0].frame.axes, (2, 3))
    if not np.allclose([one.frame.axes for one in slices], slices[0].frame.axes, atol=_PARALLEL):
        raise _problem(
            name,
            "has slices that are not parallel (a localizer among them?)",
            "Choose a folder with one axial CT series only.",
        )
    axes = axes / np.linalg.norm(axes, axis=1, keepdims=True)
    normal = np.cross(axes[0], axes[1])
    slices.sort(key=lambda one: float(np.array(one.frame.position) @ normal))
    slices = _without_copies(slices, normal, name, notes)
    if len(slices) == 1:
        raise _problem(name, "has a single slice", "Give the folder with all slices of the CT.")
    positions = np.array([one.frame.position for one in slices])
    heights = positions @ normal
    even = _is_even(heights, name, resample)
    upright = _is_upright(positions, normal, min(slices[0].frame.spacing), name, resample)
    return Stack(tuple(slices), positions, heights, axes, even, upright, tuple(notes))


def together(series: Sequence[Sequence[DicomHeader]]) -> list[tuple[list[DicomHeader], str]]:
    """``series`` with those of a single slice each put together where they agree in all that slices of one scan have in
    common, as after an anonymization that gave each file a series UID of its own; with a note where that was done."""
    parts: dict[tuple[object, ...], list[DicomHeader]] = {}
    result: list[tuple[list[DicomHeader], str]] = []
    for images in series:
        one = images[0]
        if len(images) > 1 or one.frames > 1 or one.modality not in ("", "CT") or is_localizer(one):
            result.append((list(images), ""))
            continue
        axes = tuple(round(cosine, 2) for cosine in one.axes)
        spacing = tuple(round(step, 3) for step in one.spacing)
        key = (one.patient, one.study, one.description, one.columns, one.rows, repr(axes), repr(spacing))
        parts.setdefault((*key, str(Path(one.file).parent)), []).append(one)
    for images in parts.values():
        if len(images) < _FEWEST_APART:
            result += [([one], "") for one in images]
            continue
        note = f"Each of its {len(images)} slices has a series UID of its own; they were put together by their place."
        result.append((images, note))
    return result


def without_strays(images: Sequence[DicomHeader]) -> list[DicomHeader]:
    """The images that may be slices of a CT by what their headers call them: no localizer, dose page, screen capture,
    color picture or image of another modality. All of them where that leaves none."""
    secondary = Counter("SECONDARY" in image.image_type[1:2] for image in images)
    kept = [
        image
        for image in images
        if not _is_page(image)
        and not is_localizer(image)
        # Computed images are strays among original ones only.
        and not ("SECONDARY" in image.image_type[1:2] and secondary[False] > secondary[True])
    ]
    return kept or list(images)


def _is_page(image: DicomHeader) -> bool:
    no_ct = image.modality not in ("", "CT") or image.sop_class not in ("", CT_IMAGE, *ENHANCED_CT)
    return no_ct or image.values_per_voxel > 1 or any("DOSE" in one or "SCREEN" in one for one in image.image_type)


def _without_unlike(slices: list[Slice]) -> list[Slice]:
    """The slices without those that lie otherwise than most, and cannot belong to the volume."""
    if len(slices) < 3:
        return slices
    common, count = Counter(_kind(one) for one in slices).most_common(1)[0]
    if 2 * count <= len(slices):
        return slices
    shape = next(one for one in slices if _kind(one) == common)
    return [one for one in slices if _kind(one) == common or _continues(one, shape)]


def _note_on_strays(all_slices: Sequence[Slice], kept: Sequence[Slice]) -> list[str]:
    left = len(all_slices) - len(kept)
    if not left:
        return []
    files = {id(one): Path(one.image.file).name for one in all_slices}
    for one in kept:
        files.pop(id(one), None)
    names = sorted(set(files.values()))
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    what = "image that is no slice of the volume was" if left == 1 else "images that are no slices of the volume were"
    return [f"{left} {what} left out (a localizer, dose page or the like): {shown}."]


def _kind(one: Slice) -> tuple[object, ...]:
    """What the slices of a volume have in common."""
    place = one.frame
    stated = bool(np.isfinite((*place.position, *place.axes)).all())
    return one.size, tuple(round(cosine, 2) for cosine in place.axes) if stated else None


def _continues(one: Slice, other: Slice) -> bool:
    """Whether a slice unlike the others may yet belong to them: as large and without a place, or parallel to them."""
    if not np.isfinite(one.frame.axes).all() or not np.isfinite(one.frame.position).all():
        # A slice of the scan that lost its place looks like any other; a page has another size.
        return one.size == other.size and "DERIVED" not in one.image.image_type[:1]
    return bool(np.allclose(one.frame.axes, other.frame.axes, atol=_PARALLEL)) and one.size != other.size


def _without_copies(slices: list[Slice], normal: np.ndarray, name: str, notes: list[str]) -> list[Slice]:
    kept: list[Slice] = []
    copies = others = 0
    for one in slices:
        last = kept[-1] if kept else None
        if last is None or _apart(one, last, normal) >= _SAME_PLACE_MM:
            kept.append(one)
        elif _is_copy(one.image, last.image):
            copies += 1
        else:
            others += 1
    if others:
        raise _problem(
            name,
            f"has {others + 1} or more slices at the same positions (several time points or reconstructions)",
            "Export one time point or reconstruction as a series of its own.",
        )
    if copies:
        notes.append(f"{copies} cop{'ies' if copies > 1 else 'y'} of its slices left out.")
    return kept


def _is_copy(one: DicomHeader, other: DicomHeader) -> bool:
    """Whether one is a copy of the other: slices of two acquisitions are not, even where both show nothing but air."""
    single = one.frames == other.frames == 1
    return single and one.acquisition == other.acquisition and same_voxels(one, other)


def _apart(one: Slice, other: Slice, normal: np.ndarray) -> float:
    return abs(float((np.array(one.frame.position) - np.array(other.frame.position)) @ normal))


def _require_ct(images: Sequence[DicomHeader], name: str) -> None:
    slices = [image for image in images if image.values_per_voxel == 1]
    if not slices:
        raise _problem(name, "holds color pictures", "Give a CT series.")
    other = sorted({one.modality for one in slices if one.modality not in ("", "CT")})
    if other:
        raise _problem(name, f"is no CT but {', '.join(other)}", "Give a CT series.")


def _require_stated(slices: list[Slice], name: str) -> None:
    if any(one.image.frames > 1 and len({frame.position for frame in one.image.planes}) == 1 for one in slices):
        raise _problem(
            name,
            "holds a multi-frame file that does not say where each of its frames lies",
            "Export it as single slices or as an enhanced CT.",
        )
    for tag, values, what in (
        ("ImageOrientationPatient", [one.frame.axes for one in slices], "how its slices lie"),
        ("ImagePositionPatient", [one.frame.position for one in slices], "where its slices lie"),
        ("PixelSpacing", [one.frame.spacing for one in slices], "how large its voxels are"),
        ("RescaleSlope", [(one.frame.slope,) for one in slices], "how its values become HU"),
        ("RescaleIntercept", [(one.frame.intercept,) for one in slices], "how its values become HU"),
    ):
        stated = np.isfinite(values).all(axis=1)
        if not stated.all():
            count = int(np.count_nonzero(~stated))
            some = "" if count == len(slices) else f" in {count} of {len(slices)} slices"
            raise _problem(name, f"does not say {what} (no {tag}{some})", "Export it again from the scanner or PACS.")
    if min(min(one.frame.spacing) for one in slices) <= 0:
        raise _problem(name, "has an impossible PixelSpacing", "Export it again from the scanner or PACS.")
    if any(one.frame.slope == 0 for one in slices):
        raise _problem(name, "has a RescaleSlope of 0", "Export it again from the scanner or PACS.")


def _is_even(heights: np.ndarray, name: str, resample: bool) -> bool:
    gaps = np.diff(heights)
    typical = float(np.median(gaps))
    tolerance = max(_UNEVEN_MM, _UNEVEN_SHARE * typical)
    worst = int(np.argmax(np.abs(gaps - typical)))
    if abs(gaps[worst] - typical) <= tolerance:
        return True
    missing = gaps / typical
    if np.all(np.abs(gaps - np.rint(missing) * typical) <= tolerance) and missing.min() > 0.5:
        count = int(np.rint(missing - 1).sum())
        where = f"first gap after slice {int(np.argmax(missing > 1.5)) + 1}"
        raise _problem(name, f"lacks {count} slice{'s' if count > 1 else ''} ({where})", _EXPORT_AGAIN)
    if not resample:
        raise _problem(name, f"has unevenly spaced slices ({gaps.min():g} to {gaps.max():g} mm)", _RESAMPLE)
    return False


def _is_upright(positions: np.ndarray, normal: np.ndarray, pixel_mm: float, name: str, resample: bool) -> bool:
    """A drift of the slices within their own plane, over the whole stack, of less than one pixel is rounding."""
    offsets = positions - positions[0]
    offsets -= np.outer(offsets @ normal, normal)
    across = np.linalg.norm(offsets, axis=1)
    if across.max() <= pixel_mm:
        return True
    span = positions[-1] - positions[0]
    along = float(span @ normal)
    # A tilt moves each slice in proportion to its height; anything else is no volume at all.
    heights = (positions - positions[0]) @ normal
    if np.linalg.norm(offsets - np.outer(heights / along, offsets[-1]), axis=1).max() > pixel_mm:
        raise _problem(
            name, "has slices that are shifted against each other", "Choose a folder with one CT series only."
        )
    if not resample:
        tilt = np.degrees(np.arctan2(across[-1], along))
        raise _problem(name, f"was taken with the gantry tilted by {tilt:.1f} degrees", _RESAMPLE)
    return False


def _problem(name: str, what: str, remedy: str) -> ImageError:
    return ImageError(f"The DICOM series in {name} {what}.", remedy)
