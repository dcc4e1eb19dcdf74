"""How much memory this process has taken at most."""

from __future__ import annotations

import sys

import psutil


def peak_mb() -> float:
    """Highest resident memory of this process so far, in MB (1e6 bytes); 0 where the system does not tell."""
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
