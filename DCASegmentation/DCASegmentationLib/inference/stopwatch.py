"""Time spent in each phase of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Stopwatch:
    """Adds up seconds by phase; a phase may come again and again."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time inside the ``with`` block towards ``name``."""
        start = perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start

    @contextmanager
    def rest(self, name: str) -> Iterator[None]:
        """Count towards ``name`` the time inside the block that no phase within it has counted."""
        counted = sum(self.seconds.values())
        start = perf_counter()
        try:
            yield
        finally:
            inner = sum(self.seconds.values()) - counted
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start - inner
