"""The review as part of a segmentation: it changes no labels, is written to disk, and printed by the command line."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter

from dcaseg.imaging.grid import Grid
from dcaseg.inference.segmenter import Segmenter, SegmentOptions
from dcaseg.review.schema import read_review
from dcaseg.worker.protocol import Segment
from dcaseg.worker.segment_handler import SegmentHandler
from small_model import SmallModel, vivid_network

torch.set_num_threads(1)

REVIEW_FILES = {"review.json", "review_places.nrrd", "review_alternative.nrrd"}
WITH_REVIEW = SegmentOptions(overlap=0.0, review=True)


@pytest.fixture(scope="module")
def ct():
    """Smooth noise around 0 HU, with axes unlike those of any model."""
    noise = gaussian_filter(np.random.default_rng(4).normal(size=(30, 50, 52)), 1.2)
    ct = sitk.GetImageFromArray((300 * noise / noise.std()).astype(np.int16))
    ct.SetSpacing((3.1, 2.9, 4.7))
    ct.SetOrigin((-31.0, 17.25, -404.0))
    ct.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    return ct


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter(SmallModel(vivid_network()), device="cpu")


@pytest.fixture(scope="module")
def reviewed(segmenter, ct):
    return segmenter.segment(ct, WITH_REVIEW)


def array(image):
    return sitk.GetArrayFromImage(image)


def test_the_review_changes_nothing_else(segmenter, ct, reviewed):
    plain = segmenter.segment(ct, SegmentOptions(overlap=0.0))
    assert plain.review is None
    assert sitk.Hash(plain.labels) == sitk.Hash(reviewed.labels)
    assert (reviewed.attention, reviewed.dominant_expert, reviewed.entropy, reviewed.disagreement) == ({}, *[None] * 3)


def test_findings_lie_on_the_ct_and_contain_their_points(ct, reviewed):
    ranks = reviewed.review.ranks
    assert Grid.from_image(ranks) == Grid.from_image(ct) == Grid.from_image(reviewed.review.alternative)
    assert reviewed.review.review.findings
    for finding in reviewed.review.review.findings:
        assert ranks[ranks.TransformPhysicalPointToIndex(finding.position_mm)] == finding.rank
        assert finding.reasons


def test_accepting_all_suggestions_gives_the_experts_labels_within_findings(segmenter, ct, reviewed):
    experts = array(segmenter.segment(ct, SegmentOptions(overlap=0.0, output="experts")).labels)
    ranks, alternative = array(reviewed.review.ranks), array(reviewed.review.alternative)
    np.testing.assert_array_equal(alternative[ranks == 0], array(reviewed.labels)[ranks == 0])
    taken = [finding for finding in reviewed.review.review.findings if finding.alternative]
    by_experts = [finding.rank for finding in taken if finding.alternative.source == "experts"]
    assert by_experts
    inside = np.isin(ranks, by_experts)
    # The review sums the experts' logits in float16, so a tie may end otherwise.
    assert np.mean(alternative[inside] != experts[inside]) < 1e-3


@pytest.mark.parametrize(
    "network", [{"aggregation": False}, pytest.param({"fusion": "concat"}, marks=pytest.mark.slow)], ids=str
)
def test_models_without_attention_or_aggregation_are_reviewed_with_less_evidence(network, ct):
    result = Segmenter(SmallModel(vivid_network(**network)), device="cpu").segment(ct, WITH_REVIEW)
    reported = {reason.kind for finding in result.review.review.findings for reason in finding.reasons}
    assert reported or not network.get("aggregation", True)
    assert not reported & {"foreign_expert", "undecided"}
    assert ("disagreement" in reported) == network.get("aggregation", True)


@pytest.mark.slow
def test_the_experts_result_is_reviewed_against_the_decoder(segmenter, ct):
    result = segmenter.segment(ct, replace(WITH_REVIEW, output="experts"))
    sources = {finding.alternative.source for finding in result.review.review.findings if finding.alternative}
    texts = [reason.text for finding in result.review.review.findings for reason in finding.reasons]
    assert "experts" not in sources
    assert any(": the decoder's probabilities assign a different label to" in text for text in texts)
    assert not any(": the experts" in text for text in texts)


def test_only_chosen_organs_are_reviewed(segmenter, ct):
    result = segmenter.segment(ct, replace(WITH_REVIEW, organs=("spleen",)))
    assert {finding.organ for finding in result.review.review.findings} == {"spleen"}
    assert set(np.unique(array(result.review.alternative))) <= {0, 1}


def test_the_command_writes_the_review_files_on_request_and_prints_the_findings(
    dca, small_bundle, coarse_phantom, tmp_path
):
    ct = coarse_phantom / "ct.nii.gz"
    options = ("--bundle", small_bundle, "--overlap", "0", "--no-scene", "--attention-levels", "none")
    run = dca("segment", ct, "-o", tmp_path / "with", *options, "--review")
    assert run.code == 0, run.err
    assert "Findings: " in run.out
    without = dca("segment", ct, "-o", tmp_path / "without", *options)
    assert "Findings: " not in without.out
    written, plain = ({path.name for path in (tmp_path / name).iterdir()} for name in ("with", "without"))
    assert written - plain == REVIEW_FILES

    review = read_review(tmp_path / "with" / "review.json")
    ranks = sitk.ReadImage(str(tmp_path / "with" / "review_places.nrrd"))
    assert Grid.from_image(ranks).is_same_as(Grid.from_image(sitk.ReadImage(str(ct))))
    assert int(array(ranks).max()) == len(review.findings)
    assert review.ct["size"] == list(ranks.GetSize())
    request = json.loads((tmp_path / "with" / "request.json").read_text())
    assert request["options"]["review"] is True


@pytest.mark.slow
def test_the_worker_makes_a_review_on_request(small_bundle, coarse_phantom, tmp_path):
    out = tmp_path / "result"
    options = {"overlap": 0.0, "review": True}
    request = Segment("1", str(coarse_phantom / "ct.nii.gz"), str(out), str(small_bundle), "cpu", options)
    done = SegmentHandler().answer(request, lambda fraction, message: None, lambda: False)
    assert "review" in done.seconds
    assert {path.name for path in out.iterdir()} >= REVIEW_FILES
    assert read_review(out / "review.json").findings
