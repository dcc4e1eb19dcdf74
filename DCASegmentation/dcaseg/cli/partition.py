"""``dca partition``: divide organs into head, medium and tail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UserError
from ..method.log_gap import NoSecondGap, PartitionMode, partition
from ..organs import VOCABULARIES, Vocabulary
from ..types import ProgressCallback
from .console import make_table, print_line, print_table, progress_bar, warn
from .option_values import parse_integers, parse_numbers, parse_spacing, require_new_files
from .options import overwrite_option

if TYPE_CHECKING:
    from ..method.log_gap import Partition

NAME = "partition"
EXAMPLES = "Example: dca partition labels/*.nii.gz --plot log_gap.png"

VocabularyName = Literal["AMOS", "Synapse"]


def run(
    labels: Annotated[list[Path], typer.Argument(help="Label maps of the labeled cases.", metavar="LABELS...")],
    vocabulary: Annotated[VocabularyName, typer.Option(help="Organs of the label maps.")] = "AMOS",
    mode: Annotated[PartitionMode, typer.Option(help="How to divide the ranking into three groups.")] = "top2",
    no_second_gap: Annotated[
        NoSecondGap | None,
        typer.Option(
            help="Mode sequential: what to do if the largest gap is the last one.",
            show_default="error",
        ),
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option(
            help="Mode fixed: head organs are above the first proportion, tail organs below the second.",
            show_default="0.1,0.01",
        ),
    ] = None,
    groups: Annotated[
        str | None, typer.Option(help="Mode manual: labels of head, medium and tail organs, such as 6,1/7,2,3/4,5.")
    ] = None,
    spacing: Annotated[
        str | None,
        typer.Option(help="Resample to this voxel spacing (x,y,z in mm) before counting. Default: that of each file."),
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file to write.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="PNG file to write: a plot of the log proportions and their gaps.")
    ] = None,
    overwrite: Annotated[bool, overwrite_option("existing files")] = False,
) -> None:
    """Divide organs into head, medium and tail at gaps between their logarithmic proportions (log-gap analysis).

    Modes: top2 (at the two largest gaps), sequential (literally as in the paper's slides), balanced (at least two
    organs per group), fixed (at thresholds), average (three groups of equal size), manual.
    """
    from ..imaging.writers import write_json

    chosen = VOCABULARIES[vocabulary]
    for option, given, of_mode in (
        ("--no-second-gap", no_second_gap, "sequential"),
        ("--thresholds", thresholds, "fixed"),
        ("--groups", groups, "manual"),
    ):
        if given is not None and mode != of_mode:
            raise UserError(f"{option} has no effect with --mode {mode}.", f"Add --mode {of_mode}, or omit {option}.")
    require_new_files({"--out": out, "--plot": plot}, overwrite)
    head_above, tail_below = parse_numbers(thresholds or "0.1,0.01", "--thresholds", 2)
    target = None if spacing is None else parse_spacing(spacing)
    with progress_bar() as progress:
        counts, same_size = _count_voxels(labels, chosen, target, progress)
    names = {organ.label: organ.name for organ in chosen}
    result = partition(
        counts,
        mode,
        no_second_gap=no_second_gap or "error",
        head_above=head_above,
        tail_below=tail_below,
        groups=None if groups is None else _parse_groups(groups),
        names=names,
    )
    if not same_size:
        warn(
            "The label maps differ in voxel size, so organs in coarser ones count less. Use --spacing to resample them."
        )
    for warning in result.warnings:
        warn(warning)
    _print(result, names)
    if out is not None:
        write_json({"vocabulary": chosen.name, **result.to_json()}, out)
        print_line(f"Written: {out}")
    if plot is not None:
        from ..evaluation.figures.log_gap import draw_log_gap

        draw_log_gap(result, chosen, plot)
        print_line(f"Plotted: {plot}")


def _count_voxels(
    paths: list[Path], vocabulary: Vocabulary, spacing: tuple[float, float, float] | None, progress: ProgressCallback
) -> tuple[dict[int, int], bool]:
    """Return the voxels of each label summed over all files, and whether all files have the same voxel size."""
    import numpy as np
    import SimpleITK as sitk

    from ..errors import ImageError
    from ..imaging.grid import make_model_grid
    from ..imaging.readers import read_labels
    from ..imaging.resampling import resample

    counts = np.zeros(len(vocabulary) + 1, dtype=np.int64)
    voxel_sizes = set()
    for index, path in enumerate(paths):
        progress(index / len(paths), f"Counting voxels of {path.name}")
        image = read_labels(path)
        if spacing is not None:
            image = resample(image, make_model_grid(image, spacing), "nearest", outside=0)
        in_file = np.bincount(sitk.GetArrayViewFromImage(image).ravel(), minlength=len(counts))
        if len(in_file) > len(counts):
            raise ImageError(
                f"{path.name} contains label {len(in_file) - 1}, but the labels of {vocabulary.name} end at "
                f"{len(vocabulary)}.",
                "Choose the right --vocabulary, or convert the labels.",
            )
        counts += in_file
        voxel_sizes.add(round(float(np.prod(image.GetSpacing())), 3))
    return {organ.label: int(counts[organ.label]) for organ in vocabulary}, len(voxel_sizes) == 1


def _parse_groups(text: str) -> list[tuple[int, ...]]:
    parts = text.split("/")
    if len(parts) != 3:
        raise UserError(f"--groups '{text}' is not three groups.", "Separate them with slashes: 6,1/7,2,3/4,5.")
    return [parse_integers(part, "--groups", "6,1/7,2,3/4,5") if part.strip() else () for part in parts]


def _print(result: Partition, names: dict[int, str]) -> None:
    rows = make_table(
        f"Partition ({result.mode})",
        "Rank", "Organ", "Voxels", "Proportion", "Gap to the next", "Group",
        numbers=("Rank", "Voxels", "Proportion", "Gap to the next"),
    )  # fmt: skip
    groups = {
        label: name for name, owned in zip(("head", "medium", "tail"), result.owners, strict=True) for label in owned
    }
    gaps = [*(f"{gap:.3f}" for gap in result.gaps), ""]
    ranked_organs = zip(result.ranking, result.counts, result.proportions, gaps, strict=True)
    ranked = len(result.ranking)
    for rank, (label, count, proportion, gap) in enumerate(ranked_organs, start=1):
        last_of_group = rank < ranked and groups[label] != groups[result.ranking[rank]]
        rows.add_row(
            str(rank), names[label], f"{count:,}", f"{proportion:.3%}", gap, groups[label], end_section=last_of_group
        )
    for label in result.absent:
        rows.add_row("", names[label], "0", "", "", groups[label])
    print_table(rows)
