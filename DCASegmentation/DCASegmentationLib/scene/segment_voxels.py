"""The voxels of all segments on the grid of a volume, also after they were edited, moved or made to overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from DCASegmentationLib.scene.volumes import index_to_ras

Box = tuple[slice, slice, slice]

# Axes count as parallel while they drift apart by less than this many voxels over the whole image.
_SAME_VOXEL = 0.01


@dataclass(frozen=True)
class Layer:
    """Segments that share one label map. ``labels`` (z, y, x) covers ``box`` of the volume's array (z, y, x)."""

    labels: np.ndarray
    box: Box
    segments: dict[int, str]

    def values_within(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """The values of ``array`` (z, y, x), which lies on the volume's grid, in each segment, by segment ID."""
        inside = self.labels > 0
        labels, values = self.labels[inside], array[self.box][inside]
        # Sorted once: picking the voxels of one segment after another would pass over all of them each time.
        order = np.argsort(labels, kind="stable")
        labels, values = labels[order], values[order]
        found = {}
        for label, segment_id in self.segments.items():
            start, stop = np.searchsorted(labels, [label, label + 1])
            found[segment_id] = values[start:stop]
        return found


def segment_layers(segmentation: Any, volume: Any) -> list[Layer]:
    """The label maps of a vtkMRMLSegmentationNode on the grid of a volume node; nearest voxel where grids differ.

    Segments that overlap lie in different layers. Parent transforms of both nodes are taken into account.
    """
    content = segmentation.GetSegmentation()
    between = vtk.vtkGeneralTransform()
    segmentation_transform, volume_transform = segmentation.GetParentTransformNode(), volume.GetParentTransformNode()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(segmentation_transform, volume_transform, between)
    layers = []
    for number in range(content.GetNumberOfLayers()):
        image = content.GetLayerDataObject(number)
        if image is None or image.IsEmpty():
            continue
        found = _along_axes(image, volume) if segmentation_transform is volume_transform else None
        if found is None:
            # Now on the volume's own grid, whatever stood between.
            found = _along_axes(_resampled(image, volume, between), volume)
        if found is not None and found[0].size:
            layers.append(Layer(*found, _segments_of(content, number)))
    return layers


def _segments_of(content: Any, layer: int) -> dict[int, str]:
    ids = content.GetSegmentIDsForLayer(layer)
    return {int(content.GetSegment(segment_id).GetLabelValue()): segment_id for segment_id in ids}


def _along_axes(image: Any, volume: Any) -> tuple[np.ndarray, Box] | None:
    """The image at the volume's voxels and the box of them it covers; None unless the axes of both are parallel.

    This is the usual case, and picking planes is many times faster than resampling.
    """
    size = volume.GetImageData().GetDimensions()
    to_image = np.linalg.inv(_image_to_world(image)) @ _array_of(index_to_ras(volume))
    across = [int(axis) for axis in np.abs(to_image[:3, :3]).argmax(axis=1)]
    drift = np.abs(to_image[:3, :3])
    drift[[0, 1, 2], across] = 0.0
    if sorted(across) != [0, 1, 2] or (drift * size).max() > _SAME_VOXEL:
        return None
    part = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(image.GetDimensions()[::-1])
    box = [slice(0)] * 3
    for axis, volume_axis in enumerate(across):
        first, last = image.GetExtent()[2 * axis : 2 * axis + 2]
        index = np.rint(to_image[axis, volume_axis] * np.arange(size[volume_axis]) + to_image[axis, 3]).astype(int)
        covered = np.flatnonzero((index >= first) & (index <= last))
        start, stop = (int(covered[0]), int(covered[-1]) + 1) if len(covered) else (0, 0)
        box[2 - volume_axis] = slice(start, stop)
        part = _planes(part, index[start:stop] - first, 2 - axis)
    return part.transpose([2 - across.index(2 - position) for position in range(3)]), (box[0], box[1], box[2])


def _planes(array: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
    """The planes ``index`` of an array along ``axis``, without a copy where they follow each other."""
    if len(index) and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        selection: list[slice] = [slice(None)] * array.ndim
        selection[axis] = slice(int(index[0]), int(index[-1]) + 1)
        return array[tuple(selection)]
    return np.take(array, index, axis=axis)


def _resampled(image: Any, volume: Any, transform: vtk.vtkAbstractTransform) -> Any:
    grid = slicer.vtkOrientedImageData()
    grid.SetExtent(volume.GetImageData().GetExtent())
    grid.SetGeometryFromImageToWorldMatrix(index_to_ras(volume))
    grid.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    result = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, grid, result, False, False, transform
    )
    return result


def _image_to_world(image: Any) -> np.ndarray:
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return _array_of(matrix)


def _array_of(matrix: vtk.vtkMatrix4x4) -> np.ndarray:
    return np.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])
