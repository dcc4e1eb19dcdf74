"""Which patches the network sees: small organs as often as large ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .cases import Case
from .options import TrainingOptions


class Patches(NamedTuple):
    """Patches of one step.

    ``volumes`` are float32 (count, 1, depth, height, width), in 0..1 for a window, ``labels`` int64 (count, depth,
    height, width) or None, ``unknown`` the labels that each patch's label map does not tell of, ``ignored`` booleans
    like ``labels`` (no label there), or None where no case has such voxels.
    """

    volumes: np.ndarray
    labels: np.ndarray | None
    unknown: tuple[tuple[int, ...], ...]
    ignored: np.ndarray | None = None


class PatchSampler:
    """Draws patches from cases held in memory.

    With probability ``organ_centered`` a patch of a labelled case is centered near a voxel of an organ, every organ
    as likely as any other; otherwise it lies anywhere. Patches stay inside the volume, as the sliding window's do.
    """

    def __init__(self, cases: Sequence[Case], options: TrainingOptions, generator: np.random.Generator) -> None:
        if not cases:
            raise ValueError("a sampler needs at least one case")
        self._cases = list(cases)
        self._options = options
        self._generator = generator
        holders: dict[int, list[int]] = {}
        for index, case in enumerate(self._cases):
            for label in case.positions:
                holders.setdefault(label, []).append(index)
        self._holders = holders
        self._labels = sorted(holders)
        self._some_ignored = any(case.ignored is not None for case in self._cases)

    def draw(self, count: int) -> Patches:
        """``count`` patches, with labels if the cases have some."""
        volumes: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        unknown: list[tuple[int, ...]] = []
        ignored: list[np.ndarray] = []
        for _ in range(count):
            case, center = self._choose()
            volumes.append(case.scaled(self._cut(case.hu, center, fill=-1000), self._options.grid))
            if case.labels is not None:
                labels.append(self._cut(case.labels, center, fill=0).astype(np.int64))
            unknown.append(case.unknown)
            if self._some_ignored:
                whole = np.zeros(case.hu.shape, bool) if case.ignored is None else case.ignored
                ignored.append(self._cut(whole, center, fill=case.ignored is not None))
        return Patches(
            np.stack(volumes)[:, None], np.stack(labels) if labels else None, tuple(unknown),
            np.stack(ignored) if ignored else None,
        )  # fmt: skip

    def _choose(self) -> tuple[Case, np.ndarray]:
        generator = self._generator
        if self._labels and generator.random() < self._options.organ_centered:
            label = self._labels[generator.integers(len(self._labels))]
            holders = self._holders[label]
            case = self._cases[holders[generator.integers(len(holders))]]
            positions = case.positions[label]
            reach = np.asarray(self._options.patch) // 3
            return case, positions[generator.integers(len(positions))] + generator.integers(-reach, reach + 1)
        case = self._cases[generator.integers(len(self._cases))]
        return case, np.array([generator.integers(size) for size in case.hu.shape])

    def _cut(self, array: np.ndarray, center: np.ndarray, fill: int) -> np.ndarray:
        patch = np.asarray(self._options.patch)
        shape = np.asarray(array.shape)
        lacking = np.maximum(patch - shape, 0)
        if lacking.any():
            array = np.pad(array, [(int(n) // 2, int(n) - int(n) // 2) for n in lacking], constant_values=fill)
            center = center + lacking // 2
            shape = np.asarray(array.shape)
        start = np.clip(center - patch // 2, 0, shape - patch)
        return array[tuple(slice(int(a), int(a + n)) for a, n in zip(start, patch, strict=True))]
