"""Whether views can be rendered here, found out without risk: without its libraries VTK crashes the process."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

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
