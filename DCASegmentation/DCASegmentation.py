"""The Slicer module DCASegmentation: the classes that Slicer looks up by name, implemented in DCASegmentationLib."""

import sys
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

from DCASegmentationLib import self_test
from DCASegmentationLib.logic import SegmentationLogic
from DCASegmentationLib.parameters import DCASegmentationParameterNode
from DCASegmentationLib.scene.sample_data import register_sample_data
from DCASegmentationLib.scene.view_setup import register_comparison
from DCASegmentationLib.widgets.module_panel import ModulePanel

_HOMEPAGE = "https://github.com/SlicerDCASegmentation/SlicerDCASegmentation"
_PAPER = "https://cvpr.thecvf.com/virtual/2026/poster/38134"


class DCASegmentation(ScriptedLoadableModule):
    """The module's entry in Slicer: title, category, help, and sample data."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("DCA Segmentation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Volumes", "Colors"]
        parent.contributors = ["The SlicerDCASegmentation authors"]
        parent.helpText = _(
            "Segments the organs of an abdominal CT with DCA (Divide, Conquer, and Aggregate) and shows where each of "
            "its experts is dominant. Select a CT and press Apply. For research only; not a medical device. "
            '<a href="{link}">Documentation and source code</a>'
        ).format(link=_HOMEPAGE)
        parent.acknowledgementText = _(
            'Method: Yajun Liu et al., <a href="{link}">Divide, Conquer, and Aggregate: Asymmetric Experts for '
            "Class-Imbalanced Semi-Supervised Medical Image Segmentation</a>, CVPR 2026."
        ).format(link=_PAPER)
        slicer.app.connect("startupCompleted()", register_sample_data)
        # A scene that was saved with this layout opens without views if Slicer does not know it.
        slicer.app.connect("startupCompleted()", register_comparison)


class DCASegmentationWidget(ScriptedLoadableModuleWidget):
    """Puts the panel into Slicer's window and passes Slicer's events on to it."""

    panel: ModulePanel | None = None

    def setup(self) -> None:
        """Create the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        self.panel = ModulePanel(self.layout, Path(self.resourcePath("UI")), DCASegmentationLogic)

    def enter(self) -> None:
        """The user opens the module."""
        if self.panel is not None:
            self.panel.enter()

    def exit(self) -> None:
        """The user leaves the module."""
        if self.panel is not None:
            self.panel.exit()

    def cleanup(self) -> None:
        """Slicer is closing or the module is being reloaded; there is no panel if it could not be created."""
        if self.panel is not None:
            self.panel.cleanup()

    def onReload(self) -> None:
        """Reload this file and the library (the Reload button in developer mode). A run in progress is stopped."""
        packages = ("DCASegmentation", "DCASegmentationLib", "dcaseg")
        before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in packages}
        try:
            ScriptedLoadableModuleWidget.onReload(self)
        except BaseException:
            # If the new code cannot be imported, keep this panel and the library it was created with.
            sys.modules.update(before)
            raise
        if self.panel is not None and self.panel.isEntered:
            # Slicer sets up the new panel but does not call enter, although the module is open.
            slicer.modules.DCASegmentationWidget.enter()


class DCASegmentationLogic(SegmentationLogic, ScriptedLoadableModuleLogic):
    """Segmentation without widgets. In Slicer's Python console, with a CT loaded under the name CTLiver::

    from DCASegmentation import DCASegmentationLogic

    logic = DCASegmentationLogic()
    nodes = logic.segment(slicer.util.getNode("CTLiver"))
    print(nodes.segmentation.GetSegmentation().GetSegmentIDs())
    logic.stop()
    """

    def getParameterNode(self) -> DCASegmentationParameterNode:
        """The module's parameter node in the current scene."""
        return DCASegmentationParameterNode(super().getParameterNode())


class DCASegmentationTest(ScriptedLoadableModuleTest):
    """The module's self-test, run by Slicer's "Reload and Test" button and by CTest.

    It fails if it cannot segment because PyTorch or a model is missing, unless the environment sets
    DCA_TEST_MAY_SKIP=1.
    """

    def setUp(self) -> None:
        """Start each test with an empty scene."""
        slicer.mrmlScene.Clear()

    def runTest(self) -> None:
        """Run all tests."""
        for test in (
            self.test_ModuleLoadsAndShowsItsPanel,
            self.test_ParameterNodeKeepsChoices,
            self.test_CTIsExportedAndOrgansAreImported,
            self.test_ReviewOfFindings,
            self.test_PhantomIsSegmented,
        ):
            self.setUp()
            test()

    def test_ModuleLoadsAndShowsItsPanel(self) -> None:
        """The module loads, and its panel selects an open CT."""
        self_test.check_module_panel(self)

    def test_ParameterNodeKeepsChoices(self) -> None:
        """The parameter node stores choices and rejects values out of range."""
        self_test.check_parameter_node(self, DCASegmentationLogic())

    def test_CTIsExportedAndOrgansAreImported(self) -> None:
        """A CT is exported, and the organs of its result are imported, voxel by voxel."""
        self_test.check_export_and_import(self)

    def test_ReviewOfFindings(self) -> None:
        """A finding is accepted, undone, flagged, and edited."""
        self_test.check_review(self)

    def test_PhantomIsSegmented(self) -> None:
        """A synthetic CT is segmented by the worker."""
        self_test.check_segmentation(self, DCASegmentationLogic())
