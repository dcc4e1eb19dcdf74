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
_LIBRARY_FOLDER = Path(__file__).resolve().parents[2]


def newWorker(onLog: Callable[[str], None]) -> WorkerProcess:
    """A worker that starts when it is first used. Raises UserError if Slicer's Python interpreter is not found."""
    program = shutil.which("PythonSlicer")
    if program is not None:
        # PythonSlicer sets all it needs; what Slicer's launcher set for Slicer itself would be in its way.
        return WorkerProcess(program, _LIBRARY_FOLDER, dict(slicer.util.startupEnvironment()), onLog)
    # Without Slicer's launcher this process is Python itself, or names the one it embeds.
    if "python" in Path(sys.executable or "").name.lower():
        return WorkerProcess(sys.executable, _LIBRARY_FOLDER, None, onLog)
    raise UserError(
        "Slicer's Python interpreter (PythonSlicer) was not found.",
        "Start Slicer by its launcher, not by the program SlicerApp-real.",
    )
