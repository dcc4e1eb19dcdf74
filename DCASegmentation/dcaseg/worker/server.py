"""The worker's life: requests read in one thread, runs done in another, and an end without traces."""

from __future__ import annotations

import importlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from .. import __version__
from ..errors import Cancelled
from ..inference.process_settings import importing
from ..temp_paths import remove_traces
from .protocol import (
    VERSION,
    Cancel,
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
from .runner import LibraryError, failure_of

if TYPE_CHECKING:
    from .runner import Runner


class Channel:
    """Requests from the caller, events to the caller; both ends belong to this process alone.

    Opening it takes the standard streams away from everyone else in the process: what is printed from then on, by
    Python or by C code, goes to the standard error, and reading the standard input finds its end. The private copies
    are not inherited by child processes, so none can keep the caller waiting for an end.
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
        """The lines that arrive, until the caller closes its end."""
        yield from self._requests

    def send(self, event: Event) -> None:
        """Write ``event``. A caller that reads no more is no error here: the end of the input tells of it."""
        line = encode(event)
        with self._lock:
            try:
                while line:
                    line = line[os.write(self._events, line) :]
            except OSError:
                return


_SECONDS_BETWEEN_LOOKS = 0.5


def when_parent_ends(then: Callable[[], object]) -> None:
    """Call ``then`` from a thread of its own once this process has lost its parent.

    The input ends with the parent too, unless another process holds its other end. On Windows, where a process keeps
    the number of a parent that is gone, the end of the input is the only sign.
    """
    if os.name != "posix":
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        then()

    threading.Thread(target=watch, name="parent", daemon=True).start()


# How long a run may take to stop by itself; one window of the network can take longer on a CPU.
_SECONDS_TO_STOP = 0.2


class Run:
    """One request to segment, and who may answer it: whoever settles it first."""

    def __init__(self, request: Segment) -> None:
        self.request = request
        self.cancelled = threading.Event()
        self.over = threading.Event()
        self._lock = threading.Lock()
        self._settled = False

    def settle(self) -> bool:
        """True for the first caller, who then answers the request; False for every later one."""
        with self._lock:
            first, self._settled = not self._settled, True
            return first

    def leave_no_trace(self) -> None:
        """Stop the run, if it stops soon, and remove what it has written; what another program wrote stays."""
        self.cancelled.set()
        self.over.wait(_SECONDS_TO_STOP)
        remove_traces(Path(self.request.out), os.getpid())


class Service:
    """Answers the requests of one channel until it ends; runs are done in the thread that calls ``serve``."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._lock = threading.Lock()
        self._ending = threading.Lock()
        self._run: Run | None = None
        self._work: queue.SimpleQueue[Run | Devices] = queue.SimpleQueue()
        self._runner: Runner | None = None

    def serve(self) -> NoReturn:
        """Say hello, load the libraries, and do one run after the other; the process ends within."""
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
            if problem is not None:
                if isinstance(work, Devices):
                    self._channel.send(failure_of(work.id, problem))
                elif work.settle():
                    self._channel.send(failure_of(work.request.id, problem))
                # What failed to load may load in a new process, once it is repaired.
                self._end()
            elif isinstance(work, Devices):
                self._tell_devices(work)
            else:
                self._do(work)

    def _load_libraries(self) -> None:
        try:
            with importing():
                self._runner = importlib.import_module(".runner", __package__).Runner(self._log)
        except Exception as error:
            raise LibraryError.of(error) from error

    def _log(self, message: str) -> None:
        self._channel.send(Log(message))

    def _tell_devices(self, request: Devices) -> None:
        assert self._runner is not None
        try:
            self._channel.send(self._runner.devices(request))
        # A driver that is broken raises anything; the CPU still works.
        except Exception as error:
            self._channel.send(failure_of(request.id, error))

    def _do(self, run: Run) -> None:
        assert self._runner is not None
        request = run.request

        def progress(fraction: float, message: str) -> None:
            self._channel.send(Progress(request.id, fraction, message))

        answer = None
        try:
            answer = self._runner.run(request, progress, run.cancelled.is_set)
        except Cancelled:
            # Whoever cancelled it has settled it.
            pass
        except Exception as error:
            failure = failure_of(request.id, error)
            if run.settle():
                self._free(run)
                self._channel.send(failure)
        if answer is not None and run.settle():
            self._free(run)
            self._channel.send(answer)
        run.over.set()

    def _free(self, run: Run) -> None:
        """Let the next run in, before its caller hears that this one is over."""
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
        elif isinstance(request, Devices):
            self._work.put(request)
        else:
            self._end()

    def _accept(self, request: Segment) -> None:
        with self._lock:
            busy = self._run is not None
            if not busy:
                self._run = Run(request)
                self._work.put(self._run)
        if busy:
            self._channel.send(
                Failure(request.id, "A segmentation is running already.", "Wait until it is done, or cancel it.")
            )

    def _cancel(self, run_id: str) -> None:
        with self._ending:
            with self._lock:
                run = self._run
            if run is not None and run.request.id == run_id and run.settle():
                run.leave_no_trace()
                self._channel.send(WasCancelled(run_id))
                os._exit(0)
        # The request may have crossed the run's answer.
        self._log(f"There is no run '{run_id}' to cancel.")

    def _end(self) -> NoReturn:
        """End the process now, without waiting for a computation; what a run has half written is removed."""
        with self._ending:
            with self._lock:
                run = self._run
            if run is not None and run.settle():
                run.leave_no_trace()
            os._exit(0)
