"""Slicer's entry into DCASegmentation: what Slicer asks of a module, handed on to DCASegmentationLib."""

import enum
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import SimpleITK as sitk
import slicer
import slicer.util
import vtk
from DCASegmentationLib.bundle.finding import find_bundles
from DCASegmentationLib.errors import Cancelled, UserError
from DCASegmentationLib.organs import AMOS
from DCASegmentationLib.panels import requirements
from DCASegmentationLib.panels.correct_panel import CorrectPanel
from DCASegmentationLib.panels.experts_panel import ExpertsPanel
from DCASegmentationLib.panels.result_panel import ResultPanel
from DCASegmentationLib.panels.review_panel import ReviewPanel
from DCASegmentationLib.panels.segment_panel import SegmentPanel
from DCASegmentationLib.panels.segmentation_runner import ALL_MAPS, Order, Outcome, SegmentationRunner
from DCASegmentationLib.panels.setup_panel import SetupPanel
from DCASegmentationLib.panels.worker_python import newWorker
from DCASegmentationLib.review_file import ALTERNATIVE, PLACES, REVIEW, Alternative, Place, Reason, Review
from DCASegmentationLib.scene.case_record import CaseNodes, recall
from DCASegmentationLib.scene.exchange import export_ct, import_result, require_ct
from DCASegmentationLib.scene.organ_changes import kept_organs
from DCASegmentationLib.scene.target import own_organs, require_target
from DCASegmentationLib.scene.volumes import show_ct
from DCASegmentationLib.worker_protocol import FoundDevices
from slicer import vtkMRMLMarkupsROINode, vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.parameterNodeWrapper import WithinRange, parameterNodeWrapper
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin


class DCASegmentation(ScriptedLoadableModule):
    """What Slicer's module list and help show."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("DCA Segmentation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Volumes", "Colors"]
        parent.contributors = ["The SlicerDCASegmentation authors"]
        parent.helpText = _(
            "Segments the organs of an abdominal CT with DCA (Divide, Conquer, and Aggregate) and shows which of its "
            "experts decided where. Choose a CT and press Apply. For research only; this is no medical device."
        )
        parent.acknowledgementText = _(
            "The method is by Yajun Liu: Divide, Conquer, and Aggregate: Asymmetric Experts for Class-Imbalanced "
            "Semi-Supervised Medical Image Segmentation, CVPR 2026."
        )
        slicer.app.connect("startupCompleted()", registerSampleData)


def registerSampleData() -> None:
    """Offer a public abdominal CT (case liver_100 of the Medical Segmentation Decathlon) in Slicer's Sample Data."""
    import SampleData

    checksum = "e16eae0ae6fefa858c5c11e58f0f1bb81834d81b7102e021571056324ef6f37e"
    SampleData.SampleDataLogic.registerCustomSampleDataSource(
        category="DCA Segmentation",
        sampleName="DCACTLiver",
        uris=f"https://github.com/Slicer/SlicerTestingData/releases/download/SHA256/{checksum}",
        fileNames="CTLiver.nrrd",
        checksums=f"SHA256:{checksum}",
        nodeNames="CTLiver",
    )


class Device(enum.Enum):
    """Where the network is computed; the values are the worker's words. Scenes keep the member's name."""

    Automatic = "auto"
    CUDA = "cuda"
    MPS = "mps"
    CPU = "cpu"


@parameterNodeWrapper
class DCASegmentationParameterNode:
    """The choices of the panel, saved with the scene.

    ``resultSegmentation`` is the segmentation of the last run, which the sections below Segment are about.
    """

    inputVolume: vtkMRMLScalarVolumeNode
    modelName: str
    device: Device = Device.Automatic
    outputSegmentation: vtkMRMLSegmentationNode
    regionOfInterest: vtkMRMLMarkupsROINode
    resultSegmentation: vtkMRMLSegmentationNode
    expertLevel: Annotated[int, WithinRange(1, 4)] = 4
    expertMap: str = "none"
    mapOpacity: Annotated[float, WithinRange(0.0, 1.0)] = 0.5
    mapThreshold: Annotated[float, WithinRange(0.0, 1.0)] = 0.0
    colorMap: str = "Viridis"
    showLegend: bool = True
    keepCorrected: bool = True


class DCASegmentationWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel: its sections, and who of them tells whom."""

    def __init__(self, parent: Any = None) -> None:
        VTKObservationMixin.__init__(self)
        self.logic: DCASegmentationLogic | None = None
        self._parameterNode: Any = None
        self._connections: list[Any] = []
        self._shown: Any = None
        self.isEntered = False
        # The last: without a parent it sets the panel up at once.
        ScriptedLoadableModuleWidget.__init__(self, parent)

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        uiWidget = slicer.util.loadUI(self.resourcePath("UI/DCASegmentation.ui"))
        self.layout.addWidget(uiWidget)
        self.ui = slicer.util.childWidgetVariables(uiWidget)
        uiFolder = Path(self.resourcePath("UI"))
        self.segmentPanel = SegmentPanel(
            self.ui.segmentSection.layout(),
            uiFolder,
            self.onApply,
            self.onCancel,
            self.onModelChosen,
            self.onDevicesWanted,
            {device.value: device.name for device in Device},
        )
        self.setupPanel = SetupPanel(self.ui.setupSection.layout(), uiFolder, self.onSetupChanged)
        self.expertsPanel = ExpertsPanel(self.ui.expertsSection.layout(), uiFolder)
        self.resultPanel = ResultPanel(self.ui.resultSection.layout(), uiFolder)
        self.correctPanel = CorrectPanel(self.ui.correctSection.layout(), uiFolder)
        self.reviewPanel = ReviewPanel(
            self.ui.reviewSection.layout(),
            uiFolder,
            self.onEditPlace,
            self.correctPanel.editEverywhere,
            self.correctPanel.saveStateForUndo,
        )
        self.ui.reviewSection.connect("contentsCollapsed(bool)", self.onReviewCollapsed)
        self.ui.correctSection.connect("contentsCollapsed(bool)", self.onCorrectCollapsed)
        self.ui.setupSection.collapsed = self.setupPanel.isComplete()
        self.logic = DCASegmentationLogic(onLog=self.segmentPanel.log)
        uiWidget.setMRMLScene(slicer.mrmlScene)
        for panel in self.panels:
            panel.widget.setMRMLScene(slicer.mrmlScene)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndImportEvent, self.onSceneEndImport)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.NodeRemovedEvent, self.onNodeRemoved)
        self.initializeParameterNode()

    @property
    def panels(self) -> list[Any]:
        return [self.setupPanel, self.segmentPanel, *self.resultPanels]

    @property
    def resultPanels(self) -> list[Any]:
        """Those about a result, each shown in a section of its own."""
        return [self.expertsPanel, self.resultPanel, self.reviewPanel, self.correctPanel]

    def cleanup(self) -> None:
        """Slicer closes, or the module is loaded again."""
        self.setParameterNode(None)
        self.removeObservers()
        for panel in [self.setupPanel, *self.resultPanels]:
            panel.cleanup()
        self.logic.stop()

    def onReload(self) -> None:
        """Developers' Reload: takes the library anew too, not this file alone. A run that goes on is ended."""
        mine = ("DCASegmentation", "DCASegmentationLib")
        before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in mine}
        try:
            ScriptedLoadableModuleWidget.onReload(self)
        except BaseException:
            # New code that cannot be read leaves this panel in place, with the library it came with.
            sys.modules.update(before)
            raise
        if self.isEntered:
            # Slicer sets the new panel up, but does not tell it that it is seen.
            slicer.modules.DCASegmentationWidget.enter()

    def enter(self) -> None:
        self.isEntered = True
        self.initializeParameterNode()
        self.setupPanel.update()
        self.onSetupChanged()
        self.expertsPanel.enter()
        self.resultPanel.enter()
        self.onReviewCollapsed(self.ui.reviewSection.collapsed)
        self.onCorrectCollapsed(self.ui.correctSection.collapsed)

    def exit(self) -> None:
        self.isEntered = False
        for panel in self.resultPanels:
            panel.exit()

    def onCorrectCollapsed(self, collapsed: bool) -> None:
        """The Segment Editor works only while it can be seen."""
        (self.correctPanel.exit if collapsed or not self.isEntered else self.correctPanel.enter)()

    def onReviewCollapsed(self, collapsed: bool) -> None:
        """A place is outlined only while its list can be seen."""
        (self.reviewPanel.exit if collapsed or not self.isEntered else self.reviewPanel.enter)()

    def onEditPlace(self, segmentId: str, area: Any) -> None:
        """Open the Segment Editor on a segment, limited to an area."""
        self.ui.correctSection.collapsed = False
        self.correctPanel.editWithin(segmentId, area)

    def onSceneStartClose(self, caller: Any, event: str) -> None:
        self.setParameterNode(None)

    def onSceneEndClose(self, caller: Any, event: str) -> None:
        self.initializeParameterNode()

    def onSceneEndImport(self, caller: Any, event: str) -> None:
        self.initializeParameterNode()

    def onNodeRemoved(self, caller: Any, event: str) -> None:
        self.onParameterNodeModified()

    def initializeParameterNode(self) -> None:
        """Take the parameter node of the scene, with the CT that is open where none was chosen yet."""
        self.setParameterNode(self.logic.getParameterNode())
        if self._parameterNode.inputVolume is None:
            self._parameterNode.inputVolume = _openVolume()

    def setParameterNode(self, parameterNode: Any) -> None:
        if self._parameterNode is not None:
            for connection in self._connections:
                self._parameterNode.disconnectGui(connection)
            self._connections = []
            self.removeObserver(self._parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameterNodeModified)
        self._parameterNode = parameterNode
        self.expertsPanel.setParameterNode(parameterNode)
        if parameterNode is not None:
            self._connections = [parameterNode.connectGui(panel.ui) for panel in self.panels]
            self.segmentPanel.updateDevices()
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self.onParameterNodeModified)
            self.onParameterNodeModified()
        else:
            self.showResult(None)

    def onParameterNodeModified(self, caller: Any = None, event: str = "") -> None:
        if self._parameterNode is None:
            return
        if not self.logic.isRunning:
            self.showResult(self._parameterNode.resultSegmentation)
        self.segmentPanel.selectModel(self._parameterNode.modelName)
        self.segmentPanel.setApplicable(self._hindrance())

    def showResult(self, segmentation: Any | None) -> None:
        """Let the sections for results show the case of ``segmentation``; they open when there is one."""
        if segmentation is self._shown:
            return
        self._shown = segmentation
        nodes = recall(segmentation)
        for panel in self.resultPanels:
            panel.setResult(nodes)
        for section in (self.ui.expertsSection, self.ui.resultSection, self.ui.reviewSection):
            section.collapsed = nodes is None
        if nodes is None:
            self.ui.correctSection.collapsed = True

    def onModelChosen(self, name: str) -> None:
        if self._parameterNode is not None:
            self._parameterNode.modelName = name
        self.segmentPanel.setApplicable(self._hindrance())

    def onDevicesWanted(self) -> None:
        """The list of devices came into sight: the worker, which loads PyTorch, says what there is."""
        if requirements.torchVersion() is None:
            self.segmentPanel.showDevices(None, _("PyTorch, once it is installed, tells what there is."))
            return
        self.segmentPanel.showDevices(None, _("Looking for devices..."))
        try:
            self.logic.findDevices(self.onDevicesFound)
        except UserError as error:
            self.segmentPanel.showDevices(None, str(error))

    def onDevicesFound(self, devices: FoundDevices | None) -> None:
        unknown = _("PyTorch did not tell what there is; the log says more.")
        self.segmentPanel.showDevices(devices, unknown if devices is None else "")

    def onSetupChanged(self) -> None:
        """Models or packages may have come or gone."""
        self.segmentPanel.updateModels()
        self.segmentPanel.setApplicable(self._hindrance())

    def onApply(self) -> None:
        try:
            self._start()
        except UserError as error:
            self.segmentPanel.showEnd()
            self.segmentPanel.showError(error)
        self.segmentPanel.setApplicable(self._hindrance())

    def onCancel(self) -> None:
        self.segmentPanel.showCancelling()
        self.logic.cancel()

    def _start(self) -> None:
        parameters = self._parameterNode
        if requirements.torchVersion() is None:
            requirements.installTorch(self.segmentPanel.showMessage)
            self.setupPanel.update()
        target = parameters.outputSegmentation
        if target is not None:
            require_ct(parameters.inputVolume)
            require_target(target, parameters.inputVolume)
            question = self._question(target)
            if question and not slicer.util.confirmOkCancelDisplay(question, _("Segment again")):
                return
        self.segmentPanel.showStart()
        self.logic.segment(
            parameters.inputVolume,
            self.segmentPanel.model.folder,
            parameters.device.value,
            target,
            parameters.regionOfInterest,
            wait=False,
            keepCorrected=parameters.keepCorrected,
            onProgress=self.segmentPanel.showProgress,
            onFinished=self.onFinished,
        )

    def _question(self, target: Any) -> str:
        """What to ask before organs in ``target`` are replaced; empty if none are."""
        kept = kept_organs(recall(target))
        own = own_organs(target)
        content = target.GetSegmentation()
        names = ", ".join(content.GetSegment(each).GetName() for each in kept.segments)
        keep = self._parameterNode.keepCorrected
        replaced = len(own) - (len(kept.segments) if keep else 0)
        if not replaced:
            return ""
        question = _("Replace {count} organs that this module segmented in {name}?")
        if names and keep:
            question += " " + _("Kept as corrected or accepted: {organs}.")
        elif names:
            question += " " + _("Corrections are lost: {organs}.")
        return question.format(count=replaced, name=target.GetName(), organs=names)

    def onFinished(self, outcome: Outcome) -> None:
        """A run has ended, one way or another."""
        self.segmentPanel.showEnd()
        if outcome.nodes is not None:
            organs = len(own_organs(outcome.nodes.segmentation))
            self.segmentPanel.showResult(organs, outcome.elapsed, outcome.device, outcome.warnings)
            if self._parameterNode is not None:
                self._shown = None
                self._parameterNode.resultSegmentation = outcome.nodes.segmentation
                self.onParameterNodeModified()
        elif outcome.cancelled:
            self.segmentPanel.showMessage(_("Cancelled. Nothing was changed."))
        else:
            self.segmentPanel.showError(outcome.error, outcome.details)
        self.segmentPanel.setApplicable(self._hindrance())

    def _hindrance(self) -> str:
        """Why Apply would be of no use now; empty if it would be."""
        model = self.segmentPanel.model
        if self._parameterNode is None or self._parameterNode.inputVolume is None:
            return _("Select a CT first.")
        if model is None:
            return _("Add a model under Setup, or select another one.")
        if model.problem is not None:
            return str(model.problem)
        return ""


def _openVolume() -> Any | None:
    """The scalar volume shown in the red slice view, else the first one of the scene."""
    composite = slicer.mrmlScene.GetSingletonNode("Red", "vtkMRMLSliceCompositeNode")
    shown = slicer.mrmlScene.GetNodeByID(composite.GetBackgroundVolumeID() or "") if composite else None
    count = slicer.mrmlScene.GetNumberOfNodesByClass("vtkMRMLScalarVolumeNode")
    every = (slicer.mrmlScene.GetNthNodeByClass(index, "vtkMRMLScalarVolumeNode") for index in range(count))
    scalar = [node for node in every if node.GetClassName() == "vtkMRMLScalarVolumeNode"]
    return shown if shown in scalar else next(iter(scalar), None)


class DCASegmentationLogic(ScriptedLoadableModuleLogic):
    """Segmentation without any widget. In Slicer's Python console, with a CT loaded under the name CTLiver::

    from DCASegmentation import DCASegmentationLogic

    logic = DCASegmentationLogic()
    nodes = logic.segment(slicer.util.getNode("CTLiver"))
    print(nodes.segmentation.GetSegmentation().GetSegmentIDs())
    logic.stop()
    """

    def __init__(self, onLog: Callable[[str], None] = logging.info) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._runner = SegmentationRunner(lambda: newWorker(onLog))

    def getParameterNode(self) -> DCASegmentationParameterNode:
        return DCASegmentationParameterNode(super().getParameterNode())

    @property
    def isRunning(self) -> bool:
        return self._runner.isRunning

    def segment(
        self,
        ctNode: Any,
        bundleFolder: str | Path | None = None,
        device: str = "auto",
        outputSegmentation: Any | None = None,
        roi: Any | None = None,
        options: Mapping[str, Any] = ALL_MAPS,
        wait: bool = True,
        keepCorrected: bool = True,
        onProgress: Callable[[float, str], None] = lambda fraction, message: None,
        onFinished: Callable[[Outcome], None] = lambda outcome: None,
    ) -> CaseNodes | None:
        """Segment a CT (vtkMRMLScalarVolumeNode in HU) and show the result in the scene.

        ``bundleFolder`` is the model (the default one if None), ``device`` auto, cuda, mps or cpu. The organs go into
        ``outputSegmentation``, of which only organs from earlier runs are replaced, or into a new segmentation.
        ``roi`` (vtkMRMLMarkupsROINode) limits what is computed. ``options`` are fields of
        ``inference.options.SegmentOptions``. With ``keepCorrected``, organs of ``outputSegmentation`` that were
        corrected or accepted stay as they are.

        With ``wait`` it returns the nodes of the result when they are there, while Slicer stays responsive, and raises
        Cancelled when the run is cancelled. Without, it returns None at once and ``onFinished(outcome)`` tells later.
        ``onProgress(fraction, message)`` is called meanwhile. Raises UserError, with ``problem`` and ``remedy``, for
        what cannot be segmented; the scene is then as it was.
        """
        if requirements.torchVersion() is None:
            raise UserError(_("PyTorch is not installed in Slicer."), _("Install it under Setup in the panel."))
        order = Order(
            ctNode,
            None if bundleFolder is None else Path(bundleFolder),
            device,
            outputSegmentation,
            roi,
            dict(options),
            keepCorrected,
        )
        outcomes: list[Outcome] = []

        def finished(outcome: Outcome) -> None:
            outcomes.append(outcome)
            onFinished(outcome)

        self._runner.start(order, onProgress, finished)
        if not wait:
            return None
        try:
            while not outcomes:
                slicer.app.processEvents()
                time.sleep(0.01)
        except BaseException:
            self.cancel()
            raise
        if outcomes[0].cancelled:
            raise Cancelled
        if outcomes[0].error is not None:
            raise outcomes[0].error
        return outcomes[0].nodes

    def findDevices(self, onFound: Callable[[FoundDevices | None], None]) -> None:
        """Ask what this computer has to compute on; ``onFound(devices)`` tells later, with None if it is not known.

        ``devices.found`` names what ``segment`` takes as ``device``, ``devices.missing`` says why the others are not
        there. It waits for a run that goes on. Raises UserError if Slicer's Python is not found.
        """
        self._runner.findDevices(onFound)

    def cancel(self) -> None:
        """Stop the run, if there is one; its ``onFinished`` is called when it has ended."""
        self._runner.cancel()

    def stop(self) -> None:
        """End the worker process and what it does; it starts again when it is needed."""
        self._runner.stop()


class DCASegmentationTest(ScriptedLoadableModuleTest):
    """Run by Slicer's "Reload and Test" and by CTest. Without PyTorch or a model the segmentation is left out."""

    def setUp(self) -> None:
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        for test in (
            self.test_ModuleLoadsAndShowsItsPanel,
            self.test_ParameterNodeKeepsChoices,
            self.test_CTGoesOutAndOrgansComeBack,
            self.test_PlacesAreReviewed,
            self.test_PhantomIsSegmented,
        ):
            self.setUp()
            test()

    def test_ModuleLoadsAndShowsItsPanel(self) -> None:
        slicer.modules.dcasegmentation.widgetRepresentation()
        widget = slicer.modules.DCASegmentationWidget
        self.assertEqual(widget.segmentPanel.ui.applyButton.text, _("Apply"))
        self.assertFalse(widget.segmentPanel.ui.applyButton.enabled, "there is no CT")
        self._phantom()
        wasEntered = widget.isEntered
        widget.enter()
        try:
            self.assertEqual(widget.segmentPanel.ui.inputVolumeSelector.currentNode().GetName(), "Phantom")
        finally:
            if not wasEntered:
                widget.exit()
        self.delayDisplay("The panel is there and takes the CT")

    def test_ParameterNodeKeepsChoices(self) -> None:
        parameters = DCASegmentationLogic().getParameterNode()
        parameters.inputVolume = self._phantom()[0]
        parameters.device = Device.CPU
        again = DCASegmentationLogic().getParameterNode()
        self.assertEqual((again.inputVolume.GetName(), again.device), ("Phantom", Device.CPU))
        with self.assertRaises(ValueError):
            parameters.mapOpacity = 2.0
        self.delayDisplay("The parameter node keeps choices")

    def test_CTGoesOutAndOrgansComeBack(self) -> None:
        ctNode, phantom = self._phantom()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            path, region = export_ct(ctNode, folder)
            self.assertEqual(sitk.ReadImage(str(path)).GetSize(), phantom.ct.GetSize())
            sitk.WriteImage(phantom.labels, str(folder / "labels.nrrd"))
            nodes = import_result(folder, ctNode, AMOS, region)
        self.assertEqual(set(nodes.segmentation.GetSegmentation().GetSegmentIDs()), set(AMOS.by_key))
        liver = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ctNode)
        expected = sitk.GetArrayViewFromImage(phantom.labels) == AMOS.by_key["liver"].label
        self.assertTrue((liver.astype(bool) == expected).all(), "the liver lies where it was")
        self.delayDisplay("A CT goes out and its organs come back")

    def test_PlacesAreReviewed(self) -> None:
        ctNode, phantom = self._phantom()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self._writeReview(phantom, folder)
            nodes = import_result(folder, ctNode, AMOS)
        widget = slicer.modules.DCASegmentationWidget
        parameters = widget.logic.getParameterNode()
        parameters.resultSegmentation = nodes.segmentation
        review, buttons = widget.reviewPanel, widget.reviewPanel.ui
        self.assertEqual(buttons.placesTable.rowCount, 1)
        liver = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ctNode)
        review.goToNext()
        buttons.suggestionButton.click()
        without = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ctNode)
        self.assertLess(without.sum(), liver.sum(), "the suggestion took voxels away")
        self.assertEqual(buttons.placesTable.item(0, 3).text(), _("Accepted"))
        self.assertEqual(buttons.checkedBar.value, 1)
        buttons.suggestionButton.click()
        again = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ctNode)
        self.assertTrue((again == liver).all(), "and gave them back")
        buttons.flagButton.click()
        logic = slicer.vtkSlicerSegmentationsModuleLogic
        status = logic.GetSegmentStatus(nodes.segmentation.GetSegmentation().GetSegment("liver"))
        self.assertEqual(status, logic.Flagged)
        buttons.editButton.click()
        editor = widget.correctPanel.ui.segmentEditor
        self.assertEqual(editor.sourceVolumeNode().GetName(), "Editable area")
        widget.correctPanel.ui.editEverywhereButton.click()
        self.assertEqual(editor.sourceVolumeNode().GetName(), "Phantom")
        self.delayDisplay("A place is reviewed")

    def test_PhantomIsSegmented(self) -> None:
        if requirements.torchVersion() is None or not find_bundles():
            self.delayDisplay("Skipped: segmentation needs PyTorch and a model")
            return
        ctNode, _phantom = self._phantom()
        logic = DCASegmentationLogic()
        try:
            nodes = logic.segment(ctNode, device="cpu")
        finally:
            logic.stop()
        self.assertGreater(nodes.segmentation.GetSegmentation().GetNumberOfSegments(), 0)
        self.assertEqual(set(nodes.attention), {1, 2, 3, 4})
        self.assertIsNotNone(nodes.entropy)
        self.delayDisplay("The phantom is segmented")

    @staticmethod
    def _writeReview(phantom: Any, folder: Path) -> None:
        """The files of a result with one place to check: a few planes of the liver, where nothing is suggested."""
        liver = AMOS.by_key["liver"]
        labels = sitk.GetArrayFromImage(phantom.labels)
        found = (labels == liver.label).nonzero()
        z, y, x = (int(axis[len(axis) // 2]) for axis in found)
        first, last = (x - 2, y - 2, z - 1), (x + 2, y + 2, z + 1)
        box = tuple(slice(start, stop + 1) for start, stop in zip(reversed(first), reversed(last), strict=True))
        places, alternative = labels * 0, labels.copy()
        places[box], alternative[box] = 1, 0
        for name, array in (("labels", labels), (PLACES, places), (ALTERNATIVE, alternative)):
            image = sitk.GetImageFromArray(array)
            image.CopyInformation(phantom.labels)
            sitk.WriteImage(image, str(folder / f"{name}.nrrd"))
        right, back, up = phantom.labels.TransformIndexToPhysicalPoint((x, y, z))
        place = Place(
            rank=1,
            organ=liver.key,
            label=liver.label,
            name=liver.name,
            score=1.0,
            expected_wrong_ml=1.0,
            ml=float(places.sum()) * 6 * 6 * 8 / 1000,
            position_mm=(right, back, up),
            box_mm=((right, back, up), (right, back, up)),
            box_voxels=(first, last),
            reasons=(Reason("uncertain", "Made up."),),
            alternative=Alternative("anatomy", (0,), 1.0, "Suggested: background."),
        )
        content = Review("AMOS", {}, (place,)).to_json()
        (folder / REVIEW).write_text(json.dumps(content), encoding="utf-8")

    @staticmethod
    def _phantom() -> tuple[Any, Any]:
        """A coarse synthetic CT as a node named Phantom, and what it was made from."""
        from DCASegmentationLib.phantom.case import generate

        phantom = generate(seed=1, spacing=(6.0, 6.0, 8.0))
        return show_ct(phantom.ct, "Phantom"), phantom
