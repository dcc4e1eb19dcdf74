"""Renders synthetic CTs from recipes: a whole case, or any block of its voxels separately.

Every value depends only on the recipe and the position of the voxel. A block is therefore the same whether it is
rendered separately or cropped from the case (bit for bit on the same kind of processor). Voxel values are averages over
the voxel, as in a CT that was resampled with anti-aliasing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import SimpleITK as sitk
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import UserError
from ...imaging.grid import Grid
from ...organs import AMOS
from ..phantom.scan import orientation_matrix
from .anatomy import Anatomy
from .geometry import DeviceAnatomy, Geometry, Nodes, Warp
from .noise import sample_normal, sample_smooth_noise
from .recipe import Arm, Recipe
from .recipe_generator import ScanRange, draw_recipe
from .tissues import INDEX, LUMENS, N_SHELLS, SHELL_MM, SHELLS, STRETCHES, TISSUES

_AIR = -1000.0
_OUTSIDE = -1024.0
# Sample points of a voxel relative to its sides (x, y, z), evenly distributed. Its value is the mean over them.
_SAMPLES = tuple(
    ((0.5 + 0.8191725134 * n) % 1.0 - 0.5, (0.5 + 0.6710436067 * n) % 1.0 - 0.5, (n + 0.5) / 8 - 0.5) for n in range(8)
)
# Number of fractional bits of positions in label maps, which are fixed-point numbers.
_BITS = 10
# Tissues in which cysts and metastases are common.
_HOSTS = ("liver", "right_renal_cortex", "left_renal_cortex", "right_renal_medulla", "left_renal_medulla", "spleen")
# Number of attempts to draw a blended body before the anatomy is used without blending, and the allowed volumes of its
# organs, relative to the ends of the usual range for adults.
_ATTEMPTS = 4
_MIN_VOLUME, _MAX_VOLUME = 0.6, 1.5
# Whole cases are rendered in blocks of this size (voxels) to limit memory.
_BLOCK = 64
_WORLD = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
# Seeds of independent random fields.
_GRAIN, _CLOUD, _VESSELS, _LESIONS, _NOISE = 11, 23, 37, 53, 71


class SyntheticCT(NamedTuple):
    """A rendered block or case on the renderer's device.

    ``hu`` (float32) and ``labels`` (uint8, AMOS) are (depth, height, width). ``unannotated`` holds the labels that the
    anatomy does not contain; they may be present where ``labels`` is background.
    """

    hu: Tensor
    labels: Tensor
    unannotated: tuple[int, ...]


@dataclass(frozen=True)
class _Axes:
    """The world axis (0: x, 1: y, 2: z) of each array axis, and its sign."""

    world: tuple[int, int, int]
    sign: tuple[int, int, int]

    @classmethod
    def from_orientation(cls, orientation: str) -> _Axes:
        """The axes of an array (z, y, x) with an ``orientation`` such as RAS. Raises ValueError for other letters."""
        try:
            found = [_WORLD[letter] for letter in orientation.upper()][::-1]
        except KeyError:
            found = []
        if sorted(axis for axis, _ in found) != [0, 1, 2]:
            raise ValueError(f"orientation must have one letter each of R/L, A/P and S/I, not {orientation!r}")
        return cls((found[0][0], found[1][0], found[2][0]), (found[0][1], found[1][1], found[2][1]))


class Renderer:
    """Renders recipes of the given anatomies on a grid.

    ``spacing`` (of the image's index axes i, j, k, in mm) and ``orientation`` (three letters) are those of a model
    grid. ``warps[a][b]`` leads from anatomy a toward b. Warps toward anatomies that are not given are ignored, so that
    a test person cannot leak into the others. The maps of the anatomies are kept on ``device``, one byte per voxel.

    Raises ValueError for an invalid spacing or orientation, and UserError for two anatomies with the same name.
    """

    def __init__(
        self,
        anatomies: Sequence[Anatomy],
        spacing: tuple[float, float, float],
        orientation: str = "RAS",
        device: str | torch.device = "cpu",
        warps: Mapping[str, Mapping[str, Warp]] | None = None,
    ) -> None:
        if min(spacing) <= 0:
            raise ValueError(f"the spacing {spacing} mm is not positive")
        names = [anatomy.name for anatomy in anatomies]
        if duplicate := next((name for name in names if names.count(name) > 1), None):
            raise UserError(
                f"Two label maps have the name {duplicate}.",
                "Rename one of the folders, since recipes identify label maps by name.",
            )
        self.device = torch.device(device)
        self.anatomies = {anatomy.name: anatomy for anatomy in anatomies}
        self.warps = {
            name: {other: warp for other, warp in (warps or {}).get(name, {}).items() if other in self.anatomies}
            for name in self.anatomies
        }
        self.axes = _Axes.from_orientation(orientation)
        steps = [0.0, 0.0, 0.0]
        for axis, step in zip(self.axes.world, spacing[::-1], strict=True):
            steps[axis] = float(step)
        # Along the world's x, y and z.
        self.steps = (steps[0], steps[1], steps[2])
        self._checked: tuple[Recipe | None, Geometry | None] = (None, None)
        self._resident = {
            name: DeviceAnatomy(anatomy, self.warps.get(name, {}), self.device)
            for name, anatomy in self.anatomies.items()
        }

    def prepare(self, recipe: Recipe) -> Scene:
        """The scene of ``recipe``, any part of which can be rendered.

        Raises UserError if its anatomy is not given, or not registered to those it is blended with.
        """
        resident = self._resident.get(recipe.anatomy)
        if resident is None:
            raise UserError(
                f"The recipe needs the label map {recipe.anatomy}, which is not given.",
                f"Specify its folder, too. The given label maps are: {', '.join(self.anatomies)}.",
            )
        if missing := sorted(set(recipe.deformation.blend) - set(resident.warps)):
            raise UserError(
                f"The recipe blends {recipe.anatomy} with {missing[0]}, which is not given or not registered.",
                "Specify both label maps, and their registrations from dca register-label-maps.",
            )
        checked, geometry = self._checked
        if recipe is not checked or geometry is None:
            geometry = Geometry(resident, recipe.deformation, recipe.seed)
        return Scene(self, recipe, resident, geometry)

    def draw_recipe(
        self,
        seed: int,
        anatomies: Collection[str] | None = None,
        phase: str | None = None,
        scan_range: ScanRange | None = None,
    ) -> Recipe:
        """Draw the recipe of ``seed`` from one of ``anatomies`` (names; None: all).

        ``phase`` and ``scan_range`` are as in ``recipe_generator.draw_recipe``. Bodies whose organs would fold or have
        implausible volumes are drawn again.
        """
        chosen = [anatomy for name, anatomy in self.anatomies.items() if anatomies is None or name in anatomies]
        partners = {name: list(to) for name, to in self.warps.items()}
        for attempt in range(_ATTEMPTS):
            recipe = draw_recipe(seed, chosen, phase, partners, scan_range, attempt)
            if not recipe.deformation.blend or self._is_plausible(recipe):
                return recipe
        # The anatomy without blending; its size, shape and organs still vary.
        return replace(recipe, deformation=replace(recipe.deformation, blend={}))

    def _is_plausible(self, recipe: Recipe) -> bool:
        anatomy, deformation = self.anatomies[recipe.anatomy], recipe.deformation
        geometry = Geometry(self._resident[recipe.anatomy], deformation, recipe.seed)
        # The geometry is kept, since most recipes are rendered after they are drawn.
        self._checked = (recipe, geometry)
        for label, volume in geometry.estimate_volumes_ml().items():
            low, high = AMOS.by_label[label].volume_ml
            # An organ that is already small or large in the label map may stay so.
            original = anatomy.volumes_ml[label]
            if not min(_MIN_VOLUME * low, 0.8 * original) <= volume <= max(_MAX_VOLUME * high, 1.25 * original):
                return False
        return True

    def render_patch(self, recipe: Recipe, start: Sequence[int], shape: Sequence[int]) -> SyntheticCT:
        """Render the block with ``shape`` (depth, height, width) that starts at voxel ``start`` of the case.

        A block may extend beyond the scan. Above and below, the end slices are repeated; beside the scan there is air.
        """
        return self.prepare(recipe).render_patch(start, shape)

    def render_case(self, recipe: Recipe) -> SyntheticCT:
        """Render all voxels of the case."""
        return self.prepare(recipe).render_case()


class Scene:
    """A recipe on the grid of a renderer. ``shape`` is the size of the whole case (depth, height, width) in voxels."""

    def __init__(self, renderer: Renderer, recipe: Recipe, resident: DeviceAnatomy, geometry: Geometry) -> None:
        self.recipe, self.anatomy = recipe, resident.anatomy
        self._renderer, self._tissues = renderer, resident.tissues
        self._device = renderer.device
        self._steps = renderer.steps
        view = recipe.field_of_view
        # Voxels along the world's x, y, z.
        self._size = [max(1, round(extent / step)) for extent, step in zip(view.extent, self._steps, strict=True)]
        self.shape = tuple(self._size[axis] for axis in renderer.axes.world)
        self.geometry = geometry
        self._low = np.array(view.start)
        self._lookup = _Lookup(self)

    @property
    def unannotated(self) -> tuple[int, ...]:
        """The labels of AMOS that the anatomy does not contain."""
        return self.anatomy.unannotated

    def compute_voxel_indices(self, points: NDArray[np.float32]) -> NDArray[np.float64]:
        """Voxel indices (n, 3; depth, height, width) of ``points`` (n, 3; x, y, z in mm) of the label map."""
        body = self.geometry.find(points)
        index = (body - self._low) / np.array(self._steps)
        axes = self._renderer.axes
        columns = [
            index[:, axis] if sign > 0 else self._size[axis] - 1 - index[:, axis]
            for axis, sign in zip(axes.world, axes.sign, strict=True)
        ]
        return np.stack(columns, axis=1)

    def render_case(self) -> SyntheticCT:
        """Render all voxels of the case."""
        depth, height, width = self.shape
        hu = torch.empty(self.shape, dtype=torch.float32, device=self._device)
        labels = torch.empty(self.shape, dtype=torch.uint8, device=self._device)
        for k in range(0, depth, _BLOCK):
            for j in range(0, height, _BLOCK):
                for i in range(0, width, _BLOCK):
                    ends = (min(k + _BLOCK, depth), min(j + _BLOCK, height), min(i + _BLOCK, width))
                    where = (slice(k, ends[0]), slice(j, ends[1]), slice(i, ends[2]))
                    part = self.render_patch((k, j, i), (ends[0] - k, ends[1] - j, ends[2] - i))
                    hu[where], labels[where] = part.hu, part.labels
        return SyntheticCT(hu, labels, self.unannotated)

    def render_patch(self, start: Sequence[int], shape: Sequence[int]) -> SyntheticCT:
        """See ``Renderer.render_patch``."""
        axes = self._renderer.axes
        ranges: list[NDArray[np.int64]] = [np.empty(0, np.int64)] * 3
        for begin, count, axis, sign in zip(start, shape, axes.world, axes.sign, strict=True):
            index = np.arange(begin, begin + count)
            ranges[axis] = index if sign > 0 else self._size[axis] - 1 - index[::-1]
        hu, labels = self._render(*ranges)
        # From world axes (z, y, x) to array axes.
        order = [2 - axis for axis in axes.world]
        flips = [dimension for dimension, sign in enumerate(axes.sign) if sign < 0]
        hu, labels = hu.permute(order), labels.permute(order)
        if flips:
            hu, labels = hu.flip(flips), labels.flip(flips)
        return SyntheticCT(hu.contiguous(), labels.contiguous(), self.unannotated)

    def _render(self, x: NDArray[np.int64], y: NDArray[np.int64], z: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """HU and labels (z, y, x) of the voxels with these consecutive indices along the world axes."""
        inside = [(index >= 0) & (index < size) for index, size in zip((x, y), self._size, strict=False)]
        shape = (len(z), len(y), len(x))
        if not inside[0].any() or not inside[1].any():
            return (
                torch.full(shape, _OUTSIDE, dtype=torch.float32, device=self._device),
                torch.zeros(shape, dtype=torch.uint8, device=self._device),
            )
        held = np.clip(z, 0, self._size[2] - 1)
        planes = np.arange(held[0], held[-1] + 1)
        scanned = [index[where] for index, where in zip((x, y), inside, strict=True)]
        hu, labels = self._scan(scanned[0], scanned[1], planes)
        if len(planes) != len(z):
            repeated = torch.from_numpy(held - planes[0]).to(self._device)
            hu, labels = hu.index_select(0, repeated), labels.index_select(0, repeated)
        if all(where.all() for where in inside):
            return hu, labels
        whole = torch.full(shape, _OUTSIDE, dtype=torch.float32, device=self._device)
        known = torch.zeros(shape, dtype=torch.uint8, device=self._device)
        first_x, first_y = int(inside[0].argmax()), int(inside[1].argmax())
        where = (slice(None), slice(first_y, first_y + hu.shape[1]), slice(first_x, first_x + hu.shape[2]))
        whole[where], known[where] = hu, labels
        return whole, known

    def _scan(self, x: NDArray[np.int64], y: NDArray[np.int64], z: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        scanner, step_z = self.recipe.scanner, self._steps[2]
        # One extra voxel on each side, for the kernel.
        wide_x, wide_y = np.arange(x[0] - 1, x[-1] + 2), np.arange(y[0] - 1, y[-1] + 2)
        at_x, at_y, at_z = (
            low + step * index.astype(np.float64)
            for low, step, index in zip(self._low, self._steps, (wide_x, wide_y, z), strict=True)
        )
        thick = scanner.slice_mm > step_z
        if thick:
            position = z * step_z / scanner.slice_mm
            below = np.floor(position).astype(np.int64)
            slices = np.arange(below[0], below[-1] + 2)
            slice_z = self._low[2] + slices * scanner.slice_mm
        else:
            slices, slice_z = z, at_z
        thickness = max(scanner.slice_mm, step_z)
        nodes = self.geometry.compute_nodes(
            np.array([min(slice_z[0], at_z[0]), max(slice_z[-1], at_z[-1])]), at_y, at_x
        )
        hu, tissues = self._render_body(nodes, slice_z, at_y, at_x, thickness)
        labels = self._lookup.labels.index_select(0, tissues.reshape(-1)).view(tissues.shape)
        if thick:
            centers = self._sample_codes(self._compute_positions(nodes, at_z, at_y[1:-1], at_x[1:-1]), (0.0, 0.0, 0.0))
            labels = self._lookup.labels.index_select(0, centers.reshape(-1)).view(centers.shape)
        else:
            labels = labels[:, 1:-1, 1:-1]
        hu = self._apply_kernel(hu)
        hu += self._generate_noise(slices, y, x, thickness)
        if thick:
            index = torch.from_numpy(below - slices[0]).to(self._device)
            t = torch.from_numpy((position - below).astype(np.float32)).to(self._device)[:, None, None]
            before, after = hu.index_select(0, index), hu.index_select(0, index + 1)
            hu = before + (after - before) * t
        radius = self.recipe.field_of_view.radius_mm
        if radius is not None:
            middle = self.recipe.field_of_view.middle
            away = (at_y[1:-1, None] - middle[1]) ** 2 + (at_x[None, 1:-1] - middle[0]) ** 2 > radius**2
            beyond = torch.from_numpy(away).to(self._device)
            hu.masked_fill_(beyond, _OUTSIDE)
            labels = labels.masked_fill(beyond, 0)
        return hu.clamp_(-1024.0, 3071.0).round_(), labels

    def _compute_positions(
        self,
        nodes: Nodes,
        z: NDArray[np.float64],
        y: NDArray[np.float64],
        x: NDArray[np.float64],
        margin: Sequence[float] = (0.0, 0.0, 0.0),
    ) -> Tensor:
        """Fixed-point positions (3, z, y, x) in voxels of the label map, kept at least ``margin`` voxels inside it."""
        places = self.geometry.interpolate_positions(nodes, z, y, x)
        for axis, (step, size) in enumerate(zip(self.anatomy.spacing, self.anatomy.tissues.shape[::-1], strict=True)):
            places[axis] *= (1 << _BITS) / step
            places[axis].clamp_(margin[axis] * (1 << _BITS), (size - 1.0 - margin[axis]) * (1 << _BITS))
        return places.to(torch.int32)

    def _sample_codes(self, places: Tensor, offset: Sequence[float]) -> Tensor:
        """Codes at fixed-point ``places`` shifted by ``offset`` (x, y, z in voxels)."""
        _, height, width = self.anatomy.tissues.shape
        x, y, z = (round((shift + 0.5) * (1 << _BITS)) for shift in offset)
        index = (places[2] + z) >> _BITS
        index *= height
        index += (places[1] + y) >> _BITS
        index *= width
        index += (places[0] + x) >> _BITS
        return self._tissues.index_select(0, index.view(-1)).to(torch.int32).view(index.shape)

    def _render_body(
        self,
        nodes: Nodes,
        z: NDArray[np.float64],
        y: NDArray[np.float64],
        x: NDArray[np.float64],
        thickness: float,
    ) -> tuple[Tensor, Tensor]:
        """HU of slices of the body and its surroundings, and the tissue codes at the voxel centers."""
        box = np.array([self._steps[0], self._steps[1], thickness])
        # To voxels of the label map, without the deformation, which hardly varies within a voxel.
        to_map = self.geometry.matrix / np.array(self.anatomy.spacing)[:, None]
        offsets = (np.array(_SAMPLES) * box) @ to_map.T
        places = self._compute_positions(nodes, z, y, x, np.abs(offsets).max(axis=0) + 0.01)
        tissues = self._sample_codes(places, (0.0, 0.0, 0.0))
        table = self._lookup.build_hu_table(y, self._steps[1])
        rows = torch.arange(0, 256 * len(y), 256, dtype=torch.int32, device=self._device)[None, :, None]
        hu = torch.zeros(tissues.shape, dtype=torch.float32, device=self._device)
        for offset in offsets:
            codes = self._sample_codes(places, offset.tolist())
            codes += rows
            hu += table.index_select(0, codes.view(-1)).view(hu.shape)
        hu *= 1.0 / len(offsets)
        self._add_texture(hu, tissues, z, y, x)
        hu *= self.recipe.scanner.gain
        hu += self.recipe.scanner.offset_hu
        self._add_surroundings(hu, z, y, x)
        return hu, tissues

    def _add_texture(
        self, hu: Tensor, tissues: Tensor, z: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]
    ) -> None:
        """Add the variation of the tissues, small vessels and lesions."""
        look, seed, device, axes = self._lookup, self.recipe.seed, self._device, (z, y, x)
        flat = tissues.view(-1)

        def gather(values: Tensor) -> Tensor:
            return values.index_select(0, flat).view(hu.shape)

        varied = sample_smooth_noise(seed + _GRAIN, axes, 7.0, device)[0] * 0.75
        varied += sample_smooth_noise(seed + _CLOUD, axes, 30.0, device)[0] * 0.6
        varied *= gather(look.texture)
        # Gas and voxels outside the body have no texture, whatever the tissue at the voxel's center is.
        solid = hu > -930.0
        hu += varied * solid
        first, second = sample_smooth_noise(seed + _VESSELS, axes, 18.0, device, channels=2)
        # Vessels are where two independent fields are both near zero; thicker in tissues with more vessels.
        line = (first * first + second * second).sqrt_()
        within = (1.6 - line * gather(look.inverse_vessels)).clamp_(0.0, 1.0) * solid
        hu += within * (gather(look.vessel_hu) - hu)
        lesions = self.recipe.appearance.lesions
        if lesions is not None:
            weight = (sample_smooth_noise(seed + _LESIONS, axes, lesions.size_mm, device)[0] - lesions.threshold) * 4.0
            weight = weight.clamp_(0.0, 1.0) * gather(look.hosts)
            hu += weight * (lesions.hu - hu)

    def _add_surroundings(
        self, hu: Tensor, z: NDArray[np.float64], y: NDArray[np.float64], x: NDArray[np.float64]
    ) -> None:
        """Add table and arms where there is air."""
        recipe = self.recipe
        if recipe.table is None and not recipe.arms:
            return
        free = hu < -850.0
        if recipe.table is not None:
            added = torch.from_numpy(self._lookup.compute_table_hu(y, x, self._steps)).to(self._device)
            hu += free * added
        for arm in recipe.arms:
            for k, level in enumerate(z):
                arm_hu = self._lookup.compute_arm_hu(arm, float(level), y, x)
                if arm_hu is not None:
                    plane = torch.from_numpy(arm_hu).to(self._device)
                    hu[k] = torch.where(free[k] & (plane > -5000.0), plane, hu[k])

    def _apply_kernel(self, hu: Tensor) -> Tensor:
        """The scan, blurred or sharpened in the plane, without its border of one voxel."""
        share = self.recipe.scanner.blur
        for dimension in (1, 2):
            count = hu.shape[dimension]
            middle = hu.narrow(dimension, 1, count - 2)
            if share:
                sides = hu.narrow(dimension, 0, count - 2) + hu.narrow(dimension, 2, count - 2)
                hu = middle * (1.0 - share) + sides * (share / 2)
            else:
                hu = middle
        return hu

    def _generate_noise(
        self, z: NDArray[np.int64], y: NDArray[np.int64], x: NDArray[np.int64], thickness: float
    ) -> Tensor:
        scanner, seed = self.recipe.scanner, self.recipe.seed + _NOISE
        volume = self._steps[0] * self._steps[1] * thickness
        # Noise is correlated, so averaging over n voxels reduces it by less than the square root of n.
        sd = scanner.noise_hu * (27.0 / volume) ** 0.35
        share = min(max(scanner.correlated, 0.0), 1.0)
        noise = sample_normal(seed, (z, y, x), self._device) * (sd * (1.0 - share) ** 0.5)
        if share:
            axes = (z.astype(np.float64) * 1.7, y.astype(np.float64), x.astype(np.float64))
            noise += sample_smooth_noise(seed + 1, axes, 1.7, self._device)[0] * (sd * share**0.5)
        return noise


class _Lookup:
    """Lookup tables of a scene by tissue code."""

    def __init__(self, scene: Scene) -> None:
        recipe, anatomy, device = scene.recipe, scene.anatomy, scene.geometry.device
        looks = recipe.appearance
        self._recipe, self._anatomy = recipe, anatomy
        hu, texture = np.full(256, _AIR, np.float32), np.zeros(256, np.float32)
        vessels, vessel_hu = np.zeros(256, np.float32), np.full(256, looks.vessel_hu.get("", 0.0), np.float32)
        labels, hosts = np.zeros(256, np.uint8), np.zeros(256, np.float32)
        for index, tissue in enumerate(TISSUES):
            # A removed organ looks like fat.
            is_removed = tissue.organ in recipe.missing and bool(tissue.organ)
            name = "visceral_fat" if is_removed else tissue.name
            hu[index] = looks.hu.get(name, _AIR)
            texture[index] = looks.texture.get(name, 0.0)
            vessels[index] = looks.vessels.get(name, 0.0)
            vessel_hu[index] = looks.vessel_hu.get(name, vessel_hu[index])
            labels[index] = 0 if is_removed else tissue.label
            hosts[index] = tissue.name in _HOSTS and not is_removed
        hu[0] = looks.hu.get("outside", _AIR)
        for k in range(N_SHELLS):
            depth, index = (k + 0.5) * SHELL_MM, SHELLS + k
            if depth < looks.muscle_mm:
                hu[index], texture[index] = looks.hu["psoas"], 14.0
            elif depth < looks.muscle_mm + looks.fat_mm:
                hu[index], texture[index], vessels[index] = looks.hu["visceral_fat"], 5.0, 0.25
            elif depth < looks.muscle_mm + looks.fat_mm + 2.2:
                hu[index], texture[index] = looks.hu["skin"], 4.0
        # Code, fluid level (y in mm) and HU above the level.
        self._layered: list[tuple[int, float, float]] = []
        up = -1.0 if recipe.prone else 1.0
        centers = np.array([stretch.center for stretch in anatomy.stretches]).reshape(-1, 3)
        found = scene.geometry.find(centers) if len(centers) else centers
        for stretch, center in zip(anatomy.stretches, found, strict=True):
            index = INDEX[stretch.lumen]
            code = stretch.code
            for table in (texture, vessels, vessel_hu, labels, hosts):
                table[code] = table[index]
            hu[code] = hu[index]
            filling = looks.fillings.get(stretch.lumen)
            if filling is None or (TISSUES[index].organ and TISSUES[index].organ in recipe.missing):
                continue
            number = (code - _FIRST_STRETCH[stretch.lumen]) % max(len(filling.content), 1)
            hu[code] = filling.content[number]
            level = filling.level[number]
            if level <= 1.0:
                height = stretch.height * recipe.deformation.scale[1]
                self._layered.append((code, float(center[1] + up * (level - 0.5) * height), filling.above[number]))
        if looks.effusion is not None and "lung" in anatomy.levels:
            # The fluid is below the lung tissue.
            low, high = ((corner - anatomy.center) * np.array(recipe.deformation.scale) for corner in anatomy.trunk)
            share = looks.effusion if up > 0 else 1.0 - looks.effusion
            self._layered.append((INDEX["lung"], float(low[1] + share * (high[1] - low[1])), float(hu[INDEX["lung"]])))
            hu[INDEX["lung"]] = 12.0
        self._up = up
        self._hu = hu
        self._device = device
        inverse = np.where(vessels > 0, 1.0 / (0.27 * np.maximum(vessels, 0.05)), 1e4)
        self.texture, self.vessel_hu, self.hosts = (
            torch.from_numpy(array).to(device) for array in (texture, vessel_hu, hosts)
        )
        self.inverse_vessels = torch.from_numpy(inverse.astype(np.float32)).to(device)
        self.labels = torch.from_numpy(labels).to(device)

    def build_hu_table(self, y: NDArray[np.float64], step: float) -> Tensor:
        """HU by row and code, flattened. Fluid levels are planes with constant y in organs of any shape."""
        table = np.repeat(self._hu[None], len(y), axis=0)
        for code, level, above in self._layered:
            share = np.clip(self._up * (y - level) / step + 0.5, 0.0, 1.0).astype(np.float32)
            table[:, code] += share * (np.float32(above) - table[:, code])
        return torch.from_numpy(table.reshape(-1)).to(self._device)

    def compute_table_hu(
        self, y: NDArray[np.float64], x: NDArray[np.float64], steps: tuple[float, float, float]
    ) -> NDArray[np.float32]:
        """The HU (y, x) that the table adds to air."""
        table, deformation = self._recipe.table, self._recipe.deformation
        assert table is not None
        looks = self._recipe.appearance
        low, high = ((corner - self._anatomy.center) * np.array(deformation.scale) for corner in self._anatomy.trunk)
        layers = (looks.muscle_mm + looks.fat_mm) * deformation.scale[1]
        side = high[1] + layers + table.gap_mm if self._recipe.prone else low[1] - layers - table.gap_mm
        down = 1.0 if self._recipe.prone else -1.0
        distance = np.hypot(x[None], y[:, None] - (side - down * table.radius_mm)) - table.radius_mm
        soft = 0.5 * (steps[0] + steps[1])

        def layer(begin: float, end: float) -> NDArray[np.float64]:
            """Fraction of a voxel between two distances."""
            return np.clip((distance - begin) / soft + 0.5, 0, 1) * np.clip((end - distance) / soft + 0.5, 0, 1)

        inner = max(table.thickness_mm, 5.5)
        skin = layer(0.0, 2.5) + layer(inner, inner + 2.5)
        core = layer(2.5, inner)
        return (skin * (table.skin_hu - _AIR) + core * (table.core_hu - _AIR)).astype(np.float32)

    def compute_arm_hu(
        self, arm: Arm, level: float, y: NDArray[np.float64], x: NDArray[np.float64]
    ) -> NDArray[np.float32] | None:
        """HU (y, x) of the arm in the plane z = ``level``, below -5000 outside it; None if it is not visible."""
        center_x, center_y = arm.center[0] + arm.lean[0] * level, arm.center[1] + arm.lean[1] * level
        reach = 45.0 * arm.thickness
        if not (x[0] - reach < center_x < x[-1] + reach and y[0] - reach < center_y < y[-1] + reach):
            return None
        dx, dy = x[None] - center_x, y[:, None] - center_y
        radius = np.hypot(dx / arm.thickness, dy / (1.1 * arm.thickness))
        apart = 13.0 if arm.two_bones else 0.0
        near = np.minimum(np.hypot(dx - apart, dy), np.hypot(dx + apart, dy - apart / 3))
        shaft = 7.0 if arm.two_bones else 10.0
        looks = self._recipe.appearance.hu
        layers = [looks["cancellous_bone"], looks["cortical_bone"], looks["psoas"], looks["visceral_fat"]]
        arm_hu = np.select([near < 0.55 * shaft, near < shaft, radius < 30.0, radius < 38.0], layers, -1e4)
        return arm_hu.astype(np.float32)


def make_image(array: NDArray[Any], spacing: tuple[float, float, float], orientation: str = "RAS") -> sitk.Image:
    """HU or labels (depth, height, width) of a rendered case as an image with its first voxel at 0 mm.

    ``spacing`` (i, j, k) in mm and ``orientation`` are those of the renderer.
    """
    axes = orientation_matrix(orientation)
    size = (array.shape[2], array.shape[1], array.shape[0])
    return Grid(size, spacing, (0.0, 0.0, 0.0), tuple(axes.ravel().tolist())).make_image(array)


def _compute_first_codes() -> dict[str, int]:
    codes, code = {}, STRETCHES
    for lumen, count in LUMENS.items():
        codes[lumen] = code
        code += count
    return codes


_FIRST_STRETCH = _compute_first_codes()
