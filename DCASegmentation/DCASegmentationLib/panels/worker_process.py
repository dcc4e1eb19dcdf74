"""The worker as the panel sees it: ask for a segmentation, hear how it goes, cancel it; the rest happens by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..partials import remove_traces
from ..worker_protocol import Cancel, Devices, Done, Event, Failure, FoundDevices, Progress, Segment, WasCancelled
from .steps import newTimer
from .worker_connection import Ending, WorkerConnection

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
