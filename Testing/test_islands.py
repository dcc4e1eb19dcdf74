import numpy as np
from DCASegmentationLib.inference.islands import remove_islands


def two_pieces(large: int, small: int) -> np.ndarray:
    labels = np.zeros((4, 10, 40), np.uint8)
    labels[1, 1, :large] = 6
    labels[3, 8, :small] = 6
    return labels


def test_a_piece_far_smaller_than_the_largest_is_taken_out_and_counted():
    labels = two_pieces(large=40, small=3)
    assert remove_islands(labels) == {6: 3}
    assert labels.sum() == 40 * 6 and not labels[3].any()


def test_an_organ_in_two_halves_stays_whole():
    labels = two_pieces(large=40, small=5)
    assert remove_islands(labels) == {}
    assert (labels == 6).sum() == 45


def test_islands_are_judged_by_their_own_organ_and_its_neighbors_stay():
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
