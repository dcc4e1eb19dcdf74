"""Lets the volumes of every result follow its segmentation and its CT when a user moves these with a transform."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import slicer

from DCASegmentationLib.scene.case_record import find_cases_in_scene
from DCASegmentationLib.scene.placement import follow_transforms, note_grids


class TransformObserver:
    """Follows the transforms of all results in the scene.

    ``onMoved(segmentation)`` is called after volumes of this result have moved. Call :meth:`update` when results were
    added or removed, and :meth:`stop` before the scene is closed.
    """

    def __init__(self, onMoved: Callable[[Any], None]) -> None:
        self._onMoved = onMoved
        # Not with VTKObservationMixin, which keeps removed nodes alive.
        self._observed: dict[str, tuple[Any, int]] = {}

    def update(self) -> None:
        """Watch exactly the results that are in the scene now."""
        scene = slicer.mrmlScene
        if scene.IsBatchProcessing():
            return
        wanted: dict[str, Any] = {}
        for nodes in find_cases_in_scene():
            wanted |= {node.GetID(): node for node in (nodes.ct, nodes.segmentation) if node is not None}
            # It may have been moved while nothing watched it, or come from a version that recorded no positions.
            self._follow(nodes)
            note_grids(nodes)
        for nodeId, (node, tag) in list(self._observed.items()):
            if wanted.get(nodeId) is not node:
                node.RemoveObserver(tag)
                del self._observed[nodeId]
        event = slicer.vtkMRMLTransformableNode.TransformModifiedEvent
        for nodeId in wanted.keys() - self._observed.keys():
            node = wanted[nodeId]
            self._observed[nodeId] = node, node.AddObserver(event, self._onTransformModified)

    def stop(self) -> None:
        """Stop watching."""
        for node, tag in self._observed.values():
            node.RemoveObserver(tag)
        self._observed = {}

    def _onTransformModified(self, caller: Any, event: str) -> None:
        if slicer.mrmlScene.IsBatchProcessing():
            return
        for nodes in find_cases_in_scene():
            if caller is nodes.segmentation or caller is nodes.ct:
                self._follow(nodes)

    def _follow(self, nodes: Any) -> None:
        if follow_transforms(nodes):
            self._onMoved(nodes.segmentation)
