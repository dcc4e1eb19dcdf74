"""The client of the worker process: sends requests, follows their progress, and cancels them.

The log of the worker, including what libraries print, goes to Python's ``logging`` under the name ``LOGGER``, and so to
Slicer's log. The panel shows it with a handler of its own.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import qt
import slicer.util

from dcaseg.errors import UserError
from dcaseg.worker.protocol import (
    VERSION,
    Answer,
    Cancel,
    CaseAdded,
    Correct,
    Downloaded,
    Event,
    Failure,
    Hello,
    Log,
    Progress,
    ProtocolError,
    Quit,
    Request,
    WasCancelled,
    Work,
    decode_event,
    encode,
    remove_traces,
)
from DCASegmentationLib.event_loop import createTimer

LOGGER = "DCASegmentation.worker"
_log = logging.getLogger(LOGGER)
# Slicer's handlers know these levels only.
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING}

_LOG_LINES = 50
_IS_WINDOWS = sys.platform == "win32"
# What a worker gets to end on Windows after it was killed, before its launcher is killed too.
_MILLISECONDS_TO_DIE = 3000
_CLICK_AGAIN = "Click again. If the error persists, report it together with the log."


@dataclass(frozen=True)
class Purpose:
    """What a worker is for, in words for its error messages: the name of the process, and how to try again.

    A worker that ``isKeptWarm`` waits for further requests; any other exits when it has answered.
    """

    process: str
    again: str
    isKeptWarm: bool = False


SEGMENTATION = Purpose("The segmentation process", "Press Apply again.", isKeptWarm=True)


@dataclass(frozen=True)
class ExitReason:
    """Why a worker ended, in words for the user: what happened and what to do about it."""

    problem: str
    remedy: str


class WorkerConnection:
    """One worker process, started on creation.

    ``onEvent(event)`` receives the worker's events except its greeting and its log. ``onEnd(ending)`` is called once
    when the process has ended, for whatever reason. Both are called from Qt's event loop, never from within a method of
    this class. ``workerPid`` is the worker's process ID, None until its greeting has arrived.
    """

    def __init__(
        self,
        pythonExecutable: str,
        libraryFolder: Path,
        environment: Mapping[str, str] | None,
        purpose: Purpose,
        onEvent: Callable[[Event], None],
        onEnd: Callable[[ExitReason], None],
    ) -> None:
        self.lastLogLines: deque[str] = deque(maxlen=_LOG_LINES)
        self._onEvent, self._onEnd = onEvent, onEnd
        self._program, self._purpose = pythonExecutable, purpose
        self.workerPid: int | None = None
        self._output = b""
        self._errorOutput = b""
        self._ending: ExitReason | None = None
        self._isAbandoned = self._isKilled = False
        self._endTimer = createTimer(self._reportEnd)
        self._launcherTimer = createTimer(self._killLauncher, _MILLISECONDS_TO_DIE)
        self._process = qt.QProcess()
        self._process.setProcessEnvironment(createWorkerEnvironment(environment, libraryFolder))
        self._process.connect("readyReadStandardOutput()", self._readOutput)
        self._process.connect("readyReadStandardError()", self._readErrorOutput)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._onProcessError)
        self._process.start(pythonExecutable, ["-m", "dcaseg.worker"])

    @property
    def isAlive(self) -> bool:
        """Whether the process is running or starting, and has not been killed."""
        return self._ending is None and not self._isKilled and self._process.state() != qt.QProcess.NotRunning

    def send(self, request: Request) -> None:
        """Send ``request``. It waits in the pipe if the worker is still starting."""
        self._process.write(encode(request))

    def kill(self, ending: ExitReason | None = None) -> None:
        """Kill the worker and all its child processes. ``onEnd`` is called later, with ``ending`` if one is given."""
        if self._ending is None:
            self._ending = ending
        self._isKilled = True
        if self.workerPid is not None and self._process.state() != qt.QProcess.NotRunning:
            _endTree(self.workerPid)
            if _IS_WINDOWS:
                # Killing takes a moment there. The launcher, which Qt started, ends after the worker; if it were killed
                # now, the worker would seem to have ended while it still has files open, which cannot be deleted.
                self._launcherTimer.start()
                return
        self._killLauncher()

    def _killLauncher(self) -> None:
        # Qt may have started a launcher rather than the worker itself; when it dies, the worker's input is closed.
        self._process.kill()

    def killAndWait(self, milliseconds: int) -> None:
        """Kill the worker, wait until it is gone, and make no more callbacks; use it when Qt's event loop is ending."""
        self._isAbandoned = True
        self.kill()
        if not self._process.waitForFinished(milliseconds):
            self._killLauncher()
        self._endTimer.stop()
        self._launcherTimer.stop()
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
            self.kill(ExitReason(f"{self._purpose.process} sent an invalid answer.", _report(self._purpose)))
            return
        if isinstance(event, Hello):
            self.workerPid = event.pid
            if event.version != VERSION:
                self.kill(
                    ExitReason(
                        f"{self._purpose.process} uses protocol version {event.version} instead of {VERSION}.",
                        "Restart Slicer: the extension was updated while Slicer was running.",
                    )
                )
        elif isinstance(event, Log):
            self._log(event.message, _LEVELS.get(event.level, logging.ERROR))
        else:
            self._onEvent(event)

    def _readErrorOutput(self) -> None:
        self._errorOutput += self._process.readAllStandardError().data()
        *lines, self._errorOutput = self._errorOutput.split(b"\n")
        for line in lines:
            self._log(line.decode("utf-8", "replace").rstrip())

    def _log(self, line: str, level: int = logging.INFO) -> None:
        self.lastLogLines.append(line)
        if not self._isAbandoned:
            _log.log(level, "%s", line)

    def _onFinished(self, exitCode: int, exitStatus: int) -> None:
        self._readErrorOutput()
        self._readOutput()
        if self._errorOutput:
            self._log(self._errorOutput.decode("utf-8", "replace"))
        crashed = exitStatus == qt.QProcess.CrashExit
        self._end(_createEnding(self._purpose, exitCode, crashed, self.lastLogLines))

    def _onProcessError(self, error: int) -> None:
        # After all other errors the process ends, and the finished signal follows.
        if error == qt.QProcess.FailedToStart:
            self._end(
                ExitReason(
                    f"{self._program} could not be started.",
                    "Check that Slicer is installed completely and that no security software blocks it.",
                )
            )

    def _end(self, ending: ExitReason) -> None:
        self._ending = self._ending or ending
        self._launcherTimer.stop()
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
        self._launcherTimer.deleteLater()


def createWorkerEnvironment(variables: Mapping[str, str] | None, libraryFolder: Path) -> qt.QProcessEnvironment:
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


def _report(purpose: Purpose) -> str:
    return f"{purpose.again} If the error persists, report it together with the log."


# Slicer's launcher, which runs Slicer's Python, prints this if Python crashed or was killed, and ends with exit code 1.
_OF_LAUNCHER = "exit abnormally"


def _createEnding(purpose: Purpose, exitCode: int, crashed: bool, lastLogLines: Iterable[str]) -> ExitReason:
    if not crashed and exitCode == 0:
        return ExitReason(f"{purpose.process} ended without an answer (exit code 0).", _report(purpose))
    remedy = f"{purpose.again} If the error persists, the computer may be low on memory: close other programs"
    remedy += ", or segment only a part of the CT." if purpose is SEGMENTATION else "."
    if crashed and not _IS_WINDOWS and exitCode == signal.SIGKILL:
        return ExitReason(f"{purpose.process} was killed by the system or another program.", remedy)
    if crashed:
        return ExitReason(f"{purpose.process} crashed (code {exitCode}).", remedy)
    if any(_OF_LAUNCHER in line for line in lastLogLines):
        return ExitReason(f"{purpose.process} crashed, or was killed by the system or another program.", remedy)
    remedy += " If that does not help, report the error together with the log."
    return ExitReason(f"{purpose.process} ended without an answer (exit code {exitCode}).", remedy)


def _endTree(workerPid: int) -> None:
    """Kill a worker and its child processes; on Linux and macOS the worker leads a process group."""
    if sys.platform == "win32":
        command = ["taskkill", "/F", "/T", "/PID", str(workerPid)]
        subprocess.Popen(command, creationflags=subprocess.CREATE_NO_WINDOW)
        return
    try:
        os.killpg(workerPid, signal.SIGKILL)
    except OSError:
        # The process has ended already.
        return


_MILLISECONDS_TO_CANCEL = 600
_MILLISECONDS_TO_STOP = 2000


@dataclass
class _Run:
    connection: WorkerConnection
    request: Work
    onAnswer: Callable[[Answer], None]
    onProgress: Callable[[float, str], None] | None
    cancelRequested: bool = False
    # Held back until the worker has exited.
    answer: Answer | None = None


class WorkerProcess:
    """Sends requests to a separate process, which starts when it is first needed.

    A worker carries out one request at a time (see ``worker.protocol``). A download must neither wait for a
    segmentation nor end with it, so it has its own worker. ``libraryFolder`` is the folder that contains the package
    ``dcaseg``; ``environment`` replaces the environment of this process. No method waits for the worker except
    ``stop``, which the owner must call before it is destroyed.
    """

    def __init__(
        self,
        pythonExecutable: str,
        libraryFolder: Path,
        environment: Mapping[str, str] | None = None,
        purpose: Purpose = SEGMENTATION,
    ) -> None:
        self._startArguments = (pythonExecutable, libraryFolder, environment, purpose)
        self._isKeptWarm = purpose.isKeptWarm
        self._connection: WorkerConnection | None = None
        self._runs: dict[str, _Run] = {}
        self._lastLogLines: list[str] = []
        self._killTimer = createTimer(self._killIfStillThere, _MILLISECONDS_TO_CANCEL)
        _log.setLevel(logging.INFO)

    @property
    def isRunning(self) -> bool:
        """Whether a request has not been answered yet."""
        return bool(self._runs)

    @property
    def pid(self) -> int | None:
        """The process ID of the worker; None if there is no worker or its greeting has not arrived."""
        return self._connection.workerPid if self._connection else None

    @property
    def lastLogLines(self) -> list[str]:
        """The last log lines of the current worker or, if it has ended, of the previous one."""
        return list(self._connection.lastLogLines) if self._connection else list(self._lastLogLines)

    def start(self) -> None:
        """Start the worker, unless it is running already."""
        if self._connection is None or not self._connection.isAlive:
            self._connection = self._createConnection()

    def _createConnection(self) -> WorkerConnection:
        connection: WorkerConnection

        def onEvent(event: Event) -> None:
            self._onEvent(connection, event)

        def onEnd(ending: ExitReason) -> None:
            self._onEnd(connection, ending)

        connection = WorkerConnection(*self._startArguments, onEvent, onEnd)
        return connection

    def send(
        self,
        request: Work,
        onAnswer: Callable[[Answer], None],
        onProgress: Callable[[float, str], None] | None = None,
    ) -> None:
        """Send ``request``. ``onProgress(fraction, message)`` is called meanwhile, and ``onAnswer(answer)`` once.

        The answer is the event that belongs to the request, Failure (also if the worker ends unexpectedly), or
        WasCancelled. After Failure and WasCancelled, nothing is left of what the worker wrote, except the part of a
        download that the next one resumes. ``onAnswer`` may send another request. Raises RuntimeError if a request
        with this ``id`` has not been answered yet.
        """
        if request.id in self._runs:
            raise RuntimeError(f"the request {request.id} has not been answered yet")
        self.start()
        assert self._connection is not None
        self._runs[request.id] = _Run(self._connection, request, onAnswer, onProgress)
        self._connection.send(request)

    def cancel(self, requestId: str) -> None:
        """Cancel a request, if it is not answered yet; within a second the process ends and the answer follows."""
        run = self._runs.get(requestId)
        if run is None or run.cancelRequested:
            return
        run.cancelRequested = True
        run.connection.send(Cancel(requestId))
        self._killTimer.start()

    def _killIfStillThere(self) -> None:
        for run in self._runs.values():
            if run.cancelRequested or run.answer is not None:
                run.connection.kill()

    def stop(self) -> None:
        """Stop the worker without any callback, and remove what it has written so far for unanswered requests."""
        runs, connection = list(self._runs.values()), self._connection
        self._runs.clear()
        self._connection = None
        if connection is not None:
            connection.killAndWait(_MILLISECONDS_TO_STOP)
        for run in runs:
            if run.answer is None:
                remove_traces(run.request, run.connection.workerPid)

    def _onEvent(self, connection: WorkerConnection, event: Event) -> None:
        requestId = getattr(event, "id", None)
        # A failure without an id belongs to a request that the worker could not read: most likely the latest one.
        run = self._runs.get(next(reversed(self._runs), "") if requestId is None else requestId)
        if run is None or run.connection is not connection or run.answer is not None:
            return
        if isinstance(event, Progress):
            if not run.cancelRequested and run.onProgress is not None:
                run.onProgress(event.fraction, event.message)
        elif isinstance(event, WasCancelled):
            # The worker is ending; the run is over once its process is gone.
            run.cancelRequested = True
        elif isinstance(event, Answer):
            if self._isKeptWarm:
                del self._runs[run.request.id]
                self._answer(run, event)
            else:
                run.answer = event
                connection.send(Quit())
                self._killTimer.start()

    def _onEnd(self, connection: WorkerConnection, ending: ExitReason) -> None:
        # A worker that has ended may have been replaced by another one, which has requests of its own.
        if connection is self._connection:
            self._lastLogLines = self.lastLogLines
            self._connection = None
        runs = [run for run in self._runs.values() if run.connection is connection]
        for run in runs:
            del self._runs[run.request.id]
        for run in runs:
            answer = run.answer
            if answer is None:
                remove_traces(run.request, connection.workerPid)
                details = "\n".join(connection.lastLogLines)
                remedy = _CLICK_AGAIN if isinstance(run.request, Correct) else ending.remedy
                answer = Failure(run.request.id, ending.problem, remedy, details)
            self._answer(run, answer)

    def _answer(self, run: _Run, answer: Answer) -> None:
        # The answer may have been sent before the worker received the request to cancel. A result is then removed, but
        # a model or a case that was added stays, and the user is informed.
        if run.cancelRequested and not isinstance(answer, Downloaded | CaseAdded):
            remove_traces(run.request, run.connection.workerPid)
            answer = WasCancelled(run.request.id)
        run.onAnswer(answer)


# The folder that contains the package dcaseg.
LIBRARY_FOLDER = Path(__file__).resolve().parents[1]


def createWorker(purpose: Purpose = SEGMENTATION) -> WorkerProcess:
    """Create a worker that starts when first used. Raises UserError if Slicer's Python interpreter is not found."""
    program, environment = findPythonInterpreter()
    return WorkerProcess(program, LIBRARY_FOLDER, environment, purpose)


def findPythonInterpreter() -> tuple[str, dict[str, str] | None]:
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
