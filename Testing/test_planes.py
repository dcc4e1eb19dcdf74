"""The box around the body, which frames pictures and thumbnails."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.rendering.body import downsample
from dcaseg.rendering.planes import _compute_body_box, _compute_points


def body(seed: int) -> sitk.Image:
    """An oblique CT of 3 mm: air, a lumpy body, and a table below that does not touch it."""
    z, y, x = np.mgrid[:30, :40, :50].astype(float)
    random = np.random.default_rng(seed)
    center, radii = np.array([15, 16, 25]) + random.uniform(-2, 2, 3), random.uniform(6, 14, 3)
    inside = sum(((c - m) / r) ** 2 for c, m, r in zip((z, y, x), center, radii, strict=True)) < 1
    array = np.where(inside, 40, -1000)
    array[:, 37:38, 5:45] = 200
    image = sitk.GetImageFromArray(array.astype(np.int16))
    image.SetSpacing((3.0, 3.0, 3.0))
    image.SetDirection(sitk.Euler3DTransform((0.0, 0.0, 0.0), *random.uniform(-0.4, 0.4, 3)).GetMatrix())
    return image


@pytest.mark.parametrize("seed", range(5))
def test_the_box_contains_the_body_and_excludes_the_table(seed):
    image = body(seed)
    opened = sitk.BinaryMorphologicalOpening(downsample(image) > -300, [1, 1, 1])
    largest = sitk.RelabelComponent(sitk.ConnectedComponent(opened)) == 1
    points, _ = _compute_points(image, sitk.GetArrayViewFromImage(largest) > 0)
    np.testing.assert_allclose(_compute_body_box(image), (points.min(axis=0), points.max(axis=0)))


def test_the_box_of_an_image_of_air_is_the_image():
    image = sitk.Image([4, 5, 6], sitk.sitkInt16) - 1000
    image.SetSpacing((4.0, 4.0, 4.0))
    low, high = _compute_body_box(image)
    np.testing.assert_allclose(high - low, (12, 16, 20))
