"""A client of the real worker for tests: starts it as a separate process and waits for its events."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from dcaseg.worker.protocol import Cancel, Event, Log, Progress, Segment, decode_event, encode

MODULE_FOLDER = Path(__file__).parents[1] / "DCASegmentation"
COMMAND = [sys.executable, "-m", "dcaseg.worker"]
END = object()

# Windows overlap nearly all, so that there are many; every map, so that writing takes its time.
MANY_WINDOWS = {"overlap": 0.95, "batch": 1}
EVERYTHING = {
    **{"overlap": 0.0, "batch": 1, "attention_levels": [1, 2, 3, 4]},
    **{"dominant_expert": True, "entropy": True, "disagreement": True},
}


def worker_environment(python_path: Path | None = None, **changes: str) -> dict[str, str]:
    """The environment that the worker is started in; ``python_path`` is searched before everything else."""
    path = [str(folder) for folder in (python_path, MODULE_FOLDER) if folder]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1", **changes}


class Worker:
    """The worker, its events in the order they come, and when each came."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(environment or worker_environment()),
        )
        self.lines: list[bytes] = []
        self.log: list[str] = []
        self.errors = b""
        self._events: queue.Queue[Event | object] = queue.Queue()
        self._threads = [threading.Thread(target=read, daemon=True) for read in (self._read_events, self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read_events(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            self._events.put(decode_event(line))
        self._events.put(END)

    def _read_errors(self) -> None:
        while piece := self.process.stderr.read1():
            self.errors += piece

    def write(self, line: bytes) -> None:
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def segment(self, request: Segment) -> Event:
        """Ask for a run and wait for its answer."""
        self.write(encode(request))
        return self.answer()

    def cancel(self, run_id: str = "1") -> None:
        self.write(encode(Cancel(run_id)))

    def next_event(self, seconds: float = 120) -> Event:
        event = self._events.get(timeout=seconds)
        assert event is not END, f"the worker ended: {self.wait()}, {self.errors.decode()}"
        return event

    def answer(self) -> Event:
        """The next event that is neither progress nor log."""
        while isinstance(event := self.next_event(), Progress | Log):
            if isinstance(event, Log):
                self.log.append(event.message)
        return event

    def wait_for_progress(self, message: str) -> None:
        """Until the worker says that it does what begins with ``message``."""
        while not (isinstance(event := self.next_event(), Progress) and event.message.startswith(message)):
            assert isinstance(event, Progress | Log), event

    def rest(self) -> list[Event]:
        """All further events of a worker that ends."""
        events = []
        while (event := self._events.get(timeout=10)) is not END:
            events.append(event)
        return events

    def wait(self) -> int:
        """The exit code of a worker that ends."""
        code = self.process.wait(timeout=10)
        for thread in self._threads:
            thread.join(timeout=10)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        for thread in self._threads:
            thread.join(timeout=10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                # What had not been written when it was killed.
                continue


def is_gone(pid: int, seconds: float) -> bool:
    """Whether the process ``pid`` is gone within ``seconds``; one that nobody has waited for yet is gone, too."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False
