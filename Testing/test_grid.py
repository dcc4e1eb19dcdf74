"""Grids follow MONAI's convention, and views of arrays match the grids."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing
from scipy.spatial.transform import Rotation

from dcaseg.imaging.grid import Grid, get_canonical_view, make_model_grid
from dcaseg.imaging.resampling import resample

ORIENTATIONS = [
    "".join(letters) for axes in itertools.permutations(["RL", "AP", "SI"]) for letters in itertools.product(*axes)
]
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def affine_ras(grid: Grid) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = grid.axes * np.array(grid.spacing)
    affine[:3, 3] = grid.origin
    return LPS_TO_RAS @ affine


def a_random_ct(seed: int) -> sitk.Image:
    """An anisotropic CT in any orientation, oblique by up to about 30 degrees."""
    rng = np.random.default_rng(seed)
    image = sitk.GetImageFromArray(rng.integers(-1024, 2000, rng.integers(5, 22, 3)).astype(np.int16))
    image.SetSpacing(rng.uniform(0.6, 5.0, 3).tolist())
    image.SetOrigin(rng.uniform(-200, 200, 3).tolist())
    axes = np.eye(3)[rng.permutation(3)] * rng.choice([-1, 1], 3)
    tilt = Rotation.from_rotvec(rng.uniform(-0.3, 0.3, 3)).as_matrix()
    image.SetDirection((tilt @ axes).ravel().tolist())
    return image


def monai_on_model_grid(image: sitk.Image, spacing: tuple[float, float, float], orientation: str) -> MetaTensor:
    """The image as preprocessed by a MONAI bundle, in the array order (z, y, x) of SimpleITK and of our networks."""
    array = torch.from_numpy(sitk.GetArrayFromImage(image).astype(np.float64))[None]
    # MONAI's affine is for the array's axes, so its columns are reversed here.
    affine = affine_ras(Grid.from_image(image))[:, [2, 1, 0, 3]]
    tensor = Orientation(axcodes=orientation[::-1], labels=None)(MetaTensor(array, affine=torch.from_numpy(affine)))
    return Spacing(pixdim=spacing[::-1], mode="bilinear", padding_mode="border")(tensor)


@pytest.mark.parametrize("seed", range(30))
def test_the_model_grid_and_its_values_equal_monais(seed: int) -> None:
    image = a_random_ct(seed)
    rng = np.random.default_rng(1000 + seed)
    spacing = tuple(rng.uniform(0.7, 6.0, 3).tolist())
    orientation = ORIENTATIONS[int(rng.integers(48))]

    grid = make_model_grid(image, spacing, orientation)
    ours = sitk.GetArrayFromImage(resample(image, grid))
    theirs = monai_on_model_grid(image, spacing, orientation)

    assert grid.shape == tuple(theirs.shape[1:])
    np.testing.assert_allclose(affine_ras(grid)[:, [2, 1, 0, 3]], theirs.affine.numpy(), atol=1e-6)
    np.testing.assert_allclose(ours, theirs[0].numpy(), atol=1e-3)


@pytest.mark.parametrize(
    ("count", "spacing", "target", "expected"), [(4, 3.0, 2.0, 6), (6, 3.0, 2.0, 8), (10, 1.5, 1.5004, 10)]
)
def test_halves_and_nearly_equal_spacings_are_rounded_as_monai_does(
    count: int, spacing: float, target: float, expected: int
) -> None:
    image = sitk.Image([count] * 3, sitk.sitkInt16)
    image.SetSpacing([spacing] * 3)
    grid = make_model_grid(image, (target,) * 3)
    theirs = monai_on_model_grid(image, (target,) * 3, "RAS")
    assert grid.size == (expected,) * 3 == tuple(theirs.shape[1:])
    np.testing.assert_allclose(affine_ras(grid)[:, [2, 1, 0, 3]], theirs.affine.numpy(), atol=1e-9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_view_shows_the_image_as_the_model_grid_does(orientation: str) -> None:
    image = a_random_ct(7)
    image.SetSpacing([1.0, 1.0, 1.0])
    grid = make_model_grid(image, (1.0, 1.0, 1.0), orientation)
    array = sitk.GetArrayFromImage(image)

    view = get_canonical_view(array, image, orientation)

    assert np.shares_memory(view, array)
    np.testing.assert_array_equal(view, sitk.GetArrayFromImage(resample(image, grid, "nearest")))


def test_writing_into_a_view_writes_into_the_array() -> None:
    image = a_random_ct(3)
    labels = np.zeros(Grid.from_image(image).shape, np.uint8)
    get_canonical_view(labels, image, "RAS")[0, 0, 0] = 5
    assert np.count_nonzero(labels == 5) == 1

    marked = Grid.from_image(image).make_image(labels)
    z, y, x = (int(where[0]) for where in np.nonzero(labels))
    corner = marked.TransformIndexToPhysicalPoint((x, y, z))
    np.testing.assert_allclose(corner, make_model_grid(image, (2.0, 2.0, 2.0), "RAS").origin, atol=1e-6)


def test_a_view_keeps_leading_axes() -> None:
    image = a_random_ct(4)
    channels = np.random.default_rng(0).random((3, *Grid.from_image(image).shape))
    view = get_canonical_view(channels, image, "LIP")
    np.testing.assert_array_equal(view[1], get_canonical_view(channels[1], image, "LIP"))


def test_a_grid_gives_its_geometry_to_an_image_bit_for_bit() -> None:
    image = a_random_ct(5)
    labels = Grid.from_image(image).make_image(np.zeros(Grid.from_image(image).shape, np.uint8))
    assert labels.GetSize() == image.GetSize()
    assert labels.GetOrigin() == image.GetOrigin()
    assert labels.GetSpacing() == image.GetSpacing()
    assert labels.GetDirection() == image.GetDirection()


def test_grids_are_the_same_only_if_all_voxels_coincide() -> None:
    image = a_random_ct(6)
    grid = Grid.from_image(image)
    assert grid.is_same_as(Grid.from_image(sitk.Image(image)))
    image.SetOrigin([value + 0.01 for value in image.GetOrigin()])
    assert not grid.is_same_as(Grid.from_image(image))
    assert grid.is_same_as(Grid.from_image(image), tolerance_mm=0.02)
    assert not grid.is_same_as(Grid.from_image(image[1:, :, :]), tolerance_mm=100.0)


def test_the_volume_of_a_voxel_is_in_ml() -> None:
    image = sitk.Image([4, 4, 4], sitk.sitkUInt8)
    image.SetSpacing((2.0, 3.0, 5.0))
    assert Grid.from_image(image).volume_ml_per_voxel == pytest.approx(0.03)


@pytest.mark.parametrize("code", ["RAA", "RA", "XYZ", "RASP", ""])
def test_an_invalid_orientation_code_is_refused(code: str) -> None:
    with pytest.raises(ValueError, match="orientation"):
        make_model_grid(a_random_ct(0), (1.0, 1.0, 1.0), code)


def test_an_array_or_image_of_another_size_is_refused() -> None:
    image = a_random_ct(1)
    with pytest.raises(ValueError, match="shape"):
        get_canonical_view(np.zeros((1, 2, 3)), image, "RAS")
    with pytest.raises(ValueError, match="voxels"):
        Grid.from_image(image).to_image_geometry(sitk.Image([2, 2, 2], sitk.sitkUInt8))
    with pytest.raises(ValueError, match="positive"):
        make_model_grid(image, (1.0, 0.0, 1.0))
