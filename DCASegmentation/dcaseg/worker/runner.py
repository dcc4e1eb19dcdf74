"""Runs one request after the other with a model that stays loaded. Imports torch: load this late."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import Cancelled, UserError, is_out_of_memory
from ..inference.device import found_devices, missing_devices
from ..inference.options import SegmentOptions
from ..inference.pipeline import Job, make_segmenter, segment_to_folder
from ..inference.process_settings import keep_freed_memory
from ..inference.segmenter import Segmenter
from ..models.bundle import Bundle
from ..models.store import default_bundle, find_bundle, hidden_by
from ..types import ProgressCallback
from .protocol import Devices, Done, Failure, FoundDevices, Segment

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class LibraryError(UserError):
    """A library that the worker needs is missing or cannot be loaded."""

    @classmethod
    def of(cls, error: BaseException) -> LibraryError:
        """For what the import of the program's libraries raised."""
        if isinstance(error, ModuleNotFoundError) and error.name:
            library = error.name.split(".")[0]
            return cls(f"The Python package '{library}' is missing.", "Install what is missing under Setup.")
        # A package whose binary files do not fit the computer raises anything.
        return cls(
            f"A Python package cannot be loaded ({type(error).__name__}: {_first_line(error)}).",
            "Install the packages again under Setup.",
        )


def failure_of(run_id: str, error: BaseException) -> Failure:
    """The answer to the run ``run_id`` that ``error`` ended; a traceback is added where a developer needs it."""
    if isinstance(error, LibraryError):
        return Failure(run_id, error.problem, error.remedy, _traceback(error.__cause__ or error))
    if isinstance(error, UserError):
        return Failure(run_id, error.problem, error.remedy)
    if is_out_of_memory(error):
        return Failure(
            run_id,
            "There is not enough memory for this CT.",
            "Close other programs, or segment a part of the CT.",
            _traceback(error),
        )
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return Failure(run_id, "The disk is full.", "Free some space, or choose a folder on another disk.")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return Failure(run_id, f"{error.filename or 'The disk'} is read-only.", "Choose another folder.")
    if isinstance(error, PermissionError):
        return Failure(run_id, f"{error.filename} may not be written or read.", "Check its permissions.")
    return Failure(
        run_id,
        f"Something unexpected happened ({type(error).__name__}: {_first_line(error)}).",
        "Apply again; if it happens again, report it with the log.",
        _traceback(error),
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Runner:
    """Segments CTs; ``log`` takes lines for the user's log."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._bundle: Bundle | None = None
        self._device = self._runtime = ""
        self._segmenter: Segmenter | None = None
        keep_freed_memory()

    def run(self, request: Segment, progress: ProgressCallback, cancelled: Callable[[], bool]) -> Done:
        """Do what ``request`` asks. Raises Cancelled, UserError, or whatever went wrong; then there is no folder."""

        def tell(fraction: float, message: str) -> None:
            # Between the phases nobody else asks.
            if cancelled():
                raise Cancelled
            progress(fraction, message)

        out = Path(request.out)
        if out.exists() or out.is_symlink():
            raise UserError(f"{out} exists already.", "Name a folder that does not exist yet.")
        options = _options(request.options)
        tell(0.0, "Checking the model")
        bundle = Bundle.load(default_bundle() if request.bundle is None else find_bundle(request.bundle))
        segmenter = self._segmenter_for(bundle, request.device, request.runtime)
        job = Job(Path(request.ct), out, bundle, options, request.device, runtime=request.runtime)
        try:
            result = segment_to_folder(job, tell, cancelled, segmenter=segmenter)
        except RuntimeError as error:
            # torch on the CPU and ITK have no class of their own for this.
            if is_out_of_memory(error):
                raise MemoryError from error
            raise
        for warning in result.warnings:
            self._log(f"Warning: {warning}")
        return Done(request.id, str(out), result.device, result.seconds, tuple(result.warnings))

    def devices(self, request: Devices) -> FoundDevices:
        """What this computer can compute on."""
        return FoundDevices(request.id, found_devices(), missing_devices())

    def _segmenter_for(self, bundle: Bundle, device: str, runtime: str) -> Segmenter:
        # The metadata hold the checksum of the weights, and loading has just compared it: an equal bundle is the
        # same model, whatever happened to its folder meanwhile.
        asked = (device, runtime)
        if self._segmenter is None or bundle != self._bundle or asked != (self._device, self._runtime):
            self._log(f"Loading the model {bundle.metadata.name}.")
            if (shipped := hidden_by(bundle.folder)) is not None:
                self._log(f"It is the one in {bundle.folder}, which hides the one of the same name in {shipped}.")
            # The old one goes first: two may not fit into the memory of a GPU.
            self._segmenter = None
            self._segmenter = make_segmenter(bundle, device, runtime)
            self._bundle, self._device, self._runtime = bundle, device, runtime
        return self._segmenter


# Values such as the options may have that are None by themselves.
_IN_PLACE_OF_NONE: Mapping[str, object] = {"overlap": 0.5, "batch": 1, "organs": ()}


def _options(asked: Mapping[str, Any]) -> SegmentOptions:
    standard = asdict(SegmentOptions())
    values: dict[str, Any] = {}
    for name, value in asked.items():
        if name not in standard:
            raise UserError(f"There is no option '{name}'.", f"There are: {', '.join(standard)}.")
        # JSON knows lists, the options know tuples.
        values[name] = tuple(value) if isinstance(value, list) else value
        by_itself = values[name] is None and standard[name] is None
        if not by_itself and not _is_like(values[name], _IN_PLACE_OF_NONE.get(name, standard[name])):
            raise UserError(f"The option {name} cannot be {value!r}.", f"By itself it is {standard[name]!r}.")
    return SegmentOptions(**values)


def _is_like(value: object, standard: object) -> bool:
    """Whether ``value`` is of the type of ``standard``."""
    if isinstance(standard, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(standard)
