"""Label split: what of a label map each expert is taught."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def split_labels(labels: Tensor, owned: Iterable[int]) -> Tensor:
    """``labels`` with every label outside ``owned`` set to background (slide "Conquer", label-split).

    Labels keep their number. ``labels`` is an integer tensor of any shape.
    """
    members = torch.tensor(sorted(owned), dtype=labels.dtype, device=labels.device)
    return torch.where(torch.isin(labels, members), labels, torch.zeros_like(labels))
