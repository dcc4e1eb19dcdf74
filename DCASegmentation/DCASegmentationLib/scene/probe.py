"""The values of a case at one position: organ, HU, attention to each expert, uncertainty, and disagreement."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import vtk

from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.nodes import Point, from_world
from DCASegmentationLib.scene.segmentation import iter_layer_images
from DCASegmentationLib.scene.volumes import get_ijk_to_ras


@dataclass(frozen=True)
class VoxelProbe:
    """The values at one position; ``organs`` are the names of the visible segments, None means no value."""

    organs: tuple[str, ...] = ()
    hu: float | None = None
    attention: dict[str, float] = field(default_factory=dict)
    uncertainty: float | None = None
    disagreement: float | None = None


def read_at(nodes: CaseNodes, ras: Point, level: int) -> VoxelProbe:
    """Read the nearest voxels of a case at ``ras`` (mm, world); attention is that of ``level``."""
    attention = {name: get_voxel_value(node, ras) for name, node in nodes.attention.get(level, {}).items()}
    return VoxelProbe(
        organs=find_segments(nodes.segmentation, ras),
        hu=get_voxel_value(nodes.ct, ras),
        attention={name: value for name, value in attention.items() if value is not None},
        uncertainty=get_voxel_value(nodes.entropy, ras),
        disagreement=get_voxel_value(nodes.disagreement, ras),
    )


def get_voxel_value(volume: Any | None, ras: Point) -> float | None:
    """The value of a volume node's nearest voxel; None outside the volume or if there is no volume."""
    if volume is None or volume.GetImageData() is None:
        return None
    return _read_voxel(volume.GetImageData(), get_ijk_to_ras(volume), from_world(volume, ras))


def find_segments(segmentation: Any, ras: Point) -> tuple[str, ...]:
    """The names of the visible segments at ``ras`` (mm, world), in all layers."""
    content, display = segmentation.GetSegmentation(), segmentation.GetDisplayNode()
    point = from_world(segmentation, ras)
    names = []
    for layer, image in iter_layer_images(content):
        matrix = vtk.vtkMatrix4x4()
        image.GetImageToWorldMatrix(matrix)
        label = _read_voxel(image, matrix, point)
        for segment_id in content.GetSegmentIDsForLayer(layer) if label else ():
            visible = display is None or display.GetSegmentVisibility(segment_id)
            if visible and content.GetSegment(segment_id).GetLabelValue() == label:
                names.append(content.GetSegment(segment_id).GetName())
    return tuple(names)


def _read_voxel(image: Any, to_ras: vtk.vtkMatrix4x4, point: Point) -> float | None:
    to_index = vtk.vtkMatrix4x4()
    vtk.vtkMatrix4x4.Invert(to_ras, to_index)
    index = [round(value) for value in to_index.MultiplyPoint((*point, 1.0))[:3]]
    extent = image.GetExtent()
    if any(not extent[2 * axis] <= index[axis] <= extent[2 * axis + 1] for axis in range(3)):
        return None
    return float(image.GetScalarComponentAsDouble(*index, 0))
