"""What lies under the mouse in a slice view, in words and numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.read_out import ReadOut, read_at

_NOTHING = "\N{EN DASH}"


class CursorReadOut(VTKObservationMixin):
    """Writes into the labels ``cursorOrganLabel``, ``cursorAttentionLabel`` and so on of ``ui`` while it is started."""

    def __init__(self, ui: SimpleNamespace) -> None:
        VTKObservationMixin.__init__(self)
        self._ui = ui
        self._nodes: CaseNodes | None = None
        self._level = 0

    def setCase(self, nodes: CaseNodes | None, level: int) -> None:
        """Read this case from now on; attention is that of ``level``."""
        self._nodes, self._level = nodes, level

    def start(self) -> None:
        crosshair = slicer.mrmlScene.GetFirstNodeByClass("vtkMRMLCrosshairNode")
        if crosshair is not None:
            self.addObserver(crosshair, slicer.vtkMRMLCrosshairNode.CursorPositionModifiedEvent, self._onMoved)

    def stop(self) -> None:
        self.removeObservers()
        self._show(ReadOut())

    def _onMoved(self, crosshair: Any, event: str) -> None:
        place = [0.0, 0.0, 0.0]
        isInside = crosshair.GetCursorPositionRAS(place)
        self._show(read_at(self._nodes, place, self._level) if isInside and self._nodes is not None else ReadOut())

    def _show(self, found: ReadOut) -> None:
        organ = ", ".join(found.organs) or _("no organ")
        hu = "" if found.hu is None else _("{organ}, {hu:.0f} HU").format(organ=organ, hu=found.hu)
        self._ui.cursorOrganLabel.text = hu or _NOTHING
        attention = (f"{expert} {value:.2f}" for expert, value in found.attention.items())
        self._ui.cursorAttentionLabel.text = " · ".join(attention) or _NOTHING
        self._ui.cursorUncertaintyLabel.text = _number(found.uncertainty)
        self._ui.cursorDisagreementLabel.text = _number(found.disagreement)


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.2f}"
