"""Work in later turns of Qt's event loop: delayed, in small steps, or once a segmentation's changes pause.

Each user has a timer of its own: PythonQt never frees a callable that ``QTimer.singleShot`` was given, nor what it
holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import qt
import slicer
from slicer.util import VTKObservationMixin


def newTimer(receiver: Callable[[], None], milliseconds: int = 0) -> qt.QTimer:
    """A timer that calls ``receiver()`` once, ``milliseconds`` after each ``start()``.

    It holds ``receiver`` until Qt deletes it: an owner that does not live as long as the panel calls ``deleteLater()``.
    """
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.connect("timeout()", receiver)
    return timer


class Steps:
    """Runs one generator at a time; each ``yield`` lets Slicer go on."""

    def __init__(self) -> None:
        self._steps: Iterator[object] | None = None
        self._onEnd: Callable[[], None] | None = None
        self._timer = newTimer(self._step)

    @property
    def isRunning(self) -> bool:
        return self._steps is not None

    def run(self, steps: Iterator[object], onEnd: Callable[[], None] | None = None) -> None:
        """Run ``steps`` instead of what runs now, then call ``onEnd``."""
        self._steps, self._onEnd = steps, onEnd
        self._timer.start()

    def stop(self) -> None:
        """Run nothing any more."""
        self._timer.stop()
        self._steps = self._onEnd = None

    def finish(self) -> None:
        """Do all that is left now."""
        while self._steps is not None:
            self._timer.stop()
            self._step()

    def _step(self) -> None:
        steps = self._steps
        if steps is None:
            return
        try:
            next(steps)
        except StopIteration:
            if self._steps is steps:
                onEnd = self._onEnd
                self.stop()
                if onEnd is not None:
                    onEnd()
            return
        except BaseException:
            self.stop()
            raise
        if self._steps is steps:
            self._timer.start()


_PAUSE_MS = 500
_EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SegmentsOrderModified", "SourceRepresentationModified")


class SegmentationWatch(VTKObservationMixin):
    """``onChanged()`` is called some time after the last of the changes."""

    def __init__(self, onChanged: Callable[[], None]) -> None:
        VTKObservationMixin.__init__(self)
        self._timer = newTimer(onChanged, _PAUSE_MS)

    def watch(self, segmentation: Any | None) -> None:
        """Watch this vtkMRMLSegmentationNode and no other; None to stop."""
        self.removeObservers()
        self._timer.stop()
        if segmentation is not None:
            for name in _EVENTS:
                self.addObserver(segmentation.GetSegmentation(), getattr(slicer.vtkSegmentation, name), self._onEvent)

    def _onEvent(self, caller: Any, event: str) -> None:
        self._timer.start()
