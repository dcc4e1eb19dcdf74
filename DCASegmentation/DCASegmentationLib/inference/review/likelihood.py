"""How often a voxel is wrong, by what the network says of it and by whether a border passes.

A network is sure of borders that lie half a voxel off, so its own probabilities understate errors where they are small,
and where they are large, overstate them. The table was counted on synthetic people (``evaluation.review_cases``,
those for tuning) with both shipped models, which agreed within some 0.03; it says nothing of other data, where the
order of places stands but the ml may be off.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .evidence import Bytes, Evidence

# Risk as ``Evidence`` has it, 0 to 1, and the share of voxels of that risk found wrong.
_AT_BORDERS = (
    (0.0, 0.008, 0.018, 0.03, 0.05, 0.08, 0.12, 0.17, 0.24, 0.35, 0.45, 0.57, 0.65, 1.0),
    (0.045, 0.075, 0.11, 0.15, 0.18, 0.215, 0.245, 0.28, 0.31, 0.35, 0.39, 0.42, 0.45, 0.6),
)
_ELSEWHERE = (
    (0.0, 0.001, 0.008, 0.02, 0.05, 0.12, 0.3, 1.0),
    (0.0, 0.001, 0.008, 0.035, 0.06, 0.1, 0.15, 0.6),
)


def likelihood_of_error(evidence: Evidence) -> Bytes:
    """For each voxel how likely its label is wrong, 0 to 255 for 0 to 1."""
    border = _beside_another(evidence.labels)
    if evidence.other is not None:
        border |= _beside_another(evidence.other)
    return np.where(border, _table(*_AT_BORDERS)[evidence.risk], _table(*_ELSEWHERE)[evidence.risk])


def _table(risk: tuple[float, ...], wrong: tuple[float, ...]) -> Bytes:
    return np.rint(np.interp(np.arange(256) / 255, risk, wrong) * 255).astype(np.uint8)


def _beside_another(labels: Bytes) -> NDArray[np.bool_]:
    """Voxels that share a face with a voxel of another label."""
    border = np.zeros(labels.shape, bool)
    for axis in range(3):
        along, marked = np.moveaxis(labels, axis, 0), np.moveaxis(border, axis, 0)
        differ = along[1:] != along[:-1]
        marked[1:] |= differ
        marked[:-1] |= differ
    return border
