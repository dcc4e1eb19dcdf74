"""A table of the network's parts: output shape, parameters and multiply-accumulate operations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .channel_attention import AttendingNet
from .ensemble import EnsembleNet
from .network import DCANet

_EXPERTS = ("Head expert", "Medium expert", "Tail expert")
_LEVELS = ("DeB-6", "DeB-7", "DeB-8", "DeB-9")


@dataclass(frozen=True)
class PartSummary:
    """One part of the network.

    ``output_shape`` is (channel, depth, height, width): the last output of an encoder or decoder, or the fused features
    of a fusion. ``parameters`` is the number of learned parameters. ``macs`` is the number of multiply-accumulate
    operations for one patch. Only convolutions are counted: normalization and activation cost little in comparison.
    """

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def summarize(network: DCANet, patch: Sequence[int] = (96, 96, 96)) -> list[PartSummary]:
    """Describe each part of ``network`` for one ``patch`` (depth, height, width) in voxels; the last row is the total.

    Each fusion of the aggregation decoder has its own row and is not included in the decoder's row. Nothing is
    computed; only shapes pass through the network.

    Raises ValueError if a side of the patch is not divisible by 16.
    """
    depth, height, width = patch
    if any(side < network.divisor or side % network.divisor for side in patch):
        raise ValueError(f"the sides of a patch must be divisible by {network.divisor}, got {tuple(patch)}")
    # Tensors on the meta device have a shape but no data, so this takes neither memory nor time.
    meta_network = network.copy_without_weights()
    with torch.device("meta"):
        volume = torch.empty(1, network.options["in_channels"], depth, height, width)
    probes = _create_probes(meta_network)
    handles = [handle for probe in probes for handle in probe.attach()]
    with torch.no_grad():
        result = meta_network(volume)
    for handle in handles:
        handle.remove()
    rows = [probe.get_summary() for probe in probes]
    total = PartSummary(
        "Total", tuple(result.shape[1:]), sum(row.parameters for row in rows), sum(row.macs for row in rows)
    )
    return [*rows, total]


@dataclass
class _Probe:
    """Measures one part. ``excluded`` are modules inside it that have their own probe."""

    name: str
    module: nn.Module
    excluded: Sequence[nn.Module] = ()
    macs: int = 0
    output_shape: tuple[int, ...] = field(default=())

    def attach(self) -> list[Any]:
        """Start to measure forward passes, and return handles that end it (``handle.remove()``)."""
        inner = {id(module) for other in self.excluded for module in other.modules()}
        handles = [
            module.register_forward_hook(self._count)
            for module in self.module.modules()
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and id(module) not in inner
        ]
        return [*handles, self.module.register_forward_hook(self._note_shape)]

    def get_summary(self) -> PartSummary:
        """What was measured, and the number of parameters."""
        inner = sum(parameter.numel() for module in self.excluded for parameter in module.parameters())
        parameters = sum(parameter.numel() for parameter in self.module.parameters()) - inner
        return PartSummary(self.name, self.output_shape, parameters, self.macs)

    def _count(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
        # The whole kernel applies to each output voxel of a convolution, and to each input voxel of a transposed one.
        voxels = inputs[0][0, 0].numel() if isinstance(module, nn.ConvTranspose3d) else output[0, 0].numel()
        kernel = math.prod(module.kernel_size) * module.in_channels * module.out_channels // module.groups
        self.macs += voxels * kernel

    def _note_shape(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        while not isinstance(output, Tensor):
            output = _get_main_tensor(output)
        self.output_shape = tuple(output.shape[1:])


def _get_main_tensor(output: Any) -> Any:
    """The tensor of a module's output whose shape goes into the table."""
    if hasattr(output, "logits"):
        return output.logits
    # The encoder's list ends with the deepest features. The outputs of a decoder and a fusion start with the result.
    return output[-1] if isinstance(output, list) else output[0]


def _create_probes(network: DCANet) -> list[_Probe]:
    probes = [_Probe("Encoder", network.encoder)]
    single = len(network.options["owners"]) == 1
    for slot, expert in zip(network.expert_slots, network.experts, strict=True):
        probes.append(_Probe("Decoder" if single else _EXPERTS[slot], expert))
    if network.aggregation is not None:
        kind = network.options["fusion"]
        title = "DFAM" if kind == "dfam" else f"Fusion ({kind})"
        fusions = list(network.aggregation.fusions)
        probes += [_Probe(f"{title} {level}", module) for level, module in zip(_LEVELS, fusions, strict=True)]
        probes.append(_Probe("Aggregation decoder", network.aggregation, excluded=fusions))
    if isinstance(network, AttendingNet):
        blocks = enumerate(network.attention, start=1)
        probes += [_Probe(f"Channel attention {index}", block) for index, block in blocks]
    if isinstance(network, EnsembleNet):
        for index, other in enumerate(network.others, start=2):
            assert isinstance(other, DCANet)
            probes += [_Probe(f"{probe.name} {index}", probe.module) for probe in _create_probes(other)]
    return probes
