"""One painted case: another person of a given anatomy under another scanner, with exact labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

from ...imaging.grid import Grid, canonical_view
from ...phantom.scan import orientation_matrix
from ..cases import Case
from ..options import GridOptions
from .anatomy import Anatomy
from .appearance import Appearance
from .arms import add_arms
from .deformation import Deformation
from .scanner import Scanner
from .tissues import INDEX, N_SHELLS, SHELLS, TISSUES
from .volumes import Field, Spacing
from .waves import smooth_noise

# Changes with what is painted from a seed: cases kept on disk are of one version.
PAINTER_VERSION = 2

_LABELS = np.array([tissue.label for tissue in TISSUES] + [0] * (256 - len(TISSUES)), np.uint8)
# Where cysts and metastases are common.
_HOSTS = ("liver", "right_renal_cortex", "left_renal_cortex", "right_renal_medulla", "left_renal_medulla", "spleen")
# How often a scan is one of the kinds of ``_range``.
_RANGES = (0.35, 0.11, 0.14, 0.18, 0.12, 0.10)
_WORLD = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}
_RAS = (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)


def paint_case(seed: int, anatomies: Sequence[Anatomy], grid: GridOptions, phase: str | None = None) -> Case:
    """The case of ``seed`` on the model grid; the same arguments give the same voxels (on another processor, up to
    rounding).

    Raises ValueError for an unknown ``phase``.
    """
    random = np.random.default_rng([seed, 7])
    anatomy = anatomies[int(random.integers(len(anatomies)))]
    spacing = _along_ras(grid)
    hu, labels, drawn = _painted(anatomy, spacing, random, phase)
    name = f"painted_{seed}_{anatomy.name}_{drawn}"
    size = (hu.shape[2], hu.shape[1], hu.shape[0])
    own = Grid(size, spacing, (0.0, 0.0, 0.0), _RAS)
    return Case(
        name,
        np.ascontiguousarray(canonical_view(hu, own, grid.orientation)),
        np.ascontiguousarray(canonical_view(labels, own, grid.orientation)),
        anatomy.unknown,
    )


def image_of(array: np.ndarray, grid: GridOptions) -> sitk.Image:
    """A painted case's ``hu`` or ``labels`` as an image; its first voxel lies at 0 mm."""
    axes = orientation_matrix(grid.orientation)
    size = (array.shape[2], array.shape[1], array.shape[0])
    return Grid(size, grid.spacing, (0.0, 0.0, 0.0), tuple(axes.ravel().tolist())).image_of(array)


def _along_ras(grid: GridOptions) -> Spacing:
    steps = [1.0, 1.0, 1.0]
    for letter, step in zip(grid.orientation.upper(), grid.spacing, strict=True):
        steps[_WORLD[letter]] = float(step)
    return steps[0], steps[1], steps[2]


def _painted(
    anatomy: Anatomy, spacing: Spacing, random: np.random.Generator, phase: str | None
) -> tuple[NDArray[np.int16], NDArray[np.uint8], str]:
    appearance = Appearance.draw(random, (0.0, 5.0) if "wall_muscle" in anatomy.levels else (4.0, 13.0), phase)
    change = Deformation.draw(anatomy, random)
    appearance, missing = _without(anatomy, appearance, random)
    low, high = _range(anatomy, random)
    arms = random.random() < 0.12
    corner, shape = _frame(anatomy, appearance, change, low, high, spacing, arms, random)
    scanner = Scanner.draw(random, max(shape[1] * spacing[1], shape[2] * spacing[0]))
    fine = 2 if scanner.slice_mm > 0.8 * spacing[2] else 1
    fine_spacing = (spacing[0], spacing[1], spacing[2] / fine)
    middle = np.array([anatomy.trunk[0] + anatomy.trunk[1]])[0] / 2
    x, y, z = change.positions(
        anatomy, (shape[0] * fine, shape[1], shape[2]), fine_spacing, corner, middle, random
    )  # fmt: skip
    steps = anatomy.spacing
    x, y, z = x / np.float32(steps[0]), y / np.float32(steps[1]), z / np.float32(steps[2])
    tissues = _nearest(anatomy.tissues, x[::fine], y[::fine], z[::fine])
    first = max(int(z.min()) - 1, 0)
    last = min(int(z.max()) + 3, len(anatomy.tissues))
    values = _values(anatomy, appearance, first, last, missing, random)
    hu = _linear(values, x, y, z - np.float32(first))
    _texture(hu, tissues, appearance, spacing, fine, random)
    if arms:
        add_arms(hu, fine_spacing, appearance, random)
    result = scanner.scan(hu, spacing, fine, random)
    labels = _LABELS[tissues]
    for label in missing:
        labels[labels == label] = 0
    return np.clip(np.rint(result), -1024, 3071).astype(np.int16), labels, appearance.phase


def _range(anatomy: Anatomy, random: np.random.Generator) -> tuple[float, float]:
    """Lowest and highest level of the scan, in mm of the label map."""
    levels = anatomy.levels
    end = (len(anatomy.tissues) - 1) * anatomy.spacing[2]
    liver = levels["liver"][1]
    kidney = min(levels.get(name, levels["liver"])[0] for name in ("right_kidney", "left_kidney"))
    bottom = levels.get("bladder", (0.0, 0.0))[0]
    # Scans of abdomens often reach far into the chest; a network that has not seen hearts takes them for livers.
    kind = random.choice(["abdomen", "cut", "upper", "chest", "trunk", "pelvis"], p=_RANGES)
    if kind == "abdomen":
        low, high = bottom - random.uniform(-5, 55), liver + random.uniform(3, 60)
    elif kind == "cut":
        low, high = bottom + random.uniform(-40, 60), liver - random.uniform(0, 45)
    elif kind == "upper":
        low, high = kidney - random.uniform(-40, 70), liver + random.uniform(-10, 50)
    elif kind == "chest":
        low, high = kidney - random.uniform(-70, 60), liver + random.uniform(40, 260)
    elif kind == "trunk":
        low, high = bottom - random.uniform(-5, 55), liver + random.uniform(60, 260)
    else:
        low, high = bottom - random.uniform(-5, 55), kidney + random.uniform(-20, 110)
    return max(low, 0.0), max(min(high, end), low + 120.0)


def _frame(
    anatomy: Anatomy, appearance: Appearance, change: Deformation, low: float, high: float, spacing: Spacing,
    arms: bool, random: np.random.Generator,
) -> tuple[NDArray[np.float64], tuple[int, int, int]]:  # fmt: skip
    """Where the scan's first voxel lies (mm in the label map, x, y, z) and how many voxels it has (z, y, x)."""
    stride = 6
    step = np.array(anatomy.spacing)
    part = anatomy.tissues[int(low / step[2]) : int(high / step[2]) + 1 : stride, ::stride, ::stride]
    body = (appearance.hu > -500)[part]
    rows, columns = np.flatnonzero(body.any(axis=(0, 2))), np.flatnonzero(body.any(axis=(0, 1)))
    cut = random.random() < 0.12
    margins = random.uniform(-35.0, 5.0, 4) if cut else random.uniform(2.0, 32.0, 4)
    if arms:
        margins[:2] = random.uniform(50.0, 95.0, 2)
    x0, x1 = columns[0] * stride * step[0] - margins[0], columns[-1] * stride * step[0] + margins[1]
    y0, y1 = rows[0] * stride * step[1] - margins[2], rows[-1] * stride * step[1] + margins[3]
    extent = np.array([x1 - x0, y1 - y0, high - low]) * change.scale / np.array(spacing)
    nx, ny, nz = (int(np.clip(np.ceil(n), 32, 400)) for n in extent)
    return np.array([x0, y0, low]), (nz, ny, nx)


def _without(
    anatomy: Anatomy, appearance: Appearance, random: np.random.Generator
) -> tuple[Appearance, tuple[int, ...]]:
    """Sometimes the gallbladder, a kidney or the prostate has been taken out: fat fills its place."""
    gone: list[str] = []
    chances = random.random(4)
    if chances[0] < 0.12:
        gone.append("gallbladder")
    if chances[1] < 0.05:
        gone.append("right_kidney" if chances[2] < 0.5 else "left_kidney")
    if not gone:
        return appearance, ()
    arrays = {name: getattr(appearance, name).copy() for name in ("hu", "texture", "vessel_share")}
    labels = []
    for index, tissue in enumerate(TISSUES):
        if tissue.organ in gone:
            for array in arrays.values():
                array[index] = array[INDEX["visceral_fat"]]
            labels.append(tissue.label)
    return replace(appearance, **arrays), tuple(sorted(set(labels)))


def _values(
    anatomy: Anatomy, appearance: Appearance, first: int, last: int, missing: tuple[int, ...],
    random: np.random.Generator,
) -> Field:  # fmt: skip
    """CT numbers of levels ``first`` to ``last`` of the label map."""
    part = anatomy.tissues[first:last]
    values = appearance.hu[part]
    plane = part[0].size
    flat = values.reshape(-1)
    for name, lumen in anatomy.lumens.items():
        filled = appearance.fill(name, lumen, random)
        if _LABELS[INDEX[name]] in missing:
            continue
        start, stop = np.searchsorted(lumen.flat, (first * plane, last * plane))
        flat[lumen.flat[start:stop] - first * plane] = filled[start:stop]
    return values


def _nearest(volume: NDArray[np.uint8], x: Field, y: Field, z: Field) -> NDArray[np.uint8]:
    depth, height, width = volume.shape
    k = np.clip(np.rint(z).astype(np.int32), 0, depth - 1)
    j, i = np.rint(y).astype(np.int32), np.rint(x).astype(np.int32)
    beyond = (j < 0) | (j >= height) | (i < 0) | (i >= width)
    index = (k * height + np.clip(j, 0, height - 1)) * width + np.clip(i, 0, width - 1)
    found = volume.reshape(-1)[index]
    found[beyond] = 0
    return found


def _linear(volume: Field, x: Field, y: Field, z: Field) -> Field:
    depth, height, width = volume.shape
    flat = volume.reshape(-1)
    corners = []
    for place, size in ((z, depth), (y, height), (x, width)):
        inside = np.clip(place, 0, size - 1.001)
        left = inside.astype(np.int32)
        corners.append((left, inside - left))
    (k, tz), (j, ty), (i, tx) = corners
    base = (k * height + j) * width + i
    result = None
    for dz in (0, 1):
        plane = None
        for dy in (0, 1):
            at = base + (dz * height + dy) * width
            row = flat[at]
            row += tx * (flat[at + 1] - row)
            plane = row if plane is None else plane + ty * (row - plane)
        result = plane if result is None else result + tz * (plane - result)
    assert result is not None
    return result


def _texture(
    hu: Field, tissues: NDArray[np.uint8], appearance: Appearance, spacing: Spacing, fine: int,
    random: np.random.Generator,
) -> None:  # fmt: skip
    """Adds the tissues' own variation and their small vessels, the same on each of ``fine`` levels to a voxel."""
    shape = tissues.shape
    varied = 0.75 * smooth_noise(shape, spacing, 7.0, random) + 0.6 * smooth_noise(shape, spacing, 30.0, random)
    added = appearance.texture[tissues] * varied
    share = appearance.vessel_share[tissues]
    blood = appearance.vessel[tissues]
    wide = np.hypot(smooth_noise(shape, spacing, 24.0, random), smooth_noise(shape, spacing, 24.0, random))
    narrow = np.hypot(smooth_noise(shape, spacing, 15.0, random), smooth_noise(shape, spacing, 15.0, random))
    large = np.isin(np.arange(256), [INDEX["liver"], INDEX["spleen"]])[tissues]
    line = np.where(large, wide / np.float32(0.24), narrow / np.float32(0.30))
    # A vessel runs where two independent fields are both near zero; thicker where the tissue has more of them.
    within = np.clip(1.6 - line / np.maximum(share, 0.05), 0.0, 1.0) * (share > 0)
    solid = tissues < SHELLS + N_SHELLS
    ill = np.zeros(shape, np.float32)
    if appearance.lesion_hu is not None:
        size, most = float(random.uniform(18.0, 45.0)), float(random.uniform(1.6, 2.4))
        host = np.isin(np.arange(256), [INDEX[name] for name in _HOSTS])[tissues]
        ill = np.clip(4.0 * (smooth_noise(shape, spacing, size, random) - most), 0.0, 1.0) * host
    for level in range(fine):
        part = hu[level::fine]
        # Gas and what lies beyond the body have no texture, whatever tissue the voxel's center is.
        tissue_there = solid & (part > -930)
        part += np.where(tissue_there, added, 0.0)
        part += np.where(tissue_there, within * (blood - part), 0.0)
        if appearance.lesion_hu is not None:
            part += ill * (np.float32(appearance.lesion_hu) - part)
