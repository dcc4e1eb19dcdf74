"""``dca correct``: correct a result with clicks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .console import make_table, print_line, print_table, progress_bar, warn
from .option_values import parse_list, parse_numbers

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..inference.segmenter import Result
    from ..interaction.result_correction import CorrectedResult, OrganStroke

NAME = "correct"
EXAMPLES = "Example: dca correct result/ --organ pancreas --add -12,40,95 --remove 5,38,90 -o corrected/"


def run(
    result: Annotated[Path, typer.Argument(help="Folder made by dca segment or dca correct.", metavar="RESULT")],
    organ: Annotated[str, typer.Option(help="Organ to correct, such as pancreas.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the corrected result.")],
    add: Annotated[
        list[str] | None, typer.Option(help="Point x,y,z (RAS, mm) that belongs to the organ. Can be repeated.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="Point x,y,z (RAS, mm) that does not belong to the organ. Can be repeated.")
    ] = None,
    scribble: Annotated[
        list[str] | None,
        typer.Option(
            help="Line through points, to add (+x,y,z;x,y,z;...) or to remove (-x,y,z;x,y,z;...). Can be repeated."
        ),
    ] = None,
    box: Annotated[
        str | None,
        typer.Option(
            help="Only change voxels in this box, given by two corners x,y,z;x,y,z (RAS, mm). Without points, add the "
            "organ in the middle of the box."
        ),
    ] = None,
    lock: Annotated[str, typer.Option(help="Organs that must not change, such as liver,spleen.")] = "",
    ct: Annotated[Path | None, typer.Option(help="The CT, if it was moved after the segmentation.")] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="Engine: classifier, or the name or folder of a click network. auto: the installed click network, "
            "or classifier without one."
        ),
    ] = "auto",
    no_scene: Annotated[
        bool, typer.Option("--no-scene", help="Do not write segmentation.seg.nrrd and scene.mrb for 3D Slicer.")
    ] = False,
) -> None:
    """Correct one organ of a result with points, like clicks in 3D Slicer.

    Coordinates are in mm (RAS), as shown in Slicer. Points to add are applied first, then points to remove, then
    scribbles. The new folder contains the corrected labels, volumes.csv, and request.json, which records the clicks.
    The original result is not changed.
    """
    from ..interaction.engines import create_engine
    from ..interaction.result_correction import correct_result

    strokes = _parse_strokes(organ, add or [], remove or [], scribble or [], box)
    messages: list[str] = []

    def also_write(folder: Path, image: sitk.Image, corrected: Result) -> None:
        messages.extend(_write_scene(result, folder, image, corrected))

    with progress_bar() as progress:
        corrected = correct_result(
            result,
            strokes,
            out,
            ct,
            parse_list(lock),
            create_engine(engine),
            progress,
            None if no_scene else also_write,
        )
    for message in messages:
        warn(message)
    _print(corrected)
    print_line(f"The corrected result is in {out}.")


def _parse_strokes(
    organ: str, add: list[str], remove: list[str], scribbles: list[str], box: str | None
) -> list[OrganStroke]:
    from ..interaction.result_correction import OrganStroke
    from ..interaction.strokes import Stroke

    corners = None
    if box is not None:
        ends = [_parse_point(text, "--box") for text in box.split(";")]
        if len(ends) != 2:
            raise UserError(f"--box '{box}' is not two corners.", "Write it like this: --box -60,10,40;20,90,120.")
        corners = (ends[0], ends[1])
        if not (add or remove or scribbles):
            x, y, z = ((a + b) / 2 for a, b in zip(*corners, strict=True))
            return [OrganStroke(organ, Stroke.click(x, y, z, True), corners)]
    strokes = [Stroke((_parse_point(text, "--add"),), True) for text in add]
    strokes += [Stroke((_parse_point(text, "--remove"),), False) for text in remove]
    for text in scribbles:
        if text[:1] not in ("+", "-"):
            raise UserError(
                f"--scribble '{text}' does not start with + or -.", "Write it like this: +10,20,30;12,22,30."
            )
        strokes.append(Stroke(tuple(_parse_point(part, "--scribble") for part in text[1:].split(";")), text[0] == "+"))
    return [OrganStroke(organ, stroke, corners) for stroke in strokes]


def _parse_point(text: str, option: str) -> tuple[float, float, float]:
    x, y, z = parse_numbers(text, option)
    return x, y, z


def _write_scene(source: Path, folder: Path, image: sitk.Image, corrected: Result) -> list[str]:
    """Write the segmentation and scene of the corrected labels. Returns notes on what could not be written."""
    from ..interaction.result_correction import read_result
    from ..models.metadata_reader import read_metadata
    from .segment import SceneFiles

    try:
        model = read_metadata(Path(read_result(source).record["bundle"]["folder"]))
    except (UserError, KeyError, TypeError):
        return [
            "segmentation.seg.nrrd and scene.mrb were not written because the model of the result no longer exists."
        ]
    files = SceneFiles(model, True, None, "")
    files.write(folder, image, corrected)
    return files.messages


def _print(corrected: CorrectedResult) -> None:
    clicks = make_table("Clicks", "#", "Organ", "", "Added (ml)", "Removed (ml)", "Taken from", "s",
                   numbers=("#", "Added (ml)", "Removed (ml)", "s"))  # fmt: skip
    by_label = corrected.vocabulary.by_label
    spacing = corrected.labels.GetSpacing()
    ml = spacing[0] * spacing[1] * spacing[2] / 1000
    for number, change in enumerate(corrected.changes, start=1):
        neighbors = ", ".join(
            f"{by_label[label].name if label in by_label else label} {voxels * ml:.1f} ml"
            for label, voxels in change.voxels_lost.items()
        )
        clicks.add_row(
            str(number),
            by_label[change.label].name,
            "+" if change.adds else "-",
            f"{change.added * ml:.1f}",
            f"{change.removed * ml:.1f}",
            neighbors,
            f"{change.seconds:.2f}",
        )
    print_table(clicks)
    volumes = make_table(
        "Organs that changed", "Organ", "Before (ml)", "After (ml)", numbers=("Before (ml)", "After (ml)")
    )
    for before, after in zip(corrected.before, corrected.after, strict=True):
        if before != after:
            volumes.add_row(after.organ.name, f"{before.ml:.1f}", f"{after.ml:.1f}")
    print_table(volumes)
