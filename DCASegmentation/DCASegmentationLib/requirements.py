"""What has to be in Slicer's Python before a model can run: PyTorch, its extension, and optionally OpenVINO.

Nothing here imports torch: Slicer's own process never loads it, the worker does.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import slicer
import slicer.util
from slicer.i18n import tr as _

from dcaseg.errors import UserError

# The oldest PyTorch the network was tried with.
TORCH_REQUIREMENT = ">=2.4.1"


def platformProblem() -> UserError | None:
    """Why no PyTorch that is new enough can be had for this computer; None where it can."""
    # Slicer for macOS is built for Intel, also where it runs on Apple's own processors.
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return UserError(
            _(
                "This Slicer is built for Intel Macs, for which PyTorch ends at 2.2.2; models need {version} or newer."
            ).format(version=TORCH_REQUIREMENT.removeprefix(">=")),
            _("Segment on Linux, Windows, or with a Slicer that is built for Apple silicon. Results open here."),
        )
    return None


def isTooOld(version: str) -> bool:
    """Whether a version of PyTorch is older than what models need."""
    return _numbers(version) < _numbers(TORCH_REQUIREMENT.removeprefix(">="))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def torchVersion() -> str | None:
    """The version of PyTorch in Slicer's Python, None where there is none."""
    importlib.invalidate_caches()
    if importlib.util.find_spec("torch") is None:
        return None
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None


def extensionInstalled() -> bool:
    """Whether Slicer's PyTorch extension is there."""
    try:
        return importlib.util.find_spec("PyTorchUtils") is not None
    except ValueError:
        # Loaded by other means than Python's own import, and so without a spec.
        return True


def extensionsManager() -> Any | None:
    """Slicer's extensions manager; None where the application was built without one."""
    return slicer.app.extensionsManagerModel() if hasattr(slicer.app, "extensionsManagerModel") else None


def installExtension() -> None:
    """Install the PyTorch extension and restart Slicer, which asks before both. Raises UserError if it is not there."""
    refuseWhileTesting("torch")
    if (problem := platformProblem()) is not None:
        raise problem
    manager = extensionsManager()
    if manager is None or not manager.installExtensionFromServer("PyTorch", True):
        raise UserError(
            _("The PyTorch extension was not installed."),
            _("Check the network, or install it yourself: View / Extensions Manager, search for PyTorch."),
        )
    if not extensionInstalled():
        raise UserError(
            _("The PyTorch extension is installed, but not loaded yet."),
            _("Restart Slicer, then press Install PyTorch here."),
        )


def installTorch(announce: Callable[[str], None]) -> None:
    """Install PyTorch through the PyTorch extension, which asks first and chooses the build for this computer.

    ``announce(message)`` is called before: it takes some minutes, in which Slicer does not answer.
    Raises UserError if the extension is missing, the user declines, or the installation fails.
    """
    refuseWhileTesting("torch")
    if (problem := platformProblem()) is not None:
        # Before anything is downloaded.
        raise problem
    try:
        import PyTorchUtils
    except ImportError:
        raise UserError(
            _("PyTorch is missing, and so is the PyTorch extension that installs it."),
            _("Open Setup and press Install extension."),
        ) from None
    announce(_("PyTorch is being installed. This takes some minutes, in which Slicer does not answer."))
    slicer.app.processEvents()
    try:
        PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT)
    # Whatever pip and the extension raise, the user needs one sentence and the log.
    except Exception as error:
        raise UserError(
            _("PyTorch could not be installed: {reason}").format(
                reason=str(error).splitlines()[0] if str(error) else ""
            ),
            _("Check the network and the free space, see the application log, and try again."),
        ) from error
    if torchVersion() is None:
        raise UserError(_("PyTorch was not installed."), _("Models need it: press Install PyTorch under Setup."))


def refuseWhileTesting(package: str) -> None:
    """Raises UserError in testing mode: a test must not change Slicer's Python, and nobody is there to be asked."""
    if slicer.app.testingEnabled():
        raise UserError(
            _("Nothing is installed while Slicer runs in testing mode."),
            _("Install it before the test: PythonSlicer -m pip install {package}").format(package=package),
        )


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
