"""Tells when a segmentation has changed, once the changes pause: painting changes it many times a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer
from slicer.util import VTKObservationMixin

from DCASegmentationLib.panels.steps import newTimer

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
