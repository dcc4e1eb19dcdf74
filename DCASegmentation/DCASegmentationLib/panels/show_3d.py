"""The button "Show 3D": surfaces made one organ at a time, and whether the user wants them after each run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qt
import slicer
import slicer.util

from DCASegmentationLib.panels.steps import Steps
from DCASegmentationLib.scene.surfaces import has_surfaces, making_surfaces

_WANTED = "DCASegmentation/Show3D"


class Show3D:
    """``button`` is checkable; ``onShown()`` is called when surfaces have appeared.

    Slicer's own button makes all surfaces at once, in which the window stands for a second.
    """

    def __init__(self, button: qt.QPushButton, onShown: Callable[[], None]) -> None:
        self._button, self._onShown = button, onShown
        self._segmentation: Any = None
        self._steps = Steps()
        button.connect("clicked(bool)", self._onClicked)
        self.setSegmentation(None)

    def setSegmentation(self, segmentation: Any | None) -> None:
        """Show this vtkMRMLSegmentationNode, or none."""
        if segmentation is not self._segmentation:
            self._steps.stop()
        self._segmentation = segmentation
        self.update()

    def update(self) -> None:
        """Bring the button into line with what is shown."""
        self._button.enabled = self._segmentation is not None
        self._button.checked = self._isShown()

    def showIfWanted(self) -> None:
        """A run has ended: show its organs in 3D, unless the user does not want that."""
        if self._segmentation is not None and _isWanted():
            self._show()

    def stop(self) -> None:
        self._steps.stop()

    def _isShown(self) -> bool:
        segmentation = self._segmentation
        return segmentation is not None and (self._steps.isRunning or has_surfaces(segmentation))

    def _show(self) -> None:
        self._steps.run(making_surfaces(self._segmentation), self._onMade)
        self.update()

    def _onMade(self) -> None:
        self.update()
        if self._isShown():
            self._onShown()

    def _onClicked(self, checked: bool) -> None:
        # Remembered for the next run too.
        slicer.app.settings().setValue(_WANTED, checked)
        if self._segmentation is None:
            return
        if checked:
            self._show()
        else:
            self._steps.stop()
            self._segmentation.RemoveClosedSurfaceRepresentation()
        self.update()


def centerThreeDView() -> None:
    """Let the first 3D view look at what it shows."""
    layouts = slicer.app.layoutManager()
    # Without a main window there is none, and not every layout has a 3D view.
    if layouts is None or not layouts.threeDViewCount:
        return
    view = layouts.threeDWidget(0).threeDView()
    view.resetFocalPoint()
    view.resetCamera(True, True, True)


def _isWanted() -> bool:
    return bool(slicer.util.toBool(slicer.app.settings().value(_WANTED, True)))
