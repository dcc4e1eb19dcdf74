"""Places to check: on constructed maps, where it is known what is wrong."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.imaging.grid import Grid
from dcaseg.inference.measurements import measure
from dcaseg.organs import AMOS
from dcaseg.review.builder import make_review
from dcaseg.review.evidence import Evidence
from dcaseg.review.regions import Scoring, error_probability_of, grown, regions
from dcaseg.review.schema import MAX_FINDINGS

SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, LIVER = (
    AMOS.by_key[key].label for key in ("spleen", "right_kidney", "left_kidney", "liver")
)
OWNERS = ((LIVER, SPLEEN), (RIGHT_KIDNEY, LEFT_KIDNEY), tuple(sorted({*range(1, 16)} - {1, 2, 3, 6})))
SHAPE = (30, 40, 40)
# 8 ml a voxel: a few thousand of them are a body.
GRID = Grid((40, 40, 30), (20.0, 20.0, 20.0), (-400.0, -400.0, -300.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
FINE = Grid((80, 80, 60), (10.0, 10.0, 10.0), (-405.0, -405.0, -305.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))


ACROSS_MM, MOST_ML = 160.0, 450.0


def body():
    """Labels of a liver, a ball of some 2 l about the voxel (13, 13, 13), and nothing else."""
    z, y, x = np.indices(SHAPE)
    return np.where((z - 13) ** 2 + (y - 13) ** 2 + (x - 13) ** 2 < 4.2**2, np.uint8(LIVER), np.uint8(0))


def probabilities(labels, sure=0.99):
    """(channel, depth, height, width): ``sure`` for each voxel's label, the rest even among the others."""
    sure = np.broadcast_to(np.asarray(sure, np.float32), labels.shape)
    result = np.repeat(((1 - sure) / 15)[None], 16, axis=0)
    np.put_along_axis(result, labels[None].astype(np.intp), sure[None], axis=0)
    return result.astype(np.float32)


def evidence_of(labels, other=None, sure=0.99, attention=None):
    evidence = Evidence(SHAPE, AMOS, (0, 1, 2), other is not None, attention is not None)
    mine = probabilities(labels, sure)
    others = None if other is None else probabilities(other, sure)
    for z in range(SHAPE[0]):
        evidence.add(
            z,
            mine[:, z],
            None if others is None else others[:, z],
            None if attention is None else attention[:, z],
        )
    return evidence


def review_of(labels, other=None, sure=0.99, attention=None, ct=GRID):
    """The review of ``labels`` on ``ct``, GRID or one of half its spacing."""
    factor = ct.size[0] // GRID.size[0]

    def fine(array):
        return array.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)

    on_ct = fine(labels)
    measured = measure(on_ct, on_ct.astype(np.int16), ct.volume_ml_per_voxel, AMOS, None, ct.spacing)
    evidence = evidence_of(labels, other, sure, attention)
    # Sizes in proportion to these voxels of 20 mm.
    scoring = Scoring(across_mm=ACROSS_MM, most_ml=MOST_ML)
    return make_review(
        evidence, on_ct, None if other is None else fine(other), ct, GRID, measured, OWNERS, scoring=scoring
    )


def about(result, key):
    return [place for place in result.review.findings if place.organ == key]


def kinds(place):
    return [reason.kind for reason in place.reasons]


def array(image):
    return sitk.GetArrayFromImage(image)


def test_a_sure_and_sound_organ_is_no_place_to_check():
    assert about(review_of(body()), "liver") == []


def test_an_island_is_a_place_and_its_suggestion_is_to_remove_it():
    labels = body()
    labels[4:6, 30:32, 30:32] = LIVER
    result = review_of(labels)
    (place,) = about(result, "liver")
    assert kinds(place)[0] == "island"
    assert place.box_voxels == ((30, 30, 4), (31, 31, 5)), "nothing but what the finding is about"
    assert place.ml == pytest.approx(8 * 8)
    assert (place.alternative.source, place.alternative.labels, place.alternative.ml) == ("anatomy", (0,), 64.0)
    accepted = array(result.alternative)
    np.testing.assert_array_equal(accepted, body())


def test_a_hole_is_a_place_and_its_suggestion_is_to_fill_it():
    labels = body()
    labels[12, 12, 12] = 0
    result = review_of(labels)
    (place,) = about(result, "liver")
    assert kinds(place)[0] == "hole"
    assert place.alternative.labels == (LIVER,)
    np.testing.assert_array_equal(array(result.alternative), body())


def test_an_organ_the_experts_hold_but_the_result_lacks_is_missing_and_suggested():
    other = body()
    other[12:14, 22:26, 12:14] = RIGHT_KIDNEY
    result = review_of(body(), other)
    (place,) = about(result, "right_kidney")
    assert kinds(place)[:2] == ["missing", "disagreement"]
    assert place.alternative.source == "experts"
    assert place.alternative.labels == (RIGHT_KIDNEY,)
    np.testing.assert_array_equal(array(result.alternative), other)
    assert "Not found" in next(note for note in result.review.organs if note.organ == "right_kidney").notes[0]


def test_an_organ_nobody_holds_is_a_note_and_no_place():
    result = review_of(body(), body())
    assert about(result, "gallbladder") == []
    note = next(note for note in result.review.organs if note.organ == "gallbladder")
    assert note.notes == ("Not found anywhere; usual are 5 to 120 ml. It may have been taken out.",)


def test_a_flat_end_within_the_scan_is_a_cut_and_at_the_edge_of_the_scan_is_none():
    def cone(first):
        labels = np.zeros(SHAPE, np.uint8)
        for plane, side in enumerate((7, 7, 6, 5, 4, 2)):
            labels[first + plane, 10 : 10 + side, 10 : 10 + side] = LIVER
        return labels

    cut = about(review_of(cone(8)), "liver")
    assert {kinds(place)[0] for place in cut} == {"cut"}
    assert all("Liver: its lower end" in place.reasons[0].text for place in cut)
    at_edge = review_of(cone(0))
    assert about(at_edge, "liver") == []
    note = next(note for note in at_edge.review.organs if note.organ == "liver")
    assert note.notes == ("Cut off by the scan: lower bound.",)


def test_an_organ_far_too_small_is_a_place_as_a_whole():
    labels = body()
    labels[20:22, 20, 20] = SPLEEN
    result = review_of(labels)
    (place,) = about(result, "spleen")
    assert kinds(place)[0] == "volume"
    assert "smaller than usual" in place.reasons[0].text
    assert (array(result.ranks)[20:22, 20, 20] == place.rank).all()


def test_an_organ_on_the_wrong_side_of_the_body_is_out_of_position():
    """Organs at their usual places, but the spleen beside the right kidney."""
    positions = {
        "right_kidney": (-69, 3, -8),
        "left_kidney": (66, 7, 8),
        "stomach": (42, -64, 59),
        "duodenum": (-25, -49, -13),
        "bladder": (-2, -37, -215),
        "spleen": (-150, 4, 0),
    }
    labels = np.zeros(SHAPE, np.uint8)
    for key, position in positions.items():
        i, j, k = np.rint((np.array(position) - np.array(GRID.origin)) / (GRID.axes.diagonal() * 20)).astype(int)
        # From 16 to 24 voxels, 128 to 192 ml, fit all of them.
        labels[k : k + 2, j - 2 : j + 2, i - 1 : i + 1] = AMOS.by_key[key].label
    result = review_of(labels)
    assert [place.organ for place in result.review.findings if "position" in kinds(place)] == ["spleen"]


def test_a_border_is_a_place_where_it_is_more_unsure_than_the_rest_of_its_organ():
    labels = body()

    def review(sure):
        evidence = Evidence(SHAPE, AMOS, (0, 1, 2), False, False)
        add_all(evidence, or_liver(labels, sure))
        measured = measure(labels, labels.astype(np.int16), GRID.volume_ml_per_voxel, AMOS, None, GRID.spacing)
        scoring = Scoring(across_mm=ACROSS_MM, most_ml=MOST_ML)
        return about(make_review(evidence, labels, None, GRID, GRID, measured, OWNERS, scoring=scoring), "liver")

    assert review(np.full(SHAPE, 0.55, np.float32)) == [], "as unsure as it is everywhere"
    in_one_corner = np.full(SHAPE, 0.85, np.float32)
    in_one_corner[:, :, :12] = 0.55
    places = review(in_one_corner)
    assert places and all(kinds(place) == ["uncertain"] for place in places)
    assert places[0].reasons[0].text.startswith("Liver: ")
    assert "usual for this organ" in places[0].reasons[0].text
    assert all(place.box_voxels[1][0] <= 11 for place in places)


def or_liver(labels, sure):
    """(channel, depth, height, width): ``sure`` for each voxel's label, the rest background, or liver in background."""
    sure = np.broadcast_to(np.asarray(sure, np.float32), labels.shape)
    result = np.zeros((16, *labels.shape), np.float32)
    np.put_along_axis(result, np.where(labels > 0, 0, LIVER)[None], 1 - sure[None], axis=0)
    np.put_along_axis(result, labels[None].astype(np.intp), sure[None], axis=0)
    return result


def near(labels, sure):
    """``sure`` in organs and next to them, where nothing else is in doubt."""
    return np.where(grown(labels > 0), np.float32(sure), np.float32(0.999))


def add_all(evidence, mine, others=None):
    for z in range(mine.shape[1]):
        evidence.add(z, mine[:, z], None if others is None else others[:, z])


def test_a_place_is_about_one_organ_as_are_all_of_its_reasons():
    """Where a tiny adrenal gland lies in the doubtful border of the stomach, each has places of its own."""
    stomach, adrenal = (AMOS.by_key[key] for key in ("stomach", "left_adrenal_gland"))
    labels = np.zeros(FINE.shape, np.uint8)
    labels[20:30, 20:32, 20:32] = stomach.label
    labels[24:26, 32:34, 26:28] = adrenal.label
    other = labels.copy()
    other[20:30, 30:32, 20:32] = 0
    grid = replace(FINE, spacing=(4.0, 4.0, 4.0))
    evidence = Evidence(FINE.shape, AMOS, (0, 1, 2), True, False)
    add_all(evidence, or_liver(labels, near(labels, 0.7)), or_liver(other, near(labels, 0.7)))
    measured = measure(labels, labels.astype(np.int16), grid.volume_ml_per_voxel, AMOS, None, grid.spacing)
    result = make_review(evidence, labels, other.copy(), grid, grid, measured, OWNERS)
    ranks = array(result.ranks)
    assert {"stomach", "left_adrenal_gland"} <= {place.organ for place in result.review.findings}
    for place in result.review.findings:
        own = AMOS.by_key[place.organ]
        assert set(np.unique(labels[ranks == place.rank])) <= {0, own.label}
        for reason in place.reasons:
            assert reason.organ == place.organ and reason.text.startswith(f"{own.name}: ")
    (small,) = (reason for place in about(result, adrenal.key) for reason in place.reasons if reason.kind == "volume")
    assert small.text.startswith("Left adrenal gland: 0.5 ml, smaller than usual (1.5 to 12 ml)")
    assert not [place for place in about(result, "stomach") if "1.5 to 12" in str(place.reasons)]


def test_no_place_is_larger_than_can_be_judged_at_a_glance():
    """A liver of 1.8 l, all of whose border is in doubt, and kidneys of 100 ml in the wrong place."""
    z, y, x = np.indices((60, 80, 80))
    grid = Grid((80, 80, 60), (4.0, 4.0, 4.0), (-160.0, -160.0, -120.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))

    def people(radius):
        labels = np.zeros(grid.shape, np.uint8)
        labels[(z - 30) ** 2 + (y - 30) ** 2 + (x - 30) ** 2 < radius**2] = LIVER
        labels[(z - 30) ** 2 + (y - 65) ** 2 + (x - 65) ** 2 < (radius / 2.6) ** 2] = RIGHT_KIDNEY
        return labels

    labels, other = people(19), people(17)
    evidence = Evidence(grid.shape, AMOS, (0, 1, 2), True, False)
    add_all(evidence, or_liver(labels, near(labels, 0.6)), or_liver(other, near(labels, 0.6)))
    measured = measure(labels, labels.astype(np.int16), grid.volume_ml_per_voxel, AMOS, None, grid.spacing)
    result = make_review(evidence, labels, other.copy(), grid, grid, measured, OWNERS)
    ranks = array(result.ranks)
    assert {"liver", "right_kidney"} <= {place.organ for place in result.review.findings}
    for place in result.review.findings:
        organ_ml = next(each.ml for each in measured if each.organ.key == place.organ)
        assert place.ml <= min(30.0, max(organ_ml / 5, 2.1))
        first, last = np.array(place.box_voxels)
        assert ((last - first + 1) * 4.0).max() <= Scoring.across_mm
        rim = (labels == place.label) & (other != place.label)
        assert np.count_nonzero(rim & (ranks == place.rank)) < 0.25 * np.count_nonzero(rim), "no whole rim"


def test_a_fifth_of_a_small_organ_is_a_place_at_most():
    kidney = np.zeros((30, 30, 30), np.int64)
    kidney[5:20, 5:20, 5:20] = 10
    cut = regions(kidney, (4.0, 4.0, 4.0), 200.0, 100, lambda box, mask: 100.0)
    sizes = np.bincount(cut.ravel())[1:]
    assert sizes.max() <= 100 and sizes.sum() == 15**3
    kinds_of = np.where(np.indices(kidney.shape)[0] < 10, np.uint8(1), np.uint8(2))
    apart = regions(kidney, (4.0, 4.0, 4.0), 200.0, 100, None, kinds_of)
    assert [len(np.unique(kinds_of[apart == number])) for number in range(1, apart.max() + 1)] == [1, 1]


def test_at_most_a_hundred_places_the_most_urgent_first():
    noise = np.random.default_rng(1).uniform(0.2, 0.99, SHAPE)
    labels = np.where(np.random.default_rng(2).random(SHAPE) < 0.3, np.uint8(LIVER), np.uint8(0))
    result = review_of(labels, np.where(noise < 0.5, np.uint8(SPLEEN), labels), sure=noise)
    assert len(result.review.findings) == MAX_FINDINGS
    scores = [place.score for place in result.review.findings]
    assert scores == sorted(scores, reverse=True)


def test_a_border_is_more_likely_wrong_than_what_lies_within_and_more_so_where_the_network_is_unsure():
    likely = error_probability_of(evidence_of(body(), sure=0.9))
    doubtful = error_probability_of(evidence_of(body(), sure=0.5))
    assert likely[13, 13, 13] < likely[13, 13, 9]
    assert (doubtful > likely).all()


def test_weights_are_cut_into_connected_boxes_the_heaviest_first_on_any_grid():
    weights = np.zeros((24, 24, 24), np.int64)
    weights[2, 2, 2:10] = 5
    weights[20, 20, 4] = 7
    weights[20, 20, 8] = 1
    coarse = regions(weights, (8.0, 8.0, 8.0), 40.0, 10)
    assert (coarse[2, 2, 2:7] == 1).all() and (coarse[2, 2, 7:10] == 2).all(), "five voxels fit into 40 mm"
    assert coarse[20, 20, 4] == 3 and coarse[20, 20, 8] == 4, "apart, so two"
    assert np.count_nonzero(coarse) == np.count_nonzero(weights)
    fine = regions(weights.repeat(4, 0).repeat(4, 1).repeat(4, 2), (2.0, 2.0, 2.0), 40.0, 10)
    np.testing.assert_array_equal(fine[::4, ::4, ::4], coarse)
    assert regions(weights, (8.0, 8.0, 8.0), 40.0, 2).max() == 2
    assert not regions(np.zeros((3, 3, 3), np.int64), (8.0, 8.0, 8.0), 40.0, 2).any()


def test_sums_of_boxes_stay_right_while_regions_are_taken_out():
    weights = np.random.default_rng(3).integers(0, 9, (13, 17, 11))
    numbers = regions(weights, (6.0, 5.0, 4.0), 21.0, 200)
    left = weights.copy()
    for number in range(1, int(numbers.max()) + 1):
        taken = numbers == number
        side = (3, 4, 5)
        heaviest = max(
            left[z : z + 3, y : y + 4, x : x + 5].sum() for z, y, x in np.ndindex(*np.subtract(left.shape, side) + 1)
        )
        corner = [np.argwhere(taken)[:, axis] for axis in range(3)]
        assert all(at.max() - at.min() < length for at, length in zip(corner, side, strict=True))
        if number < 12:  # with hardly a gap in them, boxes are one piece
            assert left[taken].sum() >= 0.9 * heaviest
        left[taken] = 0
    assert left.sum() < 0.2 * weights.sum()


def test_attention_of_another_group_and_of_nobody_are_reasons():
    labels = body()
    labels[12:15, 24:28, 10:13] = RIGHT_KIDNEY
    doubtful_liver = (slice(12, 14), slice(12, 15), slice(12, 15))
    doubtful_kidney = (slice(12, 14), slice(24, 28), slice(10, 13))
    sure = np.full(SHAPE, 0.99, np.float32)
    sure[doubtful_liver] = sure[doubtful_kidney] = 0.5
    attention = np.zeros((3, *SHAPE), np.float32)
    attention[0] = 1
    attention[(slice(None), *doubtful_liver)] = np.reshape([0.1, 0.1, 0.8], (3, 1, 1, 1))
    attention[(slice(None), *doubtful_kidney)] = np.reshape([0.3, 0.4, 0.3], (3, 1, 1, 1))
    result = review_of(labels, sure=sure, attention=attention)
    liver, kidney = (
        next(place for place in about(result, key) if {"foreign_expert", "undecided"} & {*kinds(place)})
        for key in ("liver", "right_kidney")
    )
    assert "foreign_expert" in kinds(liver) and "undecided" not in kinds(liver)
    assert "Liver: the tail expert decides in 100%" in liver.reasons[kinds(liver).index("foreign_expert")].text
    assert "undecided" in kinds(kidney) and "foreign_expert" not in kinds(kidney)


def test_the_two_images_lie_on_the_ct_and_differ_from_the_labels_only_within_places():
    labels = body()
    labels[4:6, 30:32, 30:32] = LIVER
    other = body()
    other[12:14, 22:26, 12:14] = RIGHT_KIDNEY
    result = review_of(labels, other, ct=FINE)
    assert Grid.of(result.ranks) == FINE and Grid.of(result.alternative) == FINE
    places, alternative = array(result.ranks), array(result.alternative)
    on_ct = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(alternative[places == 0], on_ct[places == 0])
    assert sorted(np.unique(places)) == list(range(len(result.review.findings) + 1))
    for place in result.review.findings:
        own = np.argwhere(places == place.rank)[:, ::-1]
        assert place.box_voxels == (tuple(own.min(axis=0)), tuple(own.max(axis=0)))
        assert place.ml == pytest.approx(len(own) * FINE.volume_ml_per_voxel)
        index = result.ranks.TransformPhysicalPointToIndex(place.position_mm)
        assert result.ranks[index] == place.rank, "the point to look at lies in the place"


def test_the_same_evidence_gives_the_same_review():
    labels, other = body(), body()
    labels[4:6, 30:32, 30:32] = LIVER
    other[12:14, 22:26, 12:14] = RIGHT_KIDNEY
    noise = np.random.default_rng(0).uniform(0.3, 0.99, SHAPE)
    first, second = (review_of(labels, other, sure=noise) for _ in range(2))
    assert first.review == second.review
    assert sitk.Hash(first.ranks) == sitk.Hash(second.ranks)
    assert sitk.Hash(first.alternative) == sitk.Hash(second.alternative)


def test_evidence_costs_a_byte_for_each_voxel_and_question():
    evidence = evidence_of(body(), body(), attention=np.ones((3, *SHAPE), np.float32) / 3)
    assert evidence.nbytes == 8 * body().size


def test_an_island_that_the_result_lacks_is_background_with_its_organ_as_the_alternative():
    labels = body()
    labels[4, 30, 30] = LIVER
    evidence = evidence_of(labels)
    evidence.take_out_islands()
    np.testing.assert_array_equal(evidence.labels, body())
    assert evidence.alternative[4, 30, 30] == LIVER
    assert evidence.alternative[13, 13, 13] != LIVER


def test_organs_that_were_not_asked_for_count_as_background():
    evidence = Evidence((1, 1, 2), AMOS, (0, 1, 2), False, False, kept=frozenset({LIVER}))
    mixed = np.zeros((16, 1, 2), np.float32)
    mixed[SPLEEN, 0, 0], mixed[0, 0, 0], mixed[LIVER, 0, 1] = 0.8, 0.2, 1
    evidence.add(0, mixed)
    assert evidence.labels.tolist() == [[[0, LIVER]]]
    assert evidence.error_probability.tolist() == [[[0, 0]]], "that it is background is beyond doubt"
    assert evidence.kept == (LIVER,)


def test_a_place_that_a_coarse_ct_passes_by_is_left_out_and_the_ranks_have_no_gap():
    labels = body()
    labels[4, 31, 31] = labels[20:22, 30:33, 30:33] = LIVER  # the first lies between the voxels of the CT
    coarse = Grid((13, 13, 10), (60.0, 60.0, 60.0), (-400.0, -400.0, -300.0), GRID.direction)
    on_ct = np.ascontiguousarray(labels[::3, :39:3, :39:3])
    measured = measure(on_ct, on_ct.astype(np.int16), coarse.volume_ml_per_voxel, AMOS)
    result = make_review(evidence_of(labels), on_ct, None, coarse, GRID, measured, OWNERS)
    assert [place.rank for place in result.review.findings] == [1]
    assert set(np.unique(array(result.ranks))) == {0, 1}
    assert len(review_of(labels).review.findings) == 2
