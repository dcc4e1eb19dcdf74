"""``dca benchmark accuracy``: how the shortcuts of the default settings change the Dice score."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import make_table, print_line, print_table, progress_bar
from .option_values import get_labeled_entries, load_bundle, parse_numbers, require_new_file
from .options import BundleOption, group_option, overwrite_option

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..benchmark.accuracy import Comparison, LabeledCase
    from ..organs import Vocabulary
    from ..training.datalist import Entry

NAME = "accuracy"
EXAMPLES = "Example: dca benchmark accuracy --phantoms 10"


def run(
    bundle: BundleOption = None,
    phantoms: Annotated[int, typer.Option(min=0, help="Number of phantoms that no training has used.")] = 10,
    data: Annotated[
        Path | None, typer.Option(help="Also compare on the labeled CTs of a list (see dca dataset).")
    ] = None,
    group: Annotated[str, group_option()] = "test",
    overlaps: Annotated[
        str | None, typer.Option(help="Also compare these overlaps of windows, such as 0.25,0.5.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="CSV file to write, with a row for each case.")
    ] = None,
    overwrite: Annotated[bool, overwrite_option("an existing file")] = False,
) -> None:
    """Measure how the shortcuts of the default settings change the Dice score.

    The reference pipeline runs windows with an overlap of 0.5 over the whole volume and resamples the probabilities to
    the CT's grid.

    Use --overlaps to find the best overlap for a model. **dca bundle export --overlap** stores it in the model.
    """
    import csv
    import io

    from ..benchmark.accuracy import compare, generate_phantom_cases, make_overlap_settings
    from ..errors import UserError
    from ..imaging.writers import write_text
    from ..inference.process_settings import keep_freed_memory

    if out is not None:
        require_new_file(out, overwrite)
    entries = get_labeled_entries([], [], data, group)
    if not phantoms and not entries:
        raise UserError("There are no cases to compare.", "Specify --phantoms, or --data with a list of labeled CTs.")
    keep_freed_memory()
    model = load_bundle(bundle)
    settings = make_overlap_settings(
        [] if overlaps is None else parse_numbers(overlaps, "--overlaps", len(overlaps.split(",")))
    )
    total = (phantoms + len(entries)) * len(settings)
    with progress_bar() as progress:
        comparisons: list[Comparison] = []

        def on_case(comparison: Comparison) -> None:
            comparisons.append(comparison)
            progress(len(comparisons) / total, f"Segmentation {len(comparisons)} of {total}")

        on_phantoms = compare(model, generate_phantom_cases(phantoms), settings, on_case)
        on_cts = compare(model, _read_cases(entries, model.metadata.vocabulary), settings, on_case)
    columns = ("Default", "Reference", "Difference", "Equal voxels", "CPU s")
    rows = make_table(f"{model.metadata.name}: mean Dice", "Case", "Setting", *columns, numbers=columns)
    for each in comparisons:
        values = (
            f"{each.ours:.4f}",
            f"{each.plain:.4f}",
            f"{-each.loss:+.4f}",
            f"{each.same:.3%}",
            f"{each.cpu_s:.1f}",
        )
        rows.add_row(each.name, each.setting, *values)
    print_table(rows)
    for name, group_comparisons in (("phantom", on_phantoms), ("labeled CT", on_cts)):
        for setting in settings if group_comparisons else ():
            _print_mean(name, setting, [each for each in group_comparisons if each.setting == setting])
    if out is not None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["case", "setting", "ours", "plain", "share_of_voxels_alike", "cpu_s"])
        writer.writerows((e.name, e.setting, e.ours, e.plain, e.same, e.cpu_s) for e in comparisons)
        write_text(text.getvalue(), out)
        print_line(f"Written: {out}")


def _print_mean(case_name: str, setting: str, comparisons: list[Comparison]) -> None:
    from ..benchmark.accuracy import MAX_LOSS, compute_mean_dice_drop

    loss = compute_mean_dice_drop(comparisons)
    seconds = sum(each.cpu_s for each in comparisons) / len(comparisons)
    target = f"target: at most {MAX_LOSS} lower, {'met' if loss <= MAX_LOSS else 'missed'}"
    count = f"{len(comparisons)} {case_name}{'s' if len(comparisons) > 1 else ''}"
    print_line(f"{count}, {setting}: {-loss:+.4f} ({target}), {seconds:.1f} CPU seconds each.")


def _read_cases(entries: list[Entry], vocabulary: Vocabulary) -> Iterator[LabeledCase]:
    from ..benchmark.accuracy import LabeledCase
    from ..evaluation.scoring import read_entry

    for entry in entries:
        ct, truth = read_entry(entry, vocabulary)
        yield LabeledCase(entry.image.name, ct, truth, entry.unannotated)
