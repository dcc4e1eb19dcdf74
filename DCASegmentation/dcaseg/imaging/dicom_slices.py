"""The slices of a DICOM series: their positions, whether they form a regular grid, and their voxels in HU.

Uncompressed voxels are read directly from the file; compressed ones are decoded by ITK (GDCM). Rescaling is done here
for both: stored values become HU by slope and intercept alone, whatever the photometric interpretation says about
their display (DICOM PS3.3, C.11.1). ITK, in contrast, inverts the values of MONOCHROME1 images.

ITK stacks the slices it is given at one common distance, so a missing slice or a tilted gantry would shift everything
above it with no more than a warning. This file detects both.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError, require_memory
from .dicom_header import CT_IMAGE, ENHANCED_CT, DicomHeader, Frame, open_data_set
from .geometry import MAX_DEVIATION_VOXELS
from .itk_environment import captured_stderr
from .writers import temporary_folder

# What the JPEG decoder prints when it replaces a part that it cannot decode by other values, and when bytes are left
# over: it then lost its place in the code, and values before the end are wrong.
_SIGNS_OF_DAMAGE = ("Corrupt JPEG data", "Premature end", "Inconsistent progression sequence")

_MONOCHROME1, _MONOCHROME2 = b"MONOCHROME1 ", b"MONOCHROME2 "


def read_hu_planes(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    """Yield the planes ``wanted`` (frame numbers, from 0) of ``image`` as arrays (rows, columns) in HU.

    Planes are integers if slope and intercept are whole numbers (slope 1), else float64. Raises ImageError if they
    cannot be decoded and OSError if the file cannot be read.
    """
    stored = _decode_with_itk(image, wanted) if image.voxels.bytes is None else _read_uncompressed(image, wanted)
    for number, plane in zip(wanted, stored, strict=True):
        yield _apply_rescale(plane, image.planes[number])


def have_same_voxels(one: DicomHeader, other: DicomHeader) -> bool:
    """Whether two single-plane images have equal stored voxels and the same rescaling. Raises OSError."""
    rescaling = [(image.planes[0].slope, image.planes[0].intercept) for image in (one, other)]
    return repr(rescaling[0]) == repr(rescaling[1]) and _hash_voxels(one) == _hash_voxels(other)


def _hash_voxels(image: DicomHeader) -> str:
    with open_data_set(Path(image.file)) as stream:
        stream.seek(image.voxels.offset)
        raw = stream.read() if image.voxels.bytes is None else stream.read(image.voxels.bytes)
    return hashlib.sha256(raw).hexdigest()


def _apply_rescale(plane: np.ndarray, frame: Frame) -> np.ndarray:
    is_whole = frame.slope == 1 and frame.intercept.is_integer() and plane.dtype.kind in "iu"
    # Stored values have at most 32 bits, so that no sum is too large for 64.
    if is_whole and abs(frame.intercept) < 2**31:
        return plane.astype(np.int64) + int(frame.intercept)
    return plane * np.float64(frame.slope) + frame.intercept


def _read_uncompressed(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    voxels = image.voxels
    if voxels.floating:
        yield from _read_floating(image, wanted)
        return
    if voxels.allocated not in (8, 16, 32) or not 0 < voxels.stored <= voxels.allocated:
        raise _make_decoding_error(image)
    dtype = np.dtype(f"{'>' if voxels.big_endian else '<'}u{voxels.allocated // 8}")
    count = image.rows * image.columns
    with open_data_set(Path(image.file)) as stream:
        for number in wanted:
            stream.seek(voxels.offset + number * count * dtype.itemsize)
            raw = stream.read(count * dtype.itemsize)
            if len(raw) < count * dtype.itemsize:
                raise _make_decoding_error(image)
            words = np.frombuffer(raw, dtype).astype(np.int64)
            yield _extract_stored_values(words, image).reshape(image.rows, image.columns)


def _read_floating(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    voxels = image.voxels
    if voxels.allocated not in (32, 64):
        raise _make_decoding_error(image)
    dtype = np.dtype(f"{'>' if voxels.big_endian else '<'}f{voxels.allocated // 8}")
    size = image.rows * image.columns * dtype.itemsize
    with open_data_set(Path(image.file)) as stream:
        for number in wanted:
            stream.seek(voxels.offset + number * size)
            yield np.frombuffer(stream.read(size), dtype).reshape(image.rows, image.columns).astype(np.float64)


def _extract_stored_values(words: np.ndarray, image: DicomHeader) -> np.ndarray:
    """The stored bits of each word, from ``high`` downward: old scanners kept overlays in the other bits."""
    voxels = image.voxels
    values = (words >> max(voxels.high + 1 - voxels.stored, 0)) & ((1 << voxels.stored) - 1)
    if voxels.signed:
        values -= (values >> (voxels.stored - 1)) << voxels.stored
    return values


def _decode_with_itk(image: DicomHeader, wanted: list[int]) -> Iterator[np.ndarray]:
    with _readable_by_itk(image) as file, captured_stderr() as said:
        try:
            decoded = sitk.ReadImage(str(file), imageIO="GDCMImageIO")
        except RuntimeError as error:
            require_memory(error)
            raise _make_decoding_error(image) from None
    if any(sign in text for text in said for sign in _SIGNS_OF_DAMAGE):
        raise _make_decoding_error(image)
    array = sitk.GetArrayViewFromImage(decoded)
    if array.size != image.rows * image.columns * image.frames:
        raise _make_decoding_error(image)
    array = array.reshape(image.frames, image.rows, image.columns)
    # ITK has rescaled all frames with the values of the first one, which is undone here.
    slope, intercept = image.planes[0].slope, image.planes[0].intercept
    for number in wanted:
        plane = array[number]
        yield (
            plane
            if (slope, intercept) == (1.0, 0.0)
            else np.rint((plane - np.float64(intercept)) / slope).astype(np.int64)
        )


@contextmanager
def _readable_by_itk(image: DicomHeader) -> Iterator[Path]:
    """The file of ``image``, or a temporary copy that says MONOCHROME2 instead of MONOCHROME1."""
    file = Path(image.file)
    if image.voxels.photometric != "MONOCHROME1":
        yield file
        return
    raw = file.read_bytes()
    at = raw.find(b"\x28\0\x04\0CS\x0c\0" + _MONOCHROME1, 0, image.voxels.offset)
    if at < 0:
        raise _make_decoding_error(image)
    with temporary_folder("dca-slice") as folder:
        copy = folder / "slice.dcm"
        copy.write_bytes(raw[: at + 8] + _MONOCHROME2 + raw[at + 20 :])
        yield copy


def _make_decoding_error(image: DicomHeader) -> ImageError:
    file = Path(image.file)
    return ImageError(
        f"{file.name} in {file.parent.name} cannot be decoded (it is damaged or has an unsupported compression).",
        "Export the series again, uncompressed if possible.",
    )


# Positions are stored as decimal strings, often with two or three digits after the point.
_UNEVEN_MM = 0.05
_UNEVEN_SHARE = 0.05
_SAME_PLACE_MM = 1e-3
_PARALLEL = 1e-3
_ROUNDED_COSINE = 1e-3
# Slices whose cosines differ by less are never left out as localizers, but may be refused as not parallel.
_LIKE_A_SLICE = 0.01
# The time between two contrast phases is longer, that between neighboring slices of one scan shorter.
_SECONDS_BETWEEN_PHASES = 5.0
_MIN_APART = 3
# How many slices of each phase may follow each other. A few slices that were scanned again are no phase.
_MAX_GROUP = 10
_LOCALIZERS = frozenset(("LOCALIZER", "TOPOGRAM", "SCOUT", "SCANOGRAM", "SURVIEW"))
HU_TYPES = ("", "HU", "US")
"""The rescale types of HU: not stated, HU, and unspecified."""
# Value 4 of the image type of a multi-energy CT image (DICOM PS3.3 C.8.15.3.7), and the terms vendors use for it.
_ENERGY = re.compile(
    r"^(VMI|MAT_.*|EFF_ATOMIC_NUM|ELECTRON_DENSITY|VNC|VUE|.*IODINE.*|.*MONOENERG.*|.*VIRTUAL.*MONO.*|.*MATERIAL.*"
    r"|.*EFFECTIVE.?Z.*|DE.?MAP.*|RHO.?Z|GSI.*)$"
)
_EXPORT_AGAIN = "Export the complete series again."
_RESAMPLE = "Add --resample (dca segment, dca cohort) to resample it to an evenly spaced, right-angled grid."


@dataclass(frozen=True)
class Slice:
    """One plane: frame ``number`` of ``image``."""

    image: DicomHeader
    number: int = 0

    @property
    def frame(self) -> Frame:
        """The position and rescaling of the plane."""
        return self.image.planes[self.number]

    @property
    def size(self) -> tuple[int, int]:
        """The number of columns and rows."""
        return self.image.columns, self.image.rows


@dataclass(frozen=True)
class Stack:
    """Slices in the order of their ``heights`` (mm) along their normal.

    ``positions`` (n, 3) are the centers of their first voxels in mm (LPS), ``axes`` (2, 3) the unit vectors of columns
    and rows. ``even`` says that the slices are evenly spaced, ``upright`` that they are stacked along their normal; the
    volume can be used without resampling if both are true. ``notes`` says what was left out.
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
        """The files of the slices, in order and without duplicates."""
        return [Path(file) for file in dict.fromkeys(one.image.file for one in self.slices)]


def find_energy_types(images: Iterable[DicomHeader]) -> list[str]:
    """The terms in the image types that mean an image computed from dual-energy data."""
    return sorted({value for image in images for value in image.image_type if _ENERGY.match(value)})


def find_non_hu_units(images: Iterable[DicomHeader]) -> list[str]:
    """The units of the planes that are not in HU."""
    return sorted({plane.rescale_type for image in images for plane in image.planes} - set(HU_TYPES))


def is_localizer(image: DicomHeader) -> bool:
    """Whether the image type says that it is a localizer (scout view)."""
    return any(value in _LOCALIZERS for value in image.image_type)


def stack_slices(images: Iterable[DicomHeader], name: str, resample: bool = False) -> Stack:
    """The slices of ``images`` as a stack, with a note on images that were left out.

    These are copies of a slice, and images that are not slices of the volume, such as a dose report or a localizer.
    ``name`` is the name of the series or its folder, for messages.

    Raises ImageError if the remaining slices do not form a volume: they are not CT, are missing, duplicated or of
    different size, lack a position, spacing or rescaling, or (unless ``resample``) are unevenly spaced or tilted.
    Raises OSError if files that must be compared cannot be read.
    """
    images = list(images)
    likely = select_slice_images(images)
    _require_ct(likely, name)
    every = {image.file: [Slice(image, number) for number in range(image.frames)] for image in images}
    slices = _remove_outliers([one for image in likely for one in every[image.file]])
    notes = _note_on_left_out([one for each in every.values() for one in each], slices)
    _require_stated(slices, name)
    if len({one.size for one in slices}) > 1:
        raise _make_series_error(name, "has slices of different sizes", "Choose a folder with a single CT series.")
    spacings = np.array([one.frame.spacing for one in slices])
    if np.ptp(spacings, axis=0).max() > _SAME_PLACE_MM:
        low, high = spacings.min(), spacings.max()
        raise _make_series_error(
            name,
            f"has slices with different PixelSpacing ({low:g} to {high:g} mm)",
            "Choose a folder with a single CT series.",
        )
    axes = np.reshape(slices[0].frame.axes, (2, 3))
    if not np.allclose([one.frame.axes for one in slices], slices[0].frame.axes, atol=_PARALLEL):
        raise _make_series_error(
            name,
            "has slices that are not parallel (a localizer among them?)",
            "Choose a folder with a single axial CT series.",
        )
    axes = _orthonormalize(axes, name)
    normal = np.cross(axes[0], axes[1])
    slices.sort(key=lambda one: float(np.array(one.frame.position) @ normal))
    slices = _remove_duplicates(slices, normal, name, notes)
    if len(slices) == 1:
        raise _make_series_error(name, "has only one slice", "Choose the folder with all slices of the CT.")
    _require_one_acquisition(slices, name)
    positions = np.array([one.frame.position for one in slices])
    heights = positions @ normal
    even = _is_even(heights, name, resample)
    upright = _is_upright(positions, normal, min(slices[0].frame.spacing), name, resample)
    return Stack(tuple(slices), positions, heights, axes, even, upright, tuple(notes))


def _orthonormalize(axes: np.ndarray, name: str) -> np.ndarray:
    """``axes`` (2, 3) as unit vectors at right angles. Raises ImageError if they differ by more than rounding."""
    lengths = np.linalg.norm(axes, axis=1)
    if np.abs(lengths - 1).max() > _ROUNDED_COSINE or abs(float(axes[0] @ axes[1])) > _ROUNDED_COSINE:
        raise _make_series_error(
            name,
            "has an impossible ImageOrientationPatient (not two unit vectors at right angles)",
            "Export it again from the scanner or PACS.",
        )
    x, y = axes / lengths[:, None]
    y = y - x * (x @ y)
    return np.stack([x, y / np.linalg.norm(y)])


def _require_one_acquisition(slices: Sequence[Slice], name: str) -> None:
    """Raise ImageError if slices of several acquisitions, such as two contrast phases, alternate along the volume.

    Acquisitions that follow each other, as in step-and-shoot scans, form one volume. ``slices`` are in order.
    """
    # A slice without a number may belong to any acquisition.
    numbers = [one.image.acquisition for one in slices if one.image.acquisition]
    changes = sum(one != other for one, other in pairwise(numbers))
    if changes >= max(len(set(numbers)), 1):
        raise _make_series_error(
            name,
            f"has slices of {len(set(numbers))} acquisitions that alternate along the volume",
            "Export each acquisition as a separate series, or select one with --series and its number.",
        )
    steps = np.diff([_parse_time(one.image.acquisition_time) for one in slices])
    # The phases may alternate in groups of slices.
    steps = steps[steps != 0]
    # Without a number, the phases still differ in time; NaN compares as False.
    back_and_forth = np.count_nonzero((steps[1:] * steps[:-1] < 0) & (np.abs(steps[1:]) > _SECONDS_BETWEEN_PHASES))
    if 2 * back_and_forth > len(steps) and _MAX_GROUP * back_and_forth > len(slices):
        raise _make_series_error(
            name,
            f"has slices that were acquired alternately, {np.nanmedian(np.abs(steps)):.0f} seconds apart",
            "Export each contrast phase or time point as a separate series.",
        )


def _parse_time(time: str) -> float:
    """The seconds since midnight of a DICOM time (HHMMSS.F), or NaN."""
    if not re.fullmatch(r"\d{6}(\.\d+)?", time, re.ASCII):
        return float("nan")
    return 3600 * int(time[:2]) + 60 * int(time[2:4]) + float(time[4:])


def merge_single_slice_series(series: Sequence[Sequence[DicomHeader]]) -> list[tuple[list[DicomHeader], str]]:
    """Merge single-slice series whose slices belong to one scan, as after an anonymization that changed series UIDs.

    ``series`` is a list of images for each series. Single slices are merged if they agree in everything that the slices
    of one scan have in common. Returns the images of each series, with a note if they were merged.
    """
    parts: dict[tuple[object, ...], list[DicomHeader]] = {}
    result: list[tuple[list[DicomHeader], str]] = []
    for images in series:
        first = images[0]
        if len(images) > 1 or first.frames > 1 or first.modality not in ("", "CT") or is_localizer(first):
            result.append((list(images), ""))
            continue
        key = (first.patient, first.study, first.description, first.columns, first.rows)
        parts.setdefault((*key, str(Path(first.file).parent)), []).append(first)
    for images in (alike for part in parts.values() for alike in group_by_orientation(part, same_spacing=True)):
        if len(images) < _MIN_APART:
            result += [([one], "") for one in images]
            continue
        note = f"Its {len(images)} slices had different series UIDs; they were combined by position."
        result.append((images, note))
    return result


def group_by_orientation(images: Iterable[DicomHeader], same_spacing: bool = False) -> list[list[DicomHeader]]:
    """The images grouped by equal axes, and equal pixel spacing if ``same_spacing``, in the order of their first ones.

    Differences by rounding do not count. Values that are not stated equal each other.
    """
    groups: list[list[DicomHeader]] = []
    for image in images:
        # Compared with a tolerance: rounded numbers differ if they lie on the two sides of a border of rounding.
        for group in groups:
            first = group[0]
            if _are_close(first.axes, image.axes, _PARALLEL) and (
                not same_spacing or _are_close(first.spacing, image.spacing, _SAME_PLACE_MM)
            ):
                group.append(image)
                break
        else:
            groups.append([image])
    return groups


def _are_close(ones: Sequence[float], others: Sequence[float], tolerance: float) -> bool:
    return all(
        abs(one - other) <= tolerance or (math.isnan(one) and math.isnan(other))
        for one, other in zip(ones, others, strict=True)
    )


def select_slice_images(images: Sequence[DicomHeader]) -> list[DicomHeader]:
    """The images that may be slices of a CT, judged by their headers; all images if that would leave none.

    Localizers, dose reports, screen captures, color pictures and images of other modalities are left out.
    """
    secondary = Counter("SECONDARY" in image.image_type[1:2] for image in images)
    kept = [
        image
        for image in images
        if not _is_page(image)
        and not is_localizer(image)
        # Secondary (computed) images are slices only if original images are not in the majority.
        and not ("SECONDARY" in image.image_type[1:2] and secondary[False] > secondary[True])
    ]
    return kept or list(images)


def _is_page(image: DicomHeader) -> bool:
    """Whether the image is not a CT image, or is a color picture, dose report or screen capture."""
    is_other = image.modality not in ("", "CT") or image.sop_class not in ("", CT_IMAGE, *ENHANCED_CT)
    is_report = any("DOSE" in value or "SCREEN" in value for value in image.image_type)
    return is_other or image.values_per_voxel > 1 or is_report


def _remove_outliers(slices: list[Slice]) -> list[Slice]:
    """The slices without those that cannot belong to the volume that most of them form.

    Left out are slices of another orientation, and slices without a position unless they have the size of the others.
    """
    placed = [one for one in slices if _is_placed(one)]
    if len(slices) < 3 or not placed:
        return slices
    # If most slices are parallel, their cosines include the median.
    typical = np.median([one.frame.axes for one in placed], axis=0).tolist()
    parallel = [one for one in placed if _are_close(one.frame.axes, typical, _LIKE_A_SLICE)]
    if not parallel:
        return slices
    size, count = Counter(one.size for one in parallel).most_common(1)[0]
    if 2 * count <= len(slices):
        return slices
    kept = {id(one) for one in parallel}
    return [one for one in slices if id(one) in kept or (not _is_placed(one) and _may_belong(one, size))]


def _note_on_left_out(all_slices: Sequence[Slice], kept: Sequence[Slice]) -> list[str]:
    count = len(all_slices) - len(kept)
    if not count:
        return []
    files = {id(one): Path(one.image.file).name for one in all_slices}
    for one in kept:
        files.pop(id(one), None)
    names = sorted(set(files.values()))
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    what = "image that is not a slice" if count == 1 else "images that are not slices"
    verb = "was" if count == 1 else "were"
    return [f"{count} {what} of the volume {verb} left out (such as a localizer or dose report): {shown}."]


def _is_placed(one: Slice) -> bool:
    """Whether position and orientation are stated."""
    return bool(np.isfinite((*one.frame.position, *one.frame.axes)).all())


def _may_belong(one: Slice, size: tuple[int, int]) -> bool:
    """Whether a slice without a position may belong to a volume of slices of this ``size``.

    A slice that lost its position has the size of the others; a page usually has another size.
    """
    return one.size == size and "DERIVED" not in one.image.image_type[:1]


def _remove_duplicates(slices: list[Slice], normal: np.ndarray, name: str, notes: list[str]) -> list[Slice]:
    kept: list[Slice] = []
    copies = conflicts = 0
    for one in slices:
        last = kept[-1] if kept else None
        if last is None or _compute_distance(one, last, normal) >= _SAME_PLACE_MM:
            kept.append(one)
        elif _is_copy(one.image, last.image):
            copies += 1
        else:
            conflicts += 1
    if conflicts:
        raise _make_series_error(
            name,
            f"has {conflicts + 1} or more slices at the same positions (several time points or reconstructions)",
            "Export one time point or reconstruction as a separate series.",
        )
    if copies:
        what = "1 duplicate slice was" if copies == 1 else f"{copies} duplicate slices were"
        notes.append(f"{what} left out.")
    return kept


def _is_copy(one: DicomHeader, other: DicomHeader) -> bool:
    """Whether one image is a copy of the other. Slices of two acquisitions are not, even if both show only air."""
    are_single = one.frames == other.frames == 1
    acquisitions = {one.acquisition, other.acquisition} - {""}
    return are_single and len(acquisitions) < 2 and have_same_voxels(one, other)


def _compute_distance(one: Slice, other: Slice, normal: np.ndarray) -> float:
    """The distance of two slices along ``normal`` in mm."""
    return abs(float((np.array(one.frame.position) - np.array(other.frame.position)) @ normal))


def _require_ct(images: Sequence[DicomHeader], name: str) -> None:
    slices = [image for image in images if image.values_per_voxel == 1]
    if not slices:
        raise _make_series_error(name, "contains only color pictures", "Choose a CT series.")
    others = sorted({image.modality for image in slices if image.modality not in ("", "CT")})
    if others:
        raise _make_series_error(name, f"is not CT but {', '.join(others)}", "Choose a CT series.")


def _require_stated(slices: list[Slice], name: str) -> None:
    if any(one.image.frames > 1 and len({frame.position for frame in one.image.planes}) == 1 for one in slices):
        raise _make_series_error(
            name,
            "contains a multi-frame file that does not state the position of each frame",
            "Export it as single slices or as an enhanced CT.",
        )
    for tag, values, what in (
        ("ImageOrientationPatient", [one.frame.axes for one in slices], "the orientation of its slices"),
        ("ImagePositionPatient", [one.frame.position for one in slices], "the position of its slices"),
        ("PixelSpacing", [one.frame.spacing for one in slices], "the size of its voxels"),
        ("RescaleSlope", [(one.frame.slope,) for one in slices], "how its values are converted to HU"),
        ("RescaleIntercept", [(one.frame.intercept,) for one in slices], "how its values are converted to HU"),
    ):
        stated = np.isfinite(values).all(axis=1)
        if not stated.all():
            count = int(np.count_nonzero(~stated))
            where = "" if count == len(slices) else f" in {count} of {len(slices)} slices"
            raise _make_series_error(
                name, f"does not state {what} (no {tag}{where})", "Export it again from the scanner or PACS."
            )
    units = find_non_hu_units(one.image for one in slices)
    if units:
        raise _make_series_error(name, f"has voxels in {', '.join(units)}, not in HU", "Choose a CT series in HU.")
    if min(min(one.frame.spacing) for one in slices) <= 0:
        raise _make_series_error(name, "has an impossible PixelSpacing", "Export it again from the scanner or PACS.")
    if any(one.frame.slope == 0 for one in slices):
        raise _make_series_error(name, "has a RescaleSlope of 0", "Export it again from the scanner or PACS.")


def compute_spacing_deviation(heights: np.ndarray) -> float:
    """How far the slice at most is from its place in an evenly spaced stack, as a share of the mean gap.

    The first and the last slice of the stack are those at the first and the last of ``heights`` (mm, ascending).
    """
    even = np.linspace(heights[0], heights[-1], len(heights))
    return float(np.abs(heights - even).max() / (even[1] - even[0]))


def _is_even(heights: np.ndarray, name: str, resample: bool) -> bool:
    gaps = np.diff(heights)
    typical = float(np.median(gaps))
    tolerance = max(_UNEVEN_MM, _UNEVEN_SHARE * typical)
    # Small deviations of the gaps add up to a large one of the slices.
    if np.abs(gaps - typical).max() <= tolerance and compute_spacing_deviation(heights) <= MAX_DEVIATION_VOXELS:
        return True
    steps = gaps / typical
    count = int(np.rint(steps - 1).sum())
    if count and np.all(np.abs(gaps - np.rint(steps) * typical) <= tolerance) and steps.min() > 0.5:
        where = f"first gap after slice {int(np.argmax(steps > 1.5)) + 1}"
        raise _make_series_error(name, f"is missing {count} slice{'s' if count > 1 else ''} ({where})", _EXPORT_AGAIN)
    if not resample:
        raise _make_series_error(name, f"has unevenly spaced slices ({gaps.min():g} to {gaps.max():g} mm)", _RESAMPLE)
    return False


def _is_upright(positions: np.ndarray, normal: np.ndarray, pixel_mm: float, name: str, resample: bool) -> bool:
    """Whether the slices are stacked along their normal. A drift within their plane of up to one pixel is rounding."""
    offsets = positions - positions[0]
    offsets -= np.outer(offsets @ normal, normal)
    across = np.linalg.norm(offsets, axis=1)
    if across.max() <= pixel_mm:
        return True
    span = positions[-1] - positions[0]
    along = float(span @ normal)
    # A tilt moves each slice in proportion to its height; with any other shift, the slices do not form a volume.
    heights = (positions - positions[0]) @ normal
    if np.linalg.norm(offsets - np.outer(heights / along, offsets[-1]), axis=1).max() > pixel_mm:
        raise _make_series_error(
            name, "has slices that are shifted against each other", "Choose a folder with a single CT series."
        )
    if not resample:
        tilt = np.degrees(np.arctan2(across[-1], along))
        raise _make_series_error(name, f"was scanned with the gantry tilted by {tilt:.1f} degrees", _RESAMPLE)
    return False


def _make_series_error(name: str, what: str, remedy: str) -> ImageError:
    return ImageError(f"The DICOM series in {name} {what}.", remedy)
