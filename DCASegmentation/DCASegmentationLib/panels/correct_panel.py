"""The Correct section: Slicer's Segment Editor on the segmentation and CT of the result."""

from __future__ import annotations

from pathlib import Path

import qt
import slicer
import slicer.util

from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.correction import editor_node


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

    def setResult(self, nodes: CaseNodes | None) -> None:
        """Correct this result; None when there is none (any more)."""
        editor = self.ui.segmentEditor
        editor.setActiveEffect(None)
        # The scene may have been closed meanwhile, and the node with it.
        editor.setMRMLSegmentEditorNode(editor_node())
        editor.setSegmentationNode(nodes.segmentation if nodes is not None else None)
        editor.setSourceVolumeNode(nodes.ct if nodes is not None else None)
        editor.visible = nodes is not None
        self.ui.correctHintLabel.visible = nodes is None

    def enter(self) -> None:
        self.ui.segmentEditor.setupViewObservations()
        self.ui.segmentEditor.installKeyboardShortcuts(self.widget)

    def exit(self) -> None:
        self.ui.segmentEditor.setActiveEffect(None)
        self.ui.segmentEditor.uninstallKeyboardShortcuts()
        self.ui.segmentEditor.removeViewObservations()

    def cleanup(self) -> None:
        self.exit()
        self.ui.segmentEditor.setMRMLScene(None)
