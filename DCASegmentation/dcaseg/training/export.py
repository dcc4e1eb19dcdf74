"""Export of a run's best checkpoint as a model bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..method.ensemble import EnsembleNet
from ..method.log_gap import Partition
from ..method.network import DCANet
from ..models.bundle import Bundle, save_bundle
from ..models.metadata import DEFAULT_OVERLAP, Metadata, TrainingData
from .checkpoints import RunRecord, has_checkpoint, load_checkpoint, read_record
from .options import TrainingOptions
from .run_folder import BEST, CHECKPOINT
from .strategies.base import MeanOfNetworks
from .strategies.registry import make_strategy
from .trainer import have_same_groups

SYNTHETIC_ONLY = "Trained on synthetic CTs only: in patient CTs, organs are often wrong or missing."
NO_LABELED_PATIENT = "Not trained on labeled patient CTs: organs may be wrong or missing."
NOT_CLINICAL = "Not for clinical use."
NOT_DCA = "Trained with a method that DCA is compared with: no attention maps, and review findings use less evidence."


def export_bundle(
    run: Path, out: Path, name: str = "", overlap: float | None = None, overwrite: bool = False
) -> Bundle:
    """Write the checkpoint of ``run`` with the best validation score as the bundle ``out``.

    Without validation, it is the last checkpoint. The metadata come from the run. ``name`` is that of the model, by
    default the folder's. The sliding window's ``overlap`` is by default that of the model the run started from, or
    ``DEFAULT_OVERLAP``. The bundle has no scores yet.

    Raises UserError if ``run`` is not a run that can become a model, OutputError if the bundle cannot be written.
    """
    record = read_record(run)
    state = load_checkpoint(run / (BEST if has_checkpoint(run / BEST) else CHECKPOINT))
    if not have_same_groups(state["owners"], record.partition.owners):
        raise UserError(
            f"The checkpoint and the record in {run} belong to different runs.", "Train again in a new folder."
        )
    options = TrainingOptions.from_json(state["options"])
    if not is_exportable(options):
        raise UserError(
            f"The run in {run} used the preprocessing of a published protocol, which is only for comparison: inference "
            "needs a spacing in mm and a window in HU.",
            "Train a model with another --preprocessing.",
        )
    network = build_trained_network(options, record.partition, state)
    metadata = _make_metadata(name or out.absolute().name, replace(record, options=options), state["step"], network)
    if overlap is not None:
        metadata = replace(metadata, overlap=overlap)
    return save_bundle(out, network.eval(), metadata, overwrite=overwrite)


def is_exportable(options: TrainingOptions) -> bool:
    """Whether a run with these options can become a model; with the preprocessing of some protocols it cannot."""
    return options.grid.shape is None and options.grid.scaling == "window"


def build_trained_network(options: TrainingOptions, partition: Partition, state: Mapping[str, Any]) -> DCANet:
    """The network or ensemble that a run validates, with the weights of ``state`` (EMA if it has one)."""
    strategy = make_strategy(options, partition)
    strategy.network.load_state_dict(state["network"])
    strategy.load_state_dict(state.get("strategy", {}), strict=False)
    validated = strategy.get_validated_network()
    if "averaged" in state:
        validated.load_state_dict(state["averaged"])
    if isinstance(validated, MeanOfNetworks):
        return EnsembleNet.from_networks(list(validated.networks), validated.mean_of)  # type: ignore[arg-type]
    return validated


def _make_metadata(name: str, record: RunRecord, step: int, network: DCANet) -> Metadata:
    options = record.options
    training_data = _collect_training_data(record)
    spacing = " x ".join(f"{side:g}" for side in options.grid.spacing)
    method, vocabulary = _describe_method(network, options), record.vocabulary
    return Metadata(
        name=name,
        description=(
            f"{method} for the {len(vocabulary)} organs of {vocabulary.name} at {spacing} mm, {step} steps, "
            f"{options.n_filters} filters, trained on {_summarize_training_data(training_data)}."
        ),
        vocabulary=vocabulary,
        spacing=options.grid.spacing,
        orientation=options.grid.orientation,
        hu_window=options.grid.hu_window,
        anti_aliasing=options.grid.anti_aliasing,
        patch=options.patch,
        partition=record.partition,
        training_data=training_data,
        limits=_list_limitations(training_data, options),
        licence=_choose_license(training_data),
        overlap=DEFAULT_OVERLAP if record.initial is None else record.initial.overlap,
    )


def _collect_training_data(record: RunRecord) -> tuple[TrainingData, ...]:
    """The data of the run, and those of the model it started from."""
    earlier = () if record.initial is None else record.initial.training_data
    own = record.cohort.training_data
    return own + tuple(data for data in earlier if data not in own)


def _summarize_training_data(training_data: tuple[TrainingData, ...]) -> str:
    if all(data.synthetic for data in training_data):
        return "synthetic CT only"
    groups = {("labeled" if data.labeled else "unlabeled", data.synthetic) for data in training_data}
    nouns = {True: "synthetic CT", False: "CT of patients"}
    *others, last = [f"{labels} {nouns[synthetic]}" for labels, synthetic in sorted(groups)]
    return f"{', '.join(others)} and {last}" if others else last


def _describe_method(network: DCANet, options: TrainingOptions) -> str:
    if options.strategy == "dca":
        return "DCA"
    networks = f"{network.options['members']} networks" if isinstance(network, EnsembleNet) else "One network"
    means = f" (mean {network.mean_of})" if isinstance(network, EnsembleNet) else ""
    return f"{networks}{means} trained with --strategy {options.strategy}"


def _list_limitations(training_data: tuple[TrainingData, ...], options: TrainingOptions) -> tuple[str, ...]:
    limits = [NOT_CLINICAL] if options.strategy == "dca" else [NOT_DCA, NOT_CLINICAL]
    if all(data.synthetic for data in training_data):
        return (SYNTHETIC_ONLY, *limits)
    if not any(data.labeled and not data.synthetic for data in training_data):
        return (NO_LABELED_PATIENT, *limits)
    return tuple(limits)


def _choose_license(training_data: tuple[TrainingData, ...]) -> str:
    """Apache-2.0, unless the license of some data may apply to the model: a share-alike license, or unknown terms."""
    share_alike = [data.licence for data in training_data if "-SA-" in f"{data.licence}-".replace(" ", "-")]
    unknown = [data.name for data in training_data if data.licence.startswith(("see ", "not stated"))]
    if unknown and not share_alike:
        return f"as the terms of its training data allow ({', '.join(unknown)})"
    return share_alike[0] if share_alike else "Apache-2.0"
