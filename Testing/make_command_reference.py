"""Write Resources/Docs/reference/commands.md from the command line itself.

    python Testing/make_command_reference.py

test_documents.py compares the page with the program.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer

from dcaseg.cli.app import build_app

PAGE = Path(__file__).parents[1] / "Resources/Docs/reference/commands.md"

_HEAD = """\
# Commands

<!-- Written by Testing/make_command_reference.py. Do not edit. -->

`dca COMMAND --help` shows the same text in a terminal. Files that the commands write: [files.md](files.md). Exit codes
and environment variables: [settings.md](settings.md).
"""


def commands() -> Iterator[tuple[str, Any]]:
    """Every command as typed, without ``dca`` ("bundle info"), and its Typer command, in the program's order."""
    yield from _below(root(), "")


@cache
def root() -> Any:
    """The Typer command ``dca`` itself."""
    return typer.main.get_command(build_app())


def _below(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from _below(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


def page() -> str:
    """The whole page."""
    listed = list(commands())
    parts = [_HEAD, "| command | what it does |\n|---|---|"]
    parts[-1] += "".join(f"\n| [`dca {name}`](#dca-{name.replace(' ', '-')}) | {_first(c)} |" for name, c in listed)
    parts += ["## Options of dca itself", _options(root().params)]
    parts += [_section(name, command) for name, command in listed]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _first(command: Any) -> str:
    return _cell(_help(command).split("\n\n")[0])


def _help(command: Any) -> str:
    return inspect.cleandoc(command.help or "")


def _section(name: str, command: Any) -> str:
    arguments = [each for each in command.params if each.param_type_name == "argument" and not each.hidden]
    options = [each for each in command.params if each.param_type_name == "option" and not each.hidden]
    usage = " ".join(["dca", name, *(_argument(each) for each in arguments), *(["[OPTIONS]"] if options else [])])
    parts = [f"## dca {name}", f"    {usage}", _help(command)]
    if command.epilog:
        parts.append(inspect.cleandoc(command.epilog))
    if arguments:
        rows = "".join(f"\n| `{_argument(each)}` | {_cell(each.help or '')} |" for each in arguments)
        parts.append("| argument | |\n|---|---|" + rows)
    if options:
        parts.append(_options(options))
    return "\n\n".join(parts)


def _options(options: list[Any]) -> str:
    shown = [each for each in options if not each.hidden]
    rows = "".join(f"\n| {_names(each)} | {_cell(each.help or '')} | {_default(each)} |" for each in shown)
    return "| option | | default |\n|---|---|---|" + rows


def _argument(argument: Any) -> str:
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def _names(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if option.is_flag:
        return names
    value = option.metavar or _value(option.type_descriptor.annotation)
    return f"{names} `{value}`"


def _value(annotation: Any) -> str:
    """What to write for an option's value: its choices, or the kind of value."""
    if get_origin(annotation) is Literal:
        return "|".join(str(choice) for choice in get_args(annotation)).replace("|", r"\|")
    inner = [each for each in get_args(annotation) if each is not type(None)]
    if inner and get_origin(annotation) in (Union, types.UnionType, list, tuple):
        return _value(inner[0])
    return {Path: "PATH", int: "N", float: "NUMBER"}.get(annotation, "TEXT")


def _default(option: Any) -> str:
    if option.required:
        return "required"
    if isinstance(option.show_default, str):
        return option.show_default
    default = option.default
    if option.is_flag or default is None or callable(default) or default in ((), [], ""):
        return ""
    return f"`{_cell(str(default))}`"


def _cell(text: str) -> str:
    """``text`` in a cell of a table: one line, without the marks that end a cell or begin a tag."""
    return " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
