"""Attention, deciding expert, entropy and disagreement on the model grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from DCASegmentationLib.inference.maps import MapsOnModelGrid, normalised_entropy, total_variation
from DCASegmentationLib.inference.measurements import measure
from DCASegmentationLib.inference.window_prediction import at_patch_resolution
from DCASegmentationLib.organs import AMOS, Vocabulary

TWO_ORGANS = Vocabulary("two", AMOS.organs[:2])
SPLEEN, RIGHT_KIDNEY = TWO_ORGANS.organs


def plane(*columns):
    """A plane of one row: a voxel for each list of channel values, shape (channel, 1, width)."""
    return np.array(columns, dtype=np.float32).T[:, None, :]


def test_entropy_is_zero_for_certainty_and_one_for_an_even_guess():
    entropy = normalised_entropy(plane([1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]))
    np.testing.assert_allclose(entropy, [[0, 1, np.log(2) / np.log(3)]], atol=1e-6)


def test_disagreement_is_the_probability_that_would_have_to_move():
    first = plane([1, 0, 0], [0.5, 0.5, 0], [0, 1, 0])
    second = plane([1, 0, 0], [0.2, 0.5, 0.3], [0, 0, 1])
    np.testing.assert_allclose(total_variation(first, second), [[0, 0.3, 1]], atol=1e-6)


def test_the_expert_with_most_attention_decides_and_none_where_there_is_background():
    maps = MapsOnModelGrid((1, 1, 4), TWO_ORGANS, (0, 1, 2), deciding_expert=True)
    probabilities = plane([0.9, 0.1, 0], [0.1, 0.9, 0], [0.1, 0, 0.9], [0.1, 0.9, 0])
    finest = plane([0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.2, 0.6, 0.2])
    maps.add(0, probabilities, {1: finest[::-1], 4: finest})
    assert maps.deciding_expert.tolist() == [[[0, 1, 3, 2]]]


def test_a_model_without_a_medium_expert_still_names_the_tail_expert_rightly():
    maps = MapsOnModelGrid((1, 1, 2), TWO_ORGANS, (0, 2), attention_levels=(4,), deciding_expert=True)
    maps.add(0, plane([0, 1, 0], [0, 0, 1]), {4: plane([0.7, 0.3], [0.2, 0.8])})
    assert maps.deciding_expert.tolist() == [[[1, 3]]]
    assert list(maps.attention[4]) == ["head", "tail"]


def test_mean_attention_of_an_organ_covers_its_voxels_alone():
    maps = MapsOnModelGrid((2, 1, 2), TWO_ORGANS, (0, 1, 2), attention_levels=(4,))
    spleen, background = [0, 1, 0], [1, 0, 0]
    maps.add(0, plane(spleen, background), {4: plane([0.6, 0.3, 0.1], [0, 0, 1])})
    maps.add(1, plane(background, spleen), {4: plane([0, 0, 1], [0.2, 0.5, 0.3])})
    means = maps.attention_by_organ()
    assert set(means[4]) == {"spleen"}, "an organ that was not found has no mean"
    assert means[4]["spleen"] == pytest.approx({"head": 0.4, "medium": 0.4, "tail": 0.2})
    np.testing.assert_allclose(maps.attention[4]["tail"][:, 0], [[0.1, 1], [1, 0.3]])


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_attention_brought_to_the_patch_still_sums_to_one(factor):
    coarse = torch.softmax(torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 5, dim=1)
    fine = at_patch_resolution(coarse, torch.Size([4 * factor] * 3))
    assert fine.shape == (2, 3, *[4 * factor] * 3)
    torch.testing.assert_close(fine.sum(dim=1), torch.ones(2, *[4 * factor] * 3))


def test_organs_are_measured_in_ml_and_hu():
    labels = np.zeros((3, 10, 10), np.uint8)
    ct = np.full(labels.shape, -1000, np.int16)
    labels[1:, :5, :] = SPLEEN.label
    ct[labels == SPLEEN.label] = np.arange(100) + 50
    spleen, kidney = measure(labels, ct, 2.0, TWO_ORGANS)
    assert (spleen.voxels, spleen.ml, spleen.mean_hu) == (100, 200.0, pytest.approx(99.5))
    assert spleen.note == ""
    assert (kidney.voxels, kidney.ml, kidney.mean_hu, kidney.note) == (0, 0.0, None, "not found")


@pytest.mark.parametrize(("ml_per_voxel", "note"), [(0.5, "below the usual 80 to 450 ml"), (5.0, "above the usual")])
def test_an_unusual_volume_is_noted(ml_per_voxel, note):
    labels = np.full((1, 10, 10), SPLEEN.label, np.uint8)
    assert note in measure(labels, labels.astype(np.int16), ml_per_voxel, TWO_ORGANS)[0].note
