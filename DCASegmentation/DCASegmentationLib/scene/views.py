"""Slicer's slice and 3D views drawn into memory, by the displayable managers that draw them in the application."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import slicer
import vtk
from vtk.util.numpy_support import vtk_to_numpy

from DCASegmentationLib.figures.planes import Plane
from DCASegmentationLib.scene.arrangement import place_slice
from DCASegmentationLib.scene.headless import application_logic

_SLICE_MANAGERS = (
    "vtkMRMLVolumeGlyphSliceDisplayableManager",
    "vtkMRMLModelSliceDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager2D",
    "vtkMRMLColorLegendDisplayableManager",
)
_THREE_D_MANAGERS = (
    "vtkMRMLCameraDisplayableManager",
    "vtkMRMLViewDisplayableManager",
    "vtkMRMLModelDisplayableManager",
    "vtkMRMLSegmentationsDisplayableManager3D",
)


class _OffscreenView:
    """A window in memory whose renderer shows one view node. Close it to release node, window and managers."""

    def __init__(self, pixels: tuple[int, int]) -> None:
        self._node: Any = None
        self._group: Any = None
        self.renderer = vtk.vtkRenderer()
        self.window = vtk.vtkRenderWindow()
        self.window.SetOffScreenRendering(1)
        self.window.SetMultiSamples(0)
        self.window.SetSize(*pixels)
        self.window.AddRenderer(self.renderer)
        # Displayable managers register with an interactor and crash without one.
        self.interactor = vtk.vtkGenericRenderWindowInteractor()
        self.interactor.SetRenderWindow(self.window)

    def _manage(self, factory: Any, managers: Sequence[str], node: Any) -> None:
        factory.SetMRMLApplicationLogic(application_logic())
        for name in managers:
            if not factory.IsDisplayableManagerRegistered(name):
                factory.RegisterDisplayableManager(name)
        self._node = node
        self._group = slicer.vtkMRMLDisplayableManagerGroup()
        self._group.Initialize(factory, self.renderer)
        self._group.SetMRMLDisplayableNode(node)

    def pixels(self) -> np.ndarray:
        """Render and return RGB pixels (rows, columns, 3) uint8, top row first."""
        self.window.Render()
        capture = vtk.vtkWindowToImageFilter()
        capture.SetInput(self.window)
        capture.ReadFrontBufferOff()
        capture.Update()
        image = capture.GetOutput()
        columns, rows, _ = image.GetDimensions()
        array = vtk_to_numpy(image.GetPointData().GetScalars()).reshape(rows, columns, -1)
        return np.ascontiguousarray(array[::-1, :, :3])

    def close(self) -> None:
        self._group.SetMRMLDisplayableNode(None)
        slicer.mrmlScene.RemoveNode(self._node)
        self.window.Finalize()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class SliceView(_OffscreenView):
    """A slice view of ``pixels`` (columns, rows), empty until :meth:`show`."""

    def __init__(self, name: str, pixels: tuple[int, int]) -> None:
        super().__init__(pixels)
        self._size = pixels
        self.logic = slicer.vtkMRMLSliceLogic()
        self.logic.SetMRMLApplicationLogic(application_logic())
        self.logic.SetMRMLScene(slicer.mrmlScene)
        node = self.logic.AddSliceNode(name)
        node.SetSaveWithScene(False)
        node.SetDimensions(*pixels, 1)
        self.logic.GetSliceCompositeNode().SetSaveWithScene(False)
        application_logic().GetSliceLogics().AddItem(self.logic)
        # Flat things are drawn in the order they came: the slice must lie below what the managers add.
        self._add_slice_image()
        self._manage(slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance(), _SLICE_MANAGERS, node)

    def _add_slice_image(self) -> None:
        self._mapper = vtk.vtkImageMapper()
        self._mapper.SetColorWindow(255)
        self._mapper.SetColorLevel(127.5)
        actor = vtk.vtkActor2D()
        actor.SetMapper(self._mapper)
        self.renderer.AddViewProp(actor)

    def show(self, plane: Plane, ct: Any, overlay: Any = None, labels: Any = None, opacity: float = 0.0) -> None:
        """Cut along ``plane``: the CT, with an ``overlay`` volume or a ``labels`` map over it at ``opacity``."""
        composite = self.logic.GetSliceCompositeNode()
        composite.SetBackgroundVolumeID(ct.GetID())
        composite.SetForegroundVolumeID(overlay.GetID() if overlay else None)
        composite.SetForegroundOpacity(opacity)
        composite.SetLabelVolumeID(labels.GetID() if labels else None)
        composite.SetLabelOpacity(opacity)
        place_slice(self.logic.GetSliceNode(), plane, self._size)
        self.logic.UpdatePipeline()
        # The logic has no output before there is a volume, and another one as layers come and go.
        self._mapper.SetInputConnection(self.logic.GetImageDataConnection())

    def close(self) -> None:
        application_logic().GetSliceLogics().RemoveItem(self.logic)
        made_by_logic = (
            self.logic.GetSliceCompositeNode(),
            self.logic.GetSliceModelNode(),
            self.logic.GetSliceDisplayNode(),
            self.logic.GetSliceModelTransformNode(),
        )
        # Off the scene first: a logic that watches it makes its nodes anew when they go.
        self.logic.SetMRMLScene(None)
        super().close()
        for node in made_by_logic:
            slicer.mrmlScene.RemoveNode(node)


class ThreeDView(_OffscreenView):
    """A 3D view of ``pixels`` (columns, rows) on a plain background, looking at everything shown in 3D."""

    def __init__(self, name: str, pixels: tuple[int, int], background: tuple[float, float, float]) -> None:
        super().__init__(pixels)
        # Smooth edges: surfaces have no text or outlines that multisampling could blur.
        self.window.SetMultiSamples(4)
        self.camera = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLCameraNode")
        self.camera.SetSaveWithScene(False)
        node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLViewNode")
        node.UnRegister(None)
        node.SetName(name)
        node.SetLayoutName(name)
        node.SetSaveWithScene(False)
        node.SetBoxVisible(False)
        node.SetAxisLabelsVisible(False)
        node.SetBackgroundColor(*background)
        node.SetBackgroundColor2(*background)
        slicer.mrmlScene.AddNode(node)
        self.camera.SetLayoutName(name)
        self._manage(slicer.vtkMRMLThreeDViewDisplayableManagerFactory.GetInstance(), _THREE_D_MANAGERS, node)

    def look(self, azimuth: float, elevation: float) -> None:
        """Look from the front, turned by ``azimuth`` towards the patient's left and up by ``elevation`` (degrees)."""
        camera = self.renderer.GetActiveCamera()
        camera.SetFocalPoint(0.0, 0.0, 0.0)
        camera.SetPosition(0.0, 1.0, 0.0)
        camera.SetViewUp(0.0, 0.0, 1.0)
        camera.Azimuth(azimuth)
        camera.Elevation(elevation)
        camera.ParallelProjectionOn()
        self.renderer.ResetCamera()
        camera.Zoom(1.35)
        self.renderer.ResetCameraClippingRange()

    def close(self) -> None:
        super().close()
        slicer.mrmlScene.RemoveNode(self.camera)
