"""The name of this computer's processor: what is made for one need not be right for another."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path


def processor() -> str:
    """Such as "AMD EPYC"; empty where the system does not say."""
    # platform.processor() is empty on many Linux systems.
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
