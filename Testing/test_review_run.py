"""The review as a run makes it: beside labels that it leaves alone, on disk, and on the command line."""

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
from dcaseg.worker.runner import Runner
from small_model import SmallModel, vivid_network

torch.set_num_threads(1)

REVIEW_FILES = {"review.json", "review_places.nrrd", "review_alternative.nrrd"}
WITH_REVIEW = SegmentOptions(overlap=0.0, review=True)


@pytest.fixture(scope="module")
def ct():
    """Soft noise about 0 HU whose axes run in no model's order."""
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


def test_places_lie_on_the_ct_and_hold_their_points(ct, reviewed):
    places = reviewed.review.places
    assert Grid.of(places) == Grid.of(ct) == Grid.of(reviewed.review.alternative)
    assert reviewed.review.review.places
    for place in reviewed.review.review.places:
        assert places[places.TransformPhysicalPointToIndex(place.position_mm)] == place.rank
        assert place.reasons


def test_accepting_the_experts_everywhere_gives_the_experts_own_labels_in_the_places(segmenter, ct, reviewed):
    experts = array(segmenter.segment(ct, SegmentOptions(overlap=0.0, output="experts")).labels)
    places, alternative = array(reviewed.review.places), array(reviewed.review.alternative)
    np.testing.assert_array_equal(alternative[places == 0], array(reviewed.labels)[places == 0])
    taken = [place for place in reviewed.review.review.places if place.alternative]
    by_experts = [place.rank for place in taken if place.alternative.source == "experts"]
    assert by_experts
    inside = np.isin(places, by_experts)
    np.testing.assert_array_equal(alternative[inside], experts[inside])


@pytest.mark.parametrize("network", [{"aggregation": False}, {"fusion": "concat"}], ids=str)
def test_a_model_without_attention_or_aggregation_is_reviewed_with_what_it_has(network, ct):
    result = Segmenter(SmallModel(vivid_network(**network)), device="cpu").segment(ct, WITH_REVIEW)
    told = {reason.kind for place in result.review.review.places for reason in place.reasons}
    assert told or not network.get("aggregation", True)
    assert not told & {"foreign_expert", "undecided"}
    assert ("disagreement" in told) == network.get("aggregation", True)


def test_the_experts_result_is_reviewed_against_the_decoder(segmenter, ct):
    result = segmenter.segment(ct, replace(WITH_REVIEW, output="experts"))
    sources = {place.alternative.source for place in result.review.review.places if place.alternative}
    texts = [reason.text for place in result.review.review.places for reason in place.reasons]
    assert "experts" not in sources
    assert any(": the decoder's probabilities say something else" in text for text in texts)
    assert not any(": the experts" in text for text in texts)


def test_only_chosen_organs_are_reviewed(segmenter, ct):
    result = segmenter.segment(ct, replace(WITH_REVIEW, organs=("spleen",)))
    assert {place.organ for place in result.review.review.places} == {"spleen"}
    assert set(np.unique(array(result.review.alternative))) <= {0, 1}


def test_the_command_writes_the_list_and_its_images_when_asked_and_says_what_comes_first(
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
    places = sitk.ReadImage(str(tmp_path / "with" / "review_places.nrrd"))
    assert Grid.of(places).same_as(Grid.of(sitk.ReadImage(str(ct))))
    assert int(array(places).max()) == len(review.places)
    assert review.ct["size"] == list(places.GetSize())
    request = json.loads((tmp_path / "with" / "request.json").read_text())
    assert request["options"]["review"] is True


def test_the_worker_makes_a_review_when_its_request_asks(small_bundle, coarse_phantom, tmp_path):
    out = tmp_path / "result"
    options = {"overlap": 0.0, "review": True}
    request = Segment("1", str(coarse_phantom / "ct.nii.gz"), str(out), str(small_bundle), "cpu", options)
    done = Runner(lambda line: None).run(request, lambda fraction, message: None, lambda: False)
    assert "review" in done.seconds
    assert {path.name for path in out.iterdir()} >= REVIEW_FILES
    assert read_review(out / "review.json").places
