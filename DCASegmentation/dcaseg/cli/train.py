"""``dca train``: a network from labelled and unlabelled cases."""

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
from .console import progress_bar, say, says_when_cancelled, show, table, warn
from .option_values import DeviceOption, PreprocessingOption, SpacingOption, changes_of
from .option_values import patch as patch_of
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
EXAMPLES = "Example: dca train -o runs/first --data list.json, with the list of dca dataset folder my-cts -o list.json"

CURVE = "curve.png"

_VALIDATE_EVERY = 500
_SAVE_EVERY = 100

Preset = Literal["default", "paper"]
AggregationStart = Literal["medium", "as_is"]
Division = Literal["top2", "sequential", "balanced", "fixed", "average"]


def run(
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run: checkpoints, log, learning curve.")],
    data: Annotated[
        Path | None,
        typer.Option(help="A list of CTs (dca dataset), or a folder of corrected cases. Else synthetic people."),
    ] = None,
    synthesize: Annotated[
        list[Path] | None,
        typer.Option(
            help="Learn from synthetic CTs, too, made from this label map as they are needed. May be repeated."
        ),
    ] = None,
    licence: Annotated[
        list[str] | None, typer.Option(help="Licence of the label map, once for each --synthesize.")
    ] = None,
    warps: Annotated[
        Path | None, typer.Option(help="Folder of dca register-label-maps: bodies between the label maps, too.")
    ] = None,
    synthesize_share: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="Share of the labelled patches that are synthetic. 0.5 beside other labelled cases, else 1.",
        ),
    ] = None,
    painted: Annotated[
        int | None,
        typer.Option(min=1, help="Make this many synthetic CTs before the run, instead of new ones all the time."),
    ] = None,
    synthesize_first: Annotated[
        int | None,
        typer.Option(min=0, help="Number of the first CT of --synthesize-ahead. Other numbers, other people."),
    ] = None,
    labelled: Annotated[
        int | None, typer.Option(min=0, help="Synthetic people with labels. 24, or none beside --data.")
    ] = None,
    unlabelled: Annotated[
        int | None, typer.Option(min=0, help="Synthetic people without labels. 16, or none beside --data.")
    ] = None,
    validation: Annotated[
        int | None, typer.Option(min=0, help="Synthetic people to validate on. 4, or none beside --data.")
    ] = None,
    all_labels: Annotated[
        bool, typer.Option("--all-labels", help="Use the labels of the unlabelled cases, too: full supervision.")
    ] = False,
    strategy: Annotated[
        StrategyName, typer.Option(help="dca, or a system of the paper's tables to compare with.")
    ] = "dca",
    strategy_option: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE: an option of the strategy's own; help=1 lists them. May be repeated."),
    ] = None,
    division: Annotated[Division | None, typer.Option(help="How organs are divided (dca partition).")] = None,
    init: Annotated[
        str | None,
        typer.Option(
            help="Folder or name of a model whose weights the run starts from, or a file of --export-state. A model "
            "with --data alone: a short, careful run."
        ),
    ] = None,
    preset: Annotated[
        Preset, typer.Option(help="Our defaults, or the paper's settings (needs a large GPU).")
    ] = "default",
    steps: Annotated[int | None, typer.Option(min=1, help="Length of the whole run in steps.")] = None,
    minutes: Annotated[float | None, typer.Option(min=0.0, help="Stop after this time; --resume goes on.")] = None,
    filters: Annotated[int | None, typer.Option(min=1, help="Channels of the network at full resolution.")] = None,
    patch: Annotated[str | None, typer.Option(help="Patch in voxels, one side or depth,height,width.")] = None,
    preprocessing: PreprocessingOption = None,
    spacing: SpacingOption = None,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Patches of each kind, labelled and unlabelled, in a step.")
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(min=1e-8, help="Highest learning rate.")] = None,
    expert_stage_fraction: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Share of the steps for the experts; then the aggregation decoder learns."),
    ] = None,
    class_balance: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="How much more small organs weigh in the cross-entropy.")
    ] = None,
    aggregation_start: Annotated[
        AggregationStart | None,
        typer.Option(help="The aggregation decoder begins as a copy of the medium expert, or with the weights it has."),
    ] = None,
    joint_statistics: Annotated[
        bool,
        typer.Option(
            "--joint-statistics", help="Preset paper: batch norm over labelled and unlabelled patches together."
        ),
    ] = False,
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything drawn at random.")] = None,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of prepared cases, shared by runs. Else OUT/cases.")
    ] = None,
    device: DeviceOption = "auto",
    validate_every: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between validations. 500, or a quarter of a shorter run; a resumed run's own."),
    ] = None,
    save_every: Annotated[
        int | None, typer.Option(min=1, help="Steps between checkpoints. 100, or a resumed run's own.")
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that draw patches ahead; 0: a thread of this one. 0, or up to 4 for a GPU without "
            "--synthesize.",
        ),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Log for TensorBoard into OUT, too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in OUT, with its own options.")] = False,
    export_state: Annotated[
        Path | None,
        typer.Option(
            help="At the end write the run's state to this file, in 16 MiB at most: weights and the optimizer's "
            "moments, rounded. A run goes on from it much the same, not bit for bit."
        ),
    ] = None,
    from_state: Annotated[
        Path | None,
        typer.Option(
            help="Go on from a file of --export-state, with its run's options and data, in the new folder OUT."
        ),
    ] = None,
) -> None:
    """Train DCA, semi-supervised: on CTs of your own, some with label maps, some without, or on synthetic ones.

    Ctrl+C ends the run after the step and saves it; --resume goes on exactly where it stopped. A second Ctrl+C ends it
    at once, and --resume goes on from the last checkpoint. Then make a model of it with **dca bundle export**.
    With --init and --data alone it keeps the model's grid, network and groups of organs, and trains briefly at a low
    learning rate; options that are given win.
    Several GPUs: **torchrun --nproc-per-node 4 -m dcaseg.cli train ...**, the batch being that of all.
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
    changes = changes_of(preprocessing, spacing)
    if patch is not None:
        # The deepest features have a sixteenth of a side; a single voxel there has no statistics to normalize by.
        changes["patch"] = patch_of(patch, smallest=32)
    if batch is not None:
        changes |= {"labelled_per_step": batch, "unlabelled_per_step": batch}
    given = {
        **{"steps": steps, "n_filters": filters, "learning_rate": learning_rate, "seed": seed, "partition": division},
        **{"expert_stage_fraction": expert_stage_fraction, "class_balance": class_balance},
        **{"aggregation_start": aggregation_start},
    }
    changes |= {name: value for name, value in given.items() if value is not None}
    if joint_statistics:
        changes["joint_statistics"] = True
    if strategy_option:
        changes["strategy_options"] = _strategy_options(strategy_option)
    if resume and from_state is not None:
        raise UserError("--resume and --from-state cannot be combined.", "Give one: a run's folder, or its state.")
    if resume or from_state is not None:
        others: dict[str, Any] = {
            "init": init,
            "data": data,
            "all-labels": all_labels or None,
            "synthesize": synthesize,
        }
        others |= {"licence": licence, "warps": warps, "synthesize-share": synthesize_share}
        others |= {"synthesize-ahead": painted, "synthesize-first": synthesize_first}
        plan = _earlier_plan(out, from_state, strategy, changes, others)
    else:
        people = (labelled, unlabelled, validation)
        synthesis = _Synthesis(synthesize, licence, warps, synthesize_share, painted, synthesize_first)
        plan = _new_plan(out, preset, strategy, changes, init, data, people, synthesis, all_labels, division)
    with ExitStack() as stack:
        if processes.first:
            stack.enter_context(locked_folder(out, LOCK))
        options = plan.options
        folder = cache or out / "cases"
        stream = plan.cohort.stream
        if workers is None:
            # A GPU renders synthetic CTs itself, which processes beside this one cannot ask of it.
            cases_alone = torch_device.type == "cuda" and stream is None
            workers = min(4, (os.cpu_count() or 2) - 1) if cases_alone else 0
        rendering = str(torch_device) if torch_device.type == "cuda" and workers == 0 else "cpu"
        if not processes.first:
            # The first process makes what is not in the cache yet, and alone speaks.
            processes.wait()
        recipes = None
        with progress_bar() as progress:
            if stream is not None:
                progress(0.0, "Reading the label maps")
                recipes = stream.sampler(folder, options, rendering)
            cases = plan.cohort.cases(folder, options.grid, progress if processes.first else None)
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
            plan.vocabulary, trainer.options, plan.cohort, trainer.partition, plan.initial,
            validate_every or plan.validate_every, save_every or plan.save_every,
        )  # fmt: skip
        if processes.first:
            write_record(out, record)
            for warning in (*trainer.partition.warnings, *_warnings(plan.cohort, cases, options, recipes)):
                warn(warning)
            if from_state is not None:
                # So that the folder holds a run from now on.
                trainer.save()
        again = f"dca train -o {out} --resume" + (f" --cache {cache}" if cache else "")
        with says_when_cancelled(lambda: f"The run is saved in {out}, at step {trainer.step}. Go on with: {again}"):
            _train(trainer, minutes, record, tensorboard, workers)
        if export_state is not None:
            detail = trainer.export(export_state, record.to_json())
    leave()
    if not processes.first:
        return
    _plot_curve(trainer)
    say(f"The run is in {out}, at step {trainer.step} of {options.steps}.")
    if export_state is not None and detail is not None:
        say(f"Written: {export_state}, {_in_words(detail)}. Go on with: dca train -o NEW --from-state FILE")
    if trainer.step < options.steps:
        say(f"Go on with: {again}")
    elif trainer.best >= 0 and options.strategy == "dca":
        say(f"Make a model of it with: dca bundle export {out} -o BUNDLE")


class _Synthesis(NamedTuple):
    """The options of ``dca train`` on synthetic CTs from label maps."""

    maps: list[Path] | None
    licences: list[str] | None
    warps: Path | None
    share: float | None
    painted: int | None
    first: int | None

    def cohort(self, others: bool) -> TrainingSet | None:
        """The synthetic CTs as labelled cases, or None; ``others``: whether there are further labelled cases.

        Raises UserError for options that do not go together.
        """
        from ..training.sources import RecipeStream
        from ..training.training_set import TrainingSet

        if not self.maps:
            names = {"licence": self.licences, "warps": self.warps, "synthesize-share": self.share}
            names |= {"synthesize-ahead": self.painted, "synthesize-first": self.first}
            if given := [name for name, value in names.items() if value not in (None, [])]:
                raise UserError(f"--{given[0]} is for CTs made from label maps.", "Name one with --synthesize.")
            return None
        if self.painted is not None:
            if self.share is not None:
                raise UserError(
                    "--synthesize-share does not go together with --synthesize-ahead.",
                    "Leave out one of them.",
                )
            return ahead_training_set(self.maps, self.licences or [], self.first or 0, self.painted, self.warps)
        if self.first is not None:
            raise UserError("--synthesize-first needs --synthesize-ahead.", "Add --synthesize-ahead, or leave it out.")
        if self.share is not None and self.share < 1 and not others:
            raise UserError(
                f"There is no labelled case for the other {1 - self.share:.0%} of the patches.",
                "Add some (--data, --labelled), or leave out --synthesize-share.",
            )
        share = self.share or (0.5 if others else 1.0)
        folders, warps = _label_maps(self.maps, self.licences or [], self.warps)
        return TrainingSet((RecipeStream(folders, warps, share),))


class _Plan(NamedTuple):
    """What to train; the groups of organs are made from the cases where ``groups`` is None. ``network`` has the weights
    that a new run starts from, ``initial`` says where they are from."""

    vocabulary: Vocabulary
    options: TrainingOptions
    cohort: TrainingSet
    groups: Partition | None
    initial: InitialModel | None
    network: DCANet | None
    validate_every: int
    save_every: int


def _earlier_plan(
    out: Path, from_state: Path | None, strategy: StrategyName, changes: dict[str, Any], others: dict[str, Any]
) -> _Plan:
    """A run that goes on: that of the folder ``out``, or that of an exported state in a new folder."""
    if from_state is None:
        from ..training.checkpoints import read_record

        record = read_record(out)
    else:
        _require_no_run(out)
        record = _record_of(from_state)
    unchangeable = sorted(set(changes) - {"steps"}) + [name for name, value in others.items() if value is not None]
    unchangeable += ["strategy"] * (strategy not in ("dca", record.options.strategy))
    if unchangeable:
        raise UserError(
            f"A resumed run keeps its options; {', '.join(unchangeable)} cannot be changed.",
            "Leave them out, or train in a new folder.",
        )
    return _Plan(
        record.vocabulary, replace(record.options, **changes), record.cohort, record.partition, record.initial, None,
        record.validate_every, record.save_every,
    )  # fmt: skip


def _new_plan(
    out: Path,
    preset: Preset,
    strategy: StrategyName,
    changes: dict[str, Any],
    init: str | None,
    data: Path | None,
    people: tuple[int | None, int | None, int | None],
    synthesis: _Synthesis,
    all_labels: bool,
    division: Division | None,
) -> _Plan:
    """A new run. ``people`` are synthetic ones: labelled, unlabelled, to validate on."""
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
    if data is not None and not synthesis.maps and not any(people[:2]) and strategy == "dca" and preset == "default":
        fine_tuned = initial
    options = _options(preset, strategy, changes, fine_tuned)
    groups = None if fine_tuned is None or division is not None else fine_tuned.metadata.partition
    usual = (24, 16, 4) if data is None else (0, 0, 0)
    cohort = TrainingSet.of_phantoms(*(n if told is None else told for told, n in zip(people, usual, strict=True)))
    vocabulary = AMOS
    if data is not None:
        # What is in a folder of corrected cases is what was written, or it is not trained on.
        if (data / CASES).is_dir():
            read_dataset(data)
        read_unlabelled_cts(data)
        datalist = read_datalist(list_of(data))
        require_files(datalist)
        cohort, vocabulary = cohort.joined(training_set_of(datalist)), datalist.vocabulary
    if all_labels:
        cohort = cohort.fully_labelled()
    synthetic = synthesis.cohort(others=bool(cohort.labelled))
    if synthetic is not None:
        cohort = cohort.joined(synthetic)
    network, started_from, known = None, None, None
    if initial is not None:
        network, started_from, known = initial.network(), InitialModel.of(initial), initial.metadata.vocabulary
    elif state is not None:
        network, started_from, known = _network_of(state)
    if known is not None and known != vocabulary:
        raise UserError(
            f"The model to start from knows the organs of {known.name}, the data have those of {vocabulary.name}.",
            "Start from a model of the same organs.",
        )
    if vocabulary != AMOS and cohort.synthetic:
        raise UserError(f"Synthetic CTs have the organs of AMOS, the list those of {vocabulary.name}.", "Choose one.")
    if not cohort.labelled:
        raise UserError("There is no labelled case to train on.", "Give at least one CT with a label map.")
    validate_every = max(min(_VALIDATE_EVERY, options.steps // 4), 1)
    return _Plan(vocabulary, options, cohort, groups, started_from, network, validate_every, _SAVE_EVERY)


def _require_no_run(out: Path) -> None:
    from ..training.checkpoints import has_checkpoint
    from ..training.trainer import CHECKPOINT

    if has_checkpoint(out / CHECKPOINT):
        raise UserError(f"{out} holds a run already.", "Add --resume to go on with it, or choose another folder.")


def _record_of(state: Path) -> RunRecord:
    from ..training.checkpoints import RunRecord
    from ..training.compact_state import read_compact

    try:
        return RunRecord.from_json(read_compact(state)[1] or {})
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{state} does not say what it was trained on ({error}).", "Name one that dca train --export-state wrote."
        ) from None


def _network_of(state: Path) -> tuple[DCANet, InitialModel, Vocabulary]:
    """The weights of an exported state, the averaged ones where there are some, and where they are from."""
    from ..training.checkpoints import InitialModel
    from ..training.compact_state import read_compact
    from ..training.corrections import sha256
    from ..training.trainer import build_network

    record = _record_of(state)
    content, _ = read_compact(state)
    network = build_network(record.options, record.partition)
    network.load_state_dict(content.get("averaged", content["network"]))
    before = () if record.initial is None else record.initial.training_data
    model = InitialModel(state.name, sha256(state), (*record.cohort.training_data, *before))
    return network, model, record.vocabulary


def _in_words(detail: Detail) -> str:
    kept = [
        f"weights in {detail.weights} bits",
        f"their average in {detail.average} more",
        f"moments in {detail.moments}",
    ]
    return ", ".join(text for text, bits in zip(kept, (1, detail.average, detail.moments), strict=True) if bits)


def _strategy_options(given: list[str]) -> dict[str, str]:
    """Options by name. Raises UserError for one without a value."""
    for one in given:
        if "=" not in one:
            raise UserError(f"--strategy-option {one} has no value.", "Write it like --strategy-option box=0.5.")
    return dict(one.split("=", 1) for one in given)


def ahead_training_set(
    maps: list[Path], licences: list[str], first: int, count: int, warps: Path | None = None
) -> TrainingSet:
    """``count`` CTs painted from these label maps, from number ``first`` on, as labelled cases."""
    from ..training.sources import PAINTED_SEEDS, PAINTED_VALIDATION_SEEDS, Painted
    from ..training.training_set import TrainingSet

    if PAINTED_SEEDS + first + count > PAINTED_VALIDATION_SEEDS:
        raise UserError(
            f"Painted CTs {first} to {first + count} are too many.",
            f"--synthesize-first and --synthesize-ahead add up to {PAINTED_VALIDATION_SEEDS - PAINTED_SEEDS} at most.",
        )
    folders, registrations = _label_maps(maps, licences, warps)
    return TrainingSet((Painted(folders, PAINTED_SEEDS + first, count, registrations),))


def _label_maps(
    maps: list[Path], licences: list[str], warps: Path | None
) -> tuple[tuple[LabelMapFolder, ...], str | None]:
    """The folders of label maps and that of registrations, for a run's record. Raises UserError for wrong ones."""
    from ..training.sources import LabelMapFolder

    if licences and len(licences) != len(maps):
        raise UserError(
            f"{len(maps)} --synthesize and {len(licences)} --licence were given.",
            "Give one --licence for each --synthesize, or none.",
        )
    for folder in maps:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder.", "Name a folder with a label map and a table of its names.")
    if warps is not None and not warps.is_dir():
        raise UserError(f"{warps} is no folder.", "Name the one that dca register-label-maps made.")
    licences = licences or ["not stated"] * len(maps)
    folders = tuple(LabelMapFolder(str(folder.resolve()), one) for folder, one in zip(maps, licences, strict=True))
    return folders, None if warps is None else str(warps.resolve())


def _warnings(
    cohort: TrainingSet,
    cases: tuple[list[Case], list[Case], list[Case]],
    options: TrainingOptions,
    recipes: RecipeSampler | None,
) -> list[str]:
    """What a user should know of the cases before hours are spent on them."""
    labelled, unlabelled, validation = cases
    found = []
    if recipes is not None:
        renderer = recipes.renderer
        found += [text for each in renderer.anatomies.values() if (text := unknown_structures(each)) is not None]
        if cohort.stream is not None and cohort.stream.warps is not None and not any(renderer.warps.values()):
            found.append(f"No registration in {cohort.stream.warps} is between two of the label maps: it is not used.")
        if len(renderer.anatomies) == 1 and not labelled:
            found.append("There is one label map: the bodies of all synthetic CTs are variants of this one person's.")
    elif len(labelled) == 1:
        found.append("There is one labelled case: what is learned is this one person's.")
    if not unlabelled and options.strategy not in ("vnet", "plain_experts"):
        found.append("There is no unlabelled case: the training is supervised alone.")
    if not validation:
        found.append("There is no case to validate on: the last weights are kept, not the best.")
    small = [
        case.name
        for case in labelled + unlabelled
        if any(side < least for side, least in zip(case.hu.shape, options.patch, strict=True))
    ]
    if small:
        found.append(f"{len(small)} cases are smaller than the patch and are padded, such as {small[0]}.")
    return found


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
    """Train with a bar that shows the last losses, λ and Dice; then a table of the last validation."""
    from ..training.tensorboard import TensorBoardLog

    started, first = time.monotonic(), trainer.step
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
            done = (line["step"] - first) / max(trainer.options.steps - first, 1)
            if minutes:
                done = max(done, (time.monotonic() - started) / (60 * minutes))
            progress(min(done, 1.0), _summary(line, trainer.options.steps, dice))

        try:
            trainer.run(minutes, record.save_every, record.validate_every, report, warn, False, workers)
        finally:
            if board is not None:
                board.close()
    if dice:
        shown = table("Dice in the last validation", "Organ", "Dice", numbers=("Dice",))
        for organ in trainer.vocabulary:
            if organ.key in dice:
                shown.add_row(organ.name, f"{dice[organ.key]:.3f}")
        shown.add_section()
        shown.add_row("Mean", f"{dice['mean']:.3f}")
        show(shown)


def _plot_curve(trainer: Trainer) -> None:
    """The learning curve so far, as ``curve.png`` in the run's folder."""
    from ..evaluation.figures.curves import read_log, training_curve
    from ..evaluation.figures.style import save_figure
    from ..training.trainer import LOG

    if (trainer.folder / LOG).exists():
        save_figure(
            training_curve(read_log(trainer.folder / LOG), trainer.vocabulary, trainer.folder.name),
            trainer.folder / CURVE,
        )


def _summary(line: dict[str, Any], steps: int, dice: dict[str, float]) -> str:
    losses = (
        f"{name} {line[name]:.2f}" for name in ("supervised", "head", "medium", "tail", "aggregation") if name in line
    )
    parts = [f"step {line['step']}/{steps}", *losses, f"λ {line.get('weight', 0.0):.2f}"]
    if dice:
        parts.append(f"Dice {dice['mean']:.3f}")
    return "  ".join(parts)
