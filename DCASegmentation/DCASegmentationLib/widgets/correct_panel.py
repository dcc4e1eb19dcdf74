"""The Correct section: Slicer's Segment Editor for the segmentation and CT of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util

from DCASegmentationLib.event_loop import StepRunner
from DCASegmentationLib.scene import editable_area
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.editable_area import get_editor_node


class CorrectPanel:
    """The widgets of the Correct section.

    ``layout`` is the Qt layout that the panel is added to. Call :meth:`enter` when the section becomes visible and
    :meth:`exit` when it is hidden, because an effect must not keep painting while its section is hidden.
    """

    def __init__(self, layout: qt.QLayout, uiFolder: Path) -> None:
        self.widget = slicer.util.loadUI(str(uiFolder / "Correct.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.widget.setMRMLScene(slicer.mrmlScene)
        self.ui.segmentEditor.visible = False
        # Extensions that Slicer loads after this one, such as if this is the startup module, add their effects later.
        self._effects = slicer.qSlicerSegmentEditorEffectFactory.instance()
        self._effects.connect("effectRegistered(QString)", self._onEffectRegistered)
        self.ui.editEverywhereButton.connect("clicked()", self.editEverywhere)
        self._nodes: CaseNodes | None = None
        self._isEntered = self._isPaused = False
        self._steps = StepRunner()
        self._showLimit(False)

    def setResult(self, nodes: CaseNodes | None) -> None:
        """Edit this result; None if there is none."""
        editor = self.ui.segmentEditor
        self._steps.stop()
        editor.setActiveEffect(None)
        self._nodes = nodes
        editable_area.clear_editable_area(get_editor_node())
        self._showLimit(False)
        # The node may be gone, because the scene may have been closed since.
        editor.setMRMLSegmentEditorNode(get_editor_node())
        editor.setSegmentationNode(nodes.segmentation if nodes is not None else None)
        editor.setSourceVolumeNode(nodes.ct if nodes is not None else None)
        editor.visible = nodes is not None
        self.ui.correctHintLabel.visible = nodes is None

    def _onEffectRegistered(self, name: str) -> None:
        self.ui.segmentEditor.updateEffectList()

    def editWithin(self, segmentId: str, makeArea: Callable[[], Any]) -> None:
        """Start painting on a segment, limited to the volume that ``makeArea()`` returns (see ``editable_area``).

        If ``makeArea()`` returns None there is no limit. This runs in steps, because creating the area, passing it to
        the editor, and starting the effect each take a moment.
        """
        self.editEverywhere()
        self._steps.run(self._limitEditingInSteps(segmentId, makeArea))

    def _limitEditingInSteps(self, segmentId: str, makeArea: Callable[[], Any]) -> Iterator[None]:
        editor = self.ui.segmentEditor
        yield  # let the section open first
        scrollTo(self.widget)
        editor.setCurrentSegmentID(segmentId)
        yield
        area = makeArea()
        yield
        if area is not None:
            # Set the mask last, because the widget resets its range for a new source volume.
            editor.setSourceVolumeNode(area)
            editable_area.mask_with(editor.mrmlSegmentEditorNode())
            self._showLimit(True)
            yield
        editor.setActiveEffectByName("Paint")

    def editEverywhere(self) -> None:
        """Remove the limit, if there is one. This ends the active effect, so that no stroke continues without it."""
        self._steps.stop()
        if not self._isLimited:
            return
        editor = self.ui.segmentEditor
        editor.setActiveEffect(None)
        editor.setSourceVolumeNode(self._nodes.ct if self._nodes is not None else None)
        editable_area.clear_editable_area(editor.mrmlSegmentEditorNode())
        self._showLimit(False)

    def saveStateForUndo(self) -> None:
        """Save an undo state. Call it before anything other than an effect changes the segmentation."""
        self.ui.segmentEditor.saveStateForUndo()

    def saveStateBeforeRun(self, segmentation: Any) -> None:
        """Save an undo state of the segmentation whose organs a run is about to replace, and edit it from now on."""
        self.editEverywhere()
        self.ui.segmentEditor.setActiveEffect(None)
        # The undo states are those of the segmentation that the editor shows.
        self.ui.segmentEditor.setSegmentationNode(segmentation)
        self.saveStateForUndo()

    def undo(self) -> None:
        """Undo the last edit of the segmentation."""
        self.ui.segmentEditor.undo()

    def pause(self) -> None:
        """Leave the mouse and the keyboard to another tool until :meth:`resume`."""
        self._isPaused = True
        self.editEverywhere()
        self.ui.segmentEditor.setActiveEffect(None)
        self.ui.segmentEditor.uninstallKeyboardShortcuts()

    def resume(self) -> None:
        """Handle the keyboard again, if the section is visible."""
        wasPaused, self._isPaused = self._isPaused, False
        if wasPaused and self._isEntered:
            self.ui.segmentEditor.installKeyboardShortcuts(self.widget)

    def _showLimit(self, isLimited: bool) -> None:
        self._isLimited = isLimited
        self.ui.limitLabel.visible = self.ui.editEverywhereButton.visible = isLimited

    def enter(self) -> None:
        """The section becomes visible: let the editor handle mouse and keyboard."""
        self._isEntered = True
        self.ui.segmentEditor.setupViewObservations()
        if not self._isPaused:
            self.ui.segmentEditor.installKeyboardShortcuts(self.widget)

    def exit(self) -> None:
        """The section is hidden: end the active effect and stop handling mouse and keyboard."""
        self._isEntered = False
        self._steps.stop()
        self.ui.segmentEditor.setActiveEffect(None)
        self.ui.segmentEditor.uninstallKeyboardShortcuts()
        self.ui.segmentEditor.removeViewObservations()

    def cleanup(self) -> None:
        """Stop editing and disconnect the editor from the scene."""
        self._effects.disconnect("effectRegistered(QString)", self._onEffectRegistered)
        self.exit()
        self.ui.segmentEditor.setMRMLScene(None)


def scrollTo(widget: qt.QWidget) -> None:
    """Scroll the module panel to ``widget``; the views do not change."""
    parent = widget.parentWidget()
    while parent is not None and not hasattr(parent, "ensureWidgetVisible"):
        parent = parent.parentWidget()
    if parent is not None:
        parent.ensureWidgetVisible(widget, 0, 0)
