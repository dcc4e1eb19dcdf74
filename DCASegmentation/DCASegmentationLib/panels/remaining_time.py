"""How long a run will still take, from how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable

from slicer.i18n import tr as _

# Earlier an estimate says nothing: the model may still be loading.
_FROM_FRACTION = 0.08
_FROM_SECONDS = 2.0


class RemainingTime:
    """Started when the run starts. ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def inWords(self, fraction: float) -> str:
        """The time left when ``fraction`` (0 to 1) is done, such as "about 40 s left"; empty while it is unknown."""
        elapsed = self.elapsed
        if fraction < _FROM_FRACTION or elapsed < _FROM_SECONDS or fraction >= 1:
            return ""
        left = elapsed * (1 - fraction) / fraction
        if left < 10:
            return _("a few seconds left")
        if left < 90:
            return _("about {seconds} s left").format(seconds=10 * round(left / 10))
        return _("about {minutes} min left").format(minutes=round(left / 60))
