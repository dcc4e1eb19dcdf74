"""From windows to everything that is asked of the network about them, with fewer windows at once if memory is short."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import BundleError, UserError
from ..method.network import DCANet
from .device import Device, Plan, is_out_of_memory
from .options import SegmentOptions

RESULT = "result"
OTHER = "other"
"""The prediction that was not asked for as the result (stitched experts or aggregation), for the disagreement."""


def attention_name(level: int) -> str:
    """Name of a level's attention among the predictions."""
    return f"attention {level}"


class WindowPrediction:
    """Runs the network on batches of windows.

    Called with windows (batch, 1, depth, height, width) it returns named predictions, float32
    (batch, channel, depth, height, width) on the plan's device: ``RESULT``, ``OTHER`` if the disagreement is asked
    for, and the attention of each level needed, brought to the windows' resolution. ``average`` decides whether
    the first two are logits or probabilities.

    When memory runs out, ``plan`` gets smaller (see ``device.Plan``) and stays so; ``report`` is told.
    Raises UserError if memory does not suffice for one window on the CPU or if the network lacks what the options
    ask for, and BundleError if the network's values are not finite.
    """

    def __init__(
        self,
        network_on: Callable[[torch.device], DCANet],
        options: SegmentOptions,
        device: Device,
        report: Callable[[str], None],
    ) -> None:
        self.plan = Plan(device, options.batch)
        self._network_on = network_on
        self._network = network_on(device.torch_device)
        self._options = options
        self._report = report
        _check_abilities(self._network, options)

    @property
    def expert_slots(self) -> tuple[int, ...]:
        """Which of head (0), medium (1) and tail (2) the attention's channels stand for."""
        return self._network.expert_slots

    def __call__(self, windows: Tensor) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = []
        done = 0
        while done < len(windows):
            chunk = windows[done : done + self.plan.batch]
            try:
                parts.append(self._predict(chunk))
                done += len(chunk)
                continue
            except (RuntimeError, MemoryError) as error:
                following = self.plan.after(error)
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

    def _change_plan(self, plan: Plan) -> None:
        if self.plan.device.torch_device.type == "cuda":
            torch.cuda.empty_cache()
        if plan.device.torch_device != self.plan.device.torch_device:
            self._network = self._network_on(plan.device.torch_device)
        self.plan = plan

    def _predict(self, windows: Tensor) -> dict[str, Tensor]:
        device = self.plan.device
        predictions = self._forward(windows.to(device.torch_device), device.half)
        if _finite(predictions):
            return predictions
        if device.half:
            self._report("Half precision overflowed: going on in single precision.")
            self.plan = Plan(Device(device.torch_device, device.description), self.plan.batch)
            return self._predict(windows)
        raise BundleError(
            "The network gives values that are not finite.", "Its weights are damaged: get the model bundle again."
        )

    def _forward(self, windows: Tensor, half: bool) -> dict[str, Tensor]:
        options = self._options
        network = self._network
        precision = torch.autocast(windows.device.type, torch.float16) if half else nullcontext()
        with torch.inference_mode(), precision:
            both = options.disagreement
            attention: dict[int, Tensor] = {}
            if options.output == "aggregated" and not (both or options.levels_needed):
                logits = {RESULT: network(windows)}
            elif options.output == "experts" and not (both or options.levels_needed):
                # The experts' own answer needs neither the aggregation decoder nor the fusion.
                experts = network.decode_experts(network.encoder(windows))
                logits = {RESULT: network.stitch([expert.logits for expert in experts])}
            else:
                parts = network.forward_parts(windows, options.levels_needed)
                attention = parts.attention
                logits = {RESULT: parts.aggregated, OTHER: network.stitch(parts.experts)}
                if options.output == "experts":
                    logits = {RESULT: logits[OTHER], OTHER: logits[RESULT]}
                if not both:
                    del logits[OTHER]
        with torch.inference_mode():
            predictions = {name: values.float() for name, values in logits.items()}
            if options.average == "probabilities":
                predictions = {name: torch.softmax(values, dim=1) for name, values in predictions.items()}
            for level, weights in attention.items():
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


def _finite(predictions: dict[str, Tensor]) -> bool:
    return all(bool(torch.isfinite(values).all()) for values in predictions.values())


def _check_abilities(network: DCANet, options: SegmentOptions) -> None:
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
