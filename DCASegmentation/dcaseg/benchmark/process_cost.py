"""Measures the cost of a program as a process, including all processes that it starts."""

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

from ..errors import UserError, format_install_command

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
    """A measured program failed. The text is the end of its output."""


@dataclass(frozen=True)
class Cost:
    """The cost of a process and its children.

    ``wall_s`` is the elapsed time and ``cpu_s`` the CPU time (user and system) in seconds, ``peak_mib`` the peak of the
    total memory in MiB.
    """

    wall_s: float
    cpu_s: float
    peak_mib: float


def make_thread_environment(threads: int) -> dict[str, str]:
    """The environment of this process with ``threads`` set for all libraries."""
    return {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}


def measure_process(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Cost:
    """Run ``command``, wait for its end and measure its cost.

    Memory is the proportional set size of each process (PSS; the resident set on systems without it), summed over the
    process tree ten times a second. The high-water mark of each single process counts too, since samples may miss it.
    On an interrupt, the whole tree is killed. Raises ProcessFailedError with the end of the output if the program
    fails, and UserError if psutil is not installed.
    """
    psutil = _import_psutil()
    tree = _Tree(psutil)
    with tempfile.TemporaryFile() as output:
        before = _get_children_cpu_s()
        started = time.perf_counter()
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
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
        after = _get_children_cpu_s()
        if process.returncode:
            output.seek(0)
            lines = output.read().decode("utf-8", "replace").strip().splitlines()
            raise ProcessFailedError(" ".join(lines[-3:]) or f"exit code {process.returncode} without any output")
    return Cost(wall, tree.cpu_s if before is None or after is None else after - before, tree.peak_mib)


class _Tree:
    """Samples a process and all its descendants."""

    def __init__(self, psutil: Any) -> None:
        self._psutil = psutil
        self._cpu: dict[int, float] = {}
        self.peak_mib = 0.0

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes, each at its last sample."""
        return sum(self._cpu.values())

    def sample(self, pid: int) -> None:
        """Update CPU time and peak memory of the tree of ``pid``."""
        processes = self._list_processes(pid)
        held = 0.0
        for process in processes:
            try:
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
                # Reading the PSS walks through all memory of a process, so it is only done for several processes.
                held += _get_pss(process) if len(processes) > 1 else process.memory_info().rss
                self.peak_mib = max(self.peak_mib, _read_peak_mib(process.pid))
            except self._psutil.Error:
                continue
        self.peak_mib = max(self.peak_mib, held / _MIB)

    def kill(self, pid: int) -> None:
        """Kill the tree of ``pid``, descendants first."""
        for process in reversed(self._list_processes(pid)):
            try:
                process.kill()
            except self._psutil.Error:
                continue

    def _list_processes(self, pid: int) -> list[Any]:
        try:
            root = self._psutil.Process(pid)
            return [root, *root.children(recursive=True)]
        except self._psutil.Error:
            return []


def _get_pss(process: Any) -> float:
    full = process.memory_full_info()
    return float(getattr(full, "pss", full.rss))


def _read_peak_mib(pid: int) -> float:
    """Peak memory of a running process in MiB; 0 on other systems than Linux, which do not report it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    marks = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(marks[0].split()[1]) / 1024 if marks else 0.0


def _get_children_cpu_s() -> float | None:
    """CPU seconds of all children that have ended; None on systems that do not report it."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        return None
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return float(usage.ru_utime + usage.ru_stime)


def _import_psutil() -> Any:
    try:
        return importlib.import_module("psutil")
    except ImportError:
        raise UserError(
            "Memory of processes is measured with psutil, which is not installed.",
            f"Install it: {format_install_command('psutil')}",
        ) from None


def get_free_memory_mib() -> float:
    """Memory in MiB that is available without swapping. Raises UserError if psutil is not installed."""
    return float(_import_psutil().virtual_memory().available) / _MIB
