"""What has to be in Slicer's Python before a model can run: PyTorch, and the extension that installs it.

Nothing here imports torch: Slicer's own process never loads it, the worker does.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from typing import Any

import slicer
from slicer.i18n import tr as _

from DCASegmentationLib.errors import UserError

# The oldest PyTorch the network was tried with.
TORCH_REQUIREMENT = ">=2.4.1"


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
    return importlib.util.find_spec("PyTorchUtils") is not None


def extensionsManager() -> Any | None:
    """Slicer's extensions manager; None where the application was built without one."""
    return slicer.app.extensionsManagerModel() if hasattr(slicer.app, "extensionsManagerModel") else None


def installExtension() -> None:
    """Install the PyTorch extension and restart Slicer. Raises UserError if that does not work."""
    manager = extensionsManager()
    if manager is None or not manager.installExtensionFromServer("PyTorch", True):
        raise UserError(
            _("The PyTorch extension could not be installed."),
            _("Check the network, or install it yourself: View / Extensions Manager, search for PyTorch."),
        )


def installTorch() -> None:
    """Install PyTorch through the PyTorch extension, which asks first and chooses the build for this computer.

    Raises UserError if the extension is missing, the user declines, or the installation fails.
    """
    try:
        import PyTorchUtils
    except ImportError:
        raise UserError(
            _("PyTorch is missing, and so is the PyTorch extension that installs it."),
            _("Open Setup and press Install extension."),
        ) from None
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
