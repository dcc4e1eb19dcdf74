"""The Correct section: Slicer's Segment Editor on the segmentation and CT of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util

from DCASegmentationLib.event_loop import Steps
from DCASegmentationLib.scene import editable_area
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.editable_area import editor_node


class CorrectPanel:
    """``layout`` is where the panel goes.

    Call :meth:`enter` when the section opens or the module is entered with it open, and :meth:`exit` when it closes or
    the module is left: an effect must not go on painting out of sight.
    """

    def __init__(self, layout: qt.QLayout, uiFolder: Path) -> None:
        self.widget = slicer.util.loadUI(str(uiFolder / "Correct.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.ui.segmentEditor.visible = False
        self.ui.editEverywhereButton.connect("clicked()", self.editEverywhere)
        self._nodes: CaseNodes | None = None
        self._steps = Steps()
        self._showLimit(False)

    def setResult(self, nodes: CaseNodes | None) -> None:
        """Correct this result; None when there is none (any more)."""
        editor = self.ui.segmentEditor
        self._steps.stop()
        editor.setActiveEffect(None)
        self._nodes = nodes
        editable_area.unmask(editor_node())
        self._showLimit(False)
        # The scene may have been closed meanwhile, and the node with it.
        editor.setMRMLSegmentEditorNode(editor_node())
        editor.setSegmentationNode(nodes.segmentation if nodes is not None else None)
        editor.setSourceVolumeNode(nodes.ct if nodes is not None else None)
        editor.visible = nodes is not None
        self.ui.correctHintLabel.visible = nodes is None

    def editWithin(self, segmentId: str, makeArea: Callable[[], Any]) -> None:
        """Paint on a segment, only where the volume that ``makeArea()`` gives says so (see ``editable_area``).

        None for everywhere. Done in steps: making the area, showing it to the editor and starting its effect each take
        a moment.
        """
        self.editEverywhere()
        self._steps.run(self._limiting(segmentId, makeArea))

    def _limiting(self, segmentId: str, makeArea: Callable[[], Any]) -> Iterator[None]:
        editor = self.ui.segmentEditor
        yield  # the section has opened by now
        scrollTo(self.widget)
        editor.setCurrentSegmentID(segmentId)
        yield
        area = makeArea()
        yield
        if area is not None:
            # The widget takes the range of the new volume over, so the mask comes after it.
            editor.setSourceVolumeNode(area)
            editable_area.mask_with(editor.mrmlSegmentEditorNode())
            self._showLimit(True)
            yield
        editor.setActiveEffectByName("Paint")

    def editEverywhere(self) -> None:
        """Take the limit away, if there is one; the effect ends, or its next stroke would go further than before."""
        self._steps.stop()
        if not self._isLimited:
            return
        editor = self.ui.segmentEditor
        editor.setActiveEffect(None)
        editor.setSourceVolumeNode(self._nodes.ct if self._nodes is not None else None)
        editable_area.unmask(editor.mrmlSegmentEditorNode())
        self._showLimit(False)

    def saveStateForUndo(self) -> None:
        """Call before the segmentation is changed by something else than an effect, so that it can be undone here."""
        self.ui.segmentEditor.saveStateForUndo()

    def _showLimit(self, isLimited: bool) -> None:
        self._isLimited = isLimited
        self.ui.limitLabel.visible = self.ui.editEverywhereButton.visible = isLimited

    def enter(self) -> None:
        self.ui.segmentEditor.setupViewObservations()
        self.ui.segmentEditor.installKeyboardShortcuts(self.widget)

    def exit(self) -> None:
        self._steps.stop()
        self.ui.segmentEditor.setActiveEffect(None)
        self.ui.segmentEditor.uninstallKeyboardShortcuts()
        self.ui.segmentEditor.removeViewObservations()

    def cleanup(self) -> None:
        self.exit()
        self.ui.segmentEditor.setMRMLScene(None)


def scrollTo(widget: qt.QWidget) -> None:
    """Scroll the module panel so that ``widget`` is seen; the views stay as they are."""
    parent = widget.parentWidget()
    while parent is not None and not hasattr(parent, "ensureWidgetVisible"):
        parent = parent.parentWidget()
    if parent is not None:
        parent.ensureWidgetVisible(widget, 0, 0)
