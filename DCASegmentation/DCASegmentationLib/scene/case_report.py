"""The content of the report on a case in the scene, with the decisions on its findings."""

from __future__ import annotations

from typing import Any

import numpy as np
import SimpleITK as sitk

from dcaseg.errors import UserError
from dcaseg.organs import Vocabulary
from dcaseg.rendering.report import NOT_CHECKED, CaseReport, ReportedFinding
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.click_labels import get_clicks_by_segment
from DCASegmentationLib.scene.finding_status import get_organ_keys
from DCASegmentationLib.scene.organ_changes import get_labels_by_segment, relabel_layer
from DCASegmentationLib.scene.review_record import (
    ACCEPTED,
    CORRECTED,
    FLAGGED,
    SUGGESTION,
    TO_CHECK,
    read_origin,
    read_review,
    read_state,
)
from DCASegmentationLib.scene.segmentation import get_layers
from DCASegmentationLib.scene.volumes import convert_to_sitk

_OUTCOMES = {
    TO_CHECK: NOT_CHECKED,
    ACCEPTED: "accepted as is",
    CORRECTED: "corrected by hand",
    SUGGESTION: "alternative accepted",
    FLAGGED: "flagged for a second opinion",
}


def create_case_report(nodes: CaseNodes, written: str) -> CaseReport:
    """The report on a case, with its current segments; ``written`` is the date and time to state in it.

    Raises UserError if the CT was deleted or the vocabulary of the segments is unknown.
    """
    if nodes.ct is None:
        raise UserError("The CT is no longer in the scene.", "Load the CT and segment it again.")
    origin = read_origin(nodes.segmentation)
    vocabulary = origin.get_vocabulary() if origin is not None else None
    if origin is None or vocabulary is None:
        raise UserError("The model that produced this result is unknown.", "Segment the CT again.")
    ct = convert_to_sitk(nodes.ct)
    about = [
        ("CT", nodes.ct.GetName()),
        ("Size", _format_size(ct)),
        ("Segmentation", nodes.segmentation.GetName()),
        ("Segmented", origin.date),
        ("Model", origin.model),
    ]
    clicks = "; ".join(
        f"{name}: {added} added, {removed} removed"
        for name, (added, removed) in get_clicks_by_segment(nodes.segmentation).items()
    )
    if clicks:
        about.append(("Corrected with clicks", clicks))
    technical = (("Weights (SHA-256)", origin.sha256), ("Report written", written))
    title = f"Segmentation report: {nodes.ct.GetName()}"
    return CaseReport(
        title, about, ct, _create_label_image(nodes, ct), vocabulary, _list_findings(nodes, vocabulary), None, technical
    )


def _format_size(ct: sitk.Image) -> str:
    size, spacing = (" x ".join(f"{value:.4g}" for value in values) for values in (ct.GetSize(), ct.GetSpacing()))
    return f"{size} voxels of {spacing} mm"


def _create_label_image(nodes: CaseNodes, ct: sitk.Image) -> sitk.Image:
    """The current organs as labels on the grid of the CT."""
    labels = get_labels_by_segment(nodes)
    now = np.zeros(ct.GetSize()[::-1], np.uint8)
    for layer in get_layers(nodes.segmentation, nodes.ct):
        organs = relabel_layer(layer, labels)
        np.copyto(now[layer.box], organs, where=organs > 0)
    image = sitk.GetImageFromArray(now)
    image.CopyInformation(ct)
    return image


def _list_findings(nodes: CaseNodes, vocabulary: Vocabulary) -> list[ReportedFinding] | None:
    review, state = read_review(nodes.segmentation), read_state(nodes.segmentation)
    if review is None:
        return None
    return [
        _create_reported_finding(
            finding, state.status(finding.rank) if state.is_checked(finding.rank) else TO_CHECK, vocabulary
        )
        for finding in review.findings
    ]


def _create_reported_finding(finding: Any, status: str, vocabulary: Vocabulary) -> ReportedFinding:
    names = tuple(vocabulary.by_key[key].name if key in vocabulary.by_key else key for key in get_organ_keys(finding))
    reasons = tuple(reason.text for reason in finding.reasons)
    outcome = _OUTCOMES.get(status, status)
    return ReportedFinding(finding.name, names, reasons, finding.ml, outcome, finding.position_mm)
