"""Options that several commands share, singly and in groups (see ``field_options``)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError
from ..method.variants import Norm
from ..training.options import TrainingOptions
from .field_options import Values, fields_of
from .option_values import get_grid_changes, parse_patch

# Headings of groups of options on help pages.
CASES_PANEL = "Cases"
DATA_PANEL = "Data"
MODEL_PANEL = "Model"
OUTPUT_PANEL = "Output"
RUN_PANEL = "Run"
SCHEDULE_PANEL = "Schedule"
SYNTHESIS_PANEL = "Synthetic CTs"


def overwrite_option(what: str, panel: str | None = None) -> Any:
    """The flag --overwrite; ``what`` it replaces."""
    return typer.Option("--overwrite", help=f"Replace {what}.", rich_help_panel=panel)


def shared_option(panel: str) -> Any:
    """The flag --shared."""
    return typer.Option(
        "--shared",
        help="Let other users of this computer read the results, as the umask allows. Default: only you can.",
        rich_help_panel=panel,
    )


def group_option(panel: str | None = None) -> Any:
    """The option --group, which selects cases of a list."""
    return typer.Option("--group", help="Cases of the list: test, validation or training.", rich_help_panel=panel)


BundleOption = Annotated[
    str | None,
    typer.Option(help="Folder or name of the trained model. Default: the default model (see dca bundle info)."),
]
BackendOption = Annotated[
    str,
    typer.Option(
        "--backend",
        help="How to run the network: eager (PyTorch), openvino, openvino-bf16, compile (torch.compile) or cuda-half. "
        "auto measures once which is fastest on this computer; measure repeats the measurement.",
        rich_help_panel=RUN_PANEL,
    ),
]
DeviceOption = Annotated[
    str, typer.Option(help="Device: auto, cpu, gpu, cuda, cuda:1 or mps.", rich_help_panel=RUN_PANEL)
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        help="Folder of prepared cases, which several runs can share. Default: OUT/cases.", rich_help_panel=DATA_PANEL
    ),
]
MinutesOption = Annotated[
    float | None,
    typer.Option(min=0.0, help="Stop after this time. --resume continues the run.", rich_help_panel=SCHEDULE_PANEL),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the run in OUT with its own options.", rich_help_panel=RUN_PANEL)
]


@dataclass(frozen=True)
class GridGroup:
    """The options that decide how CTs are prepared for the network."""

    preprocessing: Annotated[
        str | None,
        typer.Option(help="How to prepare CTs. dca dataset presets lists the names.", rich_help_panel=MODEL_PANEL),
    ] = None
    spacing: Annotated[
        str | None, typer.Option(help="Voxel spacing of the model's grid in mm, as x,y,z.", rich_help_panel=MODEL_PANEL)
    ] = None

    def changes(self) -> dict[str, Any]:
        """The changes to ``TrainingOptions``. Raises UserError; see ``get_grid_changes``."""
        return get_grid_changes(self.preprocessing, self.spacing)


@dataclass(frozen=True, kw_only=True)
class NetworkGroup:
    """The options for the size of a network that is trained, its patches and its grid."""

    size: Annotated[Values, fields_of(TrainingOptions, "n_filters", panel=MODEL_PANEL)]
    patch: Annotated[
        str | None,
        typer.Option(help="Patch size in voxels: one side, or depth,height,width.", rich_help_panel=MODEL_PANEL),
    ] = None
    grid: GridGroup

    def changes(self) -> dict[str, Any]:
        """The changes to ``TrainingOptions``. Raises UserError for impossible values."""
        # The deepest features are 1/16 as large. A single voxel there has no statistics for normalization.
        patch = {} if self.patch is None else {"patch": parse_patch(self.patch, smallest=32)}
        return {**self.grid.changes(), **patch, **self.size}


def require_unchanged_options(context: typer.Context, changeable: Collection[str]) -> None:
    """Raise UserError if options were given that a resumed run cannot change.

    ``changeable`` are the other parameters of the command, by name. An option counts as given even if its value is the
    default, because the run may have another value.
    """
    given = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name) if parameter.name else None
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in changeable:
            given.append(next(name for name in parameter.opts if name.startswith("--")))
    if given:
        raise UserError(
            f"A resumed run keeps its options, so these cannot be changed: {', '.join(given)}.",
            "Omit them, or start a new run in another folder.",
        )


@dataclass(frozen=True)
class LabelMapGroup:
    """The label maps from which synthetic CTs are made, and their licenses."""

    label_maps: Annotated[
        list[Path] | None,
        typer.Option(
            "--synthesize",
            help="Folder of a label map (see dca synthesize): also train on synthetic CTs made from it. Can be "
            "repeated.",
            rich_help_panel=SYNTHESIS_PANEL,
        ),
    ] = None
    licenses: Annotated[
        list[str] | None,
        typer.Option(
            "--license",
            "--licence",
            help="License of the label map, once for each --synthesize.",
            rich_help_panel=SYNTHESIS_PANEL,
        ),
    ] = None


@dataclass(frozen=True)
class LabeledCTGroup:
    """The options for a labeled CT of one's own, or those of a list. Raises UserError if they contradict each other."""

    ct: Annotated[Path | None, typer.Option(help="Your own labeled CT.", rich_help_panel=CASES_PANEL)] = None
    labels: Annotated[Path | None, typer.Option(help="Label map of the CT.", rich_help_panel=CASES_PANEL)] = None
    label_table: Annotated[
        Path | None,
        typer.Option(
            help="Table with the columns id and name, if the label map has other label values than the model.",
            rich_help_panel=CASES_PANEL,
        ),
    ] = None
    data: Annotated[
        Path | None,
        typer.Option(
            help="List whose labeled CTs are used (see dca dataset). --group selects cases.",
            rich_help_panel=CASES_PANEL,
        ),
    ] = None
    group: Annotated[str, group_option(CASES_PANEL)] = "test"

    def __post_init__(self) -> None:
        if (self.ct is None) != (self.labels is None):
            raise UserError("--ct and --labels only work together.", "Specify both of them.")
        if self.label_table is not None and self.labels is None:
            raise UserError("--label-table needs --labels.", "Add --ct and --labels.")


BenchmarkThreads = Annotated[int, typer.Option("--threads", min=1, help="Threads of each program.")]


@dataclass(frozen=True)
class BenchmarkedNetwork:
    """The options for the network that is compared with other programs."""

    filters: Annotated[
        int, typer.Option(min=1, help="Channels of our network at full resolution.", rich_help_panel=MODEL_PANEL)
    ] = 16
    norm: Annotated[Norm, typer.Option(help="Normalization in our network.", rich_help_panel=MODEL_PANEL)] = "batch"
    patch: Annotated[
        str,
        typer.Option(
            help="Patch size of our network in voxels: one side, or depth,height,width.", rich_help_panel=MODEL_PANEL
        ),
    ] = "96"

    @property
    def sides(self) -> tuple[int, int, int]:
        """The patch (depth, height, width) in voxels. Raises UserError."""
        return parse_patch(self.patch, smallest=32)
