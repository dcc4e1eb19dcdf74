"""Options of the commands: those made from fields of the library's dataclasses, and those that several commands share.

A command is a function with a parameter for each option. ``expand`` also lets a parameter stand for several options: a
dataclass whose fields are options (a group), or ``Annotated[Values, fields_of(...)]`` for options whose type, default,
limits and help are defined by the fields of a dataclass of the library::

    @expand
    def run(out: OutOption, size: NetworkSize, schedule: Annotated[Values, fields_of(TrainingOptions, "steps")]): ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..errors import UserError
from ..method.variants import Norm
from ..option_fields import Option, hints_of, option_of
from ..training.options import TrainingOptions
from .option_values import grid_changes, parse_integers, parse_list, parse_patch

# Headings of groups of options on help pages.
CASES_PANEL = "Cases"
DATA_PANEL = "Data"
MODEL_PANEL = "Model"
OUTPUT_PANEL = "Output"
RUN_PANEL = "Run"
SCHEDULE_PANEL = "Schedule"
SYNTHESIS_PANEL = "Synthetic CTs"

Values = Mapping[str, Any]
"""Values of fields, by name."""


@dataclass(frozen=True)
class FieldOptions:
    """Options made from fields of a dataclass; see ``fields_of``."""

    kind: type
    names: tuple[str, ...]
    base: Any
    panel: str | None
    help: Mapping[str, str]

    def parameters(self) -> list[inspect.Parameter]:
        """A parameter of the command for each field."""
        return [self._parameter(item) for item in self._fields()]

    def take(self, values: dict[str, Any]) -> dict[str, Any]:
        """Remove the values of these options from those of a command, and return them by field.

        Without ``base``, only those that the user gave.
        """
        taken: dict[str, Any] = {}
        for item in self._fields():
            value, default = values.pop(item.name), self._default(item)
            if isinstance(default, bool):
                value = default != value  # a flag changes its default
                is_given = value != default
            else:
                is_given = value is not None
            if isinstance(value, str) and _is_list(self._type(item)):
                value = _parse_items(value, self._type(item), self._flags(item)[0])
            if is_given or self.base is not None:
                taken[item.name] = value
        return taken

    def _fields(self) -> list[Field[Any]]:
        by_name = {item.name: item for item in fields(self.kind)}
        return [by_name[name] for name in self.names]

    def _type(self, item: Field[Any]) -> Any:
        hint = hints_of(self.kind)[item.name]
        inner = [each for each in get_args(hint) if each is not type(None)]
        is_optional = type(None) in get_args(hint)
        return inner[0] if is_optional else hint

    def _default(self, item: Field[Any]) -> Any:
        if self.base is not None:
            return getattr(self.base, item.name)
        return item.default if isinstance(item.default, bool) else None

    def _flags(self, item: Field[Any]) -> tuple[str, ...]:
        name = item.name.replace("_", "-")
        turns_off = self._default(item) is True
        return (f"--no-{name}",) if turns_off else option_of(item).flags or (f"--{name}",)

    def _parameter(self, item: Field[Any]) -> inspect.Parameter:
        described, default, kind = option_of(item), self._default(item), self._type(item)
        text = self.help.get(item.name) or (described.off if default is True else described.help)
        if isinstance(default, bool):
            default = False
        elif described.choices:
            kind = Literal[described.choices]
        elif _is_list(kind):
            kind, default = str, None if default is None else ",".join(map(str, default))
        annotation: Any = Annotated[
            kind if default is not None else kind | None,
            typer.Option(*self._flags(item), help=text, rich_help_panel=self.panel, **_limits(described, kind)),
        ]
        return inspect.Parameter(item.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def fields_of(
    kind: type, *names: str, base: Any = None, panel: str | None = None, help: Mapping[str, str] | None = None
) -> FieldOptions:
    """Options made from the fields ``names`` of the dataclass ``kind``.

    With ``base``, an instance of ``kind``, its values are the defaults. Without it, options have no default, and only
    those that the user gave have values. A flag turns off what is on by default: ``--no-entropy``. ``panel`` is their
    heading on the help page; ``help`` replaces help texts, by field.
    """
    return FieldOptions(kind, names, base, panel, help or {})


def _limits(described: Option, kind: Any) -> dict[str, Any]:
    """The inclusive limits of a number; the library checks the others."""
    if kind not in (int, float) or described.below is not None:
        return {}
    found = {"min": described.minimum, "max": described.maximum}
    return {name: kind(limit) for name, limit in found.items() if limit is not None}


def _is_list(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _parse_items(text: str, kind: Any, flag: str) -> tuple[Any, ...]:
    if get_args(kind)[0] is str:
        return parse_list(text)
    return () if text == "none" else parse_integers(text, flag, "1,4")


_Take = Callable[[dict[str, Any]], Any]


def expand(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each parameter of ``command`` that stands for several options by these options."""
    declared = {each.name: each.default for each in inspect.signature(command).parameters.values()}
    parameters, groups = _expanded(get_type_hints(command, include_extras=True), declared)

    @functools.wraps(command)
    def expanded(**values: Any) -> Any:
        return command(**_taken(groups, values), **values)

    # Typer reads both.
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {each.name: each.annotation for each in parameters}
    return expanded


def _expanded(
    hints: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[list[inspect.Parameter], dict[str, _Take]]:
    """The parameters for the names in ``defaults``, and for each name that is a group, what collects its value."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, _Take] = {}
    for name, default in defaults.items():
        hint = hints[name]
        made_of = next((each for each in get_args(hint)[1:] if isinstance(each, FieldOptions)), None)
        if made_of is not None:
            parameters += made_of.parameters()
            groups[name] = made_of.take
        elif is_dataclass(hint):
            of_group, inner = _expanded(get_type_hints(hint, include_extras=True), _defaults(hint))
            parameters += of_group
            groups[name] = functools.partial(_take_group, hint, inner)
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=hint))
    return parameters, groups


def _defaults(group: Any) -> dict[str, Any]:
    return {item.name: inspect.Parameter.empty if item.default is MISSING else item.default for item in fields(group)}


def _take_group(group: Any, inner: Mapping[str, _Take], values: dict[str, Any]) -> Any:
    taken = _taken(inner, values)
    return group(**taken, **{item.name: values.pop(item.name) for item in fields(group) if item.name not in taken})


def _taken(groups: Mapping[str, _Take], values: dict[str, Any]) -> dict[str, Any]:
    """Remove the values of ``groups`` from ``values``, and return what they make."""
    return {name: take(values) for name, take in groups.items()}


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
        help="How to run the network: eager (PyTorch), openvino, compile (torch.compile) or cuda-half. auto measures "
        "once which is fastest on this computer; measure repeats the measurement.",
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
        """The changes to ``TrainingOptions``. Raises UserError; see ``grid_changes``."""
        return grid_changes(self.preprocessing, self.spacing)


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
            raise UserError("--ct and --labels only work together.", "Give both of them.")
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
