"""Work in later turns of Qt's event loop, so that Slicer stays responsive.

:func:`createTimer` delays a call, :class:`StepRunner` spreads long work over many turns, and
:class:`SegmentationObserver` waits until the edits of a segmentation pause. :func:`drawNow` is for work that has to
block. They use ``QTimer`` objects of their own, because PythonQt never frees a callable passed to
``QTimer.singleShot``, nor anything that it references.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import qt
import slicer
import vtk
from slicer.util import VTKObservationMixin


def createTimer(receiver: Callable[[], None], milliseconds: int = 0) -> qt.QTimer:
    """A timer that calls ``receiver()`` once, ``milliseconds`` after each ``start()``.

    The timer keeps ``receiver`` alive until Qt deletes it. An owner that does not live as long as the panel must call
    ``deleteLater()`` on the timer.
    """
    timer = qt.QTimer()
    timer.setSingleShot(True)
    timer.setInterval(milliseconds)
    timer.connect("timeout()", receiver)
    return timer


def drawNow() -> None:
    """Draw what has changed in the panel, before work that blocks the event loop.

    Clicks and keys wait until that work is done. Handled here, a second click would start the same work within itself.
    """
    slicer.app.processEvents(qt.QEventLoop.ExcludeUserInputEvents)


class StepRunner:
    """Runs one generator at a time, one step per turn of the event loop: each ``yield`` returns control to Slicer."""

    def __init__(self) -> None:
        self._steps: Iterator[object] | None = None
        self._onEnd: Callable[[], None] | None = None
        self._timer = createTimer(self._step)

    @property
    def isRunning(self) -> bool:
        """Whether a generator is running."""
        return self._steps is not None

    def run(self, steps: Iterator[object], onEnd: Callable[[], None] | None = None) -> None:
        """Stop the current generator, if there is one, run ``steps``, then call ``onEnd()``."""
        self._steps, self._onEnd = steps, onEnd
        self._timer.start()

    def stop(self) -> None:
        """Stop the current generator without calling its ``onEnd``."""
        self._timer.stop()
        self._steps = self._onEnd = None

    def finish(self) -> None:
        """Run the remaining steps now, without returning to the event loop."""
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


class ModifiedObserver:
    """Calls ``onModified(caller, event)`` when the observed object changes, which may be another one at any time.

    ``VTKObservationMixin.removeObserver`` keeps the object alive, and all that it refers to. Use this for objects that
    do not live as long as the panel.
    """

    def __init__(self, onModified: Callable[[Any, str], None]) -> None:
        self._onModified = onModified
        self._observed: tuple[Any, int] | None = None

    def observe(self, node: Any | None) -> None:
        """Observe ``node`` (a node or a parameter node's wrapper) instead of the current one; None stops observing."""
        if self._observed is not None:
            observed, tag = self._observed
            observed.RemoveObserver(tag)
        self._observed = None
        if node is not None:
            self._observed = node, node.AddObserver(vtk.vtkCommand.ModifiedEvent, self._onModified)


_PAUSE_MS = 500
_EVENTS = ("SegmentAdded", "SegmentRemoved", "SegmentModified", "SegmentsOrderModified", "SourceRepresentationModified")


class SegmentationObserver(VTKObservationMixin):
    """Calls ``onChanged()`` once the edits of a segmentation have paused for half a second."""

    def __init__(self, onChanged: Callable[[], None]) -> None:
        VTKObservationMixin.__init__(self)
        self._timer = createTimer(onChanged, _PAUSE_MS)

    def watch(self, segmentation: Any | None) -> None:
        """Watch this vtkMRMLSegmentationNode instead of the current one; None stops watching."""
        self.removeObservers()
        self._timer.stop()
        if segmentation is not None:
            for name in _EVENTS:
                self.addObserver(segmentation.GetSegmentation(), getattr(slicer.vtkSegmentation, name), self._onEvent)

    def _onEvent(self, caller: Any, event: str) -> None:
        self._timer.start()
