"""Adds cases to a training set on request: a CT with corrected labels, or a CT alone. It does not load torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import SimpleITK as sitk

from ..errors import UserError
from ..organs import VOCABULARIES
from ..training.corrections import (
    OrganClicks,
    TouchedPlace,
    add_corrected_case,
    add_unlabeled_ct,
    case_folders,
    unlabeled_folders,
)
from ..types import ProgressCallback
from .protocol import AddCorrectedCase, AddUnlabeledCT, CaseAdded


class CaseWriter:
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
        return CaseAdded(request.id, name, len(unlabeled_folders(training)))
    if request.vocabulary not in VOCABULARIES:
        raise UserError(f"This version does not know the organ set {request.vocabulary}.", "Update the extension.")
    case = add_corrected_case(
        training,
        request.name,
        ct,
        sitk.ReadImage(request.labels),
        VOCABULARIES[request.vocabulary],
        request.reviewed,
        (request.model, request.model_sha256),
        [TouchedPlace(int(each["rank"]), str(each["organ"]), str(each["status"])) for each in request.findings],
        [OrganClicks(str(each["organ"]), int(each["added"]), int(each["removed"])) for each in request.clicks],
    )
    return CaseAdded(request.id, case.name, len(case_folders(training)))
