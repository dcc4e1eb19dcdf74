"""``dca dataset``: lists of CTs for training and evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ImageError, UserError
from .console import make_table, print_line, print_table, progress_bar, warn
from .field_options import expand
from .option_values import require_new_file
from .options import GridGroup, overwrite_option

if TYPE_CHECKING:
    from ..training.datalist import Datalist
    from ..training.datasets import Built

_Out = Annotated[Path, typer.Option("-o", "--out", help="List (JSON file) to write.")]
_Unchecked = Annotated[
    bool, typer.Option("--unchecked", help="Skip reading and checking every file, which can take minutes.")
]
_Overwrite = Annotated[bool, overwrite_option("an existing list")]


def build_group() -> typer.Typer:
    """Build the commands of ``dca dataset``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Make and check lists of CTs for **dca train --data** and **dca evaluate --data**.",
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
    data: Annotated[
        Path, typer.Argument(help="Folder of AMOS22 with imagesTr, labelsTr, imagesVa and labelsVa.", metavar="FOLDER")
    ],
    out: _Out,
    split: Annotated[str, typer.Option(help="Labeled fraction: 2p, 5p, 10p or 20p (splits of xmed-lab/DHC).")] = "5p",
    with_mri: Annotated[
        bool, typer.Option("--with-mri", help="Keep the MRI scans, as the published splits do.")
    ] = False,
    unchecked: _Unchecked = False,
    overwrite: _Overwrite = False,
) -> None:
    """Make the list for a published split of AMOS22. Notes describe known problems of the split."""
    from ..training import datasets as layouts

    require_new_file(out, overwrite)
    # The check would reject every MRI.
    _finish(layouts.create_amos_datalist(data, split, with_mri), out, unchecked or with_mri)


def synapse(
    data: Annotated[
        Path, typer.Argument(help="Folder of the Synapse training data, with img and label.", metavar="FOLDER")
    ],
    out: _Out,
    split: Annotated[
        str,
        typer.Option(help="Published split: galoss-10p, galoss-20p, dhc-20p, dhc-40p, skcdf-20p or genericssl-20p."),
    ] = "galoss-20p",
    unchecked: _Unchecked = False,
    overwrite: _Overwrite = False,
) -> None:
    """Make the list for a published split of Synapse (BTCV). Notes describe known problems of the split."""
    from ..training import datasets as layouts

    require_new_file(out, overwrite)
    _finish(layouts.create_synapse_datalist(data, split), out, unchecked)


def folder(
    data: Annotated[
        Path, typer.Argument(help="Folder with images (or imagesTr) and labels (or labelsTr).", metavar="FOLDER")
    ],
    out: _Out,
    vocabulary: Annotated[str, typer.Option(help="Organs of the label maps: AMOS or Synapse.")] = "AMOS",
    validation: Annotated[int, typer.Option(min=0, help="Number of labeled cases for validation.")] = 1,
    test: Annotated[int, typer.Option(min=0, help="Number of labeled cases for dca evaluate.")] = 0,
    labeled: Annotated[
        int | None,
        typer.Option(
            "--labeled",
            "--labelled",
            min=1,
            help="Number of training cases whose labels are used. The other cases count as unlabeled. Default: all.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed for choosing validation and test cases.")] = 0,
    name: Annotated[str, typer.Option(help="Name of the data in the description of models trained on it.")] = "",
    license_name: Annotated[
        str,
        typer.Option(
            "--license", "--licence", help="License of the data, for the description of models trained on it."
        ),
    ] = "not stated",
    unchecked: _Unchecked = False,
    overwrite: _Overwrite = False,
) -> None:
    """Make the list for a folder of your own CTs. A CT without a label map of the same name counts as unlabeled."""
    from ..organs import VOCABULARIES
    from ..training import datasets as layouts

    require_new_file(out, overwrite)
    if vocabulary not in VOCABULARIES:
        raise UserError(f"The vocabulary '{vocabulary}' does not exist.", f"Choose one of: {', '.join(VOCABULARIES)}.")
    built = layouts.create_folder_datalist(
        data, VOCABULARIES[vocabulary], validation, test, labeled, seed, name, license_name
    )
    _finish(built, out, unchecked)


def add(
    folder: Annotated[
        Path, typer.Argument(help="Folder of corrected cases. It is created if it does not exist.", metavar="FOLDER")
    ],
    cts: Annotated[
        list[Path], typer.Argument(metavar="CT...", help="CTs to add: image files or folders of DICOM files.")
    ],
) -> None:
    """Add CTs without labels to a folder of corrected cases, for **dca train --init MODEL --data FOLDER**.

    Each CT is copied under a name derived from its voxels; file names and DICOM headers are not kept. CTs that the
    folder already contains are skipped. Files that are not CTs in HU are reported, and the rest is added.
    """
    from ..imaging.readers import read_ct
    from ..training.corrections import AlreadyThereError, add_unlabeled_ct, list_unlabeled_folders

    rejected = 0
    with progress_bar() as progress:
        for count, ct in enumerate(cts):
            progress(count / len(cts), f"Adding {ct.name}")
            try:
                added = add_unlabeled_ct(folder, read_ct(ct))
            except AlreadyThereError as duplicate:
                print_line(f"{ct}: {duplicate.problem}")
            except ImageError as error:
                rejected += 1
                warn(f"{ct}: {error}")
            else:
                print_line(f"{ct}: added as {added.parent.name}")
    print_line(f"CTs without labels in {folder}: {len(list_unlabeled_folders(folder))}")
    if rejected:
        raise UserError(f"{rejected} of {len(cts)} CTs could not be added.", "The messages above give the reasons.")


def check(data: Annotated[Path, typer.Argument(help="List (JSON file).", metavar="LIST")]) -> None:
    """Read every file of a list and report all problems."""
    from ..training.datalist import read_datalist

    datalist = read_datalist(data)
    _check(datalist)
    _print(datalist)


def presets() -> None:
    """List the presets for **--preprocessing** of **dca train** and **dca experiment**, with the reason for each."""
    from ..training.options import PRESETS

    rows = make_table("Preprocessing", "Name", "Voxels", "Intensity", "Why")
    for name, preset in PRESETS.items():
        grid = preset.grid
        voxels = "x".join(f"{side:g}" for side in grid.spacing) + " mm"
        if grid.shape is not None:
            voxels = "x".join(map(str, grid.shape)) + " voxels per case"
        low, high = grid.hu_window
        intensity = f"{low:g} to {high:g} HU" if grid.scaling == "window" else "z-score"
        rows.add_row(name, voxels, intensity, preset.reason, end_section=True)
    print_table(rows)


@expand
def prepare(
    data: Annotated[Path, typer.Argument(help="List (JSON file).", metavar="LIST")],
    cache: Annotated[
        Path, typer.Option(help="Folder for the prepared cases, to be used as --cache of other commands.")
    ],
    grid_options: GridGroup,
) -> None:
    """Resample every CT of a list to a model's grid in advance, for example to train several times or on another
    computer.

    Training does this by itself for cases that are missing in the cache. Existing cases are not prepared again.
    """
    from ..training.datalist import read_datalist, require_files
    from ..training.options import GridOptions
    from ..training.training_set import make_test_sources, make_training_set

    datalist = read_datalist(data)
    require_files(datalist)
    grid = grid_options.changes().get("grid", GridOptions())
    with progress_bar() as progress:
        groups = make_training_set(datalist).cases(cache, grid, progress)
        test = [case for source in make_test_sources(datalist) for case in source.cases(cache, grid, True, progress)]
    count = sum(map(len, groups)) + len(test)
    print_line(f"{count} {'case is' if count == 1 else 'cases are'} in {cache}.")


def _finish(built: Built, out: Path, unchecked: bool) -> None:
    from ..training.datalist import write_datalist

    for caveat in built.caveats:
        warn(caveat)
    if not unchecked:
        _check(built.datalist)
    write_datalist(built.datalist, out)
    _print(built.datalist)
    print_line(f"Written: {out}")


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
            f"{len(checked.errors)} of the files cannot be used. The last one: {checked.errors[-1]}",
            "Correct these files or remove them from the list.",
        )


def _print(datalist: Datalist) -> None:
    rows = make_table(datalist.name, "Group", "CTs", "With labels", numbers=("CTs", "With labels"))
    for group, entries in datalist.iter_groups():
        rows.add_row(group, str(len(entries)), str(sum(entry.label is not None for entry in entries)))
    print_table(rows)
