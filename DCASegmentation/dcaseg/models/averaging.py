"""The average of the weights of several models (a "model soup": Wortsman et al., ICML 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .bundle import Bundle, save_bundle
from .metadata import Metadata, TrainingData

# What must be equal for the weights to mean the same.
_SAME = ("vocabulary", "spacing", "orientation", "hu_window", "anti_aliasing", "patch")


def average_bundles(bundles: Sequence[Bundle], out: Path, name: str = "", overwrite: bool = False) -> Bundle:
    """Write the bundle ``out``, whose weights are the mean of those of ``bundles``.

    This helps if the models are stages of one training, or were fine-tuned from the same model: the mean is often
    better than each of them, at the cost of one. Its metadata are those of the last model, with the training data of
    all and without scores. ``name`` is that of the model, by default the folder's. The models may have seen different
    proportions of the organs if these lie in the same groups.

    Raises UserError for less than two models and for models whose weights cannot be averaged: with other organs, grids,
    patches, groups or networks, or with batch normalization, whose statistics belong to the weights they were measured
    with. Raises OutputError if the bundle cannot be written.

    Example: ``average_bundles([Bundle.load(Path("models/a")), Bundle.load(Path("models/b"))], Path("models/mean"))``
    """
    if len(bundles) < 2:
        raise UserError("An average needs at least two models.", "Specify another model.")
    *others, last = bundles
    for other in others:
        _require_same_kind(other, last)
    if last.metadata.network.get("norm") == "batch":
        raise UserError(
            "Models with batch normalization cannot be averaged: its statistics belong to the weights of each model.",
            "Train with instance normalization (the default).",
        )
    network = last.network()
    mean = {key: value.double() for key, value in network.state_dict().items()}
    for other in others:
        for key, value in other.network().state_dict().items():
            mean[key] += value.double()
    network.load_state_dict(
        {key: _as_before(mean[key] / len(bundles), old) for key, old in network.state_dict().items()}
    )
    return save_bundle(out, network, _merge_metadata(bundles, name or out.absolute().name), overwrite=overwrite)


def _require_same_kind(one: Bundle, other: Bundle) -> None:
    different = [field for field in _SAME if getattr(one.metadata, field) != getattr(other.metadata, field)]
    if _get_organ_groups(one) != _get_organ_groups(other):
        different.append("partition")
    # Heads have a channel for each organ, so the order of the organs in a group does not matter.
    options, other_options = ({**each.metadata.network, "owners": None} for each in (one, other))
    if options != other_options:
        different.append("network")
    if different:
        raise UserError(
            f"{one.metadata.name} and {other.metadata.name} cannot be averaged: they differ in "
            f"{', '.join(field.replace('_', ' ') for field in different)}.",
            "Average models that were trained from the same model, with the same options of the model.",
        )


def _get_organ_groups(bundle: Bundle) -> list[set[int]]:
    return [set(owned) for owned in bundle.metadata.partition.owners]


def _as_before(value: Tensor, old: Tensor) -> Tensor:
    return value.to(old.dtype) if old.is_floating_point() else torch.round(value).to(old.dtype)


def _merge_metadata(bundles: Sequence[Bundle], name: str) -> Metadata:
    last = bundles[-1].metadata
    data: list[TrainingData] = []
    for bundle in reversed(bundles):
        data += [source for source in bundle.metadata.training_data if source not in data]
    limits = dict.fromkeys(limit for bundle in reversed(bundles) for limit in bundle.metadata.limits)
    versions = " and ".join(f"{bundle.metadata.name} {bundle.metadata.version}" for bundle in bundles)
    return replace(
        last,
        name=name,
        description=f"{last.description.rstrip('.')}. Mean of the weights of {versions}.",
        training_data=tuple(data),
        limits=tuple(limits),
        scores=None,
    )
