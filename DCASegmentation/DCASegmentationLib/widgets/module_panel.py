"""The module's panel: creates the sections, passes events between them, and keeps them in step with the scene."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.util import VTKObservationMixin

from DCASegmentationLib.click_correction import ClickWorker
from DCASegmentationLib.event_loop import ModifiedObserver, StepRunner, createTimer
from DCASegmentationLib.scene.case_record import (
    CaseNodes,
    find_cases,
    find_cases_in_scene,
    find_orphaned_nodes,
    read_case_nodes,
)
from DCASegmentationLib.scene.ct_export import find_open_ct
from DCASegmentationLib.scene.maps import prepare_maps_in_steps, remove_unused_folders
from DCASegmentationLib.scene.nodes import remove_nodes
from DCASegmentationLib.scene.subject_hierarchy import remove_empty_folders
from DCASegmentationLib.scene.view_setup import (
    go_to_organs,
    hide_earlier,
    is_in_views,
    show_case_alone,
    show_in_views,
    use_abdominal_window,
)
from DCASegmentationLib.transform_observer import TransformObserver
from DCASegmentationLib.widgets.batch_panel import BatchPanel
from DCASegmentationLib.widgets.click_panel import ClickPanel
from DCASegmentationLib.widgets.correct_panel import CorrectPanel, scrollTo
from DCASegmentationLib.widgets.experts_panel import ExpertsPanel
from DCASegmentationLib.widgets.guide import Guide
from DCASegmentationLib.widgets.result_panel import ResultPanel, centerThreeDView
from DCASegmentationLib.widgets.review_panel import ReviewPanel
from DCASegmentationLib.widgets.segment_control import SegmentControl
from DCASegmentationLib.widgets.setup_panel import SetupPanel
from DCASegmentationLib.widgets.tables import makeCheckBoxesVisible


class ModulePanel(VTKObservationMixin):
    """The whole panel of the module.

    ``layout`` is the Qt layout that the panel is added to. ``newLogic()`` returns the module's logic, which runs the
    segmentation and provides the scene's parameter node. Call :meth:`enter` when the user opens the module,
    :meth:`exit` when they leave it, and :meth:`cleanup` before the panel is destroyed.
    """

    def __init__(self, layout: qt.QLayout, uiFolder: Path, newLogic: Callable[[], Any]) -> None:
        VTKObservationMixin.__init__(self)
        self._parameters: Any = None
        self._parametersObserver = ModifiedObserver(self._onParametersModified)
        self._connections: list[Any] = []
        self._shown: Any = None
        self._shownCT: Any = None
        self._newResult: Any = None
        self.isEntered = False
        # A volume node is added to the scene before its voxels are set, so check it in a later turn of the event loop.
        self._loading = createTimer(self._chooseOpenCT)
        self._tidying = createTimer(self._tidy)
        self._transforms = TransformObserver(self._onMoved)
        # A segmentation node is added before the record of its result.
        self._watching = createTimer(self._transforms.update)
        self._showing = StepRunner()
        self.widget = slicer.util.loadUI(str(uiFolder / "DCASegmentation.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.segmentControl = SegmentControl(
            self.ui.segmentSection.layout(),
            uiFolder,
            newLogic,
            self._onResult,
            self._onInstalled,
            centerThreeDView,
            self._onBeforeReplace,
        )
        self.segmentPanel, self.logic = self.segmentControl.panel, self.segmentControl.logic
        self.setupPanel = SetupPanel(self.ui.setupSection.layout(), uiFolder, self._onSetupChanged)
        self.expertsPanel = ExpertsPanel(self.ui.expertsSection.layout(), uiFolder)
        self.resultPanel = ResultPanel(self.ui.resultSection.layout(), uiFolder)
        self.correctPanel = CorrectPanel(self.ui.correctSection.layout(), uiFolder)
        worker = ClickWorker(self.logic.correct, lambda: self.logic.workerPid, lambda: self.logic.isRunning)
        correctLayout = self.ui.correctSection.layout()
        self.clickPanel = ClickPanel(correctLayout, uiFolder, worker, self.correctPanel)
        # Above the Segment Editor.
        correctLayout.removeWidget(self.clickPanel.widget)
        correctLayout.insertWidget(0, self.clickPanel.widget)
        self.reviewPanel = ReviewPanel(
            self.ui.reviewSection.layout(),
            uiFolder,
            self._onEditFinding,
            self.correctPanel.editEverywhere,
            self.correctPanel.saveStateForUndo,
            self._onFixFinding,
        )
        self.batchPanel = BatchPanel(
            self.ui.batchSection.layout(),
            uiFolder,
            self.logic,
            self.segmentControl.createBatchSettings,
            self._showCase,
            self.segmentControl.setBatchRunning,
        )
        self.ui.reviewSection.connect("contentsCollapsed(bool)", self._onReviewCollapsed)
        self.ui.correctSection.connect("contentsCollapsed(bool)", self._onCorrectCollapsed)
        self.ui.expertsSection.connect("contentsCollapsed(bool)", self._onExpertsCollapsed)
        self.guide = Guide(self.ui, self._startGuidedRun, self._openSection, self._updateGuide)
        self._placeSetup()
        self.ui.setupSection.collapsed = self.setupPanel.isComplete()
        self.widget.setMRMLScene(slicer.mrmlScene)
        for panel in self._panels:
            panel.widget.setMRMLScene(slicer.mrmlScene)
        scene = slicer.mrmlScene
        self.addObserver(scene, scene.StartCloseEvent, self._onSceneStartClose)
        self.addObserver(scene, scene.EndCloseEvent, self._onSceneChanged)
        self.addObserver(scene, scene.EndImportEvent, self._onSceneChanged)
        self.addObserver(scene, scene.NodeAddedEvent, self._onNodeAdded)
        self.addObserver(scene, scene.NodeRemovedEvent, self._onNodeRemoved)
        self._takeParameterNode()
        self._transforms.update()

    @property
    def parameters(self) -> Any:
        """The module's parameter node (DCASegmentationParameterNode) of the scene; None while a scene is closed."""
        return self._parameters

    @property
    def _panels(self) -> list[Any]:
        return [self.setupPanel, self.segmentPanel, *self._resultPanels]

    @property
    def _resultPanels(self) -> list[Any]:
        """The panels that show a result, each in its own section."""
        return [self.expertsPanel, self.resultPanel, self.reviewPanel, self.clickPanel, self.correctPanel]

    def enter(self) -> None:
        """The user opens the module: update every section and show what was hidden by :meth:`exit`."""
        self.isEntered = True
        self._takeParameterNode()
        self.setupPanel.update()
        self.segmentControl.updateModels()
        self.expertsPanel.enter()
        self.resultPanel.enter()
        self._onReviewCollapsed(self.ui.reviewSection.collapsed)
        self._onCorrectCollapsed(self.ui.correctSection.collapsed)
        self._onExpertsCollapsed(self.ui.expertsSection.collapsed)
        self._placeSetup()
        for widget in (
            self.segmentPanel.ui.organsList,
            self.resultPanel.ui.segmentsTable,
            self.reviewPanel.ui.changesTable,
            self.reviewPanel.ui.keepCorrectedCheckBox,
            self.expertsPanel.ui.legendCheckBox,
            self.expertsPanel.ui.saveMapsCheckBox,
        ):
            makeCheckBoxesVisible(widget)

    def exit(self) -> None:
        """The user leaves the module: remove the outline and end the editing effect."""
        self.isEntered = False
        self._onExpertsCollapsed(True)
        for panel in self._resultPanels:
            panel.exit()

    def cleanup(self) -> None:
        """Slicer is closing or the module is being reloaded: stop all work and disconnect from the scene."""
        self._loading.stop()
        self._tidying.stop()
        self._watching.stop()
        self._transforms.stop()
        self._showing.stop()
        self._setParameterNode(None)
        self.removeObservers()
        self.segmentControl.show3D.stop()
        self.segmentPanel.cleanup()
        remove_unused_folders(Path(slicer.app.temporaryPath), also_recent=True)
        for panel in [self.setupPanel, self.batchPanel, *self._resultPanels]:
            panel.cleanup()
        self.logic.stop()

    def _onCorrectCollapsed(self, collapsed: bool) -> None:
        """Activate the Segment Editor only while its section is visible."""
        if collapsed or not self.isEntered:
            self.clickPanel.exit()
        (self.correctPanel.exit if collapsed or not self.isEntered else self.correctPanel.enter)()

    def _onExpertsCollapsed(self, collapsed: bool) -> None:
        """Load maps for the table and the read-out only while the section is visible."""
        self.expertsPanel.setOpen(not collapsed and self.isEntered)

    def _onReviewCollapsed(self, collapsed: bool) -> None:
        """Outline the current finding only while the list of findings is visible."""
        (self.reviewPanel.exit if collapsed or not self.isEntered else self.reviewPanel.enter)()

    def _onEditFinding(self, segmentId: str, makeArea: Callable[[], Any]) -> None:
        """Open the Segment Editor on a segment, limited to an area."""
        self.ui.correctSection.collapsed = False
        self.correctPanel.editWithin(segmentId, makeArea)

    def _onFixFinding(self, organ: str) -> None:
        """Open the Correct section with the click tool on an organ."""
        self.ui.correctSection.collapsed = False
        self.clickPanel.fix(organ)
        scrollTo(self.clickPanel.widget)

    def _onInstalled(self) -> None:
        self.setupPanel.update()
        self._placeSetup()

    def _onSetupChanged(self) -> None:
        self.segmentControl.updateModels()
        self._placeSetup()

    def _placeSetup(self) -> None:
        """Move Setup to the end, or to the top while something is missing."""
        layout = self.widget.layout()
        layout.removeWidget(self.ui.setupSection)
        isComplete = self.setupPanel.isComplete()
        # Below the guide, or above the spacer.
        layout.insertWidget(layout.count() - 1 if isComplete else 1, self.ui.setupSection)
        self._updateGuide()

    def _updateGuide(self) -> None:
        hasCT = self._parameters is not None and self._parameters.inputVolume is not None
        self.guide.update(hasCT, self.setupPanel.isComplete())
        self.segmentControl.setGuided(self.guide.isOffered)

    def _startGuidedRun(self) -> bool:
        if not self.segmentControl.loadSample():
            return False
        self.segmentControl.apply()
        return bool(self.logic.isRunning)

    def _openSection(self, name: str) -> None:
        section = getattr(self.ui, f"{name}Section")
        section.collapsed = False
        scrollTo(section)

    def _onResult(self, segmentation: Any | None) -> None:
        """A run has ended: show its result, even if it went into the segmentation already on display."""
        if segmentation is not None and self._parameters is not None:
            self._shown, self._newResult = None, segmentation
            self._parameters.resultSegmentation = segmentation
            self._update()
            self.ui.resultSection.collapsed = False
        else:
            # Another result may have been selected during the run.
            self._update()
        self.guide.onRunEnded(segmentation is not None)

    def _onBeforeReplace(self, segmentation: Any) -> None:
        self.correctPanel.saveStateBeforeRun(segmentation)

    def _showCase(self, segmentation: Any) -> None:
        """Show a result of the batch: its CT in the views, and its case in the sections."""
        nodes = read_case_nodes(segmentation)
        if nodes is None or self._parameters is None:
            return
        show_case_alone(nodes)
        self._parameters.inputVolume = nodes.ct
        self._shown, self._newResult = None, segmentation
        self._parameters.resultSegmentation = segmentation
        self._update()
        self.ui.resultSection.collapsed = False

    def _onSceneStartClose(self, caller: Any, event: str) -> None:
        self._transforms.stop()
        self._setParameterNode(None)

    def _onSceneChanged(self, caller: Any, event: str) -> None:
        self._takeParameterNode()
        self._watching.start()

    def _onMoved(self, segmentation: Any) -> None:
        if segmentation is self._shown:
            self.reviewPanel.onMoved()

    def _onNodeAdded(self, caller: Any, event: str) -> None:
        self._watching.start()
        if self.isEntered and self._parameters is not None and self._parameters.inputVolume is None:
            self._loading.start()

    def _onNodeRemoved(self, caller: Any, event: str) -> None:
        self._update()
        self._tidying.start()

    def _tidy(self) -> None:
        """Remove what belonged to deleted results: volumes, subject hierarchy folders, and files."""
        if not slicer.mrmlScene.IsBatchProcessing():
            remove_nodes(find_orphaned_nodes())
            remove_empty_folders()
            remove_unused_folders(Path(slicer.app.temporaryPath))
        self._transforms.update()

    def _takeParameterNode(self) -> None:
        """Use the scene's parameter node, which may have come with a loaded scene."""
        self._setParameterNode(self.logic.getParameterNode())
        self._chooseOpenCT()
        self._showCaseOfScene()

    def _showCaseOfScene(self) -> None:
        """If the parameter node names no result, as in a scene from ``dca segment``, show the latest one."""
        if self._parameters.resultSegmentation is None and (cases := find_cases_in_scene()):
            self._parameters.resultSegmentation = cases[-1].segmentation

    def _chooseOpenCT(self) -> None:
        """Select the open CT as input, unless one is already selected."""
        if self._parameters is not None and self._parameters.inputVolume is None:
            self._parameters.inputVolume = find_open_ct()

    def _setParameterNode(self, parameterNode: Any | None) -> None:
        if self._parameters is not None:
            for connection in self._connections:
                self._parameters.disconnectGui(connection)
            self._connections = []
        self._parametersObserver.observe(None)
        self._parameters = parameterNode
        self.expertsPanel.setParameterNode(parameterNode)
        if parameterNode is not None:
            self._connections = [parameterNode.connectGui(panel.ui) for panel in self._panels]
            self._parametersObserver.observe(parameterNode)
        self.segmentControl.setParameterNode(parameterNode)
        if parameterNode is not None:
            self._update()
        else:
            self._showResult(None)

    def _onParametersModified(self, caller: Any, event: str) -> None:
        self._update()

    def _update(self) -> None:
        """Update the sections from the parameter node."""
        if self._parameters is None:
            return
        # A run does not let the sections switch to another result, but what they show must be in the scene.
        if not self.segmentPanel.isRunning or self._shown is None or not _isPresent(self._shown, self._shownCT):
            self._showResult(self._parameters.resultSegmentation)
        self.segmentControl.update()
        self._updateGuide()

    def _showResult(self, segmentation: Any | None) -> None:
        """Show the case of ``segmentation`` in the result sections, one after another."""
        nodes = read_case_nodes(segmentation)
        ct = nodes.ct if nodes is not None else None
        if segmentation is self._shown and ct is self._shownCT:
            return
        self._shown, self._shownCT = segmentation, ct
        self._showing.stop()
        self.segmentControl.show3D.setSegmentation(segmentation)
        if nodes is None:
            for panel in self._resultPanels:
                panel.setResult(None)
        else:
            isNew, self._newResult = segmentation is self._newResult, None
            self._showing.run(self._showResultInSteps(nodes, isNew))

    def _showResultInSteps(self, nodes: CaseNodes, isNew: bool) -> Iterator[None]:
        """Show a case in steps, so that each slow part gets its own turn of the event loop.

        ``isNew`` is true if the result comes from a run that has just ended.
        """
        if isNew and nodes.ct is not None:
            use_abdominal_window(nodes.ct)
            # Unless the user has gone on to another CT, show the one that was segmented.
            if self._parameters is not None and self._parameters.inputVolume is nodes.ct and not is_in_views(nodes.ct):
                show_in_views(nodes.ct)
            isFirst = len(find_cases(nodes.ct)) == 1
            hide_earlier(nodes)
            yield
            if isFirst:
                go_to_organs(nodes)
                yield
        # Experts last: a Segment Editor that gets another segmentation removes the label maps from the slice views.
        for panel in (self.resultPanel, self.reviewPanel, self.correctPanel, self.clickPanel, self.expertsPanel):
            if read_case_nodes(nodes.segmentation) is None:
                return
            panel.setResult(read_case_nodes(nodes.segmentation))
            yield
        if isNew:
            self.segmentControl.show3D.showIfWanted()
            yield
        if (current := read_case_nodes(nodes.segmentation)) is not None:
            yield from prepare_maps_in_steps(current)


def _isPresent(segmentation: Any, ct: Any | None) -> bool:
    """Whether a result and its CT, if it had one, are still in the scene."""
    return all(slicer.mrmlScene.IsNodePresent(node) for node in (segmentation, ct) if node is not None)
