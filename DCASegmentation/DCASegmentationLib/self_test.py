"""What the module's self-test checks inside Slicer, for ``DCASegmentationTest`` in the module's file.

``test`` is the ``ScriptedLoadableModuleTest`` that runs, with an empty scene.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import slicer
import slicer.util
from slicer.i18n import tr as _

from dcaseg.models.store import find_bundles
from dcaseg.organs import AMOS
from dcaseg.review.schema import ALTERNATIVE, PLACES, REVIEW, Alternative, Finding, Reason, Review
from dcaseg.synthesis.phantom.case import generate
from DCASegmentationLib import requirements
from DCASegmentationLib.parameters import Device
from DCASegmentationLib.scene.ct_export import export_ct
from DCASegmentationLib.scene.maps import levels_of, map_volume
from DCASegmentationLib.scene.result_import import import_result
from DCASegmentationLib.scene.volumes import show_ct

_MAY_SKIP = "DCA_TEST_MAY_SKIP"


def module_loads_and_shows_its_panel(test: Any) -> None:
    slicer.modules.dcasegmentation.widgetRepresentation()
    panel = slicer.modules.DCASegmentationWidget.panel
    test.assertEqual(panel.segmentPanel.ui.applyButton.text, _("Apply"))
    test.assertFalse(panel.segmentPanel.ui.applyButton.enabled, "there is no CT")
    _phantom()
    was_entered = panel.isEntered
    panel.enter()
    try:
        test.assertEqual(panel.segmentPanel.ui.inputVolumeSelector.currentNode().GetName(), "Phantom")
    finally:
        if not was_entered:
            panel.exit()
    test.delayDisplay("The panel is there and takes the CT")


def parameter_node_keeps_choices(test: Any, logic: Any) -> None:
    parameters = logic.getParameterNode()
    parameters.inputVolume = _phantom()[0]
    parameters.device = Device.CPU
    again = logic.getParameterNode()
    test.assertEqual((again.inputVolume.GetName(), again.device), ("Phantom", Device.CPU))
    with test.assertRaises(ValueError):
        parameters.mapOpacity = 2.0
    test.delayDisplay("The parameter node keeps choices")


def ct_goes_out_and_organs_come_back(test: Any) -> None:
    ct_node, phantom = _phantom()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path, region = export_ct(ct_node, folder)
        test.assertEqual(sitk.ReadImage(str(path)).GetSize(), phantom.ct.GetSize())
        sitk.WriteImage(phantom.labels, str(folder / "labels.nrrd"))
        nodes = import_result(folder, ct_node, AMOS, region)
    test.assertEqual(set(nodes.segmentation.GetSegmentation().GetSegmentIDs()), set(AMOS.by_key))
    liver = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ct_node)
    expected = sitk.GetArrayViewFromImage(phantom.labels) == AMOS.by_key["liver"].label
    test.assertTrue((liver.astype(bool) == expected).all(), "the liver lies where it was")
    test.delayDisplay("A CT goes out and its organs come back")


def places_are_reviewed(test: Any) -> None:
    ct_node, phantom = _phantom()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_review(phantom, folder)
        nodes = import_result(folder, ct_node, AMOS)
    panel = slicer.modules.DCASegmentationWidget.panel
    panel.parameters.resultSegmentation = nodes.segmentation
    _let_steps_run()
    review, buttons = panel.reviewPanel, panel.reviewPanel.ui
    test.assertEqual(buttons.placesTable.rowCount, 1)
    liver = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ct_node)
    review.goToNext()
    buttons.suggestionButton.click()
    without = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, "liver", ct_node)
    test.assertLess(without.sum(), liver.sum(), "the suggestion took voxels away")
    test.assertEqual(buttons.placesTable.item(0, 2).text(), _("Accepted"))
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
    test.delayDisplay("A place is reviewed")


def phantom_is_segmented(test: Any, logic: Any) -> None:
    if requirements.torchVersion() is None or not find_bundles():
        missing = "segmentation needs PyTorch and a model"
        test.assertEqual(os.environ.get(_MAY_SKIP), "1", f"{missing}; {_MAY_SKIP}=1 leaves it out")
        test.delayDisplay(f"Skipped: {missing}")
        return
    ct_node = _phantom()[0]
    try:
        nodes = logic.segment(ct_node, device="cpu")
    finally:
        logic.stop()
    test.assertGreater(nodes.segmentation.GetSegmentation().GetNumberOfSegments(), 0)
    test.assertEqual(levels_of(nodes), [1, 2, 3, 4])
    test.assertIsNotNone(map_volume(nodes, "entropy"))
    test.delayDisplay("The phantom is segmented")


def _let_steps_run() -> None:
    """The panel works in steps, one per turn of the event loop."""
    for _turn in range(50):
        slicer.app.processEvents()


def _write_review(phantom: Any, folder: Path) -> None:
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
    place = Finding(
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


def _phantom() -> tuple[Any, Any]:
    """A coarse synthetic CT as a node named Phantom, and what it was made from."""
    phantom = generate(seed=1, spacing=(6.0, 6.0, 8.0))
    return show_ct(phantom.ct, "Phantom"), phantom
