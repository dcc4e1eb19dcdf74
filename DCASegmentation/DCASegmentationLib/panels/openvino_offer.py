"""OpenVINO, which makes the network faster on CPUs: offered where it would be of use, never required."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
import sys

import slicer
import slicer.util
from slicer.i18n import tr as _

from DCASegmentationLib.errors import UserError
from DCASegmentationLib.panels.requirements import refuseWhileTesting, torchVersion

# Alone: what else it asks for is numpy, which Slicer brings, and a package that reports to its maker.
PIP_ARGUMENTS = "--no-deps openvino>=2025.0"
_DECLINED = "DCASegmentation/OpenVINODeclined"


def openVINOVersion() -> str | None:
    """The version of OpenVINO in Slicer's Python, None where there is none."""
    importlib.invalidate_caches()
    if importlib.util.find_spec("openvino") is None:
        return None
    try:
        return importlib.metadata.version("openvino")
    except importlib.metadata.PackageNotFoundError:
        return None


def isOffered() -> bool:
    """Whether the CPU is what this computer has to compute on, and OpenVINO is neither there nor was declined."""
    if torchVersion() is None or openVINOVersion() is not None or _hasGPU():
        return False
    return not slicer.util.toBool(slicer.app.settings().value(_DECLINED, False))


def installOpenVINO() -> None:
    """Ask, and install it into Slicer's Python; who declines is not asked again.

    Raises UserError where it was declined, or pip has failed.
    """
    refuseWhileTesting("openvino")
    question = _(
        "Install OpenVINO (some 180 MB on disk) into Slicer's Python? It makes the segmentation on the CPU faster; "
        "without it everything works, too."
    )
    if not slicer.util.confirmOkCancelDisplay(question, _("Install OpenVINO")):
        slicer.app.settings().setValue(_DECLINED, True)
        raise UserError(
            _("OpenVINO is not offered again."),
            _("To have it later, enter in Slicer's Python console: {command}").format(
                command=f"slicer.util.pip_install({PIP_ARGUMENTS!r})"
            ),
        )
    try:
        _pipInstall()
    # What pip could not do, and what Slicer cannot start pip for.
    except (subprocess.CalledProcessError, OSError, RuntimeError) as error:
        raise UserError(
            _("OpenVINO could not be installed: {reason}").format(reason=error),
            _("Check the network and the free space. Nothing needs it; the segmentation works as before."),
        ) from error
    if openVINOVersion() is None:
        raise UserError(_("OpenVINO was not installed."), _("Nothing needs it; the segmentation works as before."))


def _pipInstall() -> None:
    try:
        from slicer.packaging import pip_install
    except ImportError:
        # Slicer 5.10
        with slicer.util.WaitCursor():
            slicer.util.pip_install(PIP_ARGUMENTS)
    else:
        pip_install(PIP_ARGUMENTS, requester="DCA Segmentation")


def _hasGPU() -> bool:
    """An NVIDIA driver brings this program along; every Apple computer with ARM has a GPU that PyTorch uses."""
    return shutil.which("nvidia-smi") is not None or (sys.platform == "darwin" and platform.machine() == "arm64")
