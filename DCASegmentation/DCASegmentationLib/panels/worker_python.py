"""A worker in Slicer's own Python."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import slicer.util

from DCASegmentationLib.errors import UserError
from DCASegmentationLib.panels.worker_process import WorkerProcess

# The folder that holds the package DCASegmentationLib.
LIBRARY_FOLDER = Path(__file__).resolve().parents[2]


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
