"""A small case in the scene with three findings, as after a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import SimpleITK as sitk
import slicer

from dcaseg.organs import AMOS
from dcaseg.review.schema import Alternative, Finding, Reason, Review
from scene_case import SyntheticResult, small_ct, small_labels, small_result

STOMACH, LIVER = AMOS.by_key["stomach"].label, AMOS.by_key["liver"].label
# Boxes of indices (z, y, x) by rank: a part of the liver that may be stomach or background, a part of the spleen that
# may be liver, and a part of the right kidney without a suggestion.
FINDINGS = {
    1: (slice(18, 22), slice(6, 12), slice(4, 10)),
    2: (slice(12, 16), slice(12, 16), slice(26, 30)),
    3: (slice(4, 6), slice(22, 28), slice(8, 14)),
}
ORGANS = {1: "liver", 2: "spleen", 3: "right_kidney"}


def label_array() -> np.ndarray:
    return sitk.GetArrayFromImage(small_labels())


def alternative_array() -> np.ndarray:
    alternative = label_array()
    alternative[18:20, 6:12, 4:10] = STOMACH
    alternative[20:22, 6:12, 4:10] = 0
    alternative[FINDINGS[2]] = LIVER
    return alternative


def rank_array() -> np.ndarray:
    ranks = np.zeros_like(label_array())
    for rank, box in FINDINGS.items():
        ranks[box] = rank
    return ranks


def review() -> Review:
    return Review("AMOS", {}, tuple(_finding(rank) for rank in FINDINGS))


def _finding(rank: int) -> Finding:
    box = FINDINGS[rank]
    first = tuple(part.start for part in reversed(box))
    last = tuple(part.stop - 1 for part in reversed(box))
    middle = [(start + stop) // 2 for start, stop in zip(first, last, strict=True)]
    organ = AMOS.by_key[ORGANS[rank]]
    alternative = None if rank == 3 else Alternative("experts", (STOMACH,), 8.6, "The experts hold Stomach (8.6 ml).")
    ml = np.prod([part.stop - part.start for part in box]) * 5 * 6 * 8 / 1000
    x, y, z = small_ct().TransformIndexToPhysicalPoint(middle)
    return Finding(
        rank=rank,
        organ=organ.key,
        label=organ.label,
        name=organ.name,
        score=4.0 - rank,
        expected_wrong_ml=1.0,
        ml=float(ml),
        position_mm=(x, y, z),
        box_mm=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        box_voxels=(first, last),
        reasons=(
            Reason("disagreement", "The experts say something else in 80 % of it."),
            Reason("uncertain", "The network gives 40 % of the probability to other labels."),
        ),
        alternative=alternative,
    )


def reviewed_case(result: SyntheticResult | None = None) -> Any:
    """The nodes (CaseNodes) of the case, with maps of the experts."""
    from DCASegmentationLib.scene.case_record import write_case_nodes
    from DCASegmentationLib.scene.ct_export import Region, compute_ct_checksum
    from DCASegmentationLib.scene.result_import import show_review
    from DCASegmentationLib.scene.review_record import Origin
    from DCASegmentationLib.scene.scene_builder import build_scene
    from DCASegmentationLib.scene.segmentation import tag_organs

    nodes = build_scene(small_ct(), result or small_result(), AMOS, name="Case")
    tag_organs(nodes.segmentation, {each: each for each in nodes.segmentation.GetSegmentation().GetSegmentIDs()})
    labels = label_array()
    origin = Origin("made-up", "ab" * 32, "AMOS", "2026-11-24T12:00:00+00:00", compute_ct_checksum(nodes.ct))
    show_review(
        nodes,
        origin,
        Region.from_size(labels.shape),
        labels,
        review=review(),
        finding_ranks=rank_array(),
        alternative=alternative_array(),
    )
    write_case_nodes(nodes)
    return nodes


@contextmanager
def case_alone_in_scene() -> Iterator[Any]:
    """Slicer's libraries without the panel, with :func:`reviewed_case` in an otherwise empty scene."""
    from DCASegmentationLib.scene.headless import boot

    boot()
    slicer.mrmlScene.Clear(0)
    yield reviewed_case()
    slicer.mrmlScene.Clear(0)


def segment_status(nodes: Any, segment_id: str) -> str:
    """The status of a segment, in Slicer's words."""
    logic = slicer.vtkSlicerSegmentationsModuleLogic
    segment = nodes.segmentation.GetSegmentation().GetSegment(segment_id)
    return str(logic.GetSegmentStatusAsHumanReadableString(logic.GetSegmentStatus(segment)))


def labels_of(nodes: Any) -> np.ndarray:
    """The current organs as labels on the whole grid of the CT."""
    from DCASegmentationLib.scene.organ_changes import get_labels_by_segment

    labels = np.zeros(slicer.util.arrayFromVolume(nodes.ct).shape, np.uint8)
    for segment_id, label in get_labels_by_segment(nodes).items():
        mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segment_id, nodes.ct)
        labels[mask > 0] = label
    return labels


def paint(nodes: Any, segment_id: str, box: tuple[slice, ...], value: int = 1) -> None:
    """Set a box (z, y, x) of a segment, as a stroke in the Segment Editor would."""
    mask = slicer.util.arrayFromSegmentBinaryLabelmap(nodes.segmentation, segment_id, nodes.ct)
    mask[box] = value
    slicer.util.updateSegmentBinaryLabelmapFromArray(mask, nodes.segmentation, segment_id, nodes.ct)
