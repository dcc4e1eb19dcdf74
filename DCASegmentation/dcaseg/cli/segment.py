"""``dca segment``: organs and expert maps of one CT."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ..errors import UserError
from ..organs import VOCABULARIES
from ..review.schema import Review
from .bundle import load
from .console import print_json, progress_bar, say, says_when_cancelled, show, table, warn
from .option_values import BackendOption, DeviceOption, whole_numbers, words

if TYPE_CHECKING:
    import SimpleITK as sitk

    from ..inference.segmenter import Result
    from ..models.metadata import Metadata

_NEEDED = ("pydicom", "highdicom")


@dataclass
class DicomCT:
    """Where the CT is to be read from; ``files`` are its slices in order where they are DICOM and known to be so.

    ``messages`` tells what was passed over, and what could not be written and why.
    """

    path: Path
    series: str | None = None
    files: tuple[Path, ...] = ()
    messages: list[str] = field(default_factory=list)

    def write_segmentation(self, folder: Path, result: Result, metadata: Metadata) -> None:
        """Write the labels as DICOM SEG into ``folder`` and compare it with them. Where that fails, whatever the
        reason, there is none, and a message says why."""
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            how = 'pip install "dca-segmentation[cohort]"'
            self.messages.append(
                f"segmentation.dcm was not written: it needs {' and '.join(missing)}. To have it: {how}"
            )
            return
        from ..dicom.segmentation import DICOM_SEG, Algorithm, write_checked
        from ..inference.pipeline import optional

        with optional(DICOM_SEG, self.messages):
            algorithm = Algorithm.of_model(metadata.name, metadata.version, metadata.weights.sha256)
            write_checked(folder / DICOM_SEG, self.files, result.labels, metadata.vocabulary, algorithm)


@contextmanager
def opened(
    ct: Path, series: str | None, out: Path, progress: Callable[[float, str], None], resample: bool = False
) -> Iterator[DicomCT]:
    """Yields where to read ``ct`` from; for a folder of DICOM files, the one CT in it or the chosen ``series``.

    ``resample`` allows slices that are tilted or unevenly spaced. Raises ImageError.
    """
    if not ct.is_dir():
        yield DicomCT(ct, series)
        return
    from ..dicom.archive import gathered
    from ..dicom.ct_folder import find_one_ct

    def looking(files: int) -> None:
        progress(0.0, f"Looking through the folder: {files} files")

    found = find_one_ct(ct, series, out, looking, resample)
    with gathered(found.files, found.name) as folder:
        yield DicomCT(folder, None, found.files, list(found.notes))


SEGMENTATION = "segmentation.seg.nrrd"
SCENE = "scene.mrb"
PICTURE = "picture.png"
ORGANS = "organs"

_NO_SLICER = (
    f"{SEGMENTATION} and {SCENE} were not written: they need Slicer's libraries. "
    'To have them: pip install "dca-segmentation[scene]"'
)


@dataclass
class SceneFiles:
    """Writes segmentation and scene (``with_scene``), and a picture where it has a ``picture_title``.

    ``model`` describes what made the result; ``subtitle`` is the picture's second line, about the model.

    ``messages`` tells afterwards what could not be written, or not in the best way, and what to install for it.
    """

    model: Metadata
    with_scene: bool
    picture_title: str | None
    subtitle: str
    messages: list[str] = field(default_factory=list)

    def write(self, folder: Path, ct: sitk.Image, result: Result) -> None:
        """Write the files into ``folder``; what ``job.segment_to_folder`` calls. What fails is left out, with a
        message."""
        from ..inference.pipeline import optional

        nodes = None
        if self.with_scene:
            if find_spec("slicer") is None:
                self.messages.append(_NO_SLICER)
            else:
                with optional(f"{SCENE} or {SEGMENTATION}", self.messages):
                    builder = _slicer_side("scene_builder")
                    to_check = self._to_check(builder, result)
                    nodes = builder.build_scene(ct, result, self.model.vocabulary, to_check=to_check)
                    builder.save_scene(nodes, folder / SEGMENTATION, folder / SCENE)
        if self.picture_title is not None:
            with optional(PICTURE, self.messages):
                draw = _slicer_side("offscreen").draw
                title, vocabulary = self.picture_title, self.model.vocabulary
                drawn = draw(folder / PICTURE, ct, result, vocabulary, title, self.subtitle, nodes)
                if drawn.fallback_reason:
                    self.messages.append(f"The picture was drawn without Slicer's views. {drawn.fallback_reason}")

    def _to_check(self, builder: Any, result: Result) -> Any:
        found = result.review
        if found is None:
            return None
        name, sha256 = self.model.name, self.model.weights.sha256
        return builder.ReviewFindings(found.review, found.ranks, found.alternative, name, sha256)


def _slicer_side(name: str) -> Any:
    """A module of the Slicer side, which is installed beside this library. Asked for by name, in this one place: the
    library works without it, and no import runs upward."""
    return import_module(f"DCASegmentationLib.scene.{name}")


NAME = "segment"
EXAMPLES = "Example: dca segment ct.nii.gz -o result/ --organs liver,spleen"

# Groups of options on the help page.
_MAPS = "Maps"
_WINDOWS = "Network and sliding window"

_SHOWN_FINDINGS = 20

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
    organs: Annotated[
        str | None, typer.Option(help='Only these organs, such as liver,spleen or "Right kidney". All if left out.')
    ] = None,
    device: DeviceOption = "auto",
    picture: Annotated[bool, typer.Option("--picture", help="Draw picture.png too.")] = False,
    attention_levels: Annotated[
        str,
        typer.Option(
            help="Levels of the attention maps, 1 (coarse) to 4 (fine), as in 1,4; or none.", rich_help_panel=_MAPS
        ),
    ] = "4",
    no_dominant_expert: Annotated[
        bool, typer.Option("--no-dominant-expert", help="No map of the dominant expert.", rich_help_panel=_MAPS)
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
    runtime: BackendOption = "auto",
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
        str, typer.Option("--format", help="Format of labels and maps: nrrd, nii.gz, nii or mha.")
    ] = "nrrd",
    split: Annotated[
        bool, typer.Option("--split", help="One file per organ, too: organs/liver.nrrd and so on, masks of 0 and 1.")
    ] = False,
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
        extension=f".{extension.lstrip('.')}",
        split=split,
        overwrite=overwrite,
        shared=shared,
        organs=None if organs is None else words(organs),
        attention_levels=_levels(attention_levels),
        dominant_expert=not no_dominant_expert,
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
    split: bool = False,
    overwrite: bool = False,
    shared: bool = False,
    organs: tuple[str, ...] | None = None,
    attention_levels: tuple[int, ...] = (4,),
    dominant_expert: bool = True,
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
    from ..inference.process_settings import importing

    with importing():
        from ..inference.options import SegmentOptions
        from ..inference.pipeline import Job, segment_to_folder
        from ..inference.process_settings import keep_freed_memory

    keep_freed_memory()
    options = SegmentOptions(
        body_box=body_box,
        find_abdomen=find_abdomen,
        overlap=overlap,
        weighting=weighting,
        output=output_of,
        attention_levels=attention_levels,
        dominant_expert=dominant_expert,
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
            if split:
                _write_masks(folder, found, extension)
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
    print_json(
        lambda: {
            "folder": str(out),
            "model": model.metadata.name,
            "device": result.device,
            "seconds": round(sum(result.seconds.values()), 2),
            "organs": {
                each.organ.key: {
                    "ml": round(each.ml, 3),
                    "mean_hu": each.mean_hu,
                    "note": each.note,
                    "cut_off": each.cut_off,
                }
                for each in result.measurements
            },
            "notes": [*result.warnings, *dicom.messages, *also.messages],
        }
    )
    say(f"Took {sum(result.seconds.values()):.0f} s on {result.device}, backend {result.runtime}.")
    say(f"The results are in {out}.")


def _write_masks(folder: Path, result: Result, extension: str) -> None:
    """One mask for each organ that was asked for, on the CT's grid."""
    from ..imaging.writers import write_image

    (folder / ORGANS).mkdir()
    for organ in result.organs:
        write_image(result.labels == organ.label, folder / ORGANS / f"{organ.key}{extension}")


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
    show(shown)


def print_review(review: Review) -> None:
    """The first findings, as a table, and what is to be said of whole organs."""
    shown = table(
        f"Findings: {len(review.findings)}", "#", "Organ", "ml", "Position (LPS, mm)", "Why", numbers=("#", "ml")
    )
    for place in review.findings[:_SHOWN_FINDINGS]:
        position = ", ".join(f"{value:.0f}" for value in place.position_mm)
        why = " ".join(reason.text for reason in place.reasons[:2])
        if place.alternative is not None:
            why += f" {place.alternative.text}"
        shown.add_row(str(place.rank), place.name, f"{place.ml:.1f}", position, why)
    show(shown)
    for note in review.organs:
        organ = VOCABULARIES[review.vocabulary].by_key.get(note.organ) if review.vocabulary in VOCABULARIES else None
        say(f"{organ.name if organ else note.organ}: {' '.join(note.notes)}")
