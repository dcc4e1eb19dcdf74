"""How far a run is."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from time import monotonic

# The rate is that of the last cases: a cohort may begin with the small ones.
_RECENT = 50


@dataclass
class State:
    """What a live table shows. ``recent`` are the last sources with what became of them, ``at_work`` those of the cases
    in the hands of workers; ``messages`` say what could not be written at the end."""

    total: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    running: int = 0
    at_work: tuple[str, ...] = ()
    messages: list[str] = field(default_factory=list)
    dashboard: str = ""
    recent: deque[tuple[str, str, str]] = field(default_factory=lambda: deque(maxlen=6))
    started: float = field(default_factory=monotonic)
    _times: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT + 1))

    def note(self, source: str, status: str, reason: str) -> None:
        """One case more has come to its end."""
        self._times.append(monotonic())
        self.recent.append((source, status, reason))
        self.counts[status] = self.counts.get(status, 0) + 1
        self.counts["pending"] -= 1

    @property
    def left(self) -> int:
        return self.counts.get("pending", 0)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return monotonic() - self.started

    @property
    def per_hour(self) -> float | None:
        """Cases in an hour at the present rate; None before it is known."""
        if len(self._times) < 2:
            return None
        span = self._times[-1] - self._times[0]
        return 3600 * (len(self._times) - 1) / span if span > 0 else None

    @property
    def seconds_left(self) -> float | None:
        """At the present rate."""
        return None if self.per_hour is None else self.left / self.per_hour * 3600
