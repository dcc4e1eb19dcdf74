"""``dca train``: train a network on labeled and unlabeled cases."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from ..errors import UserError
from ..types import StrategyName
from .bundle import load
from .console import cancellation_message, print_line, print_table, progress_bar, table, warn
from .option_values import (
    MODEL_PANEL,
    RUN_PANEL,
    DeviceOption,
    PreprocessingOption,
    SpacingOption,
    grid_changes,
    parse_patch,
)
from .synthesize import unknown_structures

if TYPE_CHECKING:
    from ..method.log_gap import Partition
    from ..method.network import DCANet
    from ..models.bundle import Bundle
    from ..organs import Vocabulary
    from ..training.cases import Case
    from ..training.checkpoints import InitialModel, RunRecord
    from ..training.compact_state import Detail
    from ..training.options import TrainingOptions
    from ..training.sources import LabelMapFolder
    from ..training.synthetic_sampling import RecipeSampler
    from ..training.trainer import Trainer
    from ..training.training_set import TrainingSet

NAME = "train"
EXAMPLES = (
    "Example: dca train -o runs/first --data list.json, with a list made by dca dataset folder my-cts -o list.json"
)

CURVE = "curve.png"

_DATA_PANEL = "Data"
_SYNTHESIS_PANEL = "Synthetic CTs"
_SCHEDULE_PANEL = "Schedule"

_VALIDATE_EVERY = 500
_SAVE_EVERY = 100

Preset = Literal["default", "paper"]
AggregationStart = Literal["medium", "as_is"]
Division = Literal["top2", "sequential", "balanced", "fixed", "average"]


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: checkpoints, log and learning curve.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="List of CTs (see dca dataset), or folder of corrected cases. Default: phantoms.",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = None,
    labeled: Annotated[
        int | None,
        typer.Option(
            "--labeled",
            "--labelled",
            min=0,
            help="Number of phantoms with labels. Default: 24, or 0 with --data.",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = None,
    unlabeled: Annotated[
        int | None,
        typer.Option(
            "--unlabeled",
            "--unlabelled",
            min=0,
            help="Number of phantoms without labels. Default: 16, or 0 with --data.",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = None,
    validation: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of phantoms for validation. Default: 4, or 0 with --data.",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = None,
    all_labels: Annotated[
        bool,
        typer.Option(
            "--all-labels",
            help="Also use the labels of the unlabeled cases (full supervision).",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Folder of prepared cases, which several runs can share. Default: OUT/cases.",
            rich_help_panel=_DATA_PANEL,
        ),
    ] = None,
    label_maps: Annotated[
        list[Path] | None,
        typer.Option(
            "--synthesize",
            help="Folder of a label map (see dca synthesize): also train on synthetic CTs made from it during the "
            "run. Can be repeated.",
            rich_help_panel=_SYNTHESIS_PANEL,
        ),
    ] = None,
    licenses: Annotated[
        list[str] | None,
        typer.Option(
            "--license",
            "--licence",
            help="License of the label map, once for each --synthesize.",
            rich_help_panel=_SYNTHESIS_PANEL,
        ),
    ] = None,
    warps: Annotated[
        Path | None,
        typer.Option(
            help="Folder made by dca register-label-maps: also make bodies that lie between two label maps.",
            rich_help_panel=_SYNTHESIS_PANEL,
        ),
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(
            "--synthesize-share",
            min=0.01,
            max=1.0,
            help="Fraction of the labeled patches that come from synthetic CTs. Default: 0.5, or 1 if there are no "
            "other labeled cases.",
            rich_help_panel=_SYNTHESIS_PANEL,
        ),
    ] = None,
    made_ahead: Annotated[
        int | None,
        typer.Option(
            "--synthesize-ahead",
            min=1,
            help="Make this many synthetic CTs before the run, instead of new ones during the run.",
            rich_help_panel=_SYNTHESIS_PANEL,
        ),
    ] = None,
    first_number: Annotated[
        int | None,
        typer.Option(
            "--synthesize-first",
            min=0,
            help="Number of the first CT of --synthesize-ahead. Each number is a different person. Default: 0.",
            rich_help_panel=_SYNTHESIS_PANEL,
        ),
    ] = None,
    preset: Annotated[
        Preset,
        typer.Option(
            help="Our default options, or those of the paper, which need a large GPU.", rich_help_panel=MODEL_PANEL
        ),
    ] = "default",
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from these weights: folder or name of a model, or a file written by --export-state. A model "
            "with --data alone is fine-tuned: a short run at a low learning rate.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    strategy: Annotated[
        StrategyName,
        typer.Option(help="dca, or a method from the paper's tables for comparison.", rich_help_panel=MODEL_PANEL),
    ] = "dca",
    strategy_option: Annotated[
        list[str] | None,
        typer.Option(
            help="Option of the chosen strategy, as NAME=VALUE. Can be repeated.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None,
    division: Annotated[
        Division | None,
        typer.Option(
            help="How to divide the organs among the experts (see dca partition).", rich_help_panel=MODEL_PANEL
        ),
    ] = None,
    filters: Annotated[
        int | None,
        typer.Option(min=1, help="Channels of the network at full resolution.", rich_help_panel=MODEL_PANEL),
    ] = None,
    patch: Annotated[
        str | None,
        typer.Option(help="Patch size in voxels: one side, or depth,height,width.", rich_help_panel=MODEL_PANEL),
    ] = None,
    preprocessing: PreprocessingOption = None,
    spacing: SpacingOption = None,
    joint_statistics: Annotated[
        bool,
        typer.Option(
            "--joint-statistics",
            help="Preset paper: compute batch norm over labeled and unlabeled patches together.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Length of the whole run in steps.", rich_help_panel=_SCHEDULE_PANEL)
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="Stop after this time. --resume continues the run.", rich_help_panel=_SCHEDULE_PANEL
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Labeled patches per step; the number of unlabeled patches is the same.",
            rich_help_panel=_SCHEDULE_PANEL,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-8, help="Peak learning rate.", rich_help_panel=_SCHEDULE_PANEL)
    ] = None,
    expert_stage_fraction: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Fraction of the steps that train the experts; the rest trains the aggregation decoder. 0 trains "
            "all together.",
            rich_help_panel=_SCHEDULE_PANEL,
        ),
    ] = None,
    aggregation_start: Annotated[
        AggregationStart | None,
        typer.Option(
            help="Initial weights of the aggregation decoder: a copy of the medium expert's, or its own.",
            rich_help_panel=_SCHEDULE_PANEL,
        ),
    ] = None,
    class_balance: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Extra weight of small organs in the cross-entropy, from 0 (none) to 1.",
            rich_help_panel=_SCHEDULE_PANEL,
        ),
    ] = None,
    validate_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between validations. Default: 500, or a quarter of a shorter run. A resumed run keeps its own.",
            rich_help_panel=_SCHEDULE_PANEL,
        ),
    ] = None,
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between checkpoints. Default: 100. A resumed run keeps its own.",
            rich_help_panel=_SCHEDULE_PANEL,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of all random numbers.", rich_help_panel=_SCHEDULE_PANEL)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in OUT with its own options.", rich_help_panel=RUN_PANEL),
    ] = False,
    device: DeviceOption = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that prepare patches in advance; 0 uses a thread instead. Default: up to 4 on a GPU "
            "without --synthesize, otherwise 0.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write a TensorBoard log into OUT.", rich_help_panel=RUN_PANEL)
    ] = False,
    export_state: Annotated[
        Path | None,
        typer.Option(
            help="At the end, also write the state of the run to this file of at most 16 MiB. Weights and optimizer "
            "moments are rounded, so a run that continues from it is similar but not identical.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None,
    from_state: Annotated[
        Path | None,
        typer.Option(
            help="Continue from a file written by --export-state, with the options and data of its run, in the new "
            "folder OUT.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None,
) -> None:
    """Train DCA on your own CTs, only some of which need label maps, or on synthetic CTs.

    Synthetic CTs are phantoms (see **dca phantom**) or made from label maps (see **dca synthesize**).

    Ctrl+C finishes the current step and saves the run; **--resume** continues it exactly. A second Ctrl+C stops
    immediately, and **--resume** continues from the last checkpoint. To make a model from the run, use
    **dca bundle export**.

    With **--init MODEL** and **--data** alone, the model is fine-tuned: grid, network and organ groups stay the same,
    and a short run uses a low learning rate. Any option that you give overrides this.

    To use several GPUs, replace **dca** by **torchrun --nproc-per-node 4 -m dcaseg.cli**. The batch is the total over
    all GPUs.
    """
    from ..file_lock import locked_folder
    from ..inference.device import choose_device
    from ..inference.process_settings import keep_freed_memory
    from ..training.checkpoints import RunRecord, write_record
    from ..training.distributed import join, leave, local_device
    from ..training.trainer import LOCK, Trainer

    keep_freed_memory()
    torch_device = local_device(choose_device(device).torch_device)
    processes = join(torch_device)
    changes = grid_changes(preprocessing, spacing)
    if patch is not None:
        # The deepest features are 1/16 as large. A single voxel there has no statistics for normalization.
        changes["patch"] = parse_patch(patch, smallest=32)
    if batch is not None:
        changes |= {"labelled_per_step": batch, "unlabelled_per_step": batch}
    options_by_name = {
        **{"steps": steps, "n_filters": filters, "learning_rate": learning_rate, "seed": seed, "partition": division},
        **{"expert_stage_fraction": expert_stage_fraction, "class_balance": class_balance},
        **{"aggregation_start": aggregation_start},
    }
    changes |= {name: value for name, value in options_by_name.items() if value is not None}
    if joint_statistics:
        changes["joint_statistics"] = True
    if strategy_option:
        changes["strategy_options"] = _parse_strategy_options(strategy_option)
    if resume and from_state is not None:
        raise UserError("--resume and --from-state cannot be combined.", "Give only one of them.")
    if resume or from_state is not None:
        fixed_options: dict[str, Any] = {
            "init": init,
            "data": data,
            "all-labels": all_labels or None,
            "synthesize": label_maps,
        }
        fixed_options |= {"license": licenses, "warps": warps, "synthesize-share": share}
        fixed_options |= {"synthesize-ahead": made_ahead, "synthesize-first": first_number}
        plan = _plan_resumed_run(out, from_state, strategy, changes, fixed_options)
    else:
        phantoms = (labeled, unlabeled, validation)
        synthesis = _SynthesisOptions(label_maps, licenses, warps, share, made_ahead, first_number)
        plan = _plan_new_run(out, preset, strategy, changes, init, data, phantoms, synthesis, all_labels, division)
    with ExitStack() as stack:
        if processes.first:
            stack.enter_context(locked_folder(out, LOCK))
        options = plan.options
        folder = cache or out / "cases"
        stream = plan.training_set.stream
        if workers is None:
            # Synthetic CTs are rendered on the GPU, which worker processes cannot share.
            only_cases = torch_device.type == "cuda" and stream is None
            workers = min(4, (os.cpu_count() or 2) - 1) if only_cases else 0
        rendering = str(torch_device) if torch_device.type == "cuda" and workers == 0 else "cpu"
        if not processes.first:
            # The first process fills the cache. Only that process prints.
            processes.wait()
        recipes = None
        with progress_bar() as progress:
            if stream is not None:
                progress(0.0, "Reading the label maps")
                recipes = stream.sampler(folder, options, rendering)
            cases = plan.training_set.cases(folder, options.grid, progress if processes.first else None)
        if processes.first:
            processes.wait()
        trainer = Trainer(
            out, options, plan.vocabulary, *cases, device=str(torch_device), initial=plan.network, groups=plan.groups,
            sampler=stream.mixed(recipes, cases[0], options) if stream and recipes else None,
            anatomies=recipes.anatomies if recipes else (),
        )  # fmt: skip
        if resume:
            trainer.resume()
        elif from_state is not None:
            trainer.resume(from_state)
        record = RunRecord(
            plan.vocabulary, trainer.options, plan.training_set, trainer.partition, plan.initial,
            validate_every or plan.validate_every, save_every or plan.save_every,
        )  # fmt: skip
        if processes.first:
            write_record(out, record)
            for warning in (*trainer.partition.warnings, *_warnings(plan.training_set, cases, options, recipes)):
                warn(warning)
            if from_state is not None:
                # From now on the folder contains a run.
                trainer.save()
        resume_command = f"dca train -o {out} --resume" + (f" --cache {cache}" if cache else "")
        with cancellation_message(
            lambda: f"The run is saved in {out} at step {trainer.step}. To continue: {resume_command}"
        ):
            _train(trainer, minutes, record, tensorboard, workers)
        if export_state is not None:
            detail = trainer.export(export_state, record.to_json())
    leave()
    if not processes.first:
        return
    _plot_curve(trainer)
    print_line(f"The run is in {out} at step {trainer.step} of {options.steps}.")
    if export_state is not None and detail is not None:
        print_line(
            f"Written: {export_state} ({_describe(detail)}). To continue from it: dca train -o NEW --from-state FILE"
        )
    if trainer.step < options.steps:
        print_line(f"To continue: {resume_command}")
    elif trainer.best >= 0 and options.strategy == "dca":
        print_line(f"To make a model from it: dca bundle export {out} -o BUNDLE")


class _SynthesisOptions(NamedTuple):
    """The options of ``dca train`` for synthetic CTs made from label maps."""

    maps: list[Path] | None
    licenses: list[str] | None
    warps: Path | None
    share: float | None
    made_ahead: int | None
    first_number: int | None

    def training_set(self, has_labeled_cases: bool) -> TrainingSet | None:
        """Return the synthetic CTs as labeled cases, or None without label maps.

        ``has_labeled_cases``: whether the run has other labeled cases. Raises UserError if options contradict each
        other.
        """
        from ..training.sources import RecipeStream
        from ..training.training_set import TrainingSet

        if not self.maps:
            values = {"license": self.licenses, "warps": self.warps, "synthesize-share": self.share}
            values |= {"synthesize-ahead": self.made_ahead, "synthesize-first": self.first_number}
            if unused := [name for name, value in values.items() if value not in (None, [])]:
                raise UserError(f"--{unused[0]} needs a label map.", "Name its folder with --synthesize.")
            return None
        if self.made_ahead is not None:
            if self.share is not None:
                raise UserError(
                    "--synthesize-share and --synthesize-ahead cannot be combined.", "Give only one of them."
                )
            first = self.first_number or 0
            return ahead_training_set(self.maps, self.licenses or [], first, self.made_ahead, self.warps)
        if self.first_number is not None:
            raise UserError("--synthesize-first needs --synthesize-ahead.", "Add --synthesize-ahead.")
        if self.share is not None and self.share < 1 and not has_labeled_cases:
            raise UserError(
                f"There is no labeled case for the other {1 - self.share:.0%} of the patches.",
                "Add labeled cases (--data, --labeled), or omit --synthesize-share.",
            )
        share = self.share or (0.5 if has_labeled_cases else 1.0)
        folders, warps = _label_maps(self.maps, self.licenses or [], self.warps)
        return TrainingSet((RecipeStream(folders, warps, share),))


class _Plan(NamedTuple):
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


def _plan_resumed_run(
    out: Path, from_state: Path | None, strategy: StrategyName, changes: dict[str, Any], fixed_options: dict[str, Any]
) -> _Plan:
    """Plan to continue the run in the folder ``out``, or that of an exported state in a new folder ``out``.

    Of ``changes``, only the steps can change; ``fixed_options`` must all be None. Raises UserError otherwise.
    """
    if from_state is None:
        from ..training.checkpoints import read_record

        record = read_record(out)
    else:
        _require_no_run(out)
        record = _record_of(from_state)
    unchangeable = sorted(set(changes) - {"steps"})
    unchangeable += [name for name, value in fixed_options.items() if value is not None]
    unchangeable += ["strategy"] * (strategy not in ("dca", record.options.strategy))
    if unchangeable:
        raise UserError(
            f"A resumed run keeps its options, so these cannot be changed: {', '.join(unchangeable)}.",
            "Omit them, or start a new run in another folder.",
        )
    return _Plan(
        record.vocabulary, replace(record.options, **changes), record.cohort, record.partition, record.initial, None,
        record.validate_every, record.save_every,
    )  # fmt: skip


def _plan_new_run(
    out: Path,
    preset: Preset,
    strategy: StrategyName,
    changes: dict[str, Any],
    init: str | None,
    data: Path | None,
    phantoms: tuple[int | None, int | None, int | None],
    synthesis: _SynthesisOptions,
    all_labels: bool,
    division: Division | None,
) -> _Plan:
    """Plan a new run. ``phantoms``: numbers of labeled, unlabeled and validation phantoms; None for the default."""
    from ..organs import AMOS
    from ..training.checkpoints import InitialModel
    from ..training.compact_state import is_compact
    from ..training.corrections import CASES, read_dataset, read_unlabelled_cts
    from ..training.datalist import list_of, read_datalist, require_files
    from ..training.training_set import TrainingSet, training_set_of

    _require_no_run(out)
    state = Path(init) if init is not None and is_compact(Path(init)) else None
    initial = None if init is None or state is not None else load(init)
    fine_tuned = None
    if data is not None and not synthesis.maps and not any(phantoms[:2]) and strategy == "dca" and preset == "default":
        fine_tuned = initial
    options = _options(preset, strategy, changes, fine_tuned)
    groups = None if fine_tuned is None or division is not None else fine_tuned.metadata.partition
    defaults = (24, 16, 4) if data is None else (0, 0, 0)
    counts = (default if count is None else count for count, default in zip(phantoms, defaults, strict=True))
    training_set = TrainingSet.of_phantoms(*counts)
    vocabulary = AMOS
    if data is not None:
        # Check that the corrected cases are unchanged since they were written.
        if (data / CASES).is_dir():
            read_dataset(data)
        read_unlabelled_cts(data)
        datalist = read_datalist(list_of(data))
        require_files(datalist)
        training_set, vocabulary = training_set.joined(training_set_of(datalist)), datalist.vocabulary
    if all_labels:
        training_set = training_set.fully_labelled()
    synthetic = synthesis.training_set(has_labeled_cases=bool(training_set.labelled))
    if synthetic is not None:
        training_set = training_set.joined(synthetic)
    network, source, model_vocabulary = None, None, None
    if initial is not None:
        network, source, model_vocabulary = initial.network(), InitialModel.of(initial), initial.metadata.vocabulary
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
    if not training_set.labelled:
        raise UserError("There is no labeled case to train on.", "Add at least one CT with a label map.")
    validate_every = max(min(_VALIDATE_EVERY, options.steps // 4), 1)
    return _Plan(vocabulary, options, training_set, groups, source, network, validate_every, _SAVE_EVERY)


def _require_no_run(out: Path) -> None:
    from ..training.checkpoints import has_checkpoint
    from ..training.trainer import CHECKPOINT

    if has_checkpoint(out / CHECKPOINT):
        raise UserError(f"{out} already contains a run.", "Add --resume to continue it, or choose another folder.")


def _record_of(state: Path) -> RunRecord:
    from ..training.checkpoints import RunRecord
    from ..training.compact_state import read_compact

    try:
        return RunRecord.from_json(read_compact(state)[1] or {})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{state} has no description of its training data ({error}).",
            "Give a file written by dca train --export-state.",
        ) from None


def _load_state(state: Path) -> tuple[DCANet, InitialModel, Vocabulary]:
    """Load the weights of an exported state (their EMA if it has one), their source and the vocabulary."""
    from ..training.checkpoints import InitialModel
    from ..training.compact_state import read_compact
    from ..training.corrections import sha256
    from ..training.trainer import build_network

    record = _record_of(state)
    content, _ = read_compact(state)
    network = build_network(record.options, record.partition)
    network.load_state_dict(content.get("averaged", content["network"]))
    earlier_data = () if record.initial is None else record.initial.training_data
    model = InitialModel(state.name, sha256(state), (*record.cohort.training_data, *earlier_data))
    return network, model, record.vocabulary


def _describe(detail: Detail) -> str:
    parts = [
        f"weights in {detail.weights} bits",
        f"their EMA in {detail.average} more bits",
        f"moments in {detail.moments} bits",
    ]
    return ", ".join(part for part, bits in zip(parts, (1, detail.average, detail.moments), strict=True) if bits)


def _parse_strategy_options(texts: list[str]) -> dict[str, str]:
    """Parse NAME=VALUE options. Raises UserError for an option without a value."""
    for text in texts:
        if "=" not in text:
            raise UserError(f"--strategy-option {text} has no value.", "Write it like this: --strategy-option box=0.5.")
    return dict(text.split("=", 1) for text in texts)


def ahead_training_set(
    maps: list[Path], licenses: list[str], first: int, count: int, warps: Path | None = None
) -> TrainingSet:
    """Return ``count`` synthetic CTs, numbered from ``first``, as labeled cases that are made before the training.

    ``maps`` are the folders of label maps, ``licenses`` their licenses (may be empty), ``warps`` the folder of their
    registrations. Raises UserError for folders or numbers that cannot be used.
    """
    from ..training.sources import PAINTED_SEEDS, PAINTED_VALIDATION_SEEDS, Painted
    from ..training.training_set import TrainingSet

    if PAINTED_SEEDS + first + count > PAINTED_VALIDATION_SEEDS:
        raise UserError(
            f"Synthetic CTs cannot have numbers up to {first + count}.",
            f"--synthesize-first plus --synthesize-ahead can be at most {PAINTED_VALIDATION_SEEDS - PAINTED_SEEDS}.",
        )
    folders, registrations = _label_maps(maps, licenses, warps)
    return TrainingSet((Painted(folders, PAINTED_SEEDS + first, count, registrations),))


def _label_maps(
    maps: list[Path], licenses: list[str], warps: Path | None
) -> tuple[tuple[LabelMapFolder, ...], str | None]:
    """Return the label map folders and the warps folder, with full paths. Raises UserError for missing folders."""
    from ..training.sources import LabelMapFolder

    if licenses and len(licenses) != len(maps):
        raise UserError(
            f"The number of --synthesize options is {len(maps)}, that of --license options {len(licenses)}.",
            "Give one --license for each --synthesize, or none.",
        )
    for folder in maps:
        if not folder.is_dir():
            raise UserError(
                f"{folder} is not a folder.", "Give a folder that contains a label map and a table of its names."
            )
    if warps is not None and not warps.is_dir():
        raise UserError(f"{warps} is not a folder.", "Give the folder made by dca register-label-maps.")
    licenses = licenses or ["not stated"] * len(maps)
    folders = tuple(
        LabelMapFolder(str(folder.resolve()), license_name) for folder, license_name in zip(maps, licenses, strict=True)
    )
    return folders, None if warps is None else str(warps.resolve())


def _warnings(
    training_set: TrainingSet,
    cases: tuple[list[Case], list[Case], list[Case]],
    options: TrainingOptions,
    recipes: RecipeSampler | None,
) -> list[str]:
    """Return what the user should know about the cases before training for hours."""
    labelled, unlabelled, validation = cases
    warnings = []
    if recipes is not None:
        renderer = recipes.renderer
        warnings += [text for each in renderer.anatomies.values() if (text := unknown_structures(each)) is not None]
        stream = training_set.stream
        if stream is not None and stream.warps is not None and not any(renderer.warps.values()):
            warnings.append(
                f"The folder {stream.warps} is not used: it has no registration between two of the label maps."
            )
        if len(renderer.anatomies) == 1 and not labelled:
            warnings.append("There is only one label map, so all synthetic CTs show variants of the same person.")
    elif len(labelled) == 1:
        warnings.append("There is only one labeled case, so the model learns the anatomy of one person.")
    if not unlabelled and options.strategy not in ("vnet", "plain_experts"):
        warnings.append("There is no unlabeled case, so the training is fully supervised.")
    if not validation:
        warnings.append("There is no validation case, so the last weights are kept instead of the best.")
    small = [
        case.name
        for case in labelled + unlabelled
        if any(side < least for side, least in zip(case.hu.shape, options.patch, strict=True))
    ]
    if small:
        count = "1 case is" if len(small) == 1 else f"{len(small)} cases are"
        warnings.append(f"{count} smaller than the patch and will be padded: {small[0]}{', ...' * (len(small) > 1)}.")
    return warnings


def _options(
    preset: Preset, strategy: StrategyName, changes: dict[str, Any], fine_tuned: Bundle | None
) -> TrainingOptions:
    from ..training.options import TrainingOptions, fine_tuning_options
    from ..training.strategies.registry import OWN_OPTIONS

    if fine_tuned is not None:
        return fine_tuning_options(fine_tuned.metadata, **changes)
    changes = {"strategy": strategy, **OWN_OPTIONS[strategy], **changes}
    return TrainingOptions.paper(**changes) if preset == "paper" else TrainingOptions(**changes)


def _train(trainer: Trainer, minutes: float | None, record: RunRecord, tensorboard: bool, workers: int) -> None:
    """Train with a progress bar that shows the last losses, λ and Dice. Then print a table of the last validation."""
    from ..training.tensorboard import TensorBoardLog

    started, first_step = time.monotonic(), trainer.step
    board = None
    if tensorboard and trainer.processes.first:
        board = TensorBoardLog(trainer.folder, trainer.vocabulary, trainer.partition, trainer.options)
    dice: dict[str, float] = {}

    with progress_bar() as progress:

        def report(line: dict[str, Any]) -> None:
            dice.update(line.get("dice", {}))
            if board is not None:
                board.add(line)
                if "dice" in line:
                    board.add_example(trainer.best_network, trainer.validation[0], line["step"])
            fraction = (line["step"] - first_step) / max(trainer.options.steps - first_step, 1)
            if minutes:
                fraction = max(fraction, (time.monotonic() - started) / (60 * minutes))
            progress(min(fraction, 1.0), _progress_text(line, trainer.options.steps, dice))

        try:
            trainer.run(minutes, record.save_every, record.validate_every, report, warn, False, workers)
        finally:
            if board is not None:
                board.close()
    if dice:
        rows = table("Dice in the last validation", "Organ", "Dice", numbers=("Dice",))
        for organ in trainer.vocabulary:
            if organ.key in dice:
                rows.add_row(organ.name, f"{dice[organ.key]:.3f}")
        rows.add_section()
        rows.add_row("Mean", f"{dice['mean']:.3f}")
        print_table(rows)


def _plot_curve(trainer: Trainer) -> None:
    """Draw the learning curve so far as ``curve.png`` in the folder of the run."""
    from ..evaluation.figures.curves import read_log, training_curve
    from ..evaluation.figures.style import save_figure
    from ..training.trainer import LOG

    if (trainer.folder / LOG).exists():
        save_figure(
            training_curve(read_log(trainer.folder / LOG), trainer.vocabulary, trainer.folder.name),
            trainer.folder / CURVE,
        )


def _progress_text(line: dict[str, Any], steps: int, dice: dict[str, float]) -> str:
    losses = (
        f"{name} {line[name]:.2f}" for name in ("supervised", "head", "medium", "tail", "aggregation") if name in line
    )
    parts = [f"step {line['step']}/{steps}", *losses, f"λ {line.get('weight', 0.0):.2f}"]
    if dice:
        parts.append(f"Dice {dice['mean']:.3f}")
    return "  ".join(parts)
