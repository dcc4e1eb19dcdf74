"""The Segment section at work: what Apply, Cancel and its choices do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.worker.protocol import FoundDevices
from DCASegmentationLib import requirements
from DCASegmentationLib.logic import ALL_MAPS, Outcome
from DCASegmentationLib.parameters import Device
from DCASegmentationLib.scene.case_record import recall
from DCASegmentationLib.scene.ct_export import require_ct
from DCASegmentationLib.scene.organ_changes import kept_organs
from DCASegmentationLib.scene.sample_data import load_sample_ct
from DCASegmentationLib.scene.segmentation import own_organs, require_target
from DCASegmentationLib.widgets.result_panel import Show3D
from DCASegmentationLib.widgets.segment_panel import SegmentPanel


class SegmentControl:
    """``layout`` is where the section's panel goes.

    ``newLogic(onLog)`` gives what segments (see ``SegmentationLogic``). ``onResult(segmentation)`` is called with the
    segmentation of a run that has ended, None where it gave none, ``onInstalled()`` when Apply has installed PyTorch,
    ``onShown3D()`` when organs have appeared in 3D.
    """

    def __init__(
        self,
        layout: qt.QLayout,
        uiFolder: Path,
        newLogic: Callable[[Callable[[str], None]], Any],
        onResult: Callable[[Any | None], None],
        onInstalled: Callable[[], None],
        onShown3D: Callable[[], None],
    ) -> None:
        self._onResult, self._onInstalled = onResult, onInstalled
        self._parameters: Any = None
        # The CT that the message below Apply is about.
        self._saidOf: Any = None
        self._isGuided = False
        self.panel = SegmentPanel(
            layout,
            uiFolder,
            self._onApply,
            self._onCancel,
            self._onModelChosen,
            self._onDevicesWanted,
            self._onOrgansChosen,
            {device.value: device.name for device in Device},
        )
        self.logic = newLogic(self.panel.log)
        self.show3D = Show3D(self.panel.ui.show3DButton, onShown3D)
        self.panel.ui.sampleButton.connect("clicked()", self._onSample)

    def setParameterNode(self, parameterNode: Any | None) -> None:
        """Take the choices from this parameter node; None while there is none."""
        self._parameters = parameterNode
        if parameterNode is None and not self.logic.isRunning:
            self._saidOf = None
            self.panel.clearMessage()
        if parameterNode is not None:
            # Binding has filled the list with bare names.
            self.panel.updateDevices()

    def update(self) -> None:
        """Bring model and Apply into line with the choices."""
        if self._parameters is not None:
            self.panel.selectModel(self._parameters.modelName)
            self.panel.selectOrgans(_asKeys(self._parameters.organs))
            ct = self._parameters.inputVolume
            if ct is not self._saidOf and not self.logic.isRunning:
                self._saidOf = ct
                self.panel.clearMessage()
            self._showSampleButton()
        self.panel.setApplicable(self._unavailableReason())

    def updateModels(self) -> None:
        """Models may have come or gone."""
        self.panel.updateModels()
        self.panel.setApplicable(self._unavailableReason())

    def _unavailableReason(self) -> str:
        """Why Apply would be of no use now; empty if it would be."""
        model = self.panel.model
        if self._parameters is None or self._parameters.inputVolume is None:
            return _("Select a CT first.")
        if model is None:
            return _("Add a model under Setup, or select another one.")
        if model.problem is not None:
            return str(model.problem)
        return ""

    def _onModelChosen(self, name: str) -> None:
        if self._parameters is not None:
            self._parameters.modelName = name
        self.panel.setApplicable(self._unavailableReason())

    def setGuided(self, isGuided: bool) -> None:
        """Whether the guide offers the sample CT, so that no second button does."""
        self._isGuided = isGuided
        self._showSampleButton()

    def _showSampleButton(self) -> None:
        isWanted = self._parameters is not None and self._parameters.inputVolume is None
        self.panel.ui.sampleButton.visible = isWanted and not self._isGuided

    def _onOrgansChosen(self, keys: tuple[str, ...]) -> None:
        if self._parameters is not None:
            self._parameters.organs = ",".join(keys)

    def _onSample(self) -> None:
        self.loadSample()

    def loadSample(self) -> bool:
        """Download the sample CT and choose it; says so, and gives False, where that fails."""
        self.panel.showMessage(_("The sample CT is being downloaded..."))
        slicer.app.processEvents()
        try:
            with slicer.util.WaitCursor():
                node = load_sample_ct()
        except UserError as error:
            self.panel.showError(error)
            return False
        if self._parameters is not None:
            self._parameters.inputVolume = node
        return True

    def apply(self) -> None:
        """As the button."""
        if not self._unavailableReason():
            self._onApply()

    def _onDevicesWanted(self) -> None:
        """The list of devices came into sight: the worker, which loads PyTorch, says what there is."""
        if requirements.torchVersion() is None:
            self.panel.showDevices(None, _("PyTorch, once it is installed, tells what there is."))
            return
        self.panel.showDevices(None, _("Looking for devices..."))
        try:
            self.logic.findDevices(self._onDevicesFound)
        except UserError as error:
            self.panel.showDevices(None, str(error))

    def _onDevicesFound(self, devices: FoundDevices | None) -> None:
        unknown = _("PyTorch did not tell what there is; the log says more.")
        self.panel.showDevices(devices, unknown if devices is None else "")

    def _onApply(self) -> None:
        try:
            self._start()
        except UserError as error:
            self.panel.showEnd()
            self.panel.showError(error)
        self.panel.setApplicable(self._unavailableReason())

    def _onCancel(self) -> None:
        self.panel.showCancelling()
        self.logic.cancel()

    def _start(self) -> None:
        parameters, model = self._parameters, self.panel.model
        if model is None:
            raise UserError(_("No model is chosen."), _("Add a model under Setup, or select another one."))
        if requirements.torchVersion() is None:
            requirements.installTorch(self.panel.showMessage)
            self._onInstalled()
        target = parameters.outputSegmentation
        if target is not None:
            require_ct(parameters.inputVolume)
            require_target(target, parameters.inputVolume)
            question = replacementQuestion(target, parameters.keepCorrected)
            if question and not slicer.util.confirmOkCancelDisplay(question, _("Segment again")):
                return
        self._saidOf = parameters.inputVolume
        self.panel.showStart()
        self.logic.segment(
            parameters.inputVolume,
            model.folder,
            parameters.device.value,
            target,
            parameters.regionOfInterest,
            self._options(),
            wait=False,
            keepCorrected=parameters.keepCorrected,
            onProgress=self.panel.showProgress,
            onFinished=self._onFinished,
        )

    def _options(self) -> dict[str, Any]:
        parameters, metadata = self._parameters, self.panel.model.metadata if self.panel.model else None
        known = metadata.vocabulary.by_key if metadata is not None else {}
        organs = [key for key in _asKeys(parameters.organs) if key in known]
        return {**ALL_MAPS, "organs": organs or None, "find_abdomen": parameters.speed.value}

    def _onFinished(self, outcome: Outcome) -> None:
        """A run has ended, one way or another."""
        self.panel.showEnd()
        if outcome.nodes is not None:
            organs = len(own_organs(outcome.nodes.segmentation))
            self.panel.showResult(organs, outcome.elapsed, outcome.device, outcome.warnings)
        elif outcome.cancelled:
            self.panel.showMessage(_("Cancelled. Nothing was changed."))
        elif outcome.error is not None:
            self.panel.showError(outcome.error, outcome.details)
        self._onResult(outcome.nodes.segmentation if outcome.nodes is not None else None)
        self.panel.setApplicable(self._unavailableReason())


def _asKeys(text: str) -> tuple[str, ...]:
    return tuple(key for key in text.split(",") if key)


def replacementQuestion(segmentation: Any, keepCorrected: bool) -> str:
    """What to ask before a run replaces organs in ``segmentation``; empty if it replaces none."""
    kept = kept_organs(recall(segmentation))
    content = segmentation.GetSegmentation()
    names = ", ".join(content.GetSegment(each).GetName() for each in kept.segments)
    replaced = len(own_organs(segmentation)) - (len(kept.segments) if keepCorrected else 0)
    if not replaced:
        return ""
    question = _("Replace {count} organs that this module segmented in {name}?")
    if names and keepCorrected:
        question += " " + _("Kept as corrected or accepted: {organs}.")
    elif names:
        question += " " + _("Corrections are lost: {organs}.")
    return question.format(count=replaced, name=segmentation.GetName(), organs=names)
