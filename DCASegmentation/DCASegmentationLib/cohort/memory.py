"""How much memory this process has taken at most."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil


def peak_mb() -> float:
    """Highest resident memory of this process so far, in MB (1e6 bytes); 0 where the system does not tell."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    if sys.platform == "linux":
        # Not ru_maxrss: it begins with the peak of the process that started this one.
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)
    import resource

    # macOS counts in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
