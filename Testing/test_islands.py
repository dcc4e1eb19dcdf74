import numpy as np
import pytest

from dcaseg.inference import postprocessing as islands
from dcaseg.inference.postprocessing import remove_islands
from dcaseg.organs import AMOS, SYNAPSE


def two_pieces(large: int, small: int) -> np.ndarray:
    labels = np.zeros((4, 10, 40), np.uint8)
    labels[1, 1, :large] = 6
    labels[3, 8, :small] = 6
    return labels


def test_a_piece_far_smaller_than_the_largest_is_removed_and_counted():
    labels = two_pieces(large=40, small=3)
    assert remove_islands(labels) == {6: 3}
    assert labels.sum() == 40 * 6 and not labels[3].any()


def test_both_halves_of_an_organ_are_kept():
    labels = two_pieces(large=40, small=5)
    assert remove_islands(labels) == {}
    assert (labels == 6).sum() == 45


def test_a_compact_organ_loses_pieces_below_its_own_share():
    labels = two_pieces(large=40, small=11)
    assert remove_islands(labels.copy()) == {}
    assert remove_islands(labels, {6}) == {6: 11}
    labels = two_pieces(large=40, small=13)
    assert remove_islands(labels, {6}) == {}


def test_lobes_and_loops_may_look_separate_in_a_short_scan_and_are_not_compact():
    for vocabulary in (AMOS, SYNAPSE):
        keys = {vocabulary.by_label[label].key for label in vocabulary.compact}
        assert {"spleen", "left_kidney", "right_kidney", "gallbladder"} <= keys
        assert not keys & {"liver", "stomach", "duodenum", "pancreas", "aorta", "esophagus", "left_adrenal_gland"}


def test_islands_are_compared_with_their_own_organ_and_neighbors_stay():
    labels = two_pieces(large=40, small=3)
    labels[3, 8, 3:6] = 11
    assert remove_islands(labels) == {6: 3}
    assert (labels == 11).sum() == 3


def test_pieces_that_touch_at_a_corner_are_one():
    labels = np.zeros((3, 3, 3), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = labels[2, 2, 2] = 4
    assert remove_islands(labels, share=1.0) == {}


def test_an_empty_label_map_has_no_islands():
    assert remove_islands(np.zeros((2, 3, 4), np.uint8)) == {}


@pytest.mark.parametrize("density", [0.05, 0.15, 0.3, 0.6])
@pytest.mark.parametrize("planes", [1, 2, 5, 11])
def test_the_result_in_slabs_is_that_of_the_whole(density, planes):
    generator = np.random.default_rng(7)
    labels = (generator.random((24, 30, 20)) < density).astype(np.uint8) * generator.integers(
        1, 4, (24, 30, 20), np.uint8
    )
    # Snakes: pieces of a slab that are joined only in a later slab.
    labels[:, 3, ::4], labels[-1, 3], labels[:12, 20:, 10] = 2, 2, 0
    whole, in_slabs = labels.copy(), labels.copy()
    expected = remove_islands(whole)
    assert expected and remove_islands(in_slabs, slab_voxels=planes * 600) == expected
    assert np.array_equal(in_slabs, whole)


def test_no_slab_has_more_voxels_than_allowed(monkeypatch):
    sizes = []
    numbered = islands.label_components
    monkeypatch.setattr(islands, "label_components", lambda mask: (sizes.append(mask.size), numbered(mask))[1])
    labels = two_pieces(large=40, small=3)
    remove_islands(labels, slab_voxels=800)
    assert max(sizes) <= 800 and len(sizes) > 1
    sizes.clear()
    remove_islands(two_pieces(large=40, small=3))
    assert len(sizes) == 1
