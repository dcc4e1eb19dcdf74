"""The application ``dca``: all commands and the options that they share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..user_folders import expand_user
from . import (
    benchmark,
    bundle,
    cohort,
    correct,
    dataset,
    demo,
    evaluate,
    evaluate_clicks,
    evaluate_review,
    experiment,
    fit_clicks,
    model,
    partition,
    phantom,
    register_label_maps,
    report,
    segment,
    synthesize,
    train,
    train_clicks,
)
from .console import print_line

_EXIT_CODES = (
    "Exit codes: 0 success, 1 unexpected error, 2 an input or option cannot be used, 130 canceled with Ctrl+C."
)


def build_app() -> typer.Typer:
    """Build ``dca`` with all its commands."""
    app = typer.Typer(
        name="dca",
        no_args_is_help=True,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=_EXIT_CODES,
    )
    app.callback()(_dca)
    commands = (
        *(segment, correct, report, cohort, demo, phantom, synthesize, register_label_maps, partition, model, train),
        *(train_clicks, fit_clicks, evaluate, evaluate_clicks, evaluate_review, experiment),
    )
    for command in commands:
        app.command(name=command.NAME, epilog=command.EXAMPLES)(command.run)
    app.add_typer(benchmark.build_group(), name="benchmark")
    app.add_typer(dataset.build_group(), name="dataset")
    app.add_typer(bundle.build_group(), name="bundle")
    for group in (app, *(each.typer_instance for each in app.registered_groups)):
        for info in group.registered_commands if group is not None else ():
            info.callback = None if info.callback is None else _with_home(info.callback)
    return app


def _with_home(command: Callable[..., Any]) -> Callable[..., Any]:
    """``command`` with a leading ~ of all paths replaced: shells leave it in ``--out=~/result``."""

    @functools.wraps(command)
    def called(*positional: Any, **values: Any) -> Any:
        return command(*map(_expand_home, positional), **{name: _expand_home(value) for name, value in values.items()})

    return called


def _expand_home(value: Any) -> Any:
    if isinstance(value, Path):
        return expand_user(value)
    return type(value)(map(_expand_home, value)) if type(value) in (list, tuple) else value


def _print_version(requested: bool) -> None:
    if requested:
        print_line(f"dca {__version__}")
        raise typer.Exit


def _dca(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print only errors and notes. Works anywhere in the command line.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print the result as one line of JSON (dca segment, dca bundle). Works anywhere in the command line.",
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Works anywhere in the command line.")
    ] = False,
) -> None:
    """Segment the organs in an abdominal CT with DCA (Divide, Conquer, and Aggregate) and show which of its three
    experts is dominant in each voxel.

    For research, not for clinical use. To get started, run **dca demo**, or segment your own CT with
    **dca segment ct.nii.gz -o result**. For help with a command, run **dca COMMAND --help**.
    """
