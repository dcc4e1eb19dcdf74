"""A MRML scene with its logics outside of Slicer, on the libraries of the package ``slicer-core``.

Inside Slicer the application has made all of this already and :func:`boot` changes nothing, so that the rest of
``scene`` is written once, against ``slicer.mrmlScene`` and ``slicer.modules``.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
import vtk

from DCASegmentationLib.scene.opengl import choose_window_system

_LOGICS = {
    "colors": "vtkSlicerColorLogic",
    "volumes": "vtkSlicerVolumesLogic",
    "segmentations": "vtkSlicerSegmentationsModuleLogic",
    "units": "vtkSlicerUnitsLogic",
    "models": "vtkSlicerModelsLogic",
}


class _Module:
    """What scripts use of a Slicer module: ``slicer.modules.<name>.logic()``."""

    def __init__(self, logic: Any) -> None:
        self._logic = logic

    def logic(self) -> Any:
        return self._logic


class _Application:
    """Owner of the objects that the application keeps alive in Slicer."""

    def __init__(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.modules = SimpleNamespace()
        # The layout manager fills these in Slicer; displayable managers look their view's logic up in them.
        self.slice_logics, self.view_logics = vtk.vtkCollection(), vtk.vtkCollection()
        self.logic.SetSliceLogics(self.slice_logics)
        self.logic.SetViewLogics(self.view_logics)
        self._provide_file_access()
        self.logic.SetMRMLScene(self.scene)
        # Kept without a scene: with one it looks for Slicer's terminology files, which slicer-core lacks.
        self.modules.terminologies = _Module(slicer.vtkSlicerTerminologiesModuleLogic())
        for name, class_name in _LOGICS.items():
            logic = getattr(slicer, class_name)()
            logic.SetMRMLApplicationLogic(self.logic)
            # Other logics ask the application for "Colors" and "Volumes" by these capitalized names.
            self.logic.SetModuleLogic(name.capitalize(), logic)
            logic.SetMRMLScene(self.scene)
            setattr(self.modules, name, _Module(logic))
        self.logic.SetColorLogic(self.modules.colors.logic())

    def _provide_file_access(self) -> None:
        """Reading a .mrb unpacks into the remote cache folder, so the scene needs one even for local files."""
        cache = tempfile.mkdtemp(prefix="dca-mrml-cache-")
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
        # Color logic asks for these folders; the color files it looks for in them are not part of slicer-core.
        self.logic.SetHomeDirectory(cache)
        self.logic.SetShareDirectory("share")
        Path(cache, "share", "ColorFiles").mkdir(parents=True)
        self.remote_io = slicer.vtkMRMLRemoteIOLogic()
        cache_manager = self.remote_io.GetCacheManager()
        cache_manager.CreateSentinelFileInDirectory(cache)  # the sign that the folder is a cache it may clear
        cache_manager.SetRemoteCacheDirectory(cache)
        self.data_io = slicer.vtkDataIOManagerLogic()
        self.data_io.SetMRMLApplicationLogic(self.logic)
        self.data_io.SetAndObserveDataIOManager(self.remote_io.GetDataIOManager())
        self.logic.SetMRMLSceneDataIO(self.scene, self.remote_io, self.data_io)


_application: _Application | None = None


def boot() -> None:
    """Set ``slicer.mrmlScene`` and ``slicer.modules`` where no Slicer application has done so."""
    global _application
    if getattr(slicer, "mrmlScene", None) is not None:
        return
    choose_window_system()
    _application = _Application()
    slicer.mrmlScene = _application.scene
    slicer.modules = _application.modules


def application_logic() -> Any:
    """The vtkMRMLApplicationLogic that views and their displayable managers work with."""
    boot()
    if _application is not None:
        return _application.logic
    return slicer.app.applicationLogic()
