"""A run that is limited to some organs or to a region changes nothing else in the segmentation that it goes into."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dcaseg.organs import AMOS, SYNAPSE

slicer = pytest.importorskip("slicer", reason="needs slicer-core")
pytestmark = pytest.mark.scene

from DCASegmentationLib.scene.ct_export import Region
from DCASegmentationLib.scene.finding_status import (
    accept_suggestion,
    follow_edits,
    is_organ_reviewed,
    mark_organ,
    set_status,
    take_back,
)
from DCASegmentationLib.scene.organ_changes import NO_KEPT_ORGANS, compute_organ_changes, find_kept_organs
from DCASegmentationLib.scene.partial_run import find_organs_in_region, get_earlier_review
from DCASegmentationLib.scene.result_import import ResultFiles, keep_for_review, show_result
from DCASegmentationLib.scene.review_record import read_review, read_state, read_suggestion
from DCASegmentationLib.scene.segmentation import tag_organs
from review_case import (
    FINDINGS,
    LIVER,
    STOMACH,
    alternative_array,
    case_alone_in_scene,
    label_array,
    labels_of,
    paint,
    rank_array,
    review,
    segment_status,
)

# The lower half of the CT: the kidneys, and the lower part of the liver, but not the spleen.
LOWER = Region((0, 0, 0), (12, 34, 40))


@pytest.fixture
def case():
    with case_alone_in_scene() as nodes:
        yield nodes


def labels_of_run(organs=None, region=None):
    """What a run finds: the same organs one voxel smaller at the top, and a stomach."""
    labels = label_array()
    labels[1:][(labels[1:] > 0) & (labels[:-1] == 0)] = 0
    labels[2:6, 2:6, 30:34] = STOMACH
    if organs is not None:
        labels[~np.isin(labels, [AMOS.by_key[key].label for key in organs])] = 0
    return labels if region is None else labels[region.slices]


def run(case, organs=None, region=None, kept=None, findings=()):
    """Put the result of a run that was limited to these organs and this region into the case."""
    files = ResultFiles(None)
    files.labels = labels_of_run(organs, region)
    files.model = ("newer", "cd" * 32)
    if findings:
        files.review = replace(review(), findings=findings)
        files.finding_ranks = np.zeros_like(files.labels)
        files.alternative = files.labels.copy()
        for finding in findings:
            files.finding_ranks[FINDINGS[finding.rank]] = finding.rank
    requested = frozenset(organs if organs is not None else AMOS.by_key)
    kept = find_kept_organs(case.segmentation, requested) if kept is None else kept
    earlier = get_earlier_review(case.segmentation, case.ct)
    nodes = show_result(files, case.ct, AMOS, region, case.segmentation, kept, organs)
    keep_for_review(files, nodes, AMOS, region, kept, "", organs, earlier)
    return nodes


def changed_organs(nodes):
    return {change.organ.key for change in compute_organ_changes(nodes) if change.changed}


def test_organs_that_were_not_requested_stay(case):
    mine = case.segmentation.GetSegmentation().AddEmptySegment("mine", "Mine")
    nodes = run(case, organs=["liver"])
    expected = label_array()
    expected[expected == LIVER] = 0
    expected[labels_of_run(["liver"]) == LIVER] = LIVER
    np.testing.assert_array_equal(labels_of(nodes), expected)
    assert set(nodes.segmentation.GetSegmentation().GetSegmentIDs()) == {
        "spleen", "right_kidney", "left_kidney", "liver", mine
    }  # fmt: skip
    assert changed_organs(nodes) == set(), "the automatic result of the other organs is that of the first run"
    assert find_kept_organs(nodes.segmentation).organs == ()


def test_a_run_for_all_organs_replaces_all(case):
    nodes = run(case)
    np.testing.assert_array_equal(labels_of(nodes), labels_of_run())
    assert read_review(nodes.segmentation) is None and read_state(nodes.segmentation).statuses == {}


def test_organs_that_the_model_does_not_know_stay(case, tmp_path):
    """As after a run of a model for other organs."""
    assert "duodenum" in AMOS.by_key and "duodenum" not in SYNAPSE.by_key
    case.segmentation.GetSegmentation().AddEmptySegment("duodenum", "Duodenum")
    tag_organs(case.segmentation, {"duodenum": "duodenum"})
    files = ResultFiles(tmp_path)
    files.labels = np.where(label_array() == LIVER, SYNAPSE.by_key["liver"].label, 0).astype(np.uint8)
    nodes = show_result(files, case.ct, SYNAPSE, segmentation=case.segmentation)
    assert set(nodes.segmentation.GetSegmentation().GetSegmentIDs()) == {"liver", "duodenum"}


def test_decisions_on_organs_that_were_not_requested_stay(case):
    accept_suggestion(case, 2)
    set_status(case, 3, "flagged")
    mark_organ(case, "bladder", True)
    before = labels_of(case)
    again = replace(review().findings[0], score=0.5)
    nodes = run(case, organs=["left_kidney", "liver"], kept=NO_KEPT_ORGANS, findings=(again,))
    findings = read_review(nodes.segmentation).findings
    # Sorted by their scores: the findings of the first run in the spleen and the right kidney, then the new one.
    assert [(each.rank, each.organ) for each in findings] == [(1, "spleen"), (2, "right_kidney"), (3, "liver")]
    state = read_state(nodes.segmentation)
    assert [state.status(rank) for rank in (1, 2, 3)] == ["corrected", "flagged", "to_check"], (
        "the liver was replaced, and with it the voxels that the alternative gave to it"
    )
    assert is_organ_reviewed(nodes, "bladder") and segment_status(nodes, "right_kidney") == "Flagged"
    np.testing.assert_array_equal(read_suggestion(nodes.segmentation, 1), alternative_array()[FINDINGS[2]].ravel())
    ranks = slicer.util.arrayFromVolume(nodes.finding_ranks)
    assert np.unique(ranks, return_counts=True)[1].tolist()[1:] == [
        np.count_nonzero(rank_array() == rank) for rank in (2, 3, 1)
    ]
    assert (labels_of(nodes) != before).any()


def test_an_accepted_alternative_of_an_organ_that_stays_can_still_be_undone(case):
    before = labels_of(case)
    accept_suggestion(case, 2)
    nodes = run(case, organs=["left_kidney"])
    findings = {finding.organ: finding.rank for finding in read_review(nodes.segmentation).findings}
    state = read_state(nodes.segmentation)
    assert state.status(findings["spleen"]) == "suggestion" and state.is_checked(findings["spleen"])
    assert not follow_edits(nodes)
    take_back(nodes, findings["spleen"])
    other = before != AMOS.by_key["left_kidney"].label
    np.testing.assert_array_equal(labels_of(nodes)[other], before[other])


def test_nothing_outside_the_region_changes(case):
    paint(case, "liver", (slice(20, 22), slice(6, 8), slice(4, 6)), 0)
    before = labels_of(case)
    assert find_organs_in_region(case.segmentation, case.ct, LOWER) == {"liver", "right_kidney", "left_kidney"}
    nodes = run(case, region=LOWER, kept=NO_KEPT_ORGANS)
    expected = before.copy()
    expected[LOWER.slices] = labels_of_run()[LOWER.slices]
    np.testing.assert_array_equal(labels_of(nodes), expected)
    assert changed_organs(nodes) == {"liver"}, "outside the region it is compared with the first run"
    assert find_kept_organs(nodes.segmentation).organs == ("liver",)


def test_findings_outside_the_region_stay_with_their_decisions(case):
    set_status(case, 1, "accepted")
    set_status(case, 2, "flagged")
    nodes = run(case, region=LOWER, kept=NO_KEPT_ORGANS)
    findings = {finding.organ: finding.rank for finding in read_review(nodes.segmentation).findings}
    assert set(findings) == {"liver", "spleen"}, "the finding in the kidney lies in the region"
    state = read_state(nodes.segmentation)
    assert state.status(findings["liver"]) == "accepted" and state.status(findings["spleen"]) == "flagged"
    assert segment_status(nodes, "liver") == "Completed" and segment_status(nodes, "spleen") == "Flagged"
    assert not follow_edits(nodes)
    accept_suggestion(nodes, findings["spleen"])


def test_corrected_organs_are_kept_in_a_limited_run_too(case):
    paint(case, "liver", FINDINGS[1], 0)
    before = labels_of(case)
    nodes = run(case, organs=["liver", "spleen"])
    np.testing.assert_array_equal(labels_of(nodes) == LIVER, before == LIVER)
    assert changed_organs(nodes) == {"liver"}


def test_an_organ_removed_by_hand_is_not_found_again_by_a_run_for_other_organs(case):
    case.segmentation.GetSegmentation().RemoveSegment("spleen")
    nodes = run(case, organs=["liver"])
    assert "spleen" not in nodes.segmentation.GetSegmentation().GetSegmentIDs()
    assert find_kept_organs(nodes.segmentation).removed == ("spleen",)
    assert not is_organ_reviewed(nodes, "spleen")
