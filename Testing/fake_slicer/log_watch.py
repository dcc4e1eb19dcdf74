"""Collects what Slicer's log would contain: errors and warnings of VTK, Qt, and Python.

Slicer's segmentations logic and subject hierarchy are parts of the application that slicer-core lacks. What they do and
log about a node in a running Slicer is imitated here by observing the scene.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import slicer
import vtk
from PySide6 import QtCore

# Lines from Qt's offscreen platform about every window, and from slicer-core, which lacks Slicer's color files.
_IGNORED = ("propagateSizeHints", "offscreen", "vtkMRMLColorTableNodeFileGenericColors.txt can't be found")


class LogWatch:
    """Collects log lines: ``lines`` contains every error and warning since :meth:`clear`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._observed: dict[str, list[tuple[Any, int]]] = {}
        self._displays: dict[str, list[Any]] = {}

    def clear(self) -> None:
        self.lines.clear()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context, collect everything that is logged."""
        window = vtk.vtkOutputWindow.GetInstance()
        tags = [
            window.AddObserver("ErrorEvent", self._on_vtk_text),
            window.AddObserver("WarningEvent", self._on_vtk_text),
        ]
        handler = _Handler(self.lines)
        logging.getLogger().addHandler(handler)
        before = QtCore.qInstallMessageHandler(self._on_qt_message)
        scene = slicer.mrmlScene
        scene_tags = [
            scene.AddObserver(slicer.vtkMRMLScene.NodeAddedEvent, self._on_node_added),
            scene.AddObserver(slicer.vtkMRMLScene.NodeAboutToBeRemovedEvent, self._on_node_about_to_go),
            scene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, self._on_node_removed),
        ]
        try:
            yield
        finally:
            for tag in scene_tags:
                scene.RemoveObserver(tag)
            for node_id in list(self._observed):
                self._forget(node_id)
            QtCore.qInstallMessageHandler(before)
            logging.getLogger().removeHandler(handler)
            for tag in tags:
                window.RemoveObserver(tag)

    @vtk.calldata_type(vtk.VTK_STRING)
    def _on_vtk_text(self, window: Any, event: str, text: str) -> None:
        self._add(f"VTK: {text.strip()}")

    def _on_qt_message(self, kind: Any, context: Any, text: str) -> None:
        if kind != QtCore.QtMsgType.QtDebugMsg:
            self._add(f"Qt: {text}")

    def _add(self, line: str) -> None:
        if not any(each in line for each in _IGNORED):
            self.lines.append(line)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_added(self, scene: Any, event: str, node: Any) -> None:
        if node.IsA("vtkMRMLSegmentationNode"):
            changed = [slicer.vtkSegmentation.SegmentAdded, slicer.vtkSegmentation.SegmentRemoved]
            changed += [slicer.vtkSegmentation.RepresentationModified]
            content = node.GetSegmentation()
            self._observe(node, [(content, content.AddObserver(each, self._on_segments)) for each in changed])
            self._observe(node, [(node, node.AddObserver(node.DisplayModifiedEvent, self._on_segments_shown))])
        elif node.IsA("vtkMRMLSegmentationDisplayNode"):
            self._observe(node, [(node, node.AddObserver("ModifiedEvent", self._on_segment_display))])

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_about_to_go(self, scene: Any, event: str, node: Any) -> None:
        """Do what Slicer's subject hierarchy and segmentations logic do."""
        if node.IsA("vtkMRMLSegmentationNode"):
            count = node.GetNumberOfDisplayNodes()
            self._displays[node.GetID()] = [node.GetNthDisplayNode(index) for index in range(count)]
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
        if hierarchy is not None and not scene.IsClosing() and (item := hierarchy.GetItemByDataNode(node)):
            hierarchy.RemoveItem(item, False, False)

    @vtk.calldata_type(vtk.VTK_OBJECT)
    def _on_node_removed(self, scene: Any, event: str, node: Any) -> None:
        self._forget(node.GetID() or "")
        for display in self._displays.pop(node.GetID() or "", []):
            if display is not None and scene.IsNodePresent(display) and not scene.IsClosing():
                scene.RemoveNode(display)

    def _on_segments(self, content: Any, event: str) -> None:
        for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode"):
            if node.GetSegmentation() is content:
                self._require_item(node)

    def _on_segments_shown(self, node: Any, event: str) -> None:
        self._require_item(node)

    def _require_item(self, node: Any) -> None:
        """Log an error for a hidden segmentation node, for which Slicer creates no item."""
        hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
        if node.GetHideFromEditors() and not (hierarchy and hierarchy.GetItemByDataNode(node)):
            self.lines.append(f"Qt: Unable to find subject hierarchy item for segmentation node {node.GetName()}")

    def _on_segment_display(self, display: Any, event: str) -> None:
        if not display.GetVisibility2DFill() and not display.GetVisibility2DOutline():
            self.lines.append("Qt: a segmentation is displayed with neither fill nor outline")

    def _observe(self, node: Any, observations: list[tuple[Any, int]]) -> None:
        self._observed.setdefault(node.GetID(), []).extend(observations)

    def _forget(self, node_id: str) -> None:
        for observed, tag in self._observed.pop(node_id, []):
            observed.RemoveObserver(tag)


class _Handler(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"Python: {record.getMessage()}")
