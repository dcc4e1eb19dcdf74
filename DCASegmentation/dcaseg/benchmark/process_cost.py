"""What a program costs as a whole process, with all the processes that it starts."""

from __future__ import annotations

import importlib
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, how_to_install

_SAMPLE_EVERY_S = 0.1
_MIB = 2**20
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)


class ProcessFailedError(Exception):
    """A measured program ended with an error; the text is the end of what it said."""


@dataclass(frozen=True)
class Cost:
    """``wall_s`` seconds passed, ``cpu_s`` seconds of CPU (user and system, of the process and its children), and
    ``peak_mib`` of memory in MiB: the largest sum of what the processes held at one time."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def with_threads(threads: int) -> dict[str, str]:
    """This process's environment with ``threads`` for every library that counts them."""
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}


def measure_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run ``command`` and wait for its end.

    Memory is the proportional share of each process (PSS; the resident set where the system has none), summed over
    the tree ten times a second; a single process's own high-water mark counts too, which no sample misses. If this is
    interrupted, the whole tree is ended. Raises ProcessFailedError with the end of the output of a program that fails,
    and UserError where psutil is missing.
    """
    psutil = _psutil()
    tree = _Tree(psutil)
    with tempfile.TemporaryFile() as said:
        before = _children_cpu_s()
        started = time.perf_counter()
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env=environment
        )
        try:
            while process.poll() is None:
                tree.sample(process.pid)
                time.sleep(_SAMPLE_EVERY_S)
        except BaseException:
            tree.kill(process.pid)
            process.wait()
            raise
        wall = time.perf_counter() - started
        after = _children_cpu_s()
        if process.returncode:
            said.seek(0)
            lines = said.read().decode("utf-8", "replace").strip().splitlines()
            raise ProcessFailedError(" ".join(lines[-3:]) or f"ended with code {process.returncode}, without a word")
    return Cost(wall, tree.cpu_s if before is None or after is None else after - before, tree.peak_mib)


class _Tree:
    """Samples of a process and all below it."""

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil
        self._cpu: dict[int, float] = {}
        self.peak_mib = 0.0

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes, each as last seen."""
        return sum(self._cpu.values())

    def sample(self, pid: int) -> None:
        processes = self._processes(pid)
        held = 0.0
        for process in processes:
            try:
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                # Reading the shares walks through all of a process's memory: only where there is something to share.
                held += _share(process) if len(processes) > 1 else process.memory_info().rss
                self.peak_mib = max(self.peak_mib, _high_water_mib(process.pid))
            except self._psutil.Error:
                continue
        self.peak_mib = max(self.peak_mib, held / _MIB)

    def kill(self, pid: int) -> None:
        for process in reversed(self._processes(pid)):
            try:
                process.kill()
            except self._psutil.Error:
                continue

    def _processes(self, pid: int) -> list[Any]:
        try:
            root = self._psutil.Process(pid)
            return [root, *root.children(recursive=True)]
        except self._psutil.Error:
            return []


def _share(process: Any) -> float:
    full = process.memory_full_info()
    return float(getattr(full, "pss", full.rss))


def _high_water_mib(pid: int) -> float:
    """The process's own peak, which only Linux tells while it runs."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    marks = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(marks[0].split()[1]) / 1024 if marks else 0.0


def _children_cpu_s() -> float | None:
    """CPU seconds of all children that have ended; None where the system does not add them up."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        return None
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(usage.ru_utime + usage.ru_stime)


def _psutil() -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        raise UserError(
            "Memory of processes is measured with psutil, which is not installed.",
            f"Install it: {how_to_install('psutil')}",
        ) from None


def memory_free_mib() -> float:
    """Memory that programs can still have without swapping, in MiB. Raises UserError where psutil is missing."""
    return float(_psutil().virtual_memory().available) / _MIB
