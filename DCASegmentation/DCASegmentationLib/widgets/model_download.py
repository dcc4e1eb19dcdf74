"""Download of a model in a separate process, which can be stopped at any time and resumed later."""

from __future__ import annotations

from collections.abc import Callable

import qt
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.models.download import Source
from dcaseg.worker.protocol import Failure, Progress, ProtocolError, decode_event
from DCASegmentationLib.event_loop import newTimer
from DCASegmentationLib.worker_client import LIBRARY_FOLDER, pythonProgram, workerEnvironment


class ModelDownload:
    """One download, started on creation.

    Calls ``onProgress(fraction, message)`` during the download and ``onEnd(problem)`` at its end; ``problem`` is None
    if the model was added. Raises UserError for an invalid address, before the process is started.
    """

    def __init__(
        self,
        address: str,
        onProgress: Callable[[float, str], None],
        onEnd: Callable[[UserError | None], None],
    ) -> None:
        Source.parse(address)
        self._onProgress, self._onEnd = onProgress, onEnd
        self._output = b""
        self._problem: UserError | None = None
        self._isOver = False
        self._endTimer = newTimer(self._reportEnd)
        program, environment = pythonProgram()
        self._process = qt.QProcess()
        self._process.setProcessEnvironment(workerEnvironment(environment, LIBRARY_FOLDER))
        self._process.connect("readyReadStandardOutput()", self._read)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._onProcessError)
        self._process.start(program, ["-m", "dcaseg.worker.model_download", address.strip()])

    def cancel(self) -> None:
        """Stop the download and call ``onEnd``. The part downloaded so far is kept and resumed next time."""
        self._problem = UserError(_("The download was stopped."), _("Start it again to resume where it stopped."))
        self._process.kill()

    def stop(self) -> None:
        """Stop without any callback, for example when Slicer closes."""
        self._isOver = True
        self._process.kill()
        self._process.waitForFinished(2000)

    def _read(self) -> None:
        self._output += self._process.readAllStandardOutput().data()
        *lines, self._output = self._output.split(b"\n")
        for line in lines:
            try:
                event = decode_event(line)
            except ProtocolError:
                # A line that some library printed is not part of the protocol.
                continue
            if isinstance(event, Progress) and not self._isOver:
                self._onProgress(event.fraction, event.message)
            elif isinstance(event, Failure):
                self._problem = self._problem or UserError(event.problem, event.remedy)

    def _onFinished(self, exitCode: int, exitStatus: int) -> None:
        self._read()
        if exitCode != 0 or exitStatus == qt.QProcess.CrashExit:
            details = self._process.readAllStandardError().data().decode("utf-8", "replace").strip()
            last = details.splitlines()[-1] if details else _("no reason was given")
            self._end(self._problem or UserError(_("The download failed: {reason}.").format(reason=last)))
        else:
            self._end(None)

    def _onProcessError(self, error: int) -> None:
        if error == qt.QProcess.FailedToStart:
            self._end(UserError(_("Slicer's Python interpreter could not be started.")))

    def _end(self, problem: UserError | None) -> None:
        if self._isOver:
            return
        self._isOver = True
        self._problem = problem
        # From the event loop, because the receiver may delete the process, which must not happen within its own signal.
        self._endTimer.start()

    def _reportEnd(self) -> None:
        onEnd, problem = self._onEnd, self._problem
        # Qt objects keep references to connected slots, and so to this object, until they are deleted.
        self._process.deleteLater()
        self._endTimer.deleteLater()
        onEnd(problem)
