"""``dca dataset``: lists of data to train and evaluate on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ImageError, UserError
from .console import progress_bar, say, show, table, warn
from .option_values import PreprocessingOption, SpacingOption, changes_of, new_file

if TYPE_CHECKING:
    from ..training.datalist import Datalist
    from ..training.datasets import Built

_Out = Annotated[Path, typer.Option("-o", "--out", help="The list (JSON) to write.")]
_Unchecked = Annotated[bool, typer.Option("--unchecked", help="Do not read every file first (minutes for AMOS).")]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing list.")]


def build_group() -> typer.Typer:
    """The commands of ``dca dataset``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Make and check the lists of data that **dca train --data** and **dca evaluate --data** read.",
        epilog="Example: dca dataset folder my-cts -o my-cts.json --validation 2 --test 4",
    )
    group.command("amos")(amos)
    group.command("synapse")(synapse)
    group.command("folder")(folder)
    group.command("add")(add)
    group.command("check")(check)
    group.command("presets")(presets)
    group.command("prepare")(prepare)
    return group


def amos(
    data: Annotated[Path, typer.Argument(help="Folder of AMOS22 with imagesTr, labelsTr, imagesVa, labelsVa.")],
    out: _Out,
    split: Annotated[str, typer.Option(help="Labelled part: 2p, 5p, 10p or 20p (of xmed-lab/DHC).")] = "5p",
    with_mri: Annotated[bool, typer.Option("--with-mri", help="Keep the MRI, as the published splits do.")] = False,
    unchecked: _Unchecked = False,
    overwrite: _Overwrite = False,
) -> None:
    """The list of a published split of AMOS22. What is wrong with the split is said."""
    from ..training import datasets as layouts

    new_file(out, overwrite)
    # MRI are no CT: reading would refuse each of them.
    _finish(layouts.amos(data, split, with_mri), out, unchecked or with_mri)


def synapse(
    data: Annotated[Path, typer.Argument(help="Folder of Synapse's training part, with img and label.")],
    out: _Out,
    split: Annotated[
        str, typer.Option(help="galoss-10p, galoss-20p, dhc-20p, dhc-40p, skcdf-20p or genericssl-20p.")
    ] = "galoss-20p",
    unchecked: _Unchecked = False,
    overwrite: _Overwrite = False,
) -> None:
    """The list of a published split of Synapse (BTCV). What is wrong with the split is said."""
    from ..training import datasets as layouts

    new_file(out, overwrite)
    _finish(layouts.synapse(data, split), out, unchecked)


def folder(
    data: Annotated[Path, typer.Argument(help="Folder with images (or imagesTr) and labels (or labelsTr).")],
    out: _Out,
    vocabulary: Annotated[str, typer.Option(help="Numbers of the label maps: AMOS or Synapse.")] = "AMOS",
    validation: Annotated[int, typer.Option(min=0, help="Labelled cases to validate on.")] = 1,
    test: Annotated[int, typer.Option(min=0, help="Labelled cases kept for dca evaluate.")] = 0,
    labelled: Annotated[
        int | None, typer.Option(min=1, help="Use the labels of so many; the others count as unlabelled.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of validation and test cases.")] = 0,
    name: Annotated[str, typer.Option(help="What a model trained on it calls the data.")] = "",
    licence: Annotated[str, typer.Option(help="Licence of the data, for the model's description.")] = "not stated",
    unchecked: _Unchecked = False,
    overwrite: _Overwrite = False,
) -> None:
    """The list of a folder of your own. A CT without a label map of its name counts as unlabelled."""
    from ..organs import VOCABULARIES
    from ..training import datasets as layouts

    new_file(out, overwrite)
    if vocabulary not in VOCABULARIES:
        raise UserError(f"There is no vocabulary '{vocabulary}'.", f"Choose one of: {', '.join(VOCABULARIES)}.")
    built = layouts.folder_of_cts(data, VOCABULARIES[vocabulary], validation, test, labelled, seed, name, licence)
    _finish(built, out, unchecked)


def add(
    folder: Annotated[Path, typer.Argument(help="Folder of corrected cases; it is made if there is none.")],
    cts: Annotated[list[Path], typer.Argument(metavar="CT...", help="CTs: image files, or folders of DICOM files.")],
) -> None:
    """Add CTs without labels to a folder of corrected cases, for **dca train --init MODEL --data FOLDER**.

    They are copied, under a name made of their voxels: no file name and nothing of a DICOM header is kept. A CT that
    is there already is passed over. What is no CT in Hounsfield units is named at the end, and the others are added.
    """
    from ..imaging.readers import read_ct
    from ..training.corrections import AlreadyThereError, add_unlabelled_ct, unlabelled_folders

    refused = 0
    with progress_bar() as progress:
        for count, ct in enumerate(cts):
            progress(count / len(cts), f"Adding {ct.name}")
            try:
                added = add_unlabelled_ct(folder, read_ct(ct))
            except AlreadyThereError as there:
                say(f"{ct}: {there.problem}")
            except ImageError as error:
                refused += 1
                warn(f"{ct}: {error}")
            else:
                say(f"{ct}: added as {added.parent.name}")
    say(f"CTs without labels in {folder}: {len(unlabelled_folders(folder))}")
    if refused:
        raise UserError(f"{refused} of {len(cts)} CTs were not added.", "What is wrong with each is said above.")


def check(data: Annotated[Path, typer.Argument(help="A list (JSON).")]) -> None:
    """Read every file of a list and say all that is wrong with them."""
    from ..training.datalist import read_datalist

    datalist = read_datalist(data)
    _check(datalist)
    _print(datalist)


def presets() -> None:
    """The ways to prepare CTs, for **dca train --preprocessing** and **dca experiment --preprocessing**, and why."""
    from ..training.options import PRESETS

    shown = table("Preprocessing", "Name", "Voxels", "Intensity", "Why")
    for name, preset in PRESETS.items():
        grid = preset.grid
        voxels = "x".join(f"{side:g}" for side in grid.spacing) + " mm"
        if grid.shape is not None:
            voxels = "x".join(map(str, grid.shape)) + " in each case"
        low, high = grid.hu_window
        scaled = f"{low:g} to {high:g} HU" if grid.scaling == "window" else "z-score"
        shown.add_row(name, voxels, scaled, preset.reason, end_section=True)
    show(shown)


def prepare(
    data: Annotated[Path, typer.Argument(help="A list (JSON).")],
    cache: Annotated[Path, typer.Option(help="Folder of prepared cases, for the --cache of other commands.")],
    preprocessing: PreprocessingOption = None,
    spacing: SpacingOption = None,
) -> None:
    """Bring every CT of a list to a model's grid once, so that training, elsewhere or often, finds it there.

    Training does it by itself where it was not done; what is there is not made again.
    """
    from ..training.datalist import read_datalist, require_files
    from ..training.options import GridOptions
    from ..training.training_set import sources_of_test, training_set_of

    datalist = read_datalist(data)
    require_files(datalist)
    grid = changes_of(preprocessing, spacing).get("grid", GridOptions())
    with progress_bar() as progress:
        groups = training_set_of(datalist).cases(cache, grid, progress)
        tested = [case for source in sources_of_test(datalist) for case in source.cases(cache, grid, True, progress)]
    say(f"{sum(map(len, groups)) + len(tested)} cases are in {cache}.")


def _finish(built: Built, out: Path, unchecked: bool) -> None:
    from ..training.datalist import write_datalist

    for caveat in built.caveats:
        warn(caveat)
    if not unchecked:
        _check(built.datalist)
    write_datalist(built.datalist, out)
    _print(built.datalist)
    say(f"Written: {out}")


def _check(datalist: Datalist) -> None:
    from ..training.datasets import check_files

    with progress_bar() as progress:
        checked = check_files(datalist, progress)
    for warning in checked.warnings:
        warn(warning)
    for error in checked.errors[:-1]:
        warn(error)
    if checked.errors:
        raise UserError(
            f"{len(checked.errors)} of the files cannot be used; the last: {checked.errors[-1]}",
            "Correct or remove them.",
        )


def _print(datalist: Datalist) -> None:
    shown = table(datalist.name, "Group", "CTs", "with labels", numbers=("CTs", "with labels"))
    for group, entries in datalist.groups():
        shown.add_row(group, str(len(entries)), str(sum(entry.label is not None for entry in entries)))
    show(shown)
