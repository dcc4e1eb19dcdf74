"""A label map made ready to be painted: every voxel a tissue, and what is needed to change and fill its organs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ...errors import UserError
from ...organs import AMOS
from . import body
from .label_map import LabelMap, Sidecar, read_label_map
from .tissues import INDEX, TISSUES, structure_of
from .volumes import Field, Mask, Spacing, box_of, distance_to, smoothed

# Structures with a layer under their surface: what is deeper than so many mm is another tissue.
_LAYERS: dict[str, tuple[str, str, float]] = {
    "right_kidney": ("right_renal_cortex", "right_renal_medulla", 7.0),
    "left_kidney": ("left_renal_cortex", "left_renal_medulla", 7.0),
    "esophagus": ("esophagus_wall", "esophagus_lumen", 4.5),
    "stomach": ("stomach_wall", "stomach_lumen", 3.5),
    "duodenum": ("duodenum_wall", "duodenum_lumen", 3.0),
    "colon": ("colon_wall", "colon_lumen", 2.2),
    "bowel": ("bowel_wall", "bowel_lumen", 2.6),
    "bladder": ("bladder_wall", "bladder_lumen", 2.5),
    "heart": ("heart_muscle", "heart_blood", 6.0),
    "bone": ("cortical_bone", "cancellous_bone", 1.6),
}
# What can be filled, and into how many stretches of one filling.
_LUMENS = {
    "stomach_lumen": 1,
    "duodenum_lumen": 4,
    "colon_lumen": 16,
    "bowel_lumen": 36,
    "esophagus_lumen": 4,
    "bladder_lumen": 1,
}
# What can grow and shrink, the rest of the body making room over so many mm.
CHANGING = {
    "liver": 28.0, "spleen": 22.0, "right_kidney": 18.0, "left_kidney": 18.0, "stomach": 24.0, "gallbladder": 12.0,
    "pancreas": 12.0, "aorta": 12.0, "inferior_vena_cava": 12.0, "bladder": 24.0, "duodenum": 12.0, "colon": 14.0,
    "bowel": 16.0, "heart": 18.0, "psoas": 16.0, "lung": 25.0, "prostate_uterus": 12.0,
}  # fmt: skip
_LARGE = (
    "liver", "spleen", "right_kidney", "left_kidney", "stomach", "colon", "bowel", "bone", "back_muscle", "psoas",
    "gluteal_muscle", "wall_muscle", "heart", "lung", "bladder", "aorta", "inferior_vena_cava",
)  # fmt: skip
_STEPS_MM = 2.0
_MARGIN_MM = 84.0
_COARSE_MM = 3.0


@dataclass(frozen=True)
class Lumen:
    """Voxels (``flat`` indices) of a hollow organ's inside, the ``stretch`` each belongs to, and its ``height`` in it:
    0 at the lowest voxel of a person lying on the back, 1 at the highest."""

    flat: NDArray[np.int64]
    stretch: NDArray[np.uint8]
    height: Field
    n_stretches: int


@dataclass(frozen=True)
class Change:
    """How the body yields to an organ, (4, z, y, x), from ``start`` mm (x, y, z) on: directions outward from it (x, y,
    z), at most 1 long, and how far a point moves along with it (0 to 1); both fade with the distance."""

    field: Field
    start: NDArray[np.float64]


@dataclass(frozen=True)
class Anatomy:
    """``tissues`` uint8 (z, y, x), axes to the right, the front and the head, numbers of ``tissues.TISSUES`` and of
    shells; ``unknown``: the labels of AMOS that the label map does not tell of."""

    name: str
    tissues: NDArray[np.uint8]
    spacing: Spacing
    unknown: tuple[int, ...]
    lumens: dict[str, Lumen]
    changes: dict[str, Change]
    change_step: Spacing
    levels: dict[str, tuple[float, float]]
    trunk: tuple[NDArray[np.float64], NDArray[np.float64]]


def load_anatomy(folder: Path, sidecar: Sidecar | None = None) -> Anatomy:
    """The anatomy in ``folder``. Takes some 20 s. Raises UserError where it cannot be used."""
    return prepare(read_label_map(folder, sidecar))


def prepare(label_map: LabelMap) -> Anatomy:
    """Makes a label map ready to be painted. Raises UserError where it shows too little of a body."""
    names = {n: structure_of(name) for n, name in label_map.names.items()}
    present = set(np.unique(label_map.voxels).tolist()) - {0}
    known = sorted({found for n in present if (found := names.get(n))})
    if not {"liver", "bone"} <= set(known):
        raise UserError(
            f"The label map {label_map.name} shows no liver or no bones by name.",
            "Painting needs the structures of an abdomen, as TotalSegmentator names them.",
        )
    number = {structure: n for n, structure in enumerate(known, start=1)}
    lut = np.zeros(int(label_map.voxels.max()) + 1, np.uint8)
    for n in present:
        found = names.get(n)
        if found:
            lut[n] = number[found]
    spacing = label_map.spacing
    voxels = _without_steps(_padded(lut[label_map.voxels], spacing), number, spacing)
    random = np.random.default_rng(0)
    tissues = _surroundings(voxels, number, spacing, random)
    for structure, n in number.items():
        mask = voxels == n
        _lay(tissues, mask, structure, spacing)
    hollow = {name: _lumen(tissues, name, count, spacing, random) for name, count in _LUMENS.items()}
    lumens = {name: lumen for name, lumen in hollow.items() if lumen is not None}
    changes, step = _changes(voxels, number, spacing)
    labels = {TISSUES[i].label for i in np.unique(tissues) if i < len(TISSUES)}
    inside = (tissues > 0) & (tissues < 100)
    trunk = box_of(inside[:, ::4, ::4], (spacing[0] * 4, spacing[1] * 4, spacing[2]))
    assert trunk is not None
    corner = np.array([s * 4.0 for s in spacing[:2]] + [spacing[2]])
    return Anatomy(
        name=label_map.name,
        tissues=tissues,
        spacing=spacing,
        unknown=tuple(organ.label for organ in AMOS if organ.label not in labels),
        lumens=lumens,
        changes=changes,
        change_step=step,
        levels=_levels(voxels, number, spacing),
        trunk=(np.array([s.start for s in trunk[::-1]]) * corner, np.array([s.stop for s in trunk[::-1]]) * corner),
    )


def _padded(voxels: np.ndarray, spacing: Spacing) -> NDArray[np.uint8]:
    """With room round the structures for the fat of a large person; not above or below, where the body goes on."""
    box = box_of(voxels > 0, spacing)
    assert box is not None
    cut = voxels[box]
    margins = [(int(np.ceil(_MARGIN_MM / step)),) * 2 for step in (spacing[1], spacing[0])]
    return np.pad(cut, [(0, 0), *margins])


def _without_steps(voxels: NDArray[np.uint8], number: dict[str, int], spacing: Spacing) -> NDArray[np.uint8]:
    """Maps drawn slice by slice jump between thick slices; the large structures are smoothed across them."""
    if spacing[2] < _STEPS_MM:
        return voxels
    ours = np.isin(voxels, [0, *(number[name] for name in _LARGE if name in number)])
    best = np.zeros(voxels.shape, np.float32)
    left = np.ones(voxels.shape, np.float32)
    result = voxels.copy()
    result[ours] = 0
    for name in _LARGE:
        if name not in number:
            continue
        mask = voxels == number[name]
        box = box_of(mask, spacing, 12.0)
        assert box is not None
        share = smoothed(mask[box].astype(np.float32), spacing, (0.9, 0.9, 3.0))
        left[box] -= share
        more = (share > best[box]) & ours[box]
        result[box][more] = number[name]
        best[box][more] = share[more]
    result[ours & (left > best)] = 0
    return result


def _surroundings(
    voxels: np.ndarray, number: dict[str, int], spacing: Spacing, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Everything but the structures: worked out coarsely, then brought to the fine grid."""
    factors = [max(1, round(_COARSE_MM / step)) for step in spacing]
    part = tuple(slice(None, None, f) for f in factors[::-1])
    coarse = voxels[part]
    coarse_spacing = (spacing[0] * factors[0], spacing[1] * factors[1], spacing[2] * factors[2])
    filling, hull = body.fill({name: coarse == n for name, n in number.items()}, coarse_spacing, random)
    # Voxels of structures have none; they lend their neighbors' to the fine voxels beside the structures.
    filling = _spread(filling, hull < 0, coarse_spacing)
    shape = voxels.shape
    fine = filling
    for axis, factor in enumerate(factors[::-1]):
        fine = np.repeat(fine, factor, axis=axis)
    fine = fine[: shape[0], : shape[1], : shape[2]].copy()
    image = sitk.GetImageFromArray(body.uneven(hull, coarse_spacing, random))
    image.SetSpacing(coarse_spacing)
    reference = sitk.Image(shape[2], shape[1], shape[0], sitk.sitkUInt8)
    reference.SetSpacing(spacing)
    rimmed = sitk.ZeroFluxNeumannPad(image, (1, 1, 1), (1, 1, 1))
    distance = sitk.GetArrayFromImage(sitk.Resample(rimmed, reference, sitk.Transform(), sitk.sitkLinear))
    outside = distance >= 0
    fine[outside] = body.shells(distance[outside])
    fine[~outside & (fine == 0)] = INDEX["wall_muscle"]
    return fine


def _spread(filling: np.ndarray, inside: Mask, spacing: Spacing) -> np.ndarray:
    """Voxels inside that have no filling get the one of a voxel nearby."""
    for _ in range(2):
        for axis in range(3):
            for shift in (1, -1):
                moved = np.roll(filling, shift, axis)
                filling = np.where((filling == 0) & inside, moved, filling)
    return np.where((filling == 0) & inside, INDEX["visceral_fat"], filling).astype(np.uint8)


def _lay(tissues: np.ndarray, mask: Mask, structure: str, spacing: Spacing) -> None:
    box = box_of(mask, spacing, 3.0)
    if box is None:
        return
    inside, target = mask[box], tissues[box]
    if structure not in _LAYERS:
        target[inside] = INDEX[structure]
        return
    surface, core, thickness = _LAYERS[structure]
    target[inside] = INDEX[surface]
    target[distance_to(inside, spacing) < -thickness] = INDEX[core]


def _lumen(tissues: np.ndarray, name: str, count: int, spacing: Spacing, random: np.random.Generator) -> Lumen | None:
    flat = np.flatnonzero(tissues == INDEX[name])
    if not len(flat):
        return None
    points = np.stack(np.unravel_index(flat, tissues.shape)[::-1], axis=1).astype(np.float32) * np.array(
        spacing, np.float32
    )
    # Seeds far from each other: each the farthest from those before.
    seeds = [int(random.integers(len(flat)))]
    nearest = np.full(len(flat), np.inf, np.float32)
    stretch = np.zeros(len(flat), np.uint8)
    for index in range(count):
        distance = ((points - points[seeds[index]]) ** 2).sum(axis=1)
        closer = distance < nearest
        stretch[closer] = index
        nearest[closer] = distance[closer]
        seeds.append(int(nearest.argmax()))
    height = np.zeros(len(flat), np.float32)
    for index in range(count):
        of = stretch == index
        if of.any():
            y = points[of, 1]
            height[of] = (y - y.min()) / max(float(np.ptp(y)), 1e-3)
    return Lumen(flat, stretch, height, count)


def _changes(voxels: np.ndarray, number: dict[str, int], spacing: Spacing) -> tuple[dict[str, Change], Spacing]:
    factors = [max(1, round(2 * _COARSE_MM / step)) for step in spacing]
    step = (spacing[0] * factors[0], spacing[1] * factors[1], spacing[2] * factors[2])
    part = tuple(slice(f // 2, None, f) for f in factors[::-1])
    offset = np.array([(f // 2) * s for f, s in zip(factors, spacing, strict=True)])
    coarse = voxels[part]
    changes = {}
    for structure, reach in CHANGING.items():
        if structure not in number:
            continue
        mask = coarse == number[structure]
        box = box_of(mask, step, 2.5 * reach)
        if box is not None:
            start = offset + np.array([s.start for s in box[::-1]]) * np.array(step)
            changes[structure] = Change(_yielding(mask[box], step, reach), start)
    return changes, step


def _yielding(mask: Mask, spacing: Spacing, reach: float) -> Field:
    """The field of a ``Change``: unit steps away from the surface, shorter where the sides of a thin organ meet, and
    the share in its moves, both fading outside over ``reach``."""
    distance = distance_to(mask, spacing)
    smooth = smoothed(distance, spacing, (5.0, 5.0, 5.0))
    gradient = np.stack([np.gradient(smooth, s, axis=a) for a, s in zip((2, 1, 0), spacing, strict=True)])
    fade = np.exp(-((np.maximum(distance, 0.0) / reach) ** 2))
    # In the middle the organ does not move: what grows is its outside.
    outward = gradient * (fade * np.clip(1.0 + np.minimum(distance, 0.0) / (2.0 * reach), 0.0, 1.0))
    return np.concatenate([outward, fade[None]]).astype(np.float32)


def _levels(voxels: np.ndarray, number: dict[str, int], spacing: Spacing) -> dict[str, tuple[float, float]]:
    """Lowest and highest level (mm) of each structure."""
    levels = {}
    for structure, n in number.items():
        found = np.flatnonzero((voxels == n).any(axis=(1, 2)))
        if len(found):
            levels[structure] = (float(found[0]) * spacing[2], float(found[-1]) * spacing[2])
    return levels
