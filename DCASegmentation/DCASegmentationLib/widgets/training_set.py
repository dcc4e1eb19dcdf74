"""Adds a corrected case, or a CT alone, to a training set, in a worker because compression takes seconds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.worker.protocol import Answer, CaseAdded, Failure
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.storage import create_temporary_folder
from DCASegmentationLib.scene.training_case import CorrectedCase, write_corrected_case, write_ct_alone
from DCASegmentationLib.worker_client import Purpose, WorkerProcess, createWorker

# A worker of its own, so that the case is written during a segmentation as well.
_TRAINING_CASE = Purpose("The process that adds the case", "Try again.")


class TrainingSetWriter:
    """Adds one case at a time to a training set.

    ``onEnd(case, cases, error)`` is called at the end: with the case and the number of cases now in the folder, or
    with the error.
    """

    def __init__(self, onEnd: Callable[[CorrectedCase | None, int, UserError | None], None]) -> None:
        self._onEnd = onEnd
        self._worker: WorkerProcess | None = None
        self._folder: Path | None = None
        self._case: CorrectedCase | None = None

    @property
    def isRunning(self) -> bool:
        """Whether a case is being written."""
        return self._case is not None

    def start(self, nodes: CaseNodes, training: Path, version: int = 1) -> None:
        """Check the case and start writing it into the folder ``training``. Raises UserError before anything starts."""
        self._start(lambda folder: write_corrected_case(nodes, folder, training, version))

    def startUnlabeled(self, nodes: CaseNodes, training: Path) -> None:
        """Start writing the CT alone, as an unlabeled case. Raises UserError before anything starts."""
        self._start(lambda folder: write_ct_alone(nodes, folder, training))

    def _start(self, write: Callable[[Path], CorrectedCase]) -> None:
        if self.isRunning:
            raise UserError(_("Another case is still being added."), _("Wait until it is finished."))
        if self._worker is None:
            self._worker = createWorker(_TRAINING_CASE)
        self._folder = create_temporary_folder()
        try:
            self._case = write(self._folder)
            self._worker.send(self._case.request, self._onAnswer)
        except BaseException:
            self._clear()
            raise

    def stop(self) -> None:
        """Stop without any callback, for example when Slicer closes. The training set holds a whole case or none."""
        if self._worker is not None:
            self._worker.stop()
        self._clear()

    def _onAnswer(self, answer: Answer) -> None:
        case = self._case
        self._clear()
        if isinstance(answer, CaseAdded):
            self._onEnd(case, answer.cases, None)
        elif isinstance(answer, Failure):
            self._onEnd(None, 0, UserError(answer.problem, answer.remedy))
        else:
            self._onEnd(None, 0, UserError(_("The case was not added."), _("Try again.")))

    def _clear(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._case = None
