"""Slicer's entry into DCASegmentation: what Slicer asks of a module by name, passed on to DCASegmentationLib."""

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
from DCASegmentationLib.widgets.module_panel import ModulePanel

_HOMEPAGE = "https://github.com/SlicerDCASegmentation/SlicerDCASegmentation"


class DCASegmentation(ScriptedLoadableModule):
    """What Slicer's module list and help show."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("DCA Segmentation")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Segmentation")]
        parent.dependencies = ["Segmentations", "Volumes", "Colors"]
        parent.contributors = ["The SlicerDCASegmentation authors", "Yajun Liu (method; Shanghai Jiao Tong University)"]
        parent.helpText = _(
            "Segments the organs of an abdominal CT with DCA (Divide, Conquer, and Aggregate) and shows which of its "
            "experts decided where. Choose a CT and press Apply. For research only; this is no medical device. "
            '<a href="{link}">Manual and source</a>'
        ).format(link=_HOMEPAGE)
        parent.acknowledgementText = _(
            "The method is by Yajun Liu: Divide, Conquer, and Aggregate: Asymmetric Experts for Class-Imbalanced "
            "Semi-Supervised Medical Image Segmentation, CVPR 2026."
        )
        slicer.app.connect("startupCompleted()", register_sample_data)


class DCASegmentationWidget(ScriptedLoadableModuleWidget):
    """Gives the panel its place in Slicer's window, and tells it what happens there."""

    panel: ModulePanel

    def setup(self) -> None:
        ScriptedLoadableModuleWidget.setup(self)
        self.panel = ModulePanel(self.layout, Path(self.resourcePath("UI")), DCASegmentationLogic)

    def enter(self) -> None:
        self.panel.enter()

    def exit(self) -> None:
        self.panel.exit()

    def cleanup(self) -> None:
        """Slicer closes, or the module is loaded again."""
        self.panel.cleanup()

    def onReload(self) -> None:
        """Developers' Reload: takes the library anew too, not this file alone. A run that goes on is ended."""
        mine = ("DCASegmentation", "DCASegmentationLib", "dcaseg")
        before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in mine}
        try:
            ScriptedLoadableModuleWidget.onReload(self)
        except BaseException:
            # New code that cannot be read leaves this panel in place, with the library it came with.
            sys.modules.update(before)
            raise
        if self.panel.isEntered:
            # Slicer sets the new panel up, but does not tell it that it is seen.
            slicer.modules.DCASegmentationWidget.enter()


class DCASegmentationLogic(SegmentationLogic, ScriptedLoadableModuleLogic):
    """Segmentation without any widget. In Slicer's Python console, with a CT loaded under the name CTLiver::

    from DCASegmentation import DCASegmentationLogic

    logic = DCASegmentationLogic()
    nodes = logic.segment(slicer.util.getNode("CTLiver"))
    print(nodes.segmentation.GetSegmentation().GetSegmentIDs())
    logic.stop()
    """

    def getParameterNode(self) -> DCASegmentationParameterNode:
        return DCASegmentationParameterNode(super().getParameterNode())


class DCASegmentationTest(ScriptedLoadableModuleTest):
    """Run by Slicer's "Reload and Test" and by CTest.

    It fails where it cannot segment, for want of PyTorch or a model, unless the environment says DCA_TEST_MAY_SKIP=1.
    """

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
        self_test.module_loads_and_shows_its_panel(self)

    def test_ParameterNodeKeepsChoices(self) -> None:
        self_test.parameter_node_keeps_choices(self, DCASegmentationLogic())

    def test_CTGoesOutAndOrgansComeBack(self) -> None:
        self_test.ct_goes_out_and_organs_come_back(self)

    def test_PlacesAreReviewed(self) -> None:
        self_test.places_are_reviewed(self)

    def test_PhantomIsSegmented(self) -> None:
        self_test.phantom_is_segmented(self, DCASegmentationLogic())
