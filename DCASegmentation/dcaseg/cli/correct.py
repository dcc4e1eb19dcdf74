"""``dca correct``: a result corrected with clicks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import UserError
from .console import output, progress_bar, say, table, warn
from .option_values import numbers, words

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..inference.segmenter import Result
    from ..interaction.result_correction import CorrectedResult, OrganStroke
    from ..interaction.view import Engine

NAME = "correct"
EXAMPLES = "Example: dca correct result/ --organ pancreas --add -12,40,95 --remove 5,38,90 -o corrected/"


def run(
    result: Annotated[Path, typer.Argument(help="A folder made by dca segment or dca correct.", metavar="RESULT")],
    organ: Annotated[str, typer.Option(help="Which organ to correct, such as pancreas.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make; never replaces one.")],
    add: Annotated[
        list[str] | None, typer.Option(help="A point x,y,z (RAS, mm) that belongs to the organ. May be repeated.")
    ] = None,
    remove: Annotated[
        list[str] | None, typer.Option(help="A point x,y,z (RAS, mm) that does not belong to it. May be repeated.")
    ] = None,
    scribble: Annotated[
        list[str] | None,
        typer.Option(help="A line through points x,y,z;x,y,z;... that starts with + or -. May be repeated."),
    ] = None,
    box: Annotated[
        str | None, typer.Option(help="Two corners x,y,z;x,y,z (RAS, mm) outside of which nothing changes.")
    ] = None,
    lock: Annotated[str, typer.Option(help="Organs that stay as they are, as in liver,spleen.")] = "",
    ct: Annotated[Path | None, typer.Option(help="The CT, if it is not where it was.")] = None,
    engine: Annotated[
        str, typer.Option(help="random_walker, or the folder of a network made by dca train-clicks.")
    ] = "random_walker",
    no_scene: Annotated[
        bool, typer.Option("--no-scene", help="No segmentation.seg.nrrd and scene.mrb for 3D Slicer.")
    ] = False,
) -> None:
    """Correct one organ of a result with points, as a click in 3D Slicer does.

    Points are in mm, RAS, as Slicer shows them. Points to add come first, then those to remove, then scribbles. Writes
    a new folder with corrected labels, volumes.csv and request.json, which counts the clicks; the first result stays.
    """
    from ..interaction.result_correction import correct_result

    strokes = _strokes(organ, add or [], remove or [], scribble or [], box)
    messages: list[str] = []

    def also_write(folder: Path, image: sitk.Image, corrected: Result) -> None:
        messages.extend(_write_scene(result, folder, image, corrected))

    with progress_bar() as progress:
        corrected = correct_result(
            result,
            strokes,
            out,
            ct,
            words(lock),
            engine_of(engine),
            progress,
            None if no_scene else also_write,
        )
    for message in messages:
        warn(message)
    _print(corrected)
    say(f"The corrected result is in {out}.")


def engine_of(name: str) -> Engine:
    """The engine of this name, or the network in this folder. Raises UserError where there is neither."""
    from ..interaction.random_walker import RandomWalkerEngine, SeededRandomWalker

    engines = {each.name: each for each in (RandomWalkerEngine, SeededRandomWalker)}
    if name in engines:
        made: Engine = engines[name]()
        return made
    folder = Path(name)
    if not folder.is_dir():
        raise UserError(f"There is no engine '{name}'.", f"Choose {', '.join(engines)}, or the folder of a network.")
    from ..interaction.click_network import NetworkEngine, load_click_bundle

    return NetworkEngine(load_click_bundle(folder).network())


def _strokes(organ: str, add: list[str], remove: list[str], scribbles: list[str], box: str | None) -> list[OrganStroke]:
    from ..interaction.result_correction import OrganStroke
    from ..interaction.strokes import Stroke

    corners = None
    if box is not None:
        ends = [_point(text, "--box") for text in box.split(";")]
        if len(ends) != 2:
            raise UserError(f"--box '{box}' is not two corners.", "Write it like --box -60,10,40;20,90,120.")
        corners = (ends[0], ends[1])
    strokes = [Stroke((_point(text, "--add"),), True) for text in add]
    strokes += [Stroke((_point(text, "--remove"),), False) for text in remove]
    for text in scribbles:
        if text[:1] not in ("+", "-"):
            raise UserError(
                f"--scribble '{text}' does not say whether it adds.", "Begin it with + or -: +10,20,30;12,22,30."
            )
        strokes.append(Stroke(tuple(_point(part, "--scribble") for part in text[1:].split(";")), text[0] == "+"))
    return [OrganStroke(organ, stroke, corners) for stroke in strokes]


def _point(text: str, option: str) -> tuple[float, float, float]:
    x, y, z = numbers(text, option)
    return x, y, z


def _write_scene(source: Path, folder: Path, image: sitk.Image, corrected: Result) -> list[str]:
    """Segmentation and scene of the corrected labels; gives what could not be written, and why."""
    from ..interaction.result_correction import read_result
    from ..models.metadata_reader import read_metadata
    from .segment import SceneFiles

    try:
        model = read_metadata(Path(read_result(source).record["bundle"]["folder"]))
    except (UserError, KeyError, TypeError):
        return ["segmentation.seg.nrrd and scene.mrb were not written: the model that made the result is gone."]
    files = SceneFiles(model, True, None, "")
    files.write(folder, image, corrected)
    return files.messages


def _print(corrected: CorrectedResult) -> None:
    clicks = table("Clicks", "#", "Organ", "", "Added (ml)", "Removed (ml)", "Given up by", "s",
                   numbers=("#", "Added (ml)", "Removed (ml)", "s"))  # fmt: skip
    by_label = corrected.vocabulary.by_label
    spacing = corrected.labels.GetSpacing()
    ml = spacing[0] * spacing[1] * spacing[2] / 1000
    for number, change in enumerate(corrected.changes, start=1):
        neighbors = ", ".join(
            f"{by_label[label].name if label in by_label else label} {voxels * ml:.1f} ml"
            for label, voxels in change.given_up.items()
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
    output().print(clicks)
    volumes = table("Organs that changed", "Organ", "Before (ml)", "After (ml)", numbers=("Before (ml)", "After (ml)"))
    for before, after in zip(corrected.before, corrected.after, strict=True):
        if before != after:
            volumes.add_row(after.organ.name, f"{before.ml:.1f}", f"{after.ml:.1f}")
    output().print(volumes)
