"""Adding up overlapping windows in a slab that rolls along the scan.

Windows come ordered along z. A plane that no later window touches is finished: it is divided by its weights, handed
on, and its memory takes the next plane. So the slab is one patch deep however long the scan is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby

import torch
from torch import Tensor

from .device import is_out_of_memory
from .sliding_window import Padding, Triple, Weighting, importance_map, window_positions

Predict = Callable[[Tensor], Mapping[str, Tensor]]
Planes = dict[str, Tensor]

COVERED = "covered"
"""Name of a plane (1, height, width) that is False where no window was run; left out where all of them were."""


class RollingSlab:
    """Weighted sums over the windows of one patch's depth of planes, for any number of named predictions.

    Plane z of the volume lives in slot z modulo the patch's depth. ``size`` is (depth, height, width).
    """

    def __init__(self, size: Sequence[int], weights: Tensor) -> None:
        self._depth = weights.shape[0]
        self._plane = (size[1], size[2])
        self._weights = weights
        self._sums: dict[str, Tensor] = {}
        self._total = weights.new_zeros((self._depth, *self._plane))
        self._lowest = 0

    @property
    def nbytes(self) -> int:
        """Bytes held, weights included; constant from the first window on."""
        return sum(sums.nbytes for sums in (*self._sums.values(), self._total, self._weights))

    def add(self, position: Triple, predictions: Mapping[str, Tensor]) -> None:
        """Add one window's predictions, each (channel, depth, height, width), at its first voxel (z, y, x)."""
        z, y, x = position
        if not self._lowest <= z <= self._lowest + self._depth:
            raise ValueError(f"window at plane {z} is out of order: planes below {self._lowest} are finished")
        if not self._sums:
            self._allocate(predictions)
        height, width = self._weights.shape[1:]
        area = (slice(y, y + height), slice(x, x + width))
        # The window's planes fill the slots from z's own to the last, then go on at slot 0.
        turn = z % self._depth
        for slots, planes in (
            (slice(turn, None), slice(0, self._depth - turn)),
            (slice(0, turn), slice(self._depth - turn, None)),
        ):
            weights = self._weights[planes]
            self._total[(slots, *area)] += weights
            for name, prediction in predictions.items():
                sums = self._sums[name]
                # In one go: the product alone would be as large as the prediction.
                sums[(slice(None), slots, *area)].addcmul_(prediction[:, planes].to(sums.device, sums.dtype), weights)

    def _allocate(self, predictions: Mapping[str, Tensor]) -> None:
        device = next(iter(predictions.values())).device
        try:
            self._place(device, predictions)
        except RuntimeError as error:
            if device.type == "cpu" or not is_out_of_memory(error):
                raise
            # A device too small for the slab can still run the network; the sums then stay in main memory.
            self._sums.clear()
            self._place(torch.device("cpu"), predictions)

    def _place(self, device: torch.device, predictions: Mapping[str, Tensor]) -> None:
        self._weights = self._weights.to(device)
        self._total = self._total.to(device)
        for name, prediction in predictions.items():
            shape = (prediction.shape[0], self._depth, *self._plane)
            self._sums[name] = torch.zeros(shape, dtype=torch.float32, device=device)

    def finish(self, stop: int) -> Iterator[tuple[int, Planes]]:
        """Weighted means (channel, height, width) of the planes below ``stop``, one by one; their slots are freed.

        Where no window was added they are 0, and a plane called ``COVERED`` is False there.
        """
        for z in range(self._lowest, stop):
            slot = z % self._depth
            covered = self._total[slot] > 0
            total = torch.where(covered, self._total[slot], 1)
            means = {name: sums[:, slot] / total for name, sums in self._sums.items()}
            yield z, means if bool(covered.all()) else {**means, COVERED: covered[None]}
            for sums in self._sums.values():
                sums[:, slot] = 0
            self._total[slot] = 0
            self._lowest = z + 1


def averaged_planes(
    volume: Tensor,
    patch: Triple,
    predict: Predict,
    overlap: float = 0.5,
    weighting: Weighting = "gaussian",
    batch: int = 1,
    on_window: Callable[[int, int], None] | None = None,
    holds_something: Callable[[Triple], bool] | None = None,
) -> Iterator[tuple[int, Planes]]:
    """Run ``predict`` over all windows of ``volume`` and yield each finished plane: (z, name to its mean over windows).

    ``volume`` is (depth, height, width); ``predict`` takes windows (batch, 1, depth, height, width) and gives named
    predictions (batch, channel, depth, height, width) of the patch's size. Planes come in order, each
    (channel, height, width), and hold what MONAI's ``sliding_window_inference`` holds there. A volume smaller than
    the patch is padded (``sliding_window.Padding``) and cropped again; one of no plane yields none.
    ``on_window(done, total)`` is called before each batch and once after the last; what it raises stops the run.
    ``holds_something(first voxel)`` says of a window of the volume whether it is worth running (see ``COVERED``); left
    out, all are run.
    """
    depth, height, width = volume.shape
    if not depth:
        return
    padding = Padding.to_patch(volume.shape, patch)
    padded = padding.apply(volume)
    top, left = padding.before[1:]
    area = (slice(None), slice(top, top + height), slice(left, left + width))

    positions = [
        position
        for position in window_positions(padded.shape, patch, overlap)
        if holds_something is None or holds_something(_less(position, padding.before))
    ]
    slab = RollingSlab(padded.shape, importance_map(patch, weighting))
    done = 0
    layers = [(z, list(layer)) for z, layer in groupby(positions, key=lambda position: position[0])]
    stops = [*(z for z, _ in layers[1:]), padded.shape[0]]
    for (_, layer), stop in zip(layers, stops, strict=True):
        for first in range(0, len(layer), batch):
            if on_window:
                on_window(done, len(positions))
            chosen = layer[first : first + batch]
            predictions = predict(torch.stack([_window(padded, position, patch) for position in chosen]))
            for index, position in enumerate(chosen):
                slab.add(position, {name: prediction[index] for name, prediction in predictions.items()})
            # Before the next windows are run: they take the memory for their own.
            del predictions
            done += len(chosen)
        for z, planes in slab.finish(stop):
            inner = z - padding.before[0]
            if 0 <= inner < depth:
                yield inner, {name: plane[area] for name, plane in planes.items()}
    if on_window:
        on_window(done, len(positions))


def _less(position: Triple, before: Triple) -> Triple:
    z, y, x = (first - added for first, added in zip(position, before, strict=True))
    return z, y, x


def middle_window(volume: Tensor, patch: Triple) -> Tensor:
    """The window (1, 1, depth, height, width) in the middle of ``volume``, padded where that is smaller."""
    padded = Padding.to_patch(volume.shape, patch).apply(volume)
    z, y, x = ((length - side) // 2 for length, side in zip(padded.shape, patch, strict=True))
    return _window(padded, (z, y, x), patch)[None]


def _window(volume: Tensor, position: Triple, patch: Triple) -> Tensor:
    z, y, x = position
    return volume[None, z : z + patch[0], y : y + patch[1], x : x + patch[2]]
