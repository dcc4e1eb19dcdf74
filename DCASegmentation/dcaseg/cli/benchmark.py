"""``dca benchmark``: compare time, memory and accuracy with those of other programs."""

from __future__ import annotations

import typer

from . import benchmark_accuracy, benchmark_backends, benchmark_inference, benchmark_memory, benchmark_training


def build_group() -> typer.Typer:
    """Build the commands of ``dca benchmark``."""
    group = typer.Typer(
        no_args_is_help=True, help="Measure time, memory and accuracy, and compare them with other programs."
    )
    for command in (benchmark_inference, benchmark_backends, benchmark_memory, benchmark_accuracy, benchmark_training):
        group.command(name=command.NAME, epilog=command.EXAMPLES)(command.run)
    return group
