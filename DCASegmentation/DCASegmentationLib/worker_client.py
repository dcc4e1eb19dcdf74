"""The client of the worker process: requests a segmentation, follows its progress, and cancels it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qt
import slicer.util

from dcaseg.errors import UserError
from dcaseg.temp_paths import remove_traces
from dcaseg.worker.protocol import (
    VERSION,
    Cancel,
    Correct,
    Corrected,
    Devices,
    Done,
    Event,
    Failure,
    FoundDevices,
    Hello,
    Log,
    Progress,
    ProtocolError,
    Request,
    Segment,
    WasCancelled,
    decode_event,
    encode,
)
from DCASegmentationLib.event_loop import newTimer

_LOG_LINES = 50
_MEMORY = (
    "Press Apply again. If the error returns, the computer may be low on memory: close other programs, or segment only "
    "a part of the CT."
)
_REPORT = "Press Apply again. If the error returns, report it together with the log."
_CLICK_AGAIN = "Click again. If the error returns, report it together with the log."


@dataclass(frozen=True)
class Ending:
    """Why a worker ended, in words for the user: what happened and what to do about it."""

    problem: str
    remedy: str


class WorkerConnection:
    """One worker process, started on creation.

    ``onEvent(event)`` receives the worker's events except its greeting and its log. ``onLog(line)`` receives log lines,
    including what libraries print. ``onEnd(ending)`` is called once when the process has ended, for whatever reason.
    All are called from Qt's event loop, never from within a method of this class. ``workerPid`` is the worker's process
    ID, None until its greeting has arrived.
    """

    def __init__(
        self,
        pythonExecutable: str,
        libraryFolder: Path,
        environment: Mapping[str, str] | None,
        onEvent: Callable[[Event], None],
        onLog: Callable[[str], None],
        onEnd: Callable[[Ending], None],
    ) -> None:
        self.lastLogLines: deque[str] = deque(maxlen=_LOG_LINES)
        self._onEvent, self._onLog, self._onEnd = onEvent, onLog, onEnd
        self._program = pythonExecutable
        self.workerPid: int | None = None
        self._output = b""
        self._errorOutput = b""
        self._ending: Ending | None = None
        self._isAbandoned = False
        self._endTimer = newTimer(self._reportEnd)
        self._process = qt.QProcess()
        self._process.setProcessEnvironment(workerEnvironment(environment, libraryFolder))
        self._process.connect("readyReadStandardOutput()", self._readOutput)
        self._process.connect("readyReadStandardError()", self._readErrorOutput)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._onProcessError)
        self._process.start(pythonExecutable, ["-m", "dcaseg.worker"])

    @property
    def isAlive(self) -> bool:
        """Whether the process is running or starting."""
        return self._ending is None and self._process.state() != qt.QProcess.NotRunning

    def send(self, request: Request) -> None:
        """Send ``request``. It waits in the pipe if the worker is still starting."""
        self._process.write(encode(request))

    def kill(self, ending: Ending | None = None) -> None:
        """Kill the worker and all its child processes. ``onEnd`` is called later, with ``ending`` if one is given."""
        if self._ending is None:
            self._ending = ending
        if self.workerPid is not None and self._process.state() != qt.QProcess.NotRunning:
            _endTree(self.workerPid)
        # Qt may have started a launcher rather than the worker itself; when it dies, the worker's input is closed.
        self._process.kill()

    def killAndWait(self, milliseconds: int) -> None:
        """Kill the worker, wait until it is gone, and make no more callbacks; use it when Qt's event loop is ending."""
        self._isAbandoned = True
        self.kill()
        self._process.waitForFinished(milliseconds)
        self._endTimer.stop()
        self._release()

    def _readOutput(self) -> None:
        self._output += self._process.readAllStandardOutput().data()
        *lines, self._output = self._output.split(b"\n")
        for line in lines:
            if self._isAbandoned or self._ending is not None:
                return
            self._handleLine(line)

    def _handleLine(self, line: bytes) -> None:
        try:
            event = decode_event(line)
        except ProtocolError as error:
            self._log(str(error))
            self.kill(Ending("The segmentation process sent an invalid answer.", _REPORT))
            return
        if isinstance(event, Hello):
            self.workerPid = event.pid
            if event.version != VERSION:
                self.kill(
                    Ending(
                        f"The segmentation process uses protocol version {event.version} instead of {VERSION}.",
                        "Restart Slicer: the extension was updated while Slicer was running.",
                    )
                )
        elif isinstance(event, Log):
            self._log(event.message)
        else:
            self._onEvent(event)

    def _readErrorOutput(self) -> None:
        self._errorOutput += self._process.readAllStandardError().data()
        *lines, self._errorOutput = self._errorOutput.split(b"\n")
        for line in lines:
            self._log(line.decode("utf-8", "replace").rstrip())

    def _log(self, line: str) -> None:
        self.lastLogLines.append(line)
        if not self._isAbandoned:
            self._onLog(line)

    def _onFinished(self, exitCode: int, exitStatus: int) -> None:
        self._readErrorOutput()
        self._readOutput()
        if self._errorOutput:
            self._log(self._errorOutput.decode("utf-8", "replace"))
        crashed = exitStatus == qt.QProcess.CrashExit
        self._end(_endingOf(exitCode, crashed))

    def _onProcessError(self, error: int) -> None:
        # After all other errors the process ends, and the finished signal follows.
        if error == qt.QProcess.FailedToStart:
            self._end(
                Ending(
                    f"{self._program} could not be started.",
                    "Check that Slicer is installed completely and that no security software blocks it.",
                )
            )

    def _end(self, ending: Ending) -> None:
        self._ending = self._ending or ending
        if not self._isAbandoned:
            # From the event loop, because the receiver may delete the process, which must not happen within its own
            # signal.
            self._endTimer.start()

    def _reportEnd(self) -> None:
        if self._ending is not None and not self._isAbandoned:
            self._onEnd(self._ending)
            self._release()

    def _release(self) -> None:
        """Delete the Qt objects, which keep references to connected slots, and so to this object."""
        self._process.deleteLater()
        self._endTimer.deleteLater()


def workerEnvironment(variables: Mapping[str, str] | None, libraryFolder: Path) -> qt.QProcessEnvironment:
    """The environment of a worker: ``variables``, or those of this process, with ``libraryFolder`` in PYTHONPATH."""
    allVariables = dict(os.environ if variables is None else variables)
    path = allVariables.get("PYTHONPATH")
    allVariables["PYTHONPATH"] = os.pathsep.join([str(libraryFolder), *([path] if path else [])])
    # Requests contain file names in UTF-8, so the worker must use UTF-8 whatever the system's language is.
    allVariables["PYTHONUTF8"] = "1"
    environment = qt.QProcessEnvironment()
    for name, value in allVariables.items():
        environment.insert(name, value)
    return environment


def _endingOf(exitCode: int, crashed: bool) -> Ending:
    if not crashed:
        return Ending(f"The segmentation process ended without an answer (exit code {exitCode}).", _REPORT)
    if os.name == "posix" and exitCode == signal.SIGKILL:
        return Ending("The segmentation process was killed by the system or another program.", _MEMORY)
    return Ending(f"The segmentation process crashed (code {exitCode}).", _MEMORY)


def _endTree(workerPid: int) -> None:
    """Kill a worker and its child processes; on Linux and macOS the worker leads a process group."""
    if os.name == "posix":
        try:
            os.killpg(workerPid, signal.SIGKILL)
        except OSError:
            # The process has ended already.
            return
    else:
        subprocess.Popen(["taskkill", "/F", "/T", "/PID", str(workerPid)], creationflags=0x08000000)


_MILLISECONDS_TO_CANCEL = 600
_MILLISECONDS_TO_STOP = 2000
_DEVICES = "devices"  # the id of every request for devices
_CORRECTION = "correction-"  # followed by a number, the id of a request for a correction


@dataclass
class _Run:
    request: Segment
    onProgress: Callable[[float, str], None]
    onDone: Callable[[Done], None]
    onError: Callable[[Failure], None]
    onCancelled: Callable[[], None]
    cancelRequested: bool = False

    def removeTraces(self, workerPid: int | None) -> None:
        """Remove everything that the worker wrote; files of other programs stay."""
        remove_traces(Path(self.request.out), workerPid)


class WorkerProcess:
    """Runs one segmentation at a time in a separate process, which starts when first needed and stays warm.

    ``libraryFolder`` is the folder that contains the package ``dcaseg``; ``environment`` replaces the environment of
    this process. ``onLog(line)`` receives each line of the log. No method waits for the worker except ``stop``, which
    the owner must call before it is destroyed.
    """

    def __init__(
        self,
        pythonExecutable: str,
        libraryFolder: Path,
        environment: Mapping[str, str] | None = None,
        onLog: Callable[[str], None] | None = None,
    ) -> None:
        self._startArguments = (pythonExecutable, libraryFolder, environment)
        self._onLog = onLog
        self._connection: WorkerConnection | None = None
        self._run: _Run | None = None
        self._onDevices: Callable[[FoundDevices | None], None] | None = None
        self._corrections: dict[str, Callable[[Corrected | Failure], None]] = {}
        self._correctionCount = 0
        self._lastLogLines: list[str] = []
        self._killTimer = newTimer(self._killIfStillThere, _MILLISECONDS_TO_CANCEL)

    @property
    def isRunning(self) -> bool:
        """Whether a segmentation is in progress."""
        return self._run is not None

    @property
    def pid(self) -> int | None:
        """The process ID of the worker; None if there is no worker or its greeting has not arrived."""
        return self._connection.workerPid if self._connection else None

    @property
    def lastLogLines(self) -> list[str]:
        """The last log lines of the current worker or, if it has ended, of the previous one."""
        return list(self._connection.lastLogLines) if self._connection else list(self._lastLogLines)

    def start(self) -> None:
        """Start the worker, unless it is running already, so that it is warm when it is needed."""
        if self._connection is None or not self._connection.isAlive:
            self._connection = self._newConnection()

    def _newConnection(self) -> WorkerConnection:
        connection: WorkerConnection

        def onEvent(event: Event) -> None:
            if connection is self._connection:
                self._onEvent(event)

        def onEnd(ending: Ending) -> None:
            if connection is self._connection:
                self._onEnd(ending)

        connection = WorkerConnection(*self._startArguments, onEvent, self._onLogLine, onEnd)
        return connection

    def segment(
        self,
        request: Segment,
        onProgress: Callable[[float, str], None],
        onDone: Callable[[Done], None],
        onError: Callable[[Failure], None],
        onCancelled: Callable[[], None],
    ) -> None:
        """Send ``request``; exactly one of ``onDone``, ``onError`` and ``onCancelled`` is called at the end.

        After that, and also from within these callbacks, another request can be sent. Only ``onDone`` leaves a result
        folder. Raises RuntimeError while a run is in progress.
        """
        if self._run is not None:
            raise RuntimeError("a segmentation is running already")
        self.start()
        self._run = _Run(request, onProgress, onDone, onError, onCancelled)
        assert self._connection is not None
        self._connection.send(request)

    def findDevices(self, onFound: Callable[[FoundDevices | None], None]) -> None:
        """Ask for the available devices. ``onFound`` is called once, after the current run; with None on failure."""
        self.start()
        self._onDevices = onFound
        assert self._connection is not None
        self._connection.send(Devices(_DEVICES))

    def correct(self, action: Mapping[str, Any], onAnswer: Callable[[Corrected | Failure], None]) -> None:
        """Send a request of ``interaction.session.handle``. ``onAnswer`` is called once, after the current run.

        Answers arrive in the order of the requests. If the worker ends, all waiting requests fail.
        """
        self.start()
        self._correctionCount += 1
        requestId = f"{_CORRECTION}{self._correctionCount}"
        self._corrections[requestId] = onAnswer
        assert self._connection is not None
        self._connection.send(Correct(requestId, action))

    def cancel(self) -> None:
        """Cancel the current run, if there is one: its process ends within a second, then ``onCancelled`` is called."""
        run = self._run
        if run is None or run.cancelRequested or self._connection is None:
            return
        run.cancelRequested = True
        self._connection.send(Cancel(run.request.id))
        self._killTimer.start()

    def _killIfStillThere(self) -> None:
        if self._run is not None and self._run.cancelRequested and self._connection is not None:
            self._connection.kill()

    def stop(self) -> None:
        """Stop the worker without any callback, and remove what its run has written so far."""
        run, connection = self._run, self._connection
        self._run = self._connection = self._onDevices = None
        self._corrections.clear()
        if connection is not None:
            connection.killAndWait(_MILLISECONDS_TO_STOP)
        if run is not None:
            run.removeTraces(connection.workerPid if connection is not None else None)

    def _onLogLine(self, line: str) -> None:
        if self._onLog is not None:
            self._onLog(line)

    def _reportDevices(self, found: FoundDevices | None) -> None:
        onDevices, self._onDevices = self._onDevices, None
        if onDevices is not None:
            onDevices(found)

    def _onEvent(self, event: Event) -> None:
        run = self._run
        if getattr(event, "id", None) == _DEVICES:
            self._reportDevices(event if isinstance(event, FoundDevices) else None)
            return
        if isinstance(event, Corrected | Failure) and event.id in self._corrections:
            self._corrections.pop(event.id)(event)
            return
        # A failure without an id belongs to a request that the worker could not read.
        if run is None or getattr(event, "id", None) not in (run.request.id, None):
            return
        if isinstance(event, Progress):
            if not run.cancelRequested:
                run.onProgress(event.fraction, event.message)
        elif isinstance(event, Done | Failure):
            self._run = None
            if run.cancelRequested:
                # The answer was sent before the worker received the request to cancel.
                run.removeTraces(self.pid)
                run.onCancelled()
            elif isinstance(event, Done):
                run.onDone(event)
            else:
                run.onError(event)
        elif isinstance(event, WasCancelled):
            # The worker is ending; the run is over once its process is gone.
            run.cancelRequested = True

    def _onEnd(self, ending: Ending) -> None:
        run, pid = self._run, self.pid
        self._lastLogLines = self.lastLogLines
        self._run = self._connection = None
        self._reportDevices(None)
        waiting, self._corrections = self._corrections, {}
        for requestId, onAnswer in waiting.items():
            onAnswer(Failure(requestId, ending.problem, _CLICK_AGAIN))
        if run is None:
            return
        run.removeTraces(pid)
        if run.cancelRequested:
            run.onCancelled()
        else:
            details = "\n".join(self._lastLogLines)
            run.onError(Failure(run.request.id, ending.problem, ending.remedy, details))


# The folder that contains the package dcaseg.
LIBRARY_FOLDER = Path(__file__).resolve().parents[1]


def newWorker(onLog: Callable[[str], None]) -> WorkerProcess:
    """Create a worker that starts when first used. Raises UserError if Slicer's Python interpreter is not found."""
    program, environment = pythonProgram()
    return WorkerProcess(program, LIBRARY_FOLDER, environment, onLog)


def pythonProgram() -> tuple[str, dict[str, str] | None]:
    """Slicer's Python interpreter and its environment, where None means the environment of this process.

    Raises UserError if there is no such interpreter.
    """
    program = shutil.which("PythonSlicer")
    if program is not None:
        # PythonSlicer sets all it needs; the variables that Slicer's launcher set for Slicer itself would interfere.
        return program, dict(slicer.util.startupEnvironment())
    # Without Slicer's launcher, this process is Python itself or reports the interpreter it embeds.
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable, None
    raise UserError(
        "Slicer's Python interpreter (PythonSlicer) was not found.",
        "Start Slicer with its launcher, not with the program SlicerApp-real.",
    )
