"""Prepares a label map for synthesis: tissue codes for all voxels, and the data to change and fill its organs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ...errors import DAMAGED_NPZ, UserError
from ...imaging.writers import write_file
from ...organs import AMOS
from . import body
from .label_map import LabelMap, Sidecar, read_label_map
from .tissues import INDEX, LUMENS, SHELLS, STRETCHES, TISSUES, find_structure
from .volumes import Field, Mask, Spacing, compute_bounding_box, compute_signed_distance, smooth_gaussian

# Structures of two tissues: surface, core, and the thickness of the surface layer (mm).
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
    "viscus": ("viscus_wall", "viscus_lumen", 3.5),
}
# Increased whenever the prepared data change, so that older caches are not used.
_VERSION = 1
# Structures that can grow and shrink, and the distance (mm) over which the body yields to them.
CHANGING = {
    "liver": 28.0, "spleen": 22.0, "right_kidney": 18.0, "left_kidney": 18.0, "stomach": 24.0, "gallbladder": 12.0,
    "pancreas": 12.0, "aorta": 12.0, "inferior_vena_cava": 12.0, "bladder": 24.0, "duodenum": 12.0, "colon": 14.0,
    "bowel": 16.0, "heart": 18.0, "psoas": 16.0, "lung": 25.0, "prostate_uterus": 12.0,
}  # fmt: skip
_LARGE = (
    "liver", "spleen", "right_kidney", "left_kidney", "stomach", "colon", "bowel", "bone", "back_muscle", "psoas",
    "gluteal_muscle", "wall_muscle", "heart", "lung", "bladder", "aorta", "inferior_vena_cava",
)  # fmt: skip
# Smaller structures, which would vanish with that much smoothing.
_MEDIUM = ("pancreas", "duodenum", "esophagus", "gallbladder", "prostate_uterus", "portal_vein", "disc")
_OUTLINES = ("body", "skin", "body_trunk", "body_extremities")
_STEPS_MM = 2.1
_FINE_MM = 1.5
_POSITIONS = 1500
_MARGIN_MM = 84.0
_COARSE_MM = 3.0


@dataclass(frozen=True)
class Stretch:
    """A section of a hollow organ with its own filling.

    ``code`` is its code in the map, ``lumen`` its tissue, ``center`` (x, y, z) and ``height`` (from back to front) are
    in mm of the map.
    """

    code: int
    lumen: str
    center: tuple[float, float, float]
    height: float


@dataclass(frozen=True)
class Change:
    """The way the body yields to a growing or moving organ.

    ``field`` is float16 (4, z, y, x) on the lattice of ``Anatomy.change_step`` and starts at the lattice point
    ``start`` (z, y, x). Its channels are the outward direction from the organ (x, y, z; length at most 1) and the
    fraction by which a point moves with the organ (0 to 1). Both decrease with distance.
    """

    field: NDArray[np.float16]
    start: tuple[int, int, int]


@dataclass(frozen=True)
class Anatomy:
    """The label map of a person, prepared for synthesis.

    ``tissues`` is uint8 (z, y, x), in RAS orientation, with the codes of the module ``tissues``; ``spacing`` is (x, y,
    z) in mm. Positions in mm are relative to the center of the first voxel. ``unannotated`` holds the labels of AMOS
    that the map does not contain, ``levels`` the lowest and highest z (mm) of each structure, ``trunk`` two corners (x,
    y, z) in mm, ``positions`` up to 1500 points (x, y, z) in mm inside each label, ``volumes_ml`` the volume of each
    label. ``unknown_structures`` holds unrecognized names; their structures look like the tissue around them.
    """

    name: str
    tissues: NDArray[np.uint8]
    spacing: Spacing
    unannotated: tuple[int, ...]
    stretches: tuple[Stretch, ...]
    changes: dict[str, Change]
    change_step: Spacing
    levels: dict[str, tuple[float, float]]
    trunk: tuple[NDArray[np.float64], NDArray[np.float64]]
    positions: dict[int, NDArray[np.float32]]
    volumes_ml: dict[int, float]
    unknown_structures: tuple[str, ...] = ()

    @property
    def center(self) -> NDArray[np.float64]:
        """The middle of the trunk (x, y, z) in mm, which is the origin of all CTs synthesized from this anatomy."""
        return (self.trunk[0] + self.trunk[1]) / 2


def load_anatomy(folder: Path, sidecar: Sidecar | None = None, cache: Path | None = None) -> Anatomy:
    """Load the anatomy in ``folder``. Preparing it takes about 20 s; the result is kept in the folder ``cache``, if
    set.

    Raises UserError if the folder contains no usable anatomy, and ImageError for an invalid image.
    """
    if cache is None:
        return prepare(read_label_map(folder, sidecar))
    path = Path(cache) / f"{Path(folder).name}-{_compute_cache_key(Path(folder), sidecar)}.npz"
    if path.exists():
        try:
            return read_prepared(path)
        except DAMAGED_NPZ:
            # The cached file is damaged, so it is written again below.
            pass
    anatomy = prepare(read_label_map(folder, sidecar))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_prepared(anatomy, path)
    return anatomy


def _compute_cache_key(folder: Path, sidecar: Sidecar | None) -> str:
    files = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr((_VERSION, states, sidecar)).encode()).hexdigest()[:12]


def write_prepared(anatomy: Anatomy, path: Path) -> None:
    """Write a prepared anatomy as NPZ, completely or not at all. Raises OutputError."""
    info: dict[str, Any] = {
        "name": anatomy.name,
        "spacing": anatomy.spacing,
        "unannotated": anatomy.unannotated,
        "stretches": [vars(stretch) for stretch in anatomy.stretches],
        "changes": {name: change.start for name, change in anatomy.changes.items()},
        "change_step": anatomy.change_step,
        "levels": anatomy.levels,
        "trunk": [corner.tolist() for corner in anatomy.trunk],
        "unknown_structures": anatomy.unknown_structures,
        "volumes_ml": {str(label): volume for label, volume in anatomy.volumes_ml.items()},
    }
    arrays: dict[str, Any] = {"tissues": anatomy.tissues, "info": np.array(json.dumps(info))}
    arrays |= {f"change_{name}": change.field for name, change in anatomy.changes.items()}
    arrays |= {f"positions_{label}": points for label, points in anatomy.positions.items()}

    write_file(path, lambda temporary: np.savez_compressed(temporary, **arrays))


def read_prepared(path: Path) -> Anatomy:
    """Read an anatomy that ``write_prepared`` wrote. Raises OSError, ValueError or KeyError if the file is damaged."""
    with np.load(path, allow_pickle=False) as arrays:
        info = json.loads(str(arrays["info"]))
        positions = {int(key[10:]): arrays[key] for key in arrays.files if key.startswith("positions_")}
        x, y, z = info["spacing"]
        return Anatomy(
            name=info["name"],
            tissues=arrays["tissues"],
            spacing=(x, y, z),
            unannotated=tuple(info["unannotated"]),
            stretches=tuple(Stretch(**{**item, "center": tuple(item["center"])}) for item in info["stretches"]),
            changes={name: Change(arrays[f"change_{name}"], tuple(start)) for name, start in info["changes"].items()},
            change_step=tuple(info["change_step"]),
            levels={name: (low, high) for name, (low, high) in info["levels"].items()},
            trunk=(np.array(info["trunk"][0]), np.array(info["trunk"][1])),
            positions=positions,
            volumes_ml={int(label): volume for label, volume in info["volumes_ml"].items()},
            unknown_structures=tuple(info.get("unknown_structures", ())),
        )


def prepare(label_map: LabelMap) -> Anatomy:
    """Prepare a label map for synthesis. Raises UserError if it does not contain liver and bones."""
    names = {n: find_structure(name) for n, name in label_map.names.items()}
    present = set(np.unique(label_map.voxels).tolist()) - {0}
    known = sorted({found for n in present if (found := names.get(n))})
    if not {"liver", "bone"} <= set(known):
        raise UserError(
            f"The label map {label_map.name} has no liver or no bones with a known name.",
            "Specify a label map of an abdomen with structure names like those of TotalSegmentator.",
        )
    number = {structure: n for n, structure in enumerate(known, start=1)}
    lut = np.zeros(int(label_map.voxels.max()) + 1, np.uint8)
    for n in present:
        found = names.get(n)
        if found:
            lut[n] = number[found]
    voxels, spacing = _resample_thick_slices(
        _crop_and_pad(lut[label_map.voxels], label_map.spacing), number, label_map.spacing
    )
    random = np.random.default_rng(0)
    tissues = _fill_surroundings(voxels, number, spacing, random)
    for structure, n in number.items():
        _add_structure(tissues, voxels == n, structure, spacing)
    viscus = tissues == INDEX["viscus_wall"]
    if viscus.any():
        _add_structure(tissues, viscus, "viscus", spacing)
    labels = {TISSUES[i].label for i in np.unique(tissues) if i < len(TISSUES)} - {0}
    positions, volumes = _sample_positions(tissues, sorted(labels), spacing, random)
    inside = (tissues > 0) & (tissues < SHELLS)
    stretches = _divide_lumens(tissues, spacing, random)
    changes, step = _compute_changes(voxels, number, spacing)
    trunk = compute_bounding_box(inside[:, ::4, ::4], (spacing[0] * 4, spacing[1] * 4, spacing[2]))
    assert trunk is not None
    corner = np.array([s * 4.0 for s in spacing[:2]] + [spacing[2]])
    return Anatomy(
        name=label_map.name,
        tissues=tissues,
        spacing=spacing,
        unannotated=tuple(organ.label for organ in AMOS if organ.label not in labels),
        stretches=stretches,
        changes=changes,
        change_step=step,
        levels=_compute_z_ranges(voxels, number, spacing),
        trunk=(np.array([s.start for s in trunk[::-1]]) * corner, np.array([s.stop for s in trunk[::-1]]) * corner),
        positions=positions,
        volumes_ml=volumes,
        unknown_structures=tuple(
            sorted(
                label_map.names.get(n, f"number {n}")
                for n in present
                if _is_unknown(names.get(n), label_map.names.get(n))
            )
        ),
    )


def _is_unknown(structure: str | None, name: str | None) -> bool:
    """Whether a structure has an unrecognized name. The outline of the body does not count, as it is not needed."""
    return structure is None and (name or "").lower() not in _OUTLINES


def _crop_and_pad(voxels: np.ndarray, spacing: Spacing) -> NDArray[np.uint8]:
    """Crop to the structures, and add a margin for the fat of a large person, except above and below."""
    box = compute_bounding_box(voxels > 0, spacing)
    assert box is not None
    cut = voxels[box]
    margins = [(int(np.ceil(_MARGIN_MM / step)),) * 2 for step in (spacing[1], spacing[0])]
    return np.pad(cut, [(0, 0), *margins])


def _resample_thick_slices(
    voxels: NDArray[np.uint8], number: dict[str, int], spacing: Spacing
) -> tuple[NDArray[np.uint8], Spacing]:
    """Resample thick slices to thinner ones with smooth borders, since maps drawn slice by slice have steps."""
    if spacing[2] < _STEPS_MM:
        return voxels, spacing
    factor = max(1, round(spacing[2] / _FINE_MM))
    step = spacing[2] / factor
    voxels, thin = np.repeat(voxels, factor, axis=0), (spacing[0], spacing[1], step)
    smooth = dict.fromkeys(_LARGE, (0.9, 0.9, spacing[2]))
    smooth |= dict.fromkeys(_MEDIUM, (0.6, 0.6, 0.5 * spacing[2]))
    changeable = np.isin(voxels, [0, *(number[name] for name in smooth if name in number)])
    best = np.zeros(voxels.shape, np.float32)
    left = np.ones(voxels.shape, np.float32)
    result = voxels.copy()
    result[changeable] = 0
    for name, sigma in smooth.items():
        if name not in number:
            continue
        mask = voxels == number[name]
        box = compute_bounding_box(mask, thin, 12.0)
        assert box is not None
        fraction = smooth_gaussian(mask[box].astype(np.float32), thin, sigma)
        left[box] -= fraction
        higher = (fraction > best[box]) & changeable[box]
        result[box][higher] = number[name]
        best[box][higher] = fraction[higher]
    result[changeable & (left > best)] = 0
    return result, thin


def _sample_positions(
    tissues: NDArray[np.uint8], labels: list[int], spacing: Spacing, random: np.random.Generator
) -> tuple[dict[int, NDArray[np.float32]], dict[int, float]]:
    """Random points (x, y, z) in mm inside each label, and the volumes of the labels in ml."""
    lut = np.zeros(256, np.uint8)
    lut[: len(TISSUES)] = [tissue.label for tissue in TISSUES]
    organs = lut[tissues]
    positions, volumes = {}, {}
    for label in labels:
        flat = np.flatnonzero(organs == label)
        volumes[label] = float(len(flat) * np.prod(spacing) / 1000)
        if len(flat) > _POSITIONS:
            flat = random.choice(flat, _POSITIONS, replace=False)
        index = np.stack(np.unravel_index(flat, organs.shape)[::-1], axis=1)
        positions[label] = (index * np.array(spacing)).astype(np.float32)
    return positions, volumes


def _fill_surroundings(
    voxels: np.ndarray, number: dict[str, int], spacing: Spacing, random: np.random.Generator
) -> NDArray[np.uint8]:
    """Codes for everything except the structures, computed on a coarse grid and resampled to the fine one."""
    factors = [max(1, round(_COARSE_MM / step)) for step in spacing]
    part = tuple(slice(None, None, f) for f in factors[::-1])
    coarse = voxels[part]
    coarse_spacing = (spacing[0] * factors[0], spacing[1] * factors[1], spacing[2] * factors[2])
    filling, hull = body.fill({name: coarse == n for name, n in number.items()}, coarse_spacing, random)
    # Voxels of structures have no filling. They get that of their neighbors, for the fine voxels next to structures.
    filling = _expand_labels(filling, hull < 0)
    shape = voxels.shape
    fine = filling
    for axis, factor in enumerate(factors[::-1]):
        fine = np.repeat(fine, factor, axis=axis)
    fine = fine[: shape[0], : shape[1], : shape[2]].copy()
    image = sitk.GetImageFromArray(body.perturb_fat_thickness(hull, coarse_spacing, random))
    image.SetSpacing(coarse_spacing)
    reference = sitk.Image(shape[2], shape[1], shape[0], sitk.sitkUInt8)
    reference.SetSpacing(spacing)
    rimmed = sitk.ZeroFluxNeumannPad(image, (1, 1, 1), (1, 1, 1))
    distance = sitk.GetArrayFromImage(sitk.Resample(rimmed, reference, sitk.Transform(), sitk.sitkLinear))
    outside = distance >= 0
    fine[outside] = body.compute_shell_codes(distance[outside])
    fine[~outside & (fine == 0)] = INDEX["wall_muscle"]
    return fine


def _expand_labels(filling: np.ndarray, inside: Mask) -> np.ndarray:
    """Give voxels inside without a filling that of a nearby voxel, at most two voxels away along each axis."""
    for _ in range(2):
        for axis in range(3):
            for shift in (1, -1):
                moved = np.roll(filling, shift, axis)
                # What leaves the scan at one face must not enter it at the other.
                moved[(slice(None),) * axis + (0 if shift == 1 else -1,)] = 0
                filling = np.where((filling == 0) & inside, moved, filling)
    return np.where((filling == 0) & inside, INDEX["visceral_fat"], filling).astype(np.uint8)


def _add_structure(tissues: np.ndarray, mask: Mask, structure: str, spacing: Spacing) -> None:
    """Write the codes of a structure to ``tissues``, with surface and core if it has two tissues."""
    box = compute_bounding_box(mask, spacing, 3.0)
    if box is None:
        return
    inside, target = mask[box], tissues[box]
    if structure not in _LAYERS:
        target[inside] = INDEX[structure]
        return
    surface, core, thickness = _LAYERS[structure]
    target[inside] = INDEX[surface]
    target[compute_signed_distance(inside, spacing) < -thickness] = INDEX[core]


def _divide_lumens(tissues: NDArray[np.uint8], spacing: Spacing, random: np.random.Generator) -> tuple[Stretch, ...]:
    """Divide the lumens into stretches, and give each its own code in ``tissues``."""
    found: list[Stretch] = []
    code = STRETCHES
    for lumen, count in LUMENS.items():
        flat = np.flatnonzero(tissues == INDEX[lumen])
        if not len(flat):
            code += count
            continue
        index = np.stack(np.unravel_index(flat, tissues.shape)[::-1], axis=1)
        points = index.astype(np.float32) * np.array(spacing, np.float32)
        # Each seed is the point farthest from the previous seeds.
        seed = int(random.integers(len(flat)))
        nearest = np.full(len(flat), np.inf, np.float32)
        stretch = np.zeros(len(flat), np.uint8)
        for number in range(count):
            distance = ((points - points[seed]) ** 2).sum(axis=1)
            closer = distance < nearest
            stretch[closer] = number
            nearest[closer] = distance[closer]
            seed = int(nearest.argmax())
        tissues.reshape(-1)[flat] = code + stretch
        for number in range(count):
            part = points[stretch == number]
            if len(part):
                low, high = part.min(axis=0), part.max(axis=0)
                x, _, z = part.mean(axis=0)
                center = (float(x), float(low[1] + high[1]) / 2, float(z))
                found.append(Stretch(code + number, lumen, center, max(float(high[1] - low[1]), 1e-3)))
        code += count
    return tuple(found)


def _compute_changes(voxels: np.ndarray, number: dict[str, int], spacing: Spacing) -> tuple[dict[str, Change], Spacing]:
    factors = [max(1, round(2 * _COARSE_MM / step)) for step in spacing]
    step = (spacing[0] * factors[0], spacing[1] * factors[1], spacing[2] * factors[2])
    coarse = voxels[:: factors[2], :: factors[1], :: factors[0]]
    changes = {}
    for structure, reach in CHANGING.items():
        if structure not in number:
            continue
        mask = coarse == number[structure]
        box = compute_bounding_box(mask, step, 2.5 * reach)
        if box is not None:
            field = _compute_change_field(mask[box], step, reach).astype(np.float16)
            changes[structure] = Change(field, (box[0].start, box[1].start, box[2].start))
    return changes, step


def _compute_change_field(mask: Mask, spacing: Spacing, reach: float) -> Field:
    """The field of a ``Change``, which decreases outside over ``reach`` mm.

    The directions have length 1, or less where the sides of a thin organ are close to each other.
    """
    distance = compute_signed_distance(mask, spacing)
    smooth = smooth_gaussian(distance, spacing, (5.0, 5.0, 5.0))
    gradient = np.stack([np.gradient(smooth, s, axis=a) for a, s in zip((2, 1, 0), spacing, strict=True)])
    fade = np.exp(-((np.maximum(distance, 0.0) / reach) ** 2))
    # Growth moves the surface of the organ, not its middle.
    outward = gradient * (fade * np.clip(1.0 + np.minimum(distance, 0.0) / (2.0 * reach), 0.0, 1.0))
    return np.concatenate([outward, fade[None]]).astype(np.float32)


def _compute_z_ranges(voxels: np.ndarray, number: dict[str, int], spacing: Spacing) -> dict[str, tuple[float, float]]:
    """Lowest and highest z (mm) of each structure."""
    levels = {}
    for structure, n in number.items():
        found = np.flatnonzero((voxels == n).any(axis=(1, 2)))
        if len(found):
            levels[structure] = (float(found[0]) * spacing[2], float(found[-1]) * spacing[2])
    return levels
