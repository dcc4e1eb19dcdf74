"""The widgets of the Segment section: inputs, the Apply/Cancel button, progress, messages, and the log."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.worker.protocol import FoundDevices
from DCASegmentationLib.widgets.html import formatError, formatModelCard
from DCASegmentationLib.widgets.model_selection import Model, listModels, showDevices
from DCASegmentationLib.worker_client import LOGGER

# Before this the estimate is meaningless, because the model may still be loading.
_FROM_FRACTION = 0.08
_FROM_SECONDS = 2.0


class RemainingTime:
    """Estimates the remaining time of a run; create it when the run starts. ``clock()`` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def formatTime(self, fraction: float) -> str:
        """The time left once ``fraction`` (0 to 1) is done, such as "about 40 s left"; empty while unknown."""
        elapsed = self.elapsed
        if fraction < _FROM_FRACTION or elapsed < _FROM_SECONDS or fraction >= 1:
            return ""
        left = elapsed * (1 - fraction) / fraction
        if left < 10:
            return _("a few seconds left")
        if left < 90:
            return _("about {seconds} s left").format(seconds=10 * round(left / 10))
        return _("about {minutes} min left").format(minutes=round(left / 60))


_REMEMBERED_LINES = 200


class _LogHandler(logging.Handler):
    """Passes the messages of a logger to ``show(message)``."""

    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__()
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(record.getMessage())


class SegmentPanel:
    """The widgets of the Segment section; ``SegmentControl`` decides what they do.

    ``layout`` is the Qt layout that the panel is added to. Callbacks: ``onApply()`` and ``onCancel()`` for the button,
    ``onModelChosen(name)`` when the user selects a model, ``onDevicesWanted()`` when the list of devices becomes
    visible before the available devices are known, ``onOrgansChosen(keys)`` when the user selects organs (an empty
    tuple means all). ``deviceNames`` maps the worker's name of each device to the text in the list.
    The node selectors and the device are bound to the parameter node by their ``SlicerParameterName``. The model
    selector is not, because the available models differ between computers.
    """

    def __init__(
        self,
        layout: qt.QLayout,
        uiFolder: Path,
        onApply: Callable[[], None],
        onCancel: Callable[[], None],
        onModelChosen: Callable[[str], None],
        onDevicesWanted: Callable[[], None],
        onOrgansChosen: Callable[[tuple[str, ...]], None],
        deviceNames: Mapping[str, str],
    ) -> None:
        self._onApply, self._onCancel, self._onModelChosen = onApply, onCancel, onModelChosen
        self._onOrgansChosen = onOrgansChosen
        self._onDevicesWanted, self._deviceNames = onDevicesWanted, deviceNames
        self._devices: FoundDevices | None = None
        self._models: dict[str, Model] = {}
        self._remaining: RemainingTime | None = None
        self._wanted = ""
        self._organs: tuple[str, ...] = ()
        self._loggedLines: deque[str] = deque(maxlen=_REMEMBERED_LINES)
        self.widget = slicer.util.loadUI(str(uiFolder / "Segment.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.ui.applyButton.connect("clicked()", self._onButton)
        self.ui.modelSelector.connect("activated(int)", self._onModelActivated)
        self.ui.advancedGroup.connect("toggled(bool)", self._onAdvancedToggled)
        self.ui.organsList.connect("itemChanged(QListWidgetItem*)", self._onOrganChecked)
        self._showDeviceNote(_("Automatic uses a GPU if PyTorch finds one."))
        self.ui.messageLabel.visible = False
        shortcut = qt.QShortcut(qt.QKeySequence("Ctrl+Return"), self.widget)
        shortcut.setContext(qt.Qt.WidgetWithChildrenShortcut)
        shortcut.connect("activated()", self._onShortcut)
        self._logHandler = _LogHandler(self.log)
        logging.getLogger(LOGGER).addHandler(self._logHandler)
        self.updateModels()

    def cleanup(self) -> None:
        """Slicer is closing or the module is being reloaded: the log of workers is no longer shown here."""
        logging.getLogger(LOGGER).removeHandler(self._logHandler)

    @property
    def model(self) -> Model | None:
        """The selected model, or None if it is not on this computer."""
        return self._models.get(self._wanted)

    @property
    def isRunning(self) -> bool:
        """Whether a run is in progress."""
        return self._remaining is not None

    def updateModels(self) -> None:
        """Refresh the list of models and keep the selection."""
        try:
            self._models = {model.name: model for model in listModels()}
        except UserError as error:
            self._models = {}
            self.showError(error)
        self._fillModelSelector()

    def selectModel(self, name: str) -> None:
        """Select the model ``name``, or the default model for an empty name."""
        wanted = name or next(iter(self._models), "")
        if wanted != self._wanted:
            self._wanted = wanted
            self._fillModelSelector()

    def selectOrgans(self, keys: tuple[str, ...]) -> None:
        """Check the boxes of these organs (keys)."""
        if keys != self._organs:
            self._organs = keys
            self._fillOrgans()

    def showDevices(self, devices: FoundDevices | None, note: str = "") -> None:
        """Show which devices were found, and a ``note`` below the list; ``devices`` is None while they are unknown."""
        self._devices = devices
        self.updateDevices()
        self._showDeviceNote(note)

    def updateDevices(self) -> None:
        """Restore the item texts: binding the lists to a parameter node fills them with member names."""
        showDevices(self.ui.deviceSelector, self._deviceNames, self._devices)
        for index, title in enumerate((_("Whole scan"), _("Find the abdomen first"))):
            self.ui.speedSelector.setItemText(index, title)

    def setApplicable(self, unavailableReason: str) -> None:
        """Enable Apply, or disable it with ``unavailableReason`` as its tool tip. Cancel always stays enabled."""
        if not self.isRunning:
            self.ui.applyButton.enabled = not unavailableReason
            self.ui.applyButton.toolTip = unavailableReason or _("Segment the organs of the CT (Ctrl+Return)")

    def showStart(self) -> None:
        """A run starts: turn Apply into Cancel and disable the inputs."""
        self._remaining = RemainingTime()
        self._setChoicesEnabled(False)
        self.ui.applyButton.enabled = True
        self.ui.applyButton.text = _("Cancel")
        self.ui.applyButton.toolTip = _("Stop the segmentation; nothing in the scene changes")
        self.ui.progressBar.value = 0
        self.ui.progressBar.visible = True
        self.ui.messageLabel.visible = False

    def showProgress(self, fraction: float, message: str) -> None:
        """Show how far the run is (``fraction``, 0 to 1) and what it is doing (``message``)."""
        if self._remaining is None:
            return
        self.ui.progressBar.value = round(100 * fraction)
        left = self._remaining.formatTime(fraction)
        self._showMessage(f"{message}: {left}" if left else message)

    def showCancelling(self) -> None:
        """Cancel was pressed: disable the button until the worker has stopped."""
        self.ui.applyButton.enabled = False
        self._showMessage(_("Canceling..."))

    def showEnd(self) -> None:
        """The run has ended, for whatever reason: turn Cancel back into Apply."""
        self._remaining = None
        self._setChoicesEnabled(True)
        self.ui.applyButton.text = _("Apply")
        self.ui.progressBar.visible = False

    def showResult(self, organs: int, seconds: float, device: str, warnings: tuple[str, ...]) -> None:
        """Show the number of organs, the time and any warnings of a finished run."""
        text = _("{count} organs were segmented in {seconds:.0f} s.")
        if organs == 1:
            text = _("{count} organ was segmented in {seconds:.0f} s.")
        summary = text.format(count=organs, seconds=seconds)
        self._showMessage(" ".join([summary, *warnings]))
        self.log(" ".join([summary, _("Device: {device}.").format(device=device)]))
        self._showDeviceNote(_("Last used: {device}").format(device=device))

    def showMessage(self, message: str) -> None:
        """Show and log a message that is not an error."""
        self._showMessage(message)
        self.log(message)

    def clearMessage(self) -> None:
        """Remove the message, for example because it is about another CT."""
        self.ui.messageLabel.text = ""
        self.ui.messageLabel.visible = False

    def showError(self, error: UserError, details: str = "") -> None:
        """Show what is wrong and what to do about it; ``details`` go to the log, which is then expanded."""
        self._showMessage(formatError(error))
        self.log(str(error))
        if details:
            # The worker's last lines may already be in the log.
            new = [line for line in details.splitlines() if line.strip() and line not in self._loggedLines]
            if new:
                self.log("\n".join(new))
            self.ui.logGroup.collapsed = False

    def log(self, message: str) -> None:
        """Add a message to the log, with the time of day."""
        self._loggedLines.extend(message.splitlines())
        self.ui.logText.appendPlainText(f"{time.strftime('%H:%M:%S')}  {message}")

    def _showDeviceNote(self, text: str) -> None:
        self.ui.deviceNoteLabel.text = text
        self.ui.deviceNoteLabel.visible = bool(text)

    def _showMessage(self, text: str) -> None:
        self.ui.messageLabel.text = text
        self.ui.messageLabel.visible = True

    def _setChoicesEnabled(self, enabled: bool) -> None:
        for widget in (
            self.ui.inputVolumeSelector,
            self.ui.modelSelector,
            self.ui.outputSegmentationSelector,
            self.ui.deviceSelector,
            self.ui.roiSelector,
            self.ui.organsList,
            self.ui.speedSelector,
            self.ui.sampleButton,
        ):
            widget.enabled = enabled

    def _fillModelSelector(self) -> None:
        if not self._wanted and self._models:
            self._wanted = next(iter(self._models))
        selector = self.ui.modelSelector
        selector.clear()
        for name, model in self._models.items():
            selector.addItem(name if model.metadata is not None else _("{name} (damaged)").format(name=name), name)
        if self._wanted and self._wanted not in self._models:
            selector.addItem(_("{name} (not on this computer)").format(name=self._wanted), self._wanted)
        if not selector.count:
            selector.addItem(_("None installed: see Setup"), "")
        selector.currentIndex = selector.findData(self._wanted)
        chosen = self.model
        # Never hide the browser: CTK's group box would not show it again.
        self.ui.modelCardBrowser.html = formatModelCard(chosen) if chosen is not None else _("No model is selected.")
        self._fillOrgans()

    def _fillOrgans(self) -> None:
        """List the organs of the selected model and check the selected ones."""
        metadata = self.model.metadata if self.model is not None else None
        organs = list(metadata.vocabulary) if metadata is not None else []
        wasBlocked = self.ui.organsList.blockSignals(True)
        self.ui.organsList.clear()
        for organ in organs:
            item = qt.QListWidgetItem(organ.name)
            item.setData(qt.Qt.UserRole, organ.key)
            item.setFlags(qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            item.setCheckState(qt.Qt.Checked if organ.key in self._organs else qt.Qt.Unchecked)
            self.ui.organsList.addItem(item)
        self.ui.organsList.blockSignals(wasBlocked)

    def _onOrganChecked(self, item: qt.QListWidgetItem) -> None:
        items = [self.ui.organsList.item(row) for row in range(self.ui.organsList.count)]
        self._organs = tuple(each.data(qt.Qt.UserRole) for each in items if each.checkState() == qt.Qt.Checked)
        self._onOrgansChosen(self._organs)

    def _onAdvancedToggled(self, opened: bool) -> None:
        if opened and self._devices is None:
            self._onDevicesWanted()

    def _onModelActivated(self, index: int) -> None:
        self._wanted = self.ui.modelSelector.itemData(index)
        self._fillModelSelector()
        self._onModelChosen(self._wanted)

    def _onButton(self) -> None:
        (self._onCancel if self.isRunning else self._onApply)()

    def _onShortcut(self) -> None:
        # The shortcut only starts a run: pressing it twice must not cancel the run.
        if not self.isRunning and self.ui.applyButton.enabled:
            self._onApply()
