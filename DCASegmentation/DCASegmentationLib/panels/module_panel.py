"""The module's panel: its sections, who of them tells whom, and what they show of the scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
import vtk
from slicer.util import VTKObservationMixin

from DCASegmentationLib.panels.correct_panel import CorrectPanel
from DCASegmentationLib.panels.experts_panel import ExpertsPanel
from DCASegmentationLib.panels.result_panel import ResultPanel
from DCASegmentationLib.panels.review_panel import ReviewPanel
from DCASegmentationLib.panels.segment_control import SegmentControl
from DCASegmentationLib.panels.setup_panel import SetupPanel
from DCASegmentationLib.scene.case_record import cases_in_scene, recall
from DCASegmentationLib.scene.open_ct import open_ct


class ModulePanel(VTKObservationMixin):
    """``layout`` is where the panel goes.

    ``newLogic(onLog)`` gives the module's logic, which segments and knows the parameter node of the scene. Call
    :meth:`enter` and :meth:`exit` when the module comes into sight and leaves it, :meth:`cleanup` at the end.
    """

    def __init__(self, layout: qt.QLayout, uiFolder: Path, newLogic: Callable[[Callable[[str], None]], Any]) -> None:
        VTKObservationMixin.__init__(self)
        self._parameters: Any = None
        self._connections: list[Any] = []
        self._shown: Any = None
        self.isEntered = False
        # A volume is in the scene before its voxels are: it is looked at when whoever adds it has done.
        self._loading = qt.QTimer()
        self._loading.setSingleShot(True)
        self._loading.setInterval(0)
        self._loading.connect("timeout()", self._chooseOpenCT)
        self.widget = slicer.util.loadUI(str(uiFolder / "DCASegmentation.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self.segmentControl = SegmentControl(
            self.ui.segmentSection.layout(), uiFolder, newLogic, self._onResult, self._onInstalled
        )
        self.segmentPanel, self.logic = self.segmentControl.panel, self.segmentControl.logic
        self.setupPanel = SetupPanel(self.ui.setupSection.layout(), uiFolder, self.segmentControl.updateModels)
        self.expertsPanel = ExpertsPanel(self.ui.expertsSection.layout(), uiFolder)
        self.resultPanel = ResultPanel(self.ui.resultSection.layout(), uiFolder)
        self.correctPanel = CorrectPanel(self.ui.correctSection.layout(), uiFolder)
        self.reviewPanel = ReviewPanel(
            self.ui.reviewSection.layout(),
            uiFolder,
            self._onEditPlace,
            self.correctPanel.editEverywhere,
            self.correctPanel.saveStateForUndo,
        )
        self.ui.reviewSection.connect("contentsCollapsed(bool)", self._onReviewCollapsed)
        self.ui.correctSection.connect("contentsCollapsed(bool)", self._onCorrectCollapsed)
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

    @property
    def parameters(self) -> Any:
        """The module's parameter node (DCASegmentationParameterNode) of the scene; None while a scene is closed."""
        return self._parameters

    @property
    def _panels(self) -> list[Any]:
        return [self.setupPanel, self.segmentPanel, *self._resultPanels]

    @property
    def _resultPanels(self) -> list[Any]:
        """Those about a result, each shown in a section of its own."""
        return [self.expertsPanel, self.resultPanel, self.reviewPanel, self.correctPanel]

    def enter(self) -> None:
        self.isEntered = True
        self._takeParameterNode()
        self.setupPanel.update()
        self.segmentControl.updateModels()
        self.expertsPanel.enter()
        self.resultPanel.enter()
        self._onReviewCollapsed(self.ui.reviewSection.collapsed)
        self._onCorrectCollapsed(self.ui.correctSection.collapsed)

    def exit(self) -> None:
        self.isEntered = False
        for panel in self._resultPanels:
            panel.exit()

    def cleanup(self) -> None:
        """Slicer closes, or the module is loaded again."""
        self._loading.stop()
        self._setParameterNode(None)
        self.removeObservers()
        for panel in [self.setupPanel, *self._resultPanels]:
            panel.cleanup()
        self.logic.stop()

    def _onCorrectCollapsed(self, collapsed: bool) -> None:
        """The Segment Editor works only while it can be seen."""
        (self.correctPanel.exit if collapsed or not self.isEntered else self.correctPanel.enter)()

    def _onReviewCollapsed(self, collapsed: bool) -> None:
        """A place is outlined only while its list can be seen."""
        (self.reviewPanel.exit if collapsed or not self.isEntered else self.reviewPanel.enter)()

    def _onEditPlace(self, segmentId: str, area: Any) -> None:
        """Open the Segment Editor on a segment, limited to an area."""
        self.ui.correctSection.collapsed = False
        self.correctPanel.editWithin(segmentId, area)

    def _onInstalled(self) -> None:
        self.setupPanel.update()

    def _onResult(self, segmentation: Any) -> None:
        """A run has ended well: show it, even where it went into the segmentation that is shown already."""
        if self._parameters is not None:
            self._shown = None
            self._parameters.resultSegmentation = segmentation
            self._update()

    def _onSceneStartClose(self, caller: Any, event: str) -> None:
        self._setParameterNode(None)

    def _onSceneChanged(self, caller: Any, event: str) -> None:
        self._takeParameterNode()

    def _onNodeAdded(self, caller: Any, event: str) -> None:
        if self.isEntered and self._parameters is not None and self._parameters.inputVolume is None:
            self._loading.start()

    def _onNodeRemoved(self, caller: Any, event: str) -> None:
        self._update()

    def _takeParameterNode(self) -> None:
        """Take the parameter node of the scene, which a scene that was loaded may have brought along."""
        self._setParameterNode(self.logic.getParameterNode())
        self._chooseOpenCT()
        self._showCaseOfScene()

    def _showCaseOfScene(self) -> None:
        """Show the latest result of a scene that tells of none, as ``dca segment`` writes it; a choice stays."""
        if self._parameters.resultSegmentation is None and (cases := cases_in_scene()):
            self._parameters.resultSegmentation = cases[-1].segmentation

    def _chooseOpenCT(self) -> None:
        """Choose the CT that is open; a choice that was made stays."""
        if self._parameters is not None and self._parameters.inputVolume is None:
            self._parameters.inputVolume = open_ct()

    def _setParameterNode(self, parameterNode: Any | None) -> None:
        if self._parameters is not None:
            for connection in self._connections:
                self._parameters.disconnectGui(connection)
            self._connections = []
            self.removeObserver(self._parameters, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        self._parameters = parameterNode
        self.expertsPanel.setParameterNode(parameterNode)
        if parameterNode is not None:
            self._connections = [parameterNode.connectGui(panel.ui) for panel in self._panels]
            self.addObserver(parameterNode, vtk.vtkCommand.ModifiedEvent, self._onParametersModified)
        self.segmentControl.setParameterNode(parameterNode)
        if parameterNode is not None:
            self._update()
        else:
            self._showResult(None)

    def _onParametersModified(self, caller: Any, event: str) -> None:
        self._update()

    def _update(self) -> None:
        """Bring the sections into line with the parameter node."""
        if self._parameters is None:
            return
        if not self.logic.isRunning:
            self._showResult(self._parameters.resultSegmentation)
        self.segmentControl.update()

    def _showResult(self, segmentation: Any | None) -> None:
        """Let the sections for results show the case of ``segmentation``; they open when there is one."""
        if segmentation is self._shown:
            return
        self._shown = segmentation
        nodes = recall(segmentation)
        for panel in self._resultPanels:
            panel.setResult(nodes)
        for section in (self.ui.expertsSection, self.ui.resultSection, self.ui.reviewSection):
            section.collapsed = nodes is None
        if nodes is None:
            self.ui.correctSection.collapsed = True
