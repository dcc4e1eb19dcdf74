"""Images as MRML volume nodes, on exactly the image's own grid (oblique directions included)."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util
import vtk

# Soft-tissue window of abdominal CT, in HU.
ABDOMEN_WINDOW, ABDOMEN_LEVEL = 400.0, 40.0


def show_ct(ct: sitk.Image, name: str) -> Any:
    """Add a CT volume (intensities in HU) to the scene, shown in gray with the abdominal window.

    Returns the vtkMRMLScalarVolumeNode.
    """
    node = add_volume(ct, name, "vtkMRMLScalarVolumeNode")
    display = node.GetDisplayNode()
    display.SetAndObserveColorNodeID("vtkMRMLColorTableNodeGrey")
    display.AutoWindowLevelOff()
    display.SetWindowLevel(ABDOMEN_WINDOW, ABDOMEN_LEVEL)
    return node


def add_volume(image: sitk.Image, name: str, node_class: str, hidden: bool = False) -> Any:
    """Add ``image`` (three-dimensional, one value per voxel) to the scene as a node of ``node_class``.

    No module offers a ``hidden`` one.

    Size, spacing (mm), origin and directions are taken over to the last bit; only the handedness of the axes changes,
    from SimpleITK's LPS to Slicer's RAS.
    """
    node = new_node(node_class, name, hidden)
    node.SetOrigin(_ras(image.GetOrigin()))
    node.SetSpacing(image.GetSpacing())
    directions = np.diag([-1.0, -1.0, 1.0]) @ np.reshape(image.GetDirection(), (3, 3))
    node.SetIJKToRASDirections(directions.tolist())
    # Before the voxels: the display would look through them for a window, which is set by the meaning of the volume.
    node.CreateDefaultDisplayNodes()
    if node_class == "vtkMRMLScalarVolumeNode":
        node.GetDisplayNode().AutoWindowLevelOff()
    slicer.util.updateVolumeFromArray(node, sitk.GetArrayViewFromImage(image))
    return node


def new_node(node_class: str, name: str, hidden: bool) -> Any:
    """Add a node; a hidden one is so from the start, or each selector of the window would list it first."""
    node = slicer.mrmlScene.CreateNodeByClass(node_class)
    node.UnRegister(None)
    node.SetName(slicer.mrmlScene.GenerateUniqueName(name))
    node.SetHideFromEditors(hidden)
    return slicer.mrmlScene.AddNode(node)


def image_of(node: Any) -> sitk.Image:
    """The voxels and grid of a volume node as a SimpleITK image (a copy)."""
    image = sitk.GetImageFromArray(slicer.util.arrayFromVolume(node))
    image.SetSpacing(node.GetSpacing())
    image.SetOrigin(_ras(node.GetOrigin()))
    directions = [[0.0] * 3 for _ in range(3)]
    node.GetIJKToRASDirections(directions)
    image.SetDirection((np.diag([-1.0, -1.0, 1.0]) @ np.array(directions)).ravel().tolist())
    return image


def index_to_ras(node: Any) -> vtk.vtkMatrix4x4:
    """The 4 by 4 matrix from voxel index (i, j, k) to RAS position in mm."""
    matrix = vtk.vtkMatrix4x4()
    node.GetIJKToRASMatrix(matrix)
    return matrix


def _ras(point: tuple[float, ...]) -> tuple[float, float, float]:
    return -point[0], -point[1], point[2]
