"""The Segment Editor's settings that belong to this extension."""

from __future__ import annotations

from typing import Any

import slicer

_TAG = "DCASegmentation"


def editor_node() -> Any:
    """The vtkMRMLSegmentEditorNode of the panel, made once per scene: the Segment Editor module keeps its own."""
    node = slicer.mrmlScene.GetSingletonNode(_TAG, "vtkMRMLSegmentEditorNode")
    if node is not None:
        return node
    node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLSegmentEditorNode")
    node.UnRegister(None)
    node.SetSingletonTag(_TAG)
    return slicer.mrmlScene.AddNode(node)
