"""The client of the worker process: request a segmentation, follow its progress, cancel it."""

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

import qt
import slicer.util

from dcaseg.errors import UserError
from dcaseg.temp_paths import remove_traces
from dcaseg.worker.protocol import (
    VERSION,
    Cancel,
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
_MEMORY = "Apply again. If it happens again, memory may be short: close other programs, or segment a part of the CT."
_REPORT = "Apply again. If it happens again, report it with the log."


@dataclass(frozen=True)
class Ending:
    """Why a worker ended, for the user: what happened and what to do about it."""

    problem: str
    remedy: str


class WorkerConnection:
    """Starts a worker at once.

    ``onEvent(event)`` gets what it says but its greeting and its log; ``onLog(line)`` gets log lines, those that
    libraries print included; ``onEnd(ending)`` is called once, when the process is gone, by its own doing or not. All
    are called from Qt's event loop, never from within a method of this class. ``workerPid`` is None until the worker
    has said hello.
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
        self._endTimer = newTimer(self._tellEnd)
        self._process = qt.QProcess()
        self._process.setProcessEnvironment(workerEnvironment(environment, libraryFolder))
        self._process.connect("readyReadStandardOutput()", self._readOutput)
        self._process.connect("readyReadStandardError()", self._readErrorOutput)
        self._process.connect("finished(int,QProcess::ExitStatus)", self._onFinished)
        self._process.connect("errorOccurred(QProcess::ProcessError)", self._onProcessError)
        self._process.start(pythonExecutable, ["-m", "dcaseg.worker"])

    @property
    def isAlive(self) -> bool:
        """Whether the process runs or is about to."""
        return self._ending is None and self._process.state() != qt.QProcess.NotRunning

    def send(self, request: Request) -> None:
        """Send ``request``; it waits in the pipe for a worker that is still starting."""
        self._process.write(encode(request))

    def kill(self, ending: Ending | None = None) -> None:
        """End the worker and all it has started, now; ``onEnd`` follows, with ``ending`` where one is given."""
        if self._ending is None:
            self._ending = ending
        if self.workerPid is not None and self._process.state() != qt.QProcess.NotRunning:
            _endTree(self.workerPid)
        # What Qt started may be a launcher before the worker; without it the worker finds its input at an end.
        self._process.kill()

    def killAndWait(self, milliseconds: int) -> None:
        """As ``kill``, for when Qt's event loop ends: wait until it is gone, and call nobody any more."""
        self._isAbandoned = True
        self.kill()
        self._process.waitForFinished(milliseconds)
        self._endTimer.stop()
        self._letGo()

    def _readOutput(self) -> None:
        self._output += self._process.readAllStandardOutput().data()
        *lines, self._output = self._output.split(b"\n")
        for line in lines:
            if self._isAbandoned or self._ending is not None:
                return
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event = decode_event(line)
        except ProtocolError as error:
            self._log(str(error))
            self.kill(Ending("The segmentation process gave an answer that cannot be understood.", _REPORT))
            return
        if isinstance(event, Hello):
            self.workerPid = event.pid
            if event.version != VERSION:
                self.kill(
                    Ending(
                        f"The segmentation process speaks version {event.version} of its protocol, not {VERSION}.",
                        "Start Slicer again: the extension was updated meanwhile.",
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
        # All other errors are followed by the end of the process.
        if error == qt.QProcess.FailedToStart:
            self._end(
                Ending(
                    f"{self._program} could not be started.",
                    "Check that Slicer is completely installed and that no security program blocks it.",
                )
            )

    def _end(self, ending: Ending) -> None:
        self._ending = self._ending or ending
        if not self._isAbandoned:
            # From the event loop: whoever hears of the end lets go of the process, which must not be within a signal
            # of its own then.
            self._endTimer.start()

    def _tellEnd(self) -> None:
        if self._ending is not None and not self._isAbandoned:
            self._onEnd(self._ending)
            self._letGo()

    def _letGo(self) -> None:
        """Qt's objects hold what they were connected to, and so this object, until they are deleted."""
        self._process.deleteLater()
        self._endTimer.deleteLater()


def workerEnvironment(variables: Mapping[str, str] | None, libraryFolder: Path) -> qt.QProcessEnvironment:
    """``variables``, or those of this process, with ``libraryFolder`` first among those Python imports from."""
    all_variables = dict(os.environ if variables is None else variables)
    path = all_variables.get("PYTHONPATH")
    all_variables["PYTHONPATH"] = os.pathsep.join([str(libraryFolder), *([path] if path else [])])
    # File names are UTF-8 in requests; so they are for the worker whatever the language of the system.
    all_variables["PYTHONUTF8"] = "1"
    environment = qt.QProcessEnvironment()
    for name, value in all_variables.items():
        environment.insert(name, value)
    return environment


def _endingOf(exitCode: int, crashed: bool) -> Ending:
    if not crashed:
        return Ending(f"The segmentation process ended without an answer (exit code {exitCode}).", _REPORT)
    if os.name == "posix" and exitCode == signal.SIGKILL:
        return Ending("The segmentation process was ended from outside.", _MEMORY)
    return Ending(f"The segmentation process crashed (code {exitCode}).", _MEMORY)


def _endTree(workerPid: int) -> None:
    """End a worker and what it has started: on Linux and macOS it leads a process group."""
    if os.name == "posix":
        try:
            os.killpg(workerPid, signal.SIGKILL)
        except OSError:
            # Gone already.
            return
    else:
        subprocess.Popen(["taskkill", "/F", "/T", "/PID", str(workerPid)], creationflags=0x08000000)


_MILLISECONDS_TO_CANCEL = 600
_MILLISECONDS_TO_STOP = 2000
_DEVICES = "devices"  # the id of the only request of its kind


@dataclass
class _Run:
    request: Segment
    onProgress: Callable[[float, str], None]
    onDone: Callable[[Done], None]
    onError: Callable[[Failure], None]
    onCancelled: Callable[[], None]
    cancelAsked: bool = False

    def removeTraces(self, workerPid: int | None) -> None:
        """Remove what the worker wrote, finished or not; what another program wrote stays."""
        remove_traces(Path(self.request.out), workerPid)


class WorkerProcess:
    """Runs one segmentation at a time in a process of its own, which starts when first needed and stays warm.

    ``libraryFolder`` is the folder with the package DCASegmentationLib; ``environment`` replaces the one of this
    process. ``onLog(line)`` gets each line of the log. Nothing here waits for the worker but ``stop``, which the
    owner calls before it goes.
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
        self._lastLogLines: list[str] = []
        self._killTimer = newTimer(self._killIfStillThere, _MILLISECONDS_TO_CANCEL)

    @property
    def isRunning(self) -> bool:
        """Whether a segmentation is going on."""
        return self._run is not None

    @property
    def pid(self) -> int | None:
        """The worker's process; None if there is none, or none that has said hello."""
        return self._connection.workerPid if self._connection else None

    @property
    def lastLogLines(self) -> list[str]:
        """The last lines of the log of the worker, or of the one before if it has ended."""
        return list(self._connection.lastLogLines) if self._connection else list(self._lastLogLines)

    def start(self) -> None:
        """Start the worker, so that it is warm when it is needed; one that runs is left alone."""
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
        """Ask for ``request``; exactly one of ``onDone``, ``onError`` and ``onCancelled`` ends the run.

        Then another one can be asked for, from within these callbacks too. Only ``onDone`` leaves a folder. Raises
        RuntimeError while a run goes on.
        """
        if self._run is not None:
            raise RuntimeError("a segmentation is running already")
        self.start()
        self._run = _Run(request, onProgress, onDone, onError, onCancelled)
        assert self._connection is not None
        self._connection.send(request)

    def findDevices(self, onFound: Callable[[FoundDevices | None], None]) -> None:
        """Ask what there is to compute on; ``onFound`` is told once, after a run that goes on, None if it cannot be."""
        self.start()
        self._onDevices = onFound
        assert self._connection is not None
        self._connection.send(Devices(_DEVICES))

    def cancel(self) -> None:
        """Stop the run that goes on, if one does: its process is gone within a second, then ``onCancelled`` comes."""
        run = self._run
        if run is None or run.cancelAsked or self._connection is None:
            return
        run.cancelAsked = True
        self._connection.send(Cancel(run.request.id))
        self._killTimer.start()

    def _killIfStillThere(self) -> None:
        if self._run is not None and self._run.cancelAsked and self._connection is not None:
            self._connection.kill()

    def stop(self) -> None:
        """End the worker, without calling anyone; what a run has half written is removed."""
        run, connection = self._run, self._connection
        self._run = self._connection = self._onDevices = None
        if connection is not None:
            connection.killAndWait(_MILLISECONDS_TO_STOP)
        if run is not None:
            run.removeTraces(connection.workerPid if connection is not None else None)

    def _onLogLine(self, line: str) -> None:
        if self._onLog is not None:
            self._onLog(line)

    def _tellDevices(self, found: FoundDevices | None) -> None:
        onDevices, self._onDevices = self._onDevices, None
        if onDevices is not None:
            onDevices(found)

    def _onEvent(self, event: Event) -> None:
        run = self._run
        if getattr(event, "id", None) == _DEVICES:
            self._tellDevices(event if isinstance(event, FoundDevices) else None)
            return
        # A failure of no run is one of a request that could not be read.
        if run is None or getattr(event, "id", None) not in (run.request.id, None):
            return
        if isinstance(event, Progress):
            if not run.cancelAsked:
                run.onProgress(event.fraction, event.message)
        elif isinstance(event, Done | Failure):
            self._run = None
            if run.cancelAsked:
                # The answer and the request to cancel have crossed.
                run.removeTraces(self.pid)
                run.onCancelled()
            elif isinstance(event, Done):
                run.onDone(event)
            else:
                run.onError(event)
        elif isinstance(event, WasCancelled):
            # The worker ends now; the run is over when it is gone.
            run.cancelAsked = True

    def _onEnd(self, ending: Ending) -> None:
        run, pid = self._run, self.pid
        self._lastLogLines = self.lastLogLines
        self._run = self._connection = None
        self._tellDevices(None)
        if run is None:
            return
        run.removeTraces(pid)
        if run.cancelAsked:
            run.onCancelled()
        else:
            details = "\n".join(self._lastLogLines)
            run.onError(Failure(run.request.id, ending.problem, ending.remedy, details))


# The folder that holds the package dcaseg.
LIBRARY_FOLDER = Path(__file__).resolve().parents[1]


def newWorker(onLog: Callable[[str], None]) -> WorkerProcess:
    """A worker that starts when it is first used. Raises UserError if Slicer's Python interpreter is not found."""
    program, environment = pythonProgram()
    return WorkerProcess(program, LIBRARY_FOLDER, environment, onLog)


def pythonProgram() -> tuple[str, dict[str, str] | None]:
    """Slicer's Python interpreter and the environment for it, None for that of this process. Raises UserError."""
    program = shutil.which("PythonSlicer")
    if program is not None:
        # PythonSlicer sets all it needs; what Slicer's launcher set for Slicer itself would be in its way.
        return program, dict(slicer.util.startupEnvironment())
    # Without Slicer's launcher this process is Python itself, or names the one it embeds.
    if "python" in Path(sys.executable or "").name.lower():
        return sys.executable, None
    raise UserError(
        "Slicer's Python interpreter (PythonSlicer) was not found.",
        "Start Slicer by its launcher, not by the program SlicerApp-real.",
    )
