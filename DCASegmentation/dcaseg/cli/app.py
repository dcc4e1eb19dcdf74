"""The commands put together."""

from __future__ import annotations

from typing import Annotated

import typer

from .. import __version__
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
from .console import say

_EXIT_CODES = (
    "Exit codes: 0 done, 1 an unexpected error, 2 something you gave cannot be used, 130 cancelled with Ctrl+C."
)


def build_app() -> typer.Typer:
    """``dca`` with all of its commands."""
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
        *(train_clicks, evaluate, evaluate_clicks, evaluate_review, experiment),
    )
    for command in commands:
        app.command(name=command.NAME, epilog=command.EXAMPLES)(command.run)
    app.add_typer(benchmark.build_group(), name="benchmark")
    app.add_typer(dataset.build_group(), name="dataset")
    app.add_typer(bundle.build_group(), name="bundle")
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"dca {__version__}")
        raise typer.Exit


def _dca(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Print errors and notes only. Can stand anywhere in the command.")
    ] = False,
    json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print the result as one JSON object (segment, bundle). Can stand anywhere in the command."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where an error comes from. Can stand anywhere in the command.")
    ] = False,
) -> None:
    """Segment the organs of an abdominal CT with DCA (Divide, Conquer, and Aggregate), and see which of its three
    experts decided where.

    For research, not for clinical use. Start with **dca demo**, or with a CT of your own:
    **dca segment ct.nii.gz -o result**. **dca COMMAND --help** explains a command.
    """
