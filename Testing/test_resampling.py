"""Images on other grids: the rim, the outside, labels, and the input left alone."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from DCASegmentationLib.imaging.grid import Grid, model_grid
from DCASegmentationLib.imaging.resampling import resample


def a_ramp(size: tuple[int, int, int] = (7, 6, 5), spacing: float = 1.0) -> sitk.Image:
    """HU rise by 100 per voxel along x, by 10 along y, by 1 along z."""
    z, y, x = np.indices(size[::-1])
    image = sitk.GetImageFromArray((100 * x + 10 * y + z).astype(np.int16))
    image.SetSpacing([spacing] * 3)
    return image


def test_the_rim_repeats_the_outermost_voxels_and_still_interpolates_along_it() -> None:
    image = a_ramp((6, 5, 5))
    # The last voxel center lies at x = 5 mm, the last sample at 6 mm.
    grid = Grid((4, 9, 5), (2.0, 0.5, 1.0), (0.0, 0.0, 0.0), Grid.of(image).direction)
    array = sitk.GetArrayFromImage(resample(image, grid))
    np.testing.assert_allclose(array[0, :, 3], 500 + 5 * np.arange(9), atol=1e-3)


def test_voxels_further_out_are_air_for_a_ct_and_background_for_labels() -> None:
    image = a_ramp()
    wide = Grid((17, 6, 5), (1.0, 1.0, 1.0), (-5.0, 0.0, 0.0), Grid.of(image).direction)
    ct = sitk.GetArrayFromImage(resample(image, wide))
    labels = sitk.GetArrayFromImage(resample(sitk.Cast(image > 0, sitk.sitkUInt8) + 1, wide, "nearest"))
    assert np.all(ct[:, :, :4] == -1024.0)
    assert np.all(ct[:, :, -4:] == -1024.0)
    assert np.all(labels[:, :, :4] == 0)
    assert np.all(labels[:, :, 5:12] > 0)
    assert np.all(sitk.GetArrayFromImage(resample(image, wide, outside=7.0))[:, :, :4] == 7.0)


def test_linear_gives_float32_and_nearest_keeps_type_and_values() -> None:
    image = a_ramp()
    grid = model_grid(image, (1.3, 1.7, 0.8))
    assert resample(image, grid).GetPixelID() == sitk.sitkFloat32
    nearest = resample(image, grid, "nearest")
    assert nearest.GetPixelID() == sitk.sitkInt16
    assert set(np.unique(sitk.GetArrayFromImage(nearest))) <= set(np.unique(sitk.GetArrayFromImage(image)))


def test_an_image_on_its_own_grid_stays_as_it_is() -> None:
    image = a_ramp()
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(resample(image, Grid.of(image))), sitk.GetArrayFromImage(image)
    )


def test_a_ramp_comes_back_from_a_finer_grid_in_another_orientation() -> None:
    image = a_ramp(spacing=2.0)
    there = resample(image, model_grid(image, (0.7, 0.9, 0.5), "SPL"))
    back = resample(there, Grid.of(image))
    assert Grid.of(back) == Grid.of(image)
    np.testing.assert_allclose(sitk.GetArrayFromImage(back)[1:-1, 1:-1, 1:-1],
                               sitk.GetArrayFromImage(image)[1:-1, 1:-1, 1:-1], atol=0.01)  # fmt: skip
