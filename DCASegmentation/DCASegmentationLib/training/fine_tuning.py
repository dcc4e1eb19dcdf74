"""Going on from a trained model on few cases, such as corrected ones: short, careful, and without a change of shape."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..bundle.metadata import Metadata
from .options import GridOptions, TrainingOptions

# Chosen once, before any result: a run of a few minutes on one core whose learning rate is a quarter of a training's
# from nothing; it averages over some last fifty steps, and keeps what the aggregation decoder knows. Pseudo-labels
# are good from the start, so they need no long ramp.
CAREFUL: Mapping[str, Any] = {
    "steps": 160,
    "learning_rate": 5e-4,
    "warmup_steps": 10,
    "experts_first": 0.5,
    "aggregation_start": "as_is",
    "class_balance": 0.0,
    "ramp_fraction": 0.3,
    "averaging": 0.98,
}


def fine_tuning_options(metadata: Metadata, **changes: Any) -> TrainingOptions:
    """Options of a run that goes on from the model of ``metadata``: its grid and network, ``CAREFUL``, then
    ``changes``. A grid among these is another preparation of the CTs, which the model has to get used to."""
    network = metadata.network
    shape = {
        "grid": GridOptions(
            metadata.spacing, metadata.orientation, metadata.hu_window, anti_aliasing=metadata.anti_aliasing
        ),
        "patch": metadata.patch,
        "partition": metadata.partition.mode,
        "n_filters": network["n_filters"],
        "norm": network["norm"],
        "n_stages": tuple(tuple(stages) for stages in network["n_stages"]),
        "dilations": tuple(tuple(dilation) for dilation in network["dilations"]),
        "fusion": network["fusion"],
        "aggregation": network["aggregation"],
        "stitching": network["stitching"],
        # Bundles from before these options existed lack them.
        "upsampling": network.get("upsampling", "transposed"),
        "residual": network.get("residual", False),
    }
    return TrainingOptions(**{**shape, **CAREFUL, **changes})
