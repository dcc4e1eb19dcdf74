"""Options of commands that are made from fields of the library's dataclasses, and groups of options.

A command is a function with a parameter for each option. ``expand`` also lets a parameter stand for several options: a
dataclass whose fields are options (a group), or ``Annotated[Values, fields_of(...)]`` for options whose type, default,
limits and help are defined by the fields of a dataclass of the library::

    @expand
    def run(out: OutOption, network: NetworkGroup, length: Annotated[Values, fields_of(TrainingOptions, "steps")]): ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from ..option_fields import Option, get_option, resolve_type_hints
from .option_values import parse_integers, parse_list

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
        return [self._make_parameter(item) for item in self._get_fields()]

    def take(self, values: dict[str, Any]) -> dict[str, Any]:
        """Remove the values of these options from those of a command, and return them by field.

        Without ``base``, only those that the user gave.
        """
        taken: dict[str, Any] = {}
        for item in self._get_fields():
            value, default = values.pop(item.name), self._get_default(item)
            if isinstance(default, bool):
                value = default != value  # a flag changes its default
                is_given = value != default
            else:
                is_given = value is not None
            if isinstance(value, str) and _is_list(self._get_type(item)):
                value = _parse_items(value, self._get_type(item), self._get_flags(item)[0])
            if is_given or self.base is not None:
                taken[item.name] = value
        return taken

    def _get_fields(self) -> list[Field[Any]]:
        by_name = {item.name: item for item in fields(self.kind)}
        return [by_name[name] for name in self.names]

    def _get_type(self, item: Field[Any]) -> Any:
        hint = resolve_type_hints(self.kind)[item.name]
        inner = [each for each in get_args(hint) if each is not type(None)]
        is_optional = type(None) in get_args(hint)
        return inner[0] if is_optional else hint

    def _get_default(self, item: Field[Any]) -> Any:
        if self.base is not None:
            return getattr(self.base, item.name)
        return item.default if isinstance(item.default, bool) else None

    def _get_flags(self, item: Field[Any]) -> tuple[str, ...]:
        name = item.name.replace("_", "-")
        turns_off = self._get_default(item) is True
        return (f"--no-{name}",) if turns_off else get_option(item).flags or (f"--{name}",)

    def _make_parameter(self, item: Field[Any]) -> inspect.Parameter:
        described, default, kind = get_option(item), self._get_default(item), self._get_type(item)
        text = self.help.get(item.name) or (described.off if default is True else described.help)
        if isinstance(default, bool):
            default = False
        elif described.choices:
            kind = Literal[described.choices]
        elif _is_list(kind):
            kind, default = str, None if default is None else ",".join(map(str, default))
        annotation: Any = Annotated[
            kind if default is not None else kind | None,
            typer.Option(*self._get_flags(item), help=text, rich_help_panel=self.panel, **_get_limits(described, kind)),
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


def _get_limits(described: Option, kind: Any) -> dict[str, Any]:
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


_ValueReader = Callable[[dict[str, Any]], Any]


def expand(command: Callable[..., Any]) -> Callable[..., Any]:
    """Replace each parameter of ``command`` that stands for several options by these options."""
    declared = {each.name: each.default for each in inspect.signature(command).parameters.values()}
    parameters, groups = _expand_groups(get_type_hints(command, include_extras=True), declared)

    @functools.wraps(command)
    def expanded(**values: Any) -> Any:
        return command(**_take_groups(groups, values), **values)

    # Typer reads both.
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {each.name: each.annotation for each in parameters}
    return expanded


def _expand_groups(
    hints: Mapping[str, Any], defaults: Mapping[str, Any]
) -> tuple[list[inspect.Parameter], dict[str, _ValueReader]]:
    """The parameters for the names in ``defaults``, and for each name that is a group, what collects its value."""
    parameters: list[inspect.Parameter] = []
    groups: dict[str, _ValueReader] = {}
    for name, default in defaults.items():
        hint = hints[name]
        made_of = next((each for each in get_args(hint)[1:] if isinstance(each, FieldOptions)), None)
        if made_of is not None:
            parameters += made_of.parameters()
            groups[name] = made_of.take
        elif is_dataclass(hint):
            of_group, inner = _expand_groups(get_type_hints(hint, include_extras=True), _get_defaults(hint))
            parameters += of_group
            groups[name] = functools.partial(_take_group, hint, inner)
        else:
            kind = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name, kind, default=default, annotation=hint))
    return parameters, groups


def _get_defaults(group: Any) -> dict[str, Any]:
    return {item.name: inspect.Parameter.empty if item.default is MISSING else item.default for item in fields(group)}


def _take_group(group: Any, inner: Mapping[str, _ValueReader], values: dict[str, Any]) -> Any:
    taken = _take_groups(inner, values)
    return group(**taken, **{item.name: values.pop(item.name) for item in fields(group) if item.name not in taken})


def _take_groups(groups: Mapping[str, _ValueReader], values: dict[str, Any]) -> dict[str, Any]:
    """Remove the values of ``groups`` from ``values``, and return what they make."""
    return {name: take(values) for name, take in groups.items()}
