"""Review findings on constructed label maps with known errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.imaging.grid import Grid
from dcaseg.inference.measurements import measure
from dcaseg.inference.planes import Plane
from dcaseg.organs import AMOS
from dcaseg.review.builder import make_review
from dcaseg.review.evidence import Evidence
from dcaseg.review.normal_ranges import compute_typical_volume
from dcaseg.review.regions import ReviewOptions, compute_error_probability, dilate, split_into_regions
from dcaseg.review.schema import MAX_FINDINGS

SPLEEN, RIGHT_KIDNEY, LEFT_KIDNEY, LIVER = (
    AMOS.by_key[key].label for key in ("spleen", "right_kidney", "left_kidney", "liver")
)
OWNERS = ((LIVER, SPLEEN), (RIGHT_KIDNEY, LEFT_KIDNEY), tuple(sorted({*range(1, 16)} - {1, 2, 3, 6})))
SHAPE = (30, 40, 40)
# 8 ml per voxel: a few thousand voxels make a body.
GRID = Grid((40, 40, 30), (20.0, 20.0, 20.0), (-400.0, -400.0, -300.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
FINE = Grid((80, 80, 60), (10.0, 10.0, 10.0), (-405.0, -405.0, -305.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))


ACROSS_MM, MAX_ML = 160.0, 450.0


def body():
    """Labels of a single organ, the liver: a ball of about 2 l around the voxel (13, 13, 13)."""
    z, y, x = np.indices(SHAPE)
    return np.where((z - 13) ** 2 + (y - 13) ** 2 + (x - 13) ** 2 < 4.2**2, np.uint8(LIVER), np.uint8(0))


def probabilities(labels, sure=0.99):
    """(channel, depth, height, width): ``sure`` for each voxel's label, the rest is spread evenly."""
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
            Plane(
                z,
                mine[:, z],
                None if others is None else others[:, z],
                {} if attention is None else {4: attention[:, z]},
            )
        )
    return evidence


def review_of(labels, other=None, sure=0.99, attention=None, ct=GRID):
    """The review of ``labels`` on ``ct``, ``GRID`` or a grid with half its spacing."""
    factor = ct.size[0] // GRID.size[0]

    def fine(array):
        return array.repeat(factor, 0).repeat(factor, 1).repeat(factor, 2)

    on_ct = fine(labels)
    measured = measure(on_ct, on_ct.astype(np.int16), ct.volume_ml_per_voxel, AMOS, None, ct.spacing)
    evidence = evidence_of(labels, other, sure, attention)
    # Scaled to voxels of 20 mm.
    options = ReviewOptions(max_extent_mm=ACROSS_MM, max_ml=MAX_ML)
    return make_review(
        evidence, on_ct, None if other is None else fine(other), ct, GRID, measured, OWNERS, options=options
    )


def about(result, key):
    return [finding for finding in result.review.findings if finding.organ == key]


def kinds(finding):
    return [reason.kind for reason in finding.reasons]


def array(image):
    return sitk.GetArrayFromImage(image)


def test_a_confident_plausible_organ_has_no_finding():
    assert about(review_of(body()), "liver") == []


def test_an_island_is_a_finding_with_the_suggestion_to_remove_it():
    labels = body()
    labels[4:6, 30:32, 30:32] = LIVER
    result = review_of(labels)
    (finding,) = about(result, "liver")
    assert kinds(finding)[0] == "island"
    assert finding.box_voxels == ((30, 30, 4), (31, 31, 5)), "only the voxels of the island"
    assert finding.ml == pytest.approx(8 * 8)
    assert (finding.alternative.source, finding.alternative.labels, finding.alternative.ml) == ("anatomy", (0,), 64.0)
    accepted = array(result.alternative)
    np.testing.assert_array_equal(accepted, body())


def test_a_hole_is_a_finding_with_the_suggestion_to_fill_it():
    labels = body()
    labels[12, 12, 12] = 0
    result = review_of(labels)
    (finding,) = about(result, "liver")
    assert kinds(finding)[0] == "hole"
    assert finding.alternative.labels == (LIVER,)
    np.testing.assert_array_equal(array(result.alternative), body())


def test_an_organ_that_only_the_experts_find_is_missing_and_suggested():
    other = body()
    other[12:14, 22:26, 12:14] = RIGHT_KIDNEY
    result = review_of(body(), other)
    (finding,) = about(result, "right_kidney")
    assert kinds(finding)[:2] == ["missing", "disagreement"]
    assert finding.alternative.source == "experts"
    assert finding.alternative.labels == (RIGHT_KIDNEY,)
    np.testing.assert_array_equal(array(result.alternative), other)
    assert "Not found" in next(note for note in result.review.organs if note.organ == "right_kidney").notes[0]


def test_an_organ_missing_from_both_predictions_is_a_note_without_a_finding():
    result = review_of(body(), body())
    assert about(result, "gallbladder") == []
    note = next(note for note in result.review.organs if note.organ == "gallbladder")
    assert note.notes == ("Not found anywhere; the usual volume is 5 to 120 ml. It may have been removed by surgery.",)


def test_an_organ_that_a_short_scan_does_not_reach_was_not_removed_by_surgery():
    slab = Grid((40, 40, 30), (20.0, 20.0, 4.0), (400.0, 400.0, -58.0), (-1, 0, 0, 0, -1, 0, 0, 0, 1))
    labels = np.zeros(SHAPE, np.uint8)
    # As the organs lie around the midpoint between the kidneys, at x = y = z = 0.
    upper, kidneys = ((SPLEEN, 96, 4, 40), (LIVER, -63, -48, 40)), ((RIGHT_KIDNEY, -69, 3, -8), (LEFT_KIDNEY, 66, 7, 8))
    for organ, x, y, z in (*upper, *kidneys):
        k, j, i = round((z + 58) / 4), round((400 - y) / 20), round((400 - x) / 20)
        labels[k - 3 : k + 4, j - 1 : j + 2, i - 1 : i + 2] = organ
    measured = measure(labels, labels.astype(np.int16), slab.volume_ml_per_voxel, AMOS, None, slab.spacing)
    result = make_review(evidence_of(labels), labels, None, slab, slab, measured, OWNERS)
    notes = {each.organ: each.notes for each in result.review.organs}
    assert notes["bladder"][0].endswith("The scan probably does not reach it.")
    assert notes["gallbladder"][0].endswith("It may have been removed by surgery.")


def test_a_flat_end_is_a_cut_unless_the_scan_ends_there():
    def cone(first):
        labels = np.zeros(SHAPE, np.uint8)
        for plane, side in enumerate((7, 7, 6, 5, 4, 2)):
            labels[first + plane, 10 : 10 + side, 10 : 10 + side] = LIVER
        return labels

    cut = about(review_of(cone(8)), "liver")
    assert {kinds(finding)[0] for finding in cut} == {"cut"}
    assert all("Liver: its lower end" in finding.reasons[0].text for finding in cut)
    at_edge = review_of(cone(0))
    assert about(at_edge, "liver") == []
    note = next(note for note in at_edge.review.organs if note.organ == "liver")
    assert note.notes == ("Cut off by the scan: lower bound.",)


def test_an_organ_far_too_small_is_a_finding_as_a_whole():
    labels = body()
    labels[20:22, 20, 20] = SPLEEN
    result = review_of(labels)
    (finding,) = about(result, "spleen")
    assert kinds(finding)[0] == "volume"
    assert "smaller than usual" in finding.reasons[0].text
    assert (array(result.ranks)[20:22, 20, 20] == finding.rank).all()


def test_an_organ_on_the_wrong_side_of_the_body_is_misplaced():
    """Organs at their usual positions, except for the spleen, next to the right kidney."""
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
        # 16 to 24 voxels (128 to 192 ml) are plausible for all of these organs.
        labels[k : k + 2, j - 2 : j + 2, i - 1 : i + 1] = AMOS.by_key[key].label
    result = review_of(labels)
    assert [finding.organ for finding in result.review.findings if "position" in kinds(finding)] == ["spleen"]


@pytest.mark.slow
def test_a_border_is_a_finding_if_it_is_less_certain_than_usual_for_its_organ():
    labels = body()

    def review(sure):
        evidence = Evidence(SHAPE, AMOS, (0, 1, 2), False, False)
        add_all(evidence, or_liver(labels, sure))
        measured = measure(labels, labels.astype(np.int16), GRID.volume_ml_per_voxel, AMOS, None, GRID.spacing)
        options = ReviewOptions(max_extent_mm=ACROSS_MM, max_ml=MAX_ML)
        return about(make_review(evidence, labels, None, GRID, GRID, measured, OWNERS, options=options), "liver")

    assert review(np.full(SHAPE, 0.55, np.float32)) == [], "as uncertain as everywhere"
    in_one_corner = np.full(SHAPE, 0.85, np.float32)
    in_one_corner[:, :, :12] = 0.55
    findings = review(in_one_corner)
    assert findings and all(kinds(finding) == ["uncertain"] for finding in findings)
    assert findings[0].reasons[0].text.startswith("Liver: ")
    assert "usual for this organ" in findings[0].reasons[0].text
    assert all(finding.box_voxels[1][0] <= 11 for finding in findings)


def or_liver(labels, sure):
    """(channel, depth, height, width): ``sure`` for each voxel's label, the rest for background, or liver outside."""
    sure = np.broadcast_to(np.asarray(sure, np.float32), labels.shape)
    result = np.zeros((16, *labels.shape), np.float32)
    np.put_along_axis(result, np.where(labels > 0, 0, LIVER)[None], 1 - sure[None], axis=0)
    np.put_along_axis(result, labels[None].astype(np.intp), sure[None], axis=0)
    return result


def near(labels, sure):
    """``sure`` in and next to organs, certainty elsewhere."""
    return np.where(dilate(labels > 0), np.float32(sure), np.float32(0.999))


def add_all(evidence, mine, others=None):
    for z in range(mine.shape[1]):
        evidence.add(Plane(z, mine[:, z], None if others is None else others[:, z]))


def test_a_finding_and_its_reasons_are_about_one_organ():
    """With a tiny adrenal gland in the uncertain border of the stomach, each has its own findings."""
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
    assert {"stomach", "left_adrenal_gland"} <= {finding.organ for finding in result.review.findings}
    for finding in result.review.findings:
        own = AMOS.by_key[finding.organ]
        assert set(np.unique(labels[ranks == finding.rank])) <= {0, own.label}
        for reason in finding.reasons:
            assert reason.organ == finding.organ and reason.text.startswith(f"{own.name}: ")
    (small,) = (
        reason for finding in about(result, adrenal.key) for reason in finding.reasons if reason.kind == "volume"
    )
    assert small.text.startswith("Left adrenal gland: 0.5 ml, smaller than usual (1.5 to 12 ml)")
    assert not [finding for finding in about(result, "stomach") if "1.5 to 12" in str(finding.reasons)]


def test_each_finding_can_be_judged_at_a_glance():
    """A liver of 1.8 l, with an uncertain border, and misplaced kidneys of 100 ml."""
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
    assert {"liver", "right_kidney"} <= {finding.organ for finding in result.review.findings}
    for finding in result.review.findings:
        organ = next(each for each in measured if each.organ.key == finding.organ)
        assert finding.ml <= min(30.0, max(organ.ml, compute_typical_volume(organ.organ)) / 5)
        first, last = np.array(finding.box_voxels)
        assert ((last - first + 1) * 4.0).max() <= ReviewOptions.max_extent_mm
        rim = (labels == finding.label) & (other != finding.label)
        assert np.count_nonzero(rim & (ranks == finding.rank)) < 0.25 * np.count_nonzero(rim), "not the whole border"


def test_a_finding_covers_at_most_a_fifth_of_a_small_organ():
    kidney = np.zeros((30, 30, 30), np.int64)
    kidney[5:20, 5:20, 5:20] = 10
    cut = split_into_regions(kidney, (4.0, 4.0, 4.0), 200.0, 100, lambda box, mask: 100.0)
    sizes = np.bincount(cut.ravel())[1:]
    assert sizes.max() <= 100 and sizes.sum() == 15**3
    kinds_of = np.where(np.indices(kidney.shape)[0] < 10, np.uint8(1), np.uint8(2))
    apart = split_into_regions(kidney, (4.0, 4.0, 4.0), 200.0, 100, None, kinds_of)
    assert [len(np.unique(kinds_of[apart == number])) for number in range(1, apart.max() + 1)] == [1, 1]


def test_at_most_a_hundred_findings_the_most_urgent_first():
    noise = np.random.default_rng(1).uniform(0.2, 0.99, SHAPE)
    labels = np.where(np.random.default_rng(2).random(SHAPE) < 0.3, np.uint8(LIVER), np.uint8(0))
    result = review_of(labels, np.where(noise < 0.5, np.uint8(SPLEEN), labels), sure=noise)
    assert len(result.review.findings) == MAX_FINDINGS
    scores = [finding.score for finding in result.review.findings]
    assert scores == sorted(scores, reverse=True)


def test_borders_are_more_likely_wrong_than_the_interior_and_more_so_with_an_uncertain_network():
    likely = compute_error_probability(evidence_of(body(), sure=0.9))
    doubtful = compute_error_probability(evidence_of(body(), sure=0.5))
    assert likely[13, 13, 13] < likely[13, 13, 9]
    assert (doubtful > likely).all()


def test_weights_are_split_into_connected_regions_the_heaviest_first_on_any_grid():
    weights = np.zeros((24, 24, 24), np.int64)
    weights[2, 2, 2:10] = 5
    weights[20, 20, 4] = 7
    weights[20, 20, 8] = 1
    coarse = split_into_regions(weights, (8.0, 8.0, 8.0), 40.0, 10)
    assert (coarse[2, 2, 2:7] == 1).all() and (coarse[2, 2, 7:10] == 2).all(), "five voxels fit into 40 mm"
    assert coarse[20, 20, 4] == 3 and coarse[20, 20, 8] == 4, "not connected, so two regions"
    assert np.count_nonzero(coarse) == np.count_nonzero(weights)
    fine = split_into_regions(weights.repeat(4, 0).repeat(4, 1).repeat(4, 2), (2.0, 2.0, 2.0), 40.0, 10)
    np.testing.assert_array_equal(fine[::4, ::4, ::4], coarse)
    assert split_into_regions(weights, (8.0, 8.0, 8.0), 40.0, 2).max() == 2
    assert not split_into_regions(np.zeros((3, 3, 3), np.int64), (8.0, 8.0, 8.0), 40.0, 2).any()


def test_box_sums_stay_correct_while_regions_are_removed():
    weights = np.random.default_rng(3).integers(0, 9, (13, 17, 11))
    numbers = split_into_regions(weights, (6.0, 5.0, 4.0), 21.0, 200)
    remaining = weights.copy()
    for number in range(1, int(numbers.max()) + 1):
        taken = numbers == number
        side = (3, 4, 5)
        heaviest = max(
            remaining[z : z + 3, y : y + 4, x : x + 5].sum()
            for z, y, x in np.ndindex(*np.subtract(remaining.shape, side) + 1)
        )
        corner = [np.argwhere(taken)[:, axis] for axis in range(3)]
        assert all(at.max() - at.min() < length for at, length in zip(corner, side, strict=True))
        if number < 12:  # the first regions have few gaps, so each fills its box
            assert remaining[taken].sum() >= 0.9 * heaviest
        remaining[taken] = 0
    assert remaining.sum() < 0.2 * weights.sum()


@pytest.mark.parametrize("spacing", [(4.0, 4.0, 4.0), (1.9, 4.0, 1.3)])
def test_each_region_comes_from_the_box_with_the_largest_remaining_weight(spacing):
    """With gaps, a region fills only a part of its box, and only the sums around that part change."""
    random = np.random.default_rng(5)
    weights = random.integers(0, 9, (12, 14, 24)) * (random.random((12, 14, 24)) < 0.12)
    tile = [max(round(4 / step), 1) for step in spacing]
    side = [int(17 / (step * count)) for step, count in zip(spacing, tile, strict=True)]
    numbers = split_into_regions(weights, spacing, 17.0, 100)
    assert numbers.max() > 50
    remaining = weights.copy()
    for number in range(1, int(numbers.max()) + 1):
        tiles = remaining
        for axis, count in enumerate(tile):
            tiles = np.add.reduceat(tiles, range(0, tiles.shape[axis], count), axis=axis)
        sums = np.lib.stride_tricks.sliding_window_view(tiles, side).sum(axis=(3, 4, 5))
        corner = np.array(np.unravel_index(sums.argmax(), sums.shape))
        taken = np.argwhere(numbers == number)
        assert (taken >= corner * tile).all() and (taken < (corner + side) * tile).all()
        remaining[numbers == number] = 0


@pytest.mark.parametrize("experts_differ", [True, False])
def test_unusual_attention_explains_a_finding_but_does_not_make_one(experts_differ):
    labels = body()
    labels[12:22, 24:28, 10:13] = RIGHT_KIDNEY
    doubtful_liver = (slice(12, 14), slice(12, 15), slice(12, 15))
    doubtful_kidney = (slice(12, 14), slice(24, 28), slice(10, 13))
    sure = np.full(SHAPE, 0.99, np.float32)
    sure[doubtful_liver] = sure[doubtful_kidney] = 0.5
    attention = np.zeros((3, *SHAPE), np.float32)
    attention[0] = 1
    attention[(slice(None), *doubtful_liver)] = np.reshape([0.1, 0.1, 0.8], (3, 1, 1, 1))
    attention[(slice(None), *doubtful_kidney)] = np.reshape([0.3, 0.4, 0.3], (3, 1, 1, 1))
    other = labels.copy()
    if experts_differ:
        other[doubtful_liver], other[doubtful_kidney] = 0, LIVER
    result = review_of(labels, other, sure=sure, attention=attention)
    attention_kinds = {"foreign_expert", "undecided"}
    assert all({*kinds(finding)} - attention_kinds for finding in result.review.findings)
    if not experts_differ:
        return
    liver, kidney = (
        next(finding for finding in about(result, key) if attention_kinds & {*kinds(finding)})
        for key in ("liver", "right_kidney")
    )
    assert "foreign_expert" in kinds(liver) and "undecided" not in kinds(liver)
    assert "Liver: the tail expert is dominant in 100%" in liver.reasons[kinds(liver).index("foreign_expert")].text
    assert "undecided" in kinds(kidney) and "foreign_expert" not in kinds(kidney)


def test_the_two_images_lie_on_the_ct_and_differ_from_the_labels_only_within_findings():
    labels = body()
    labels[4:6, 30:32, 30:32] = LIVER
    other = body()
    other[12:14, 22:26, 12:14] = RIGHT_KIDNEY
    result = review_of(labels, other, ct=FINE)
    assert Grid.from_image(result.ranks) == FINE and Grid.from_image(result.alternative) == FINE
    ranks, alternative = array(result.ranks), array(result.alternative)
    on_ct = labels.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    np.testing.assert_array_equal(alternative[ranks == 0], on_ct[ranks == 0])
    assert sorted(np.unique(ranks)) == list(range(len(result.review.findings) + 1))
    for finding in result.review.findings:
        own = np.argwhere(ranks == finding.rank)[:, ::-1]
        assert finding.box_voxels == (tuple(own.min(axis=0)), tuple(own.max(axis=0)))
        assert finding.ml == pytest.approx(len(own) * FINE.volume_ml_per_voxel)
        index = result.ranks.TransformPhysicalPointToIndex(finding.position_mm)
        assert result.ranks[index] == finding.rank, "the point to look at lies in the finding"


@pytest.mark.slow
def test_the_same_evidence_gives_the_same_review():
    labels, other = body(), body()
    labels[4:6, 30:32, 30:32] = LIVER
    other[12:14, 22:26, 12:14] = RIGHT_KIDNEY
    noise = np.random.default_rng(0).uniform(0.3, 0.99, SHAPE)
    first, second = (review_of(labels, other, sure=noise) for _ in range(2))
    assert first.review == second.review
    assert sitk.Hash(first.ranks) == sitk.Hash(second.ranks)
    assert sitk.Hash(first.alternative) == sitk.Hash(second.alternative)


def test_evidence_takes_one_byte_per_voxel_and_quantity():
    evidence = evidence_of(body(), body(), attention=np.ones((3, *SHAPE), np.float32) / 3)
    assert evidence.nbytes == 7 * body().size


def test_a_removed_island_is_background_with_its_organ_as_the_alternative():
    labels = body()
    labels[4, 30, 30] = LIVER
    evidence = evidence_of(labels)
    evidence.remove_islands()
    np.testing.assert_array_equal(evidence.labels, body())
    assert evidence.alternative[4, 30, 30] == LIVER
    assert evidence.alternative[13, 13, 13] != LIVER


def test_organs_that_were_not_requested_count_as_background():
    evidence = Evidence((1, 1, 2), AMOS, (0, 1, 2), False, False, kept=frozenset({LIVER}))
    mixed = np.zeros((16, 1, 2), np.float32)
    mixed[SPLEEN, 0, 0], mixed[0, 0, 0], mixed[LIVER, 0, 1] = 0.8, 0.2, 1
    evidence.add(Plane(0, mixed))
    assert evidence.labels.tolist() == [[[0, LIVER]]]
    assert evidence.error_probability.tolist() == [[[0, 0]]], "certainly background"
    assert evidence.kept == (LIVER,)


def test_findings_without_a_voxel_on_a_coarse_ct_are_left_out_and_the_ranks_have_no_gap():
    labels = body()
    labels[4, 31, 31] = labels[20:22, 30:33, 30:33] = LIVER  # the first lies between the voxels of the CT
    coarse = Grid((13, 13, 10), (60.0, 60.0, 60.0), (-400.0, -400.0, -300.0), GRID.direction)
    on_ct = np.ascontiguousarray(labels[::3, :39:3, :39:3])
    measured = measure(on_ct, on_ct.astype(np.int16), coarse.volume_ml_per_voxel, AMOS)
    result = make_review(evidence_of(labels), on_ct, None, coarse, GRID, measured, OWNERS)
    assert [finding.rank for finding in result.review.findings] == [1]
    assert set(np.unique(array(result.ranks))) == {0, 1}
    assert len(review_of(labels).review.findings) == 2
