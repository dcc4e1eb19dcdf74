"""``dca segment``: organs and expert maps of one CT."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..errors import UserError
from ..organs import VOCABULARIES
from ..review_file import Review
from .bundle import load
from .console import output, progress_bar, say_plain, table, warn
from .failures import says_when_cancelled
from .values import RUNTIME, whole_numbers, words

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..inference.result import Result

NAME = "segment"
EXAMPLES = "Example: dca segment ct.nii.gz -o result/ --organs liver,spleen"

# Groups of options on the help page.
_MAPS = "Maps"
_WINDOWS = "Network and sliding window"

_SHOWN_PLACES = 20

Output = Literal["aggregated", "experts"]
Weighting = Literal["gaussian", "constant"]


def run(
    ct: Annotated[
        Path,
        typer.Argument(
            help="The CT: a NIfTI, NRRD or MetaImage file, or a folder with DICOM files anywhere in it.", metavar="CT"
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make for the results.")],
    bundle: Annotated[
        str | None, typer.Option(help="Folder or name of the trained model. Else the default one (dca bundle info).")
    ] = None,
    series: Annotated[str | None, typer.Option(help="Which series of a DICOM folder: its number or UID.")] = None,
    organs: Annotated[str | None, typer.Option(help="Only these organs, as in liver,spleen. All if left out.")] = None,
    device: Annotated[str, typer.Option(help="auto, cuda, cuda:1, mps or cpu.")] = "auto",
    picture: Annotated[bool, typer.Option("--picture", help="Draw picture.png too.")] = False,
    attention_levels: Annotated[
        str,
        typer.Option(
            help="Levels of the attention maps, 1 (coarse) to 4 (fine), as in 1,4; or none.", rich_help_panel=_MAPS
        ),
    ] = "4",
    no_deciding_expert: Annotated[
        bool, typer.Option("--no-deciding-expert", help="No map of the expert that decided.", rich_help_panel=_MAPS)
    ] = False,
    no_entropy: Annotated[
        bool, typer.Option("--no-entropy", help="No map of the uncertainty.", rich_help_panel=_MAPS)
    ] = False,
    no_disagreement: Annotated[
        bool,
        typer.Option(
            "--no-disagreement", help="No map of where experts and final decoder disagree.", rich_help_panel=_MAPS
        ),
    ] = False,
    review: Annotated[
        bool,
        typer.Option(
            "--review", help="List the places most likely wrong: review.json and two images.", rich_help_panel=_MAPS
        ),
    ] = False,
    keep_islands: Annotated[
        bool, typer.Option("--keep-islands", help="Keep pieces of an organ far smaller than its largest.")
    ] = False,
    no_scene: Annotated[
        bool, typer.Option("--no-scene", help="No segmentation.seg.nrrd and scene.mrb for 3D Slicer.")
    ] = False,
    no_dicom_seg: Annotated[
        bool, typer.Option("--no-dicom-seg", help="No segmentation.dcm (DICOM SEG) where the CT is DICOM.")
    ] = False,
    result_of: Annotated[
        Output,
        typer.Option(
            "--output",
            help="Whose result: the aggregation decoder's, or the stitched experts'.",
            rich_help_panel=_WINDOWS,
        ),
    ] = "aggregated",
    runtime: Annotated[str, typer.Option(help=RUNTIME, rich_help_panel=_WINDOWS)] = "auto",
    no_body_box: Annotated[
        bool,
        typer.Option("--no-body-box", help="Run windows over the air around the body too.", rich_help_panel=_WINDOWS),
    ] = False,
    find_abdomen: Annotated[
        bool,
        typer.Option(
            "--find-abdomen",
            help="In a long scan: look for the organs with the default model first, and segment around them alone.",
            rich_help_panel=_WINDOWS,
        ),
    ] = False,
    overlap: Annotated[
        float | None,
        typer.Option(help="Overlap of neighboring windows, 0 to below 1. Else the model's.", rich_help_panel=_WINDOWS),
    ] = None,
    weighting: Annotated[
        Weighting, typer.Option(help="How overlapping windows are weighted.", rich_help_panel=_WINDOWS)
    ] = "gaussian",
    extension: Annotated[
        str, typer.Option("--format", help="Format of labels and maps: .nrrd, .nii.gz, .nii or .mha.")
    ] = ".nrrd",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the folder of an earlier result.")] = False,
    resample: Annotated[
        bool,
        typer.Option("--resample", help="Resample a CT with tilted or unevenly spaced slices to a right-angled grid."),
    ] = False,
    shared: Annotated[
        bool,
        typer.Option(
            "--shared",
            help="Let other users of this machine read the results, as the umask says; else their owner alone can.",
        ),
    ] = False,
) -> None:
    """Segment the organs of an abdominal CT.

    Writes into a new folder: labels, segmentation and scene for 3D Slicer, a DICOM SEG where the CT is DICOM, maps of
    the three experts' attention, of the deciding expert, uncertainty and disagreement, volumes.csv (ml and mean HU of
    each organ), and a log. The folder appears when all of it is complete.
    """
    segment_ct(
        ct,
        out,
        bundle,
        series=series,
        device=device,
        runtime=runtime,
        picture_title=ct.name if picture else None,
        with_scene=not no_scene,
        with_dicom_seg=not no_dicom_seg,
        extension=extension,
        overwrite=overwrite,
        shared=shared,
        organs=None if organs is None else words(organs),
        attention_levels=_levels(attention_levels),
        deciding_expert=not no_deciding_expert,
        entropy=not no_entropy,
        disagreement=not no_disagreement,
        review=review,
        keep_islands=keep_islands,
        output_of=result_of,
        body_box=not no_body_box,
        find_abdomen=find_abdomen,
        overlap=overlap,
        weighting=weighting,
        resample=resample,
    )


def segment_ct(
    ct: Path,
    out: Path,
    bundle: str | None = None,
    *,
    series: str | None = None,
    device: str = "auto",
    runtime: str = "auto",
    picture_title: str | None = None,
    with_scene: bool = True,
    with_dicom_seg: bool = True,
    extension: str = ".nrrd",
    overwrite: bool = False,
    shared: bool = False,
    organs: tuple[str, ...] | None = None,
    attention_levels: tuple[int, ...] = (4,),
    deciding_expert: bool = True,
    entropy: bool = True,
    disagreement: bool = True,
    review: bool = False,
    keep_islands: bool = False,
    output_of: Output = "aggregated",
    body_box: bool = True,
    find_abdomen: bool = False,
    overlap: float | None = None,
    weighting: Weighting = "gaussian",
    resample: bool = False,
) -> None:
    """Segment ``ct`` into the folder ``out`` and print the organs' volumes. Raises UserError."""
    from ..inference.own_process import importing

    with importing():
        from ..inference.allocator import keep_freed_memory
        from ..inference.options import SegmentOptions
        from ..job import Job, segment_to_folder
        from .dicom_ct import opened
        from .scene_files import SceneFiles

    keep_freed_memory()
    options = SegmentOptions(
        body_box=body_box,
        find_abdomen=find_abdomen,
        overlap=overlap,
        weighting=weighting,
        output=output_of,
        attention_levels=attention_levels,
        deciding_expert=deciding_expert,
        entropy=entropy,
        disagreement=disagreement,
        review=review,
        keep_islands=keep_islands,
        organs=organs,
    )
    model = load(bundle)
    job = Job(
        ct, out, model, options, device, series, extension, overwrite, runtime=runtime, resample=resample, shared=shared
    )
    about = f"Model: {model.metadata.name}. {' '.join(model.metadata.limits)}"
    also = SceneFiles(model.metadata, with_scene, picture_title, about)

    def kept() -> str:
        before = "The result that was there before is unchanged." if out.exists() else "Nothing was written."
        return f"{before} To segment the CT, run the same command again."

    with (
        says_when_cancelled(kept),
        progress_bar() as progress,
        opened(ct, series, out, progress, resample) as dicom,
    ):

        def also_write(folder: Path, image: sitk.Image, found: Result) -> None:
            also.write(folder, image, found)
            if dicom.files and with_dicom_seg:
                dicom.write_segmentation(folder, found, model.metadata)

        read = replace(job, ct=dicom.path, series=dicom.series, files=dicom.files)
        result = segment_to_folder(read, progress, also_write=also_write)
    for message in (*result.warnings, *dicom.messages, *also.messages, about):
        warn(message)
    _print_volumes(result)
    if result.review is not None:
        print_review(result.review.review)
    say_plain(f"Took {sum(result.seconds.values()):.0f} s on {result.device}, runtime {result.runtime}.")
    say_plain(f"The results are in {out}.")


def _levels(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    levels = whole_numbers(text, "--attention-levels", "1,4")
    if not levels:
        raise UserError("No attention level was given.", "Write none, or levels such as 1,4.")
    return levels


def _print_volumes(result: Result) -> None:
    shown = table("Organs", "Organ", "Volume (ml)", "Mean HU", "Note", numbers=("Volume (ml)", "Mean HU"))
    for each in result.measurements:
        mean = "" if each.mean_hu is None else f"{each.mean_hu:.0f}"
        shown.add_row(each.organ.name, f"{each.ml:.1f}", mean, each.note)
    output().print(shown)


def print_review(review: Review) -> None:
    """The first places to check, as a table, and what is to be said of whole organs."""
    shown = table(
        f"Places to check: {len(review.places)}", "#", "Organ", "ml", "Position (LPS, mm)", "Why", numbers=("#", "ml")
    )
    for place in review.places[:_SHOWN_PLACES]:
        position = ", ".join(f"{value:.0f}" for value in place.position_mm)
        why = " ".join(reason.text for reason in place.reasons[:2])
        if place.alternative is not None:
            why += f" {place.alternative.text}"
        shown.add_row(str(place.rank), place.name, f"{place.ml:.1f}", position, why)
    output().print(shown)
    for note in review.organs:
        organ = VOCABULARIES[review.vocabulary].by_key.get(note.organ) if review.vocabulary in VOCABULARIES else None
        say_plain(f"{organ.name if organ else note.organ}: {' '.join(note.notes)}")
