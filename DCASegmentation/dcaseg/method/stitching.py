"""Label split and logit stitching: what each expert is taught, and one prediction from all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional


def split_labels(labels: Tensor, owned: Iterable[int]) -> Tensor:
    """``labels`` with every label outside ``owned`` set to background (slide "Conquer", label-split).

    Labels keep their number. ``labels`` is an integer tensor of any shape.
    """
    members = torch.tensor(sorted(owned), dtype=labels.dtype, device=labels.device)
    return torch.where(torch.isin(labels, members), labels, torch.zeros_like(labels))


StitchingMode = Literal["raw", "background_relative", "log_softmax"]


def stitch(expert_logits: Sequence[Tensor], owners: Sequence[Sequence[int]], mode: StitchingMode) -> Tensor:
    """Stitched logits (batch, channel, depth, height, width) of experts that own the labels in ``owners``.

    ``raw`` is the paper (slide "Logit Stitching"): owners' logits as they are, the background the experts' mean. A
    softmax leaves each expert's logits free by a constant per voxel, and that constant moves a raw stitch. The other
    two are free of it: ``background_relative`` takes each foreground logit relative to its own expert's background,
    so a voxel becomes foreground exactly where some expert prefers one of its organs to its background;
    ``log_softmax`` stitches log-probabilities.

    Raises ValueError for another mode, or when ``owners`` are not one set of labels for each expert that together
    hold every foreground label once.
    """
    n_channels = expert_logits[0].shape[1]
    if len(owners) != len(expert_logits):
        raise ValueError(f"{len(expert_logits)} experts need as many sets of owned labels, not {len(owners)}")
    if sorted(label for owned in owners for label in owned) != list(range(1, n_channels)):
        raise ValueError(f"each of the labels 1 to {n_channels - 1} needs exactly one owner, got {list(owners)}")
    sources = [comparable(logits, mode) for logits in expert_logits]
    owned_logits = [_channels(logits, owned) for logits, owned in zip(sources, owners, strict=True)]
    return join([logits[:, :1] for logits in sources], owned_logits, owners)


def comparable(logits: Tensor, mode: StitchingMode) -> Tensor:
    """One expert's logits (background first) as ``mode`` stitches them. Raises ValueError for another mode."""
    if mode == "raw":
        return logits
    if mode == "background_relative":
        return logits - logits[:, :1]
    if mode == "log_softmax":
        return functional.log_softmax(logits, dim=1)
    raise ValueError(f"stitching must be 'raw', 'background_relative' or 'log_softmax', not {mode!r}")


def join(backgrounds: Sequence[Tensor], foregrounds: Sequence[Tensor], owners: Sequence[Sequence[int]]) -> Tensor:
    """The mean of ``backgrounds`` and, by label, the channels of ``foregrounds``, each in the order of its owner's."""
    background = torch.stack(list(backgrounds)).mean(dim=0)
    channels = {
        label: logits[:, index : index + 1]
        for logits, owned in zip(foregrounds, owners, strict=True)
        for index, label in enumerate(owned)
    }
    return torch.cat([background, *(channels[label] for label in sorted(channels))], dim=1)


def _channels(logits: Tensor, labels: Sequence[int]) -> Tensor:
    # A list as index would become a tensor of the CPU, which no CUDA graph takes.
    return torch.stack([logits[:, label] for label in labels], dim=1) if labels else logits[:, :0]
