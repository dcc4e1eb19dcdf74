"""Logit stitching: one prediction from the experts, each foreground channel from its owner only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

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
    if mode == "raw":
        sources = list(expert_logits)
    elif mode == "background_relative":
        sources = [logits - logits[:, :1] for logits in expert_logits]
    elif mode == "log_softmax":
        sources = [functional.log_softmax(logits, dim=1) for logits in expert_logits]
    else:
        raise ValueError(f"stitching must be 'raw', 'background_relative' or 'log_softmax', not {mode!r}")

    stitched = torch.empty_like(sources[0])
    stitched[:, 0] = torch.stack([logits[:, 0] for logits in sources]).mean(dim=0)
    for logits, owned in zip(sources, owners, strict=True):
        index = list(owned)
        stitched[:, index] = logits[:, index]
    return stitched
