"""The Segment Editor's settings, and the area where it may paint: a finding, or where the network is uncertain.

The area is a volume rather than a segment, because painting over a masking segment would remove voxels from it, so that
a stroke could not be corrected.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util

from dcaseg.review.schema import Finding
from dcaseg.types import Box
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.finding_view import get_finding_voxels
from DCASegmentationLib.scene.maps import load_map_volume
from DCASegmentationLib.scene.nodes import add_singleton_node, get_singleton_node, remove_nodes
from DCASegmentationLib.scene.volumes import get_relative_box, set_voxels

_EDITOR, _EDITOR_TAG = "vtkMRMLSegmentEditorNode", "DCASegmentation"


def get_editor_node() -> Any:
    """The panel's vtkMRMLSegmentEditorNode, one per scene, separate from that of the Segment Editor module."""
    return get_singleton_node(_EDITOR, _EDITOR_TAG) or add_singleton_node(_EDITOR, _EDITOR_TAG, saved=True)


_VOLUME, _TAG = "vtkMRMLScalarVolumeNode", "DCASegmentation.editable"
_MARGIN_MM = 5.0
# Entropy (0 to 1) from which voxels count as uncertain: about where the likeliest of 16 labels falls below 85 %.
UNCERTAIN = 0.15
# Whole numbers, because the editor compares in the voxel type. The lower bound excludes what it interpolates at the
# rim.
_EDITABLE = 100
_RANGE = (50.0, 100.0)


def limit_to_finding(nodes: CaseNodes, finding: Finding) -> Any | None:
    """Make the finding and 5 mm around it the editable area, so that a stroke can end just outside the finding.

    Returns the vtkMRMLScalarVolumeNode (100 where editing is allowed, otherwise 0) to use as source volume; None if the
    finding's voxels were deleted.
    """
    voxels = get_finding_voxels(nodes, finding.rank)
    if voxels is None:
        return None
    spacing = np.array(voxels.volume.GetSpacing())[::-1]
    margin = np.ceil(_MARGIN_MM / spacing).astype(int)
    size = voxels.volume.GetImageData().GetDimensions()[::-1]
    z, y, x = (
        slice(max(part.start - more, 0), min(part.stop + more, length))
        for part, more, length in zip(voxels.box, margin.tolist(), size, strict=True)
    )
    inside = np.zeros([part.stop - part.start for part in (z, y, x)], np.uint8)
    inside[get_relative_box(voxels.box, (z, y, x))][voxels.mask] = 1
    return _show(nodes, _dilate(inside, spacing), (z, y, x), voxels.volume)


def limit_to_uncertain(nodes: CaseNodes, threshold: float = UNCERTAIN) -> Any | None:
    """Make all voxels with an uncertainty (entropy, 0 to 1) of ``threshold`` or more the editable area.

    Returns the volume as :func:`limit_to_finding` does; None if the case has no uncertainty map.
    """
    entropy = load_map_volume(nodes, "entropy")
    if entropy is None or entropy.GetImageData() is None:
        return None
    values = slicer.util.arrayFromVolume(entropy) >= threshold
    size = entropy.GetImageData().GetDimensions()
    whole = (slice(0, size[2]), slice(0, size[1]), slice(0, size[0]))
    return _show(nodes, values.astype(np.uint8), whole, entropy)


def mask_with(editor: Any) -> None:
    """Let a vtkMRMLSegmentEditorNode edit only in the editable area, which must be its source volume."""
    before = editor.StartModify()
    editor.SetSourceVolumeIntensityMaskRange(*_RANGE)
    editor.SetSourceVolumeIntensityMask(True)
    editor.EndModify(before)


def clear_editable_area(editor: Any | None) -> None:
    """Let the Segment Editor edit everywhere again, and remove the editable area from the scene."""
    if editor is not None:
        editor.SetSourceVolumeIntensityMask(False)
    node = get_singleton_node(_VOLUME, _TAG)
    if node is not None:
        remove_nodes([node])


def _dilate(inside: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """``inside`` (z, y, x) grown by the margin; ``spacing`` (mm) is in the order (z, y, x)."""
    image = sitk.GetImageFromArray(inside)
    image.SetSpacing(spacing[::-1].tolist())
    distance = sitk.SignedMaurerDistanceMap(image, insideIsPositive=False, squaredDistance=False, useImageSpacing=True)
    return (sitk.GetArrayFromImage(distance) <= _MARGIN_MM).astype(np.uint8)


def _show(nodes: CaseNodes, voxels: np.ndarray, box: Box, reference: Any) -> Any:
    node = get_singleton_node(_VOLUME, _TAG) or add_singleton_node(_VOLUME, _TAG, "Editable area")
    # With a border of zeros, because the editor extends the corner values of a volume to everything outside it.
    z, y, x = (slice(part.start - 1, part.stop + 1) for part in box)
    set_voxels(node, np.pad(voxels * np.uint8(_EDITABLE), 1), (z, y, x), reference)
    node.SetAndObserveTransformNodeID(reference.GetTransformNodeID())
    _place_in_hierarchy(node, nodes)
    return node


def _place_in_hierarchy(node: Any, nodes: CaseNodes) -> None:
    """Put the area next to the segmentation in the subject hierarchy.

    The Segment Editor moves a segmentation to where its source volume is.
    """
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(slicer.mrmlScene)
    if hierarchy is None:
        return
    item = hierarchy.GetItemByDataNode(node) or hierarchy.CreateItem(hierarchy.GetSceneItemID(), node)
    of_segmentation = hierarchy.GetItemByDataNode(nodes.segmentation)
    if of_segmentation:
        hierarchy.SetItemParent(item, hierarchy.GetItemParent(of_segmentation))
