"""A MRML scene with its logics outside of Slicer, on the libraries of slicer-core, and whether OpenGL works.

Inside Slicer the application has made all of this already and :func:`boot` changes nothing, so that the rest of
``scene`` is written once, against ``slicer.mrmlScene`` and ``slicer.modules``.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import slicer
import vtk

_SECONDS = 60
_INSTALL = "apt-get install libegl1 libgl1-mesa-dri"

_PROBE = """
import slicer, vtk
window = vtk.vtkRenderWindow()
window.SetOffScreenRendering(1)
window.SetSize(16, 16)
renderer = vtk.vtkRenderer()
renderer.SetBackground(0.0, 1.0, 0.0)
window.AddRenderer(renderer)
window.Render()
pixels = vtk.vtkUnsignedCharArray()
window.GetPixelData(8, 8, 8, 8, 0, pixels, 0)
raise SystemExit(0 if pixels.GetValue(1) == 255 else 4)
"""


def choose_window_system() -> None:
    """Have VTK open its windows by EGL, in memory, without trying (and warning of) an X server first."""
    if sys.platform == "linux":
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")


@cache
def rendering_problem() -> str:
    """Why offscreen rendering cannot work and what to install, in one line; empty when it works.

    Renders one green window in a process of its own and looks at the color. Takes some two seconds, once.
    Inside Slicer, whose own views are open, there is nothing to find out; nowhere else is there a module PythonQt.
    """
    if "PythonQt" in sys.modules:
        return ""
    choose_window_system()
    try:
        process = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Rendering could not be tried ({type(error).__name__}). To have it, install OpenGL: {_INSTALL}"
    if process.returncode == 0:
        return ""
    if "No module named" in process.stderr:
        return "Slicer's libraries are not installed. To have them: pip install slicer-core==5.12.4.0"
    return f"OpenGL does not work here. To have it: {_INSTALL}"


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
