"""Draws patches of synthetic CTs that are rendered on demand: every patch is new, and nothing is stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..synthesis.label_to_ct.anatomy import Anatomy
from ..synthesis.label_to_ct.renderer import Renderer, Scene
from .options import GridOptions, TrainingOptions
from .sampling import Patches

# The number of recipes to try until one shows the organ on which a patch should be centered.
_TRIES = 4
_CENTERS = 24


class RecipePatch(NamedTuple):
    """A rendered patch: ``hu`` (float32) and ``labels`` (uint8), both (depth, height, width) on the renderer's device.

    ``unannotated`` are labels that the label map does not include, so these organs appear as background.
    """

    hu: Tensor
    labels: Tensor
    unannotated: tuple[int, ...]


@dataclass(frozen=True)
class CountedAnatomy:
    """The voxel counts of a label map's organs on ``grid``. A label map counts like one labeled case."""

    anatomy: Anatomy
    grid: GridOptions

    @property
    def name(self) -> str:
        """The label map's name."""
        return self.anatomy.name

    @property
    def unannotated(self) -> tuple[int, ...]:
        """The labels that the label map does not include."""
        return self.anatomy.unannotated

    def count_voxels(self, n_labels: int) -> np.ndarray:
        """The number of voxels of each label 0 to ``n_labels`` in the whole body, int64; 0 for the background."""
        counts = np.zeros(n_labels + 1)
        milliliters = float(np.prod(self.grid.spacing)) / 1000
        for label, volume in self.anatomy.volumes_ml.items():
            counts[label] = volume / milliliters
        return np.rint(counts).astype(np.int64)


class RecipeSampler:
    """A ``Sampler`` that draws patches as ``PatchSampler`` does, each from a new synthetic CT.

    With probability ``foreground_fraction``, a patch is centered near a voxel of an organ; all organs are equally
    likely. Otherwise its position is random. A patch stays inside the scan if the scan is large enough. A shorter scan
    is padded with its end slices, a narrower one with air.

    A patch depends only on its seed (``render``), and seeds come from the generator of the draw or, by default, of the
    constructor (``draw_seeds``). Worker processes can therefore render ahead without changing what is drawn.

    Raises UserError for a grid of fixed shape or z-scores, which cannot be rendered patch by patch.
    """

    def __init__(
        self,
        renderer: Renderer,
        options: TrainingOptions,
        generator: np.random.Generator | None = None,
    ) -> None:
        if options.grid.shape is not None or options.grid.scaling != "window":
            raise UserError(
                "Synthetic CTs rendered during training need a spacing in mm and a window in HU.",
                "Choose another --preprocessing, or train on CTs from files.",
            )
        self._renderer, self._options = renderer, options
        self._generator = generator if generator is not None else np.random.default_rng()
        self._anatomies = list(renderer.anatomies.values())
        holders: dict[int, list[int]] = {}
        for index, anatomy in enumerate(self._anatomies):
            for label in anatomy.positions:
                holders.setdefault(label, []).append(index)
        self._holders = holders
        self._labels = sorted(holders)

    @property
    def renderer(self) -> Renderer:
        """The renderer of the recipes."""
        return self._renderer

    def draw(self, count: int, generator: np.random.Generator | None = None) -> Patches:
        """Draw ``count`` labeled patches, as tensors on the renderer's device."""
        patches = [self.render(seed) for seed in self.draw_seeds(count, generator)]
        low, high = self._options.grid.hu_window
        volumes: Any = torch.stack([patch.hu for patch in patches])[:, None]
        volumes = ((volumes - low) * (1.0 / (high - low))).clamp_(0.0, 1.0)
        labels: Any = torch.stack([patch.labels for patch in patches]).to(torch.int64)
        return Patches(volumes, labels, tuple(patch.unannotated for patch in patches))

    def draw_seeds(self, count: int, generator: np.random.Generator | None = None) -> list[int]:
        """Draw the seeds of the next ``count`` patches."""
        generator = self._generator if generator is None else generator
        return [int(seed) for seed in generator.integers(2**62, size=count)]

    def render(self, seed: int) -> RecipePatch:
        """Render the patch of ``seed``."""
        random = np.random.default_rng([seed, 3])
        scene, center = self._choose(random)
        patch, shape = np.array(self._options.patch), np.array(scene.shape)
        start = np.clip(np.rint(center).astype(np.int64) - patch // 2, 0, np.maximum(shape - patch, 0))
        start = np.where(shape < patch, -((patch - shape) // 2), start)
        return RecipePatch(*scene.render_patch(start.tolist(), self._options.patch))

    @property
    def anatomies(self) -> list[CountedAnatomy]:
        """The voxel counts of the label maps, from which the groups of organs are derived."""
        return [CountedAnatomy(anatomy, self._options.grid) for anatomy in self._anatomies]

    def _choose(self, random: np.random.Generator) -> tuple[Scene, np.ndarray]:
        if not self._labels or random.random() >= self._options.foreground_fraction:
            scene = self._prepare_scene(int(random.integers(len(self._anatomies))), random)
            return scene, random.uniform(0.0, np.array(scene.shape))
        label = self._labels[int(random.integers(len(self._labels)))]
        holders = self._holders[label]
        reach = np.array(self._options.patch) // 3
        for _ in range(_TRIES):
            scene = self._prepare_scene(holders[int(random.integers(len(holders)))], random)
            points = scene.anatomy.positions[label]
            chosen = points[random.integers(len(points), size=_CENTERS)]
            voxels = scene.compute_voxel_indices(chosen)
            visible = ((voxels >= 0) & (voxels < np.array(scene.shape))).all(axis=1)
            if visible.any():
                return scene, voxels[int(visible.argmax())] + random.integers(-reach, reach + 1)
        return scene, random.uniform(0.0, np.array(scene.shape))

    def _prepare_scene(self, index: int, random: np.random.Generator) -> Scene:
        anatomy = self._anatomies[index]
        return self._renderer.prepare(self._renderer.draw_recipe(int(random.integers(2**31)), [anatomy.name]))
