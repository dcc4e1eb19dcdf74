"""Patch sampling: which patches the network sees, their augmentation, and prefetching.

There are no flips, because left and right organs are different classes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .cases import Case
from .options import TrainingOptions
from .spatial_augmentation import PROBABILITY, PatchCoordinates

Volumes = NDArray[np.float32]


def augment_intensity(volumes: Volumes, generator: np.random.Generator) -> Volumes:
    """Randomly change contrast, brightness, gamma, sharpness and noise of patches (count, 1, depth, height, width).

    Input and output intensities are between 0 and 1.
    """
    augmented = np.empty_like(volumes)
    for index, volume in enumerate(volumes):
        contrast = generator.uniform(0.85, 1.15)
        brightness = generator.uniform(-0.06, 0.06)
        patch = np.clip((volume - 0.5) * contrast + 0.5 + brightness, 0, 1)
        if generator.random() < 0.3:
            patch = patch ** generator.uniform(0.8, 1.25)
        if generator.random() < 0.3:
            for axis in (1, 2, 3):
                patch = _smooth(patch, axis, generator.uniform(0.0, 0.3))
        if generator.random() < 0.6:
            patch = patch + generator.standard_normal(patch.shape, dtype=np.float32) * generator.uniform(0, 0.05)
        augmented[index] = np.clip(patch, 0, 1)
    return augmented


def _smooth(volume: np.ndarray, axis: int, share: float) -> np.ndarray:
    """Move the fraction ``share`` of each voxel to its two neighbors along ``axis``."""
    padded = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(volume.ndim)], mode="edge")
    size = volume.shape[axis]
    before, after = np.take(padded, range(size), axis), np.take(padded, range(2, size + 2), axis)
    return (1 - share) * volume + share / 2 * (before + after)


class Patches(NamedTuple):
    """Patches of one step.

    - ``volumes``: float32 (count, 1, depth, height, width), from 0 to 1 if scaled by a window.
    - ``labels``: int64 (count, depth, height, width), or None.
    - ``unannotated``: for each patch, the labels that its label map does not include.
    - ``ignored``: booleans (count, depth, height, width), true for voxels without a label, or None.

    A sampler that creates patches on a device returns tensors instead of arrays.
    """

    volumes: np.ndarray
    labels: np.ndarray | None
    unannotated: tuple[tuple[int, ...], ...]
    ignored: np.ndarray | None = None


class Sampler(Protocol):
    """A source of patches: cases in memory, or synthetic CTs that are created on demand.

    A draw must depend only on ``generator``, so that the patches of a step are the same in any order and in any
    process; the trainer passes a separate generator for each patch of each step. Samplers are pickled for worker
    processes.
    """

    def draw(self, count: int, generator: np.random.Generator) -> Patches:
        """Draw ``count`` patches, with labels if the sampler's cases are labeled."""
        ...


def make_patch_generator(seed: int, stream: int, step: int, index: int) -> np.random.Generator:
    """The random generator of one patch of one step. ``stream`` is 0 for labeled and 1 for unlabeled patches."""
    return np.random.default_rng([seed, stream, step, index])


def concatenate_patches(patches: Sequence[Patches]) -> Patches:
    """Concatenate several draws, which must all have labels or all have none. Arrays and tensors are supported."""
    labels = [each.labels for each in patches if each.labels is not None]
    ignored = None
    if any(each.ignored is not None for each in patches):
        none_ignored = [np.zeros(each.volumes.shape[:1] + each.volumes.shape[2:], bool) for each in patches]
        ignored = _concatenate(
            [none if each.ignored is None else each.ignored for each, none in zip(patches, none_ignored, strict=True)]
        )
    return Patches(
        _concatenate([each.volumes for each in patches]),
        _concatenate(labels) if labels else None,
        tuple(unannotated for each in patches for unannotated in each.unannotated),
        ignored,
    )


def _concatenate(arrays: Sequence[np.ndarray]) -> np.ndarray:
    if all(isinstance(array, np.ndarray) for array in arrays):
        return np.concatenate(arrays)
    tensors = [torch.as_tensor(array) for array in arrays]
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), tensors[0].device)
    concatenated: Any = torch.cat([tensor.to(device) for tensor in tensors])
    return concatenated


class MixedSampler:
    """Draws each patch from one of several samplers, chosen with ``weights``, which need not sum to one.

    Raises ValueError if the weights do not fit the samplers.
    """

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float]) -> None:
        if not samplers or len(samplers) != len(weights) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError("a mixed sampler needs samplers and one weight for each, not all of them 0")
        self._samplers = list(samplers)
        self._shares = np.asarray(weights, float) / sum(weights)

    def draw(self, count: int, generator: np.random.Generator) -> Patches:
        """Draw ``count`` patches (see ``Sampler``)."""
        chosen = generator.choice(len(self._samplers), count, p=self._shares)
        return concatenate_patches([self._samplers[index].draw(1, generator) for index in chosen])


class PatchSampler:
    """Draws patches from cases in memory.

    With probability ``foreground_fraction``, a patch of a labeled case is centered near a voxel of an organ; all organs
    are equally likely. Otherwise its position is random. Patches stay inside the volume, as in the sliding window.

    The option ``crop`` decides how a random position is drawn. "center": the center is any voxel, and the patch is then
    moved into the volume, so it often touches a border. "position": all positions inside the volume are equally likely,
    as in the repositories of related methods. The option ``short_scans`` decides how a volume that is shorter than the
    patch along z (the first axis) is padded: with "air", or with its end slices ("repeat"), for the labels too.

    With the option ``spatial_augmentation``, most patches are scaled, rotated and bent (see ``spatial_augmentation``).

    Raises ValueError if there are no cases.
    """

    def __init__(
        self, cases: Sequence[Case], options: TrainingOptions, generator: np.random.Generator | None = None
    ) -> None:
        if not cases:
            raise ValueError("a sampler needs at least one case")
        self._cases = list(cases)
        self._options = options
        self._generator = generator if generator is not None else np.random.default_rng()
        holders: dict[int, list[int]] = {}
        for index, case in enumerate(self._cases):
            for label in case.positions:
                holders.setdefault(label, []).append(index)
        self._holders = holders
        self._labels = sorted(holders)
        self._some_ignored = any(case.ignored is not None for case in self._cases)

    def draw(self, count: int, generator: np.random.Generator | None = None) -> Patches:
        """Draw ``count`` patches, with labels if the cases have them.

        By default, the ``generator`` is that of the constructor.
        """
        generator = self._generator if generator is None else generator
        volumes: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        unannotated: list[tuple[int, ...]] = []
        ignored: list[np.ndarray] = []
        for _ in range(count):
            case, center = self._choose(generator)
            cut = self._make_crop_function(case, center, generator)
            volumes.append(case.scale_intensity(cut(case.hu, -1000), self._options.grid))
            if case.labels is not None:
                labels.append(cut(case.labels, 0).astype(np.int64))
            unannotated.append(case.unannotated)
            if self._some_ignored:
                whole = np.zeros(case.hu.shape, bool) if case.ignored is None else case.ignored
                ignored.append(cut(whole, case.ignored is not None))
        return Patches(
            np.stack(volumes)[:, None], np.stack(labels) if labels else None, tuple(unannotated),
            np.stack(ignored) if ignored else None,
        )  # fmt: skip

    def _choose(self, generator: np.random.Generator) -> tuple[Case, np.ndarray]:
        if self._labels and generator.random() < self._options.foreground_fraction:
            label = self._labels[generator.integers(len(self._labels))]
            holders = self._holders[label]
            case = self._cases[holders[generator.integers(len(holders))]]
            positions = case.positions[label]
            reach = np.asarray(self._options.patch) // 3
            return case, positions[generator.integers(len(positions))] + generator.integers(-reach, reach + 1)
        case = self._cases[generator.integers(len(self._cases))]
        if self._options.crop == "position":
            free = [max(size - side, 0) for size, side in zip(case.hu.shape, self._options.patch, strict=True)]
            starts = np.array([generator.integers(n + 1) for n in free])
            return case, starts + np.minimum(self._options.patch, case.hu.shape) // 2
        return case, np.array([generator.integers(size) for size in case.hu.shape])

    def _make_crop_function(
        self, case: Case, center: np.ndarray, generator: np.random.Generator
    ) -> Callable[[np.ndarray, int], np.ndarray]:
        """A function that cuts the patch at ``center`` from an array of ``case``, all arrays in the same way.

        Its second argument is the value outside the volume.
        """
        if not self._options.spatial_augmentation or generator.random() >= PROBABILITY:
            return lambda array, fill: self._cut(array, center, fill)
        shape, patch = np.asarray(case.hu.shape), np.asarray(self._options.patch)
        start = np.clip(center - patch // 2, 0, np.maximum(shape - patch, 0))
        middle = np.where(shape < patch, (shape - 1) / 2, start + (patch - 1) / 2)
        size = case.get_voxel_size(self._options.grid)
        coordinates = PatchCoordinates.draw(middle, self._options.patch, size, generator)
        repeat = self._options.short_scans == "repeat"
        return lambda array, fill: coordinates.sample(array, array is case.hu, fill, repeat)

    def _cut(self, array: np.ndarray, center: np.ndarray, fill: int) -> np.ndarray:
        patch = np.asarray(self._options.patch)
        shape = np.asarray(array.shape)
        missing = np.maximum(patch - shape, 0)
        if missing.any():
            widths = [(int(n) // 2, int(n) - int(n) // 2) for n in missing]
            if self._options.short_scans == "repeat":
                array = np.pad(array, [widths[0], (0, 0), (0, 0)], mode="edge")
                widths[0] = (0, 0)
            array = np.pad(array, widths, constant_values=fill)
            center = center + missing // 2
            shape = np.asarray(array.shape)
        start = np.clip(center - patch // 2, 0, shape - patch)
        return array[tuple(slice(int(a), int(a + n)) for a, n in zip(start, patch, strict=True))]


class StepPatches(NamedTuple):
    """One process's patches of a step; ``unlabeled`` is None if the step does not use unlabeled patches."""

    labeled: Patches
    unlabeled: Patches | None


class StepSampler:
    """Draws this process's patches of any step, with intensity augmentation. They depend only on seed and step.

    ``share`` returns this process's part of the indices of a batch. Patches that a sampler returns as tensors are not
    augmented, because each already has its own synthetic appearance.
    """

    def __init__(
        self,
        labeled: Sampler,
        unlabeled: Sampler | None,
        options: TrainingOptions,
        share: Callable[[range], range] = lambda indices: indices,
    ) -> None:
        self._samplers = (labeled, unlabeled)
        self._options = options
        self._indices = (share(range(options.labeled_per_step)), share(range(options.unlabeled_per_step)))

    def draw(self, step: int, unlabeled: bool) -> StepPatches:
        """Draw the patches of ``step``, with unlabeled ones if ``unlabeled`` and if there is a sampler for them."""
        labeled = self._draw(0, step)
        assert labeled is not None
        return StepPatches(labeled, self._draw(1, step) if unlabeled else None)

    def _draw(self, stream: int, step: int) -> Patches | None:
        sampler = self._samplers[stream]
        if sampler is None or not self._indices[stream]:
            return None
        drawn = []
        for index in self._indices[stream]:
            generator = make_patch_generator(self._options.seed, stream, step, index)
            patch = sampler.draw(1, generator)
            if self._options.augment and isinstance(patch.volumes, np.ndarray):
                patch = patch._replace(volumes=augment_intensity(patch.volumes, generator))
            drawn.append(patch)
        return concatenate_patches(drawn)


# Steps to prefetch per process: enough to compensate for a draw that takes longer than usual.
_AHEAD = 2


class Prefetcher:
    """Draws patches in the background, in ``workers`` processes or, with 0, in a thread of this process.

    ``unlabeled(step)`` returns whether a step needs unlabeled patches; ``end`` is the first step not to draw.

    Prefetched patches can be dropped, because they depend only on the step. If a worker process dies, a thread of this
    process continues, and ``notify`` receives a message. Workers return patches through pipes and not through shared
    memory, which is often too small in containers.
    """

    def __init__(
        self,
        sampler: StepSampler,
        unlabeled: Callable[[int], bool],
        end: int,
        workers: int = 0,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._sampler = sampler
        self._needs_unlabeled = unlabeled
        self._end = end
        self._notify = notify
        self._waiting: dict[tuple[int, bool], Future[StepPatches]] = {}
        self._ahead = _AHEAD * max(workers, 1)
        self._executor: Executor = _create_worker_pool(sampler, workers) if workers else _thread()
        self._uses_processes = workers > 0

    def take(self, step: int, unlabeled: bool) -> StepPatches:
        """Return the patches of ``step``, and start to draw those of the next steps."""
        key = step, unlabeled
        try:
            self._submit(key)
            for later in range(step + 1, min(step + 1 + self._ahead, self._end)):
                self._submit((later, self._needs_unlabeled(later)))
            patches = self._waiting.pop(key).result()
        except BrokenProcessPool:
            self._switch_to_thread()
            return self.take(step, unlabeled)
        for outdated in [waiting for waiting in self._waiting if waiting[0] <= step]:
            self._waiting.pop(outdated).cancel()
        return patches

    def close(self) -> None:
        """Stop drawing, and drop prefetched patches."""
        self._waiting.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, key: tuple[int, bool]) -> None:
        if key not in self._waiting:
            if self._uses_processes:
                self._waiting[key] = self._executor.submit(_draw, *key)
            else:
                self._waiting[key] = self._executor.submit(self._sampler.draw, *key)

    def _switch_to_thread(self) -> None:
        self._waiting.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor, self._uses_processes = _thread(), False
        if self._notify is not None:
            self._notify(
                "A process that draws patches has ended, perhaps because of insufficient memory. The run continues and "
                "draws patches in its own process, as with --workers 0."
            )


def _thread() -> Executor:
    return ThreadPoolExecutor(1, thread_name_prefix="patches")


def _create_worker_pool(sampler: StepSampler, count: int) -> Executor:
    # Forked processes share the cases in memory; spawned ones get a copy.
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ProcessPoolExecutor(count, context, _initialize_worker, (sampler, os.getpid()))
        # Start all processes now, while no thread of this process holds a lock.
        for future in [pool.submit(os.getpid) for _ in range(count)]:
            future.result()
    return pool


# The sampler of a worker process. It is passed only once, because it contains the cases.
_sampler: StepSampler | None = None


def _initialize_worker(sampler: StepSampler, parent: int) -> None:
    global _sampler
    _sampler = sampler
    # The training process handles Ctrl+C and a closed terminal, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    """Exit when the process ``parent`` has ended. Otherwise, if it was killed, this process would wait forever."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _draw(*key: Any) -> StepPatches:
    assert _sampler is not None
    labeled, unlabeled = _sampler.draw(*key)
    return StepPatches(_as_arrays(labeled), None if unlabeled is None else _as_arrays(unlabeled))


def _as_arrays(patches: Patches) -> Patches:
    """Convert tensors to arrays, because tensors would be sent through shared memory."""
    return Patches._make(part.numpy() if isinstance(part, torch.Tensor) else part for part in patches)
