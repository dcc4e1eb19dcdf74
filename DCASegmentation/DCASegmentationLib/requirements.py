"""The packages that a model needs in Slicer's Python: which are installed, and how to install them.

PyTorch is required and is installed through Slicer's PyTorch extension. OpenVINO is optional and makes segmentation on
a CPU faster. This module does not import either: only the worker loads them, never Slicer's own process.
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
from DCASegmentationLib.event_loop import drawNow

# The oldest PyTorch version that the network was tested with.
TORCH_REQUIREMENT = ">=2.4.1"
# Without dependencies: it needs only numpy, which Slicer includes, and a package that sends telemetry.
_OPENVINO_PIP_ARGUMENTS = "--no-deps openvino>=2025.0"
_OPENVINO_DECLINED = "DCASegmentation/OpenVINODeclined"


def findPlatformProblem() -> UserError | None:
    """Why no recent PyTorch exists for this computer; None if one does."""
    # Slicer for macOS is built for Intel, even when it runs on an Apple processor.
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        return UserError(
            _(
                "This Slicer is built for Intel Macs. The last PyTorch version for Intel Macs is 2.2.2; models need "
                "{version} or newer."
            ).format(version=TORCH_REQUIREMENT.removeprefix(">=")),
            _("Segment on Linux, on Windows, or with a Slicer built for Apple silicon. You can open the results here."),
        )
    return None


def isTooOld(version: str) -> bool:
    """Whether a version of PyTorch is older than models need."""
    return _parseVersion(version) < _parseVersion(TORCH_REQUIREMENT.removeprefix(">="))


def _parseVersion(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0])[:3])


def getTorchVersion() -> str | None:
    """The version of PyTorch in Slicer's Python; None if it is not installed."""
    return _getInstalledVersion("torch")


def needsTorch() -> bool:
    """Whether PyTorch is not installed, or too old."""
    version = getTorchVersion()
    return version is None or isTooOld(version)


def requireTorch() -> None:
    """Raises UserError if PyTorch is not installed, or too old."""
    version = getTorchVersion()
    if version is None:
        raise UserError(_("PyTorch is not installed in Slicer."), _("Install it under Setup in the panel."))
    if isTooOld(version):
        raise UserError(
            _("PyTorch {version} is installed in Slicer, but models need {needed}.").format(
                version=version, needed=TORCH_REQUIREMENT.removeprefix(">=") + "+"
            ),
            _("Update it under Setup in the panel."),
        )


def _getInstalledVersion(package: str) -> str | None:
    importlib.invalidate_caches()
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def isExtensionInstalled() -> bool:
    """Whether Slicer's PyTorch extension is installed and loaded."""
    try:
        return importlib.util.find_spec("PyTorchUtils") is not None
    except ValueError:
        # The module is loaded but has no spec, because it was not loaded by Python's import system.
        return True


def getExtensionsManager() -> Any | None:
    """Slicer's extensions manager; None if the application was built without one."""
    return slicer.app.extensionsManagerModel() if hasattr(slicer.app, "extensionsManagerModel") else None


def installExtension() -> None:
    """Install the PyTorch extension and restart Slicer; Slicer asks before both.

    Raises UserError if the extension is not installed or not loaded afterward.
    """
    refuseWhileTesting("torch")
    if (problem := findPlatformProblem()) is not None:
        raise problem
    manager = getExtensionsManager()
    if manager is None or not manager.installExtensionFromServer("PyTorch", True):
        raise UserError(
            _("The PyTorch extension was not installed."),
            _("Check the network connection, or install PyTorch yourself under View / Extensions Manager."),
        )
    if not isExtensionInstalled():
        raise UserError(
            _("The PyTorch extension is installed but not loaded yet."),
            _("Restart Slicer, then press Install PyTorch here."),
        )


def installTorch(announce: Callable[[str], None]) -> None:
    """Install or update PyTorch through the PyTorch extension, which asks first and selects the right build.

    ``announce(message)`` is called before the installation, which blocks Slicer for some minutes. Raises UserError if
    the extension is missing, the user declines, or the installation fails.
    """
    refuseWhileTesting("torch")
    if (problem := findPlatformProblem()) is not None:
        # Raised before anything is downloaded.
        raise problem
    try:
        import PyTorchUtils
    except ImportError:
        raise UserError(
            _("Slicer's PyTorch extension, which installs PyTorch, is missing."),
            _("Open Setup and press Install extension."),
        ) from None
    announce(_("Installing PyTorch. This takes several minutes, during which Slicer does not respond."))
    drawNow()
    try:
        PyTorchUtils.PyTorchUtilsLogic().installTorch(askConfirmation=True, torchVersionRequirement=TORCH_REQUIREMENT)
    # pip and the extension can raise anything; the user needs one sentence, and the log has the details.
    except Exception as error:
        raise UserError(
            _("PyTorch could not be installed: {reason}").format(
                reason=str(error).splitlines()[0] if str(error) else ""
            ),
            _("Check the network connection, the free disk space, and the application log, then try again."),
        ) from error
    version = getTorchVersion()
    if version is None:
        raise UserError(_("PyTorch was not installed."), _("Models need PyTorch: press Install PyTorch under Setup."))
    if isTooOld(version):
        raise UserError(
            _("PyTorch was not updated: version {version} is still installed.").format(version=version),
            _("Models need a newer PyTorch: press Update PyTorch under Setup."),
        )


def refuseWhileTesting(package: str) -> None:
    """Raises UserError in testing mode: a test must not change Slicer's Python, and no user can confirm it."""
    if slicer.app.testingEnabled():
        raise UserError(
            _("Packages are not installed while Slicer runs in testing mode."),
            _("Install the package before the test: PythonSlicer -m pip install {package}").format(package=package),
        )


def getOpenVINOVersion() -> str | None:
    """The version of OpenVINO in Slicer's Python; None if it is not installed."""
    return _getInstalledVersion("openvino")


def shouldOfferOpenVINO() -> bool:
    """Whether OpenVINO would help (PyTorch but no GPU), is not installed, and was not declined."""
    if getTorchVersion() is None or getOpenVINOVersion() is not None or _hasGPU():
        return False
    return not slicer.util.toBool(slicer.app.settings().value(_OPENVINO_DECLINED, False))


def installOpenVINO() -> None:
    """Ask, then install OpenVINO into Slicer's Python. If the user declines, it is not offered again.

    Raises UserError if the user declines or pip fails.
    """
    refuseWhileTesting("openvino")
    question = _(
        "Install OpenVINO (about 180 MB on disk) into Slicer's Python? It makes segmentation on the CPU faster, but it "
        "is optional."
    )
    if not slicer.util.confirmOkCancelDisplay(question, _("Install OpenVINO")):
        slicer.app.settings().setValue(_OPENVINO_DECLINED, True)
        raise UserError(
            _("OpenVINO will not be offered again."),
            _("To install it later, enter in Slicer's Python console: {command}").format(
                command=f"slicer.util.pip_install({_OPENVINO_PIP_ARGUMENTS!r})"
            ),
        )
    try:
        _pipInstallOpenVINO()
    # pip failed, or Slicer could not start it.
    except (subprocess.CalledProcessError, OSError, RuntimeError) as error:
        raise UserError(
            _("OpenVINO could not be installed: {reason}").format(reason=error),
            _("Check the network connection and the free disk space. Segmentation works without OpenVINO."),
        ) from error
    if getOpenVINOVersion() is None:
        raise UserError(_("OpenVINO was not installed."), _("Segmentation works without it."))


def _pipInstallOpenVINO() -> None:
    try:
        from slicer.packaging import pip_install
    except ImportError:
        # Slicer 5.10
        with slicer.util.WaitCursor():
            slicer.util.pip_install(_OPENVINO_PIP_ARGUMENTS)
    else:
        pip_install(_OPENVINO_PIP_ARGUMENTS, requester="DCA Segmentation")


def _hasGPU() -> bool:
    """Whether there is an NVIDIA driver, which includes nvidia-smi, or an Apple processor, whose GPU PyTorch uses."""
    return shutil.which("nvidia-smi") is not None or (sys.platform == "darwin" and platform.machine() == "arm64")
