"""Label split and logit stitching: the training labels of each expert, and one prediction from all experts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .variants import Combination, StitchingMode


def split_labels(labels: Tensor, owned: Iterable[int]) -> Tensor:
    """Set every label that is not in ``owned`` to background (slide "Conquer", label-split).

    The other labels keep their numbers. ``labels`` is an integer tensor of any shape; the result has its shape.
    """
    members = torch.tensor(sorted(owned), dtype=labels.dtype, device=labels.device)
    return torch.where(torch.isin(labels, members), labels, torch.zeros_like(labels))


def stitch(expert_logits: Sequence[Tensor], owners: Sequence[Sequence[int]], mode: Combination) -> Tensor:
    """Stitch the logits of all experts, each (batch, channel, depth, height, width); the result has the same shape.

    Each foreground channel comes from the expert that owns the label (``owners`` holds the labels of each expert); the
    background is the mean over the experts. ``mode`` chooses what is stitched:

    - ``raw``: the logits, as in the paper (slide "Logit Stitching"). A constant added to all of an expert's logits at a
      voxel does not change its softmax, so training leaves that constant open, yet it changes the stitched result.
    - ``background_relative``: each logit minus the background logit of the same expert. A voxel becomes foreground
      exactly where some expert prefers one of its organs to its background.
    - ``log_softmax``: log-probabilities.
    - ``average``: nothing; the result is the mean of all logits, for experts that each learn all organs.

    Raises ValueError for another mode, or if ``owners`` does not have one entry per expert or does not hold every
    foreground label exactly once.
    """
    n_channels = expert_logits[0].shape[1]
    if len(owners) != len(expert_logits):
        raise ValueError(f"{len(expert_logits)} experts need {len(expert_logits)} sets of labels, got {len(owners)}")
    if sorted(label for owned in owners for label in owned) != list(range(1, n_channels)):
        raise ValueError(f"each of the labels 1 to {n_channels - 1} needs exactly one owner, got {list(owners)}")
    if mode == "average":
        return torch.stack(list(expert_logits)).mean(dim=0)
    sources = [to_stitching_mode(logits, mode) for logits in expert_logits]
    owned_logits = [_select_channels(logits, owned) for logits, owned in zip(sources, owners, strict=True)]
    return combine_channels([logits[:, :1] for logits in sources], owned_logits, owners)


def to_stitching_mode(logits: Tensor, mode: StitchingMode) -> Tensor:
    """Convert one expert's logits (batch, channel, depth, height, width) to the values that ``mode`` stitches.

    Channel 0 is the background. Raises ValueError for another mode.
    """
    if mode == "raw":
        return logits
    if mode == "background_relative":
        return logits - logits[:, :1]
    if mode == "log_softmax":
        return functional.log_softmax(logits, dim=1)
    raise ValueError(f"stitching must be 'raw', 'background_relative' or 'log_softmax', not {mode!r}")


def combine_channels(
    backgrounds: Sequence[Tensor], foregrounds: Sequence[Tensor], owners: Sequence[Sequence[int]]
) -> Tensor:
    """The mean background, followed by the foreground channels in the order of their labels.

    For each expert, ``backgrounds`` is (batch, 1, depth, height, width), and ``foregrounds`` holds one channel for each
    of its labels, in the order of ``owners``.
    """
    background = torch.stack(list(backgrounds)).mean(dim=0)
    channels = {
        label: logits[:, index : index + 1]
        for logits, owned in zip(foregrounds, owners, strict=True)
        for index, label in enumerate(owned)
    }
    return torch.cat([background, *(channels[label] for label in sorted(channels))], dim=1)


def _select_channels(logits: Tensor, labels: Sequence[int]) -> Tensor:
    # Indexing with a list would create a CPU tensor, which a CUDA graph cannot capture.
    return torch.stack([logits[:, label] for label in labels], dim=1) if labels else logits[:, :0]
