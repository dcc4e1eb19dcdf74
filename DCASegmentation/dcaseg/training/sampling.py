"""Which patches the network sees, their augmentation, and drawing them ahead.

There are no flips: left and right organs are different classes.
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

Volumes = NDArray[np.float32]


def augment_intensity(volumes: Volumes, generator: np.random.Generator) -> Volumes:
    """Windowed patches (count, 1, d, h, w) in 0..1 with other contrast, brightness, gamma, blur and noise, in 0..1."""
    changed = np.empty_like(volumes)
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
        changed[index] = np.clip(patch, 0, 1)
    return changed


def _smooth(volume: np.ndarray, axis: int, share: float) -> np.ndarray:
    """Each voxel gives ``share`` of itself to its two neighbors along ``axis``."""
    padded = np.pad(volume, [(1, 1) if a == axis else (0, 0) for a in range(volume.ndim)], mode="edge")
    size = volume.shape[axis]
    before, after = np.take(padded, range(size), axis), np.take(padded, range(2, size + 2), axis)
    return (1 - share) * volume + share / 2 * (before + after)


class Patches(NamedTuple):
    """Patches of one step.

    ``volumes`` are float32 (count, 1, depth, height, width), in 0..1 for a window, ``labels`` int64 (count, depth,
    height, width) or None, ``unannotated`` the labels that each patch's label map does not tell of, ``ignored``
    booleans like ``labels`` (no label there), or None where no case has such voxels. A sampler that makes its patches
    on a device gives tensors in place of arrays.
    """

    volumes: np.ndarray
    labels: np.ndarray | None
    unannotated: tuple[tuple[int, ...], ...]
    ignored: np.ndarray | None = None


class Sampler(Protocol):
    """Where a run's patches come from: cases in memory, or CTs that are painted as they are needed.

    A draw depends on ``generator`` alone, so that a step's patches are the same whoever draws them, in whatever order,
    in this process or in another one: the trainer gives each patch of each step a generator of its own. An object that
    is pickled for worker processes must keep working there.
    """

    def draw(self, count: int, generator: np.random.Generator) -> Patches:
        """``count`` patches; with labels if the sampler's cases are labeled."""
        ...


def patch_generator(seed: int, stream: int, step: int, index: int) -> np.random.Generator:
    """The generator of one patch of one step. ``stream`` keeps labeled (0) and unlabeled (1) patches apart."""
    return np.random.default_rng([seed, stream, step, index])


def joined(patches: Sequence[Patches]) -> Patches:
    """Several draws as one; all of them have labels, or none has. Arrays become arrays, tensors tensors."""
    labels = [one.labels for one in patches if one.labels is not None]
    ignored = None
    if any(one.ignored is not None for one in patches):
        nothing = [np.zeros(one.volumes.shape[:1] + one.volumes.shape[2:], bool) for one in patches]
        ignored = _concatenated(
            [none if one.ignored is None else one.ignored for one, none in zip(patches, nothing, strict=True)]
        )
    return Patches(
        _concatenated([one.volumes for one in patches]),
        _concatenated(labels) if labels else None,
        tuple(unannotated for one in patches for unannotated in one.unannotated),
        ignored,
    )


def _concatenated(parts: Sequence[np.ndarray]) -> np.ndarray:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    tensors = [torch.as_tensor(part) for part in parts]
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), tensors[0].device)
    joined: Any = torch.cat([tensor.to(device) for tensor in tensors])
    return joined


class MixedSampler:
    """Draws each patch from one of several samplers, chosen with ``weights``, which need not sum to one."""

    def __init__(self, samplers: Sequence[Sampler], weights: Sequence[float]) -> None:
        if not samplers or len(samplers) != len(weights) or min(weights) < 0 or sum(weights) <= 0:
            raise ValueError("a mixed sampler needs samplers and as many weights, not all of them 0")
        self._samplers = list(samplers)
        self._shares = np.asarray(weights, float) / sum(weights)

    def draw(self, count: int, generator: np.random.Generator) -> Patches:
        """See ``Sampler``."""
        chosen = generator.choice(len(self._samplers), count, p=self._shares)
        return joined([self._samplers[index].draw(1, generator) for index in chosen])


class PatchSampler:
    """Draws patches from cases held in memory.

    With probability ``foreground_fraction`` a patch of a labelled case is centered near a voxel of an organ, every
    organ as likely as any other; otherwise it lies anywhere. Patches stay inside the volume, as the sliding window's
    do.

    Anywhere is, by the option ``crop``: "center", the center is any voxel and the patch is then moved into the volume,
    so that it often touches a border; "position", every position inside the volume is equally likely, as in the
    repositories of the paper's family. By the option ``short_scans`` a volume shorter than the patch along z (the first
    axis) is continued with "air", or by "repeat": its end slices are repeated, those of the labels, too.
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
        """``count`` patches, with labels if the cases have some; by the constructor's generator unless one is given."""
        generator = self._generator if generator is None else generator
        volumes: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        unannotated: list[tuple[int, ...]] = []
        ignored: list[np.ndarray] = []
        for _ in range(count):
            case, center = self._choose(generator)
            volumes.append(case.scaled(self._cut(case.hu, center, fill=-1000), self._options.grid))
            if case.labels is not None:
                labels.append(self._cut(case.labels, center, fill=0).astype(np.int64))
            unannotated.append(case.unannotated)
            if self._some_ignored:
                whole = np.zeros(case.hu.shape, bool) if case.ignored is None else case.ignored
                ignored.append(self._cut(whole, center, fill=case.ignored is not None))
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

    def _cut(self, array: np.ndarray, center: np.ndarray, fill: int) -> np.ndarray:
        patch = np.asarray(self._options.patch)
        shape = np.asarray(array.shape)
        lacking = np.maximum(patch - shape, 0)
        if lacking.any():
            widths = [(int(n) // 2, int(n) - int(n) // 2) for n in lacking]
            if self._options.short_scans == "repeat":
                array = np.pad(array, [widths[0], (0, 0), (0, 0)], mode="edge")
                widths[0] = (0, 0)
            array = np.pad(array, widths, constant_values=fill)
            center = center + lacking // 2
            shape = np.asarray(array.shape)
        start = np.clip(center - patch // 2, 0, shape - patch)
        return array[tuple(slice(int(a), int(a + n)) for a, n in zip(start, patch, strict=True))]


class StepPatches(NamedTuple):
    """What a process needs for one step; ``unlabelled`` is None where it does not count."""

    labelled: Patches
    unlabelled: Patches | None


class StepSampler:
    """Draws this process's patches of any step, intensity augmentation included, from the seed and the step alone.

    ``share`` gives this process's part of the indices of a batch. Patches that a sampler gives as tensors are taken as
    they are: it makes them on the device, each with an appearance of its own.
    """

    def __init__(
        self,
        labelled: Sampler,
        unlabelled: Sampler | None,
        options: TrainingOptions,
        share: Callable[[range], range] = lambda indices: indices,
    ) -> None:
        self._samplers = (labelled, unlabelled)
        self._options = options
        self._indices = (share(range(options.labelled_per_step)), share(range(options.unlabelled_per_step)))

    def draw(self, step: int, unlabelled: bool) -> StepPatches:
        """The patches of ``step``; with the unlabelled ones where there are some and they are asked for."""
        labelled = self._draw(0, step)
        assert labelled is not None
        return StepPatches(labelled, self._draw(1, step) if unlabelled else None)

    def _draw(self, stream: int, step: int) -> Patches | None:
        sampler = self._samplers[stream]
        if sampler is None:
            return None
        drawn = []
        for index in self._indices[stream]:
            generator = patch_generator(self._options.seed, stream, step, index)
            patch = sampler.draw(1, generator)
            if self._options.augment and isinstance(patch.volumes, np.ndarray):
                patch = patch._replace(volumes=augment_intensity(patch.volumes, generator))
            drawn.append(patch)
        return joined(drawn)


# Steps that are drawn ahead, for each process: enough to even out a draw that takes longer than the others.
_AHEAD = 2


class Prefetcher:
    """Draws by ``sampler`` in the background, in one thread of this process or in ``workers`` processes.

    A step's patches depend on the step alone, so whatever was drawn ahead can be dropped, and is: when a run ends, or
    when a process that draws has died. Then a thread of this process draws on, and ``say`` receives a line about it.
    Results come back through pipes, not through shared memory, of which containers often have too little.

    ``unlabelled(step)`` says whether that step needs unlabeled patches; ``end`` is the first step not to draw.
    """

    def __init__(
        self,
        sampler: StepSampler,
        unlabelled: Callable[[int], bool],
        end: int,
        workers: int = 0,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self._sampler = sampler
        self._needs_unlabelled = unlabelled
        self._end = end
        self._say = say
        self._waiting: dict[tuple[int, bool], Future[StepPatches]] = {}
        self._ahead = _AHEAD * max(workers, 1)
        self._executor: Executor = _processes(sampler, workers) if workers else _thread()
        self._of_processes = workers > 0

    def take(self, step: int, unlabelled: bool) -> StepPatches:
        """The patches of ``step``, and a start of drawing those of the steps after it."""
        wanted = step, unlabelled
        try:
            self._submit(wanted)
            for later in range(step + 1, min(step + 1 + self._ahead, self._end)):
                self._submit((later, self._needs_unlabelled(later)))
            drawn = self._waiting.pop(wanted).result()
        except BrokenProcessPool:
            self._go_on_in_a_thread()
            return self.take(step, unlabelled)
        for passed in [key for key in self._waiting if key[0] <= step]:
            self._waiting.pop(passed).cancel()
        return drawn

    def close(self) -> None:
        """Stop drawing; what was drawn ahead is dropped."""
        self._waiting.clear()
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, key: tuple[int, bool]) -> None:
        if key not in self._waiting:
            if self._of_processes:
                self._waiting[key] = self._executor.submit(_draw, *key)
            else:
                self._waiting[key] = self._executor.submit(self._sampler.draw, *key)

    def _go_on_in_a_thread(self) -> None:
        self._waiting.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)
        self._executor, self._of_processes = _thread(), False
        if self._say is not None:
            self._say(
                "A process that draws patches was ended, perhaps for want of memory; the run goes on and draws them "
                "in its own process. --workers 0 does so from the start."
            )


def _thread() -> Executor:
    return ThreadPoolExecutor(1, thread_name_prefix="patches")


def _processes(sampler: StepSampler, count: int) -> Executor:
    # Forked processes share the cases in memory; elsewhere each gets a copy.
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = ProcessPoolExecutor(count, context, _begin, (sampler, os.getpid()))
        # All of them start now, while no thread of this process holds a lock.
        for future in [pool.submit(os.getpid) for _ in range(count)]:
            future.result()
    return pool


# A drawing process's own, handed to it once: the cases are in it.
_sampler: StepSampler | None = None


def _begin(sampler: StepSampler, parent: int) -> None:
    global _sampler
    _sampler = sampler
    # The process that trains decides what a Ctrl+C means, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process once ``parent`` is gone, killed perhaps: it holds its own end of the pipe and would wait."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _draw(*key: Any) -> StepPatches:
    assert _sampler is not None
    labelled, unlabelled = _sampler.draw(*key)
    return StepPatches(_as_arrays(labelled), None if unlabelled is None else _as_arrays(unlabelled))


def _as_arrays(patches: Patches) -> Patches:
    """Tensors as arrays: they would be sent through shared memory."""
    return Patches._make(part.numpy() if isinstance(part, torch.Tensor) else part for part in patches)
