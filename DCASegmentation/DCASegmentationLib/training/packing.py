"""A run's best checkpoint as a bundle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..bundle.loading import Bundle
from ..bundle.metadata import Metadata, TrainingData
from ..bundle.saving import save_bundle
from ..errors import UserError
from .checkpoint import load_checkpoint
from .options import TrainingOptions
from .run_record import RunRecord, read_record
from .trainer import BEST, CHECKPOINT, build_network, same_groups

LIMITS = (
    "Trained on synthetic CT only: on CTs of patients its organs are often wrong or missing.",
    "Not for clinical use.",
)


def pack(run: Path, out: Path, name: str = "dca-synthetic", overwrite: bool = False) -> Bundle:
    """Make the bundle ``out`` of the checkpoint in ``run`` that validated best, or of the last if none was validated.

    Everything in its metadata comes from the run; scores are left to be measured. Raises UserError if there is no
    such run, OutputError where the bundle cannot be written.
    """
    record = read_record(run)
    state = load_checkpoint(run / (BEST if (run / BEST).exists() else CHECKPOINT))
    if not same_groups(state["owners"], record.partition.owners):
        raise UserError(f"The checkpoint in {run} is of another run than its record.", "Train in a new folder.")
    options = TrainingOptions.from_json(state["options"])
    network = build_network(options, record.partition)
    network.load_state_dict(state["averaged"] if options.averaging else state["network"])
    return save_bundle(
        out, network.eval(), _metadata(name, replace(record, options=options), state["step"]), overwrite=overwrite
    )


def _metadata(name: str, record: RunRecord, step: int) -> Metadata:
    options, cohort = record.options, record.cohort
    spacing = " x ".join(f"{side:g}" for side in options.grid.spacing)
    return Metadata(
        name=name,
        description=(
            f"DCA for the {len(record.vocabulary)} organs of {record.vocabulary.name} at {spacing} mm, trained on "
            f"synthetic CT only, {step} steps, {options.n_filters} filters."
        ),
        vocabulary=record.vocabulary,
        spacing=options.grid.spacing,
        orientation=options.grid.orientation,
        hu_window=options.grid.hu_window,
        patch=options.patch,
        partition=record.partition,
        training_data=(
            TrainingData(
                name="Synthetic abdominal CT of dca phantom",
                labelled=cohort.labelled,
                unlabelled=cohort.unlabelled,
                licence="Apache-2.0",
                source="DCASegmentationLib.phantom of this program; no patient is involved",
            ),
        ),
        limits=LIMITS,
    )
