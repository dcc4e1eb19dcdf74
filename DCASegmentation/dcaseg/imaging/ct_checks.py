"""Is this a CT in Hounsfield units, large enough to hold abdominal organs, and does the body lie as the header says?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import SimpleITK as sitk

from ..errors import ImageError
from .grid import Grid, canonical_view, nearest_world_axes
from .intensity import has_only_integers, value_range

_FEWEST_VOXELS = 8
_SHORTEST_MM = 30.0
_SMALLEST_SPAN_HU = 50.0
_BELOW_WATER_HU = -30.0
_FEWEST_BELOW_WATER = 0.001
_SOFT_TISSUE_HU = (-150.0, 250.0)
_FEWEST_SOFT_TISSUE = 0.03
_SAMPLES = 1_000_000

_GIVE_HU = "Give the CT in Hounsfield units as the scanner exported it."

# Tissue that every abdominal CT shows, between these HU whatever the contrast agent does.
_FAT_HU = (-130.0, -70.0)
_MUSCLE_AND_ORGANS_HU = (10.0, 100.0)
_AIR_HU = (-1100.0, -800.0)
_LESS_THAN_AIR_HU = -1150.0


@dataclass(frozen=True)
class _Scale:
    """Values that are ``factor`` * (HU + ``offset``)."""

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
    *(_Scale(by, 0, f"HU x {by}", f"Divide every voxel by {by}, {_EXPORT_AGAIN}") for by in (2, 4, 10, 16)),
    *(_Scale(1 / by, 0, f"HU / {by}", f"Multiply every voxel by {by}, {_EXPORT_AGAIN}") for by in (2, 4, 10)),
    *(_Scale(by, 1024, f"(HU + 1024) x {by:g}", f"Undo that, {_EXPORT_AGAIN}") for by in (0.5, 2, 4, 10)),
)
_HU = _Scale(1, 0, "HU", "")


def check_ct(image: sitk.Image, strict: bool = True) -> tuple[str, ...]:
    """Raises ImageError where ``image`` (3D, scalar, finite) cannot be a CT of abdominal organs in HU. Returns notes on
    what can be, but is unlikely: a body that is too large, too small, or lies otherwise than the header says.

    Size, always: at least 8 voxels and 30 mm along every axis. A volume smaller than the model's patch is no error.

    Intensities, unless ``strict`` is False, of all voxels but padding outside the field of view (one value, well below
    all others); the first that holds is reported:

    1. All voxels alike, or a span below 50 HU (normalized images, 0..1 or z-scores): organs, fat and noise span more.
    2. No fat and no air (less than 0.1 % of voxels below -30 HU). Every abdominal CT shows fat at about -100 HU, even
       cut tight around the organs. What it is instead is told by its values, for the remedy: a label map (few whole
       numbers, most neighbors equal), a gray picture (0 to 255), HU + 1024 (few values from 200 to 800, between
       lung and fat, and many from 900 to 1250, fat to enhanced organs), else an MR or another modality.
    3. Fat, muscle and air lie where they would in HU times 2, 4, 10 or 16, or divided, or HU plus or minus 1000 or
       1024, and not where they do in HU.
    4. Less than 3 % of voxels from -150 to 250 HU, where fat, muscle and organs lie.

    Accepted on purpose: padding (any amount up to rule 4), no air at all, metal, and CTs clipped to a window that keeps
    fat, such as -200 to 300 HU.
    """
    _require_size(image)
    if not strict:
        return ()
    low, high = value_range(image)
    if high == low:
        raise ImageError(f"All voxels of the image have the same value ({low:g}).", "Give a CT volume.")
    sample = _without_padding(_sample(image).ravel())
    low = max(low, float(sample.min()))
    if high - low < _SMALLEST_SPAN_HU:
        raise ImageError(
            f"The values of the image run from {low:g} to {high:g} only: it looks normalized, not a CT in HU.", _GIVE_HU
        )
    if _share(sample < _BELOW_WATER_HU) < _FEWEST_BELOW_WATER:
        _name_the_impostor(image, sample, low, high)
    _require_hu(sample)
    soft = _share((sample >= _SOFT_TISSUE_HU[0]) & (sample <= _SOFT_TISSUE_HU[1]))
    if soft < _FEWEST_SOFT_TISSUE:
        raise ImageError(
            f"Only {100 * soft:.1f} % of the voxels have values of fat or soft tissue (-150 to 250 HU): no CT in HU.",
            f"{_GIVE_HU} Check that the rescale intercept was applied exactly once.",
        )
    return _notes_on_the_body(image)


def _require_size(image: sitk.Image) -> None:
    size, spacing = image.GetSize(), image.GetSpacing()
    extent = [count * step for count, step in zip(size, spacing, strict=True)]
    if min(size) < _FEWEST_VOXELS or min(extent) < _SHORTEST_MM:
        voxels = " x ".join(str(count) for count in size)
        shown = " x ".join(f"{length:.0f}" for length in extent)
        raise ImageError(
            f"The volume is too small to hold organs: {voxels} voxels, {shown} mm.",
            f"Give the whole CT: at least {_FEWEST_VOXELS} voxels and {_SHORTEST_MM:.0f} mm along every axis. "
            "If it is whole, its header states a wrong spacing.",
        )


def _without_padding(sample: np.ndarray) -> np.ndarray:
    """The values (1D) without those that stand for nothing, as outside the round field of view: one value that is far
    below all others. Resampling leaves a few values between them."""
    for _ in range(2):
        low = float(sample.min())
        padding = sample == low
        rest = sample[~padding]
        share = _share(padding)
        if share < 0.002 or rest.size < 0.05 * sample.size:
            return sample
        gap = max(20.0, 0.02 * float(np.percentile(rest, 99.5) - low))
        if np.count_nonzero(rest < low + gap) > 0.02 * share * sample.size:
            return sample
        sample = rest[rest >= low + gap]
    return sample


def _require_hu(sample: np.ndarray) -> None:
    """Rule 3 of ``check_ct``."""
    tissue, air, less = _evidence(sample, _HU)
    impossible = less >= 0.03
    best: tuple[float, _Scale] | None = None
    for scale in _SCALES:
        its_tissue, its_air, its_less = _evidence(sample, scale)
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
        raise ImageError(f"The image is no CT in HU: its values look like {scale.name}.", scale.remedy)
    if impossible:
        raise ImageError(
            f"The image is no CT in HU: {100 * less:.0f} % of its voxels are below {_LESS_THAN_AIR_HU:.0f} HU, "
            "less than air.",
            _GIVE_HU,
        )


def _evidence(sample: np.ndarray, scale: _Scale) -> tuple[float, float, float]:
    """How much looks like tissue if the values are of this scale (geometric mean of the shares of fat and of muscle and
    organs), and the shares of air and of what is less than air."""

    def bound(hu: float) -> float:
        return scale.factor * (hu + scale.offset)

    def between(hu: tuple[float, float]) -> float:
        return _share((sample >= bound(hu[0])) & (sample <= bound(hu[1])))

    tissue = float(np.sqrt(between(_FAT_HU) * between(_MUSCLE_AND_ORGANS_HU)))
    return tissue, between(_AIR_HU), _share(sample < bound(_LESS_THAN_AIR_HU))


# What a trunk measures, from infants to the very large, and how its bones lie.
_WIDTH_MM = (100.0, 750.0)
_DEPTH_MM = (60.0, 550.0)
_NARROWEST = 0.85
_BODY_HU, _BONE_HU = -300.0, 200.0
_COARSE_MM = 5.0
_LEAST_BONE_MM3 = 50_000.0
_COLUMN_MM = 20.0
_FURTHEST_IN_FRONT_MM, _FURTHEST_ASIDE_MM = 10.0, 80.0


def _notes_on_the_body(image: sitk.Image) -> tuple[str, ...]:
    """What does not look like a trunk that lies as the header says; nothing where the field of view is too small to
    judge."""
    grid = Grid.of(image)
    notes = []
    if grid.spacing == (1.0, 1.0, 1.0) and grid.origin == (0.0, 0.0, 0.0) and _is_plain(grid):
        notes.append(
            "The header states a spacing of exactly 1 x 1 x 1 mm at origin 0, as files do that lost their geometry: "
            "check that it is true, or all volumes are wrong."
        )
    hu = canonical_view(sitk.GetArrayViewFromImage(image), grid, "RAS")
    # Array axes are (S, A, R).
    spacing = _canonical_spacing(grid)
    steps = [max(1, round(_COARSE_MM / step)) for step in spacing]
    # At a wrong scale a step may be nearly the whole volume.
    steps = [min(step, max(1, length // 24)) for step, length in zip(steps, hu.shape, strict=True)]
    hu = hu[tuple(slice(None, None, step) for step in steps)]
    spacing = [step * each for step, each in zip(steps, spacing, strict=True)]
    body = hu > _BODY_HU
    if _share(body) < 0.02:
        return tuple(notes)
    depth, width = (_extent(body, axis, spacing[axis]) for axis in (1, 2))
    wrong = _wrong_size(width, depth)
    if wrong:
        notes.append(f"{wrong} Check spacing and orientation in the header of the CT.")
    bones = _wrong_bones(hu > _BONE_HU, body, spacing)
    if bones:
        notes.append(f"{bones} Check the orientation in the header of the CT.")
    return tuple(notes)


def _wrong_size(width: float | None, depth: float | None) -> str:
    """``width`` and ``depth`` (mm) are None where the body reaches the border of the image on both sides."""
    for name, value, (low, high) in (("wide", width, _WIDTH_MM), ("deep", depth, _DEPTH_MM)):
        if value is not None and not low <= value <= high:
            return f"By its header the trunk is {value:.0f} mm {name}, which no trunk is."
    if width is not None and depth is not None and width < _NARROWEST * depth:
        return f"By its header the trunk is deeper ({depth:.0f} mm) than wide ({width:.0f} mm)."
    return ""


def _wrong_bones(bone: np.ndarray, body: np.ndarray, spacing: list[float]) -> str:
    """A spine that does not run from feet to head, or lies in front of the body's middle. Array axes are (S, A, R)."""
    if np.count_nonzero(bone) * float(np.prod(spacing)) < _LEAST_BONE_MM3:
        return ""
    # How much of a column some 2 cm across is bone, along each axis: most of the spine's.
    columns = [
        _smooth(bone.mean(axis=axis), [step for other, step in enumerate(spacing) if other != axis])
        for axis in range(3)
    ]
    shares = [float(each.max()) for each in columns]
    along = int(np.argmax(shares))
    # A pelvis is nearly as much bone from side to side.
    if shares[along] > 2 * shares[0]:
        direction = ("from feet to head", "from back to front", "from left to right")[along]
        return f"By its header the spine of this CT runs {direction}."
    rows = np.arange(body.shape[1])
    share = np.cumsum(body.sum(axis=(0, 2)) / body.sum())
    middle = 0.5 * float(np.interp(0.02, share, rows) + np.interp(0.98, share, rows))
    row, column = np.unravel_index(int(columns[0].argmax()), columns[0].shape)
    in_front = (float(row) - middle) * spacing[1] + 0.5 * _COLUMN_MM
    aside = abs(float(column) - 0.5 * body.shape[2]) * spacing[2]
    if in_front > _FURTHEST_IN_FRONT_MM and aside < _FURTHEST_ASIDE_MM:
        return "By its header the spine of this CT lies in the front of the body, as if back and front were swapped."
    return ""


def _smooth(projection: np.ndarray, spacing: list[float]) -> np.ndarray:
    """A projection averaged over squares of ``_COLUMN_MM``."""
    for axis, step in enumerate(spacing):
        width = max(1, min(projection.shape[axis], round(_COLUMN_MM / step)))
        sums = np.cumsum(np.insert(projection, 0, 0.0, axis=axis), axis=axis)
        length = sums.shape[axis]
        upper, lower = np.take(sums, range(width, length), axis), np.take(sums, range(length - width), axis)
        projection = (upper - lower) / width
    return projection


def _extent(body: np.ndarray, axis: int, step: float) -> float | None:
    """Extent in mm where the body has more than a twentieth of its largest cross-section, which no table has; None
    where it reaches both borders."""
    areas = body.sum(axis=tuple(other for other in range(3) if other != axis))
    inside = np.flatnonzero(areas > 0.05 * areas.max())
    if inside[0] == 0 and inside[-1] == len(areas) - 1:
        return None
    return float(inside[-1] - inside[0] + 1) * step


def _canonical_spacing(grid: Grid) -> list[float]:
    """Spacing along S, A and R."""
    steps = np.empty(3)
    for (world, _), step in zip(nearest_world_axes(grid.axes), grid.spacing, strict=True):
        steps[world] = step
    return [float(steps[world]) for world in (2, 1, 0)]


def _is_plain(grid: Grid) -> bool:
    """Whether the axes are those of an image without any orientation, in LPS or in RAS."""
    return any(np.array_equal(grid.axes, np.diag(signs)) for signs in ((1, 1, 1), (-1, -1, 1)))


def _name_the_impostor(image: sitk.Image, sample: np.ndarray, low: float, high: float) -> NoReturn:
    values = f"values from {low:g} to {high:g}"
    if low >= 0 and _looks_like_labels(image, sample):
        raise ImageError(f"The image looks like a label map ({values}), not like a CT.", "Give the CT itself.")
    if low >= 0 and high <= 255:
        raise ImageError(f"The image looks like a gray picture ({values}), not like a CT in HU.", _GIVE_HU)
    between, tissue = _share((sample >= 200) & (sample <= 800)), _share((sample >= 900) & (sample <= 1250))
    if tissue >= 0.1 and between < 0.5 * tissue:
        raise ImageError(
            f"The image looks like HU + 1024 ({values}, soft tissue near 1060).",
            "Subtract 1024 from every voxel, or export it with its rescale intercept applied.",
        )
    raise ImageError(
        f"The image shows neither fat nor air ({values}): it looks like an MR or another modality, not like a CT.",
        _GIVE_HU,
    )


def _looks_like_labels(image: sitk.Image, sample: np.ndarray) -> bool:
    if not has_only_integers(image) or np.unique(sample).size > 256:
        return False
    middle = sitk.GetArrayViewFromImage(image)[image.GetDepth() // 2]
    return _share(middle[:, 1:] == middle[:, :-1]) > 0.8


def _sample(image: sitk.Image) -> np.ndarray:
    """At most about a million voxels, evenly taken: shares need no more, and a large CT no second copy."""
    array = sitk.GetArrayViewFromImage(image)
    step = max(1, round((array.size / _SAMPLES) ** (1 / 3)))
    return np.ascontiguousarray(array[::step, ::step, ::step])


def _share(condition: np.ndarray) -> float:
    return float(np.count_nonzero(condition)) / condition.size
