"""``dca segment``: segment the organs in one CT."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import format_install_command
from ..inference.options import SegmentOptions, require_available
from ..organs import VOCABULARIES
from ..review.schema import Review
from ..types import ProgressCallback
from .console import cancellation_message, make_table, print_json, print_line, print_table, progress_bar, warn
from .field_options import Values, expand, fields_of
from .option_values import load_bundle
from .options import OUTPUT_PANEL, BackendOption, BundleOption, DeviceOption, overwrite_option, shared_option

if TYPE_CHECKING:
    import SimpleITK as sitk
    from rich.table import Table

    from ..inference.segmenter import Result
    from ..models.metadata import Metadata

NAME = "segment"
EXAMPLES = "Example: dca segment ct.nii.gz -o result/ --organs liver,spleen"

SEGMENTATION = "segmentation.seg.nrrd"
SCENE = "scene.mrb"
PICTURE = "picture.png"
ORGANS = "organs"

_MAPS_PANEL = "Maps and findings"
_WINDOWS_PANEL = "Network and sliding window"

_MAX_PRINTED_FINDINGS = 20
_DICOM_SEG_PACKAGES = ("pydicom", "highdicom")
_NO_SLICER = (
    f"{SEGMENTATION} and {SCENE} were not written because Slicer's libraries are not installed. "
    f"To install them: {format_install_command('slicer-core==5.12.4.0')}"
)

ALL_MAPS = SegmentOptions(attention_levels=(4,), dominant_expert=True, entropy=True, disagreement=True)
"""The default options of the command: those of the library, with all maps."""


@expand
def run(
    ct: Annotated[
        Path,
        typer.Argument(
            help="The CT: a NIfTI, NRRD or MetaImage file, or a folder with DICOM files, which can be in subfolders.",
            metavar="CT",
        ),
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="New folder for the results.")],
    *,
    bundle: BundleOption = None,
    series: Annotated[str | None, typer.Option(help="Series of a DICOM folder: its number or its UID.")] = None,
    selection: Annotated[Values, fields_of(SegmentOptions, "organs", "keep_islands", base=ALL_MAPS)],
    resample: Annotated[
        bool,
        typer.Option("--resample", help="Accept a CT with tilted or unevenly spaced slices and resample it."),
    ] = False,
    extension: Annotated[
        str,
        typer.Option(
            "--format", help="File format of labels and maps: nrrd, nii.gz, nii or mha.", rich_help_panel=OUTPUT_PANEL
        ),
    ] = "nrrd",
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="Also write one mask per organ (values 0 and 1): organs/liver.nrrd and so on.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    picture: Annotated[
        bool, typer.Option("--picture", help="Also draw picture.png.", rich_help_panel=OUTPUT_PANEL)
    ] = False,
    no_scene: Annotated[
        bool,
        typer.Option(
            "--no-scene",
            help="Do not write segmentation.seg.nrrd and scene.mrb for 3D Slicer.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    no_dicom_seg: Annotated[
        bool,
        typer.Option(
            "--no-dicom-seg",
            help="Do not write segmentation.dcm (DICOM SEG) for a DICOM CT.",
            rich_help_panel=OUTPUT_PANEL,
        ),
    ] = False,
    overwrite: Annotated[bool, overwrite_option("the folder of an earlier result", OUTPUT_PANEL)] = False,
    shared: Annotated[bool, shared_option(OUTPUT_PANEL)] = False,
    levels: Annotated[
        Values,
        fields_of(
            SegmentOptions,
            "attention_levels",
            panel=_MAPS_PANEL,
            help={
                "attention_levels": "Levels of the attention maps, from 1 (coarse) to 4 (fine), such as 1,4; or none. "
                "Default: 4, if the model has attention."
            },
        ),
    ],
    maps: Annotated[
        Values,
        fields_of(
            SegmentOptions,
            *("dominant_expert", "entropy", "disagreement", "review"),
            base=ALL_MAPS,
            panel=_MAPS_PANEL,
        ),
    ],
    windows: Annotated[
        Values,
        fields_of(
            SegmentOptions,
            *("output", "overlap", "weighting", "find_abdomen", "body_box"),
            base=ALL_MAPS,
            panel=_WINDOWS_PANEL,
        ),
    ],
    device: DeviceOption = "auto",
    backend: BackendOption = "auto",
) -> None:
    """Segment the organs in an abdominal CT.

    The new folder contains the labels, a segmentation and a scene for 3D Slicer, a DICOM SEG if the CT is DICOM, maps
    (attention to each expert, dominant expert, uncertainty, disagreement, if the model provides them),
    volumes.csv (volume in ml and mean HU of each organ), and a log. It appears once the labels and
    maps are complete; a file that cannot be written after them is left out, with a note.
    """
    segment_ct(
        ct,
        out,
        bundle,
        replace(ALL_MAPS, **selection, **levels, **maps, **windows),
        required=SegmentOptions(**levels),
        series=series,
        device=device,
        backend=backend,
        picture_title=ct.name if picture else None,
        with_scene=not no_scene,
        with_dicom_seg=not no_dicom_seg,
        extension=f".{extension.lstrip('.')}",
        split=split,
        overwrite=overwrite,
        shared=shared,
        resample=resample,
    )


def segment_ct(
    ct: Path,
    out: Path,
    bundle: str | None = None,
    options: SegmentOptions = ALL_MAPS,
    *,
    required: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
    series: str | None = None,
    device: str = "auto",
    backend: str = "auto",
    picture_title: str | None = None,
    with_scene: bool = True,
    with_dicom_seg: bool = True,
    extension: str = ".nrrd",
    split: bool = False,
    overwrite: bool = False,
    shared: bool = False,
    resample: bool = False,
) -> None:
    """Segment ``ct`` into the new folder ``out`` and print the volumes of the organs.

    The default ``options`` make all maps, but no list of findings. Maps that the model does not have are left out,
    unless they are ``required``. With a ``picture_title``, a picture is drawn, too.
    Raises UserError.
    """
    from ..inference.process_settings import importing

    with importing():
        from ..inference.pipeline import Job, segment_to_folder
        from ..inference.process_settings import keep_freed_memory

    keep_freed_memory()
    model = load_bundle(bundle)
    require_available(required, model.metadata.network)
    job = Job(
        ct,
        out,
        model,
        options,
        device,
        series,
        extension,
        overwrite,
        backend=backend,
        resample=resample,
        shared=shared,
        skip_missing_maps=True,
    )
    about_model = f"Model: {model.metadata.name}. {' '.join(model.metadata.limits)}"
    scene = SceneFiles(model.metadata, with_scene, picture_title, about_model)

    def what_was_kept() -> str:
        state = "The earlier result is unchanged." if out.exists() else "Nothing was written."
        return f"{state} To segment the CT, run the same command again."

    with (
        cancellation_message(what_was_kept),
        progress_bar() as progress,
        open_ct(ct, series, out, progress, resample) as dicom,
    ):

        def also_write(folder: Path, image: sitk.Image, result: Result) -> None:
            if split:
                _write_masks(folder, result, extension)
            scene.write(folder, image, result)
            if dicom.files and with_dicom_seg:
                dicom.write_segmentation(folder, result, model.metadata)

        job = replace(job, ct=dicom.path, series=dicom.series, files=dicom.files)
        result = segment_to_folder(job, progress, also_write=also_write)
    notes = [*result.warnings, *dicom.messages, *scene.messages]
    for note in (*notes, about_model):
        warn(note)
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
            "notes": notes,
        }
    )
    print_line(f"Took {sum(result.seconds.values()):.0f} s on {result.device} with backend {result.backend}.")
    print_line(f"The results are in {out}.")


@dataclass
class DicomCT:
    """Where to read the CT from.

    ``files`` are its slices in order if it is DICOM, else empty. ``messages`` collects notes for the user: what was
    skipped, and what could not be written and why.
    """

    path: Path
    series: str | None = None
    files: tuple[Path, ...] = ()
    messages: list[str] = field(default_factory=list)

    def write_segmentation(self, folder: Path, result: Result, metadata: Metadata) -> None:
        """Write the labels as DICOM SEG into ``folder``, read it back and compare it with them.

        If this fails for any reason, no file remains and ``messages`` contains the reason.
        """
        missing = [name for name in _DICOM_SEG_PACKAGES if find_spec(name) is None]
        if missing:
            self.messages.append(
                f"segmentation.dcm was not written because it needs {' and '.join(missing)}. "
                f"To install: {format_install_command(*missing)}"
            )
            return
        from ..dicom.segmentation import DICOM_SEG, Algorithm, write_checked
        from ..inference.pipeline import optional

        with optional(DICOM_SEG, self.messages):
            algorithm = Algorithm.from_model(metadata.name, metadata.version, metadata.weights.sha256)
            write_checked(folder / DICOM_SEG, self.files, result.labels, metadata.vocabulary, algorithm)


@contextmanager
def open_ct(
    ct: Path, series: str | None, out: Path, progress: ProgressCallback, resample: bool = False
) -> Iterator[DicomCT]:
    """Yield where to read ``ct`` from. In a folder of DICOM files, find its only CT or the chosen ``series``.

    ``resample`` accepts slices that are tilted or unevenly spaced. ``out``, the folder for results, is not searched.
    Raises ImageError.
    """
    if not ct.is_dir():
        yield DicomCT(ct, series)
        return
    from ..dicom.archive import gathered
    from ..dicom.ct_folder import find_one_ct

    def report_search(files: int) -> None:
        progress(0.0, f"Searching the folder: {files} files")

    found = find_one_ct(ct, series, out, report_search, resample)
    with gathered(found.files, found.name) as folder:
        yield DicomCT(folder, None, found.files, list(found.notes))


@dataclass
class SceneFiles:
    """Writes the segmentation and the scene for 3D Slicer, and a picture.

    ``model`` describes the model of the result. ``with_scene`` writes segmentation and scene. The picture needs a
    ``picture_title``; ``subtitle`` is its second line. ``messages`` collects notes for the user: what could not be
    written, and what to install.
    """

    model: Metadata
    with_scene: bool
    picture_title: str | None
    subtitle: str
    messages: list[str] = field(default_factory=list)

    def write(self, folder: Path, ct: sitk.Image, result: Result) -> None:
        """Write the files into ``folder``. A file that cannot be written is skipped, with a message."""
        from ..inference.pipeline import optional

        nodes = None
        if self.with_scene:
            if find_spec("slicer") is None:
                self.messages.append(_NO_SLICER)
            else:
                with optional(f"{SCENE} or {SEGMENTATION}", self.messages):
                    builder = _import_from_slicer_side("scene_builder")
                    to_check = self._to_check(builder, result)
                    nodes = builder.build_scene(ct, result, self.model.vocabulary, to_check=to_check)
                    builder.save_scene(nodes, folder / SEGMENTATION, folder / SCENE)
        if self.picture_title is not None:
            with optional(PICTURE, self.messages):
                draw = _import_from_slicer_side("offscreen").draw
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


def _import_from_slicer_side(name: str) -> Any:
    """Import a module of the Slicer side, which is installed together with this library.

    Only here is it imported, and by name: the library works without it, and imports must not point upward.
    """
    return import_module(f"DCASegmentationLib.scene.{name}")


def _write_masks(folder: Path, result: Result, extension: str) -> None:
    """Write one mask for each segmented organ, on the CT's grid."""
    from ..imaging.writers import write_image

    (folder / ORGANS).mkdir()
    for organ in result.organs:
        write_image(result.labels == organ.label, folder / ORGANS / f"{organ.key}{extension}")


def _print_volumes(result: Result) -> None:
    rows = make_table("Organs", "Organ", "Volume (ml)", "Mean HU", "Note", numbers=("Volume (ml)", "Mean HU"))
    for each in result.measurements:
        mean = "" if each.mean_hu is None else f"{each.mean_hu:.0f}"
        rows.add_row(each.organ.name, f"{each.ml:.1f}", mean, each.note)
    print_table(rows)


def print_review(review: Review) -> None:
    """Print the first findings as a table, then the notes on whole organs."""
    if review.findings:
        print_table(_make_findings_table(review))
    else:
        print_line("The review found no region that is likely to be wrong.")
    for note in review.organs:
        organ = VOCABULARIES[review.vocabulary].by_key.get(note.organ) if review.vocabulary in VOCABULARIES else None
        print_line(f"{organ.name if organ else note.organ}: {' '.join(note.notes)}")


def _make_findings_table(review: Review) -> Table:
    rows = make_table(
        f"Findings: {len(review.findings)}", "#", "Organ", "ml", "Position (RAS, mm)", "Why", numbers=("#", "ml")
    )
    for finding in review.findings[:_MAX_PRINTED_FINDINGS]:
        left, posterior, superior = finding.position_mm
        # RAS, for dca correct and Slicer; the finding's position is in LPS.
        position = ", ".join(str(round(value)) for value in (-left, -posterior, superior))
        why = " ".join(reason.text for reason in finding.reasons[:2])
        if finding.alternative is not None:
            why += f" {finding.alternative.text}"
        rows.add_row(str(finding.rank), finding.name, f"{finding.ml:.1f}", position, why)
    return rows
