"""One worker process, from its start to its end: lines in and out, never waiting for it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import qt

from ..worker_protocol import VERSION, Event, Hello, Log, ProtocolError, Request, decode_event, encode
from .steps import newTimer

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
        self._process.start(pythonExecutable, ["-m", "DCASegmentationLib.worker"])

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
