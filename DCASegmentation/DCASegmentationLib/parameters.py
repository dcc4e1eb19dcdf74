"""The choices in the panel, stored in the scene by Slicer's parameter node."""

from __future__ import annotations

import enum
from typing import Annotated

from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper


class Device(enum.Enum):
    """The device that runs the network. The values are the worker's names; scenes store the member names."""

    Automatic = "auto"
    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"


class Speed(enum.Enum):
    """How much of the scan to process. The value is the option ``find_abdomen``; scenes store the member names."""

    WholeScan = False
    FindAbdomenFirst = True


@parameterNodeWrapper
class DCASegmentationParameterNode:
    """The choices in the panel, saved with the scene.

    ``resultSegmentation`` is the segmentation of the last run, which the sections below Segment show. ``organs`` holds
    the keys of the organs to segment, separated by commas; an empty string means all organs.
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
