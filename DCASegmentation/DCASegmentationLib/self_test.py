"""The checks of the module's self-test inside Slicer, called by ``DCASegmentationTest`` in the module's file.

In all of them ``test`` is the running ``ScriptedLoadableModuleTest``, and the scene is empty.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import slicer
import slicer.util
from slicer.i18n import tr as _

from dcaseg.models.store import find_bundles
from dcaseg.organs import AMOS
from dcaseg.review.schema import ALTERNATIVE, FINDING_RANKS, REVIEW, Alternative, Finding, Reason, Review
from dcaseg.synthesis.phantom.case import Phantom, generate
from DCASegmentationLib import requirements
from DCASegmentationLib.parameters import Device
from DCASegmentationLib.scene.ct_export import export_ct
from DCASegmentationLib.scene.maps import list_attention_levels, load_map_volume
from DCASegmentationLib.scene.result_import import import_result
from DCASegmentationLib.scene.volumes import show_ct

_MAY_SKIP = "DCA_TEST_MAY_SKIP"


def check_module_panel(test: Any) -> None:
    """The module loads, and its panel selects an open CT."""
    slicer.modules.dcasegmentation.widgetRepresentation()
    panel = slicer.modules.DCASegmentationWidget.panel
    test.assertEqual(panel.segmentPanel.ui.applyButton.text, _("Apply"))
    test.assertFalse(panel.segmentPanel.ui.applyButton.enabled, "there is no CT")
    _add_phantom()
    was_entered = panel.isEntered
    panel.enter()
    try:
        test.assertEqual(panel.segmentPanel.ui.inputVolumeSelector.currentNode().GetName(), "Phantom")
    finally:
        if not was_entered:
            panel.exit()
    test.delayDisplay("The panel is shown and selects the CT")


def check_parameter_node(test: Any, logic: Any) -> None:
    """The parameter node stores choices and rejects values out of range."""
    parameters = logic.getParameterNode()
    parameters.inputVolume = _add_phantom()[0]
    parameters.device = Device.CPU
    again = logic.getParameterNode()
    test.assertEqual((again.inputVolume.GetName(), again.device), ("Phantom", Device.CPU))
    with test.assertRaises(ValueError):
        parameters.mapOpacity = 2.0
    test.delayDisplay("The parameter node keeps choices")


def check_export_and_import(test: Any) -> None:
    """A CT is exported, and the organs of its result are imported, voxel by voxel."""
    ct_node, phantom = _add_phantom()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, region = export_ct(ct_node, folder)
        test.assertEqual(sitk.ReadImage(str(path)).GetSize(), phantom.ct.GetSize())
        sitk.WriteImage(phantom.labels, str(folder / "labels.nrrd"))
        nodes = import_result(folder, ct_node, AMOS, region)
    test.assertEqual(set(nodes.segmentation.GetSegmentation().GetSegmentIDs()), set(AMOS.by_key))
    liver = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ct_node)
    expected = sitk.GetArrayViewFromImage(phantom.labels) == AMOS.by_key["liver"].label
    test.assertTrue((liver.astype(bool) == expected).all(), "the liver is where it was")
    test.delayDisplay("The CT is exported and its organs are imported")


def check_review(test: Any) -> None:
    """A finding is accepted with its alternative, undone, flagged, and edited."""
    ct_node, phantom = _add_phantom()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_review(phantom, folder)
        nodes = import_result(folder, ct_node, AMOS)
    panel = slicer.modules.DCASegmentationWidget.panel
    panel.parameters.resultSegmentation = nodes.segmentation
    _let_steps_run()
    review, buttons = panel.reviewPanel, panel.reviewPanel.ui
    test.assertEqual(buttons.findingsTable.rowCount, 1)
    liver = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ct_node)
    review.goToNext()
    buttons.suggestionButton.click()
    without = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ct_node)
    test.assertLess(without.sum(), liver.sum(), "the suggestion took voxels away")
    test.assertEqual(buttons.findingsTable.item(0, 2).text(), _("Accepted"))
    test.assertEqual(buttons.checkedBar.value, 1)
    buttons.suggestionButton.click()
    again = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ct_node)
    test.assertTrue((again == liver).all(), "and gave them back")
    buttons.flagButton.click()
    statuses = slicer.vtkSlicerSegmentationsModuleLogic
    status = statuses.GetSegmentStatus(nodes.segmentation.GetSegmentation().GetSegment("liver"))
    test.assertEqual(status, statuses.Flagged)
    buttons.editButton.click()
    _let_steps_run()
    editor = panel.correctPanel.ui.segmentEditor
    test.assertEqual(editor.sourceVolumeNode().GetName(), "Editable area")
    panel.correctPanel.ui.editEverywhereButton.click()
    test.assertEqual(editor.sourceVolumeNode().GetName(), "Phantom")
    test.delayDisplay("A finding is reviewed")


def check_segmentation(test: Any, logic: Any) -> None:
    """A synthetic CT is segmented by the worker; skipped without PyTorch or a model only if the environment says so."""
    if requirements.getTorchVersion() is None or not find_bundles():
        missing = "segmentation needs PyTorch and a model"
        test.assertEqual(os.environ.get(_MAY_SKIP), "1", f"{missing}; set {_MAY_SKIP}=1 to skip this test")
        test.delayDisplay(f"Skipped: {missing}")
        return
    ct_node = _add_phantom()[0]
    try:
        nodes = logic.segment(ct_node, device="cpu")
    finally:
        logic.stop()
    test.assertGreater(nodes.segmentation.GetSegmentation().GetNumberOfSegments(), 0)
    test.assertEqual(list_attention_levels(nodes), [1, 2, 3, 4])
    test.assertIsNotNone(load_map_volume(nodes, "entropy"))
    test.delayDisplay("The phantom is segmented")


def _let_steps_run() -> None:
    """Let the panel finish its work, which runs in steps, one per turn of the event loop."""
    for _turn in range(50):
        slicer.app.processEvents()


def _write_review(phantom: Phantom, folder: Path) -> None:
    """Write the files of a result with one finding: a few planes of the liver, with background as alternative."""
    liver = AMOS.by_key["liver"]
    labels = sitk.GetArrayFromImage(phantom.labels)
    found = (labels == liver.label).nonzero()
    z, y, x = (int(axis[len(axis) // 2]) for axis in found)
    first, last = (x - 2, y - 2, z - 1), (x + 2, y + 2, z + 1)
    box = tuple(slice(start, stop + 1) for start, stop in zip(reversed(first), reversed(last), strict=True))
    ranks, alternative = labels * 0, labels.copy()
    ranks[box], alternative[box] = 1, 0
    for name, array in (("labels", labels), (FINDING_RANKS, ranks), (ALTERNATIVE, alternative)):
        image = sitk.GetImageFromArray(array)
        image.CopyInformation(phantom.labels)
        sitk.WriteImage(image, str(folder / f"{name}.nrrd"))
    right, back, up = phantom.labels.TransformIndexToPhysicalPoint((x, y, z))
    finding = Finding(
        rank=1,
        organ=liver.key,
        label=liver.label,
        name=liver.name,
        score=1.0,
        expected_wrong_ml=1.0,
        ml=float(ranks.sum()) * 6 * 6 * 8 / 1000,
        position_mm=(right, back, up),
        box_mm=((right, back, up), (right, back, up)),
        box_voxels=(first, last),
        reasons=(Reason("uncertain", "Made up."),),
        alternative=Alternative("anatomy", (0,), 1.0, "Suggested: background."),
    )
    content = Review("AMOS", {}, (finding,)).to_json()
    (folder / REVIEW).write_text(json.dumps(content), encoding="utf-8")


def _add_phantom() -> tuple[Any, Phantom]:
    """A coarse synthetic CT as a node named Phantom, and the phantom that it was created from."""
    phantom = _generate_phantom()
    return show_ct(phantom.ct, "Phantom"), phantom


@cache
def _generate_phantom() -> Phantom:
    return generate(seed=1, spacing=(6.0, 6.0, 8.0))
