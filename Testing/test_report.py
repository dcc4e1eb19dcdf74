"""The report of a case, written from a result folder by the command line and from the scene by the panel."""

from __future__ import annotations

import base64
import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.organs import AMOS
from scene_case import small_ct, small_labels


@pytest.fixture
def report():
    from dcaseg.rendering.report import CaseReport, ReportedFinding

    finding = ReportedFinding("Liver", ("Liver", "Stomach"), ("80 % <differs>.",), 34.6, "accepted as is")
    about = [("Model", "made-up & tested")]
    return CaseReport("Report: <CT>", about, small_ct(), small_labels(), AMOS, [finding])


def test_the_report_contains_pictures_volumes_ranges_findings_and_a_warning(report):
    from dcaseg.rendering.report import render_html

    text = render_html(report)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(pictures) == 4 and all(base64.b64decode(each).startswith(b"\x89PNG") for each in pictures)
    assert "Report: &lt;CT&gt;" in text and "made-up &amp; tested" in text and "80 % &lt;differs&gt;." in text
    assert "or Stomach" in text and "accepted as is" in text
    assert text.count("Not for clinical use") == 2
    low, high = AMOS.by_key["liver"].volume_ml
    assert f"{low:g}\N{EN DASH}{high:g}" in text and "645.1" in text
    assert "http" not in text, "the page needs nothing from elsewhere"


def test_an_organ_at_the_edge_of_the_scan_is_reported_as_cut_off(report):
    from dcaseg.rendering.report import make_organ_rows

    array = sitk.GetArrayFromImage(report.labels)
    array[0, 22:28, 8:14] = AMOS.by_key["right_kidney"].label
    labels = sitk.GetImageFromArray(array)
    labels.CopyInformation(report.labels)
    notes = {row.organ.key: row.notes for row in make_organ_rows(replace(report, labels=labels))}
    assert notes["right_kidney"] == ("cut off at the lower end of the scan",) and notes["left_kidney"] == (
        "below the usual range",
    )
    assert notes["bladder"] == ("not found",)


def test_each_picture_states_the_sides_of_the_patient(report):
    from dcaseg.rendering.report import draw_pictures, render_html

    axial, coronal, sagittal, front = draw_pictures(report.ct, report.labels, report.vocabulary)
    assert axial.sides == {"left": "R", "right": "L", "top": "A", "bottom": "P"}
    assert axial.title.startswith("Axial, slice")
    assert coronal.sides == front.sides == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    assert sagittal.sides == {"left": "A", "right": "P", "top": "S", "bottom": "I"}
    assert render_html(report).count('class="side') == 16
    # The liver of the phantom is on the patient's right: in the left half of the picture.
    liver = np.array(AMOS.by_key["liver"].color) / max(AMOS.by_key["liver"].color)
    hue = front.pixels / front.pixels.max(axis=2, keepdims=True).clip(1)
    columns = np.nonzero(np.abs(hue - liver).max(axis=2) < 0.1)[1]
    assert columns.mean() < hue.shape[1] / 2


def test_the_slice_and_the_outcome_of_every_decision_are_listed_and_long_lists_end(report):
    from dcaseg.rendering.report import NOT_CHECKED, render_html

    place = report.ct.TransformIndexToPhysicalPoint((5, 5, 11))
    (one,) = report.findings
    findings = [replace(one, outcome=NOT_CHECKED, reasons=("Liver: it is cut.",), position_mm=place)] * 30 + [one]
    text = render_html(replace(report, findings=findings))
    assert "31 findings, the most urgent first: 30 not checked, 1 accepted as is." in text
    assert "The 10 least urgent of those that were not checked are left out." in text
    assert text.count("<td class=number>12</td>") == 21, "20 times slice 12, and once rank 12"
    assert text.count("It is cut.") == 20 and "Liver: it is cut." not in text
    assert "<td class=number>31</td>" in text, "a decision is listed whatever its rank"


def test_organs_that_were_not_requested_are_not_reported_as_missing(report):
    from dcaseg.rendering.report import make_organ_rows

    assert [row.organ.key for row in make_organ_rows(replace(report, asked=("liver",)))] == ["liver"]


def test_a_report_is_never_overwritten_without_request(report, tmp_path):
    from dcaseg.errors import OutputError
    from dcaseg.rendering.report import write_report

    path = tmp_path / "report.html"
    path.write_text("precious")
    with pytest.raises(OutputError, match="already exists"):
        write_report(report, path)
    assert path.read_text() == "precious" and list(tmp_path.iterdir()) == [path]
    write_report(report, path, overwrite=True)
    assert path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_the_command_reports_on_a_result_folder(dca, coarse_phantom, small_bundle, tmp_path):
    result = tmp_path / "result"
    ct = coarse_phantom / "ct.nii.gz"
    segment = ("segment", ct, "-o", result, "--bundle", small_bundle, "--review", "--device", "cpu", "--no-scene")
    run = dca(*segment, "--split")
    assert run.code == 0, run.err
    run = dca("report", result)
    assert run.code == 0 and "report.html" in run.out, run.err
    text = (result / "report.html").read_text(encoding="utf-8")
    assert "random-weights" in text and "ct.nii.gz" in text and "not checked" in text
    assert dca("report", result).code == 2, "nothing is overwritten unasked"
    assert dca("report", tmp_path).code == 2
    labels = sitk.ReadImage(str(result / "labels.nrrd"))
    other = sitk.GetImageFromArray(np.zeros([side + 1 for side in labels.GetSize()[::-1]], np.int16))
    sitk.WriteImage(other, str(tmp_path / "other.nrrd"))
    run = dca("report", result, "--ct", tmp_path / "other.nrrd", "--overwrite")
    assert run.code == 2 and "its geometry is different" in run.err
    # A report does not keep the result from being replaced, but files of the user do.
    (result / "notes.txt").write_text("precious")
    run = dca(*segment, "--overwrite")
    assert run.code == 2 and "not part of a result (notes.txt)" in run.err and (result / "report.html").exists()
    (result / "notes.txt").unlink()
    run = dca(*segment, "--overwrite")
    assert run.code == 0 and not (result / "report.html").exists(), run.err


@pytest.mark.scene
def test_the_panel_reports_the_outcome_of_each_finding(module_panel, fake_slicer, small_bundle, monkeypatch, tmp_path):
    pytest.importorskip("slicer")
    from review_case import reviewed_case

    monkeypatch.setenv("DCA_MODELS", str(small_bundle))
    nodes = reviewed_case()
    module_panel.parameters.resultSegmentation = nodes.segmentation
    fake_slicer.process_events()
    module_panel.reviewPanel.goToNext()
    module_panel.reviewPanel.ui.suggestionButton.click()
    module_panel.reviewPanel.goToNext()
    module_panel.reviewPanel.ui.flagButton.click()
    fake_slicer.dialogs.answer(str(tmp_path / "report"))
    module_panel.resultPanel.ui.reportButton.click()
    text = html.unescape(Path(tmp_path / "report.html").read_text(encoding="utf-8"))
    for words in ("alternative accepted", "flagged for a second opinion", "not checked", "610.6", "made-up"):
        assert words in text
    assert "http" not in text
