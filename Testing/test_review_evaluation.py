"""Evaluation of the review: its counts, orders and cases, and the command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import UserError
from dcaseg.evaluation.review_evaluation import (
    ORDERS,
    REPORT_SEEDS,
    TUNING_SEEDS,
    Calibration,
    ReviewScorer,
    draw_shifted_scan,
    measure_orders,
)
from dcaseg.evaluation.scoring import read_table, remap_labels
from dcaseg.inference.segmenter import Result
from dcaseg.organs import AMOS
from dcaseg.synthesis.phantom.case import generate
from dcaseg.training import sources as training_phantoms
from test_review import GRID, LIVER, SPLEEN, body, evidence_of, make_review, measure


def case():
    """A result with a wrong island of the liver and a correct but uncertain spleen, and its truth."""
    labels = body()
    labels[12:14, 24:28, 10:14] = SPLEEN
    truth = labels.copy()
    labels[4:6, 30:32, 30] = LIVER
    sure = np.full(labels.shape, 0.99, np.float32)
    sure[12:14, 24:28, 10:14] = 0.87
    sure[12:14, 24:26, 10:12] = 0.6
    measured = measure(labels, labels.astype(np.int16), GRID.volume_ml_per_voxel, AMOS)
    review = make_review(
        evidence_of(labels, sure=sure),
        labels.copy(),
        None,
        GRID,
        GRID,
        measured,
        ((1, 6), (2, 3), (4, 5, *range(7, 16))),
    )
    return Result(GRID.make_image(labels), measured, "CPU", review=review), GRID.make_image(truth)


def rows_of(result, truth, first=(1, 2), **options):
    rows = measure_orders(ReviewScorer("case", result, truth, AMOS, **options), first)
    return {(row.order, row.first): row for row in rows}


def test_the_calibration_error_is_the_distance_between_the_probability_and_the_share_of_wrong_voxels():
    raw = np.repeat(np.array([30, 200], np.uint8), 100)
    wrong = np.zeros(200, bool)
    wrong[:20] = wrong[100:180] = True  # 20 % and 80 %
    border = np.zeros(200, bool)
    right = np.repeat(np.array([51, 204], np.uint8), 100)
    assert Calibration.count(raw, right, border, wrong).expected_error == pytest.approx(0, abs=1e-9)
    # 20 % too sure of one half, 40 % too sure of the other.
    too_low = np.repeat(np.array([0, 102], np.uint8), 100)
    assert Calibration.count(raw, too_low, border, wrong).expected_error == pytest.approx(0.3)
    # Errors at borders and elsewhere do not cancel.
    too_high = np.where(wrong, 255, 153).astype(np.uint8)
    mixed = Calibration.count(np.full(200, 30, np.uint8), too_high, np.arange(200) >= 100, wrong)
    assert mixed.expected_error > 0.1
    assert np.isnan(Calibration().expected_error)


def test_the_calibration_counts_the_voxels_of_organs_and_uncertain_background():
    result, truth = case()
    counts = ReviewScorer("case", result, truth, AMOS).compute_calibration().counts
    evidence = result.review.evidence
    assert counts[:, :, 1].sum() == 4, "the voxels of the island"
    assert counts[:, :, 0].sum() == np.count_nonzero((evidence.error_probability > 0) | (evidence.labels > 0))
    without_liver = [label for label in AMOS.by_label if label != LIVER]
    assert ReviewScorer("case", result, truth, AMOS, without_liver).compute_calibration().counts[:, :, 1].sum() == 0


def test_errors_in_the_first_findings_are_counted_for_every_order():
    rows = rows_of(*case())
    assert {order for order, _ in rows} == set(ORDERS)
    assert rows["review", 1].errors == 1.0, "the island is the only error, and it comes first"
    assert rows["review", 1].gross == 1.0
    assert rows["review", 1].ml == pytest.approx(4 * 8), "the island"
    assert rows["size", 1].errors == 0.0, "the spleen's finding is larger"
    assert rows["random", 1].errors == pytest.approx(0.5, abs=0.1)
    assert all(rows[order, 2].errors == 1.0 for order in ("review", "size", "random", "entropy, same findings"))


def test_the_volume_budget_counts_findings_in_part():
    rows = rows_of(*case())
    # The review's first finding has 4 voxels. The spleen's has more, so by size only a part of it is checked.
    assert rows["size", 1].same_ml_errors == 0.0
    # The volume of both findings includes both of them in any order.
    assert rows["size", 2].same_ml_errors == pytest.approx(1.0)


def test_errors_of_unannotated_organs_do_not_count():
    result, truth = case()
    rows = rows_of(result, truth, known=[SPLEEN])
    assert np.isnan(rows["review", 1].errors), "the spleen has no errors"


def test_a_border_that_is_off_by_one_voxel_is_not_a_gross_error():
    result, _ = case()
    array = sitk.GetArrayFromImage(result.labels)
    moved = np.roll(array, 1, axis=0)
    counted = ReviewScorer("case", result, GRID.make_image(moved), AMOS)
    assert counted.error_ml > 0
    assert counted.measure_review_findings().gross.sum() == 0


def test_wrongly_segmented_organs_have_a_low_dice():
    result, truth = case()
    lost = sitk.GetArrayFromImage(truth)
    lost[lost == SPLEEN] = 0
    counted = ReviewScorer("case", result, GRID.make_image(lost), AMOS)
    assert [organ.key for organ in counted.wrong_organs] == ["spleen"]
    assert counted.measure_review_findings().organ_errors["spleen"].sum() == 32


def test_a_result_without_review_is_rejected():
    result, truth = case()
    with pytest.raises(ValueError, match="review"):
        ReviewScorer("case", replace(result, review=None), truth, AMOS)


def test_phantoms_differ_from_training_and_tuning_seeds_from_reporting_seeds():
    scans = [draw_shifted_scan(REPORT_SEEDS + index) for index in range(40)]
    usual = [training_phantoms.draw_acquisition(seed) for seed in range(200)]
    assert min(scan.noise_hu for scan in scans) > max(scan.noise_hu for scan in usual)
    boxes = [(scan.spacing[0], scan.spacing[2]) for scan in usual]
    for scan in scans:
        assert scan.spacing[0] > max(box[0] for box in boxes) or scan.spacing[2] > max(box[1] for box in boxes)
    assert {len(scan.missing) for scan in scans} == {0, 1, 2}
    seeds = (TUNING_SEEDS, REPORT_SEEDS, training_phantoms.LABELED_SEEDS, training_phantoms.TEST_SEEDS)
    assert min(abs(a - b) for a in seeds for b in seeds if a != b) >= 100_000


@pytest.mark.slow
def test_a_phantom_with_missing_organs_is_otherwise_the_same_person():
    whole = generate(5, spacing=(8.0, 8.0, 8.0))
    without = generate(5, spacing=(8.0, 8.0, 8.0), missing=("spleen", "left_kidney"))
    before, after = (
        np.bincount(sitk.GetArrayFromImage(phantom.labels).ravel(), minlength=16) for phantom in (whole, without)
    )
    assert after[AMOS.by_key["spleen"].label] == after[AMOS.by_key["left_kidney"].label] == 0
    assert before[AMOS.by_key["spleen"].label] > 0
    assert after[AMOS.by_key["right_kidney"].label] == before[AMOS.by_key["right_kidney"].label]
    with pytest.raises(ValueError, match="heart"):
        generate(5, missing=("heart",))


def test_label_maps_of_other_programs_are_read_by_label_name(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("id\tname\n2\tkidney_right\n5\tliver\n9\tfemur_left\n104\turinary_bladder\n")
    table = read_table(path, AMOS)
    assert table == {2: 2, 5: LIVER, 104: AMOS.by_key["bladder"].label}
    image = sitk.GetImageFromArray(np.array([[[0, 2, 5, 9, 104]]], np.uint8))
    assert sitk.GetArrayFromImage(remap_labels(image, table)).tolist() == [[[0, 2, 6, 0, 14]]]
    path.write_text("number,organ\n1,liver\n")
    with pytest.raises(UserError, match="is not a table of labels"):
        read_table(path, AMOS)


@pytest.mark.slow
def test_the_command_evaluates_a_labeled_ct(dca, small_bundle, coarse_phantom, tmp_path):
    out = tmp_path / "reach"
    files = ("--ct", coarse_phantom / "ct.nii.gz", "--labels", coarse_phantom / "labels.nii.gz")
    run = dca("evaluate-review", "--bundle", small_bundle, *files, "-o", out)
    assert run.code == 0, run.err
    assert sorted(path.name for path in out.iterdir()) == ["reach.csv", "reach.json", "reach.png"]
    summary = json.loads((out / "reach.json").read_text())
    assert set(summary["means"]) == set(ORDERS)
    assert 0 < summary["means"]["review"]["20"]["errors"] <= 1
    with (out / "reach.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    shares = [float(row["errors"]) for row in rows if row["order"] == "review"]
    assert shares == sorted(shares), "more findings never reach less"
    assert float(rows[0]["errors"]) == shares[0]


@pytest.mark.slow
def test_the_command_evaluates_the_labeled_cases_of_a_list(dca, small_bundle, coarse_phantom, tmp_path):
    entry = {"image": str(coarse_phantom / "ct.nii.gz"), "label": str(coarse_phantom / "labels.nii.gz")}
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"training": [], "validation": [{**entry, "unknown": [1], "label_map": {"6": 6}}]}))
    command = ("evaluate-review", "--bundle", small_bundle, "--data", listed)
    run = dca(*command, "--group", "validation", "-o", tmp_path / "out")
    assert run.code == 0, run.err
    (case,) = json.loads((tmp_path / "out" / "reach.json").read_text())["cases"]
    assert case["case"].endswith("/ct.nii.gz")
    assert "spleen" not in case["wrong_organs"], "it is not annotated"
    assert "no labeled case" in dca(*command, "-o", tmp_path / "none").err
    assert "cannot be combined" in dca(*command, "--phantoms", 1, "-o", tmp_path / "none").err


def test_the_command_rejects_a_ct_without_labels(dca, small_bundle, coarse_phantom, tmp_path):
    run = dca("evaluate-review", "--bundle", small_bundle, "--ct", coarse_phantom / "ct.nii.gz", "-o", tmp_path / "out")
    assert run.code == 2
    assert "--labels" in run.err
    assert not (tmp_path / "out").exists()
