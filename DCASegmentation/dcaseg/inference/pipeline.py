"""Segmentation from a CT file to a folder of results, as ``dca segment`` and the worker run it."""

from __future__ import annotations

import csv
import io
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..errors import Cancelled, OutputError, UserError, is_disk_full, summarize_error
from ..imaging.ct_checks import check_ct
from ..imaging.file_errors import exists
from ..imaging.intensity import compute_voxel_checksum
from ..imaging.readers import read_ct
from ..imaging.writers import new_folder, write_image, write_json, write_text
from ..models.bundle import Bundle, load_default_model
from ..organs import VOCABULARIES
from ..review.schema import ALTERNATIVE, FINDING_RANKS, REVIEW
from ..temp_paths import process_id
from ..types import ProgressCallback
from .maps import EXPERTS
from .options import ATTENTION_LEVELS, SegmentOptions, drop_unavailable_maps
from .segmenter import Result, Segmenter, Stopwatch, report_progress

REQUEST = "request.json"
EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha")

# Fractions of the progress after reading and after segmentation; writing takes the rest.
_READ = 0.02
_SEGMENTED = 0.95


@dataclass(frozen=True)
class Job:
    """What to segment, with which model and options, and where to write the results.

    ``ct``: an image file, or a folder of DICOM files. ``series``: which series of the folder to read.
    ``out``: the folder to create. ``overwrite``: replace it if it is the result of an earlier job and contains nothing
    else; no other folder is ever replaced.
    ``device``, ``backend``: see ``device.choose_device`` and ``backends.selection.choose_backend``.
    ``extension``: the image format of labels and maps, one of ``EXTENSIONS``.
    ``files``: if ``ct`` is a temporary folder of links, the files they point to; the results name these files.
    ``resample``: allow resampling of a CT with tilted or unevenly spaced slices.
    ``shared``: let other users read the folder; by default only its owner can.
    ``called``: name of the CT in the results, which then do not mention its files.
    ``retried``: the caller will retry the job, so fail on a full disk even if only a table is lost.
    ``skip_missing_maps``: leave out maps that the model does not have, with a warning, instead of refusing the job.
    ``compress_maps``: compress maps, which makes them a quarter smaller and takes most of the time of writing.

    Raises UserError for an unknown ``extension``.
    """

    ct: Path
    out: Path
    bundle: Bundle
    options: SegmentOptions = field(default_factory=SegmentOptions)
    device: str = "auto"
    series: str | None = None
    extension: str = ".nrrd"
    overwrite: bool = False
    files: tuple[Path, ...] = ()
    backend: str = "auto"
    resample: bool = False
    shared: bool = False
    called: str = ""
    retried: bool = False
    skip_missing_maps: bool = False
    compress_maps: bool = True

    def __post_init__(self) -> None:
        if self.extension not in EXTENSIONS:
            raise UserError(
                f"'{self.extension}' is not a format for results.", f"Choose one of: {', '.join(EXTENSIONS)}."
            )


def make_segmenter(bundle: Bundle, device: str, backend: str) -> Segmenter:
    """Create the segmenter of a model. It looks for the abdomen with the default model, which is coarse and fast."""
    return Segmenter(bundle, device, backend=backend, coarse=load_default_model)


def segment_to_folder(
    job: Job,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    also_write: Callable[[Path, sitk.Image, Result], None] | None = None,
    segmenter: Segmenter | None = None,
) -> Result:
    """Segment ``job.ct``, write the results to the folder ``job.out``, and return them.

    The folder contains the images ``labels``, ``attention_<expert>_level<l>``, ``dominant_expert``, ``entropy`` and
    ``disagreement`` (as far as the options request them); with the option ``review`` also ``review.json`` and its
    images (see ``review.schema``); ``volumes.csv``; ``expert_attention.csv`` if the levels of attention were computed;
    ``request.json`` and ``log.txt``. ``also_write(folder, ct, result)`` may add files, such as a scene. ``segmenter``
    is one from an earlier job with the same bundle and device.

    The folder appears once labels and maps are complete. After an error before that, or if ``cancelled()`` returns True
    (raises Cancelled), there is no folder. Files that cannot be written after that are left out, with a warning in the
    result. Raises ImageError, BundleError, OutputError or UserError for errors that the user can fix.
    """
    job.options.get_kept_labels(job.bundle.metadata.vocabulary)
    clock = Stopwatch()
    notes: list[str] = []
    if job.skip_missing_maps:
        options, note = drop_unavailable_maps(job.options, job.bundle.metadata.network)
        job = replace(job, options=options)
        notes += [note] if note else []
    require_ct_elsewhere(job.files or (job.ct,), job.out)
    with new_folder(
        job.out, job.overwrite, REQUEST, is_result_file, private=not job.shared, keep_finished=True
    ) as folder:
        report_progress(progress, 0.0, "Reading the CT")
        with clock.phase("reading"):
            ct = read_ct(job.ct, job.series, notes, job.resample)
            notes += check_ct(ct)
        result = (segmenter or make_segmenter(job.bundle, job.device, job.backend)).segment(
            ct, job.options, _scale_progress(progress, _READ, _SEGMENTED), cancelled
        )
        result.warnings[:0] = notes
        report_progress(progress, _SEGMENTED, "Writing the results")
        with clock.phase("writing"):
            write_result(folder, job, ct, result)
            if also_write:
                with optional("An additional file", result.warnings, full_disk_fails=job.retried):
                    also_write(folder, ct, result)
        order = ("reading", *result.seconds, "writing")
        seconds = {**clock.seconds, **result.seconds}
        result = replace(result, seconds={phase: seconds[phase] for phase in order})
        with optional("log.txt", result.warnings, full_disk_fails=job.retried):
            write_text(_log(job, ct, result), folder / "log.txt")
    report_progress(progress, 1.0, "Finished")
    return result


# What dca segment, correct and report write into a result folder.
_FILES = frozenset(
    (
        *(REQUEST, "log.txt", "volumes.csv", "expert_attention.csv", REVIEW),
        *("segmentation.seg.nrrd", "scene.mrb", "segmentation.dcm", "picture.png", "report.html"),
    )
)
_IMAGES = frozenset(
    (
        # Earlier versions called the dominant expert the deciding one.
        *("labels", "dominant_expert", "deciding_expert", "entropy", "disagreement", FINDING_RANKS, ALTERNATIVE),
        *(f"attention_{expert}_level{level}" for expert in EXPERTS for level in ATTENTION_LEVELS),
        *(f"organs/{key}" for vocabulary in VOCABULARIES.values() for key in vocabulary.by_key),
    )
)


def is_result_file(name: str) -> bool:
    """Whether a command writes a file with this path into a result folder; any other file there is the user's own."""
    return name in _FILES or any(name.removesuffix(each) in _IMAGES for each in EXTENSIONS if name.endswith(each))


def require_ct_elsewhere(files: Iterable[Path], out: Path) -> None:
    """Raise OutputError if the CT, ``files`` or a folder, lies in the folder ``out``, which may be replaced."""
    if not exists(out):
        return
    paths = [Path(os.path.realpath(file)) for file in files]
    for place in {each for path in paths for each in (path, *path.parents)}:
        # samefile also recognizes another spelling, on file systems that ignore case.
        if exists(place) and place.samefile(out):
            raise OutputError(
                f"The output folder {out} contains the CT, which must not be replaced.",
                "Choose another output folder.",
            )


def write_result(folder: Path, job: Job, ct: sitk.Image, result: Result) -> None:
    """Write ``request.json``, labels, maps, review and tables of ``result`` into the existing ``folder``.

    Tables that cannot be written become warnings of the result. Raises OutputError for anything else.
    """
    # First: a later run replaces a folder only if this file identifies it as a result.
    write_json(_request(job, ct, result), folder / REQUEST)
    _write_images(folder, job, result)
    # The result is complete. No later error may discard it.
    with optional("volumes.csv", result.warnings, full_disk_fails=job.retried):
        _write_volumes(folder, result)
    with optional("expert_attention.csv", result.warnings, full_disk_fails=job.retried):
        _write_attention(folder, result)


@contextmanager
def optional(name: str, notes: list[str], *files: Path, full_disk_fails: bool = False) -> Iterator[None]:
    """Context for writing a part of the result that is not essential.

    Any error in the block is appended to ``notes``, with the ``name`` of the part, and ``files`` are removed. All
    errors are caught, because disks, headers and libraries fail in unforeseen ways. Only Cancelled passes, and with
    ``full_disk_fails`` the error of a full disk.
    """
    try:
        yield
    except Cancelled:
        raise
    except Exception as error:
        if full_disk_fails and is_disk_full(error):
            raise
        for file in files:
            with suppress(OSError):
                file.unlink(missing_ok=True)
        notes.append(f"{name} was not written: {summarize_error(error)} The rest of the result is complete.")


def _write_images(folder: Path, job: Job, result: Result) -> None:
    images = {"labels": result.labels}
    for level, experts in result.attention.items():
        images |= {f"attention_{expert}_level{level}": image for expert, image in experts.items()}
    for name, image in (
        ("dominant_expert", result.dominant_expert),
        ("entropy", result.entropy),
        ("disagreement", result.disagreement),
    ):
        if image is not None:
            images[name] = image
    if result.review is not None:
        images |= {FINDING_RANKS: result.review.ranks, ALTERNATIVE: result.review.alternative}
        write_json(result.review.review.to_json(job.extension), folder / REVIEW)
    for name, image in images.items():
        # Only maps are float, and noisy; labels compress to a hundredth at once.
        compress = job.compress_maps or image.GetPixelID() != sitk.sitkFloat32
        write_image(image, folder / f"{name}{job.extension}", compress)


def write_tables(folder: Path, result: Result) -> None:
    """Write ``volumes.csv`` to ``folder``, and ``expert_attention.csv`` if the result has attention."""
    _write_volumes(folder, result)
    _write_attention(folder, result)


def _write_volumes(folder: Path, result: Result) -> None:
    _write_csv(
        folder / "volumes.csv",
        ("label", "organ", "name", "ml", "mean_hu", "voxels", "note", "cut_off"),
        (
            (
                each.organ.label,
                each.organ.key,
                each.organ.name,
                f"{each.ml:.3f}",
                "" if each.mean_hu is None else f"{each.mean_hu:.1f}",
                each.voxels,
                each.note,
                "yes" if each.cut_off else "no",
            )
            for each in result.measurements
        ),
    )


def _write_attention(folder: Path, result: Result) -> None:
    if result.attention_by_organ:
        labels = {each.organ.key: each.organ.label for each in result.measurements}
        _write_csv(
            folder / "expert_attention.csv",
            ("level", "label", "organ", *EXPERTS),
            (
                (level, labels[key], key, *(f"{means[expert]:.4f}" if expert in means else "" for expert in EXPERTS))
                for level, organs in result.attention_by_organ.items()
                for key, means in organs.items()
            ),
        )


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(text.getvalue(), path)


def _request(job: Job, ct: sitk.Image, result: Result) -> dict[str, Any]:
    """Return the content of ``request.json``: everything needed to repeat the run."""
    return {
        "ct": job.called or [_format_path(file) for file in job.files] or _format_path(job.ct.resolve()),
        "series": None if job.called else job.series,
        "ct_geometry": get_geometry(ct),
        "ct_checksum": compute_voxel_checksum(sitk.GetArrayViewFromImage(ct)),
        "bundle": {
            "name": job.bundle.metadata.name,
            "folder": str(job.bundle.folder.resolve()),
            "sha256": job.bundle.metadata.weights.sha256,
        },
        "options": asdict(job.options),
        "device": job.device,
        "backend": result.backend,
        "extension": job.extension,
        "overwrite": job.overwrite,
        "resample": job.resample,
        # If this process is killed, ``temp_paths.remove_traces`` removes only the folders it made.
        "process": process_id(),
        "versions": {
            "python": platform.python_version(),
            **{name: _get_version(name) for name in ("dca-segmentation", "torch", "SimpleITK", "numpy", "openvino")},
        },
    }


def get_geometry(image: sitk.Image) -> dict[str, Any]:
    """Return the geometry of ``image`` as ``request.json`` stores it: positions in mm (LPS), order (x, y, z)."""
    return {
        "size": list(image.GetSize()),
        "spacing_mm": list(image.GetSpacing()),
        "origin_mm": list(image.GetOrigin()),
        "direction": list(image.GetDirection()),
        "voxel_type": image.GetPixelIDTypeAsString(),
    }


def _get_version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        # The library also runs from a checkout without installation.
        return "not installed"


def _log(job: Job, ct: sitk.Image, result: Result) -> str:
    lines = [
        f"{datetime.now(timezone.utc).astimezone():%Y-%m-%d %H:%M:%S %z}",
        f"CT: {_format_source(job)}",
        f"Size: {' x '.join(map(str, ct.GetSize()))} voxels of {' x '.join(f'{s:.4g}' for s in ct.GetSpacing())} mm",
        f"Model: {job.bundle.metadata.name}",
        f"Device: {result.device}",
        f"Backend: {result.backend}",
        *(f"Islands removed from {organ}: {ml:.2f} ml" for organ, ml in result.islands_ml.items()),
        *(f"{phase}: {seconds:.2f} s" for phase, seconds in result.seconds.items()),
        f"total: {sum(result.seconds.values()):.2f} s",
        *(f"Warning: {warning}" for warning in result.warnings),
    ]
    return "\n".join(lines) + "\n"


def _format_source(job: Job) -> str:
    if job.called:
        return job.called
    if not job.files:
        return _format_path(job.ct)
    return f"{len(job.files)} DICOM files, the first is {_format_path(job.files[0])}"


def _format_path(path: Path) -> str:
    """Return ``path`` as text that can be written to any file, even if its bytes are not valid UTF-8."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _scale_progress(progress: ProgressCallback | None, start: float, stop: float) -> ProgressCallback | None:
    """Map the progress of a step (0 to 1) to the range from ``start`` to ``stop`` of ``progress``."""
    if progress is None:
        return None
    return lambda fraction, message: progress(start + (stop - start) * fraction, message)
