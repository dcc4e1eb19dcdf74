"""Writing and reading review.json, and errors for invalid files."""

from __future__ import annotations

import json

import pytest

from dcaseg.errors import UserError
from dcaseg.review.schema import Alternative, Finding, OrganNote, Reason, Review, read_review

FINDING = Finding(
    rank=1,
    organ="stomach",
    label=7,
    name="Stomach",
    score=41.3,
    expected_wrong_ml=12.9,
    ml=34.2,
    position_mm=(12.0, -40.5, 1010.0),
    box_mm=((0.0, -60.0, 990.0), (30.0, -20.0, 1030.0)),
    box_voxels=((10, 20, 30), (30, 40, 43)),
    reasons=(
        Reason("island", "A piece of 2.1 ml."),
        Reason("uncertain", "The network gives 40% of the probability to other labels."),
    ),
    alternative=Alternative("experts", (0, 13), 8.8, "The experts find Duodenum (8.8 ml)."),
)
REVIEW = Review(
    "AMOS",
    {"size": [64, 64, 50], "spacing_mm": [2.0, 2.0, 3.0], "origin_mm": [0.0, 0.0, 0.0], "direction": [1.0] * 9},
    (FINDING, Finding(**{**vars(FINDING), "rank": 2, "alternative": None})),
    (OrganNote("bladder", 14, 0.0, ("Not found.",)),),
)


def test_a_review_is_the_same_after_writing_and_reading(tmp_path):
    path = tmp_path / "review.json"
    path.write_text(json.dumps(REVIEW.to_json(".nii.gz")))
    assert read_review(path) == REVIEW


def test_the_file_names_its_units_and_its_images():
    content = REVIEW.to_json(".mha")
    assert content["coordinates"] == "LPS, mm"
    assert content["files"] == {"places": "review_places.mha", "alternative": "review_alternative.mha"}
    assert content["places"][0]["position_mm_lps"] == [12.0, -40.5, 1010.0]
    assert content == json.loads(json.dumps(content)), "plain JSON, no tuples"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"format": "other"}, "not a list of findings"),
        ({"places": [{"rank": 1}]}, "damaged"),
        ({"places": None}, "damaged"),
        ({"organs": [3]}, "damaged"),
    ],
    ids=str,
)
def test_an_invalid_file_is_refused(change, message, tmp_path):
    path = tmp_path / "review.json"
    path.write_text(json.dumps({**REVIEW.to_json(), **change}))
    with pytest.raises(UserError, match=message) as caught:
        read_review(path)
    assert caught.value.remedy


def test_missing_and_truncated_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_review(tmp_path / "review.json")
    (tmp_path / "review.json").write_text(json.dumps(REVIEW.to_json())[:200])
    with pytest.raises(UserError, match="cannot be read"):
        read_review(tmp_path / "review.json")
