"""What a worker does with one case: read, segment, write, and report the outcome. The model stays loaded."""

from __future__ import annotations

import io
import json
import os
import platform
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import SimpleITK as sitk
import torch
from PIL import Image

from ..dicom.archive import gathered
from ..dicom.segmentation import DICOM_SEG, Algorithm, write_checked
from ..errors import BundleError, ImageError, UserError
from ..imaging.writers import new_folder, write_json
from ..inference.device import is_out_of_memory
from ..inference.options import SegmentOptions
from ..inference.pipeline import Job, optional, segment_to_folder
from ..inference.process_settings import keep_freed_memory
from ..inference.segmenter import Result, Segmenter
from ..json_io import read_json
from ..models.bundle import Bundle, default_model
from ..organs import Vocabulary
from ..rendering.case_picture import add_organs, draw_ct
from ..rendering.planes import Plane, choose_planes
from ..review.schema import REVIEW, read_review
from .case import FAILED, OK, PICTURE, RECORD, THUMBNAIL, Case, Outcome, Settings, readable
from .pseudonyms import without_names

_MOST_REASONS = 3


def review_score(folder: Path) -> tuple[float, tuple[str, ...]] | None:
    """Milliliters expected to be wrong over all places, and why at the first ones; None without a review."""
    file = folder / REVIEW
    if not file.is_file():
        return None
    places = read_review(file).findings
    # Each names its organ. Of a finding that several places share, the text is the same.
    reasons = tuple(dict.fromkeys(place.reasons[0].text for place in places if place.reasons))[:_MOST_REASONS]
    return sum(place.expected_wrong_ml for place in places), reasons


def peak_mb() -> float:
    """Highest resident memory of this process so far, in MB (1e6 bytes); 0 where the system does not tell."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    if sys.platform == "linux":
        # Not ru_maxrss: it begins with the peak of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)
    import resource

    # macOS counts in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


HEIGHT, LARGE_HEIGHT = 200, 720
_GAP = 4
_QUALITY = 82


def pictures(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary) -> tuple[bytes, bytes]:
    """Two JPEGs, ``LARGE_HEIGHT`` and ``HEIGHT`` pixels high; the patient's right is on the left of both planes."""
    planes = choose_planes(ct, labels)
    large = np.hstack(
        [
            _view(ct, labels, vocabulary, planes["axial"]),
            np.zeros((LARGE_HEIGHT, _GAP * LARGE_HEIGHT // HEIGHT, 3)),
            _view(ct, labels, vocabulary, planes["coronal"]),
        ]
    )
    image = Image.fromarray(large.astype(np.uint8))
    width = round(image.width * HEIGHT / LARGE_HEIGHT)
    return _jpeg(image), _jpeg(image.resize((width, HEIGHT), Image.Resampling.LANCZOS))


def _view(ct: sitk.Image, labels: sitk.Image, vocabulary: Vocabulary, plane: Plane) -> np.ndarray:
    view = draw_ct(ct, plane, (round(LARGE_HEIGHT * plane.aspect), LARGE_HEIGHT))
    return add_organs(view, labels, vocabulary, plane, fill=0.12, thickness=3)


def _jpeg(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()


class SharedSegmenter(Segmenter):
    """A segmenter that several threads of a process may call: one is in the network, the others read and write."""

    def __init__(self, model: Bundle, device: str, runtime: str) -> None:
        super().__init__(model, device, runtime=runtime, coarse=default_model)
        self.model = model
        self._turn = threading.Lock()

    def segment(
        self,
        ct: sitk.Image,
        options: SegmentOptions = SegmentOptions(),  # noqa: B008 - frozen
        progress: Callable[[float, str], None] | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> Result:
        """As ``Segmenter.segment``, in turn."""
        with self._turn:
            return super().segment(ct, options, progress, cancelled)


class WorkerModel:
    """What this process has loaded."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._segmenters: dict[tuple[str, str, str], SharedSegmenter] = {}
        self._turns: dict[int, threading.BoundedSemaphore] = {}
        self.loads = 0

    def segmenter(self, settings: Settings) -> SharedSegmenter:
        """The segmenter for ``settings``, made at the first call. Raises BundleError, and UserError for the device."""
        key = (settings.bundle, settings.device, settings.runtime)
        with self._lock:
            if key not in self._segmenters:
                self._segmenters[key] = self._load(settings)
            return self._segmenters[key]

    def slots(self, at_once: int) -> threading.BoundedSemaphore:
        """Bounds the cases this process holds in memory."""
        with self._lock:
            return self._turns.setdefault(at_once, threading.BoundedSemaphore(at_once))

    def _load(self, settings: Settings) -> SharedSegmenter:
        keep_freed_memory()
        if settings.threads:
            torch.set_num_threads(settings.threads)
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(settings.threads)
        bundle = Bundle.load(Path(settings.bundle))
        if bundle.weights.sha256 != settings.weights:
            raise BundleError(
                f"The model in {settings.bundle} on this worker ({platform.node()}) is another one.",
                "All workers must see the same folder of the model.",
            )
        self.loads += 1
        return SharedSegmenter(bundle, settings.device, settings.runtime)


PROCESS = WorkerModel()


def lacks_device_memory(error: BaseException, segmenter: Segmenter) -> bool:
    """Whether ``error`` says that the model itself does not fit into the memory of the segmenter's device."""
    return is_out_of_memory(error) and segmenter.device.torch_device.type != "cpu"


_RESULT = "result"


def process(case: Case, settings: Settings) -> Outcome:
    """Segment ``case`` into its folder, which appears when it is complete; whatever happens becomes an outcome."""
    with PROCESS.slots(settings.at_once):
        try:
            outcome = recorded(case, settings) or _segmented(case, settings)
        except UserError as error:
            # Of all that can be set right, the CT alone will be the same in the next run.
            outcome = _failed(case, str(error), again=not isinstance(error, ImageError))
        # One broken case must not stop the others, whatever breaks.
        except Exception as error:
            if is_out_of_memory(error):
                outcome = _failed(case, "The memory of the worker does not suffice for this CT.", again=True)
            else:
                where = traceback.extract_tb(error.__traceback__)[-1]
                said = next(iter(str(error).splitlines()), "")
                what = f"{type(error).__name__}: {said} ({Path(where.filename).name}, line {where.lineno})"
                outcome = _failed(case, f"Something unexpected happened: {what}", again=True)
    if settings.pseudonyms:
        outcome = without_names(outcome, case)
    return replace(outcome, worker=f"{platform.node()}:{os.getpid()}", loads=PROCESS.loads, peak_mb=peak_mb())


def recorded(case: Case, settings: Settings) -> Outcome | None:
    """The outcome in the folder of ``case``, if a run that ended too early to note it has finished it before."""
    try:
        record = read_json(settings.folder_of(case.name) / RECORD)
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict) or record.get("fingerprint") != case.fingerprint:
        return None
    if record.get("settings") != _plain(settings.identity()):
        return None
    try:
        return Outcome.from_json(record["outcome"])
    except (ValueError, KeyError):
        # It is damaged: the case is done again.
        return None


def _segmented(case: Case, settings: Settings) -> Outcome:
    segmenter = PROCESS.segmenter(settings)
    try:
        return _into_folder(case, settings, segmenter)
    except RuntimeError as error:
        if not lacks_device_memory(error, segmenter):
            raise
    # The device does not even hold the model, perhaps as others use it too.
    on_cpu = PROCESS.segmenter(replace(settings, device="cpu"))
    outcome = _into_folder(case, settings, on_cpu)
    return replace(outcome, notes=(*outcome.notes, f"no memory left on {segmenter.device.description}: ran on the CPU"))


def _into_folder(case: Case, settings: Settings, segmenter: SharedSegmenter) -> Outcome:
    started = perf_counter()
    files = [Path(file) for file in case.files]
    notes: list[str] = []
    seconds: dict[str, float] = {}

    def also_write(folder: Path, ct: sitk.Image, result: Result) -> None:
        vocabulary = segmenter.vocabulary
        with optional(PICTURE, notes, folder / PICTURE, folder / THUMBNAIL, full_disk_fails=True):
            large, small = pictures(ct, result.labels, vocabulary)
            (folder / PICTURE).write_bytes(large)
            (folder / THUMBNAIL).write_bytes(small)
        if case.dicom:
            with optional(DICOM_SEG, notes, full_disk_fails=True):
                metadata = segmenter.model.metadata
                algorithm = Algorithm.of_model(metadata.name, metadata.version, metadata.weights.sha256)
                pseudonym = case.patient if settings.pseudonyms else ""
                write_checked(folder / DICOM_SEG, files, result.labels, vocabulary, algorithm, pseudonym)

    target = settings.folder_of(case.name)
    with new_folder(target, overwrite=True, recognized_by=RECORD, private=not settings.shared) as folder:
        with gathered(files, case.description or "series") if case.dicom else nullcontext(files[0]) as ct:
            waiting = perf_counter()
            job = Job(
                *(ct, folder / _RESULT, segmenter.model, settings.options, settings.device),
                extension=settings.extension,
                files=tuple(files) if case.dicom else (),
                runtime=settings.runtime,
                resample=settings.resample,
                shared=settings.shared,
                called=case.source if settings.pseudonyms else "",
                retried=True,
            )
            result = segment_to_folder(job, also_write=also_write, segmenter=segmenter)
            # Waiting for other cases' turn in the network is no work on this one.
            waited = perf_counter() - waiting - sum(result.seconds.values())
        _move_up(folder)
        seconds.update(result.seconds)
        seconds["total"] = perf_counter() - started - max(waited, 0.0)
        score = None
        with optional("The order to check", notes):
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
        if settings.pseudonyms:
            outcome = without_names(outcome, case)
        write_json(_record(case, settings, outcome), folder / RECORD)
    return outcome


def _move_up(folder: Path) -> None:
    """Put what the segmentation wrote beside the record: one folder for each case, as ``dca segment`` makes it."""
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
        "settings": settings.identity(),
        "outcome": asdict(outcome),
    }


def _failed(case: Case, reason: str, again: bool) -> Outcome:
    return Outcome(case.key, FAILED, readable(reason), again)


def _plain(value: dict[str, Any]) -> Any:
    """As JSON gives it back, tuples as lists."""
    return json.loads(json.dumps(value))
