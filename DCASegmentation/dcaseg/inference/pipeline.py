"""One CT file in, one folder of results out: what ``dca segment`` and the worker run."""

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

from ..errors import Cancelled, UserError, in_a_line, is_disk_full
from ..imaging.ct_checks import check_ct
from ..imaging.intensity import voxel_checksum
from ..imaging.readers import read_ct
from ..imaging.writers import new_folder, write_image, write_json, write_text
from ..models.bundle import Bundle, default_model
from ..review.schema import ALTERNATIVE, PLACES, REVIEW
from ..types import ProgressCallback
from .maps import EXPERTS
from .options import SegmentOptions
from .segmenter import Result, Segmenter, Stopwatch

REQUEST = "request.json"
EXTENSIONS = (".nrrd", ".nii.gz", ".nii", ".mha")


# The share of the progress that the segmentation itself takes; reading comes before, writing after it.
_READ = 0.02
_SEGMENTED = 0.95


@dataclass(frozen=True)
class Job:
    """What to segment, with what, and where the results go.

    ``ct`` is an image file or a folder of DICOM files, of which ``series`` picks a series; ``out`` is the folder to
    make. ``extension`` chooses the image format of labels and maps. ``overwrite`` replaces an
    earlier job's folder, nothing else. ``files`` are those that ``ct`` links to, where it is a temporary folder: the
    results name them in its place. ``runtime`` runs the network (``inference.backends.selection``). ``resample`` allows
    a CT with tilted or unevenly spaced slices to be resampled. The folder can be read by its owner alone, unless it is
    ``shared``. With ``called`` the results name the CT so, and say nothing of the files that it came from. One that
    will be ``retried`` fails on a full disk even where only a table is lost.
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
    runtime: str = "auto"
    resample: bool = False
    shared: bool = False
    called: str = ""
    retried: bool = False

    def __post_init__(self) -> None:
        if self.extension not in EXTENSIONS:
            raise UserError(
                f"Results cannot be written as '{self.extension}'.", f"Choose one of: {', '.join(EXTENSIONS)}."
            )


def make_segmenter(bundle: Bundle, device: str, runtime: str) -> Segmenter:
    """The segmenter of a model; the abdomen is looked for with the default one, which is coarse and quick."""
    return Segmenter(bundle, device, runtime=runtime, coarse=default_model)


def segment_to_folder(
    job: Job,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    also_write: Callable[[Path, sitk.Image, Result], None] | None = None,
    segmenter: Segmenter | None = None,
) -> Result:
    """Segment ``job.ct`` and put everything into ``job.out``; give the result too.

    Written are ``labels``, ``attention_<expert>_level<l>``, ``dominant_expert``, ``entropy`` and ``disagreement``
    (the maps that the options ask for), the list and the images of ``review_file`` (with the option ``review``),
    ``volumes.csv``, ``expert_attention.csv`` (where there is attention), ``request.json`` and ``log.txt``.
    ``also_write(folder, ct, result)`` may add files, a scene for instance.
    ``segmenter`` is one kept from an earlier job with the same bundle and device.

    The folder appears when it is complete; on an error before labels and maps are written, or when ``cancelled`` says
    so (Cancelled), there is none. What cannot be written after them is left out, with a warning in the result.
    Raises ImageError, BundleError, OutputError or UserError for what the user can set right.
    """
    job.options.kept_labels(job.bundle.metadata.vocabulary)
    clock = Stopwatch()
    notes: list[str] = []
    with new_folder(job.out, overwrite=job.overwrite, recognized_by=REQUEST, private=not job.shared) as folder:
        _tell(progress, 0.0, "Reading the CT")
        with clock.phase("reading"):
            ct = read_ct(job.ct, job.series, notes, job.resample)
            notes += check_ct(ct)
        result = (segmenter or make_segmenter(job.bundle, job.device, job.runtime)).segment(
            ct, job.options, _part_of(progress, _READ, _SEGMENTED), cancelled
        )
        result.warnings[:0] = notes
        _tell(progress, _SEGMENTED, "Writing the results")
        with clock.phase("writing"):
            # First: without it a later run would not know this folder for a result, and not replace it.
            write_json(_request(job, ct, result), folder / REQUEST)
            _write_images(folder, job.extension, result)
            # The result is complete. Nothing that comes after it may cost it.
            with optional("volumes.csv", result.warnings, full_disk_fails=job.retried):
                _write_volumes(folder, result)
            with optional("expert_attention.csv", result.warnings, full_disk_fails=job.retried):
                _write_attention(folder, result)
            if also_write:
                with optional("A further file", result.warnings, full_disk_fails=job.retried):
                    also_write(folder, ct, result)
        order = ("reading", *result.seconds, "writing")
        seconds = {**clock.seconds, **result.seconds}
        result = replace(result, seconds={phase: seconds[phase] for phase in order})
        with optional("log.txt", result.warnings, full_disk_fails=job.retried):
            write_text(_log(job, ct, result), folder / "log.txt")
    _tell(progress, 1.0, "Finished")
    return result


@contextmanager
def optional(what: str, notes: list[str], *files: Path, full_disk_fails: bool = False) -> Iterator[None]:
    """Around the writing of what a result can do without: an error in the block becomes one of ``notes``, and what
    there is of ``files`` is removed.

    Whatever the error is: disks, headers and libraries fail in ways that nobody foresees. Cancelling alone gets
    through, and with ``full_disk_fails`` a full disk.
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
        notes.append(f"{what} was not written: {in_a_line(error)} The rest of the result is complete.")


def _write_images(folder: Path, extension: str, result: Result) -> None:
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
        images |= {PLACES: result.review.ranks, ALTERNATIVE: result.review.alternative}
        write_json(result.review.review.to_json(extension), folder / REVIEW)
    for name, image in images.items():
        write_image(image, folder / f"{name}{extension}")


def write_tables(folder: Path, result: Result) -> None:
    """Write ``volumes.csv``, and ``expert_attention.csv`` where there is attention, into ``folder``."""
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
    """All that decides the result, for whoever wants to repeat the run."""
    return {
        "ct": job.called or [_readable(file) for file in job.files] or _readable(job.ct.resolve()),
        "series": None if job.called else job.series,
        "ct_geometry": geometry_of(ct),
        "ct_checksum": voxel_checksum(sitk.GetArrayViewFromImage(ct)),
        "bundle": {
            "name": job.bundle.metadata.name,
            "folder": str(job.bundle.folder.resolve()),
            "sha256": job.bundle.metadata.weights.sha256,
        },
        "options": asdict(job.options),
        "device": job.device,
        "runtime": result.runtime,
        "extension": job.extension,
        "overwrite": job.overwrite,
        "resample": job.resample,
        # So that only what this process made is removed when it is ended: see ``partials.remove_traces``.
        "process": os.getpid(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in ("dca-segmentation", "torch", "SimpleITK", "numpy", "openvino")},
        },
    }


def geometry_of(image: sitk.Image) -> dict[str, Any]:
    """What ``request.json`` says of where the CT's voxels lie."""
    return {
        "size": list(image.GetSize()),
        "spacing_mm": list(image.GetSpacing()),
        "origin_mm": list(image.GetOrigin()),
        "direction": list(image.GetDirection()),
        "voxel_type": image.GetPixelIDTypeAsString(),
    }


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        # The library can be used from a checkout that was never installed.
        return "not installed"


def _log(job: Job, ct: sitk.Image, result: Result) -> str:
    lines = [
        f"{datetime.now(timezone.utc).astimezone():%Y-%m-%d %H:%M:%S %z}",
        f"CT: {_source(job)}",
        f"Size: {' x '.join(map(str, ct.GetSize()))} voxels of {' x '.join(f'{s:.4g}' for s in ct.GetSpacing())} mm",
        f"Model: {job.bundle.metadata.name}",
        f"Device: {result.device}",
        f"Runtime: {result.runtime}",
        *(f"Islands removed from {organ}: {ml:.2f} ml" for organ, ml in result.islands_ml.items()),
        *(f"{phase}: {seconds:.2f} s" for phase, seconds in result.seconds.items()),
        f"total: {sum(result.seconds.values()):.2f} s",
        *(f"Warning: {warning}" for warning in result.warnings),
    ]
    return "\n".join(lines) + "\n"


def _source(job: Job) -> str:
    if job.called:
        return job.called
    if not job.files:
        return _readable(job.ct)
    return f"{len(job.files)} DICOM files, the first is {_readable(job.files[0])}"


def _readable(path: Path) -> str:
    """``path`` as text that any file can hold, even where its bytes are none."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _part_of(progress: ProgressCallback | None, start: float, stop: float) -> ProgressCallback | None:
    """The stretch from ``start`` to ``stop`` of ``progress`` as a progress of its own."""
    if progress is None:
        return None
    return lambda fraction, message: progress(start + (stop - start) * fraction, message)


def _tell(progress: ProgressCallback | None, fraction: float, message: str) -> None:
    if progress:
        progress(fraction, message)
