"""Which nodes of the scene belong to a case, recorded on its segmentation node so that it is saved with the scene."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import slicer
import slicer.util

from dcaseg.rendering.layout import EXPERTS

_TAG = "DCASegmentation.case"
# Version 1 lacks the reference of the segmentation to itself.
_VERSION = "2"
_SELF = "DCASegmentation.self"
_CT = "DCASegmentation.ct"
_SINGLE_MAPS = ("dominant_expert", "entropy", "disagreement")
_LABEL_MAPS = ("automatic", "finding_ranks")
# Saved scenes store these under the names of earlier versions.
_SAVED_AS = {"dominant_expert": "deciding_expert", "finding_ranks": "places"}
# Set on each node that belongs to a result; the reference is the result's segmentation.
_PART_OF, _IS_PART = "DCASegmentation.result", "DCASegmentation.part"
LEVELS = (1, 2, 3, 4)
MAP_NAMES = (*_SINGLE_MAPS, *(f"attention_{expert}_level{level}" for level in LEVELS for _, expert, _ in EXPERTS))
"""The names of all maps, which are also the names of their files in a result folder."""


def get_attention_name(level: int, expert: str) -> str:
    """The name of the attention map of an expert at a level (1 to 4)."""
    return f"attention_{expert}_level{level}"


@dataclass
class CaseNodes:
    """The MRML nodes of one case.

    ``ct`` is None if the CT of a recorded case was deleted. ``attention`` maps level and expert to a volume node. Maps
    that have not been shown yet are still files, not nodes (see ``scene.maps``). ``automatic`` is the label map as the
    network computed it; ``finding_ranks`` holds the rank of the finding at each voxel (0 for none). Both cover the same
    box of the CT's voxels.
    """

    ct: Any
    segmentation: Any
    attention: dict[int, dict[str, Any]] = field(default_factory=dict)
    dominant_expert: Any | None = None
    entropy: Any | None = None
    disagreement: Any | None = None
    automatic: Any | None = None
    finding_ranks: Any | None = None

    def maps(self) -> list[Any]:
        """The volume nodes that can be shown over the CT."""
        attention = [node for experts in self.attention.values() for node in experts.values()]
        single = [self.dominant_expert, self.entropy, self.disagreement]
        return [*attention, *(node for node in single if node is not None)]

    def get_map(self, name: str) -> Any | None:
        """The volume node of a map (one of ``MAP_NAMES``), or None."""
        if name in _SINGLE_MAPS:
            return getattr(self, name)
        expert, level = _parse_attention_name(name)
        return self.attention.get(level, {}).get(expert)

    def set_map(self, name: str, node: Any) -> None:
        """Set the node of the map ``name``; call :func:`write_case_nodes` to record it in the scene."""
        if name in _SINGLE_MAPS:
            setattr(self, name, node)
        else:
            expert, level = _parse_attention_name(name)
            self.attention.setdefault(level, {})[expert] = node

    def list_label_maps(self) -> list[Any]:
        """The label map volumes that the review uses."""
        return [node for node in (self.automatic, self.finding_ranks) if node is not None]

    def all(self) -> list[Any]:
        """All existing nodes of the case."""
        return [*([] if self.ct is None else [self.ct]), self.segmentation, *self.maps(), *self.list_label_maps()]


def write_case_nodes(nodes: CaseNodes) -> None:
    """Record on the segmentation node which nodes belong to it, replacing an earlier record.

    It uses node references, because they are saved with the scene, are updated when nodes get new IDs on loading, and
    become empty when a node is deleted. Volumes without voxels stay in the record (see :func:`lacks_label_maps`).
    """
    segmentation = nodes.segmentation
    if is_clone(segmentation):
        # What else the clone may refer to belongs to the original.
        for role, _node in _iter_references(nodes):
            segmentation.SetNodeReferenceID(role, None)
    segmentation.SetAttribute(_TAG, _VERSION)
    segmentation.SetNodeReferenceID(_SELF, segmentation.GetID())
    segmentation.SetNodeReferenceID(_CT, nodes.ct.GetID() if nodes.ct is not None else None)
    for role, node in _iter_references(nodes):
        if node is not None:
            segmentation.SetNodeReferenceID(role, node.GetID())
            mark_as_part(node, segmentation)
        elif not _is_empty(segmentation.GetNodeReference(role)):
            segmentation.SetNodeReferenceID(role, None)


def get_recorded_volumes(segmentation: Any) -> list[Any]:
    """The volumes that :func:`write_case_nodes` recorded and that still exist, also those without voxels."""
    if is_clone(segmentation):
        return []
    parts = [segmentation.GetNodeReference(role) for role, _node in _iter_references(CaseNodes(None, segmentation))]
    return [node for node in parts if node is not None]


def is_clone(segmentation: Any) -> bool:
    """Whether a vtkMRMLSegmentationNode only has the record of the result that it was cloned from.

    Slicer clones the attributes of a node but not its references, so a clone lacks its own volumes. In scenes of
    earlier versions, clones cannot be distinguished from results.
    """
    if segmentation.GetNodeReferenceID(_SELF) is not None:
        return bool(segmentation.GetNodeReferenceID(_SELF) != segmentation.GetID())
    return segmentation.GetAttribute(_TAG) not in (None, "1")


def lacks_label_maps(segmentation: Any) -> bool:
    """Whether the result has lost the voxels of a label map, because the scene was saved without them.

    Slicer 5.10 writes the voxels of hidden nodes into .mrb files, but not next to .mrml files.
    """
    return any(_is_empty(segmentation.GetNodeReference(_get_role(name))) for name in _LABEL_MAPS)


def mark_as_part(node: Any, segmentation: Any) -> None:
    """Mark ``node`` as part of the result ``segmentation``: it is removed with it, and other modules do not list it."""
    node.SetAttribute(_IS_PART, "1")
    node.SetNodeReferenceID(_PART_OF, segmentation.GetID())
    node.SetHideFromEditors(True)


def find_orphaned_nodes() -> list[Any]:
    """The nodes of results whose segmentation was deleted."""
    scene = slicer.mrmlScene
    nodes = [scene.GetNthNode(index) for index in range(scene.GetNumberOfNodes())]
    return [node for node in nodes if node.GetAttribute(_IS_PART) and node.GetNodeReference(_PART_OF) is None]


def find_cases(ct: Any | None) -> list[CaseNodes]:
    """The cases of a CT (vtkMRMLScalarVolumeNode), oldest first."""
    return [nodes for nodes in find_cases_in_scene() if ct is not None and nodes.ct is ct]


def read_case_nodes(segmentation: Any | None) -> CaseNodes | None:
    """The case of a vtkMRMLSegmentationNode, with the nodes that still exist; None if it is not one of ours.

    The clone of a result has no case (see :func:`is_clone`). Maps and label maps without voxels count as missing (see
    :func:`lacks_label_maps`).
    """
    if segmentation is None or segmentation.GetAttribute(_TAG) is None or is_clone(segmentation):
        return None
    nodes = CaseNodes(segmentation.GetNodeReference(_CT), segmentation)
    for name in (*_SINGLE_MAPS, *_LABEL_MAPS):
        setattr(nodes, name, _get_referenced_node(segmentation, _get_role(name)))
    for level in LEVELS:
        found = {name: _get_referenced_node(segmentation, _get_attention_role(level, name)) for _, name, _ in EXPERTS}
        if maps := {name: node for name, node in found.items() if node is not None}:
            nodes.attention[level] = maps
    return nodes


def _get_referenced_node(segmentation: Any, role: str) -> Any | None:
    node = segmentation.GetNodeReference(role)
    return None if _is_empty(node) else node


def _is_empty(node: Any | None) -> bool:
    """Whether a volume node has no voxels; False if there is no node."""
    if node is None:
        return False
    image = node.GetImageData()
    return image is None or image.GetPointData().GetScalars() is None


def find_cases_in_scene() -> list[CaseNodes]:
    """The cases in the scene, oldest first."""
    found = map(read_case_nodes, slicer.util.getNodesByClass("vtkMRMLSegmentationNode"))
    return [nodes for nodes in found if nodes is not None]


def _iter_references(nodes: CaseNodes) -> Iterator[tuple[str, Any | None]]:
    for name in (*_SINGLE_MAPS, *_LABEL_MAPS):
        yield _get_role(name), getattr(nodes, name)
    for level in LEVELS:
        for _, expert, _ in EXPERTS:
            yield _get_attention_role(level, expert), nodes.attention.get(level, {}).get(expert)


def _parse_attention_name(name: str) -> tuple[str, int]:
    _, expert, level = name.split("_")
    return expert, int(level.removeprefix("level"))


def _get_role(name: str) -> str:
    return f"DCASegmentation.{_SAVED_AS.get(name, name)}"


def _get_attention_role(level: int, expert: str) -> str:
    return f"DCASegmentation.attention.{level}.{expert}"
