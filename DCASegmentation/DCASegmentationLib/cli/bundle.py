"""``dca bundle``: trained models on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import output, say, say_plain, table, warn

if TYPE_CHECKING:
    from ..bundle.loading import Bundle

_Named = Annotated[
    str | None,
    typer.Argument(help="Folder or name of the model. Left out, the one that is used by default.", metavar="[BUNDLE]"),
]


def build_group() -> typer.Typer:
    """The commands ``dca bundle ...``."""
    group = typer.Typer(no_args_is_help=True, help="Check, describe or make a trained model (a MONAI bundle).")
    group.command(name="info", epilog="Example: dca bundle info")(info)
    group.command(name="verify", epilog="Example: dca bundle verify models/dca-synthetic")(verify)
    group.command(name="list", epilog="Example: dca bundle list")(list_all)
    group.command(name="pack", epilog="Example: dca bundle pack runs/first -o models/first")(pack)
    return group


def load(name: str | None) -> Bundle:
    """The bundle of this name or in this folder; the default one for None. Raises BundleError."""
    from ..bundle.finding import default_bundle, find_bundle
    from ..bundle.loading import Bundle

    return Bundle.load(default_bundle() if name is None else find_bundle(name))


def info(bundle: _Named = None) -> None:
    """Say what a model knows, what it was trained on, how good it was measured to be, and its limits."""
    from ..bundle.information import information

    shown = table("", "", "")
    shown.show_header = False
    for name, value in information(load(bundle)):
        shown.add_row(name, value)
    output().print(shown)


def verify(bundle: _Named = None) -> None:
    """Check that a model is whole, unchanged, and holds nothing but weights."""
    from ..bundle.finding import default_bundle, find_bundle
    from ..bundle.loading import verify as check

    folder = default_bundle() if bundle is None else find_bundle(bundle)
    verification = check(folder)
    for line in verification.checks:
        say_plain(f"ok  {line}")
    for warning in verification.warnings:
        warn(warning)
    say_plain(f"{folder} is a good bundle.")


def list_all() -> None:
    """List the models found: in the folders of DCA_MODELS, in ~/.dca/models, and those that come along."""
    from ..bundle.finding import find_bundles

    folders = find_bundles()
    for folder in folders:
        say_plain(f"{folder.resolve().name}  ({folder})")
    if not folders:
        say("None.")


def pack(
    run: Annotated[Path, typer.Argument(help="Folder of a run of dca train.", metavar="RUN")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")],
    name: Annotated[str, typer.Option(help="The model's name.")] = "dca-synthetic",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier bundle.")] = False,
) -> None:
    """Make a model of the best checkpoint of a training run."""
    from ..training.packing import pack as make

    bundle = make(run, out, name, overwrite)
    say_plain(f"The bundle is in {out} ({bundle.weights.bytes / 1e6:.1f} MB of weights).")
    say_plain(f"Measure it with: dca evaluate --bundle {out} --phantoms 10 --write-scores")
