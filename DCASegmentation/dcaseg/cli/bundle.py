"""``dca bundle``: trained models (MONAI bundles) on disk."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import BundleError, UserError
from .console import make_table, print_json, print_line, print_table, progress_bar, warn
from .option_values import get_labeled_entries, load_bundle
from .options import DeviceOption, group_option, overwrite_option

if TYPE_CHECKING:
    from ..evaluation.model_comparison import HeldOut
    from ..models.bundle import Bundle


_BundleArgument = Annotated[
    str | None,
    typer.Argument(help="Folder or name of the model. Default: the default model.", metavar="[BUNDLE]"),
]


def build_group() -> typer.Typer:
    """Build the commands of ``dca bundle``."""
    group = typer.Typer(
        no_args_is_help=True, help="List, check, add, export and average trained models (MONAI bundles)."
    )
    group.command(name="info", epilog="Example: dca bundle info")(info)
    group.command(name="verify", epilog="Example: dca bundle verify models/mine")(verify)
    group.command(name="list", epilog="Example: dca bundle list")(list_all)
    group.command(name="add", epilog="Example: dca bundle add model.zip")(add)
    group.command(name="download", epilog="Example: dca bundle download https://host/model.zip#sha256=...")(download)
    group.command(name="export", epilog="Example: dca bundle export runs/first -o models/first")(export)
    group.command(name="average", epilog="Example: dca bundle average models/a models/b -o models/mean")(average)
    return group


def info(bundle: _BundleArgument = None) -> None:
    """Show the organs of a model, its training data, measured scores and limits."""
    from ..models.bundle import describe_bundle

    rows = make_table("", "", "")
    rows.show_header = False
    facts = describe_bundle(load_bundle(bundle))
    for name, value in facts:
        rows.add_row(name, value)
    print_table(rows)
    print_json(lambda: _group_by_name(facts))


def verify(bundle: _BundleArgument = None) -> None:
    """Check that a model is complete and unchanged, and contains only weights and no code."""
    from ..models.bundle import verify as verify_bundle
    from ..models.store import find_bundle, find_default_bundle

    folder = find_default_bundle() if bundle is None else find_bundle(bundle)
    verification = verify_bundle(folder)
    for line in verification.checks:
        print_line(f"ok  {line}")
    for warning in verification.warnings:
        warn(warning)
    if verification.code:
        raise BundleError(
            f"{folder} contains files that this program did not write and that may run code on this computer: "
            f"{', '.join(verification.code[:5])}{' and more' if len(verification.code) > 5 else ''}.",
            "This program uses only the weights, which are intact. Do not run the bundle with another program such as "
            "monai.bundle unless you trust its author.",
        )
    print_line(f"{folder} is a valid bundle.")
    print_json(lambda: {"folder": str(folder), "checks": verification.checks, "notes": verification.warnings})


def _group_by_name(facts: Iterable[tuple[str, str]]) -> dict[str, str | list[str]]:
    """The facts by name; a name that appears several times, such as the training data, has a list."""
    values: dict[str, list[str]] = {}
    for name, value in facts:
        values.setdefault(name, []).append(value)
    return {name: several[0] if len(several) == 1 else several for name, several in values.items()}


def list_all() -> None:
    """List the available models: those in the folders of DCA_MODELS, in ~/.dca/models, and those included in the
    program."""
    from ..models.store import find_bundles, find_default_bundle, find_hidden_bundle

    folders = find_bundles()
    default = find_default_bundle() if folders else None
    for folder in folders:
        shipped = find_hidden_bundle(folder)
        marks = [*(["default"] if folder == default else []), *([] if shipped is None else [f"hides {shipped}"])]
        print_line(f"{folder.resolve().name}  ({'; '.join([*marks, str(folder)])})")
    if not folders:
        print_line("No model was found. Add one with: dca bundle add FOLDER_OR_ZIP")
    print_json(
        lambda: [
            {"name": folder.resolve().name, "folder": str(folder), "default": folder == default} for folder in folders
        ]
    )


def add(
    source: Annotated[Path, typer.Argument(help="Folder or .zip file of a model bundle.", metavar="SOURCE")],
) -> None:
    """Check a model bundle and copy it to your own models (~/.dca/models)."""
    from ..models.user_models import add_bundle

    folder = add_bundle(source)
    print_line(f"The model {folder.name} is in {folder}.")
    print_json(lambda: {"name": folder.name, "folder": str(folder)})


def download(
    address: Annotated[
        str, typer.Argument(help="URL of a .zip file, with its checksum: https://...#sha256=...", metavar="URL")
    ],
) -> None:
    """Download a model bundle to your own models (~/.dca/models). An interrupted download continues."""
    from ..models.download import Source, download_bundle
    from ..models.store import get_user_models_folder

    with progress_bar() as progress:
        folder = download_bundle(Source.parse(address), get_user_models_folder(), progress)
    print_line(f"The model {folder.name} is in {folder}.")
    print_json(lambda: {"name": folder.name, "folder": str(folder)})


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run of dca train.", metavar="RUN")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="New folder for the model. Not with --replace.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the model. Default: that of the folder OUT, or of the replaced model.")
    ] = None,
    better_than: Annotated[
        str | None, typer.Option(help="Only export if the new model is at least as good as this one on held-out cases.")
    ] = None,
    replace: Annotated[
        str | None,
        typer.Option(help="Like --better-than, and replace that model. The old model is kept under another name."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="List with the held-out cases. Default: the validation cases of the run.")
    ] = None,
    group: Annotated[str, group_option()] = "test",
    overlap: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=0.95, help="Window overlap to store in the model (see dca benchmark accuracy --overlaps)."
        ),
    ] = None,
    device: DeviceOption = "auto",
    overwrite: Annotated[bool, overwrite_option("an earlier bundle in OUT")] = False,
) -> None:
    """Make a model from the best checkpoint of a training run.

    With --better-than or --replace, both models are measured like in **dca evaluate**, and the new model is rejected
    if its mean Dice is lower.
    """
    from ..imaging.writers import new_folder
    from ..models.bundle import replacing
    from ..models.metadata import METADATA, is_bundle_file
    from ..training.export import export_bundle

    if (out is None) == (replace is None):
        raise UserError("The new model needs exactly one destination.", "Specify either -o OUT or --replace BUNDLE.")
    if better_than is not None and replace is not None:
        raise UserError("--replace already compares with the model that it replaces.", "Omit --better-than.")
    reference = better_than if replace is None else replace
    if reference is None:
        if data is not None:
            raise UserError("--data needs a model to compare with.", "Add --better-than or --replace.")
        assert out is not None
        bundle = export_bundle(run, out, name or "", overlap, overwrite)
    else:
        old = load_bundle(reference)
        cases = _get_held_out_cases(run, data, group)
        if replace is not None:
            with replacing(old.folder) as (folder, old_folder):
                new = export_bundle(run, folder, name or old.metadata.name, overlap)
                _require_as_good(old, new, cases, device)
            out = old.folder
            print_line(f"The old model is now in {old_folder}.")
        else:
            assert out is not None
            with new_folder(out, overwrite, METADATA, is_bundle_file) as folder:
                _require_as_good(old, export_bundle(run, folder, name or out.absolute().name, overlap), cases, device)
        bundle = load_bundle(str(out))
    print_line(f"The model is in {out} ({bundle.weights.bytes / 1e6:.1f} MB of weights).")
    print_line(_format_evaluate_command(run, str(out)))


def average(
    bundles: Annotated[list[str], typer.Argument(help="Folders or names of two or more models.", metavar="BUNDLE...")],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the model.")],
    name: Annotated[str | None, typer.Option(help="Name of the model. Default: that of the folder OUT.")] = None,
    overwrite: Annotated[bool, overwrite_option("an earlier bundle in OUT")] = False,
) -> None:
    """Make a model whose weights are the mean of those of other models.

    If the models are checkpoints of one run or were fine-tuned from the same model, the mean is often better than each
    of them. Compare them with **dca evaluate**.
    """
    from ..models.averaging import average_bundles

    bundle = average_bundles([load_bundle(each) for each in bundles], out, name or "", overwrite)
    print_line(f"The model is in {out} ({bundle.weights.bytes / 1e6:.1f} MB of weights).")
    print_line(f"To evaluate it: dca evaluate --bundle {out} --data LIST --group test")
    print_json(lambda: {"name": bundle.metadata.name, "folder": str(bundle.folder)})


def _format_evaluate_command(run: Path, out: str) -> str:
    """Return the command that evaluates the new model on cases like its training data."""
    from ..training.checkpoints import read_record
    from ..training.sources import CTFiles

    training_set = read_record(run).cohort
    sources = (*training_set.labeled, *training_set.validation)
    list_names = [each.name for each in sources if isinstance(each, CTFiles)]
    if not list_names:
        return f"To evaluate it: dca evaluate --bundle {out} --phantoms 10 --write-scores"
    names = " and ".join(dict.fromkeys(list_names))
    return f"To evaluate it: dca evaluate --bundle {out} --data LIST --group test, where LIST is the list of {names}."


def _get_held_out_cases(run: Path, data: Path | None, group: str) -> HeldOut:
    """Return the cases for the comparison: those of the list, or the run's validation cases, with a note."""
    from ..evaluation.model_comparison import HeldOut, get_held_out_cases
    from ..training.checkpoints import read_record

    record = read_record(run)
    if data is not None:
        return HeldOut(tuple(get_labeled_entries([], [], data, group)))
    cases = get_held_out_cases(record.cohort.validation)
    if cases.count:
        warn(
            "The comparison favors the new model, because the run chose its best step on the same cases. "
            "Use --data for other cases."
        )
    return cases


def _require_as_good(old: Bundle, new: Bundle, cases: HeldOut, device: str) -> None:
    """Compare the models and print the result. Raises UserError if the new model is worse."""
    import math

    from ..evaluation.model_comparison import compare

    with progress_bar() as progress:
        comparison = compare(old, new, cases, device, progress)
    count = f"{cases.count} held-out case{'s' if cases.count != 1 else ''}"
    rows = make_table(f"Mean Dice of {count}", "Organ", "Old", "New", numbers=("Old", "New"))
    old_dice, new_dice = comparison.old.average_by_organ(), comparison.new.average_by_organ()
    for organ in old.metadata.vocabulary:
        pair = (old_dice[organ.key], new_dice[organ.key])
        rows.add_row(organ.name, *(f"{dice:.3f}" if math.isfinite(dice) else "-" for dice in pair))
    rows.add_section()
    rows.add_row("Mean of all organs", f"{comparison.old.mean():.4f}", f"{comparison.new.mean():.4f}")
    print_table(rows)
    if not comparison.at_least_as_good:
        raise UserError(
            f"The new model is worse than {old.metadata.name}: mean Dice {comparison.new.mean():.4f} instead of "
            f"{comparison.old.mean():.4f}. Nothing was replaced.",
            "Train longer or with more cases. To export it anyway, omit --better-than and --replace.",
        )
