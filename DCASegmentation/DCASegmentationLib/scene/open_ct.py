"""Which volume of the scene is the CT that somebody has just opened."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer
import slicer.util

from DCASegmentationLib.errors import UserError
from DCASegmentationLib.imaging.ct_check import check_ct
from DCASegmentationLib.scene.exchange import require_ct

_ENOUGH_VOXELS = 500_000
_FEWEST_ALONG_AN_AXIS = 8


def open_ct() -> Any | None:
    """The CT in the red slice view, else the first one of the scene; None where no volume looks like a CT."""
    scene = slicer.mrmlScene
    composite = scene.GetSingletonNode("Red", "vtkMRMLSliceCompositeNode")
    shown = scene.GetNodeByID(composite.GetBackgroundVolumeID() or "") if composite is not None else None
    count = scene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    volumes = [scene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode") for index in range(count)]
    volumes.sort(key=lambda node: node is not shown)
    return next((node for node in volumes if looks_like_ct(node)), None)


def looks_like_ct(node: Any) -> bool:
    """Whether a volume node has the values of a CT in HU: no label map, no MR, no map of attention.

    Judged by a part of the voxels, so that it takes no time that anybody notices; the worker checks all of them.
    """
    try:
        require_ct(node)
        check_ct(_thinned(node))
    except UserError:
        return False
    return True


def _thinned(node: Any) -> sitk.Image:
    voxels = slicer.util.arrayFromVolume(node)
    step = max(1, round((voxels.size / _ENOUGH_VOXELS) ** (1 / 3)))
    steps = [max(1, min(step, length // _FEWEST_ALONG_AN_AXIS)) for length in voxels.shape]
    part = np.ascontiguousarray(voxels[tuple(slice(None, None, each) for each in steps)])
    image = sitk.GetImageFromArray(part)
    image.SetSpacing([side * each for side, each in zip(node.GetSpacing(), reversed(steps), strict=True)])
    return image
