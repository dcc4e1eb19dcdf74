"""The Setup section: installs what is missing before a model can run, and manages the models on this computer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.models.download import Source
from dcaseg.models.store import get_user_models_folder
from dcaseg.models.user_models import add_bundle, remove_bundle
from dcaseg.worker.protocol import Answer, Download, Failure, WasCancelled
from DCASegmentationLib import requirements
from DCASegmentationLib.widgets.html import formatError
from DCASegmentationLib.widgets.model_selection import Model, listModels
from DCASegmentationLib.widgets.result_panel import startFolder
from DCASegmentationLib.worker_client import Purpose, WorkerProcess, createWorker

# A download has a worker of its own: neither waits for a segmentation, nor is it ended by canceling one.
_DOWNLOAD = Purpose("The download process", "Download the model again; it resumes where it stopped.")
_REQUEST = "download"


class SetupPanel:
    """The widgets of the Setup section.

    ``layout`` is the Qt layout that the panel is added to; ``onChanged()`` is called after models or packages change.
    """

    def __init__(self, layout: qt.QLayout, uiFolder: Path, onChanged: Callable[[], None]) -> None:
        self._onChanged = onChanged
        self._models: list[Model] = []
        self._torch: str | None = None
        self._downloader: WorkerProcess | None = None
        self.widget = slicer.util.loadUI(str(uiFolder / "Setup.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.ui.installExtensionButton.connect("clicked()", self.onInstallExtension)
        self.ui.installTorchButton.connect("clicked()", self.onInstallTorch)
        self.ui.installOpenVINOButton.connect("clicked()", self.onInstallOpenVINO)
        self.ui.addZipButton.connect("clicked()", self.onAddZip)
        self.ui.addFolderButton.connect("clicked()", self.onAddFolder)
        self.ui.downloadButton.connect("clicked()", self.onDownload)
        self.ui.openFolderButton.connect("clicked()", self.onOpenFolder)
        self.ui.deleteModelButton.connect("clicked()", self.onDeleteModel)
        self.ui.modelList.connect("currentRowChanged(int)", self._updateButtons)
        self.update()

    def isComplete(self) -> bool:
        """Whether everything that a run needs is installed: a recent PyTorch and at least one intact model.

        As of the last :meth:`update`, because looking for packages reads folders, and sliders ask at every step.
        """
        if self._torch is None or requirements.isTooOld(self._torch):
            return False
        return any(model.metadata is not None for model in self._models)

    def update(self) -> None:
        """Check again what is installed, and show it."""
        torch, extension = requirements.getTorchVersion(), requirements.isExtensionInstalled()
        self._torch = torch
        problem = requirements.findPlatformProblem()
        isNeeded = torch is None or requirements.isTooOld(torch)
        self.ui.torchLabel.text = _formatTorchStatus(torch, problem)
        self.ui.installTorchButton.text = _("Install PyTorch") if torch is None else _("Update PyTorch")
        self.ui.installTorchButton.visible = isNeeded and extension and problem is None
        self.ui.extensionLabel.text = (
            _("The PyTorch extension is installed.")
            if extension
            else _("The PyTorch extension, which installs PyTorch, is missing.")
        )
        # If a recent PyTorch is installed already, the extension is not needed.
        self.ui.extensionLabel.visible = (extension or isNeeded) and problem is None
        self.ui.installExtensionButton.visible = not extension and isNeeded and problem is None
        self._updateOpenVINO()
        self._updateModels()

    def onInstallExtension(self) -> None:
        """Install Slicer's PyTorch extension."""
        self._attempt(requirements.installExtension)

    def onInstallTorch(self) -> None:
        """Install PyTorch."""
        self._attempt(lambda: requirements.installTorch(self._showMessage))

    def onInstallOpenVINO(self) -> None:
        """Install OpenVINO."""
        self._attempt(
            requirements.installOpenVINO,
            _("OpenVINO was installed. The next segmentation tests once whether it is faster on this computer."),
        )

    def onAddZip(self) -> None:
        """Ask for a zip file and add the model in it."""
        path = qt.QFileDialog.getOpenFileName(self.widget, _("Add a model"), startFolder(), _("Model bundles (*.zip)"))
        if path:
            self._add(Path(path))

    def onAddFolder(self) -> None:
        """Ask for a folder and add the model in it."""
        path = qt.QFileDialog.getExistingDirectory(self.widget, _("Add a model"), startFolder())
        if path:
            self._add(Path(path))

    def onDownload(self) -> None:
        """Ask for an address and download the model; during a download, stop it instead."""
        if self._isDownloading():
            assert self._downloader is not None
            self._downloader.cancel(_REQUEST)
            return
        address = qt.QInputDialog.getText(
            self.widget, _("Download a model"), _("URL of the zip file, ending in #sha256= and its checksum:")
        )
        if not address:
            return
        try:
            Source.parse(address)
            if self._downloader is None:
                self._downloader = createWorker(_DOWNLOAD)
            request = Download(_REQUEST, address.strip(), str(get_user_models_folder()))
            self._downloader.send(request, self._onDownloadAnswer, self._onDownloadProgress)
        except UserError as error:
            self._showMessage(formatError(error))
        self._updateDownloadButton()

    def _isDownloading(self) -> bool:
        return self._downloader is not None and self._downloader.isRunning

    def cleanup(self) -> None:
        """Slicer is closing or the module is being reloaded: stop the download."""
        if self._downloader is not None:
            self._downloader.stop()

    def _onDownloadProgress(self, fraction: float, message: str) -> None:
        self._showMessage(_("{message} ({percent}%)").format(message=message, percent=round(100 * fraction)))

    def _onDownloadAnswer(self, answer: Answer) -> None:
        message = _("The model was added. Its checksum is correct.")
        if isinstance(answer, Failure):
            message = formatError(UserError(answer.problem, answer.remedy))
        elif isinstance(answer, WasCancelled):
            message = formatError(
                UserError(_("The download was stopped."), _("Start it again to resume where it stopped."))
            )
        self._updateDownloadButton()
        self._updateModels()
        self._showMessage(message)
        self._onChanged()

    def _updateDownloadButton(self) -> None:
        self.ui.downloadButton.text = _("Stop download") if self._isDownloading() else _("Download model...")

    def onOpenFolder(self) -> None:
        """Show the selected model's folder in the file browser."""
        model = self._getSelectedModel()
        if model is not None:
            qt.QDesktopServices.openUrl(qt.QUrl.fromLocalFile(str(model.folder)))

    def onDeleteModel(self) -> None:
        """Delete the selected model after the user confirms."""
        model = self._getSelectedModel()
        if model is None or not slicer.util.confirmOkCancelDisplay(
            _("Delete the model {name} from this computer?").format(name=model.name), _("Delete model")
        ):
            return
        self._attempt(lambda: remove_bundle(model.folder), _("{name} was deleted.").format(name=model.name))

    def _add(self, source: Path) -> None:
        def add() -> None:
            with slicer.util.WaitCursor():
                add_bundle(source)

        self._attempt(add, _("The model was added. Its checksum is correct."))

    def _attempt(self, action: Callable[[], None], success: str = "") -> None:
        message = success
        try:
            action()
        except UserError as error:
            message = formatError(error)
        self.update()
        self._showMessage(message)
        self._onChanged()

    def _updateOpenVINO(self) -> None:
        version, isOffered = requirements.getOpenVINOVersion(), requirements.shouldOfferOpenVINO()
        self.ui.openVINOLabel.text = (
            _("OpenVINO {version} is installed.").format(version=version)
            if version is not None
            else _("Optional: OpenVINO makes segmentation on the CPU faster.")
        )
        self.ui.openVINOLabel.visible = isOffered or version is not None
        self.ui.installOpenVINOButton.visible = isOffered

    def _updateModels(self) -> None:
        problem = ""
        try:
            self._models = listModels()
        except UserError as error:
            self._models, problem = [], formatError(error)
        self.ui.modelList.clear()
        for model in self._models:
            damaged = _("{name} (damaged)").format(name=model.name)
            self.ui.modelList.addItem(model.name if model.metadata is not None else damaged)
        self.ui.modelLabel.text = (
            _("Models on this computer:")
            if self._models
            else _("No model is installed. Add one from a zip file or a folder.")
        )
        self.ui.modelList.visible = bool(self._models)
        self._showMessage(problem)
        self._updateButtons()

    def _showMessage(self, message: str) -> None:
        self.ui.setupMessageLabel.text = message
        self.ui.setupMessageLabel.visible = bool(message)

    def _updateButtons(self, row: int = -1) -> None:
        model = self._getSelectedModel()
        self.ui.openFolderButton.enabled = model is not None
        self.ui.deleteModelButton.enabled = model is not None and model.isOwn

    def _getSelectedModel(self) -> Model | None:
        row = self.ui.modelList.currentRow
        return self._models[row] if 0 <= row < len(self._models) else None


def _formatTorchStatus(version: str | None, problem: UserError | None) -> str:
    if version is not None and requirements.isTooOld(version):
        text = _("PyTorch {version} is installed, but models need {needed}.").format(
            version=version, needed=requirements.TORCH_REQUIREMENT.removeprefix(">=") + "+"
        )
        return f"{text} {formatError(problem)}" if problem is not None else text
    if version is not None:
        return _("PyTorch {version} is installed.").format(version=version)
    return formatError(problem) if problem is not None else _("PyTorch is not installed yet.")
