"""``dca partition``: which organs are head, medium and tail."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UserError
from ..method.log_gap import PartitionMode, partition
from ..organs import VOCABULARIES, Vocabulary
from .console import Report, progress_bar, say, show, table, warn
from .option_values import new_file, numbers, parse_spacing, whole_numbers

if TYPE_CHECKING:
    from ..method.log_gap import Partition

NAME = "partition"
EXAMPLES = "Example: dca partition labels/*.nii.gz --plot log_gap.png"

VocabularyName = Literal["AMOS", "Synapse"]
NoSecondGap = Literal["error", "empty_tail", "guarded"]


def run(
    labels: Annotated[list[Path], typer.Argument(help="Label maps of the labelled cases.", metavar="LABELS...")],
    vocabulary: Annotated[VocabularyName, typer.Option(help="Which number is which organ.")] = "AMOS",
    mode: Annotated[PartitionMode, typer.Option(help="How the ranking is cut into three groups.")] = "top2",
    no_second_gap: Annotated[
        NoSecondGap, typer.Option(help="Mode sequential: what to do when the largest gap is the last.")
    ] = "error",
    thresholds: Annotated[
        str, typer.Option(help="Mode fixed: proportions of head (above) and tail (below).")
    ] = "0.1,0.01",
    groups: Annotated[
        str | None, typer.Option(help="Mode manual: the labels of head, medium and tail, as in 6,1/7,2,3/4,5.")
    ] = None,
    spacing: Annotated[
        str | None, typer.Option(help="Count at this voxel size (x,y,z in mm) instead of each file's own.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="JSON file to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot of the log proportions and their gaps (.png).")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Divide the organs into head, medium and tail by the gaps of their logarithmic proportions (log-gap analysis).

    Modes: top2 (the two largest gaps), sequential (the paper's slides to the letter), balanced (groups of at least
    two), fixed (thresholds), average (three equal runs), manual.
    """
    from ..imaging.writers import write_json

    chosen = VOCABULARIES[vocabulary]
    for path in (out, plot):
        if path is not None:
            new_file(path, overwrite)
    head_above, tail_below = numbers(thresholds, "--thresholds", 2)
    target = None if spacing is None else parse_spacing(spacing)
    with progress_bar() as progress:
        counts, same_size = _voxel_counts(labels, chosen, target, progress)
    names = {organ.label: organ.name for organ in chosen}
    found = partition(
        counts,
        mode,
        no_second_gap=no_second_gap,
        head_above=head_above,
        tail_below=tail_below,
        groups=None if groups is None else _groups(groups),
        names=names,
    )
    if not same_size:
        warn("The voxels of the label maps differ in size, so coarse ones count less. --spacing makes them alike.")
    for warning in found.warnings:
        warn(warning)
    _print(found, names)
    if out is not None:
        write_json({"vocabulary": chosen.name, **found.to_json()}, out)
        say(f"Written: {out}")
    if plot is not None:
        from ..evaluation.figures.log_gap import draw_log_gap

        draw_log_gap(found, chosen, plot)
        say(f"Plotted: {plot}")


def _voxel_counts(
    paths: list[Path], vocabulary: Vocabulary, spacing: tuple[float, float, float] | None, progress: Report
) -> tuple[dict[int, int], bool]:
    """Voxels of each label in all files together, and whether all files have voxels of one size."""
    import numpy as np
    import SimpleITK as sitk

    from ..errors import ImageError
    from ..imaging.grid import model_grid
    from ..imaging.readers import read_labels
    from ..imaging.resampling import resample

    counts = np.zeros(len(vocabulary) + 1, dtype=np.int64)
    sizes = set()
    for index, path in enumerate(paths):
        progress(index / len(paths), f"Counting voxels of {path.name}")
        image = read_labels(path)
        if spacing is not None:
            image = resample(image, model_grid(image, spacing), "nearest", outside=0)
        of_file = np.bincount(sitk.GetArrayViewFromImage(image).ravel(), minlength=len(counts))
        if len(of_file) > len(counts):
            raise ImageError(
                f"{path.name} holds label {len(of_file) - 1}, but {vocabulary.name} ends at {len(vocabulary)}.",
                "Choose the vocabulary it was labelled with (--vocabulary), or map its labels to one.",
            )
        counts += of_file
        sizes.add(round(float(np.prod(image.GetSpacing())), 3))
    return {organ.label: int(counts[organ.label]) for organ in vocabulary}, len(sizes) == 1


def _groups(text: str) -> list[tuple[int, ...]]:
    parts = text.split("/")
    if len(parts) != 3:
        raise UserError(f"--groups '{text}' is not three groups.", "Divide them by /, as in 6,1/7,2,3/4,5.")
    return [whole_numbers(part, "--groups", "6,1/7,2,3/4,5") if part.strip() else () for part in parts]


def _print(found: Partition, names: dict[int, str]) -> None:
    shown = table(
        f"Partition ({found.mode})",
        "Rank", "Organ", "Voxels", "Proportion", "Gap to the next", "Group",
        numbers=("Rank", "Voxels", "Proportion", "Gap to the next"),
    )  # fmt: skip
    groups = {
        label: name for name, owned in zip(("head", "medium", "tail"), found.owners, strict=True) for label in owned
    }
    gaps = [*(f"{gap:.3f}" for gap in found.gaps), ""]
    rows = zip(found.ranking, found.counts, found.proportions, gaps, strict=True)
    ranked = len(found.ranking)
    for rank, (label, count, proportion, gap) in enumerate(rows, start=1):
        last_of_group = rank < ranked and groups[label] != groups[found.ranking[rank]]
        shown.add_row(
            str(rank), names[label], f"{count:,}", f"{proportion:.3%}", gap, groups[label], end_section=last_of_group
        )
    for label in found.absent:
        shown.add_row("", names[label], "0", "", "", groups[label])
    show(shown)
