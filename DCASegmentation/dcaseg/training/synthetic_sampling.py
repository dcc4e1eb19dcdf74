"""Patches of synthetic CTs that are made as they are drawn: no two steps see the same CT, and nothing is kept."""

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

# Recipes to look for one that shows the organ a patch is to be centered on.
_TRIES = 4
_CENTERS = 24


class RecipePatch(NamedTuple):
    """``hu`` float32 and ``labels`` uint8, both (depth, height, width), on the renderer's device; ``unannotated``: the
    labels that are background here wherever they are."""

    hu: Tensor
    labels: Tensor
    unannotated: tuple[int, ...]


@dataclass(frozen=True)
class CountedAnatomy:
    """How many voxels the organs of a label map have on ``grid``: a label map counts like one labeled case."""

    anatomy: Anatomy
    grid: GridOptions

    @property
    def name(self) -> str:
        """The label map's name."""
        return self.anatomy.name

    @property
    def unannotated(self) -> tuple[int, ...]:
        """The labels that the label map leaves out."""
        return self.anatomy.unannotated

    def voxel_counts(self, n_labels: int) -> np.ndarray:
        """Voxels of each label 0 to ``n_labels`` in the whole body, int64. Background is not counted."""
        counts = np.zeros(n_labels + 1)
        milliliters = float(np.prod(self.grid.spacing)) / 1000
        for label, volume in self.anatomy.volumes_ml.items():
            counts[label] = volume / milliliters
        return np.rint(counts).astype(np.int64)


class RecipeSampler:
    """A ``Sampler`` that draws patches as ``PatchSampler`` does, each from a synthetic CT of its own.

    With probability ``foreground_fraction`` a patch is centered near a voxel of an organ, every organ as likely as any
    other; otherwise it lies anywhere. A patch stays inside the scan where that is large enough; a shorter scan repeats
    its end slices, a narrower one is surrounded by air.

    Each patch depends on its seed alone (``render``), and seeds come from the generator that a draw is given, or else
    from the constructor's (``draw_seeds``), so that worker processes can render ahead without changing what is drawn.

    Raises UserError for a grid of fixed shape or a scaling by whole cases, which recipes cannot give.
    """

    def __init__(
        self,
        renderer: Renderer,
        options: TrainingOptions,
        generator: np.random.Generator | None = None,
    ) -> None:
        if options.grid.shape is not None or options.grid.scaling != "window":
            raise UserError(
                "CTs made while training have voxels of a fixed size and a fixed window of HU.",
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
        """What renders the recipes."""
        return self._renderer

    def draw(self, count: int, generator: np.random.Generator | None = None) -> Patches:
        """``count`` patches with labels, as tensors on the renderer's device."""
        patches = [self.render(seed) for seed in self.draw_seeds(count, generator)]
        low, high = self._options.grid.hu_window
        volumes: Any = torch.stack([patch.hu for patch in patches])[:, None]
        volumes = ((volumes - low) * (1.0 / (high - low))).clamp_(0.0, 1.0)
        labels: Any = torch.stack([patch.labels for patch in patches]).to(torch.int64)
        return Patches(volumes, labels, tuple(patch.unannotated for patch in patches))

    def draw_seeds(self, count: int, generator: np.random.Generator | None = None) -> list[int]:
        """The seeds of the next ``count`` patches."""
        generator = self._generator if generator is None else generator
        return [int(seed) for seed in generator.integers(2**62, size=count)]

    def render(self, seed: int) -> RecipePatch:
        """The patch of ``seed``."""
        random = np.random.default_rng([seed, 3])
        scene, center = self._choose(random)
        patch, shape = np.array(self._options.patch), np.array(scene.shape)
        start = np.clip(np.rint(center).astype(np.int64) - patch // 2, 0, np.maximum(shape - patch, 0))
        start = np.where(shape < patch, -((patch - shape) // 2), start)
        return RecipePatch(*scene.render_patch(start.tolist(), self._options.patch))

    @property
    def anatomies(self) -> list[CountedAnatomy]:
        """The label maps, to make the groups of organs from."""
        return [CountedAnatomy(anatomy, self._options.grid) for anatomy in self._anatomies]

    def _choose(self, random: np.random.Generator) -> tuple[Scene, np.ndarray]:
        if not self._labels or random.random() >= self._options.foreground_fraction:
            scene = self._scene(int(random.integers(len(self._anatomies))), random)
            return scene, random.uniform(0.0, np.array(scene.shape))
        label = self._labels[int(random.integers(len(self._labels)))]
        holders = self._holders[label]
        reach = np.array(self._options.patch) // 3
        for _ in range(_TRIES):
            scene = self._scene(holders[int(random.integers(len(holders)))], random)
            points = scene.anatomy.positions[label]
            chosen = points[random.integers(len(points), size=_CENTERS)]
            voxels = scene.voxels_of(chosen)
            shown = ((voxels >= 0) & (voxels < np.array(scene.shape))).all(axis=1)
            if shown.any():
                return scene, voxels[int(shown.argmax())] + random.integers(-reach, reach + 1)
        return scene, random.uniform(0.0, np.array(scene.shape))

    def _scene(self, index: int, random: np.random.Generator) -> Scene:
        anatomy = self._anatomies[index]
        return self._renderer.prepare(self._renderer.draw_recipe(int(random.integers(2**31)), [anatomy.name]))
