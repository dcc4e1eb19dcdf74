"""``dca bundle``: trained models on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BundleError, UserError
from .console import print_json, progress_bar, say, show, table, warn

if TYPE_CHECKING:
    from ..evaluation.model_comparison import HeldOut
    from ..models.bundle import Bundle

_NAME = "dca-synthetic"

_Named = Annotated[
    str | None,
    typer.Argument(help="Folder or name of the model. Left out, the one that is used by default.", metavar="[BUNDLE]"),
]


def build_group() -> typer.Typer:
    """The commands ``dca bundle ...``."""
    group = typer.Typer(no_args_is_help=True, help="List, check, add and make trained models (MONAI bundles).")
    group.command(name="info", epilog="Example: dca bundle info")(info)
    group.command(name="verify", epilog="Example: dca bundle verify models/dca-synthetic")(verify)
    group.command(name="list", epilog="Example: dca bundle list")(list_all)
    group.command(name="add", epilog="Example: dca bundle add model.zip")(add)
    group.command(name="download", epilog="Example: dca bundle download https://host/model.zip#sha256=...")(download)
    group.command(name="export", epilog="Example: dca bundle export runs/first -o models/first")(export)
    return group


def load(name: str | None) -> Bundle:
    """The bundle of this name or in this folder; the default one for None. Raises BundleError."""
    from ..models.bundle import Bundle
    from ..models.store import default_bundle, find_bundle, hidden_by

    folder = default_bundle() if name is None else find_bundle(name)
    if (shipped := hidden_by(folder)) is not None and name != str(folder):
        warn(f"The model is the one in {folder}; it hides the one of the same name in {shipped}.")
    return Bundle.load(folder)


def info(bundle: _Named = None) -> None:
    """Say what a model knows, what it was trained on, how good it was measured to be, and its limits."""
    from ..models.bundle import information

    shown = table("", "", "")
    shown.show_header = False
    rows = information(load(bundle))
    for name, value in rows:
        shown.add_row(name, value)
    show(shown)
    print_json(lambda: dict(rows))


def verify(bundle: _Named = None) -> None:
    """Check that a model is whole, unchanged, and holds nothing but weights."""
    from ..models.bundle import verify as check
    from ..models.store import default_bundle, find_bundle

    folder = default_bundle() if bundle is None else find_bundle(bundle)
    verification = check(folder)
    for line in verification.checks:
        say(f"ok  {line}")
    for warning in verification.warnings:
        warn(warning)
    if verification.code:
        raise BundleError(
            f"{folder} has files that this program did not write and that may run code on this computer: "
            f"{', '.join(verification.code[:5])}{' and more' if len(verification.code) > 5 else ''}.",
            "This program uses its weights alone, which are good; let no other program, such as monai.bundle, run it "
            "unless you trust who made it.",
        )
    say(f"{folder} is a good bundle.")


def list_all() -> None:
    """List the models found: in the folders of DCA_MODELS, in ~/.dca/models, and those that come along."""
    from ..models.store import default_bundle, find_bundles, hidden_by

    folders = find_bundles()
    default = default_bundle() if folders else None
    for folder in folders:
        shipped = hidden_by(folder)
        marks = [*(["default"] if folder == default else []), *([] if shipped is None else [f"hides {shipped}"])]
        say(f"{folder.resolve().name}  ({'; '.join([*marks, str(folder)])})")
    if not folders:
        say("No model was found. Add one with: dca bundle add FOLDER_OR_ZIP")
    print_json(
        lambda: [
            {"name": folder.resolve().name, "folder": str(folder), "default": folder == default} for folder in folders
        ]
    )


def add(
    source: Annotated[Path, typer.Argument(help="Folder or .zip file of a model bundle.", metavar="SOURCE")],
) -> None:
    """Copy a model bundle to your own models (~/.dca/models), after checking it."""
    from ..models.user_models import add_bundle

    folder = add_bundle(source)
    say(f"The model {folder.name} is in {folder}.")
    print_json(lambda: {"name": folder.name, "folder": str(folder)})


def download(
    address: Annotated[
        str, typer.Argument(help="URL of a .zip file, with its checksum: https://...#sha256=...", metavar="URL")
    ],
) -> None:
    """Download a model bundle to your own models (~/.dca/models). An interrupted download continues."""
    from ..models.download import Source, download_bundle
    from ..models.store import own_models

    with progress_bar() as progress:
        folder = download_bundle(Source.parse(address), own_models(), progress)
    say(f"The model {folder.name} is in {folder}.")
    print_json(lambda: {"name": folder.name, "folder": str(folder)})


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of dca train.", metavar="RUN")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Folder to make, unless --replace is given.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name. dca-synthetic, or that of the model to replace.")
    ] = None,
    better_than: Annotated[
        str | None, typer.Option(help="Only if it is at least as good as this model on held-out cases.")
    ] = None,
    replace: Annotated[
        str | None,
        typer.Option(help="Likewise, and takes this model's place; the old one stays beside it, renamed."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="List with the held-out cases. Else those that the run was validated on.")
    ] = None,
    group: Annotated[str, typer.Option(help="Which cases of the list: test, validation or training.")] = "test",
    overlap: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=0.95, help="Overlap of its windows: what dca benchmark accuracy --overlaps has found best."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="To compare on: auto, cuda, cuda:1, mps or cpu.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier bundle in OUT.")] = False,
) -> None:
    """Make a model of the best checkpoint of a training run.

    With --better-than or --replace both models are measured as **dca evaluate** does, and a new one with a lower mean
    Dice is refused.
    """
    from ..imaging.writers import new_folder
    from ..models.bundle import replacing
    from ..models.metadata import METADATA
    from ..training.export import export_bundle as make

    if (out is None) == (replace is None):
        raise UserError("A place for the new model is needed.", "Give -o OUT or --replace BUNDLE, one of them.")
    if better_than is not None and replace is not None:
        raise UserError("--replace compares with the model it replaces.", "Leave out --better-than.")
    rival = better_than if replace is None else replace
    if rival is None:
        if data is not None:
            raise UserError("--data is for a comparison.", "Give --better-than or --replace, too.")
        assert out is not None
        bundle = make(run, out, name or _NAME, overlap, overwrite)
    else:
        old = load(rival)
        cases = _held_out(run, data, group)
        if replace is not None:
            with replacing(old.folder) as (folder, kept):
                _require_as_good(old, make(run, folder, name or old.metadata.name, overlap), cases, device)
            out = old.folder
            say(f"The old model is kept in {kept}.")
        else:
            assert out is not None
            with new_folder(out, overwrite, recognized_by=METADATA) as folder:
                _require_as_good(old, make(run, folder, name or _NAME, overlap), cases, device)
        bundle = load(str(out))
    say(f"The bundle is in {out} ({bundle.weights.bytes / 1e6:.1f} MB of weights).")
    say(_how_to_measure(run, str(out)))


def _how_to_measure(run: Path, out: str) -> str:
    """The command that measures the new model on cases like those it was trained on."""
    from ..training.checkpoints import read_record
    from ..training.sources import CTFiles

    cohort = read_record(run).cohort
    own = [each.name for each in (*cohort.labelled, *cohort.validation) if isinstance(each, CTFiles)]
    if not own:
        return f"Measure it with: dca evaluate --bundle {out} --phantoms 10 --write-scores"
    names = " and ".join(dict.fromkeys(own))
    return f"Measure it with: dca evaluate --bundle {out} --data LIST --group test, where LIST is the list of {names}."


def _held_out(run: Path, data: Path | None, group: str) -> HeldOut:
    """The cases to compare on: those of the list, or the run's own validation cases, with a word of warning."""
    from ..evaluation.model_comparison import HeldOut, held_out_by
    from ..training.checkpoints import read_record
    from .evaluate import labelled_entries

    record = read_record(run)
    if data is not None:
        return HeldOut(tuple(labelled_entries([], [], data, group)))
    cases = held_out_by(record.cohort.validation)
    if cases.count:
        warn("The run chose its best step on the cases that it is compared on, which favors it; --data names others.")
    return cases


def _require_as_good(old: Bundle, new: Bundle, cases: HeldOut, device: str) -> None:
    """Print the comparison. Raises UserError where the new model is worse."""
    import math

    from ..evaluation.model_comparison import compare

    with progress_bar() as progress:
        found = compare(old, new, cases, device, progress)
    shown = table(f"Dice: means of {cases.count} held-out cases", "Organ", "Old", "New", numbers=("Old", "New"))
    before, after = found.old.by_organ(), found.new.by_organ()
    for organ in old.metadata.vocabulary:
        pair = (before[organ.key], after[organ.key])
        shown.add_row(organ.name, *(f"{dice:.3f}" if math.isfinite(dice) else "-" for dice in pair))
    shown.add_section()
    shown.add_row("Mean of all organs", f"{found.old.mean():.4f}", f"{found.new.mean():.4f}")
    show(shown)
    if not found.at_least_as_good:
        raise UserError(
            f"The new model is worse than {old.metadata.name}: mean Dice {found.new.mean():.4f}, not "
            f"{found.old.mean():.4f}. Nothing was replaced.",
            "Train on, or with more cases; without --better-than and --replace it is made all the same.",
        )
