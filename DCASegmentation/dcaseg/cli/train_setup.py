"""What a run of ``dca train`` is made of: a new run from its options, or the run that it continues."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import UserError
from .console import warn
from .option_values import load_bundle
from .train_data import build_training_set

if TYPE_CHECKING:
    from ..method.log_gap import Partition
    from ..method.network import DCANet
    from ..models.bundle import Bundle
    from ..organs import Vocabulary
    from ..training.checkpoints import InitialModel, RunRecord
    from ..training.options import TrainingOptions
    from ..training.training_set import TrainingSet
    from ..types import StrategyName
    from .train_options import DataGroup, ModelGroup, Preset, ScheduleGroup, SynthesisGroup

_VALIDATE_EVERY = 500
_SAVE_EVERY = 100


class TrainingPlan(NamedTuple):
    """What to train.

    If ``groups`` is None, the organs are grouped by their volumes in the cases. ``network`` has the initial weights of
    a new run (None: random), and ``initial`` describes their source.
    """

    vocabulary: Vocabulary
    options: TrainingOptions
    training_set: TrainingSet
    groups: Partition | None
    initial: InitialModel | None
    network: DCANet | None
    validate_every: int
    save_every: int


def plan_resumed_run(out: Path, from_state: Path | None, schedule: ScheduleGroup) -> TrainingPlan:
    """Plan to continue the run in the folder ``out``, or that of an exported state in a new folder ``out``.

    Of the run's options, only the number of steps can change.
    """
    if from_state is None:
        from ..training.checkpoints import read_record

        record = read_record(out)
    else:
        _require_no_run(out)
        record = _record_of(from_state)
    return TrainingPlan(
        record.vocabulary, replace(record.options, **schedule.length), record.cohort, record.partition, record.initial,
        None, record.validate_every, record.save_every,
    )  # fmt: skip


def plan_new_run(
    out: Path, data: DataGroup, synthesis: SynthesisGroup, model: ModelGroup, schedule: ScheduleGroup
) -> TrainingPlan:
    """Plan a new run in the folder ``out``. Raises UserError if the options contradict each other or the data."""
    from ..organs import AMOS
    from ..training.checkpoints import InitialModel
    from ..training.compact_state import is_compact

    changes = {**model.changes(), **schedule.changes()}
    _require_no_run(out)
    state = Path(model.init) if model.init is not None and is_compact(Path(model.init)) else None
    initial = None if model.init is None or state is not None else load_bundle(model.init)
    is_plain = model.strategy == "dca" and model.preset == "default"
    fine_tuned = initial if data.only_data and not synthesis.maps.label_maps and is_plain else None
    options = _make_options(model.preset, model.strategy, changes, fine_tuned)
    groups = None if fine_tuned is None or "partition" in changes else fine_tuned.metadata.partition
    training_set, vocabulary = build_training_set(data, synthesis)
    network, source, model_vocabulary = None, None, None
    if initial is not None:
        network, source, model_vocabulary = (
            initial.network(),
            InitialModel.from_bundle(initial),
            initial.metadata.vocabulary,
        )
    elif state is not None:
        network, source, model_vocabulary = _load_state(state)
    if model_vocabulary is not None and model_vocabulary != vocabulary:
        raise UserError(
            f"The initial model has the organs of {model_vocabulary.name}, but the data have those of "
            f"{vocabulary.name}.",
            "Start from a model with the same organs.",
        )
    if vocabulary != AMOS and training_set.synthetic:
        raise UserError(
            f"Synthetic CTs have the organs of AMOS, but the list has those of {vocabulary.name}.",
            "Use only one of them.",
        )
    if not training_set.labeled:
        raise UserError("There is no labeled case to train on.", "Add at least one CT with a label map.")
    validate_every = max(min(_VALIDATE_EVERY, options.steps // 4), 1)
    return TrainingPlan(vocabulary, options, training_set, groups, source, network, validate_every, _SAVE_EVERY)


def _make_options(
    preset: Preset, strategy: StrategyName, changes: dict[str, Any], fine_tuned: Bundle | None
) -> TrainingOptions:
    from ..training.options import TrainingOptions, fine_tuning_options
    from ..training.strategies.registry import OWN_OPTIONS, adapt_options

    if fine_tuned is not None:
        return fine_tuning_options(fine_tuned.metadata, **changes)
    changes = {"strategy": strategy, **OWN_OPTIONS[strategy], **changes}
    options = TrainingOptions.make_paper_preset(**changes) if preset == "paper" else TrainingOptions(**changes)
    adapted = adapt_options(options)
    if adapted.norm != options.norm:
        warn(
            f"--strategy {strategy} divides a patch of {options.patch[0]} voxels so finely that instance norm is "
            "undefined: this run uses batch norm."
        )
    return adapted


def _require_no_run(out: Path) -> None:
    from ..training.checkpoints import has_checkpoint
    from ..training.run_folder import CHECKPOINT

    if has_checkpoint(out / CHECKPOINT):
        raise UserError(f"{out} already contains a run.", "Add --resume to continue it, or choose another folder.")


def _record_of(state: Path) -> RunRecord:
    from ..training.checkpoints import RunRecord
    from ..training.compact_state import read_compact

    try:
        return RunRecord.from_json(read_compact(state)[1] or {})
    except ValueError as error:
        raise UserError(
            f"{state} has no description of its training data ({error}).",
            "Specify a file written by dca train --export-state.",
        ) from None


def _load_state(state: Path) -> tuple[DCANet, InitialModel, Vocabulary]:
    """Load the weights of an exported state (their EMA if it has one), their source and the vocabulary."""
    from ..checksums import compute_sha256
    from ..training.checkpoints import InitialModel
    from ..training.compact_state import read_compact
    from ..training.export import build_trained_network

    record = _record_of(state)
    content, _ = read_compact(state)
    network = build_trained_network(record.options, record.partition, content)
    earlier_data = () if record.initial is None else record.initial.training_data
    model = InitialModel(state.name, compute_sha256(state), (*record.cohort.training_data, *earlier_data))
    return network, model, record.vocabulary
