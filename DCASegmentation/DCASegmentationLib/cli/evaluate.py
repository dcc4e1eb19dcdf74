"""``dca evaluate``: how well a model finds the organs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import ImageError, UserError
from ..method.log_gap import GROUPS
from .bundle import load
from .console import Report, output, progress_bar, say_plain, table
from .values import new_file

if TYPE_CHECKING:
    from ..bundle.loading import Bundle
    from ..evaluation.scores import Scores
    from ..inference.options import SegmentOptions
    from ..inference.segmenter import Segmenter

NAME = "evaluate"
EXAMPLES = "Example: dca evaluate --phantoms 10 -o scores.csv"

_USUAL_PHANTOMS = 10


def run(
    bundle: Annotated[str | None, typer.Option(help="Folder or name of the model. Else the default one.")] = None,
    phantoms: Annotated[
        int | None, typer.Option(min=1, help="So many synthetic people no training has seen. 10 unless --ct is given.")
    ] = None,
    ct: Annotated[list[Path] | None, typer.Option(help="A labelled CT of your own. May be repeated.")] = None,
    labels: Annotated[list[Path] | None, typer.Option(help="The label map of that CT, once for each --ct.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
    result: Annotated[
        str, typer.Option("--output", help="aggregated (the model's result) or experts (the stitched experts' alone).")
    ] = "aggregated",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="CSV file with the Dice of each case.")] = None,
    write_scores: Annotated[
        bool, typer.Option("--write-scores", help="Write the scores on phantoms into the bundle's metadata.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing CSV file.")] = False,
) -> None:
    """Measure the Dice of a model on synthetic people it has never seen, or on labelled CTs of your own.

    Label maps must use the model's numbers of the organs (see dca bundle info) and lie on the grid of their CT.
    """
    from ..evaluation.phantom_test import score_on_phantoms
    from ..evaluation.scores import Scores
    from ..inference.allocator import keep_freed_memory
    from ..inference.options import SegmentOptions
    from ..inference.segmenter import Segmenter

    own = _pairs(ct or [], labels or [])
    if phantoms is None and not own:
        phantoms = _USUAL_PHANTOMS
    if write_scores and (own or not phantoms):
        raise UserError("--write-scores is for scores on phantoms alone.", "Leave out --ct and --labels.")
    if write_scores and result != "aggregated":
        raise UserError("--write-scores is for the model's own result.", "Leave out --output.")
    options = SegmentOptions(output=result)  # type: ignore[arg-type]  # which checks it
    if out is not None:
        new_file(out, overwrite)
    keep_freed_memory()
    model = load(bundle)
    segmenter = Segmenter(model, device)
    with progress_bar() as progress:
        if phantoms:
            scores = score_on_phantoms(segmenter, model.metadata.vocabulary, phantoms, options, progress=progress)
        else:
            scores = Scores(model.metadata.vocabulary)
        _score_own(scores, segmenter, own, options, progress)
    _print(scores, model)
    if out is not None:
        scores.write_csv(out)
        say_plain(f"Written: {out}")
    if write_scores:
        _write_into(model, scores)
        say_plain(f"The scores are in the metadata of {model.folder}.")


def _pairs(cts: list[Path], labels: list[Path]) -> list[tuple[Path, Path]]:
    if len(cts) != len(labels):
        raise UserError(f"{len(cts)} CTs were given, and {len(labels)} label maps.", "Give one --labels for each --ct.")
    return list(zip(cts, labels, strict=True))


def _score_own(
    scores: Scores,
    segmenter: Segmenter,
    pairs: list[tuple[Path, Path]],
    options: SegmentOptions,
    progress: Report,
) -> None:
    from ..evaluation.phantom_test import score_case
    from ..imaging.ct_check import check_ct
    from ..imaging.grid import Grid
    from ..imaging.reading import read_ct, read_labels

    for index, (ct_path, labels_path) in enumerate(pairs):
        progress(index / len(pairs), f"CT {index + 1} of {len(pairs)}")
        ct, truth = read_ct(ct_path), read_labels(labels_path)
        check_ct(ct)
        if not Grid.of(ct).same_as(Grid.of(truth)):
            raise ImageError(
                f"{labels_path.name} does not lie on the grid of {ct_path.name}.", "Resample the label map to the CT."
            )
        scores.add(ct_path.name, score_case(segmenter, ct, truth, options))


def _print(scores: Scores, model: Bundle) -> None:
    shown = table(
        f"{model.metadata.name}: mean Dice of {len(scores.cases)} cases", "Organ", "Expert", "Dice", numbers=("Dice",)
    )
    partition = model.metadata.partition
    groups = dict(zip(GROUPS, partition.owners, strict=True))
    by_organ = scores.by_organ()
    for group, owned in groups.items():
        for label in owned:
            organ = scores.vocabulary.by_label[label]
            shown.add_row(organ.name, group, _dice(by_organ[organ.key]))
        shown.add_section()
    for group, dice in scores.by_group(groups).items():
        shown.add_row(f"All {group} organs", "", _dice(dice))
    shown.add_section()
    shown.add_row("Mean of all organs", "", _dice(scores.mean()))
    output().print(shown)


def _dice(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"


def _write_into(model: Bundle, scores: Scores) -> None:
    from ..bundle.metadata import MeasuredScores
    from ..bundle.saving import save_scores
    from ..training.sources.phantoms import TEST_SEEDS

    count = len(scores.cases)
    save_scores(
        model.folder,
        MeasuredScores(
            data=f"synthetic people no training has seen (phantoms from seed {TEST_SEEDS})",
            cases=count,
            dice={key: round(dice, 4) for key, dice in scores.by_organ().items() if math.isfinite(dice)},
            command=f"dca evaluate --bundle {model.folder.name} --phantoms {count} --write-scores",
        ),
    )
