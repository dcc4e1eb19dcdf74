"""``dca benchmark accuracy``: what the shortcuts of the default settings cost in Dice."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .bundle import load
from .console import progress_bar, say, show, table
from .option_values import new_file, numbers

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
    overlaps: Annotated[
        str | None, typer.Option(help="Other overlaps of windows to compare as well, as in 0.25,0.5.")
    ] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="CSV file with each case.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Compare the Dice of the default settings with that of the plain pipeline: windows over the whole volume that
    overlap by half, probabilities of the whole volume resampled to the CT's grid.

    With --overlaps it tells how far the windows of a model should overlap: dca bundle export --overlap records it.
    """
    import csv
    import io

    from ..benchmark.accuracy import compare, phantom_cases, with_overlaps
    from ..errors import UserError
    from ..imaging.writers import write_text
    from ..inference.process_settings import keep_freed_memory
    from .evaluate import labelled_entries

    if out is not None:
        new_file(out, overwrite)
    entries = labelled_entries([], [], data, group)
    if not phantoms and not entries:
        raise UserError("There is nothing to compare on.", "Give --phantoms, or --data with a list of labelled CTs.")
    keep_freed_memory()
    model = load(bundle)
    settings = with_overlaps([] if overlaps is None else numbers(overlaps, "--overlaps", len(overlaps.split(","))))
    total = (phantoms + len(entries)) * len(settings)
    with progress_bar() as progress:
        done: list[Comparison] = []

        def on_case(comparison: Comparison) -> None:
            done.append(comparison)
            progress(len(done) / total, f"Segmentation {len(done)} of {total}")

        of_phantoms = compare(model, phantom_cases(phantoms), settings, on_case)
        of_entries = compare(model, _cases(entries, model.metadata.vocabulary), settings, on_case)
    figures = ("Ours", "Plain", "Difference", "Voxels alike", "CPU s")
    shown = table(f"{model.metadata.name}: mean Dice", "Case", "Setting", *figures, numbers=figures)
    for each in done:
        row = (f"{each.ours:.4f}", f"{each.plain:.4f}", f"{-each.loss:+.4f}", f"{each.same:.3%}", f"{each.cpu_s:.1f}")
        shown.add_row(each.name, each.setting, *row)
    show(shown)
    for name, comparisons in (("phantoms", of_phantoms), ("labelled CTs", of_entries)):
        for setting in settings if comparisons else ():
            _say_mean(name, setting, [each for each in comparisons if each.setting == setting])
    if out is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "setting", "ours", "plain", "share_of_voxels_alike", "cpu_s"])
        writer.writerows((e.name, e.setting, e.ours, e.plain, e.same, e.cpu_s) for e in done)
        write_text(text.getvalue(), out)
        say(f"Written: {out}")


def _say_mean(cases: str, setting: str, comparisons: list[Comparison]) -> None:
    from ..benchmark.accuracy import LARGEST_LOSS, mean_loss

    loss = mean_loss(comparisons)
    seconds = sum(each.cpu_s for each in comparisons) / len(comparisons)
    verdict = f"not lower by more than {LARGEST_LOSS}: {'met' if loss <= LARGEST_LOSS else 'missed'}"
    say(f"{len(comparisons)} {cases}, {setting}: {-loss:+.4f} ({verdict}), {seconds:.1f} CPU seconds each.")


def _cases(entries: list[Entry], vocabulary: Vocabulary) -> Iterator[LabelledCase]:
    from ..benchmark.accuracy import LabelledCase
    from ..evaluation.scoring import read_entry

    for entry in entries:
        ct, truth = read_entry(entry, vocabulary)
        yield LabelledCase(entry.image.name, ct, truth, entry.unannotated)
