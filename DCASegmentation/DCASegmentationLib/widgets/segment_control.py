"""The behavior of the Segment section: what Apply, Cancel, and the choices do."""

from __future__ import annotations

from collections.abc import Callable, Collection
from html import escape
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.worker.protocol import FoundDevices
from DCASegmentationLib import requirements
from DCASegmentationLib.batch import BatchSettings
from DCASegmentationLib.event_loop import drawNow
from DCASegmentationLib.logic import ALL_MAPS, Outcome
from DCASegmentationLib.parameters import DCASegmentationParameterNode, Device
from DCASegmentationLib.scene.ct_export import Region, convert_roi_to_region, require_ct
from DCASegmentationLib.scene.organ_changes import find_kept_organs
from DCASegmentationLib.scene.partial_run import find_organs_in_region, get_requested_organs
from DCASegmentationLib.scene.sample_data import load_sample_ct
from DCASegmentationLib.scene.segmentation import get_organs_by_segment, require_target
from DCASegmentationLib.scene.volumes import get_ijk_to_world
from DCASegmentationLib.widgets.model_selection import Model
from DCASegmentationLib.widgets.result_panel import Show3D
from DCASegmentationLib.widgets.segment_panel import SegmentPanel


class SegmentControl:
    """Connects the widgets of the Segment section with the logic and the parameter node.

    ``layout`` is the Qt layout that the section's panel is added to. ``newLogic()`` returns the logic that runs
    segmentations (see ``SegmentationLogic``). Callbacks: ``onResult(segmentation)`` at the end of a run, with None if
    it has no result; ``onInstalled()`` after Apply installed PyTorch; ``onShown3D()`` after organs appeared in 3D;
    ``onBeforeReplace(segmentation)`` before a run replaces organs of an existing segmentation.
    """

    def __init__(
        self,
        layout: qt.QLayout,
        uiFolder: Path,
        newLogic: Callable[[], Any],
        onResult: Callable[[Any | None], None],
        onInstalled: Callable[[], None],
        onShown3D: Callable[[], None],
        onBeforeReplace: Callable[[Any], None],
    ) -> None:
        self._onResult, self._onInstalled, self._onBeforeReplace = onResult, onInstalled, onBeforeReplace
        # The keys of the organs that the current run segments.
        self._requested: frozenset[str] = frozenset()
        self._parameters: DCASegmentationParameterNode | None = None
        # The CT that the message below the Apply button is about.
        self._messageCT: Any = None
        self._isGuided = False
        self._isBatchRunning = False
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
        self.logic = newLogic()
        self.show3D = Show3D(self.panel.ui.show3DButton, onShown3D)
        self.panel.ui.sampleButton.connect("clicked()", self._onSample)

    def setParameterNode(self, parameterNode: DCASegmentationParameterNode | None) -> None:
        """Use the choices in this parameter node; None if there is none."""
        self._parameters = parameterNode
        if parameterNode is None and not self.logic.isRunning:
            self._messageCT = None
            self.panel.clearMessage()
        if parameterNode is not None:
            # Binding to the parameter node filled the list with member names.
            self.panel.updateDevices()

    @property
    def _choices(self) -> DCASegmentationParameterNode:
        assert self._parameters is not None, "nothing can be started while the scene is being closed"
        return self._parameters

    def update(self) -> None:
        """Update the model, the organs, and the Apply button from the choices."""
        if self._parameters is not None:
            self.panel.selectModel(self._parameters.modelName)
            self.panel.selectOrgans(_asKeys(self._parameters.organs))
            ct = self._parameters.inputVolume
            if ct is not self._messageCT and not self.logic.isRunning:
                self._messageCT = ct
                self.panel.clearMessage()
            self._showSampleButton()
        self.panel.setApplicable(self._getUnavailableReason())

    def updateModels(self) -> None:
        """Refresh the list of models after models were added or deleted."""
        self.panel.updateModels()
        self.panel.setApplicable(self._getUnavailableReason())

    def _getUnavailableReason(self) -> str:
        """Why Apply cannot run now, and what to do; empty if it can."""
        model = self.panel.model
        if self._parameters is None or self._parameters.inputVolume is None:
            return _("Select a CT first.")
        if model is None:
            return _("Add a model under Setup, or select another model.")
        if model.problem is not None:
            return str(model.problem)
        if self._isBatchRunning:
            return _("A batch is running. Wait until it is finished, or cancel it under Batch.")
        return ""

    def createBatchSettings(self, resultFolder: Path | None) -> BatchSettings:
        """The choices for a batch, after installing PyTorch if necessary. Raises UserError if there is no model."""
        model = self._requireModel()
        if model.problem is not None:
            raise model.problem
        self._requireTorch()
        return BatchSettings(model.folder, self._choices.device.value, self._getOptions(), resultFolder)

    def setBatchRunning(self, isRunning: bool) -> None:
        """Set whether a batch is running; Apply is then disabled."""
        self._isBatchRunning = isRunning
        self.update()

    def _requireModel(self) -> Model:
        model = self.panel.model
        if model is None:
            raise UserError(_("No model is selected."), _("Add a model under Setup, or select another model."))
        return model

    def _requireTorch(self) -> None:
        if requirements.needsTorch():
            requirements.installTorch(self.panel.showMessage)
            self._onInstalled()

    def _onModelChosen(self, name: str) -> None:
        if self._parameters is not None:
            self._parameters.modelName = name
        self.panel.setApplicable(self._getUnavailableReason())

    def setGuided(self, isGuided: bool) -> None:
        """Set whether the guide offers the sample CT; if so, the section hides its own button for it."""
        self._isGuided = isGuided
        self._showSampleButton()

    def _showSampleButton(self) -> None:
        hasNoCT = self._parameters is not None and self._parameters.inputVolume is None
        self.panel.ui.sampleButton.visible = hasNoCT and not self._isGuided

    def _onOrgansChosen(self, keys: tuple[str, ...]) -> None:
        if self._parameters is not None:
            self._parameters.organs = ",".join(keys)

    def _onSample(self) -> None:
        self.loadSample()

    def loadSample(self) -> bool:
        """Download the sample CT and select it as input. If that fails, shows the error and returns False."""
        self.panel.showMessage(_("Downloading the sample CT..."))
        drawNow()
        try:
            with slicer.util.WaitCursor():
                node = load_sample_ct(self._announce)
        except UserError as error:
            self.panel.showError(error)
            return False
        if self._parameters is not None:
            self._parameters.inputVolume = node
        return True

    def _announce(self, message: str) -> None:
        self.panel.showMessage(escape(message))
        drawNow()

    def apply(self) -> None:
        """Do the same as the Apply button, if it is enabled."""
        if not self._getUnavailableReason():
            self._onApply()

    def _onDevicesWanted(self) -> None:
        """The list of devices became visible: ask the worker, which loads PyTorch, for the available devices."""
        try:
            # The worker must not load a PyTorch that is about to be replaced, which fails on Windows.
            requirements.requireTorch()
        except UserError as error:
            self.panel.showDevices(None, str(error))
            return
        self.panel.showDevices(None, _("Looking for devices..."))
        try:
            self.logic.findDevices(self._onDevicesFound)
        except UserError as error:
            self.panel.showDevices(None, str(error))

    def _onDevicesFound(self, devices: FoundDevices | None) -> None:
        unknown = _("The available devices could not be determined. See the log.")
        self.panel.showDevices(devices, unknown if devices is None else "")

    def _onApply(self) -> None:
        try:
            # Shows an error that nobody expected, with its traceback, and raises it again.
            with slicer.util.tryWithErrorDisplay(_("The segmentation could not be started.")):
                self._tryToStart()
        finally:
            self.panel.setApplicable(self._getUnavailableReason())

    def _tryToStart(self) -> None:
        try:
            self._start()
        except BaseException as error:
            self.panel.showEnd()
            if not isinstance(error, UserError):
                raise
            self.panel.showError(error)

    def _onCancel(self) -> None:
        self.panel.showCancelling()
        self.logic.cancel()

    def _start(self) -> None:
        parameters, model = self._choices, self._requireModel()
        self._requireTorch()
        target, options = parameters.outputSegmentation, self._getOptions()
        if model.metadata is not None:
            self._requested = get_requested_organs(options["organs"], model.metadata.vocabulary)
        if target is not None:
            ct, roi = parameters.inputVolume, parameters.regionOfInterest
            require_ct(ct)
            require_target(target, ct)
            region = None
            if roi is not None:
                region = convert_roi_to_region(roi, get_ijk_to_world(ct), slicer.util.arrayFromVolume(ct).shape)
            question = formatReplacementQuestion(target, parameters.keepCorrected, self._requested, ct, region)
            if question and not slicer.util.confirmOkCancelDisplay(question, _("Segment again")):
                return
        self._messageCT = parameters.inputVolume
        self.panel.showStart()
        self.logic.segment(
            parameters.inputVolume,
            model.folder,
            parameters.device.value,
            target,
            parameters.regionOfInterest,
            options,
            wait=False,
            keepCorrected=parameters.keepCorrected,
            onBeforeReplace=self._onBeforeReplace,
            onProgress=self.panel.showProgress,
            onFinished=self._onFinished,
        )

    def _getOptions(self) -> dict[str, Any]:
        parameters, metadata = self._choices, self.panel.model.metadata if self.panel.model else None
        known = metadata.vocabulary.by_key if metadata is not None else {}
        organs = [key for key in _asKeys(parameters.organs) if key in known]
        return {**ALL_MAPS, "organs": organs or None, "find_abdomen": parameters.speed.value}

    def _onFinished(self, outcome: Outcome) -> None:
        """A run has ended: show its result, its error, or that it was canceled."""
        self.panel.showEnd()
        if outcome.nodes is not None:
            keys = get_organs_by_segment(outcome.nodes.segmentation).values()
            organs = sum(key in self._requested for key in keys)
            self.panel.showResult(organs, outcome.elapsed, outcome.device, outcome.warnings)
        elif outcome.cancelled:
            self.panel.showMessage(_("Canceled. Nothing was changed."))
        elif outcome.error is not None:
            self.panel.showError(outcome.error, outcome.details)
        if outcome.nodes is None and self._parameters is not None:
            # The message stays until another CT is selected, even if this one was deleted, which ended the run.
            self._messageCT = self._parameters.inputVolume
        self._onResult(outcome.nodes.segmentation if outcome.nodes is not None else None)
        self.panel.setApplicable(self._getUnavailableReason())


def _asKeys(text: str) -> tuple[str, ...]:
    return tuple(key for key in text.split(",") if key)


def formatReplacementQuestion(
    segmentation: Any,
    keepCorrected: bool,
    requested: Collection[str] | None = None,
    ct: Any | None = None,
    region: Region | None = None,
) -> str:
    """The question to ask before a run replaces organs in ``segmentation``; empty if it replaces none.

    ``requested`` are the keys of the organs that it segments (None for all), ``region`` the part of the grid of ``ct``
    that it is limited to (None for the whole CT).
    """
    organs = get_organs_by_segment(segmentation)
    reached = set(organs.values()) if requested is None else set(requested) & set(organs.values())
    if region is not None:
        reached &= find_organs_in_region(segmentation, ct, region)
    kept = [each for each in find_kept_organs(segmentation).segments if organs[each] in reached]
    replaced = [each for each, key in organs.items() if key in reached and not (keepCorrected and each in kept)]
    if not replaced:
        return ""
    if region is not None:
        question = _("Replace these organs inside the region: {replaced}? Nothing changes outside the region.")
    elif len(reached) < len(set(organs.values())):
        question = _("Replace these organs in {name}: {replaced}? All other organs stay as they are.")
    elif len(replaced) == 1:
        question = _("Replace {count} organ that this module segmented in {name}?")
    else:
        question = _("Replace {count} organs that this module segmented in {name}?")
    if kept and keepCorrected:
        question += " " + _("These organs were corrected or accepted and are kept: {kept}.")
    elif kept:
        question += " " + _("Corrections of these organs will be lost: {kept}.")
    return question.format(
        count=len(replaced),
        name=segmentation.GetName(),
        replaced=_formatNames(segmentation, replaced),
        kept=_formatNames(segmentation, kept),
    )


def _formatNames(segmentation: Any, segmentIds: Collection[str]) -> str:
    content = segmentation.GetSegmentation()
    return ", ".join(content.GetSegment(each).GetName() for each in segmentIds)
