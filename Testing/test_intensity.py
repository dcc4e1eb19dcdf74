"""The HU window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRange

from dcaseg.imaging.intensity import apply_window


def test_a_window_maps_its_ends_to_zero_and_one_and_clips() -> None:
    hu = np.array([-3024, -160, 40, 240, 3071], np.int16)
    scaled = apply_window(hu, -160, 240)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1])
    assert hu[0] == -3024


def test_a_window_equals_monais() -> None:
    hu = np.random.default_rng(0).uniform(-1100, 1500, (5, 6, 7)).astype(np.float32)
    theirs = ScaleIntensityRange(-160, 240, 0.0, 1.0, clip=True)(torch.from_numpy(hu)).numpy()
    np.testing.assert_allclose(apply_window(hu, -160, 240), theirs, atol=1e-6)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        apply_window(np.zeros(3), 100, 100)


def test_labels_left_out_make_one_short_message_with_the_largest_three():
    from dcaseg.imaging.intensity import describe_ignored_labels

    assert describe_ignored_labels([{}, {}]) == []
    assert describe_ignored_labels([{9: 10}, {9: 1, 13: 1}]) == [
        "Labels that are not in label_map count as background: 9 (11 voxels in 2 cases), 13 (1 voxel in 1 case)."
    ]
    many = {label: label for label in range(1, 41)}
    (text,) = describe_ignored_labels([many, {7: 100}, {}])
    assert text == (
        "40 labels that are not in label_map count as background (920 voxels in 2 cases). The largest: "
        "7 (107 voxels in 2 cases), 40 (40 voxels in 1 case), 39 (39 voxels in 1 case)."
    )
