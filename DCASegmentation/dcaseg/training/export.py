"""A run's best checkpoint as a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..models.bundle import Bundle, save_bundle
from ..models.metadata import DEFAULT_OVERLAP, Metadata, TrainingData
from .checkpoints import RunRecord, has_checkpoint, load_checkpoint, read_record
from .options import TrainingOptions
from .trainer import BEST, CHECKPOINT, build_network, same_groups

SYNTHETIC_ONLY = "Trained on synthetic CT only: on CTs of patients its organs are often wrong or missing."
NO_LABELLED_PATIENT = "No CT of a patient with labels was trained on: its organs may be wrong or missing."
NOT_CLINICAL = "Not for clinical use."


def export_bundle(
    run: Path, out: Path, name: str = "dca-synthetic", overlap: float | None = None, overwrite: bool = False
) -> Bundle:
    """Make the bundle ``out`` of the checkpoint in ``run`` that validated best, or of the last if none was validated.

    Everything in its metadata comes from the run, but for the ``overlap`` of its windows: left out, it is that of the
    model that the run started from, or the usual one. Scores are left to be measured. Raises UserError if there is no
    such run, OutputError where the bundle cannot be written.
    """
    record = read_record(run)
    state = load_checkpoint(run / (BEST if has_checkpoint(run / BEST) else CHECKPOINT))
    if not same_groups(state["owners"], record.partition.owners):
        raise UserError(f"The checkpoint in {run} is of another run than its record.", "Train in a new folder.")
    options = TrainingOptions.from_json(state["options"])
    if options.strategy != "dca":
        raise UserError(
            f"The run in {run} trained the baseline '{options.strategy}', which is made for comparison.",
            "Pack a run of --strategy dca.",
        )
    if options.grid.shape is not None or options.grid.scaling != "window":
        raise UserError(
            f"The run in {run} prepared its CTs as a published protocol does, for comparison: inference has voxels in "
            "mm and a window in HU.",
            "Train with another --preprocessing to make a model.",
        )
    network = build_network(options, record.partition)
    network.load_state_dict(state["averaged"] if options.ema_decay else state["network"])
    metadata = _metadata(name, replace(record, options=options), state["step"])
    if overlap is not None:
        metadata = replace(metadata, overlap=overlap)
    return save_bundle(out, network.eval(), metadata, overwrite=overwrite)


def _metadata(name: str, record: RunRecord, step: int) -> Metadata:
    options = record.options
    training_data = _training_data(record)
    spacing = " x ".join(f"{side:g}" for side in options.grid.spacing)
    return Metadata(
        name=name,
        description=(
            f"DCA for the {len(record.vocabulary)} organs of {record.vocabulary.name} at {spacing} mm, {step} steps, "
            f"{options.n_filters} filters, trained on {_in_words(training_data)}."
        ),
        vocabulary=record.vocabulary,
        spacing=options.grid.spacing,
        orientation=options.grid.orientation,
        hu_window=options.grid.hu_window,
        anti_aliasing=options.grid.anti_aliasing,
        patch=options.patch,
        partition=record.partition,
        training_data=training_data,
        limits=_limits(training_data),
        licence=_licence(training_data),
        overlap=DEFAULT_OVERLAP if record.initial is None else record.initial.overlap,
    )


def _training_data(record: RunRecord) -> tuple[TrainingData, ...]:
    """The run's own data, and those that the model it started from had seen before."""
    before = () if record.initial is None else record.initial.training_data
    own = record.cohort.training_data
    return own + tuple(data for data in before if data not in own)


def _in_words(training_data: tuple[TrainingData, ...]) -> str:
    if all(data.synthetic for data in training_data):
        return "synthetic CT only"
    kinds = {("labelled" if data.labelled else "unlabelled", data.synthetic) for data in training_data}
    words = {True: "synthetic CT", False: "CT of patients"}
    return ", ".join(f"{count} {words[synthetic]}" for count, synthetic in sorted(kinds))


def _limits(training_data: tuple[TrainingData, ...]) -> tuple[str, ...]:
    if all(data.synthetic for data in training_data):
        return (SYNTHETIC_ONLY, NOT_CLINICAL)
    if not any(data.labelled and not data.synthetic for data in training_data):
        return (NO_LABELLED_PATIENT, NOT_CLINICAL)
    return (NOT_CLINICAL,)


def _licence(training_data: tuple[TrainingData, ...]) -> str:
    """Apache-2.0, or the licence of some of the data that may bind what is made of them: share-alike, or not told."""
    share_alike = [data.licence for data in training_data if "-SA-" in f"{data.licence}-".replace(" ", "-")]
    not_told = [data.name for data in training_data if data.licence.startswith(("see ", "not stated"))]
    if not_told and not share_alike:
        return f"as the terms of its training data allow ({', '.join(not_told)})"
    return share_alike[0] if share_alike else "Apache-2.0"
