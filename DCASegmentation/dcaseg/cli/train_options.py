"""The options of ``dca train``, in groups as on its help page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import UserError
from ..training.options import TrainingOptions
from ..types import StrategyName
from .field_options import Values, fields_of
from .options import (
    DATA_PANEL,
    MODEL_PANEL,
    RUN_PANEL,
    SCHEDULE_PANEL,
    SYNTHESIS_PANEL,
    CacheOption,
    DeviceOption,
    LabelMapGroup,
    MinutesOption,
    NetworkGroup,
    ResumeOption,
)

Preset = Literal["default", "paper"]

_DEFAULT_PHANTOMS = (24, 16, 4)


@dataclass(frozen=True, kw_only=True)
class DataGroup:
    """The cases to train on, other than synthetic CTs made from label maps."""

    data: Annotated[
        Path | None,
        typer.Option(
            help="List of CTs (see dca dataset), or folder of corrected cases. Default: phantoms.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    labeled: Annotated[
        int | None,
        typer.Option(
            "--labeled",
            "--labelled",
            min=0,
            help="Number of phantoms with labels. Default: 24, or 0 with --data.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    unlabeled: Annotated[
        int | None,
        typer.Option(
            "--unlabeled",
            "--unlabelled",
            min=0,
            help="Number of phantoms without labels. Default: 16, or 0 with --data.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    validation: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Number of phantoms for validation. Default: 4, or 0 with --data.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None
    all_labels: Annotated[
        bool,
        typer.Option(
            "--all-labels",
            help="Also use the labels of the unlabeled cases (full supervision).",
            rich_help_panel=DATA_PANEL,
        ),
    ] = False
    cache: CacheOption = None

    @property
    def phantoms(self) -> tuple[int, ...]:
        """The numbers of labeled, unlabeled and validation phantoms."""
        defaults = _DEFAULT_PHANTOMS if self.data is None else (0, 0, 0)
        given = (self.labeled, self.unlabeled, self.validation)
        return tuple(default if count is None else count for count, default in zip(given, defaults, strict=True))

    @property
    def only_data(self) -> bool:
        """Whether training uses a list alone, without phantoms."""
        return self.data is not None and not self.labeled and not self.unlabeled


@dataclass(frozen=True, kw_only=True)
class SynthesisGroup:
    """Synthetic CTs made from label maps."""

    maps: LabelMapGroup
    warps: Annotated[
        Path | None,
        typer.Option(
            help="Folder made by dca register-label-maps: also make bodies interpolated between label maps.",
            rich_help_panel=SYNTHESIS_PANEL,
        ),
    ] = None
    share: Annotated[
        float | None,
        typer.Option(
            "--synthesize-fraction",
            min=0.01,
            max=1.0,
            help="Fraction of the labeled patches that come from synthetic CTs. Default: 0.5, or 1 if there are no "
            "other labeled cases.",
            rich_help_panel=SYNTHESIS_PANEL,
        ),
    ] = None
    made_ahead: Annotated[
        int | None,
        typer.Option(
            "--synthesize-ahead",
            min=1,
            help="Make this many synthetic CTs before the run, instead of new ones during the run.",
            rich_help_panel=SYNTHESIS_PANEL,
        ),
    ] = None
    first_number: Annotated[
        int | None,
        typer.Option(
            "--synthesize-first",
            min=0,
            help="Number of the first CT of --synthesize-ahead. Each number is a different person. Default: 0.",
            rich_help_panel=SYNTHESIS_PANEL,
        ),
    ] = None

    def get_given_options(self) -> dict[str, Any]:
        """The options that need a label map, by name; None for those that the user did not give."""
        return {
            "license": self.maps.licenses or None,
            "warps": self.warps,
            "synthesize-fraction": self.share,
            "synthesize-ahead": self.made_ahead,
            "synthesize-first": self.first_number,
        }


@dataclass(frozen=True, kw_only=True)
class ModelGroup:
    """What is trained, and how it begins."""

    preset: Annotated[
        Preset,
        typer.Option(
            help="Our default options, or those of the paper, which need a large GPU.", rich_help_panel=MODEL_PANEL
        ),
    ] = "default"
    init: Annotated[
        str | None,
        typer.Option(
            help="Start from these weights: folder or name of a model, or a file written by --export-state. A model "
            "with --data alone is fine-tuned: a short run at a low learning rate.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None
    method: Annotated[Values, fields_of(TrainingOptions, "strategy", base=TrainingOptions(), panel=MODEL_PANEL)]
    strategy_option: Annotated[
        list[str] | None,
        typer.Option(
            help="Option of the chosen strategy, as NAME=VALUE. Can be repeated.",
            rich_help_panel=MODEL_PANEL,
        ),
    ] = None
    experts: Annotated[Values, fields_of(TrainingOptions, "partition", panel=MODEL_PANEL)]
    network: NetworkGroup
    statistics: Annotated[Values, fields_of(TrainingOptions, "joint_statistics", panel=MODEL_PANEL)]

    @property
    def strategy(self) -> StrategyName:
        """The training method."""
        name: StrategyName = self.method["strategy"]
        return name

    def changes(self) -> dict[str, Any]:
        """The given options, as changes to ``TrainingOptions`` other than the strategy. Raises UserError."""
        own = {"strategy_options": _parse_strategy_options(self.strategy_option)} if self.strategy_option else {}
        return {**self.network.changes(), **self.experts, **self.statistics, **own}


@dataclass(frozen=True, kw_only=True)
class ScheduleGroup:
    """How long the run is, and what a step is."""

    length: Annotated[Values, fields_of(TrainingOptions, "steps", panel=SCHEDULE_PANEL)]
    minutes: MinutesOption = None
    batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Labeled patches per step; the number of unlabeled patches is the same.",
            rich_help_panel=SCHEDULE_PANEL,
        ),
    ] = None
    learning: Annotated[
        Values,
        fields_of(
            TrainingOptions,
            *("learning_rate", "expert_stage_fraction", "aggregation_start", "class_balance", "spatial_augmentation"),
            "mixed_precision",
            panel=SCHEDULE_PANEL,
        ),
    ]
    validate_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between validations. Default: 500, or a quarter of a shorter run. A resumed run keeps its own.",
            rich_help_panel=SCHEDULE_PANEL,
        ),
    ] = None
    save_every: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Steps between checkpoints. Default: 100. A resumed run keeps its own.",
            rich_help_panel=SCHEDULE_PANEL,
        ),
    ] = None
    randomness: Annotated[Values, fields_of(TrainingOptions, "seed", panel=SCHEDULE_PANEL)]

    def changes(self) -> dict[str, Any]:
        """The given options, as changes to ``TrainingOptions``."""
        patches = {} if self.batch is None else {"labeled_per_step": self.batch, "unlabeled_per_step": self.batch}
        return {**self.length, **patches, **self.learning, **self.randomness}


@dataclass(frozen=True, kw_only=True)
class RunGroup:
    """Where and how the run is computed, and which files it continues from and writes."""

    resume: ResumeOption = False
    device: DeviceOption = "auto"
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Processes that prepare patches in advance; 0 uses a thread instead. Default: up to 4 on a GPU "
            "without --synthesize, otherwise 0.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write a TensorBoard log into OUT.", rich_help_panel=RUN_PANEL)
    ] = False
    export_state: Annotated[
        Path | None,
        typer.Option(
            help="At the end, also write the state of the run to this file of at most 16 MiB. Weights and optimizer "
            "moments are rounded, so a run that continues from it is similar but not identical.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None
    from_state: Annotated[
        Path | None,
        typer.Option(
            help="Continue from a file written by --export-state, with the options and data of its run, in the new "
            "folder OUT.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = None


def _parse_strategy_options(texts: list[str]) -> dict[str, str]:
    """Parse NAME=VALUE options. Raises UserError for an option without a value."""
    for text in texts:
        if "=" not in text:
            raise UserError(f"--strategy-option {text} has no value.", "Write it like this: --strategy-option box=0.5.")
    return dict(text.split("=", 1) for text in texts)
