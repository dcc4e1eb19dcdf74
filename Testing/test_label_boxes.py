import numpy as np
import pytest

from dcaseg.inference.measurements import compute_bounding_boxes


@pytest.mark.parametrize("density", [0.02, 1.0])
def test_each_label_has_the_smallest_box_around_its_voxels(density):
    random = np.random.default_rng(3)
    labels = random.integers(0, 256, (9, 11, 13), np.uint8) * (random.random((9, 11, 13)) < density).astype(np.uint8)
    boxes = compute_bounding_boxes(labels)
    assert list(boxes) == [label for label in np.unique(labels).tolist() if label]
    for label, box in boxes.items():
        where = np.argwhere(labels == label)
        assert box == tuple(
            slice(low, high + 1) for low, high in zip(where.min(axis=0), where.max(axis=0), strict=True)
        )


def test_an_empty_label_map_has_no_boxes():
    assert compute_bounding_boxes(np.zeros((2, 3, 4), np.uint8)) == {}
