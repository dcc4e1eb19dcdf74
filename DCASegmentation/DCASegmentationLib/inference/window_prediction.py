"""From windows to everything that is asked of the network about them, with fewer windows at once if memory is short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BundleError, UserError
from ..method.level_by_level import Wanted
from ..method.network import DCANet
from .device import Device, Plan, is_out_of_memory
from .options import SegmentOptions
from .runtimes.eager import EagerRuntime
from .runtimes.runtime import Runtime, Task

RESULT = "result"
OTHER = "other"
"""The prediction that was not asked for as the result (stitched experts or aggregation), for the disagreement."""


def attention_name(level: int) -> str:
    """Name of a level's attention among the predictions."""
    return f"attention {level}"


def wanted_of(options: SegmentOptions) -> Wanted:
    """What the network must give for ``options``."""
    return Wanted(
        aggregated=options.output == "aggregated" or options.disagreement,
        stitched=options.output == "experts" or options.disagreement,
        attention_levels=options.levels_needed,
    )


class WindowPrediction:
    """Runs the network on batches of windows.

    Called with windows (batch, 1, depth, height, width) it returns named predictions, float32
    (batch, channel, depth, height, width) on the plan's device: ``RESULT``, ``OTHER`` if the disagreement is asked
    for, and the attention of each level needed, brought to the windows' resolution. ``average`` decides whether
    the first two are logits or probabilities. They are good until the next call, and not to be written into.

    ``network_on(device)`` gives the network; ``network`` is the one on ``device`` where it is there already, perhaps
    without weights. ``runtime_for(task)`` gives what runs the network at first; when memory runs out or it fails,
    PyTorch itself goes on. When memory runs out, ``plan`` gets smaller (see ``device.Plan``) and stays so; ``report``
    is told.
    Raises UserError if memory does not suffice for one window on the CPU or if the network lacks what the options
    ask for, and BundleError if the network's values are not finite.
    """

    def __init__(
        self,
        network_on: Callable[[torch.device], DCANet],
        options: SegmentOptions,
        device: Device,
        report: Callable[[str], None],
        runtime_for: Callable[[Task], Runtime] = EagerRuntime,
        patch: tuple[int, int, int] = (0, 0, 0),
        weights_sha256: str | None = None,
        network: DCANet | None = None,
    ) -> None:
        self._network_on = network_on
        network = network or network_on(device.torch_device)
        self._options = options
        self._report = report
        check_abilities(network, options)
        self._task = Task(network, wanted_of(options), patch, device, weights_sha256)
        self._runtime = runtime_for(self._task)
        if not self._runtime.needs_network:
            self._task = replace(self._task, network=network.without_weights())
        self.plan = Plan(device, options.batch or self._runtime.windows_at_once)

    @property
    def runtime(self) -> str:
        """The name of the runtime that runs the network now."""
        return self._runtime.name

    @property
    def network(self) -> DCANet:
        """The network, without weights where the runtime has its own."""
        return self._task.network

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the predictions."""
        both = (RESULT, OTHER) if self._options.disagreement else (RESULT,)
        return *both, *(attention_name(level) for level in self._options.levels_needed)

    @property
    def expert_slots(self) -> tuple[int, ...]:
        """Which of head (0), medium (1) and tail (2) the attention's channels stand for."""
        return self._task.network.expert_slots

    def rest(self) -> None:
        """Let go of memory that the next window would take again."""
        self._runtime.rest()

    def __call__(self, windows: Tensor) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = []
        done = 0
        while done < len(windows):
            chunk = windows[done : done + self.plan.batch]
            try:
                part = self._predict(chunk)
                if len(chunk) < len(windows):
                    # The next answer may lie where this one does.
                    part = {name: values.clone() for name, values in part.items()}
                parts.append(part)
                done += len(chunk)
                continue
            except (RuntimeError, MemoryError) as error:
                following = self._following(error)
                if following is None and is_out_of_memory(error):
                    raise UserError(
                        "The memory does not suffice to run the model on a single window.",
                        "Close other programs, or use a model with a smaller patch or fewer filters.",
                    ) from error
                if following is None:
                    raise
                plan, message = following
            # Only here has the failed attempt's traceback let go of its tensors.
            self._change_plan(plan)
            self._report(message)
        if len(parts) == 1:
            return parts[0]
        device = parts[-1][RESULT].device
        return {name: torch.cat([part[name].to(device) for part in parts]) for name in parts[0]}

    def _following(self, error: Exception) -> tuple[Plan, str] | None:
        """What to go on with after ``error``, and what to say of it."""
        if self._runtime.name != EagerRuntime.name and not is_out_of_memory(error):
            return self.plan, f"The runtime {self._runtime.name} failed ({_first_line(error)}): going on with PyTorch."
        return self.plan.after(error)

    def _change_plan(self, plan: Plan) -> None:
        if self.plan.device.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        if plan.device != self.plan.device or plan == self.plan:
            network = self._task.network
            if plan.device.torch_device != self.plan.device.torch_device or not network.has_weights:
                network = self._network_on(plan.device.torch_device)
            self._task = replace(self._task, network=network, device=plan.device)
            self._runtime = EagerRuntime(self._task)
        self.plan = plan

    def _predict(self, windows: Tensor) -> dict[str, Tensor]:
        device = self.plan.device
        predictions = self._forward(windows.to(device.torch_device))
        if _finite(predictions):
            return predictions
        if device.half:
            self._report("Half precision overflowed: going on in single precision.")
            self._change_plan(Plan(Device(device.torch_device, device.description), self.plan.batch))
            return self._predict(windows)
        raise BundleError(
            "The network gives values that are not finite.", "Its weights are damaged: get the model bundle again."
        )

    def _forward(self, windows: Tensor) -> dict[str, Tensor]:
        options = self._options
        answer = self._runtime(windows)
        with torch.inference_mode():
            both = {"aggregated": answer.aggregated, "experts": answer.stitched}
            logits = {RESULT: both.pop(options.output)}
            if options.disagreement:
                logits[OTHER] = both.popitem()[1]
            predictions = {name: values.float() for name, values in logits.items() if values is not None}
            if options.average == "probabilities":
                predictions = {name: torch.softmax(values, dim=1) for name, values in predictions.items()}
            for level, weights in answer.attention.items():
                predictions[attention_name(level)] = at_patch_resolution(weights.float(), windows.shape[2:])
        return predictions


def at_patch_resolution(attention: Tensor, size: torch.Size) -> Tensor:
    """Attention (batch, expert, depth, height, width) of a coarser level at ``size``, trilinear.

    Trilinear rather than nearest: a voxel of level 1 spans eight of the patch, and the blocks it would leave in the
    map are no boundary the network drew. Interpolation weights sum to one, so the experts' values still do.
    """
    if attention.shape[2:] == size:
        return attention
    return functional.interpolate(attention, size=list(size), mode="trilinear", align_corners=False)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _finite(predictions: dict[str, Tensor]) -> bool:
    # A sum is finite only if all is, and takes a tenth of the time; that it may also overflow by itself is looked into.
    return all(
        bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all()) for values in predictions.values()
    )


def check_abilities(network: DCANet, options: SegmentOptions) -> None:
    """Raises UserError where ``network`` lacks what ``options`` ask for."""
    if network.aggregation is None and (options.disagreement or options.levels_needed):
        raise UserError(
            "This model has no aggregation decoder, so it has no attention and no disagreement.",
            "Ask for the labels and the entropy alone, or use another model.",
        )
    if options.levels_needed and network.options["fusion"] not in ("dfam", "average"):
        raise UserError(
            f"This model's fusion ({network.options['fusion']}) gives no attention.",
            "Leave out attention maps and the deciding expert, or use a model with DFAM fusion.",
        )
