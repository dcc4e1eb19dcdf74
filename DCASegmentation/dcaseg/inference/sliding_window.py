"""Sliding-window inference: positions of the windows, predictions of the network, and their average in a rolling slab.

Positions and weights are those of MONAI's ``sliding_window_inference``, so a bundle gives the same result with both.

Windows are ordered along z. A plane that no later window touches is finished: it is divided by its weights and yielded,
and its memory is reused for the next plane. So the slab is one patch deep, whatever the length of the scan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby, product
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, from_numpy
from torch.nn import functional

from ..errors import BundleError, UserError, is_out_of_memory
from ..method.network import DCANet
from ..method.streaming import RequestedOutputs
from .backends.base import Backend, Task
from .backends.eager import EagerBackend
from .device import Device, Plan
from .options import SegmentOptions, Weighting, require_available

Triple = tuple[int, int, int]

SIGMA_SCALE = 0.125
MIN_WEIGHT = 1e-3


def compute_window_positions(size: Sequence[int], patch: Sequence[int], overlap: float) -> list[Triple]:
    """Return the first voxels (z, y, x) of the windows that cover a volume, ordered by z, then y, then x.

    ``size`` of the volume and ``patch`` are (depth, height, width); no side of ``size`` is below that of ``patch``.
    ``overlap`` is the share of a window's side that neighbors have in common. Raises ValueError for an overlap outside
    [0, 1) or a volume smaller than the patch.
    """
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap must be at least 0 and below 1, not {overlap}")
    starts = [_compute_starts(length, side, overlap) for length, side in zip(size, patch, strict=True)]
    return [(z, y, x) for z, y, x in product(*starts)]


def _compute_starts(length: int, side: int, overlap: float) -> list[int]:
    if length < side:
        raise ValueError(f"a window of {side} voxels does not fit into {length}: pad the volume first")
    step = max(int(side * (1 - overlap)), 1)
    last = length - side
    # The last window ends with the volume, so it overlaps its neighbor by more than the others do.
    return [*range(0, last, step), last]


def importance_map(patch: Sequence[int], weighting: Weighting) -> Tensor:
    """Return the weight of each voxel of a window in the average, float32 (depth, height, width).

    ``patch`` is the window's size (depth, height, width). ``gaussian``: a Gaussian around the center with a standard
    deviation of an eighth of each side, at least 0.001. ``constant``: ones, as in the paper. Raises ValueError for any
    other weighting.
    """
    if weighting == "constant":
        return from_numpy(np.ones(tuple(patch), dtype=np.float32))
    if weighting != "gaussian":
        raise ValueError(f"weighting must be 'gaussian' or 'constant', not {weighting!r}")
    weights = np.ones((1, 1, 1), dtype=np.float32)
    for axis, side in enumerate(patch):
        distance = np.arange(side, dtype=np.float32) - np.float32((side - 1) / 2)
        profile = np.exp(distance**2 / np.float32(-2 * (SIGMA_SCALE * side) ** 2))
        weights = weights * np.expand_dims(profile, axis=tuple(other for other in range(3) if other != axis))
    return from_numpy(np.maximum(weights, max(float(weights.min()), MIN_WEIGHT)).astype(np.float32))


class Padding(NamedTuple):
    """Voxels to add before and after each side (z, y, x) of a volume that is smaller than the patch."""

    before: Triple
    after: Triple

    @classmethod
    def to_patch(cls, size: Sequence[int], patch: Sequence[int]) -> Padding:
        """Return the padding from ``size`` to ``patch`` (both z, y, x): half before, half (and an odd voxel) after."""
        missing = [max(side - length, 0) for length, side in zip(size, patch, strict=True)]
        z, y, x = (gap // 2 for gap in missing)
        return cls((z, y, x), (missing[0] - z, missing[1] - y, missing[2] - x))

    def __bool__(self) -> bool:
        return any(self.before) or any(self.after)

    def apply(self, volume: Tensor) -> Tensor:
        """Return the padded ``volume`` (depth, height, width).

        Along z the end slices are repeated: the body continues beyond a short scan, and the network would take air for
        the end of the body. Along y and x zeros are added, the value of air after windowing.
        """
        if not self:
            return volume
        (top, up, left), (bottom, down, right) = self.before, self.after
        longer = volume
        # A volume without slices has nothing to repeat. Replication needs a batch and a channel axis.
        if volume.numel():
            longer = functional.pad(volume[None, None], (0, 0, 0, 0, top, bottom), mode="replicate")[0, 0]
        return functional.pad(longer, (left, right, up, down), value=0.0)


Predict = Callable[[Tensor], Mapping[str, Tensor]]
Planes = dict[str, Tensor]

COVERED = "covered"
"""Name of a plane (1, height, width) that is False where no window was run; missing if windows cover the plane."""


class SlabAggregator:
    """Sums the weighted predictions of windows in a slab of planes, one patch deep.

    ``size`` of the volume and ``weights`` of a window are (depth, height, width). Plane z of the volume is stored in
    slot z modulo the patch's depth. Predictions have names; there may be any number of them. Those in ``half`` are
    summed in float16, the others in float32.
    """

    def __init__(self, size: Sequence[int], weights: Tensor, half: Collection[str] = ()) -> None:
        self._half = frozenset(half)
        self._depth = weights.shape[0]
        self._plane = (size[1], size[2])
        self._weights = weights
        self._sums: dict[str, Tensor] = {}
        self._total = weights.new_zeros((self._depth, *self._plane))
        self._lowest = 0

    @property
    def nbytes(self) -> int:
        """Bytes in use, including the weights; constant from the first window on."""
        return sum(sums.nbytes for sums in (*self._sums.values(), self._total, self._weights))

    def add(self, position: Triple, predictions: Mapping[str, Tensor]) -> None:
        """Add the predictions of a window, each (channel, depth, height, width), at its first voxel (z, y, x).

        Raises ValueError if a plane of the window is finished already.
        """
        z, y, x = position
        if not self._lowest <= z <= self._lowest + self._depth:
            raise ValueError(f"window at plane {z} is out of order: planes below {self._lowest} are finished")
        if not self._sums:
            self._allocate(predictions)
        height, width = self._weights.shape[1:]
        area = (slice(y, y + height), slice(x, x + width))
        # The window's planes fill the slots from that of z to the last, then continue at slot 0.
        slot = z % self._depth
        for slots, planes in (
            (slice(slot, None), slice(0, self._depth - slot)),
            (slice(0, slot), slice(self._depth - slot, None)),
        ):
            weights = self._weights[planes]
            self._total[(slots, *area)] += weights
            for name, prediction in predictions.items():
                sums = self._sums[name]
                # In one operation: the product alone would be as large as the prediction.
                sums[(slice(None), slots, *area)].addcmul_(
                    prediction[:, planes].to(sums.device, sums.dtype), weights.to(sums.dtype)
                )

    def _allocate(self, predictions: Mapping[str, Tensor]) -> None:
        device = next(iter(predictions.values())).device
        try:
            self._allocate_on(device, predictions)
        except RuntimeError as error:
            if device.type == "cpu" or not is_out_of_memory(error):
                raise
            # A device without room for the slab can still run the network; the slab then stays in main memory.
            self._sums.clear()
            self._allocate_on(torch.device("cpu"), predictions)

    def _allocate_on(self, device: torch.device, predictions: Mapping[str, Tensor]) -> None:
        self._weights = self._weights.to(device)
        self._total = self._total.to(device)
        for name, prediction in predictions.items():
            shape = (prediction.shape[0], self._depth, *self._plane)
            dtype = torch.float16 if name in self._half else torch.float32
            self._sums[name] = torch.zeros(shape, dtype=dtype, device=device)

    def finish(self, stop: int) -> Iterator[tuple[int, Planes]]:
        """Yield the weighted means (channel, height, width) of the planes below ``stop``, and free their slots.

        Voxels without any window are 0; a plane named ``COVERED`` is False there.
        """
        for z in range(self._lowest, stop):
            slot = z % self._depth
            covered = self._total[slot] > 0
            total = torch.where(covered, self._total[slot], 1)
            means = {name: _to_finite_float(sums[:, slot]) / total for name, sums in self._sums.items()}
            yield z, means if bool(covered.all()) else {**means, COVERED: covered[None]}
            for sums in self._sums.values():
                sums[:, slot] = 0
            self._total[slot] = 0
            self._lowest = z + 1


def _to_finite_float(sums: Tensor) -> Tensor:
    """Return ``sums`` in float32. A sum that is too large for float16 becomes its largest value."""
    if sums.dtype != torch.float16:
        return sums
    largest = torch.finfo(torch.float16).max
    return torch.nan_to_num(sums.float(), posinf=largest, neginf=-largest)


def average_planes(
    volume: Tensor,
    patch: Triple,
    predict: Predict,
    overlap: float = 0.5,
    weighting: Weighting = "gaussian",
    batch: int = 1,
    on_window: Callable[[int, int], None] | None = None,
    is_needed: Callable[[Triple], bool] | None = None,
    half: Collection[str] = (),
) -> Iterator[tuple[int, Planes]]:
    """Run ``predict`` on all windows of ``volume`` and yield each finished plane: (z, mean over windows by name).

    ``volume`` is (depth, height, width). ``predict`` takes windows (batch, 1, depth, height, width) and returns named
    predictions (batch, channel, depth, height, width) of the same size. Planes are (channel, height, width), come in
    order, and equal those of MONAI's ``sliding_window_inference``. A volume smaller than the patch is padded (see
    ``Padding``) and the planes are cropped; a volume without planes yields nothing.

    ``on_window(done, total)`` is called before each batch and once after the last one, before the last planes are
    yielded; an exception it raises stops the run. ``is_needed(first voxel)`` says whether to run a window (see
    ``COVERED``); None runs all windows. Predictions in ``half`` are summed in float16.
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
        for position in compute_window_positions(padded.shape, patch, overlap)
        if is_needed is None or is_needed(_remove_padding(position, padding.before))
    ]
    slab = SlabAggregator(padded.shape, importance_map(patch, weighting), half)
    done = 0
    layers = [(z, list(layer)) for z, layer in groupby(positions, key=lambda position: position[0])]
    stops = [*(z for z, _ in layers[1:]), padded.shape[0]]
    for (_, layer), stop in zip(layers, stops, strict=True):
        for first in range(0, len(layer), batch):
            if on_window:
                on_window(done, len(positions))
            batch_positions = layer[first : first + batch]
            predictions = predict(
                torch.stack([_extract_window(padded, position, patch) for position in batch_positions])
            )
            for index, position in enumerate(batch_positions):
                slab.add(position, {name: prediction[index] for name, prediction in predictions.items()})
            # Free the memory before the next batch, which reuses it.
            del predictions
            done += len(batch_positions)
        if on_window and done == len(positions):
            on_window(done, done)
        for z, planes in slab.finish(stop):
            inner = z - padding.before[0]
            if 0 <= inner < depth:
                yield inner, {name: plane[area] for name, plane in planes.items()}
    if on_window and not positions:
        on_window(0, 0)


def _remove_padding(position: Triple, padding: Triple) -> Triple:
    z, y, x = (first - added for first, added in zip(position, padding, strict=True))
    return z, y, x


def extract_center_window(volume: Tensor, patch: Triple) -> Tensor:
    """Return the window (1, 1, depth, height, width) in the middle of ``volume`` (depth, height, width), padded if
    needed."""
    padded = Padding.to_patch(volume.shape, patch).apply(volume)
    z, y, x = ((length - side) // 2 for length, side in zip(padded.shape, patch, strict=True))
    return _extract_window(padded, (z, y, x), patch)[None]


def _extract_window(volume: Tensor, position: Triple, patch: Triple) -> Tensor:
    z, y, x = position
    return volume[None, z : z + patch[0], y : y + patch[1], x : x + patch[2]]


RESULT = "result"
OTHER = "other"
"""Names of the predictions: the result, and the other one of aggregation decoder and stitched experts, with which the
disagreement is computed."""


def get_attention_name(level: int) -> str:
    """Return the name of a level's attention among the predictions."""
    return f"attention {level}"


def get_requested_outputs(options: SegmentOptions) -> RequestedOutputs:
    """Return the outputs that the network must compute for ``options``."""
    return RequestedOutputs(
        aggregated=options.output == "aggregated" or options.disagreement,
        stitched=options.output == "experts" or options.disagreement,
        attention_levels=options.levels_needed,
    )


class WindowPrediction:
    """Runs the network on batches of windows, with fallbacks if the backend fails or memory runs out.

    A call with windows (batch, 1, depth, height, width) returns named predictions, float32
    (batch, channel, depth, height, width) on the plan's device: ``RESULT``, ``OTHER`` if the options request the
    disagreement, and the attention of each requested level, interpolated to the windows' resolution. With
    ``options.average`` the first two are logits or probabilities. The next call may overwrite them; do not write into
    them.

    ``network_on(device)`` returns the network on a device; ``network`` is the network on ``device`` if it exists
    already, possibly without weights. ``backend_for(task)`` creates the first backend; what it raises is passed on. If
    that backend fails to run a window, the eager backend takes over. If memory runs out, ``plan`` shrinks (see
    ``device.Plan``) and stays so. ``report`` receives a message about each of these changes.

    Raises UserError if the memory is too small for one window on the CPU or if the network cannot compute what the
    options request, and BundleError if the network's outputs are not finite.
    """

    def __init__(
        self,
        network_on: Callable[[torch.device], DCANet],
        options: SegmentOptions,
        device: Device,
        report: Callable[[str], None],
        backend_for: Callable[[Task], Backend] = EagerBackend,
        patch: tuple[int, int, int] = (0, 0, 0),
        weights_sha256: str | None = None,
        network: DCANet | None = None,
    ) -> None:
        self._network_on = network_on
        network = network or network_on(device.torch_device)
        self._options = options
        self._report = report
        require_available(options, network.options)
        self._task = Task(network, get_requested_outputs(options), patch, device, weights_sha256)
        self._backend = backend_for(self._task)
        if not self._backend.needs_network:
            self._task = replace(self._task, network=network.copy_without_weights())
        self.plan = Plan(device, options.batch or self._backend.windows_at_once)

    @property
    def backend(self) -> str:
        """The name of the backend that runs the network now."""
        return self._backend.name

    @property
    def network(self) -> DCANet:
        """The network, without its weights if the backend has a copy of its own."""
        return self._task.network

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the predictions."""
        both = (RESULT, OTHER) if self._options.disagreement else (RESULT,)
        return *both, *(get_attention_name(level) for level in self._options.levels_needed)

    @property
    def expert_slots(self) -> tuple[int, ...]:
        """The expert of each attention channel: head (0), medium (1) or tail (2)."""
        return self._task.network.expert_slots

    def release_memory(self) -> None:
        """Free memory that the next window would allocate again."""
        self._backend.release_memory()

    def __call__(self, windows: Tensor) -> dict[str, Tensor]:
        """Run the network on ``windows``; see the class."""
        parts: list[dict[str, Tensor]] = []
        done = 0
        while done < len(windows):
            chunk = windows[done : done + self.plan.batch]
            try:
                part = self._predict(chunk)
                if len(chunk) < len(windows):
                    # The next chunk may overwrite these tensors.
                    part = {name: values.clone() for name, values in part.items()}
                parts.append(part)
                done += len(chunk)
                continue
            except (RuntimeError, MemoryError) as error:
                fallback = self._find_fallback(error)
                if fallback is None and is_out_of_memory(error):
                    raise UserError(
                        "There is not enough memory to run the model on a single window.",
                        "Close other programs, or use a model with a smaller patch or fewer filters.",
                    ) from error
                if fallback is None:
                    raise
                plan, message = fallback
            # Not within the except block: there the traceback still holds the tensors of the failed attempt.
            self._change_plan(plan)
            self._report(message)
        if len(parts) == 1:
            return parts[0]
        device = parts[-1][RESULT].device
        return {name: torch.cat([part[name].to(device) for part in parts]) for name in parts[0]}

    def _find_fallback(self, error: Exception) -> tuple[Plan, str] | None:
        """Return the plan to continue with after ``error`` and a message about it; None if there is no fallback."""
        if self._backend.name != EagerBackend.name and not is_out_of_memory(error):
            return (
                self.plan,
                f"The backend {self._backend.name} failed ({_get_first_line(error)}): continuing with PyTorch.",
            )
        return self.plan.get_fallback(error)

    def _change_plan(self, plan: Plan) -> None:
        if self.plan.device.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        if plan.device != self.plan.device or plan == self.plan:
            network = self._task.network
            if plan.device.torch_device != self.plan.device.torch_device or not network.has_weights:
                network = self._network_on(plan.device.torch_device)
            self._task = replace(self._task, network=network, device=plan.device)
            self._backend = EagerBackend(self._task)
        self.plan = plan

    def _predict(self, windows: Tensor) -> dict[str, Tensor]:
        device = self.plan.device
        predictions = self._forward(windows.to(device.torch_device))
        if _is_finite(predictions):
            return predictions
        if device.half:
            self._report("Half precision overflowed: continuing in single precision.")
            self._change_plan(Plan(Device(device.torch_device, device.description), self.plan.batch))
            return self._predict(windows)
        raise BundleError(
            "The network's outputs are not finite.", "The weights are damaged: download or export the model again."
        )

    def _forward(self, windows: Tensor) -> dict[str, Tensor]:
        options = self._options
        output = self._backend(windows)
        with torch.inference_mode():
            both = {"aggregated": output.aggregated, "experts": output.stitched}
            logits = {RESULT: both.pop(options.output)}
            if options.disagreement:
                logits[OTHER] = both.popitem()[1]
            predictions = {name: values.float() for name, values in logits.items() if values is not None}
            if options.average == "probabilities":
                predictions = {name: torch.softmax(values, dim=1) for name, values in predictions.items()}
            for level, weights in output.attention.items():
                predictions[get_attention_name(level)] = upsample_attention(weights.float(), windows.shape[2:])
        return predictions


def upsample_attention(attention: Tensor, size: torch.Size) -> Tensor:
    """Interpolate attention (batch, expert, depth, height, width) of a coarser level to ``size``, trilinearly.

    Not with nearest neighbors: a voxel of level 1 spans eight voxels of the patch along each axis, so the map would
    show the edges of blocks. Interpolation weights sum to one, so the experts' attention still does.
    """
    if attention.shape[2:] == size:
        return attention
    return functional.interpolate(attention, size=list(size), mode="trilinear", align_corners=False)


def _get_first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _is_finite(predictions: dict[str, Tensor]) -> bool:
    # A sum is finite only if all values are, and takes a tenth of the time. If it overflows, all values are checked.
    return all(
        bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all()) for values in predictions.values()
    )
