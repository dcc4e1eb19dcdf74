"""Runs requests one after the other and keeps the model loaded. It imports torch, so it should be imported late."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..dicom.archive import gathered
from ..errors import Cancelled, UserError, is_out_of_memory
from ..imaging.writers import write_image
from ..inference.device import found_devices, missing_devices
from ..inference.options import SegmentOptions
from ..inference.pipeline import Job, make_segmenter, segment_to_folder
from ..inference.process_settings import keep_freed_memory
from ..inference.segmenter import Result, Segmenter
from ..models.bundle import Bundle
from ..models.store import default_bundle, find_bundle, hidden_by
from ..types import ProgressCallback
from .protocol import Devices, Done, FoundDevices, Segment


class Runner:
    """Segments CTs with a model that stays loaded. ``log`` is called with lines for the user's log."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._bundle: Bundle | None = None
        self._device = self._runtime = ""
        self._segmenter: Segmenter | None = None
        keep_freed_memory()

    def run(self, request: Segment, progress: ProgressCallback, cancelled: Callable[[], bool]) -> Done:
        """Segment as ``request`` asks. Raises Cancelled, UserError or any other error, and then leaves no folder.

        ``progress`` is called with the fraction done (0 to 1) and the current step; ``cancelled`` is polled.
        """

        def report_progress(fraction: float, message: str) -> None:
            # Between the phases, cancellation is checked only here.
            if cancelled():
                raise Cancelled
            progress(fraction, message)

        out = Path(request.out)
        if out.exists() or out.is_symlink():
            raise UserError(f"{out} exists already.", "Choose a folder that does not exist yet.")
        options = _options(request.options)
        report_progress(0.0, "Checking the model")
        bundle = Bundle.load(default_bundle() if request.bundle is None else find_bundle(request.bundle))
        segmenter = self._segmenter_for(bundle, request.device, request.runtime)
        job = Job(Path(request.ct), out, bundle, options, request.device, runtime=request.runtime)
        try:
            with _with_files(job, request.files) as job:
                copy = _copy_of_ct(request.ct_copy)
                result = segment_to_folder(job, report_progress, cancelled, copy, segmenter)
        except RuntimeError as error:
            # Running out of memory has no exception class in torch on the CPU and in ITK.
            if is_out_of_memory(error):
                raise MemoryError from error
            raise
        for warning in result.warnings:
            self._log(f"Warning: {warning}")
        return Done(request.id, str(out), result.device, result.seconds, tuple(result.warnings))

    def devices(self, request: Devices) -> FoundDevices:
        """The devices of this computer."""
        return FoundDevices(request.id, found_devices(), missing_devices())

    def _segmenter_for(self, bundle: Bundle, device: str, runtime: str) -> Segmenter:
        # The metadata contain the checksum of the weights, which loading has just verified. Equal bundles are therefore
        # the same model, even if its folder was changed in the meantime.
        requested = (device, runtime)
        if self._segmenter is None or bundle != self._bundle or requested != (self._device, self._runtime):
            self._log(f"Loading the model {bundle.metadata.name}.")
            if (shipped := hidden_by(bundle.folder)) is not None:
                self._log(f"The model in {bundle.folder} is used; it hides the one of the same name in {shipped}.")
            # Release the old model first: two may not fit into the memory of a GPU.
            self._segmenter = None
            self._segmenter = make_segmenter(bundle, device, runtime)
            self._bundle, self._device, self._runtime = bundle, device, runtime
        return self._segmenter


@contextmanager
def _with_files(job: Job, files: Sequence[str]) -> Iterator[Job]:
    """The job, with exactly these DICOM files as its CT if there are any."""
    if not files:
        yield job
        return
    paths = tuple(Path(file) for file in files)
    with gathered(paths, paths[0].parent.name) as folder:
        yield replace(job, ct=folder, files=paths)


def _copy_of_ct(name: str | None) -> Callable[[Path, sitk.Image, Result], None] | None:
    """A function that writes the CT into the result folder, uncompressed, because the caller reads it at once."""
    if name is None:
        return None
    if Path(name).name != name or not name.endswith(".nrrd"):
        raise UserError(f"The CT cannot be written as {name!r}.", "Give the name of a .nrrd file, without a folder.")

    def write(folder: Path, ct: sitk.Image, result: Result) -> None:
        write_image(ct, folder / name, compress=False)

    return write


# Values of the type of options whose default is None.
_EXAMPLES: Mapping[str, object] = {"overlap": 0.5, "batch": 1, "organs": ()}


def _options(requested: Mapping[str, Any]) -> SegmentOptions:
    """The options of a request. Raises UserError for an unknown option or a value of the wrong type."""
    defaults = asdict(SegmentOptions())
    values: dict[str, Any] = {}
    for name, value in requested.items():
        if name not in defaults:
            raise UserError(f"There is no option '{name}'.", f"The options are {', '.join(defaults)}.")
        # JSON has lists where the options have tuples.
        values[name] = tuple(value) if isinstance(value, list) else value
        is_default_none = values[name] is None and defaults[name] is None
        if not is_default_none and not _has_type_of(values[name], _EXAMPLES.get(name, defaults[name])):
            raise UserError(f"The option {name} cannot be {value!r}.", f"Its default is {defaults[name]!r}.")
    return SegmentOptions(**values)


def _has_type_of(value: object, example: object) -> bool:
    """Whether ``value`` has the type of ``example``; an integer also counts as a float."""
    if isinstance(example, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(example)
