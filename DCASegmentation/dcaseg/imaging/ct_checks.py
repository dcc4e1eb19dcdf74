"""Checks that a volume is a CT in HU, large enough for abdominal organs, and oriented as its header states."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .grid import Grid, find_nearest_world_axes, get_canonical_view
from .intensity import compute_value_range, has_only_integers
from .slice_checks import check_slices

_log = logging.getLogger(__name__)

_MIN_VOXELS = 8
_MIN_SIDE_MM = 30.0
_MIN_SPAN_HU = 50.0
_BELOW_WATER_HU = -30.0
_MIN_BELOW_WATER = 0.001
_SOFT_TISSUE_HU = (-150.0, 250.0)
_MIN_SOFT_TISSUE = 0.03
_SAMPLES = 1_000_000

_GIVE_HU = "Use the CT in Hounsfield units, as exported from the scanner."

# HU ranges of tissues that every abdominal CT shows, with or without contrast agent.
_FAT_HU = (-130.0, -70.0)
_MUSCLE_AND_ORGANS_HU = (10.0, 100.0)
_AIR_HU = (-1100.0, -800.0)
_LESS_THAN_AIR_HU = -1150.0
_MIN_INVERTED_AIR = 0.03
_MIN_EQUAL_NEIGHBORS = 0.5
# No picture of tissue has as few gray values.
_FEW_VALUES = 24
# The largest value of metal on an extended scale is 31 743 HU; signed 16-bit values read as unsigned ones are higher.
_MAX_HU = 40_000.0
_MIN_TOO_HIGH = 1e-4
# No unsigned 16-bit value, of any conversion to HU, is higher.
_IMPOSSIBLE_HU = 65_535.0


@dataclass(frozen=True)
class _Scale:
    """A scale on which values are ``factor`` * (HU + ``offset``); ``remedy`` says how to get back to HU.

    ``factor`` is negative for inverted values.
    """

    factor: float
    offset: float
    name: str
    remedy: str


_ONCE = "Apply the rescale intercept exactly once: export the CT again, or add {} to every voxel."
_EXPORT_AGAIN = "or export the CT again with its rescale slope and intercept."
_SCALES = (
    *(_Scale(1, by, f"HU + {by}", f"Subtract {by} from every voxel, {_EXPORT_AGAIN}") for by in (1024, 1000)),
    *(
        _Scale(1, -by, f"HU - {by}, as if the rescale intercept had been applied twice", _ONCE.format(by))
        for by in (1024, 1000)
    ),
    *(_Scale(by, 0, f"HU x {by}", f"Divide every voxel by {by}, {_EXPORT_AGAIN}") for by in (2, 4, 8, 10, 16)),
    *(_Scale(1 / by, 0, f"HU / {by}", f"Multiply every voxel by {by}, {_EXPORT_AGAIN}") for by in (2, 4, 8, 10, 16)),
    *(_Scale(by, 1024, f"(HU + 1024) x {by:g}", f"Undo that, {_EXPORT_AGAIN}") for by in (0.5, 2, 4, 10)),
    _Scale(-1, 0, "inverted HU", f"Multiply every voxel by -1, {_EXPORT_AGAIN}"),
)
_HU = _Scale(1, 0, "HU", "")


def check_ct(image: sitk.Image, strict: bool = True) -> tuple[str, ...]:
    """Check that ``image`` (3D, scalar, finite) can be a CT of abdominal organs in HU.

    Returns notes on what is possible but unlikely: a body that is too large or too small, or that does not lie as the
    header states; slices that are blank, copies of others, missing or out of order (see ``slice_checks``); air that is
    not at -1000 HU, and values with 8 bits.
    Raises ImageError if the image cannot be such a CT:

    Size, always checked: at least 8 voxels and 30 mm along every axis. A volume may be smaller than the model's patch.

    Intensities, unless ``strict`` is False. All voxels count except padding outside the field of view (one value, well
    below all others). The first rule that applies is reported:

    1. All voxels are alike, or span less than 50 HU (normalized images, 0 to 1 or z-scores): organs, fat and noise span
       more.
    2. There is no fat and no air (less than 0.1 % of the voxels are below -30 HU). Every abdominal CT shows fat at
       about -100 HU, even if it is cropped tightly around the organs. For the remedy, the values suggest what the image
       is: a label map (few whole numbers, most neighbors equal), a grayscale picture (0 to 255), HU + 1024 or + 1000
       (few values from 200 to 800, between lung and fat, and many from 900 to 1250, fat to enhanced organs), else an MR
       or another modality.
    3. Fat, muscle and air lie where HU multiplied or divided by 2, 4, 8, 10 or 16, HU plus or minus 1000 or 1024, or
       inverted HU would put them, and not where they lie in HU.
    4. Voxels lie above 40 000 HU, which signed values become if they are read as unsigned ones, or one above 65 535.
    5. Less than 3 % of the voxels are from -150 to 250 HU, where fat, muscle and organs lie.

    Accepted on purpose: padding (any amount up to rule 5), no air at all, metal, and CTs clipped to a window that keeps
    fat, such as -200 to 300 HU.
    """
    _require_size(image)
    if not strict:
        return ()
    low, high = stored = compute_value_range(image)
    if high == low:
        raise ImageError(f"All voxels of the image have the same value ({low:g}).", "Choose a CT volume.")
    if high > _IMPOSSIBLE_HU:
        raise ImageError(
            f"The image is not a CT in HU: it has values up to {high:.3g}, which no tissue, metal or filling has.",
            "Export it again, or replace these values with -1024 HU.",
        )
    sample = _remove_padding(_sample(image).ravel())
    low = max(low, float(sample.min()))
    if high - low < _MIN_SPAN_HU:
        raise ImageError(
            f"The values of the image range only from {low:g} to {high:g}: it looks normalized, not like a CT in HU.",
            _GIVE_HU,
        )
    if _share(sample < _BELOW_WATER_HU) < _MIN_BELOW_WATER:
        _raise_for_non_ct(image, sample, low, high)
    _require_hu(sample)
    too_high = _share(sample > _MAX_HU)
    if too_high >= _MIN_TOO_HIGH:
        raise ImageError(
            f"The image is not a CT in HU: {100 * too_high:.2g} % of its voxels are above {_MAX_HU:.0f} HU, as if "
            "signed values had been read as unsigned.",
            _GIVE_HU,
        )
    soft = _share((sample >= _SOFT_TISSUE_HU[0]) & (sample <= _SOFT_TISSUE_HU[1]))
    if soft < _MIN_SOFT_TISSUE:
        raise ImageError(
            f"Only {100 * soft:.1f} % of the voxels have values of fat or soft tissue (-150 to 250 HU), "
            "so the image is not a CT in HU.",
            f"{_GIVE_HU} Check that the rescale intercept was applied exactly once.",
        )
    return (*check_slices(image), *_check_calibration(image, stored), *_check_body(image))


def require_ct(image: sitk.Image, name: str) -> None:
    """Check ``image`` as ``check_ct`` does, and log its notes as warnings about ``name``. Raises ImageError."""
    for note in check_ct(image):
        _log.warning("%s: %s", name, note)


def _require_size(image: sitk.Image) -> None:
    size, spacing = image.GetSize(), image.GetSpacing()
    extent = [count * step for count, step in zip(size, spacing, strict=True)]
    if min(size) < _MIN_VOXELS or min(extent) < _MIN_SIDE_MM:
        voxels = " x ".join(str(count) for count in size)
        shown = " x ".join(f"{length:.0f}" for length in extent)
        raise ImageError(
            f"The volume is too small to hold organs: {voxels} voxels, {shown} mm.",
            f"Choose the whole CT: at least {_MIN_VOXELS} voxels and {_MIN_SIDE_MM:.0f} mm along every axis. "
            "If the CT is complete, the spacing in its header is wrong.",
        )


def _remove_padding(sample: np.ndarray) -> np.ndarray:
    """The values (1D) without padding, such as that outside the round field of view: one value far below all others.

    Resampling leaves a few values between the padding and the rest.
    """
    for _ in range(2):
        low = float(sample.min())
        padding = sample == low
        remaining = sample[~padding]
        share = _share(padding)
        if share < 0.002 or remaining.size < 0.05 * sample.size:
            return sample
        gap = max(20.0, 0.02 * float(np.percentile(remaining, 99.5) - low))
        if np.count_nonzero(remaining < low + gap) > 0.02 * share * sample.size:
            return sample
        sample = remaining[remaining >= low + gap]
    return sample


def _require_hu(sample: np.ndarray) -> None:
    """Rule 3 of ``check_ct``."""
    tissue, air, less = _score_scale(sample, _HU)
    impossible = less >= 0.03
    best: tuple[float, _Scale] | None = None
    for scale in _SCALES:
        its_tissue, its_air, its_less = _score_scale(sample, scale)
        # Enhanced organs are easily taken for the fat of inverted HU, but nothing else for their air.
        if scale.factor < 0 and its_air < _MIN_INVERTED_AIR:
            continue
        # Some air must be there if there is something that would be air in HU.
        if its_less >= 0.002 or (its_air < 0.0005 and air >= 0.0005) or its_tissue < 0.03:
            continue
        fits = (
            (impossible and its_tissue >= tissue)
            or its_tissue >= max(3 * tissue, 0.05)
            or (its_air >= 0.03 and air < 0.001 and its_tissue >= 0.4 * tissue)
        )
        # Air taken for the fat of another scale must not win over the scale in which it is air.
        if fits and (best is None or its_tissue + its_air > best[0]):
            best = its_tissue + its_air, scale
    if best is not None:
        _, scale = best
        raise ImageError(f"The image is not a CT in HU: its values look like {scale.name}.", scale.remedy)
    if impossible:
        raise ImageError(
            f"The image is not a CT in HU: {100 * less:.0f} % of its voxels are below {_LESS_THAN_AIR_HU:.0f} HU, "
            "less than air.",
            _GIVE_HU,
        )


def _score_scale(sample: np.ndarray, scale: _Scale) -> tuple[float, float, float]:
    """How well values on this scale match tissue, and the shares of air and of values below air.

    The first is the geometric mean of the share of fat and the share of muscle and organs.
    """

    def bound(hu: float) -> float:
        return scale.factor * (hu + scale.offset)

    def between(hu: tuple[float, float]) -> float:
        low, high = sorted(map(bound, hu))
        return _share((sample >= low) & (sample <= high))

    tissue = float(np.sqrt(between(_FAT_HU) * between(_MUSCLE_AND_ORGANS_HU)))
    limit = bound(_LESS_THAN_AIR_HU)
    return tissue, between(_AIR_HU), _share(sample < limit if scale.factor > 0 else sample > limit)


# Air in calibrated HU, and the share of the border of the image, at the patient's sides, that shows air outside.
_CALIBRATED_AIR_HU = (-1060.0, -930.0)
_GAS_HU = -500.0
_MIN_OUTSIDE = 0.05
# The range from the lower to the upper quartile. That of lung, which a tight crop can cut, is wider.
_MAX_AIR_RANGE_HU = 80.0


def _check_calibration(image: sitk.Image, stored: tuple[float, float]) -> tuple[str, ...]:
    """Notes on values that are probably not calibrated HU. ``stored`` are the lowest and the highest value."""
    notes = []
    if stored == (-128.0, 127.0) and has_only_integers(image):
        notes.append(
            "The values are whole numbers from -128 to 127, as after an export with 8 bits, and are probably not HU. "
            "Export the CT again with its full range of values."
        )
    hu, _ = _downsample(image)
    border = _remove_padding(np.concatenate([side.ravel() for side in (hu[:, 0], hu[:, -1], hu[..., 0], hu[..., -1])]))
    air = border[border < _GAS_HU]
    if air.size >= _MIN_OUTSIDE * border.size:
        lower, middle, upper = (float(each) for each in np.percentile(air, (25, 50, 75)))
        is_calibrated = _CALIBRATED_AIR_HU[0] <= middle <= _CALIBRATED_AIR_HU[1]
        if not is_calibrated and upper - lower <= _MAX_AIR_RANGE_HU:
            notes.append(
                f"The air around the patient is at {middle:.0f} HU instead of about -1000: the values may not be "
                "calibrated HU. Export the CT again with its rescale slope and intercept."
            )
    return tuple(notes)


# The size of human trunks, from infants to the largest adults, and the position of their bones.
_WIDTH_MM = (100.0, 750.0)
_DEPTH_MM = (60.0, 550.0)
_MIN_WIDTH_TO_DEPTH = 0.85
_CUT_SHARE = 0.3
_BODY_HU, _BONE_HU = -300.0, 200.0
_COARSE_MM = 5.0
_MIN_BONE_MM3 = 50_000.0
_COLUMN_MM = 20.0
_MAX_IN_FRONT_MM, _MAX_ASIDE_MM = 10.0, 80.0


def _check_body(image: sitk.Image) -> tuple[str, ...]:
    """Notes on what does not look like a trunk that lies as the header states.

    There are none about the body if the field of view is too small to judge it.
    """
    grid = Grid.from_image(image)
    notes = []
    if grid.spacing == (1.0, 1.0, 1.0) and grid.origin == (0.0, 0.0, 0.0) and _is_plain(grid):
        notes.append(
            "The header states a spacing of exactly 1 x 1 x 1 mm at origin 0, as in files that lost their geometry. "
            "Check that it is right; otherwise all volumes are wrong."
        )
    hu, spacing = _downsample(image)
    body = hu > _BODY_HU
    if _share(body) < 0.02:
        return tuple(notes)
    depth, width = (_measure_extent(body, axis, spacing[axis]) for axis in (1, 2))
    size_problem = _find_size_problem(width, depth)
    if size_problem:
        notes.append(f"{size_problem} Check spacing and orientation in the header of the CT.")
    spine_problem = _find_spine_problem(hu > _BONE_HU, body, spacing, is_front_to_back=depth.is_whole)
    if spine_problem:
        notes.append(f"{spine_problem} Check the orientation in the header of the CT.")
    return tuple(notes)


def _downsample(image: sitk.Image) -> tuple[np.ndarray, list[float]]:
    """The voxels about every 5 mm, with the axes (S, A, R), and their spacing along them in mm."""
    grid = Grid.from_image(image)
    hu = get_canonical_view(sitk.GetArrayViewFromImage(image), grid, "RAS")
    spacing = _get_canonical_spacing(grid)
    steps = [max(1, round(_COARSE_MM / step)) for step in spacing]
    # If the spacing is wrong, a step may span nearly the whole volume.
    steps = [min(step, max(1, length // 24)) for step, length in zip(steps, hu.shape, strict=True)]
    hu = hu[tuple(slice(None, None, step) for step in steps)]
    return hu, [step * each for step, each in zip(steps, spacing, strict=True)]


@dataclass(frozen=True)
class _Extent:
    """The extent of the body along an axis in mm. If it is not whole, the image ends within the body."""

    mm: float
    is_whole: bool


def _find_size_problem(width: _Extent, depth: _Extent) -> str:
    """A sentence on an impossible size of the trunk, or an empty text."""
    for name, extent, (low, high) in (("wide", width, _WIDTH_MM), ("deep", depth, _DEPTH_MM)):
        if extent.mm > high or (extent.is_whole and extent.mm < low):
            return f"According to the header, the trunk is {extent.mm:.0f} mm {name}, which is impossible."
    if width.is_whole and width.mm < _MIN_WIDTH_TO_DEPTH * depth.mm:
        return f"According to the header, the trunk is deeper ({depth.mm:.0f} mm) than wide ({width.mm:.0f} mm)."
    return ""


def _find_spine_problem(bone: np.ndarray, body: np.ndarray, spacing: list[float], is_front_to_back: bool) -> str:
    """A sentence on a spine that does not run from feet to head or lies in the front of the body, or an empty text.

    The array axes are (S, A, R). ``is_front_to_back`` says that the image shows the body from its front to its back.
    """
    if np.count_nonzero(bone) * float(np.prod(spacing)) < _MIN_BONE_MM3:
        return ""
    # The share of bone in a column about 2 cm wide along each axis; it is highest along the spine.
    columns = [
        _smooth(bone.mean(axis=axis), [step for other, step in enumerate(spacing) if other != axis])
        for axis in range(3)
    ]
    shares = [float(each.max()) for each in columns]
    along = int(np.argmax(shares))
    # Seen from the side, a pelvis has nearly as large a share of bone.
    if shares[along] > 2 * shares[0]:
        direction = ("from feet to head", "from back to front", "from left to right")[along]
        return f"According to the header, the spine of this CT runs {direction}."
    rows = np.arange(body.shape[1])
    share = np.cumsum(body.sum(axis=(0, 2)) / body.sum())
    middle = 0.5 * float(np.interp(0.02, share, rows) + np.interp(0.98, share, rows))
    row, column = np.unravel_index(int(columns[0].argmax()), columns[0].shape)
    in_front = (float(row) - middle) * spacing[1] + 0.5 * _COLUMN_MM
    aside = abs(float(column) - 0.5 * body.shape[2]) * spacing[2]
    if is_front_to_back and in_front > _MAX_IN_FRONT_MM and aside < _MAX_ASIDE_MM:
        return "According to the header, the spine lies in the front of the body, as if back and front were swapped."
    return ""


def _smooth(projection: np.ndarray, spacing: list[float]) -> np.ndarray:
    """``projection`` averaged over squares with sides of ``_COLUMN_MM``."""
    for axis, step in enumerate(spacing):
        width = max(1, min(projection.shape[axis], round(_COLUMN_MM / step)))
        sums = np.cumsum(np.insert(projection, 0, 0.0, axis=axis), axis=axis)
        length = sums.shape[axis]
        upper, lower = np.take(sums, range(width, length), axis), np.take(sums, range(length - width), axis)
        projection = (upper - lower) / width
    return projection


def _measure_extent(body: np.ndarray, axis: int, step: float) -> _Extent:
    """The extent of the body along ``axis``.

    Only cross-sections larger than a twentieth of the largest one count, which excludes the table. A body that touches
    one border of the image with a small cross-section is still whole.
    """
    areas = body.sum(axis=tuple(other for other in range(3) if other != axis))
    inside = np.flatnonzero(areas > 0.05 * areas.max())
    ends_at_both = inside[0] == 0 and inside[-1] == len(areas) - 1
    is_cut = max(areas[0], areas[-1]) > _CUT_SHARE * areas.max()
    return _Extent(float(inside[-1] - inside[0] + 1) * step, not (ends_at_both or is_cut))


def _get_canonical_spacing(grid: Grid) -> list[float]:
    """The spacing along S, A and R in mm."""
    steps = np.empty(3)
    for (world, _), step in zip(find_nearest_world_axes(grid.axes), grid.spacing, strict=True):
        steps[world] = step
    return [float(steps[world]) for world in (2, 1, 0)]


def _is_plain(grid: Grid) -> bool:
    """Whether the axes are those of an image without a stated orientation, in LPS or in RAS."""
    return any(np.array_equal(grid.axes, np.diag(signs)) for signs in ((1, 1, 1), (-1, -1, 1)))


def _raise_for_non_ct(image: sitk.Image, sample: np.ndarray, low: float, high: float) -> NoReturn:
    """Rule 2 of ``check_ct``: say what the image looks like instead."""
    values = f"values from {low:g} to {high:g}"
    if low >= 0 and _looks_like_labels(image, sample):
        raise ImageError(f"The image looks like a label map ({values}), not like a CT.", "Choose the CT itself.")
    if low >= 0 and high <= 255:
        raise ImageError(f"The image looks like a grayscale picture ({values}), not like a CT in HU.", _GIVE_HU)
    between, tissue = _share((sample >= 200) & (sample <= 800)), _share((sample >= 900) & (sample <= 1250))
    if tissue >= 0.1 and between < 0.5 * tissue:
        raise ImageError(
            f"The image looks like HU + 1024 or HU + 1000 ({values}).",
            "Export it with its rescale intercept applied, or add that intercept (-1024 or -1000, as the DICOM files "
            "state) to every voxel.",
        )
    raise ImageError(
        f"The image shows neither fat nor air ({values}): it looks like an MR or another modality, not like a CT.",
        _GIVE_HU,
    )


def _looks_like_labels(image: sitk.Image, sample: np.ndarray) -> bool:
    n_values = np.unique(sample).size
    if not has_only_integers(image) or n_values > 256:
        return False
    if n_values <= _FEW_VALUES:
        return True
    middle = sitk.GetArrayViewFromImage(image)[image.GetDepth() // 2]
    one, other = middle[:, 1:], middle[:, :-1]
    # A CT that was clipped at 0 has large areas of 0, but not of other values.
    is_label = (one > 0) | (other > 0)
    return bool(is_label.any()) and float((one == other)[is_label].mean()) > _MIN_EQUAL_NEIGHBORS


def _sample(image: sitk.Image) -> np.ndarray:
    """At most about a million voxels, evenly taken: shares need no more, and a large CT no second copy."""
    array = sitk.GetArrayViewFromImage(image)
    step = max(1, round((array.size / _SAMPLES) ** (1 / 3)))
    return np.ascontiguousarray(array[::step, ::step, ::step])


def _share(condition: np.ndarray) -> float:
    return float(np.count_nonzero(condition)) / condition.size
