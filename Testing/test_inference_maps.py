"""Attention, dominant expert, entropy and disagreement on the model grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dcaseg.imaging.grid import Grid
from dcaseg.imaging.scan_edges import ScanEdges
from dcaseg.inference.maps import MapsOnModelGrid, normalized_entropy, to_float, total_variation
from dcaseg.inference.measurements import measure
from dcaseg.inference.planes import Plane
from dcaseg.inference.sliding_window import upsample_attention
from dcaseg.organs import AMOS, Vocabulary

TWO_ORGANS = Vocabulary("two", AMOS.organs[:2])
SPLEEN, RIGHT_KIDNEY = TWO_ORGANS.organs


def plane(*columns):
    """A plane with one row, shape (channel, 1, width); each list holds the channel values of a voxel."""
    return np.array(columns, dtype=np.float32).T[:, None, :]


def test_entropy_is_0_for_certainty_and_1_for_a_uniform_distribution():
    entropy = normalized_entropy(plane([1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]))
    np.testing.assert_allclose(entropy, [[0, 1, np.log(2) / np.log(3)]], atol=1e-6)


def test_disagreement_is_the_probability_that_would_have_to_move():
    first = plane([1, 0, 0], [0.5, 0.5, 0], [0, 1, 0])
    second = plane([1, 0, 0], [0.2, 0.5, 0.3], [0, 0, 1])
    np.testing.assert_allclose(total_variation(first, second), [[0, 0.3, 1]], atol=1e-6)


def test_the_dominant_expert_has_the_largest_attention_and_is_0_in_the_background():
    maps = MapsOnModelGrid((1, 1, 4), TWO_ORGANS, (0, 1, 2), dominant_expert=True)
    probabilities = plane([0.9, 0.1, 0], [0.1, 0.9, 0], [0.1, 0, 0.9], [0.1, 0.9, 0])
    finest = plane([0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.2, 0.6, 0.2])
    maps.add(Plane(0, probabilities, attention={1: finest[::-1], 4: finest}), (1, 4))
    grid = Grid((4, 1, 1), (4.0, 4.0, 4.0), (0.0, 0.0, 0.0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    labels = np.array([[[0, 1, 2, 1]]], np.uint8)
    assert maps.resample_dominant_expert(labels, grid, grid).tolist() == [[[0, 1, 3, 2]]]
    fine = Grid((8, 1, 1), (2.0, 4.0, 4.0), (-1.0, 0.0, 0.0), grid.direction)
    labels = np.array([[[0, 0, 0, 1, 2, 2, 1, 1]]], np.uint8)
    assert maps.resample_dominant_expert(labels, grid, fine).tolist() == [[[0, 0, 0, 1, 3, 3, 2, 2]]]


def test_values_close_to_0_do_not_become_holes_in_maps():
    maps = MapsOnModelGrid((2, 1, 2), TWO_ORGANS, (0, 1, 2), attention_levels=(4,), entropy=True, disagreement=True)
    almost = plane([1 - 2e-8, 1e-8, 1e-8], [1e-8, 1 - 2e-8, 1e-8])
    maps.add(Plane(0, almost, other=plane([1, 0, 0], [0, 1, 0]), attention={4: almost}), (4,))
    for stored in (*maps.attention[4].values(), maps.entropy):
        assert (to_float(stored)[0] > 0).all() and not stored[1].any()
    np.testing.assert_allclose(sum(to_float(stored[0]) for stored in maps.attention[4].values()), 1, atol=4e-5)


def test_a_model_without_a_medium_expert_numbers_the_tail_expert_correctly():
    maps = MapsOnModelGrid((1, 1, 2), TWO_ORGANS, (0, 2), attention_levels=(4,), dominant_expert=True)
    maps.add(Plane(0, plane([0, 1, 0], [0, 0, 1]), attention={4: plane([0.7, 0.3], [0.2, 0.8])}), (4,))
    assert maps.dominant_expert.tolist() == [[[1, 3]]]
    assert list(maps.attention[4]) == ["head", "tail"]


def test_mean_attention_of_an_organ_covers_its_voxels_alone():
    maps = MapsOnModelGrid((2, 1, 2), TWO_ORGANS, (0, 1, 2), attention_levels=(4,))
    spleen, background = [0, 1, 0], [1, 0, 0]
    maps.add(Plane(0, plane(spleen, background), attention={4: plane([0.6, 0.3, 0.1], [0, 0, 1])}), (4,))
    maps.add(Plane(1, plane(background, spleen), attention={4: plane([0, 0, 1], [0.2, 0.5, 0.3])}), (4,))
    means = maps.compute_attention_by_organ()
    assert set(means[4]) == {"spleen"}, "an organ that was not found has no mean"
    assert means[4]["spleen"] == pytest.approx({"head": 0.4, "medium": 0.4, "tail": 0.2})
    np.testing.assert_allclose(to_float(maps.attention[4]["tail"][:, 0]), [[0.1, 1], [1, 0.3]], atol=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 8])
def test_interpolated_attention_sums_to_one(factor):
    coarse = torch.softmax(torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 5, dim=1)
    fine = upsample_attention(coarse, torch.Size([4 * factor] * 3))
    assert fine.shape == (2, 3, *[4 * factor] * 3)
    torch.testing.assert_close(fine.sum(dim=1), torch.ones(2, *[4 * factor] * 3))


def test_organs_are_measured_in_ml_and_hu():
    labels = np.zeros((4, 12, 12), np.uint8)
    ct = np.full(labels.shape, 20, np.int16)
    labels[1:3, 1:6, 1:11] = SPLEEN.label
    ct[labels == SPLEEN.label] = np.arange(100) + 50
    spleen, kidney = measure(labels, ct, 2.0, TWO_ORGANS)
    assert (spleen.voxels, spleen.ml, spleen.mean_hu) == (100, 200.0, pytest.approx(99.5))
    assert spleen.note == ""
    assert (kidney.voxels, kidney.ml, kidney.mean_hu, kidney.note) == (0, 0.0, None, "not found")


@pytest.mark.parametrize(
    ("ml_per_voxel", "note"), [(0.5, "below the usual range of 80 to 450 ml"), (5.0, "above the usual range")]
)
def test_an_unusual_volume_is_noted(ml_per_voxel, note):
    labels = np.zeros((3, 12, 12), np.uint8)
    labels[1, 1:11, 1:11] = SPLEEN.label
    assert note in measure(labels, labels.astype(np.int16), ml_per_voxel, TWO_ORGANS)[0].note


def test_an_organ_that_was_not_requested_is_not_measured():
    labels = np.zeros((3, 12, 12), np.uint8)
    (spleen,) = measure(labels, labels.astype(np.int16), 1.0, TWO_ORGANS, {SPLEEN.label})
    assert spleen.organ == SPLEEN


def test_a_few_stray_voxels_do_not_count_as_an_organ():
    labels = np.zeros((8, 12, 12), np.uint8)
    labels[-1, 3:5, 3:5] = SPLEEN.label
    spleen = measure(labels, labels.astype(np.int16), 0.064, TWO_ORGANS)[0]
    assert (spleen.found, spleen.cut_off, spleen.note) == (False, False, "only a few stray voxels")


def spleen_in(ct, where, step=4.0):
    labels = np.zeros(ct.shape, np.uint8)
    labels[where] = SPLEEN.label
    return measure(labels, ct, step**3 / 1000, TWO_ORGANS, None, (step, step, step))[0]


@pytest.mark.parametrize(
    ("where", "cut_off"),
    [
        (np.s_[4:8, 6:16, 6:16], False),
        (np.s_[0:8, 6:16, 6:16], True),
        (np.s_[4:12, 6:16, 6:16], True),
        (np.s_[4:8, 0:16, 6:16], True),
        (np.s_[4:8, 6:16, 6:22], True),
        (np.s_[1:11, 1:21, 1:21], False),
    ],
)
def test_an_organ_that_reaches_the_edge_of_the_scan_is_cut_off(where, cut_off):
    ct = np.full((12, 22, 22), 40, np.int16)
    spleen = spleen_in(ct, where)
    assert spleen.cut_off is cut_off
    assert ("cut off by the scan: lower bound" in spleen.note) is cut_off


def test_the_scan_ends_where_what_fills_the_outside_ends():
    """Round fields of view and tilted volumes are filled with one value up to the array's faces."""
    ct = np.full((12, 30, 30), 40, np.int16)
    y, x = np.indices((30, 30)) - 14.5
    ct[:, y**2 + x**2 > 14**2] = -2048
    inside, at_the_circle = np.s_[4:8, 8:20, 8:20], np.s_[4:8, 13:17, 1:10]
    assert not spleen_in(ct, inside).cut_off
    assert spleen_in(ct, at_the_circle).cut_off
    blank = np.full((12, 30, 30), 40, np.int16)
    blank[:3] = -1024
    assert spleen_in(blank, np.s_[3:8, 8:20, 8:20]).cut_off
    assert not spleen_in(blank, np.s_[5:8, 8:20, 8:20]).cut_off
    wedge = np.full((12, 30, 30), 40, np.int16)
    for row in range(6):
        wedge[: 6 - row, row] = -1024
    assert spleen_in(wedge, np.s_[4:8, 2:20, 8:20]).cut_off
    assert not spleen_in(wedge, np.s_[6:8, 7:20, 8:20]).cut_off


@pytest.mark.parametrize("seed", range(5))
def test_the_edges_are_the_outermost_voxels_of_each_line_in_the_scan(seed):
    """Each voxel has a label of its own, with a cross-section of 100 mm2."""
    values = np.random.default_rng(seed).choice(
        np.array([-1024, -2000, 0, 50], np.int16), (4, 5, 6), p=[0.4, 0.2, 0.2, 0.2]
    )
    labels = np.arange(1, values.size + 1).reshape(values.shape)
    corners = values[::3, ::4, ::5]
    inside = ~np.isin(values, corners[corners <= -900])
    expected = set()
    for axis in range(3):
        for line in np.ndindex(*np.delete(values.shape, axis)):
            index = [*line[:axis], slice(None), *line[axis:]]
            found = labels[tuple(index)][inside[tuple(index)]]
            expected |= {int(found[0]), int(found[-1])} if len(found) else set()
    assert ScanEdges(values, (10.0, 10.0, 10.0)).find_truncated_labels(labels) == expected


def test_a_few_voxels_at_the_end_of_the_scan_do_not_cut_an_organ_off():
    ct = np.full((40, 60, 60), 40, np.int16)
    labels = np.zeros(ct.shape, np.uint8)
    labels[1:30, 10:50, 10:50] = SPLEEN.label
    labels[0, 20:24, 20:24] = SPLEEN.label
    assert not measure(labels, ct, 0.001, TWO_ORGANS, None, (1.0, 1.0, 1.0))[0].cut_off
    labels[0, 20:26, 20:26] = SPLEEN.label
    assert measure(labels, ct, 0.001, TWO_ORGANS, None, (1.0, 1.0, 1.0))[0].cut_off
