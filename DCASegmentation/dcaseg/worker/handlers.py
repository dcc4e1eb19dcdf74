"""Handlers of the requests that need SimpleITK, but neither PyTorch nor a model: downloads, training cases, clicks.

Segmentations are in ``segment_handler``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk

from ..errors import Cancelled, UserError, describe_root_cause
from ..interaction.engines import create_default_engine
from ..interaction.session_requests import Sessions, handle
from ..interaction.view import Engine
from ..models.download import Source, download_bundle
from ..organs import VOCABULARIES
from ..training.corrections import (
    CheckedFinding,
    OrganClicks,
    add_corrected_case,
    add_unlabeled_ct,
    list_case_folders,
    list_unlabeled_folders,
)
from ..types import ProgressCallback
from .protocol import AddCorrectedCase, AddUnlabeledCT, CaseAdded, Correct, Corrected, Download, Downloaded


class DownloadHandler:
    """Downloads a model and adds it to the user's own ones."""

    def answer(self, request: Download, progress: ProgressCallback, cancelled: Callable[[], bool]) -> Downloaded:
        """Carry out ``request`` (see ``server.Handler``). After an error, the part that has arrived is kept."""
        try:
            folder = download_bundle(Source.parse(request.address), Path(request.models), progress)
        except (UserError, Cancelled):
            raise
        # Servers and files fail in unforeseen ways. The user needs one sentence.
        except Exception as error:
            raise UserError(f"The download failed: {describe_root_cause(error)}.", "Try again.") from error
        return Downloaded(request.id, str(folder))


class CorrectionHandler:
    """Corrects labels with clicks, with ``create_default_engine``. Its sessions stay open between requests.

    Without a click network, it does not need PyTorch.
    """

    def __init__(self) -> None:
        self._sessions = Sessions(self._get_engine)
        self._engine: Engine | None = None

    def _get_engine(self) -> Engine:
        """Return the engine, loaded once for all sessions: the first one waits for it, before its first click."""
        if self._engine is None:
            self._engine = create_default_engine()
        return self._engine

    def answer(self, request: Correct, progress: ProgressCallback, cancelled: Callable[[], bool]) -> Corrected:
        """Carry out the action of ``request`` (see ``server.Handler``).

        Raises UserError or any other error; then nothing has changed.
        """
        return Corrected(request.id, handle(request.action, self._sessions))


class TrainingCaseHandler:
    """Adds cases to training sets. Compressing a CT takes seconds, so Slicer does not do it in its own process."""

    def answer(
        self, request: AddCorrectedCase | AddUnlabeledCT, progress: ProgressCallback, cancelled: Callable[[], bool]
    ) -> CaseAdded:
        """Carry out ``request`` (see ``server.Handler``). The training set then has the whole case, or is unchanged."""
        progress(0.0, "Writing the case")
        try:
            return _add(request)
        except (OSError, RuntimeError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"The case could not be written ({reason}).", "Try again.") from error


def _add(request: AddCorrectedCase | AddUnlabeledCT) -> CaseAdded:
    training, ct = Path(request.folder), sitk.ReadImage(request.ct)
    if isinstance(request, AddUnlabeledCT):
        name = add_unlabeled_ct(training, ct).parent.name
        return CaseAdded(request.id, name, len(list_unlabeled_folders(training)))
    if request.vocabulary not in VOCABULARIES:
        raise UserError(f"This version does not support the vocabulary {request.vocabulary}.", "Update the extension.")
    case = add_corrected_case(
        training,
        request.name,
        ct,
        sitk.ReadImage(request.labels),
        VOCABULARIES[request.vocabulary],
        request.reviewed,
        (request.model, request.model_sha256),
        [CheckedFinding(int(each["rank"]), str(each["organ"]), str(each["status"])) for each in request.findings],
        [OrganClicks(str(each["organ"]), int(each["added"]), int(each["removed"])) for each in request.clicks],
    )
    return CaseAdded(request.id, case.name, len(list_case_folders(training)))
