"""The HU window."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.transforms import ScaleIntensityRange

from dcaseg.imaging.intensity import window


def test_a_window_maps_its_ends_to_zero_and_one_and_clips() -> None:
    hu = np.array([-3024, -160, 40, 240, 3071], np.int16)
    scaled = window(hu, -160, 240)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1])
    assert hu[0] == -3024


def test_a_window_equals_monais() -> None:
    hu = np.random.default_rng(0).uniform(-1100, 1500, (5, 6, 7)).astype(np.float32)
    theirs = ScaleIntensityRange(-160, 240, 0.0, 1.0, clip=True)(torch.from_numpy(hu)).numpy()
    np.testing.assert_allclose(window(hu, -160, 240), theirs, atol=1e-6)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        window(np.zeros(3), 100, 100)
