"""The main loop of the worker: one thread reads requests, another runs them, and no unfinished results are left.

torch and SimpleITK are imported only in ``Service.serve``, after ``Channel`` has taken over the standard streams: a
library that prints on import cannot disturb the protocol, and a library that is missing is reported as an error.
"""

from __future__ import annotations

import errno
import importlib
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from .. import __version__
from ..errors import Cancelled, UserError, is_out_of_memory
from ..inference.process_settings import importing
from ..temp_paths import remove_traces
from .correction import Corrections
from .protocol import (
    VERSION,
    Cancel,
    Correct,
    Devices,
    Event,
    Failure,
    Hello,
    Log,
    Progress,
    ProtocolError,
    Request,
    Segment,
    WasCancelled,
    decode_request,
    encode,
)

if TYPE_CHECKING:
    from .runner import Runner


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

    def lines(self) -> Iterator[bytes]:
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


_PARENT_POLL_SECONDS = 0.5


def when_parent_ends(callback: Callable[[], object]) -> None:
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


# How long to wait for a cancelled run to stop; one window of the network can take longer on a CPU.
_SECONDS_TO_STOP = 0.2


class Run:
    """A request to segment. Several threads may try to answer it; the one that settles it first does."""

    def __init__(self, request: Segment) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._settled = False

    def settle(self) -> bool:
        """Return True to the first caller, who must answer the request, and False to all later ones."""
        with self._lock:
            first, self._settled = not self._settled, True
            return first

    def remove_results(self) -> None:
        """Stop the run if that is quick, and remove what it has written, but no results of other programs."""
        self.cancelled.set()
        self.over.wait(_SECONDS_TO_STOP)
        remove_traces(Path(self.request.out), os.getpid())


_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class LibraryError(UserError):
    """A library that the worker needs is missing or cannot be loaded."""

    @classmethod
    def of(cls, error: BaseException) -> LibraryError:
        """The error to report if importing the program's libraries raised ``error``."""
        if isinstance(error, ModuleNotFoundError) and error.name:
            library = error.name.split(".")[0]
            return cls(f"The Python package '{library}' is missing.", "Install what is missing under Setup.")
        # A package whose binaries do not fit this computer may raise any exception.
        return cls(
            f"A Python package cannot be loaded ({type(error).__name__}: {_first_line(error)}).",
            "Install the packages again under Setup.",
        )


def failure_of(run_id: str, error: BaseException) -> Failure:
    """The answer to the run ``run_id``, which failed with ``error``; with a traceback if a developer needs one."""
    if isinstance(error, LibraryError):
        return Failure(run_id, error.problem, error.remedy, _traceback(error.__cause__ or error))
    if isinstance(error, UserError):
        return Failure(run_id, error.problem, error.remedy)
    if is_out_of_memory(error):
        return Failure(
            run_id,
            "There is not enough memory for this CT.",
            "Close other programs, or segment a part of the CT.",
            _traceback(error),
        )
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return Failure(run_id, "The disk is full.", "Free some space, or choose a folder on another disk.")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return Failure(run_id, f"{error.filename or 'The disk'} is read-only.", "Choose another folder.")
    if isinstance(error, PermissionError):
        return Failure(run_id, f"You have no permission to read or write {error.filename}.", "Check its permissions.")
    return Failure(
        run_id,
        f"An unexpected error occurred ({type(error).__name__}: {_first_line(error)}).",
        "Press Apply again; if the error persists, report it with the log.",
        _traceback(error),
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


class Service:
    """Answers the requests of one channel until it ends. Runs are executed in the thread that calls ``serve``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._run: Run | None = None
        self._work: queue.SimpleQueue[Run | Devices | Correct] = queue.SimpleQueue()
        self._runner: Runner | None = None
        self._corrections = Corrections()

    def serve(self) -> NoReturn:
        """Say hello, load the libraries, and execute runs one after the other. It never returns: the process exits."""
        self._channel.send(Hello(VERSION, os.getpid(), __version__))
        when_parent_ends(self._end)
        threading.Thread(target=self._read, name="requests", daemon=True).start()
        try:
            self._load_libraries()
            problem = None
        except LibraryError as error:
            problem = error
        while True:
            work = self._work.get()
            if isinstance(work, Correct):
                self._correct(work)
            elif problem is not None:
                if isinstance(work, Devices):
                    self._channel.send(failure_of(work.id, problem))
                elif work.settle():
                    self._channel.send(failure_of(work.request.id, problem))
                # The libraries may load in a new process, once they are repaired.
                self._end()
            elif isinstance(work, Devices):
                self._answer_devices(work)
            else:
                self._execute(work)

    def _load_libraries(self) -> None:
        try:
            with importing():
                self._runner = importlib.import_module(".runner", __package__).Runner(self._log)
        except Exception as error:
            raise LibraryError.of(error) from error

    def _log(self, message: str) -> None:
        self._channel.send(Log(message))

    def _answer_devices(self, request: Devices) -> None:
        assert self._runner is not None
        try:
            self._channel.send(self._runner.devices(request))
        # A broken driver may raise any exception, but the CPU still works.
        except Exception as error:
            self._channel.send(failure_of(request.id, error))

    def _correct(self, request: Correct) -> None:
        try:
            self._channel.send(self._corrections.answer(request))
        except Exception as error:
            self._channel.send(failure_of(request.id, error))

    def _execute(self, run: Run) -> None:
        assert self._runner is not None
        request = run.request

        def progress(fraction: float, message: str) -> None:
            self._channel.send(Progress(request.id, fraction, message))

        answer = None
        try:
            answer = self._runner.run(request, progress, run.cancelled.is_set)
        except Cancelled:
            # The thread that cancelled the run has settled it.
            pass
        except Exception as error:
            failure = failure_of(request.id, error)
            if run.settle():
                self._release(run)
                self._channel.send(failure)
        if answer is not None and run.settle():
            self._release(run)
            self._channel.send(answer)
        run.over.set()

    def _release(self, run: Run) -> None:
        """Allow the next run, before the caller learns that this one has ended."""
        with self._lock:
            if self._run is run:
                self._run = None

    def _read(self) -> None:
        for line in self._channel.lines():
            if not line.strip():
                continue
            try:
                request = decode_request(line)
            except ProtocolError as error:
                self._channel.send(Failure(error.id, str(error), "Update the extension, and start Slicer again."))
                continue
            self._answer(request)
        self._end()

    def _answer(self, request: Request) -> None:
        if isinstance(request, Segment):
            self._accept(request)
        elif isinstance(request, Cancel):
            self._cancel(request.id)
        elif isinstance(request, Devices | Correct):
            self._work.put(request)
        else:
            self._end()

    def _accept(self, request: Segment) -> None:
        with self._lock:
            is_busy = self._run is not None
            if not is_busy:
                self._run = Run(request)
                self._work.put(self._run)
        if is_busy:
            self._channel.send(
                Failure(request.id, "A segmentation is already running.", "Wait until it is done, or cancel it.")
            )

    def _cancel(self, run_id: str) -> None:
        with self._ending:
            with self._lock:
                run = self._run
            if run is not None and run.request.id == run_id and run.settle():
                run.remove_results()
                self._channel.send(WasCancelled(run_id))
                os._exit(0)
        # The request may have crossed with the answer to the run.
        self._log(f"There is no run '{run_id}' to cancel.")

    def _end(self) -> NoReturn:
        """End the process now, without waiting for a computation, and remove unfinished results."""
        with self._ending:
            with self._lock:
                run = self._run
            if run is not None and run.settle():
                run.remove_results()
            os._exit(0)
