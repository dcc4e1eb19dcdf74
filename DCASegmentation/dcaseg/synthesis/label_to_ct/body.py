"""Fills the body around the structures of a label map: trunk, wall, fat and other unlabeled tissue.

Most label maps have nothing between the structures. Here every voxel gets a tissue that fits its position among the
structures, computed on a grid of about 3 mm.
"""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk

from .tissues import INDEX, N_SHELLS, SHELL_MM, SHELLS
from .volumes import (
    Field,
    Mask,
    Spacing,
    apply_closing,
    compute_hull_distance,
    compute_signed_distance,
    generate_noise,
    smooth_gaussian,
)

_LIMBS_MM = 25.0
_CANAL_MM2 = 900.0


def fill(structures: dict[str, Mask], spacing: Spacing, random: np.random.Generator) -> tuple[np.ndarray, Field]:
    """The tissue of every voxel outside all structures, and the distance to the trunk.

    ``structures`` maps names to masks (z, y, x). Returns tissue codes, uint8 (z, y, x), and the distance (mm) to the
    surface of the trunk below the fat, negative inside.
    """
    shape = next(iter(structures.values())).shape
    empty = np.zeros(shape, bool)

    def merge_masks(*names: str) -> Mask:
        return np.logical_or.reduce([structures.get(name, empty) for name in names])

    taken = np.logical_or.reduce(list(structures.values()))
    hull = compute_hull_distance(taken, spacing)
    # Keep a waist between ribs and hips, but remove dents where a single slice has fewer structures than its neighbors.
    hull = np.minimum(hull, smooth_gaussian(np.minimum(hull, 200.0), spacing, (0.0, 0.0, 12.0)))
    inside = hull < 0
    free = inside & ~taken
    tissue = np.zeros(shape, np.uint8)
    tissue[inside] = INDEX["visceral_fat"]
    if not structures.get("lung", empty).any():
        structures = {**structures, **_create_chest_masks(structures, hull, spacing)}
    lung = merge_masks("lung", "airway")
    bone = merge_masks("bone")
    _set(tissue, free & _find_mediastinum(lung, spacing), "mediastinum")
    near_ribs = compute_signed_distance(bone, spacing) < 7.0
    _set(tissue, free & ((hull > -3.0) | (near_ribs & (hull > -17.0))), "wall_muscle")
    organs = merge_masks("liver", "spleen", "stomach", "colon", "right_kidney", "left_kidney")
    _set(
        tissue,
        free & (compute_signed_distance(lung, spacing) < 5.0) & (compute_signed_distance(organs, spacing) < 9.0),
        "diaphragm",
    )
    back = merge_masks("back_muscle", "psoas") | (bone & apply_closing(merge_masks("back_muscle"), spacing, 30.0))
    _set(tissue, free & apply_closing(back, spacing, 7.0), "back_muscle")
    _set(tissue, free & _find_discs(bone, structures.get("spinal_canal", empty), spacing), "disc")
    canal = _find_spinal_canal(bone, spacing)
    if not merge_masks("back_muscle", "psoas", "gluteal_muscle").any():
        _add_trunk_muscles(tissue, free, bone, canal, hull, lung, spacing)
    organs = merge_masks("bladder", "prostate_uterus", "colon")
    _add_pelvic_muscles(tissue, free, merge_masks("gluteal_muscle", "psoas"), bone, organs, spacing, random)
    _set(tissue, free & canal, "spinal_canal")
    if "stomach" not in structures and {"liver", "spleen"} <= set(structures):
        _set(tissue, free & _estimate_stomach(structures, hull, taken, spacing), "viscus_wall")
    if "bowel" not in structures:
        _add_bowel_loops(tissue, free, hull, merge_masks("bone", "back_muscle", "psoas"), spacing, random)
    for name, extra in structures.items():
        if name in ("lung", "heart"):
            _set(tissue, extra & ~taken & inside, "lung" if name == "lung" else "heart_blood")
    return tissue, hull


def perturb_fat_thickness(hull: Field, spacing: Spacing, random: np.random.Generator) -> Field:
    """The distance (mm) to the trunk, scaled by smooth noise so that the fat layer varies in thickness."""
    # Further out, a body is rounder than the planes of the hull and has no steps between slices.
    near = np.minimum(hull, 200.0)
    weight = np.clip(near / 15.0, 0.0, 1.0)
    even = smooth_gaussian(near, spacing, (0.0, 0.0, 6.0))
    rounded = even + weight * (smooth_gaussian(even, spacing, (16.0, 16.0, 4.0)) - even)
    rounded = np.where(hull > 0, np.maximum(rounded, 0.01), np.minimum(rounded, hull))
    thickness = np.exp(0.12 * generate_noise(hull.shape, spacing, 80.0, random))
    return np.where(rounded > 0, rounded / thickness, rounded).astype(np.float32)


def compute_shell_codes(hull: Field) -> np.ndarray:
    """Codes of the shells outside the trunk; 0 inside and beyond the last shell."""
    number = np.floor(hull / SHELL_MM)
    return np.where((number >= 0) & (number < N_SHELLS), SHELLS + number, 0).astype(np.uint8)


def _set(tissue: np.ndarray, mask: Mask, name: str) -> None:
    tissue[mask] = INDEX[name]


def _find_mediastinum(lung: Mask, spacing: Spacing) -> Mask:
    """The convex hull of the lungs, in slices where the lungs are large."""
    if not lung.any():
        return lung
    area = lung.sum(axis=(1, 2))
    large = area > 0.35 * area.max()
    return (compute_hull_distance(lung, spacing) < 0) & large[:, None, None]


def _find_discs(bone: Mask, canal: Mask, spacing: Spacing) -> Mask:
    """The gaps between vertebral bodies: short along z, and in front of the canal."""
    if not canal.any():
        return np.zeros_like(bone)
    near = compute_signed_distance(canal, spacing)
    front = np.zeros_like(bone)
    reach = max(1, round(6.0 / spacing[2]))
    above, below = np.zeros_like(bone), np.zeros_like(bone)
    for step in range(1, reach + 1):
        above[:-step] |= bone[step:]
        below[step:] |= bone[:-step]
    height, width = bone.shape[1:]
    rows, columns = np.arange(height)[:, None], np.arange(width)[None]
    for k in np.flatnonzero(canal.any(axis=(1, 2))):
        y, x = np.nonzero(canal[k])
        front[k] = (rows >= y.max()) & (np.abs(columns - x.mean()) * spacing[0] < 28.0)
    return above & below & front & (near < 45.0)


def _find_spinal_canal(bone: Mask, spacing: Spacing) -> Mask:
    """The space inside the vertebrae, and between one arch and the next."""
    thick = apply_closing(bone, spacing, 5.0)
    canal = np.zeros_like(bone)
    largest = int(_CANAL_MM2 / (spacing[0] * spacing[1]))
    for k in np.flatnonzero(bone.any(axis=(1, 2))):
        plane = sitk.GetImageFromArray(thick[k].astype(np.uint8))
        holes = sitk.ConnectedComponent(sitk.BinaryFillhole(plane) - plane)
        # A ring of ribs also encloses a space, the chest, which is larger.
        number = sitk.GetArrayFromImage(holes)
        small = np.bincount(number.ravel()) <= largest
        small[0] = False
        canal[k] = small[number]
    reach = max(1, round(15.0 / spacing[2]))
    above, below = canal.copy(), canal.copy()
    for step in range(1, reach + 1):
        above[:-step] |= canal[step:]
        below[step:] |= canal[:-step]
    return above & below


def _add_trunk_muscles(
    tissue: np.ndarray, free: Mask, bone: Mask, canal: Mask, hull: Field, lung: Mask, spacing: Spacing
) -> None:
    """Add muscles of back, loins and hips, and ribs, for a map with spine and pelvis but none of these."""
    depth, height, width = bone.shape
    x, y = np.arange(width)[None] * spacing[0], np.arange(height)[:, None] * spacing[1]
    from_bone = compute_signed_distance(bone, spacing)
    columns = np.flatnonzero(canal.any(axis=(0, 1)))
    middle = columns.mean() * spacing[0] if len(columns) else 0.5 * width * spacing[0]
    lungs = np.flatnonzero(lung.any(axis=(1, 2)))
    spine = (bone & (np.abs(x - middle) < 22.0)).any(axis=2)
    levels = np.flatnonzero(spine.any(axis=1))
    if not len(levels):
        return
    ends = np.interp(np.arange(depth), levels, (height - 1 - spine[levels, ::-1].argmax(axis=1)) * spacing[1])
    # The front of the vertebral bodies as a smooth line across the discs.
    reach = max(1, round(25.0 / spacing[2]))
    padded = np.pad(ends, reach, mode="edge")
    fronts = np.convolve(padded, np.full(2 * reach + 1, 1.0 / (2 * reach + 1)), mode="valid")
    for k in np.flatnonzero(bone.any(axis=(1, 2))):
        front = fronts[k]
        wide = np.ptp(np.flatnonzero(bone[k].any(axis=0))) * spacing[0] > 150.0
        if wide:
            # Pelvis and thighs: voxels close to the bones, outside them or below the cavity.
            _set(tissue[k], free[k] & (from_bone[k] < 24.0) & (hull[k] > -45.0), "pelvic_muscle")
            continue
        _set(tissue[k], free[k] & (np.abs(x - middle) < 72.0) & (y < front - 22.0) & (hull[k] < -2.0), "back_muscle")
        if not len(lungs) or k < lungs[0]:
            psoas = np.hypot((np.abs(x - middle) - 42.0) / 17.0, (y - (front - 16.0)) / 23.0) < 1.0
            _set(tissue[k], free[k] & psoas, "psoas")
    if not len(lungs):
        return
    z = np.arange(depth)[:, None, None] * spacing[2]
    # Ribs slope down to the front.
    phase = np.mod((z + 0.45 * y[None]) / 27.0, 1.0)
    rib = (phase < 0.36) & (hull > -8.0) & (hull < -0.5) & (np.abs(x - middle) > 25.0)[None]
    rib &= apply_closing(lung, spacing, 12.0) | (compute_signed_distance(lung, spacing) < 26.0)
    rib[: lungs[0]] = False
    _set(tissue, free & rib, "cortical_bone")


def _estimate_stomach(structures: dict[str, Mask], hull: Field, taken: Mask, spacing: Spacing) -> Mask:
    """A space of the size of a stomach between liver, spleen and lung, for a map without the stomach.

    Without it, this space would be filled with fat.
    """
    spleen, liver = structures["spleen"], structures["liver"]
    lungs = structures.get("lung", np.zeros_like(spleen))
    levels = np.flatnonzero(spleen.any(axis=(1, 2)))
    room = (
        (hull < -8.0)
        & (compute_signed_distance(taken, spacing) > 1.5)
        & (compute_signed_distance(lungs, spacing) > 5.0)
    )
    room[: max(levels[0] - round(20.0 / spacing[2]), 0)] = False
    room[levels[-1] + round(15.0 / spacing[2]) :] = False
    # Left of the middle, in front of the back of the spleen, and not in front of the liver.
    _, y, x = np.nonzero(spleen)
    _, liver_y, liver_x = np.nonzero(liver)
    middle = 0.5 * (x.mean() + liver_x.mean())
    room[:, :, int(middle) :] = False
    room[:, : int(y.mean())] = False
    room[:, int(liver_y.max()) :] = False
    core = compute_signed_distance(room, spacing) < -9.0
    return room & (compute_signed_distance(core, spacing) < 8.0)


def _add_pelvic_muscles(
    tissue: np.ndarray, free: Mask, muscles: Mask, bone: Mask, organs: Mask, spacing: Spacing,
    random: np.random.Generator,
) -> None:  # fmt: skip
    """Add muscles of hips and thighs between and around the bones and muscles there, with streaks of fat."""
    levels = np.flatnonzero(muscles.any(axis=(1, 2)))
    if not len(levels):
        return
    streaks = generate_noise(tissue.shape, spacing, 7.0, random)
    close = apply_closing(muscles | bone, spacing, 11.0)
    lowest = levels[0] + int(110.0 / spacing[2])
    close[lowest:] &= apply_closing(muscles, spacing, 9.0)[lowest:]
    clear = compute_signed_distance(organs, spacing) > 7.0
    _set(tissue, free & close & clear & (streaks > -0.9), "pelvic_muscle")
    # Below the pelvic organs there are only muscles and fat.
    floor = np.flatnonzero(organs.any(axis=(1, 2)))
    bottom = int(floor[0]) if len(floor) else 0
    thighs = free.copy()
    thighs[bottom:] &= (compute_signed_distance(bone, spacing) < _LIMBS_MM)[bottom:] & (
        np.arange(bottom, len(free)) < lowest
    )[:, None, None]
    _set(tissue, thighs & clear & (streaks > -0.4), "pelvic_muscle")


def _add_bowel_loops(
    tissue: np.ndarray, free: Mask, hull: Field, behind: Mask, spacing: Spacing, random: np.random.Generator
) -> None:
    """Add loops of small bowel in the free space of the abdomen, from level sets of smooth noise, for a map without."""
    depth, height, width = free.shape
    rows = np.arange(height)[None, :, None]
    spine = np.where(behind.any(axis=1), height - 1 - behind[:, ::-1].argmax(axis=1), 0)
    middle = spine[:, width // 3 : 2 * width // 3].max(axis=1)[:, None, None]
    space = free & (tissue == INDEX["visceral_fat"]) & (hull < -9.0) & (rows > middle)
    space[int(0.72 * depth) :] = False
    loops = generate_noise(free.shape, spacing, 6.5, random)
    _set(tissue, space & (loops > 0.1), "bowel_wall")
    _set(tissue, space & (loops > 0.65), "bowel_lumen")


def _smooth_height_map(level: np.ndarray, spacing: Spacing) -> Field:
    """A height map (y, x) in mm, smoothed."""
    image = sitk.GetImageFromArray(level.astype(np.float32))
    image.SetSpacing(spacing[:2])
    return sitk.GetArrayFromImage(sitk.SmoothingRecursiveGaussian(image, 12.0))


def _create_chest_masks(structures: dict[str, Mask], hull: Field, spacing: Spacing) -> dict[str, Mask]:
    """Masks of lungs and heart above the abdominal organs, for a map with ribs but no lungs."""
    below = ("liver", "spleen", "stomach", "right_kidney", "left_kidney", "colon")
    organs = np.logical_or.reduce([structures[name] for name in below if name in structures])
    empty = np.zeros_like(organs)
    belly = apply_closing(organs, spacing, 35.0)
    belly = compute_signed_distance(belly, spacing) < 6.0
    height = np.arange(len(belly))[:, None, None]
    top = np.where(belly.any(axis=0), len(belly) - 1 - belly[::-1].argmax(axis=0), -1)
    organ_top = int(np.flatnonzero(organs.any(axis=(1, 2)))[-1])
    # In the recess behind and beside the organs, the lung reaches about 7 cm down.
    lowest = organ_top - round(75.0 / spacing[2])
    level = np.maximum(top, lowest)
    level = np.maximum(_smooth_height_map(level * spacing[2], spacing), level * spacing[2] - 9.0)
    open_above = (height * spacing[2] > level[None]) & (height > top[None]) & (hull < -11.0)
    bone = structures.get("bone", empty)
    through = ("aorta", "esophagus", "inferior_vena_cava")
    vessels = np.logical_or.reduce([structures[name] for name in through if name in structures] or [empty])
    middle = compute_signed_distance(vessels, spacing)
    lung = open_above & (compute_signed_distance(bone, spacing) > 3.0) & (middle > 4.0)
    x = np.arange(lung.shape[2])[None, None] * spacing[0]
    y = np.arange(lung.shape[1])[None, :, None] * spacing[1]
    _, ys, xs = np.nonzero(vessels if vessels.any() else organs)
    center_x, center_y = xs.mean() * spacing[0] - 22.0, ys.mean() * spacing[1] + 38.0
    center_z = organ_top * spacing[2] + 36.0
    ball = ((x - center_x) / 62.0) ** 2 + ((y - center_y) / 46.0) ** 2 + ((height * spacing[2] - center_z) / 48.0) ** 2
    heart = lung & (ball < 1.0)
    return {"lung": lung & ~heart, "heart": heart}
