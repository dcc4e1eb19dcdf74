"""Surfaces of edited segments, computed again in later turns of the event loop."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from DCASegmentationLib.event_loop import StepRunner
from DCASegmentationLib.scene.surfaces import update_surfaces_in_steps


class SurfaceUpdater:
    """Computes the surfaces of segments again, one per turn of the event loop.

    Edits may come faster than surfaces are computed, so the segments that are still outdated are collected.
    """

    def __init__(self) -> None:
        self._steps = StepRunner()
        self._segmentation: Any = None
        self._outdated: set[str] = set()

    def update(self, segmentation: Any, segmentIds: Collection[str]) -> None:
        """Compute the surfaces of these segments of a vtkMRMLSegmentationNode again, if it is shown in 3D."""
        if segmentation is not self._segmentation:
            self._steps.finish()
        self._segmentation = segmentation
        self._outdated |= set(segmentIds)
        self._steps.run(self._updateInSteps())

    def stop(self) -> None:
        """Stop computing surfaces, for example when Slicer closes."""
        self._steps.stop()
        self._segmentation = None
        self._outdated = set()

    def _updateInSteps(self) -> Iterator[None]:
        while self._outdated:
            yield from update_surfaces_in_steps(self._segmentation, [self._outdated.pop()])
        self._segmentation = None
