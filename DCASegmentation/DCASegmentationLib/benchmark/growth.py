"""How a pipeline's memory grows with the length of the scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .process_cost import memory_free_mib


@dataclass(frozen=True)
class Growth:
    """Peak memory of one pipeline in MiB by the number of slices; reasons for lengths that were left out."""

    peaks_mib: dict[int, float]
    left_out: dict[int, str]

    @property
    def mib_per_slice(self) -> float | None:
        """Slope of the line through the peaks (least squares); None for fewer than two."""
        line = self._line()
        return None if line is None else line[0]

    def expected_mib(self, slices: int) -> float | None:
        """What the line says of another length; None for fewer than two peaks."""
        line = self._line()
        return None if line is None else line[0] * slices + line[1]

    def _line(self) -> tuple[float, float] | None:
        if len(self.peaks_mib) < 2:
            return None
        slope, start = np.polyfit(list(self.peaks_mib), list(self.peaks_mib.values()), 1)
        return float(slope), float(start)


def measure_growth(
    peak_mib: Callable[[int], float], lengths: Sequence[int], free_mib: Callable[[], float] = memory_free_mib
) -> Growth:
    """Peaks at ``lengths`` (slices), the shortest first; ``peak_mib(slices)`` runs the pipeline.

    From the third on, a length is left out if by the line through the others it takes more memory than is free: it
    would be ended by the system, and other programs with it.
    """
    growth = Growth({}, {})
    for slices in sorted(lengths):
        expected = growth.expected_mib(slices)
        if expected is not None and expected > free_mib():
            growth.left_out[slices] = f"some {expected / 1024:.0f} GiB expected, {free_mib() / 1024:.0f} GiB free"
            continue
        growth.peaks_mib[slices] = peak_mib(slices)
    return growth
