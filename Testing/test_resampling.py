"""Resampling to other grids: the border, the outside, labels, and the unchanged input."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import gaussian_filter1d

from dcaseg.imaging.grid import Grid, make_model_grid
from dcaseg.imaging.resampling import resample


def a_ramp(size: tuple[int, int, int] = (7, 6, 5), spacing: float = 1.0) -> sitk.Image:
    """HU that increase by 100 per voxel along x, by 10 along y, and by 1 along z."""
    z, y, x = np.indices(size[::-1])
    image = sitk.GetImageFromArray((100 * x + 10 * y + z).astype(np.int16))
    image.SetSpacing([spacing] * 3)
    return image


def test_the_border_repeats_the_outermost_voxels_and_interpolates_along_it() -> None:
    image = a_ramp((6, 5, 5))
    # The last voxel center lies at x = 5 mm, the last sample at 6 mm.
    grid = Grid((4, 9, 5), (2.0, 0.5, 1.0), (0.0, 0.0, 0.0), Grid.from_image(image).direction)
    array = sitk.GetArrayFromImage(resample(image, grid))
    np.testing.assert_allclose(array[0, :, 3], 500 + 5 * np.arange(9), atol=1e-3)


def test_voxels_further_out_are_air_for_a_ct_and_background_for_labels() -> None:
    image = a_ramp()
    wide = Grid((17, 6, 5), (1.0, 1.0, 1.0), (-5.0, 0.0, 0.0), Grid.from_image(image).direction)
    ct = sitk.GetArrayFromImage(resample(image, wide))
    labels = sitk.GetArrayFromImage(resample(sitk.Cast(image > 0, sitk.sitkUInt8) + 1, wide, "nearest"))
    assert np.all(ct[:, :, :4] == -1024.0)
    assert np.all(ct[:, :, -4:] == -1024.0)
    assert np.all(labels[:, :, :4] == 0)
    assert np.all(labels[:, :, 5:12] > 0)
    assert np.all(sitk.GetArrayFromImage(resample(image, wide, outside=7.0))[:, :, :4] == 7.0)


def test_linear_gives_float32_and_nearest_keeps_type_and_values() -> None:
    image = a_ramp()
    grid = make_model_grid(image, (1.3, 1.7, 0.8))
    assert resample(image, grid).GetPixelID() == sitk.sitkFloat32
    nearest = resample(image, grid, "nearest")
    assert nearest.GetPixelID() == sitk.sitkInt16
    assert set(np.unique(sitk.GetArrayFromImage(nearest))) <= set(np.unique(sitk.GetArrayFromImage(image)))


def test_an_image_resampled_to_its_own_grid_is_unchanged() -> None:
    image = a_ramp()
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(resample(image, Grid.from_image(image))), sitk.GetArrayFromImage(image)
    )


def test_a_ramp_is_restored_from_a_finer_grid_in_another_orientation() -> None:
    image = a_ramp(spacing=2.0)
    there = resample(image, make_model_grid(image, (0.7, 0.9, 0.5), "SPL"))
    back = resample(there, Grid.from_image(image))
    assert Grid.from_image(back) == Grid.from_image(image)
    np.testing.assert_allclose(sitk.GetArrayFromImage(back)[1:-1, 1:-1, 1:-1],
                               sitk.GetArrayFromImage(image)[1:-1, 1:-1, 1:-1], atol=0.01)  # fmt: skip


def noise(
    size: tuple[int, int, int], spacing: tuple[float, float, float], direction: np.ndarray | None = None
) -> sitk.Image:
    values = np.random.default_rng(3).normal(40.0, 20.0, size[::-1])
    image = sitk.GetImageFromArray(np.rint(values).astype(np.int16))
    image.SetSpacing(spacing)
    image.SetOrigin((-31.0, 17.25, -404.0))
    if direction is not None:
        image.SetDirection(direction.ravel())
    return image


def test_noise_of_a_fine_ct_is_filtered_on_a_coarse_grid() -> None:
    image = noise((120, 110, 60), (0.8, 0.8, 2.5))
    grid = make_model_grid(image, (4.0, 4.0, 4.0))
    aliased = sitk.GetArrayFromImage(resample(image, grid))
    smooth = sitk.GetArrayFromImage(resample(image, grid, anti_aliasing=True))
    # Linear interpolation leaves 13 to 17 of 20 HU of noise, and a filter about 2.
    assert aliased.std() > 10
    assert smooth.std() < 3
    assert smooth.mean() == pytest.approx(40.0, abs=0.3)


OBLIQUE = np.reshape(sitk.VersorRigid3DTransform((0.02, 0.13, 0.05, 0.99)).GetMatrix(), (3, 3))


@pytest.mark.parametrize("direction", [np.eye(3), np.diag([-1.0, -1.0, 1.0]), OBLIQUE, OBLIQUE[:, [2, 0, 1]]])
@pytest.mark.parametrize("orientation", ["RAS", "LPI", "SAL"])
def test_anti_aliasing_is_a_gaussian_of_the_coarser_axes_before_linear_interpolation(direction, orientation) -> None:
    image = noise((40, 30, 20), (0.9, 2.0, 5.0), direction)
    grid = make_model_grid(image, (3.0, 3.0, 3.0), orientation)
    array = sitk.GetArrayFromImage(image).astype(np.float32)
    # Only the first two axes of the image become coarser.
    for axis, spacing in ((2, 0.9), (1, 2.0)):
        array = gaussian_filter1d(array, (3.0 / spacing - 1) / 2, axis=axis, mode="nearest", truncate=4.0)
    filtered = Grid.from_image(image).make_image(array)
    ours = resample(image, grid, anti_aliasing=True)
    assert Grid.from_image(ours) == grid
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(ours), sitk.GetArrayFromImage(resample(filtered, grid)), atol=2e-3
    )


def test_anti_aliasing_changes_nothing_if_no_axis_becomes_coarser() -> None:
    image = noise((20, 18, 9), (3.0, 3.0, 5.0))
    grid = make_model_grid(image, (3.0, 2.0, 4.0))
    np.testing.assert_allclose(
        sitk.GetArrayFromImage(resample(image, grid, anti_aliasing=True)),
        sitk.GetArrayFromImage(resample(image, grid)), atol=2e-3,
    )  # fmt: skip


def test_anti_aliasing_is_refused_for_labels_and_for_a_rotated_grid() -> None:
    image = noise((20, 18, 9), (3.0, 3.0, 5.0))
    with pytest.raises(ValueError, match="not for labels"):
        resample(image, make_model_grid(image, (4.0, 4.0, 4.0)), "nearest", anti_aliasing=True)
    rotated = Grid((10, 10, 5), (4.0, 4.0, 4.0), image.GetOrigin(), tuple(OBLIQUE.ravel()))
    with pytest.raises(ValueError, match="permuted or flipped"):
        resample(image, rotated, anti_aliasing=True)


def test_planes_that_are_filtered_together_equal_those_filtered_alone() -> None:
    rng = np.random.default_rng(3)
    # More planes than are processed at once, and the last group is smaller.
    image = sitk.GetImageFromArray(rng.integers(-1000, 1000, (37, 11, 14), np.int16))
    source = Grid.from_image(image)

    def coarse(planes: int, first: float) -> Grid:
        return Grid((6, 5, planes), (2.4, 2.1, 1.0), (0.3, 0.2, first), source.direction)

    together = sitk.GetArrayFromImage(resample(image, coarse(37, 0.0), anti_aliasing=True))
    alone = [
        sitk.GetArrayFromImage(resample(image[:, :, z : z + 1], coarse(1, float(z)), anti_aliasing=True))[0]
        for z in range(37)
    ]
    np.testing.assert_array_equal(together, np.stack(alone))
