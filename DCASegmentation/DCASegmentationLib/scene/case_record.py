"""Which nodes of the scene belong to a case, written on its segmentation so that a saved scene keeps it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import slicer

from DCASegmentationLib.figures.palette import EXPERTS

_TAG = "DCASegmentation.case"
_VERSION = "1"
_CT = "DCASegmentation.ct"
_SINGLE_MAPS = ("deciding_expert", "entropy", "disagreement")
_LABEL_MAPS = ("automatic", "places")
LEVELS = (1, 2, 3, 4)


@dataclass
class CaseNodes:
    """The MRML nodes of one case. ``attention`` maps level and expert to a volume node.

    ``ct`` is None where the CT of a remembered case was deleted. ``automatic`` is the label map as the network gave
    it, ``places`` holds the rank of the place to check in each voxel; both have the same voxels, a box of the CT's.
    """

    ct: Any
    segmentation: Any
    attention: dict[int, dict[str, Any]] = field(default_factory=dict)
    deciding_expert: Any | None = None
    entropy: Any | None = None
    disagreement: Any | None = None
    automatic: Any | None = None
    places: Any | None = None

    def maps(self) -> list[Any]:
        """The volume nodes that can be laid over the CT."""
        attention = [node for experts in self.attention.values() for node in experts.values()]
        single = [self.deciding_expert, self.entropy, self.disagreement]
        return [*attention, *(node for node in single if node is not None)]

    def label_maps(self) -> list[Any]:
        """The label map volumes that the review goes by."""
        return [node for node in (self.automatic, self.places) if node is not None]

    def all(self) -> list[Any]:
        """Every node of the case that is there."""
        return [*([] if self.ct is None else [self.ct]), self.segmentation, *self.maps(), *self.label_maps()]


def remember(nodes: CaseNodes) -> None:
    """Write onto the segmentation node which nodes belong to it; an earlier record there is replaced.

    Node references are saved with the scene, survive that nodes get other IDs on loading, and empty themselves when a
    node is deleted.
    """
    segmentation = nodes.segmentation
    segmentation.SetAttribute(_TAG, _VERSION)
    segmentation.SetNodeReferenceID(_CT, nodes.ct.GetID() if nodes.ct is not None else None)
    for role, node in _roles(nodes):
        segmentation.SetNodeReferenceID(role, node.GetID() if node is not None else None)


def recall(segmentation: Any | None) -> CaseNodes | None:
    """The case of a vtkMRMLSegmentationNode as far as its nodes still exist; None for any other segmentation."""
    if segmentation is None or segmentation.GetAttribute(_TAG) is None:
        return None
    nodes = CaseNodes(segmentation.GetNodeReference(_CT), segmentation)
    for name in (*_SINGLE_MAPS, *_LABEL_MAPS):
        setattr(nodes, name, segmentation.GetNodeReference(_role(name)))
    for level in LEVELS:
        found = {name: segmentation.GetNodeReference(_attention_role(level, name)) for _, name, _ in EXPERTS}
        if maps := {name: node for name, node in found.items() if node is not None}:
            nodes.attention[level] = maps
    return nodes


def cases_in_scene() -> list[CaseNodes]:
    """The cases of the scene, the latest last."""
    scene = slicer.mrmlScene
    count = scene.GetNumberOfNodesByClass("vtkMRMLSegmentationNode")
    found = (recall(scene.GetNthNodeByClass(index, "vtkMRMLSegmentationNode")) for index in range(count))
    return [nodes for nodes in found if nodes is not None]


def _roles(nodes: CaseNodes) -> Iterator[tuple[str, Any | None]]:
    for name in (*_SINGLE_MAPS, *_LABEL_MAPS):
        yield _role(name), getattr(nodes, name)
    for level in LEVELS:
        for _, expert, _ in EXPERTS:
            yield _attention_role(level, expert), nodes.attention.get(level, {}).get(expert)


def _role(name: str) -> str:
    return f"DCASegmentation.{name}"


def _attention_role(level: int, expert: str) -> str:
    return f"DCASegmentation.attention.{level}.{expert}"
