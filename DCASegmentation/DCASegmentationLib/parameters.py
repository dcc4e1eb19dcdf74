"""The choices of the panel, as Slicer's parameter node keeps them in the scene."""

from __future__ import annotations

import enum
from typing import Annotated

from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


class Device(enum.Enum):
    """Where the network is computed; the values are the worker's words. Scenes keep the member's name."""

    Automatic = "auto"
    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"


class Speed(enum.Enum):
    """How much of the scan is computed; the values say whether the abdomen is looked for first."""

    WholeScan = False
    FindAbdomenFirst = True


@parameterNodeWrapper
class DCASegmentationParameterNode:
    """The choices of the panel, saved with the scene.

    ``resultSegmentation`` is the segmentation of the last run, which the sections below Segment are about. ``organs``
    are the keys of the organs to segment, divided by commas; all for an empty text.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    modelName: str
    device: Device = Device.Automatic
    speed: Speed = Speed.WholeScan
    organs: str
    outputSegmentation: vtkMRMLSegmentationNode
    regionOfInterest: vtkMRMLMarkupsROINode
    resultSegmentation: vtkMRMLSegmentationNode
    expertLevel: Annotated[int, WithinRange(1, 4)] = 4
    expertMap: str = "none"
    mapOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.5
    mapThreshold: Annotated[float, WithinRange(0.0, 1.0)] = 0.33
    colorMap: str = "Viridis"
    showLegend: bool = True
    saveMaps: bool = False
    keepCorrected: bool = True
