"""The main loop of the worker: one thread reads requests, another runs them, and no unfinished results are left.

torch and SimpleITK are imported only with the first request that needs them, after ``Channel`` has taken over the
standard streams: a library that prints on import cannot disturb the protocol, and a library that is missing is reported
as an error.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NoReturn, Protocol

from .. import __version__
from ..errors import Cancelled, UserError, is_out_of_memory
from ..inference.process_settings import importing
from ..types import ProgressCallback
from .protocol import (
    VERSION,
    AddCorrectedCase,
    AddUnlabeledCT,
    Answer,
    Cancel,
    Correct,
    Devices,
    Download,
    Event,
    Failure,
    Hello,
    Log,
    Progress,
    ProtocolError,
    Request,
    Segment,
    WasCancelled,
    Work,
    decode_request,
    encode,
    remove_traces,
)


class Handler(Protocol):
    """Carries out requests. It is created with the first one and kept, for example with its model loaded."""

    def answer(self, request: Any, progress: ProgressCallback, cancelled: Callable[[], bool]) -> Answer:
        """Carry out ``request`` and return its answer; an error that it raises is reported to the caller.

        ``progress`` is called with the fraction done (0 to 1) and the current step; it raises Cancelled if the request
        was canceled. ``cancelled`` says so for work between two reports.
        """
        ...


HANDLERS: Mapping[type[Work], str] = {
    Segment: "segment_handler.SegmentHandler",
    Devices: "segment_handler.SegmentHandler",
    Download: "handlers.DownloadHandler",
    AddCorrectedCase: "handlers.TrainingCaseHandler",
    AddUnlabeledCT: "handlers.TrainingCaseHandler",
    Correct: "handlers.CorrectionHandler",
}
"""The handler of each request: a module of this package and a class in it, imported with the first such request."""

# Requests that wait for the current one and are answered in their order. Others are refused during it.
_WAITING = (Devices, Correct)

_log = logging.getLogger(__name__)


class Channel:
    """Receives requests from the caller and sends events to it. Nothing else in this process uses the two streams.

    On creation, it takes over the standard streams: later output of Python or C code goes to standard error, and
    reading standard input returns its end. Child processes do not inherit the private copies, so none of them can keep
    the streams open after this process ends.
    """

    def __init__(self) -> None:
        self._requests: BinaryIO = os.fdopen(os.dup(0), "rb")
        self._events = os.dup(1)
        self._lock = threading.Lock()
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        sys.stdout = sys.stderr

    def read_lines(self) -> Iterator[bytes]:
        """Yield the lines that arrive, until the caller closes its end."""
        yield from self._requests

    def send(self, event: Event) -> None:
        """Write ``event``. A caller that no longer reads is no error here: the input will end, too."""
        line = encode(event)
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._events, line) :]
            except OSError:
                return


class _LogEventHandler(logging.Handler):
    """Sends the records of Python's ``logging`` as events."""

    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._channel.send(Log(self.format(record), record.levelname.lower()))
        # For example, arguments that do not fit the message. logging reports it on standard error.
        except Exception:
            self.handleError(record)


def _forward_logging(channel: Channel) -> None:
    """Send what this program (from level info) and its libraries (from level warning) log as events."""
    logging.getLogger().addHandler(_LogEventHandler(channel))
    logging.getLogger("dcaseg").setLevel(logging.INFO)


_PARENT_POLL_SECONDS = 0.5


def call_when_parent_ends(callback: Callable[[], object]) -> None:
    """Call ``callback`` from a separate thread when the parent of this process has ended.

    Usually standard input ends as well, unless another process holds its other end. On Windows, a process keeps the ID
    of a parent that has ended, so the end of standard input is the only sign and this function does nothing.
    """
    if os.name != "posix":
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        callback()

    threading.Thread(target=watch, name="parent", daemon=True).start()


# How long to wait for a canceled run to stop; one window of the network can take longer on a CPU.
_SECONDS_TO_STOP = 0.2


class Run:
    """A request being carried out. Several threads may try to answer it; the one that settles it first does."""

    def __init__(self, request: Work) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._settled = False

    def claim_answer(self) -> bool:
        """Return True to the first caller, who must answer the request, and False to all later ones."""
        with self._lock:
            first, self._settled = not self._settled, True
            return first

    def remove_results(self) -> None:
        """Stop the run if that is quick, and remove what it has written, but no results of other programs."""
        self.cancelled.set()
        self.over.wait(_SECONDS_TO_STOP)
        remove_traces(self.request, os.getpid())


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class LibraryError(UserError):
    """A library that the worker needs is missing or cannot be loaded."""

    @classmethod
    def from_exception(cls, error: BaseException) -> LibraryError:
        """The error to report if importing the program's libraries raised ``error``."""
        if isinstance(error, ModuleNotFoundError) and error.name:
            library = error.name.split(".")[0]
            return cls(f"The Python package '{library}' is missing.", "Install what is missing under Setup.")
        # A package whose binaries do not fit this computer may raise any exception.
        return cls(
            f"A Python package cannot be loaded ({type(error).__name__}: {_get_first_line(error)}).",
            "Install the packages again under Setup.",
        )


def make_failure(run_id: str, error: BaseException) -> Failure:
    """The answer to the request ``run_id``, which failed with ``error``; with a traceback if a developer needs one."""
    if isinstance(error, LibraryError):
        return Failure(run_id, error.problem, error.remedy, _format_traceback(error.__cause__ or error))
    if isinstance(error, UserError):
        return Failure(run_id, error.problem, error.remedy)
    if is_out_of_memory(error):
        return Failure(
            run_id,
            "There is not enough memory for this CT.",
            "Close other programs, or segment a part of the CT.",
            _format_traceback(error),
        )
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return Failure(run_id, "The disk is full.", "Free some space, or choose a folder on another disk.")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return Failure(run_id, f"{error.filename or 'The disk'} is read-only.", "Choose another folder.")
    if isinstance(error, PermissionError):
        return Failure(run_id, f"You have no permission to read or write {error.filename}.", "Check its permissions.")
    return Failure(
        run_id,
        f"An unexpected error occurred ({type(error).__name__}: {_get_first_line(error)}).",
        "Press Apply again. If the error persists, report it together with the log.",
        _format_traceback(error),
    )


def _get_first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _format_traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Service:
    """Answers the requests of one channel until it ends. They are carried out in the thread that calls ``serve``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._run: Run | None = None
        self._work: queue.SimpleQueue[Run] = queue.SimpleQueue()
        self._handlers: dict[str, Handler] = {}

    def serve(self) -> NoReturn:
        """Say hello and carry out requests one after the other. It never returns: the process exits."""
        self._channel.send(Hello(VERSION, os.getpid(), __version__))
        _forward_logging(self._channel)
        call_when_parent_ends(self._end)
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        while True:
            self._execute(self._work.get())

    def _get_handler(self, request: Work) -> Handler:
        name = HANDLERS[type(request)]
        if name not in self._handlers:
            module, _, handler = name.partition(".")
            try:
                with importing():
                    self._handlers[name] = getattr(importlib.import_module(f".{module}", __package__), handler)()
            except Exception as error:
                raise LibraryError.from_exception(error) from error
        return self._handlers[name]

    def _execute(self, run: Run) -> None:
        request = run.request

        def progress(fraction: float, message: str) -> None:
            if run.cancelled.is_set():
                raise Cancelled
            self._channel.send(Progress(request.id, fraction, message))

        answer: Answer | None = None
        is_usable = True
        try:
            answer = self._get_handler(request).answer(request, progress, run.cancelled.is_set)
        except Cancelled:
            # The thread that canceled the run has settled it.
            pass
        except Exception as error:
            answer = make_failure(request.id, error)
            is_usable = not isinstance(error, LibraryError)
        if answer is not None and run.claim_answer():
            self._release(run)
            self._channel.send(answer)
        run.over.set()
        if not is_usable:
            # The libraries may load in a new process, once they are repaired.
            self._end()

    def _release(self, run: Run) -> None:
        """Allow the next run, before the caller learns that this one has ended."""
        with self._lock:
            if self._run is run:
                self._run = None

    def _read(self) -> None:
        for line in self._channel.read_lines():
            if not line.strip():
                continue
            try:
                request = decode_request(line)
            except ProtocolError as error:
                self._channel.send(Failure(error.id, str(error), "Update the extension, then restart Slicer."))
                continue
            self._answer(request)
        self._end()

    def _answer(self, request: Request) -> None:
        if isinstance(request, Work):
            self._accept(request)
        elif isinstance(request, Cancel):
            self._cancel(request.id)
        else:
            self._end()

    def _accept(self, request: Work) -> None:
        run = Run(request)
        with self._lock:
            if isinstance(request, _WAITING):
                self._work.put(run)
                return
            current = self._run
            if current is None:
                self._run = run
                self._work.put(run)
                return
        problem = "Another request is still running."
        if isinstance(current.request, Segment):
            problem = "A segmentation is already running."
        self._channel.send(Failure(request.id, problem, "Wait until it is done, or cancel it."))

    def _cancel(self, run_id: str) -> None:
        with self._ending:
            with self._lock:
                run = self._run
            if run is not None and run.request.id == run_id and run.claim_answer():
                run.remove_results()
                self._channel.send(WasCancelled(run_id))
                os._exit(0)
        # The request may have crossed with the answer to the run.
        _log.info("There is no run '%s' to cancel.", run_id)

    def _end(self) -> NoReturn:
        """End the process now, without waiting for a computation, and remove unfinished results."""
        with self._ending:
            with self._lock:
                run = self._run
            if run is not None and run.claim_answer():
                run.remove_results()
            os._exit(0)
