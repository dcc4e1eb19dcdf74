"""Segments CTs on request and keeps the model loaded. It imports torch, so it should be imported late."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import SimpleITK as sitk

from ..dicom.archive import gathered
from ..errors import UserError
from ..imaging.writers import write_image
from ..inference.device import find_devices, find_missing_devices
from ..inference.options import SegmentOptions
from ..inference.pipeline import Job, make_segmenter, segment_to_folder
from ..inference.process_settings import keep_freed_memory
from ..inference.segmenter import Result, Segmenter
from ..json_io import DataError, load
from ..models.bundle import Bundle
from ..models.store import find_bundle, find_default_bundle, find_hidden_bundle
from ..types import ProgressCallback
from .protocol import Devices, Done, FoundDevices, Segment

_log = logging.getLogger(__name__)


class SegmentHandler:
    """Segments CTs with a model that stays loaded, and finds the devices of this computer."""

    def __init__(self) -> None:
        self._bundle: Bundle | None = None
        self._device = self._backend = ""
        self._segmenter: Segmenter | None = None
        keep_freed_memory()

    def answer(
        self, request: Segment | Devices, progress: ProgressCallback, cancelled: Callable[[], bool]
    ) -> Done | FoundDevices:
        """Carry out ``request`` (see ``server.Handler``). A segmentation that raises an error leaves no folder."""
        if isinstance(request, Devices):
            return FoundDevices(request.id, find_devices(), find_missing_devices())
        return self._segment(request, progress, cancelled)

    def _segment(self, request: Segment, progress: ProgressCallback, cancelled: Callable[[], bool]) -> Done:
        out = Path(request.out)
        if out.exists() or out.is_symlink():
            raise UserError(f"{out} already exists.", "Choose a folder that does not exist yet.")
        options = _parse_options(request.options)
        progress(0.0, "Checking the model")
        bundle = Bundle.load(find_default_bundle() if request.bundle is None else find_bundle(request.bundle))
        segmenter = self._get_segmenter(bundle, request.device, request.backend)
        # The caller reads the maps at once, or deletes them.
        job = Job(
            Path(request.ct),
            out,
            bundle,
            options,
            request.device,
            backend=request.backend,
            skip_missing_maps=True,
            compress_maps=False,
        )
        with _with_files(job, request.files) as job:
            copy = _copy_of_ct(request.ct_copy)
            result = segment_to_folder(job, progress, cancelled, copy, segmenter)
        return Done(request.id, str(out), result.device, result.seconds, tuple(result.warnings))

    def _get_segmenter(self, bundle: Bundle, device: str, backend: str) -> Segmenter:
        # The metadata contain the checksum of the weights, which loading has just verified. Equal bundles are therefore
        # the same model, even if its folder was changed in the meantime.
        requested = (device, backend)
        if self._segmenter is None or bundle != self._bundle or requested != (self._device, self._backend):
            _log.info("Loading the model %s.", bundle.metadata.name)
            if (shipped := find_hidden_bundle(bundle.folder)) is not None:
                _log.info("The model in %s is used; it hides the one of the same name in %s.", bundle.folder, shipped)
            # Release the old model first: two may not fit into the memory of a GPU.
            self._segmenter = None
            self._segmenter = make_segmenter(bundle, device, backend)
            self._bundle, self._device, self._backend = bundle, device, backend
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
        raise UserError(f"The CT cannot be written as {name!r}.", "Specify the name of a .nrrd file, without a folder.")

    def write(folder: Path, ct: sitk.Image, result: Result) -> None:
        write_image(ct, folder / name, compress=False)

    return write


def _parse_options(requested: Mapping[str, Any]) -> SegmentOptions:
    """The options of a request. Raises UserError for an unknown option or an impossible value."""
    try:
        return load(SegmentOptions, requested)
    except DataError as error:
        names = ", ".join(item.name for item in fields(SegmentOptions))
        raise UserError(f"The option {error}.", f"The options are {names}.") from None
