"""A MRML scene with its logics outside Slicer, using slicer-core, and a check whether OpenGL works.

In Slicer the application has created all of this already and :func:`boot` does nothing. The rest of ``scene`` therefore
uses ``slicer.mrmlScene`` and ``slicer.modules`` in both cases.
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

from dcaseg.temp_paths import clean, make_partial_path

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
    """Let VTK open its windows offscreen with EGL, without trying an X server first and warning about it."""
    if sys.platform == "linux":
        os.environ.setdefault("VTK_DEFAULT_OPENGL_WINDOW", "vtkEGLRenderWindow")


@cache
def find_rendering_problem() -> str:
    """Why offscreen rendering does not work and what to install, in one line; empty if it works.

    This renders a green window in a separate process and checks the color, which takes about two seconds, once. In
    Slicer, the only program with a module PythonQt, there is nothing to check because its views are open.
    """
    if "PythonQt" in sys.modules:
        return ""
    choose_window_system()
    try:
        process = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"Rendering could not be tested ({type(error).__name__}). To install OpenGL: {_INSTALL}"
    if process.returncode == 0:
        return ""
    if "No module named" in process.stderr:
        return "Slicer's libraries are not installed. To install them: pip install slicer-core==5.12.4.0"
    return f"OpenGL does not work here. To install it: {_INSTALL}"


_LOGICS = {
    "colors": "vtkSlicerColorLogic",
    "volumes": "vtkSlicerVolumesLogic",
    "segmentations": "vtkSlicerSegmentationsModuleLogic",
    "units": "vtkSlicerUnitsLogic",
    "models": "vtkSlicerModelsLogic",
}


class _Module:
    """The part of a Slicer module that scripts use: ``slicer.modules.<name>.logic()``."""

    def __init__(self, logic: Any) -> None:
        self._logic = logic

    def logic(self) -> Any:
        """The module's logic."""
        return self._logic


class _Application:
    """Owns the objects that the application keeps alive in Slicer."""

    def __init__(self) -> None:
        self.scene = slicer.vtkMRMLScene()
        self.logic = slicer.vtkSlicerApplicationLogic()
        self.modules = SimpleNamespace()
        # In Slicer the layout manager fills these; displayable managers look up the logic of their view in them.
        self.slice_logics, self.view_logics = vtk.vtkCollection(), vtk.vtkCollection()
        self.logic.SetSliceLogics(self.slice_logics)
        self.logic.SetViewLogics(self.view_logics)
        self._provide_file_access()
        self.logic.SetMRMLScene(self.scene)
        # Without a scene, because with one it looks for Slicer's terminology files, which slicer-core lacks.
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
        """Give the scene a remote cache folder: reading a .mrb file unpacks into it, even for local files."""
        # Scenes may contain CTs, so the folders of killed processes are removed.
        temporary = Path(tempfile.gettempdir())
        clean(temporary)
        folder = make_partial_path(temporary / "dca-mrml-cache")
        cache = str(folder)
        # Before the folder exists, because the process can be interrupted at any moment.
        atexit.register(shutil.rmtree, cache, ignore_errors=True)
        folder.mkdir(mode=0o700)
        # The color logic needs these folders to exist; slicer-core does not include the color files.
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
    """Set ``slicer.mrmlScene`` and ``slicer.modules``, unless the Slicer application has done so."""
    global _application
    if getattr(slicer, "mrmlScene", None) is not None:
        return
    choose_window_system()
    _application = _Application()
    slicer.mrmlScene = _application.scene
    slicer.modules = _application.modules


def get_application_logic() -> Any:
    """The vtkMRMLApplicationLogic that views and their displayable managers use."""
    boot()
    if _application is not None:
        return _application.logic
    return slicer.app.applicationLogic()
