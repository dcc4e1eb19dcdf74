"""Metrics, compared with cases computed by hand, with MedPy and with DeepMind's surface-distance."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dcaseg.errors import UserError
from dcaseg.evaluation.metrics import METRICS, POLICIES, get_metrics, get_policy, measure

ALL = tuple(METRICS.values())
SPACING = (3.0, 1.5, 0.8)


def box(*corners: tuple[int, int], shape: tuple[int, int, int] = (12, 14, 16)) -> np.ndarray:
    """A label map with label 1 in a box."""
    labels = np.zeros(shape, np.uint8)
    labels[tuple(slice(low, high) for low, high in corners)] = 1
    return labels


def blobs(seed: int) -> np.ndarray:
    """Three ragged organs, two of them touching."""
    generator = np.random.default_rng(seed)
    z, y, x = np.mgrid[0:20, 0:26, 0:30]
    labels = np.zeros(z.shape, np.uint8)
    for label, center, radius in ((1, (9, 9, 9), 7), (2, (10, 16, 18), 6), (3, (0, 3, 25), 4)):
        shifted = np.array(center) + generator.integers(-1, 2, 3)
        distance = np.sqrt((z - shifted[0]) ** 2 + (y - shifted[1]) ** 2 + (x - shifted[2]) ** 2)
        labels[distance + generator.normal(0, 0.4, z.shape) < radius] = label
    return labels


def test_a_shifted_slab_has_the_distances_computed_by_hand():
    """Two plates, one voxel thick, 2 slices of 3 mm apart: every surface voxel is 6 mm from the other plate."""
    lower, upper = box((4, 5), (3, 9), (3, 11)), box((6, 7), (3, 9), (3, 11))
    scores = measure(lower, upper, SPACING, 1, ALL, tolerance_mm=5.9)
    assert scores["dice"][0] == 0.0
    assert scores["asd"][0] == pytest.approx(6.0) and scores["hd95"][0] == pytest.approx(6.0)
    assert scores["asd_voxel"][0] == pytest.approx(2.0)


def test_dice_of_half_a_box_is_two_thirds():
    whole, half = box((2, 6), (3, 9), (3, 11)), box((2, 4), (3, 9), (3, 11))
    assert measure(half, whole, SPACING, 1)["dice"][0] == pytest.approx(2 * 0.5 / 1.5)


def test_the_one_way_distance_does_not_see_what_is_missing():
    """A plate that is the left half of the true plate: its surface is part of the truth's, but not the reverse."""
    left, whole = box((4, 5), (3, 9), (2, 6)), box((4, 5), (3, 9), (2, 10))
    scores = measure(left, whole, SPACING, 1, ALL)
    assert scores["asd_voxel"][0] == 0.0
    # Of 24 + 48 surface voxels, four columns of 6 voxels are 1, 2, 3 and 4 voxels of 0.8 mm away.
    assert scores["asd"][0] == pytest.approx(6 * (1 + 2 + 3 + 4) * 0.8 / 72)
    assert measure(whole, left, SPACING, 1, ALL)["asd_voxel"][0] == pytest.approx(6 * 10 / 48)


def test_equal_maps_are_perfect_and_normalized_surface_dice_grows_with_its_tolerance():
    one, other = blobs(1), blobs(2)
    perfect = measure(one, one, SPACING, 3, ALL)
    assert all((perfect[metric.key] == (1.0 if metric.kind == "overlap" else 0.0)).all() for metric in ALL)
    strict, lax = (measure(one, other, SPACING, 3, ALL, tolerance_mm=mm)["nsd"] for mm in (0.5, 3.0))
    assert (strict < lax).all() and (lax <= 1).all()


@pytest.mark.parametrize("seed", [2, 3])
def test_dice_and_surface_distances_agree_with_medpy(seed):
    from medpy.metric import binary

    predicted, truth = blobs(seed), blobs(1)
    scores = measure(predicted, truth, SPACING, 3, ALL)
    for label in (1, 2, 3):
        one, other = predicted == label, truth == label
        assert scores["dice"][label - 1] == pytest.approx(binary.dc(one, other))
        assert scores["asd_voxel"][label - 1] == pytest.approx(binary.asd(one, other), rel=1e-5)
        # MedPy's assd is the mean of two means; ours weights every surface voxel equally.
        surfaces = [
            np.asarray(binary.__surface_distances(*sides, SPACING, 1)) for sides in ((one, other), (other, one))
        ]
        assert scores["asd"][label - 1] == pytest.approx(np.concatenate(surfaces).mean(), rel=1e-5)
        assert scores["hd95"][label - 1] == pytest.approx(max(np.percentile(each, 95) for each in surfaces), rel=1e-4)


@pytest.mark.parametrize("tolerance", [1.0, 2.0])
def test_normalized_surface_dice_agrees_with_surface_distance(tolerance):
    import surface_distance

    predicted, truth = blobs(2), blobs(1)
    scores = measure(predicted, truth, SPACING, 3, ALL, tolerance_mm=tolerance)["nsd"]
    for label in (1, 2, 3):
        distances = surface_distance.compute_surface_distances(truth == label, predicted == label, SPACING)
        expected = surface_distance.compute_surface_dice_at_tolerance(distances, tolerance)
        assert scores[label - 1] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("policy", "both", "one"),
    [
        ("leave_out", {"dice": math.nan, "asd_voxel": math.nan}, {"dice": 0.0, "asd_voxel": math.nan}),
        ("dhc", {"dice": 0.01, "asd_voxel": 0.0}, {"dice": 0.0, "asd_voxel": 128.0}),
        ("galoss", {"dice": 1.0, "asd_voxel": 0.0}, {"dice": 0.0, "asd_voxel": 128.0}),
        ("galoss_validation", {"dice": 0.0, "asd_voxel": 0.0}, {"dice": 0.0, "asd_voxel": 0.0}),
    ],
)
def test_a_missing_organ_gets_the_scores_of_the_policy(policy, both, one):
    predicted, truth = blobs(1), blobs(2)
    truth[truth == 2] = 0
    predicted[predicted == 3] = 0
    scores = measure(predicted, truth, SPACING, 4, ALL, POLICIES[policy])
    for metric, expected in one.items():
        assert scores[metric][1] == pytest.approx(expected, nan_ok=True)
        assert scores[metric][2] == pytest.approx(expected, nan_ok=True)
    for metric, expected in both.items():
        assert scores[metric][3] == pytest.approx(expected, nan_ok=True)
    assert 0 < scores["dice"][0] < 1 and scores["asd_voxel"][0] > 0


def test_only_galoss_validation_gives_an_empty_prediction_a_perfect_distance():
    nothing, truth = np.zeros_like(blobs(1)), blobs(1)
    distances = {
        name: measure(nothing, truth, SPACING, 3, ALL, policy)["asd_voxel"] for name, policy in POLICIES.items()
    }
    assert (distances["galoss_validation"] == 0).all() and (distances["galoss"] == 128).all()


def test_unknown_names_are_rejected_with_the_known_ones():
    with pytest.raises(UserError, match="leave_out, dhc"):
        get_policy("strict")
    with pytest.raises(UserError, match="dice, asd"):
        get_metrics(["jaccard"])


def test_an_organ_whose_box_does_not_fit_into_memory_is_refused_before_it_is_measured(monkeypatch):
    """A stray voxel in the far corner makes the box as large as the CT."""
    labels = box((0, 2), (0, 2), (0, 2), shape=(40, 50, 60))
    labels[-1, -1, -1] = 1
    monkeypatch.setattr("dcaseg.evaluation.metrics.get_total_memory", lambda: 40 * 50 * 60 * 100)
    nsd = tuple(metric for metric in ALL if metric.key == "nsd")
    with pytest.raises(UserError, match="span 60 x 50 x 40 voxels"):
        measure(labels, labels, SPACING, 1, nsd)
    assert measure(labels, labels, SPACING, 1)["dice"][0] == 1.0
