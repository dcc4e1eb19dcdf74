"""Adds a corrected case, or a CT alone, to a training set, in a separate process because compression takes seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from DCASegmentationLib.event_loop import newTimer
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.storage import new_temporary_folder
from DCASegmentationLib.scene.training_case import CorrectedCase, write_corrected_case, write_ct_alone
from DCASegmentationLib.worker_client import LIBRARY_FOLDER, pythonProgram, workerEnvironment

_MILLISECONDS_TO_STOP = 2000


class TrainingSetWriter:
    """Adds one case at a time to a training set.

    ``onEnd(case, cases, error)`` is called at the end: with the case and the number of cases now in the folder, or
    with the error.
    """

    def __init__(self, onEnd: Callable[[CorrectedCase | None, int, UserError | None], None]) -> None:
        self._onEnd = onEnd
        self._process: Any = None
        self._folder: Path | None = None
        self._case: CorrectedCase | None = None
        self._ended: list[Any] = []
        self._deleteTimer = newTimer(self._deleteEnded)

    @property
    def isRunning(self) -> bool:
        """Whether a case is being written."""
        return self._process is not None

    def start(self, nodes: CaseNodes, training: Path, version: int = 1) -> None:
        """Check the case and start writing it into the folder ``training``. Raises UserError before anything starts."""
        self._start(lambda folder: write_corrected_case(nodes, folder, training, version))

    def startUnlabeled(self, nodes: CaseNodes, training: Path) -> None:
        """Start writing the CT alone, as an unlabeled case. Raises UserError before anything starts."""
        self._start(lambda folder: write_ct_alone(nodes, folder, training))

    def _start(self, write: Callable[[Path], CorrectedCase]) -> None:
        if self._process is not None:
            raise UserError(_("Another case is still being added."), _("Wait until it is finished."))
        program, environment = pythonProgram()
        self._folder = new_temporary_folder()
        try:
            self._case = write(self._folder)
        except BaseException:
            self._clear()
            raise
        process = qt.QProcess()
        process.setProcessEnvironment(workerEnvironment(environment, LIBRARY_FOLDER))
        process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        process.connect("errorOccurred(QProcess::ProcessError)", self._onProcessError)
        self._process = process
        process.start(program, ["-m", "dcaseg.worker.training_case", str(self._folder)])

    def stop(self) -> None:
        """Stop without any callback, for example when Slicer closes. The training set holds a whole case or none."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.waitForFinished(_MILLISECONDS_TO_STOP)
        self._clear()

    def _onFinished(self, exitCode: int, exitStatus: int) -> None:
        if self._process is None:
            return
        lastLine = self._process.readAllStandardOutput().data().decode("utf-8", "replace").strip().split("\n")[-1]
        lastError = self._process.readAllStandardError().data().decode("utf-8", "replace").strip().split("\n")[-1]
        try:
            answer = json.loads(lastLine)
        except ValueError:
            answer = {}
        if exitCode == 0 and isinstance(answer, dict) and "cases" in answer:
            self._end(int(answer["cases"]), None)
        elif isinstance(answer, dict) and "problem" in answer:
            self._end(0, UserError(str(answer["problem"]), str(answer.get("remedy", ""))))
        else:
            problem = _("The case could not be written ({reason}).").format(reason=lastError or exitCode)
            self._end(0, UserError(problem, _("Try again.")))

    def _onProcessError(self, error: int) -> None:
        # After all other errors the process ends, and the finished signal follows.
        if error == qt.QProcess.FailedToStart:
            self._end(0, UserError(_("Slicer's Python could not be started."), _("Check that Slicer is installed.")))

    def _end(self, cases: int, error: UserError | None) -> None:
        process, case = self._process, self._case
        self._process = None
        self._clear()
        if process is not None:
            # Deleted from the event loop, because it must not be deleted within its own signal.
            self._ended.append(process)
            self._deleteTimer.start()
        self._onEnd(None if error is not None else case, cases, error)

    def _deleteEnded(self) -> None:
        ended, self._ended = self._ended, []
        for process in ended:
            process.deleteLater()

    def _clear(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = self._case = None
