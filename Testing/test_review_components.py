"""Iteration over connected components."""

from __future__ import annotations

import numpy as np
import pytest

from dcaseg.review.regions import find_components, iter_components


@pytest.mark.parametrize("density", [0.03, 0.3, 1.0])
def test_each_piece_comes_with_its_bounding_box(density):
    mask = np.random.default_rng(2).random((9, 11, 13)) < density
    pieces, count = find_components(mask)
    wanted = np.arange(count + 1) % 3 == 1
    found = list(iter_components(pieces, wanted))
    assert [number for number, _, _ in found] == np.flatnonzero(wanted).tolist()
    for number, box, voxels in found:
        np.testing.assert_array_equal(voxels, pieces[box] == number)
        assert voxels.sum() == (pieces == number).sum()
        assert all(voxels.any(axis=tuple({0, 1, 2} - {axis}))[[0, -1]].all() for axis in range(3))


def test_no_wanted_piece_yields_nothing():
    pieces, count = find_components(np.ones((2, 3, 4), np.bool_))
    assert list(iter_components(pieces, np.zeros(count + 1, np.bool_))) == []


def test_thousands_of_pieces_take_no_more_memory_than_their_voxels():
    mask = np.zeros((40, 40, 40), np.bool_)
    mask[::2, ::2, ::2] = True
    pieces, count = find_components(mask)
    wanted = np.arange(count + 1) > 0
    assert sum(voxels.nbytes for _, _, voxels in iter_components(pieces, wanted)) == count == 8000
