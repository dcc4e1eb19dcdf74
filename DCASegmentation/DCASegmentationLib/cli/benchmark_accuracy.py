"""``dca benchmark accuracy``: what the shortcuts of the default settings cost in Dice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .bundle import load
from .console import output, progress_bar, say_plain, table
from .values import new_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..benchmark.accuracy import Comparison, LabelledCase
    from ..organs import Vocabulary
    from ..training.datalist import Entry

NAME = "accuracy"
EXAMPLES = "Example: dca benchmark accuracy --phantoms 10"


def run(
    bundle: Annotated[str | None, typer.Option(help="Folder or name of the model. Else the default one.")] = None,
    phantoms: Annotated[int, typer.Option(min=0, help="So many synthetic people no training has seen.")] = 10,
    data: Annotated[Path | None, typer.Option(help="A list of data (dca dataset), of labelled CTs, as well.")] = None,
    group: Annotated[str, typer.Option(help="Which cases of the list: test, validation or training.")] = "test",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="CSV file with each case.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Compare the Dice of the default settings with that of the plain pipeline: windows over the whole volume that
    overlap by half, probabilities of the whole volume resampled to the CT's grid.
    """
    import csv
    import io

    from ..benchmark.accuracy import LARGEST_LOSS, compare, mean_loss, phantom_cases
    from ..errors import UserError
    from ..imaging.writing import write_text
    from ..inference.allocator import keep_freed_memory
    from .evaluate import labelled_entries

    if out is not None:
        new_file(out, overwrite)
    entries = labelled_entries([], [], data, group)
    if not phantoms and not entries:
        raise UserError("There is nothing to compare on.", "Give --phantoms, or --data with a list of labelled CTs.")
    keep_freed_memory()
    model = load(bundle)
    total = phantoms + len(entries)
    with progress_bar() as progress:
        done: list[Comparison] = []

        def on_case(comparison: Comparison) -> None:
            done.append(comparison)
            progress(len(done) / total, f"Case {len(done)} of {total}")

        of_phantoms = compare(model, phantom_cases(phantoms), on_case=on_case)
        of_entries = compare(model, _cases(entries, model.metadata.vocabulary), on_case=on_case)
    shown = table(
        f"{model.metadata.name}: mean Dice", "Case", "Defaults", "Plain", "Difference", "Voxels alike",
        numbers=("Defaults", "Plain", "Difference", "Voxels alike"),
    )  # fmt: skip
    for each in done:
        shown.add_row(each.name, f"{each.ours:.4f}", f"{each.plain:.4f}", f"{-each.loss:+.4f}", f"{each.same:.3%}")
    output().print(shown)
    for name, comparisons in (("phantoms", of_phantoms), ("labelled CTs", of_entries)):
        if comparisons:
            loss = mean_loss(comparisons)
            verdict = "met" if loss <= LARGEST_LOSS else "missed"
            say_plain(
                f"{len(comparisons)} {name}: {-loss:+.4f} (target: not lower by more than {LARGEST_LOSS}; {verdict})."
            )
    if out is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "defaults", "plain", "share_of_voxels_alike"])
        writer.writerows((each.name, each.ours, each.plain, each.same) for each in done)
        write_text(text.getvalue(), out)
        say_plain(f"Written: {out}")


def _cases(entries: list[Entry], vocabulary: Vocabulary) -> Iterator[LabelledCase]:
    from ..benchmark.accuracy import LabelledCase
    from ..evaluation.listed_cases import read_entry

    for entry in entries:
        ct, truth = read_entry(entry, vocabulary)
        yield LabelledCase(entry.image.name, ct, truth, entry.unknown)
