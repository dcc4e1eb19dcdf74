"""Processes one case in a worker: read, segment, write and return the outcome. The model stays loaded."""

from __future__ import annotations

import faulthandler
import io
import json
import os
import platform
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from time import monotonic, perf_counter
from typing import Any, TextIO

import numpy as np
import psutil
import SimpleITK as sitk
import torch
from PIL import Image

from ..checksums import compute_sha256
from ..dicom.archive import gathered
from ..dicom.segmentation import DICOM_SEG, Algorithm, write_checked
from ..errors import BundleError, ImageError, UserError, is_out_of_memory
from ..imaging.writers import new_folder, write_json
from ..inference.options import SegmentOptions
from ..inference.pipeline import Job, is_result_file, optional, require_ct_elsewhere, segment_to_folder
from ..inference.process_settings import keep_freed_memory
from ..inference.segmenter import Result, Segmenter
from ..json_io import read_json
from ..models.bundle import Bundle, load_default_model
from ..organs import Vocabulary
from ..rendering.case_picture import add_organs, draw_ct
from ..rendering.planes import Plane, choose_planes
from ..review.schema import REVIEW, read_review
from .case import FAILED, OK, PICTURE, RECORD, THUMBNAIL, Case, Outcome, Settings, replace_undecodable_bytes
from .pseudonyms import redact_case_names, redact_outcome

_MAX_REASONS = 3


def review_score(folder: Path) -> tuple[float, tuple[str, ...]] | None:
    """Volume expected to be wrong over all findings (ml), and the first reasons; None without a review."""
    file = folder / REVIEW
    if not file.is_file():
        return None
    findings = read_review(file).findings
    # Each reason names its organ. Findings with the same reason have the same text.
    reasons = tuple(dict.fromkeys(finding.reasons[0].text for finding in findings if finding.reasons))[:_MAX_REASONS]
    return sum(finding.expected_wrong_ml for finding in findings), reasons


def get_peak_mb() -> float:
    """Peak resident memory of this process so far, in MB (1e6 bytes); 0 if the system does not report it."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    if sys.platform == "linux":
        # Not ru_maxrss: it starts from the peak of the parent process.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)
    import resource

    # macOS reports bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


HEIGHT, LARGE_HEIGHT = 200, 720
_GAP = 4
_QUALITY = 82


def draw_pictures(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary) -> tuple[bytes, bytes]:
    """Draw the axial and coronal plane side by side, as a large picture and a thumbnail.

    Returns two JPEG files, ``LARGE_HEIGHT`` and ``HEIGHT`` pixels high. The patient's right is on the left.
    """
    planes = choose_planes(ct, labels)
    large = np.hstack(
        [
            _draw_view(ct, labels, vocabulary, planes["axial"]),
            np.zeros((LARGE_HEIGHT, _GAP * LARGE_HEIGHT // HEIGHT, 3)),
            _draw_view(ct, labels, vocabulary, planes["coronal"]),
        ]
    )
    image = Image.fromarray(large.astype(np.uint8))
    width = round(image.width * HEIGHT / LARGE_HEIGHT)
    return _encode_jpeg(image), _encode_jpeg(image.resize((width, HEIGHT), Image.Resampling.LANCZOS))


def _draw_view(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary, plane: Plane) -> np.ndarray:
    view = draw_ct(ct, plane, (round(LARGE_HEIGHT * plane.aspect), LARGE_HEIGHT))
    return add_organs(view, labels, vocabulary, plane, fill=0.12, thickness=3)


def _encode_jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


class SharedSegmenter(Segmenter):
    """A segmenter for several threads of a process: one thread runs the network while others read and write."""

    def __init__(self, model: Bundle, device: str, backend: str) -> None:
        super().__init__(model, device, backend=backend, coarse=load_default_model)
        self.model = model
        self._network_lock = threading.Lock()

    def segment(
        self,
        ct: sitk.Image,
        options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """Like ``Segmenter.segment``, for one thread at a time."""
        with self._network_lock:
            return super().segment(ct, options, progress, cancelled)


class ModelCache:
    """The models that this process has loaded; ``loads`` counts them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segmenters: dict[tuple[str, str, str, str], SharedSegmenter] = {}
        self._slots: dict[int, threading.BoundedSemaphore] = {}
        self.loads = 0

    def get_segmenter(self, settings: Settings) -> SharedSegmenter:
        """The segmenter for ``settings``, created by the first call.

        Raises BundleError if the model is unusable or not the expected one, and UserError if the device is unusable.
        """
        key = (settings.bundle, settings.weights, settings.device, settings.backend)
        with self._lock:
            if key not in self._segmenters:
                # Between two cohorts, the model in the folder may have been replaced by another.
                for old in [each for each in self._segmenters if each[0] == key[0] and each[1] != key[1]]:
                    del self._segmenters[old]
                self._segmenters[key] = self._load(settings)
            return self._segmenters[key]

    def get_slots(self, max_parallel: int) -> threading.BoundedSemaphore:
        """The semaphore that limits how many cases this process holds in memory."""
        with self._lock:
            return self._slots.setdefault(max_parallel, threading.BoundedSemaphore(max_parallel))

    def _load(self, settings: Settings) -> SharedSegmenter:
        keep_freed_memory()
        if settings.threads:
            torch.set_num_threads(settings.threads)
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(settings.threads)
        bundle = Bundle.load(Path(settings.bundle))
        if bundle.weights.sha256 != settings.weights:
            raise BundleError(
                f"The worker {platform.node()} has a different model in {settings.bundle}.",
                "Make sure that all workers see the same model folder.",
            )
        self.loads += 1
        return SharedSegmenter(bundle, settings.device, settings.backend)


MODEL_CACHE = ModelCache()


def lacks_device_memory(error: BaseException, segmenter: Segmenter) -> bool:
    """Whether ``error`` means that the device of ``segmenter``, a GPU, is out of memory."""
    return is_out_of_memory(error) and segmenter.device.torch_device.type != "cpu"


_RESULT = "result"


def process(case: Case, settings: Settings) -> Outcome:
    """Segment ``case`` into its folder, which appears once it is complete. Every error becomes a failed outcome.

    A case that takes longer than ``settings.case_minutes`` fails too. As nothing can stop a thread that hangs, for
    example in a library that reads a damaged file, this process then ends soon after, and Dask starts another one.
    """
    slots = MODEL_CACHE.get_slots(settings.max_parallel)
    slots.acquire()
    try:
        outcome = _WATCHDOG.run_with_timeout(settings.case_minutes * 60, lambda: _process_case(case, settings))
    except TimeoutError:
        # The case keeps its slot.
        _WATCHDOG.end_process_soon()
        outcome = _make_failed_outcome(case, describe_timeout(settings), again=False)
    else:
        slots.release()
    if settings.pseudonyms:
        outcome = redact_outcome(outcome, case)
    return replace(outcome, worker=f"{platform.node()}:{os.getpid()}", loads=MODEL_CACHE.loads, peak_mb=get_peak_mb())


def describe_timeout(settings: Settings) -> str:
    """The reason of the failure of a case that took too long."""
    return (
        f"It was stopped after {settings.case_minutes:g} minutes. To allow more time, raise --case-timeout and "
        "add --retry-failed."
    )


class _Watchdog:
    """Runs functions with a limit of time, in threads that are left behind when they exceed it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: ThreadPoolExecutor | None = None
        self._deadlines: list[float] = []

    def run_with_timeout(self, seconds: float, work: Callable[[], Outcome]) -> Outcome:
        """``work()``; raises TimeoutError if it takes longer than ``seconds``."""
        with self._lock:
            # Threads that are used again, so that the pools of threads of the libraries are, too.
            self._threads = self._threads or ThreadPoolExecutor(thread_name_prefix="case")
        deadline = monotonic() + seconds
        self._set(self._deadlines.append, deadline)
        try:
            return self._threads.submit(work).result(timeout=seconds)
        except FutureTimeoutError:
            raise TimeoutError from None
        finally:
            self._set(self._deadlines.remove, deadline)

    def _set(self, change: Callable[[float], None], deadline: float) -> None:
        """Let the process end if a library holds Python's lock until after the next deadline: no thread can then run.

        The timer of ``faulthandler`` runs without Python.
        """
        with self._lock:
            change(deadline)
            if not self._deadlines:
                faulthandler.cancel_dump_traceback_later()
                return
            left = max(min(self._deadlines) - monotonic(), 0.0) + _GRACE_SECONDS
            faulthandler.dump_traceback_later(left, exit=True, file=_open_null())

    def end_process_soon(self) -> None:
        """End this process after the outcome has been sent."""
        timer = threading.Timer(_SECONDS_TO_SEND, os._exit, (1,))
        timer.daemon = True
        timer.start()


@cache
def _open_null() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123 - stays open for the timer


_GRACE_SECONDS = 60.0
_SECONDS_TO_SEND = 5.0
_WATCHDOG = _Watchdog()


def _process_case(case: Case, settings: Settings) -> Outcome:
    try:
        return read_recorded_outcome(case, settings) or _segment_case(case, settings)
    except UserError as error:
        # The next run may find any other fault fixed, but not one of the CT itself.
        return _make_failed_outcome(case, str(error), again=not isinstance(error, ImageError))
    # No error in one case may stop the others.
    except Exception as error:
        if is_out_of_memory(error):
            return _make_failed_outcome(case, "The worker does not have enough memory for this CT.", again=True)
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = next(iter(str(error).splitlines()), "")
        details = f"{type(error).__name__}: {message} ({Path(where.filename).name}, line {where.lineno})"
        return _make_failed_outcome(case, f"Unexpected error: {details}", again=True)


def read_recorded_outcome(case: Case, settings: Settings) -> Outcome | None:
    """The outcome in the folder of ``case`` if an earlier run finished it but stopped before the ledger had it."""
    try:
        record = read_json(settings.get_case_folder(case.name) / RECORD)
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("fingerprint") != case.fingerprint:
        return None
    if record.get("settings") != _normalize_json(settings.get_identity()):
        return None
    try:
        return Outcome.from_json(record["outcome"])
    except (ValueError, KeyError):
        # The record is damaged, so the case is processed again.
        return None


def _segment_case(case: Case, settings: Settings) -> Outcome:
    segmenter = MODEL_CACHE.get_segmenter(settings)
    try:
        return _segment_and_write(case, settings, segmenter)
    except RuntimeError as error:
        if not lacks_device_memory(error, segmenter):
            raise
    # Even the model does not fit on the device, perhaps because other programs use it too.
    on_cpu = MODEL_CACHE.get_segmenter(replace(settings, device="cpu"))
    outcome = _segment_and_write(case, settings, on_cpu)
    note = f"out of memory on {segmenter.device.description}: ran on the CPU"
    return replace(outcome, notes=(*outcome.notes, note))


def _segment_and_write(case: Case, settings: Settings, segmenter: SharedSegmenter) -> Outcome:
    started = perf_counter()
    files = [Path(file) for file in case.files]
    notes: list[str] = []
    seconds: dict[str, float] = {}

    def also_write(folder: Path, ct: sitk.Image, result: Result) -> None:
        if settings.pseudonyms:
            # Before the log is written. Notes on a file name it.
            result.warnings[:] = [redact_case_names(warning, case) for warning in result.warnings]
        vocabulary = segmenter.vocabulary
        with optional(PICTURE, notes, folder / PICTURE, folder / THUMBNAIL, full_disk_fails=True):
            large, small = draw_pictures(ct, result.labels, vocabulary)
            (folder / PICTURE).write_bytes(large)
            (folder / THUMBNAIL).write_bytes(small)
        if case.dicom:
            with optional(DICOM_SEG, notes, full_disk_fails=True):
                metadata = segmenter.model.metadata
                algorithm = Algorithm.from_model(metadata.name, metadata.version, metadata.weights.sha256)
                pseudonym = case.patient if settings.pseudonyms else ""
                write_checked(folder / DICOM_SEG, files, result.labels, vocabulary, algorithm, pseudonym)

    target = settings.get_case_folder(case.name)
    require_ct_elsewhere(files, target)
    with new_folder(target, True, RECORD, _is_case_file, private=not settings.shared) as folder:
        with gathered(files, case.description or "series") if case.dicom else nullcontext(files[0]) as ct:
            waiting = perf_counter()
            job = Job(
                *(ct, folder / _RESULT, segmenter.model, settings.options, settings.device),
                extension=settings.extension,
                files=tuple(files) if case.dicom else (),
                backend=settings.backend,
                resample=settings.resample,
                shared=settings.shared,
                called=case.source if settings.pseudonyms else "",
                retried=True,
            )
            result = segment_to_folder(job, also_write=also_write, segmenter=segmenter)
            # Time spent waiting for the network while it runs other cases is not this case's time.
            waited = perf_counter() - waiting - sum(result.seconds.values())
        _move_up(folder)
        seconds.update(result.seconds)
        seconds["total"] = perf_counter() - started - max(waited, 0.0)
        score = None
        with optional("The review score", notes):
            score = review_score(folder)
        outcome = Outcome(
            case.key,
            OK,
            notes=(*result.warnings, *notes),
            volumes_ml=result.volumes_ml,
            seconds={phase: round(value, 4) for phase, value in seconds.items()},
            concern=None if score is None else score[0],
            concerns=() if score is None else score[1],
            cut_off=tuple(each.organ.key for each in result.measurements if each.cut_off),
        )
        kept = _name_to_keep(target)
        if kept is not None:
            note = f"the earlier result was changed after its run, perhaps corrected; it is kept in {kept.name}"
            outcome = replace(outcome, notes=(*outcome.notes, note))
        if settings.pseudonyms:
            outcome = redact_outcome(outcome, case)
        write_json({**_record(case, settings, outcome), _FILES: _compute_digests(folder)}, folder / RECORD)
        if kept is not None:
            target.rename(kept)
    return outcome


_FILES = "files"


def _compute_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in the folder of a case except its record, by path in the folder."""
    digests = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != RECORD and _is_case_file(name):
            digests[name] = compute_sha256(path)
    return digests


def _name_to_keep(folder: Path) -> Path | None:
    """A free name for ``folder`` if a result in it has changed since it was written, as after a correction by hand."""
    record = folder / RECORD
    if not record.is_file():
        return None
    try:
        written = read_json(record).get(_FILES)
    except (OSError, ValueError, AttributeError):
        written = None
    if isinstance(written, dict):
        is_changed = _compute_digests(folder) != written
    else:
        # The record, which earlier versions wrote without digests, is the last file of a case.
        finished = record.stat().st_mtime
        is_changed = any(path.stat().st_mtime > finished + 1 for path in folder.rglob("*") if path.is_file())
    if not is_changed:
        return None
    today = f"{folder.name}-before-{datetime.now(timezone.utc):%Y-%m-%d}"
    names = (today, *(f"{today}-{number}" for number in range(2, 1000)))
    return next(folder.with_name(name) for name in names if not folder.with_name(name).exists())


def _is_case_file(name: str) -> bool:
    """Whether a cohort writes a file with this path into the folder of a case."""
    return name in (RECORD, PICTURE, THUMBNAIL) or is_result_file(name)


def _move_up(folder: Path) -> None:
    """Move the segmentation's files up to the case folder, so that it looks like a folder from ``dca segment``."""
    result = folder / _RESULT
    for file in result.iterdir():
        file.rename(folder / file.name)
    result.rmdir()


def _record(case: Case, settings: Settings, outcome: Outcome) -> dict[str, Any]:
    return {
        "source": case.source,
        "patient": case.patient,
        "study_date": case.study_date,
        "description": case.description,
        "finished": f"{datetime.now(timezone.utc).astimezone():%Y-%m-%d %H:%M:%S %z}",
        "fingerprint": case.fingerprint,
        "settings": settings.get_identity(),
        "outcome": asdict(outcome),
    }


def _make_failed_outcome(case: Case, reason: str, again: bool) -> Outcome:
    return Outcome(case.key, FAILED, replace_undecodable_bytes(reason), again)


def _normalize_json(value: dict[str, Any]) -> Any:
    """``value`` as JSON returns it, with lists in place of tuples."""
    return json.loads(json.dumps(value))
