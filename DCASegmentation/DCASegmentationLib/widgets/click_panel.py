"""Fix with clicks: the tool in the Correct section that corrects an organ with clicks in the slice views."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
import vtk
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from DCASegmentationLib.click_correction import ClickCorrection, ClickWorker, Point
from DCASegmentationLib.event_loop import SegmentationObserver
from DCASegmentationLib.scene.case_record import CaseNodes, read_case_nodes
from DCASegmentationLib.scene.click_labels import NEW_SEGMENT, Target, find_target, get_organ_target, list_targets
from DCASegmentationLib.scene.click_preview import hide_box, show_box
from DCASegmentationLib.scene.editable_area import get_editor_node
from DCASegmentationLib.widgets.correct_panel import CorrectPanel
from DCASegmentationLib.widgets.html import formatError
from DCASegmentationLib.widgets.slice_clicks import SliceClicks, compute_drag_box


class ClickPanel(VTKObservationMixin):
    """The widgets of the tool.

    ``layout`` is the Qt layout that the panel is added to, ``worker`` computes the changes. ``correctPanel``
    holds the Segment Editor, whose effects and shortcuts rest while the tool is on.
    """

    def __init__(self, layout: qt.QLayout, uiFolder: Path, worker: ClickWorker, correctPanel: CorrectPanel) -> None:
        VTKObservationMixin.__init__(self)
        self._correctPanel = correctPanel
        self._segmentation: Any = None
        self._targets: list[Target] = []
        self.correction = ClickCorrection(worker, self.update, correctPanel.saveStateForUndo)
        self.clicks = SliceClicks(self._onStroke, self._onDrag)
        self._watch = SegmentationObserver(self._fillTargets)
        self.widget = slicer.util.loadUI(str(uiFolder / "Clicks.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.ui.clicksButton.connect("toggled(bool)", self._onToggled)
        self.ui.keepButton.connect("clicked()", self.keep)
        self.ui.dropButton.connect("clicked()", self.correction.drop)
        self.ui.undoClickButton.connect("clicked()", self.undo)
        self.shortcuts = {
            keys: self._createShortcut(keys, action)
            for keys, action in (
                ("Return", self.keep),
                ("Enter", self.keep),
                ("Escape", self.correction.drop),
                ("Ctrl+Z", self.undo),
                ("O", self.takeOrganUnderCursor),
            )
        }
        self.setResult(None)

    def setResult(self, nodes: CaseNodes | None) -> None:
        """Correct this result; None if there is none."""
        self.turnOff()
        self._segmentation = nodes.segmentation if nodes is not None else None
        self.widget.visible = nodes is not None
        self._fillTargets()
        self.update()

    def enter(self) -> None:
        """Nothing to do: the tool stays off until the user turns it on."""

    def exit(self) -> None:
        """The section or the module is closed: turn the tool off."""
        self.turnOff()

    def cleanup(self) -> None:
        """Stop everything."""
        self.turnOff()
        self.correction.cleanup()

    def turnOff(self) -> None:
        """Turn the tool off, which drops the preview."""
        self.ui.clicksButton.checked = False

    def fix(self, organ: str) -> None:
        """Turn the tool on for the organ with this key."""
        nodes = read_case_nodes(self._segmentation)
        if nodes is None:
            return
        self.ui.clicksButton.checked = True
        self._fillTargets()
        self._select(get_organ_target(nodes, organ))

    def keep(self) -> None:
        """Write the preview into the segmentation."""
        hadPreview = self.correction.hasPreview
        self.correction.keep()
        if hadPreview and not self.correction.hasPreview and self.correction.error is None:
            self._fillTargets()
            # The segment of a missing organ, or a new one, exists now.
            self._select(Target(self.correction.lastKept))

    def undo(self) -> None:
        """Drop the last click of the preview or, without a preview, undo the last kept click or other edit."""
        if self.correction.hasPreview or self.correction.isComputing:
            self.correction.dropLast()
        else:
            self._correctPanel.undo()
            self._fillTargets()
            self.correction.refresh()

    def takeOrganUnderCursor(self) -> None:
        """Select the segment at the position of the mouse in a slice view."""
        nodes = read_case_nodes(self._segmentation)
        crosshair = slicer.mrmlScene.GetSingletonNode("default", "vtkMRMLCrosshairNode")
        position = [0.0, 0.0, 0.0]
        if nodes is None or crosshair is None or not crosshair.GetCursorPositionRAS(position):
            return
        target = find_target(nodes, (position[0], position[1], position[2]))
        if target is not None:
            self._select(target)

    def update(self) -> None:
        """Update the message and the buttons."""
        correction = self.correction
        isOn = correction.isOn
        self.ui.clicksContents.visible = isOn
        self.ui.keepButton.enabled = correction.hasPreview and not correction.isWaiting
        self.ui.dropButton.enabled = correction.hasPreview or correction.isWaiting
        text = formatError(correction.error) if correction.error is not None else correction.message
        self.ui.clicksMessageLabel.text = text or _("Click where the organ is missing.")
        for shortcut in self.shortcuts.values():
            shortcut.setEnabled(isOn)

    def _onToggled(self, isOn: bool) -> None:
        nodes = read_case_nodes(self._segmentation)
        if isOn and nodes is None:
            self.turnOff()
        elif isOn and nodes is not None:
            self._correctPanel.pause()
            self.addObserver(get_editor_node(), vtk.vtkCommand.ModifiedEvent, self._onEditorModified)
            self._watch.watch(nodes.segmentation)
            self._fillTargets()
            self.correction.start(nodes)
            self.clicks.start()
        else:
            self.clicks.stop()
            hide_box()
            self.correction.stop()
            self._watch.watch(None)
            self.removeObservers()
            self._correctPanel.resume()
        self.update()

    def _onEditorModified(self, caller: Any, event: str) -> None:
        # The mouse can serve only one tool.
        if caller.GetActiveEffectName():
            self.turnOff()

    def _onStroke(self, points: tuple[Point, ...], isInverted: bool) -> None:
        target = self._target
        if target is None:
            return
        if self.ui.boxRadioButton.checked and len(points) > 1:
            hide_box()
            corners = compute_drag_box(points[0], points[-1])
            self.correction.addStroke(target, (_computeMidpoint(*corners),), True, corners)
        else:
            self.correction.addStroke(target, points, self.ui.removeRadioButton.checked == isInverted)

    def _onDrag(self, first: Point, last: Point) -> None:
        if self.ui.boxRadioButton.checked:
            show_box(compute_drag_box(first, last))

    @property
    def _target(self) -> Target | None:
        index = self.ui.clickTargetSelector.currentIndex
        return self._targets[index] if 0 <= index < len(self._targets) else None

    def _fillTargets(self) -> None:
        """List the segments as they are now, and keep the selected one."""
        nodes, selected = read_case_nodes(self._segmentation), self._target
        found = list_targets(nodes) if nodes is not None else {}
        selector = self.ui.clickTargetSelector
        wasBlocked = selector.blockSignals(True)
        selector.clear()
        self._targets = list(found)
        for name in found.values():
            selector.addItem(name)
        selector.blockSignals(wasBlocked)
        self._select(selected if selected is not None and selected != NEW_SEGMENT else None)

    def _select(self, target: Target | None) -> None:
        if target in self._targets:
            self.ui.clickTargetSelector.currentIndex = self._targets.index(target)

    def _createShortcut(self, keys: str, action: Callable[[], None]) -> qt.QShortcut:
        # For the whole window, because the mouse is in the views.
        shortcut = qt.QShortcut(qt.QKeySequence(keys), self.widget)
        shortcut.connect("activated()", action)
        return shortcut


def _computeMidpoint(one: Point, other: Point) -> Point:
    return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2, (one[2] + other[2]) / 2
