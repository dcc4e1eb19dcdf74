"""What a worker does with one case: read, segment, write, and say what became of it."""

from __future__ import annotations

import json
import os
import platform
import traceback
from contextlib import nullcontext
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import SimpleITK as sitk

from ..dicom.reading import gathered
from ..dicom.segmentation import DICOM_SEG, Algorithm
from ..dicom.segmentation_check import write_checked
from ..errors import ImageError, UserError
from ..imaging.writing import new_folder, write_json
from ..inference.device import is_out_of_memory
from ..inference.segmenter import Result
from ..job import Job, optional, segment_to_folder
from ..json_reading import read_json
from .case import FAILED, OK, Case, Outcome, readable
from .memory import peak_mb
from .model import PROCESS, SharedSegmenter, lacks_device_memory
from .pseudonyms import without_names
from .review_score import review_score
from .settings import PICTURE, RECORD, THUMBNAIL, Settings
from .thumbnail import pictures

_RESULT = "result"


def process(case: Case, settings: Settings) -> Outcome:
    """Segment ``case`` into its folder, which appears when it is complete; whatever happens becomes an outcome."""
    with PROCESS.turns(settings.at_once):
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
