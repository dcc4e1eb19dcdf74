"""Registers pairs of anatomies, from which new anatomies are blended.

The other label map is aligned by the centroids of its organs, then matched with diffeomorphic demons on images in which
each structure has its own value. The result is a displacement field on the anatomy. It maps a point of a body with the
other's shape to a point of the anatomy. Bowel and colon, whose course differs between people, follow their
surroundings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ...errors import DAMAGED_NPZ, UserError, get_reason
from ...imaging.writers import write_file
from ...organs import AMOS
from .anatomy import Anatomy
from .geometry import Warp
from .tissues import STRETCHES, TISSUES
from .volumes import smooth_gaussian

# Largest total weight with which a body is blended toward others.
MAX_WEIGHT = 1.2
_GRID_MM = 6.0
_LATTICE_MM = 10.0
_ITERATIONS = (60, 40)
# With the largest weight, no point may shrink below this fraction of its volume.
_MIN_JACOBIAN = 0.25
# Neighboring structures have very different values. Structures that are not listed look like the fat around them.
_VALUES = {
    "lung": -5.0, "airway": -5.0, "back_muscle": 4.5, "psoas": 4.5, "gluteal_muscle": 4.5, "wall_muscle": 4.0,
    "pelvic_muscle": 4.0, "cortical_bone": 9.0, "cancellous_bone": 9.0, "disc": 8.0, "spinal_canal": 8.0, "heart": 6.5,
    "liver": 7.5, "hepatic_vein": 7.5, "spleen": 12.0, "right_kidney": 14.0, "left_kidney": 14.0, "stomach": 5.5,
    "gallbladder": 13.0, "pancreas": 10.5, "duodenum": 8.0, "aorta": 15.0, "inferior_vena_cava": 13.0,
    "right_adrenal_gland": 15.0, "left_adrenal_gland": 15.0, "bladder": 12.0, "prostate_uterus": 9.0,
    "esophagus": 9.0,
}  # fmt: skip
_INTERIOR = 2.0
# Organs whose centroids do not depend on the extent of the label map.
_LANDMARKS = (
    "liver", "spleen", "right_kidney", "left_kidney", "pancreas", "gallbladder", "bladder", "right_adrenal_gland",
    "left_adrenal_gland", "duodenum",
)  # fmt: skip


@dataclass(frozen=True)
class Registration:
    """The ``warp`` from an anatomy toward another, and their overlap (mean Dice over common organs).

    ``before`` is the overlap after the alignment only, ``after`` that with the warp.
    """

    warp: Warp
    before: float
    after: float


def register(anatomy: Anatomy, other: Anatomy) -> Registration:
    """Register ``anatomy`` to ``other``, which takes about 10 s.

    Raises UserError if they have fewer than four organs in common for the alignment.
    """
    groups = _find_groups(anatomy) & _find_groups(other)
    scale, offset = _fit_alignment(anatomy, other)
    moving = _create_image(anatomy, groups)
    grid = _create_reference_image(anatomy)
    to_other = sitk.AffineTransform(3)
    to_other.SetMatrix(np.diag(scale).ravel().tolist())
    to_other.SetTranslation(offset.tolist())
    fixed_image = _create_image(other, groups)
    fixed = sitk.Resample(fixed_image, grid, to_other, sitk.sitkLinear, 0.0)
    start = sitk.Resample(moving, grid, sitk.Transform(), sitk.sitkLinear, 0.0)
    # Outside the other map the target is unknown, so it is set to the anatomy itself.
    known = sitk.GetArrayFromImage(sitk.Resample(fixed_image * 0 + 1, grid, to_other, sitk.sitkLinear, 0.0)) > 0.99
    target = np.where(known, sitk.GetArrayFromImage(fixed), sitk.GetArrayFromImage(start)).astype(np.float32)
    fixed = sitk.GetImageFromArray(target)
    fixed.CopyInformation(start)
    field: sitk.Image | None = None
    for factor, iterations in zip((2, 1), _ITERATIONS, strict=True):
        field = _run_demons(fixed, start, field, factor, iterations)
    assert field is not None
    vectors = _remove_folding(sitk.GetArrayFromImage(field).astype(np.float32))
    before, after = (
        _compute_mean_dice(anatomy, other, scale, offset, moved) for moved in (np.zeros_like(vectors), vectors)
    )
    return Registration(_create_warp(vectors), before, after)


def write_warp(warp: Warp, path: Path) -> None:
    """Write a warp as NPZ, completely or not at all. Raises OutputError."""
    arrays = {"field": warp.field, "step": np.array(warp.step), "start": np.array(warp.start)}
    write_file(path, lambda temporary: np.savez_compressed(temporary, **arrays))  # type: ignore[arg-type]


def format_warp_name(anatomy: str, other: str) -> str:
    """The file name of the warp from ``anatomy`` toward ``other`` (names)."""
    return f"{anatomy}--{other}.npz"


def read_warps(folder: Path) -> dict[str, dict[str, Warp]]:
    """Read all warps in a folder, by the names of the anatomy and of the other.

    Raises UserError if there are none or one is damaged.
    """
    found: dict[str, dict[str, Warp]] = {}
    for path in sorted(Path(folder).glob("*--*.npz")):
        anatomy, other = path.stem.split("--", 1)
        try:
            with np.load(path, allow_pickle=False) as arrays:
                x, y, z = (float(value) for value in arrays["start"])
                warp = Warp(arrays["field"], float(arrays["step"]), (x, y, z))
        except DAMAGED_NPZ as error:
            raise UserError(f"{path} cannot be read ({get_reason(error)}).", "Register the label maps again.") from None
        if warp.field.ndim != 4 or len(warp.field) != 3:
            raise UserError(f"{path} is not a displacement field.", "Register the label maps again.")
        found.setdefault(anatomy, {})[other] = warp
    if not found:
        raise UserError(f"{folder} contains no registrations.", "Create them with dca register-label-maps.")
    return found


def _get_group(tissue: str) -> str:
    """The structure of ``_VALUES`` that a tissue belongs to, or ""."""
    if tissue in _VALUES:
        return tissue
    organ = next((each.organ for each in TISSUES if each.name == tissue), "")
    if organ in _VALUES:
        return organ
    return "heart" if tissue.startswith("heart") else ""


def _get_code_groups(anatomy: Anatomy) -> dict[int, str]:
    """The group of each code in the tissue map of ``anatomy``, without codes that have no group."""
    codes = {index: _get_group(tissue.name) for index, tissue in enumerate(TISSUES)}
    codes |= {stretch.code: _get_group(stretch.lumen) for stretch in anatomy.stretches}
    return {code: group for code, group in codes.items() if group}


def _find_groups(anatomy: Anatomy) -> set[str]:
    present = set(np.unique(anatomy.tissues[::2, ::2, ::2]).tolist())
    return {group for code, group in _get_code_groups(anatomy).items() if code in present}


def _fit_alignment(anatomy: Anatomy, other: Anatomy) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and offset (x, y, z) from ``anatomy`` to ``other`` (mm), fitted to the centroids of their organs."""
    labels = [AMOS.by_key[key].label for key in _LANDMARKS]
    both = [label for label in labels if label in anatomy.positions and label in other.positions]
    if len(both) < 4:
        raise UserError(
            f"{anatomy.name} and {other.name} have too few organs in common to align them: {len(both)}.",
            "Register label maps of whole abdomens.",
        )
    mine, theirs = (np.array([each.positions[label].mean(axis=0) for label in both]) for each in (anatomy, other))
    scale = np.ones(3)
    for axis in (0, 2):
        scale[axis] = np.clip(np.polyfit(mine[:, axis], theirs[:, axis], 1)[0], 0.7, 1.4)
    # From back to front, organs are too close together to estimate the scale.
    scale[1] = scale[0]
    return scale, (theirs - scale * mine).mean(axis=0)


def _create_image(anatomy: Anatomy, groups: set[str]) -> sitk.Image:
    values = np.zeros(256, np.float32)
    values[1:100] = _INTERIOR
    values[STRETCHES:] = _INTERIOR
    for code, group in _get_code_groups(anatomy).items():
        if group in groups:
            values[code] = _VALUES[group]
    image = sitk.GetImageFromArray(values[anatomy.tissues[::2, ::2, ::2]])
    image.SetSpacing([2 * step for step in anatomy.spacing])
    return sitk.SmoothingRecursiveGaussian(image, 0.5 * _GRID_MM)


def _create_reference_image(anatomy: Anatomy) -> sitk.Image:
    depth, height, width = anatomy.tissues.shape
    size = [int(np.ceil(n * s / _GRID_MM)) + 1 for n, s in zip((width, height, depth), anatomy.spacing, strict=True)]
    image = sitk.Image(*size, sitk.sitkUInt8)
    image.SetSpacing((_GRID_MM,) * 3)
    return image


def _run_demons(
    fixed: sitk.Image, moving: sitk.Image, initial: sitk.Image | None, factor: int, iterations: int
) -> sitk.Image:
    if factor > 1:
        shrink = [factor] * 3
        fixed, moving = (sitk.Shrink(sitk.SmoothingRecursiveGaussian(i, _GRID_MM), shrink) for i in (fixed, moving))
    demons = sitk.DiffeomorphicDemonsRegistrationFilter()
    demons.SetNumberOfIterations(iterations)
    demons.SetStandardDeviations(1.3)
    demons.SetSmoothDisplacementField(True)
    demons.SetNumberOfThreads(1)
    if initial is None:
        return demons.Execute(fixed, moving)
    return demons.Execute(fixed, moving, sitk.Resample(initial, fixed, sitk.Transform(), sitk.sitkLinear, 0.0))


def _remove_folding(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Smooth and shrink displacements (z, y, x, 3; x, y, z in mm) until nothing folds with the largest weight."""
    for _ in range(12):
        parts = [smooth_gaussian(vectors[..., i], (_GRID_MM,) * 3, (0.5 * _GRID_MM,) * 3) for i in range(3)]
        vectors = np.stack(parts, axis=-1)
        if float(compute_jacobian_determinant(MAX_WEIGHT * vectors, _GRID_MM).min()) > _MIN_JACOBIAN:
            break
        vectors = vectors * np.float32(0.96)
    return vectors


def compute_jacobian_determinant(vectors: NDArray[np.float32], step: float) -> NDArray[np.float32]:
    """Determinant of the Jacobian (z, y, x) of a displacement: the relative volume of each voxel, negative if it folds.

    ``vectors`` is (z, y, x, 3) with x, y, z in mm, on a grid with ``step`` mm spacing.
    """
    rows = [np.stack([np.gradient(vectors[..., i], step, axis=axis) for axis in (2, 1, 0)], axis=-1) for i in range(3)]
    return np.linalg.det(np.stack(rows, axis=-2) + np.eye(3, dtype=np.float32))


def _create_warp(vectors: NDArray[np.float32]) -> Warp:
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing((_GRID_MM,) * 3)
    size = [int(np.ceil((n - 1) * _GRID_MM / _LATTICE_MM)) + 1 for n in vectors.shape[2::-1]]
    lattice = sitk.Image(*size, sitk.sitkUInt8)
    lattice.SetSpacing((_LATTICE_MM,) * 3)
    sampled = sitk.GetArrayFromImage(sitk.Resample(image, lattice, sitk.Transform(), sitk.sitkLinear, 0.0))
    return Warp(np.ascontiguousarray(np.moveaxis(sampled, -1, 0)).astype(np.float16), _LATTICE_MM, (0.0, 0.0, 0.0))


def _compute_mean_dice(
    anatomy: Anatomy,
    other: Anatomy,
    scale: NDArray[np.float64],
    offset: NDArray[np.float64],
    vectors: NDArray[np.float32],
) -> float:
    """Mean Dice over common organs of ``anatomy``, displaced by ``vectors``, and the aligned ``other``."""
    z, y, x = np.meshgrid(*(np.arange(n) * _GRID_MM for n in vectors.shape[:3]), indexing="ij")
    points = np.stack([x, y, z], axis=-1)
    mine, theirs = _sample_labels(anatomy, points + vectors), _sample_labels(other, points * scale + offset)
    both = sorted(set(anatomy.volumes_ml) & set(other.volumes_ml))
    dice = []
    for label in both:
        a, b = mine == label, theirs == label
        if a.any() and b.any():
            dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
    return float(np.mean(dice)) if dice else 0.0


def _sample_labels(anatomy: Anatomy, points: NDArray[np.float64]) -> NDArray[np.uint8]:
    labels = np.zeros(256, np.uint8)
    labels[: len(TISSUES)] = [tissue.label for tissue in TISSUES]
    of_lumen = {tissue.name: tissue.label for tissue in TISSUES}
    for stretch in anatomy.stretches:
        labels[stretch.code] = of_lumen[stretch.lumen]
    index = np.rint(points / np.array(anatomy.spacing)).astype(np.int64)
    size = np.array(anatomy.tissues.shape[::-1])
    inside = ((index >= 0) & (index < size)).all(axis=-1)
    index = np.clip(index, 0, size - 1)
    found = labels[anatomy.tissues[index[..., 2], index[..., 1], index[..., 0]]]
    return np.where(inside, found, 0).astype(np.uint8)
