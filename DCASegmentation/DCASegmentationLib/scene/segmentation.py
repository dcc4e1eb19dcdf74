"""Label maps as vtkMRMLSegmentationNode, with terminology codes, and segments as voxels on the grid of a volume.

Terminology entries are written here rather than with Slicer's terminology files, which slicer-core does not include.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from dcaseg.errors import UserError
from dcaseg.organs import Code, Organ, Vocabulary
from dcaseg.types import Box
from DCASegmentationLib.scene.volumes import get_ijk_to_ras

# Names of the lists in which Slicer's terminology selector finds the codes.
_TYPE_CONTEXT = "Segmentation category and type - DICOM master list"
_REGION_CONTEXT = "Anatomic codes - DICOM master list"


def serialize_terminology_entry(organ: Organ) -> str:
    """Category, type, and side of an organ in the format of Slicer's terminology entries.

    The seven fields, separated by ``~``, are: type context, category, type, type modifier, region context, region, and
    region modifier. A code has the form ``scheme^value^meaning``; an empty field is ``^^``.
    """
    return "~".join(
        (
            _TYPE_CONTEXT,
            _serialize_code(organ.category),
            _serialize_code(organ.code),
            _serialize_code(organ.side),
            _REGION_CONTEXT,
            "^^",
            "^^",
        )
    )


def set_terminology(segment: Any, organ: Organ) -> None:
    """Tag a vtkSegment with the codes of ``organ``."""
    segment.SetTag(slicer.vtkSegment.GetTerminologyEntryTagName(), serialize_terminology_entry(organ))


def _serialize_code(code: Code | None) -> str:
    return f"{code.scheme}^{code.value}^{code.meaning}" if code else "^^"


_BINARY_LABELMAP = "Binary labelmap"
_ALGORITHM = "DCA"


def show_segmentation(labels: sitk.Image | np.ndarray, vocabulary: Vocabulary, ct_node: Any, name: str) -> Any:
    """Add the organs of a label map to the scene.

    ``labels`` must be on exactly the grid of ``ct_node``, as an image or an array (z, y, x). Each organ with voxels
    becomes a segment whose ID is the organ's key. ``ct_node`` becomes the source volume and the reference geometry.

    All segments share one label map, which is how Slicer stores segments that do not overlap. Importing organ by organ
    would give the same segments but read the volume once for each organ.

    Returns the vtkMRMLSegmentationNode. Raises ValueError if the grids differ or a label is not in ``vocabulary``.
    """
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.CreateDefaultDisplayNodes()
    try:
        add_organs(node, labels, vocabulary, ct_node)
    except ValueError:
        slicer.mrmlScene.RemoveNode(node)
        raise
    return node


def add_organs(node: Any, labels: sitk.Image | np.ndarray, vocabulary: Vocabulary, ct_node: Any) -> dict[str, str]:
    """Add the organs of a label map to an existing vtkMRMLSegmentationNode; see :func:`show_segmentation`.

    Existing segments do not change; if the ID of a new segment is taken, it gets another ID. Returns the organ key of
    each added segment, by segment ID. Raises ValueError, before anything changes, if the grids differ or a label is
    unknown.
    """
    array = sitk.GetArrayViewFromImage(labels) if isinstance(labels, sitk.Image) else labels
    _check_size(array, ct_node)
    present = find_unique_labels(array)
    if unknown := sorted(set(present) - set(vocabulary.by_label)):
        raise ValueError(f"labels {unknown} are not in the vocabulary {vocabulary.name}")

    node.SetReferenceImageGeometryParameterFromVolumeNode(ct_node)
    segmentation = node.GetSegmentation()
    shared = _create_label_map(array, ct_node)
    added = {}
    for label in present:
        organ = vocabulary.by_label[label]
        segment = slicer.vtkSegment()
        segment.SetLabelValue(label)
        _describe(segment, organ)
        segment.AddRepresentation(_BINARY_LABELMAP, shared)
        segment_id = segmentation.GenerateUniqueSegmentID(organ.key)
        segmentation.AddSegment(segment, segment_id)
        added[segment_id] = organ.key
    return added


def add_empty_organ(node: Any, organ: Organ) -> str:
    """Add a segment without voxels for ``organ`` and return its ID."""
    segmentation = node.GetSegmentation()
    segment_id = str(segmentation.AddEmptySegment(segmentation.GenerateUniqueSegmentID(organ.key), organ.name))
    _describe(segmentation.GetSegment(segment_id), organ)
    return segment_id


def add_closed_surfaces(node: Any) -> None:
    """Compute the surfaces of all segments for 3D views, which takes some seconds for a large CT."""
    node.CreateClosedSurfaceRepresentation()


def _check_size(array: np.ndarray, ct_node: Any) -> None:
    size = ct_node.GetImageData().GetDimensions()
    if array.shape != size[::-1]:
        raise ValueError(f"the label map has size {array.shape[::-1]}, but the CT has size {size}")


def find_unique_labels(array: np.ndarray) -> list[int]:
    """The labels in an array (z, y, x), ascending and without 0; by plane, because bincount needs 8 bytes per voxel."""
    found: set[int] = set()
    for plane in array:
        found.update(np.flatnonzero(np.bincount(plane.ravel())).tolist())
    return sorted(found - {0})


def _describe(segment: Any, organ: Organ) -> None:
    """Set the name, color, and codes of ``organ`` on a vtkSegment."""
    segment.SetName(organ.name)
    segment.SetNameAutoGenerated(False)
    segment.SetColor([channel / 255.0 for channel in organ.color])
    segment.SetColorAutoGenerated(False)
    set_terminology(segment, organ)
    # Without these tags, Slicer's DICOM SEG export declares the segment as drawn by hand.
    segment.SetTag("DICOM.SegmentAlgorithmType", "AUTOMATIC")
    segment.SetTag("DICOM.SegmentAlgorithmName", _ALGORITHM)


def _create_label_map(array: np.ndarray, ct_node: Any) -> Any:
    """The labels as vtkOrientedImageData, cropped to the organs so that surfaces are computed faster."""
    box = compute_bounding_box(array)
    inside = array[box]
    label_map = slicer.vtkOrientedImageData()
    label_map.SetExtent([bound for part in reversed(box) for bound in (part.start, part.stop - 1)])
    scalars = vtk.vtkDataArray.CreateDataArray(_get_vtk_type(array.dtype))
    scalars.SetNumberOfTuples(inside.size)
    # Copied only once, directly into VTK's memory.
    vtk_to_numpy(scalars).reshape(inside.shape)[...] = inside
    # VTK's name for the voxels of an image: Slicer's DICOM SEG export treats an image without it as empty.
    scalars.SetName("ImageScalars")
    label_map.GetPointData().SetScalars(scalars)
    label_map.SetGeometryFromImageToWorldMatrix(get_ijk_to_ras(ct_node))
    return label_map


def compute_bounding_box(array: np.ndarray) -> Box:
    """The smallest box (z, y, x) around the organs, plus a margin of one voxel inside the array."""
    slices = []
    part = array
    for axis in range(3):
        other_axes = tuple(other for other in range(3) if other != axis)
        found = np.flatnonzero(part.any(axis=other_axes))
        start = max(0, int(found.min(initial=0)) - 1)
        stop = min(array.shape[axis], int(found.max(initial=0)) + 2)
        slices.append(slice(start, stop))
        # Only this part can contain organs along the next axes.
        part = np.moveaxis(np.moveaxis(part, axis, 0)[start:stop], 0, axis)
    return slices[0], slices[1], slices[2]


def _get_vtk_type(dtype: np.dtype) -> int:
    """The VTK type of a label map: Slicer uses 8 bits, or 16 bits if the labels need them."""
    return int(vtk.VTK_UNSIGNED_CHAR if dtype.itemsize == 1 else vtk.VTK_SHORT)


# Axes count as parallel if they drift apart by less than this many voxels over the whole image.
_SAME_VOXEL = 0.01


@dataclass(frozen=True)
class Layer:
    """Segments that share one label map.

    ``labels`` (z, y, x) covers ``box`` of the volume's array (z, y, x); ``segments`` maps labels to segment IDs.
    """

    labels: np.ndarray
    box: Box
    segments: dict[int, str]

    def get_values_by_segment(self, array: np.ndarray) -> dict[str, np.ndarray]:
        """The values of ``array`` (z, y, x), which is on the volume's grid, within each segment, by segment ID."""
        inside = self.labels > 0
        labels, values = self.labels[inside], array[self.box][inside]
        # Sort once, because selecting the voxels of each segment separately would read all of them each time.
        order = np.argsort(labels, kind="stable")
        labels, values = labels[order], values[order]
        found = {}
        for label, segment_id in self.segments.items():
            start, stop = np.searchsorted(labels, [label, label + 1])
            found[segment_id] = values[start:stop]
        return found


def iter_layer_images(content: Any) -> Iterator[tuple[int, Any]]:
    """The label maps with voxels (vtkOrientedImageData) of a vtkSegmentation, each with the number of its layer.

    There are none if another representation is the source, such as closed surface (see :func:`require_voxels`).
    """
    for number in range(content.GetNumberOfLayers()):
        image = content.GetLayerDataObject(number)
        if image is not None and image.IsA("vtkOrientedImageData") and not image.IsEmpty():
            yield number, image


def get_layers(segmentation: Any, volume: Any) -> list[Layer]:
    """The label maps of a vtkMRMLSegmentationNode on the grid of a volume node; nearest neighbor if the grids differ.

    Overlapping segments are in different layers. Parent transforms of both nodes are taken into account.
    """
    content = segmentation.GetSegmentation()
    between = vtk.vtkGeneralTransform()
    segmentation_transform, volume_transform = segmentation.GetParentTransformNode(), volume.GetParentTransformNode()
    slicer.vtkMRMLTransformNode.GetTransformBetweenNodes(segmentation_transform, volume_transform, between)
    layers = []
    for number, image in iter_layer_images(content):
        found = _resample_along_axes(image, volume) if segmentation_transform is volume_transform else None
        if found is None:
            # After resampling, the image is on the volume's own grid.
            found = _resample_along_axes(_resample(image, volume, between), volume)
        if found is not None and found[0].size:
            layers.append(Layer(*found, _get_layer_segments(content, number)))
    return layers


def _get_layer_segments(content: Any, layer: int) -> dict[int, str]:
    ids = content.GetSegmentIDsForLayer(layer)
    return {int(content.GetSegment(segment_id).GetLabelValue()): segment_id for segment_id in ids}


def _resample_along_axes(image: Any, volume: Any) -> tuple[np.ndarray, Box] | None:
    """The image sampled at the volume's voxels, and the box it covers; None unless the axes of both are parallel.

    Parallel axes are the usual case, and selecting planes is many times faster than resampling.
    """
    size = volume.GetImageData().GetDimensions()
    to_image = np.linalg.inv(get_image_to_world(image)) @ slicer.util.arrayFromVTKMatrix(get_ijk_to_ras(volume))
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
        part = _take_planes(part, index[start:stop] - first, 2 - axis)
    return part.transpose([2 - across.index(2 - position) for position in range(3)]), (box[0], box[1], box[2])


def _take_planes(array: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
    """The planes ``index`` of an array along ``axis``, without copying if they are consecutive."""
    if len(index) and np.array_equal(index, np.arange(index[0], index[0] + len(index))):
        selection: list[slice] = [slice(None)] * array.ndim
        selection[axis] = slice(int(index[0]), int(index[-1]) + 1)
        return array[tuple(selection)]
    return np.take(array, index, axis=axis)


def _resample(image: Any, volume: Any, transform: vtk.vtkAbstractTransform) -> Any:
    grid = slicer.vtkOrientedImageData()
    grid.SetExtent(volume.GetImageData().GetExtent())
    grid.SetGeometryFromImageToWorldMatrix(get_ijk_to_ras(volume))
    grid.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
    result = slicer.vtkOrientedImageData()
    slicer.vtkOrientedImageDataResample.ResampleOrientedImageToReferenceOrientedImage(
        image, grid, result, False, False, transform
    )
    return result


def get_image_to_world(image: Any) -> np.ndarray:
    """The matrix (4, 4) from voxel indices (i, j, k) of a vtkOrientedImageData to RAS (mm)."""
    matrix = vtk.vtkMatrix4x4()
    image.GetImageToWorldMatrix(matrix)
    return np.asarray(slicer.util.arrayFromVTKMatrix(matrix))


# A tag, because users can change IDs and names; it is saved with the segment.
_TAG = "DCASegmentation.Organ"


# Earlier versions wrote this instead of the organ's key; then the segment's ID is the key.
_UNNAMED = "1"


def tag_organs(node: Any, organs: Mapping[str, str]) -> None:
    """Mark segments as organs of this module; ``organs`` maps segment IDs of the segmentation node to organ keys."""
    for segment_id, key in organs.items():
        node.GetSegmentation().GetSegment(segment_id).SetTag(_TAG, key)


def list_organ_segments(node: Any) -> list[str]:
    """IDs of the segments that :func:`tag_organs` marked."""
    segmentation = node.GetSegmentation()
    return [each for each in segmentation.GetSegmentIDs() if segmentation.GetSegment(each).HasTag(_TAG)]


def get_organs_by_segment(node: Any) -> dict[str, str]:
    """The organ key of each segment that :func:`tag_organs` marked, by segment ID, whatever its current name is."""
    found = {}
    for segment_id in list_organ_segments(node):
        key = vtk.reference("")
        node.GetSegmentation().GetSegment(segment_id).GetTag(_TAG, key)
        found[segment_id] = segment_id if str(key) == _UNNAMED else str(key)
    return found


def require_target(node: Any, ct_node: Any) -> None:
    """Raises UserError unless the organs of ``ct_node`` can be put into the vtkMRMLSegmentationNode ``node``."""
    name = node.GetName()
    if not node.IsA("vtkMRMLSegmentationNode"):
        raise UserError(f"{name} is not a segmentation.", "Select a segmentation, or a new one.")
    reference = node.GetNodeReference(node.GetReferenceImageGeometryReferenceRole())
    if reference is not None and reference.GetID() != ct_node.GetID():
        raise UserError(
            f"{name} belongs to another CT ({reference.GetName()}).", "Select a segmentation of this CT, or a new one."
        )
    require_voxels(node)
    if node.GetSegmentation().GetNumberOfSegments() == 0:
        return
    if node.GetTransformNodeID() != ct_node.GetTransformNodeID():
        raise UserError(f"{name} and the CT are under different transforms.", "Put both under the same transform.")


def has_voxels(node: Any) -> bool:
    """Whether a vtkMRMLSegmentationNode is stored as voxels, its source representation, which users can change."""
    return bool(node.GetSegmentation().GetSourceRepresentationName() == _BINARY_LABELMAP)


def require_voxels(node: Any) -> None:
    """Raises UserError if a vtkMRMLSegmentationNode is stored in another form than voxels, such as closed surface."""
    if not has_voxels(node):
        source = node.GetSegmentation().GetSourceRepresentationName()
        raise UserError(
            f"{node.GetName()} is stored as {source.lower()}, not as voxels.",
            "Make binary labelmap its source representation (module Segmentations), or use another segmentation.",
        )


def replace_organs(node: Any, add: Callable[[Any], dict[str, str]], kept: Collection[str] = ()) -> dict[str, str]:
    """Remove the organs that this module put into ``node``, except ``kept`` (segment IDs), and ``add`` new ones.

    All of this is one modification of the node. Returns the result of ``add(node)``: the organ key of each new segment.
    If it raises ValueError, the removed organs are restored.
    """
    before = [each for each in list_organ_segments(node) if each not in kept]
    old = [(each, node.GetSegmentation().GetSegment(each)) for each in before]
    modification = node.StartModify()
    try:
        for segment_id in before:
            node.GetSegmentation().RemoveSegment(segment_id)
        try:
            return add(node)
        except ValueError:
            for segment_id, segment in old:
                node.GetSegmentation().AddSegment(segment, segment_id)
            raise
    finally:
        node.EndModify(modification)
