"""Spatial augmentation of patches of stored cases."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from dcaseg.training.cases import Case
from dcaseg.training.options import GridOptions, TrainingOptions
from dcaseg.training.sampling import PatchSampler
from dcaseg.training.spatial_augmentation import PatchCoordinates

ANISOTROPIC = (6.0, 2.0, 3.0)
OPTIONS = TrainingOptions(patch=(24, 24, 24))


def two_balls(shape=(60, 60, 60)):
    """A case with a bright ball (1) on the low side of the x axis and a dark one (2) on the other."""
    labels = np.zeros(shape, np.uint8)
    place = np.indices(shape)
    middle = np.asarray(shape) // 2
    for label, x in ((1, middle[2] - 8), (2, middle[2] + 8)):
        center = np.array([middle[0], middle[1], x])
        labels[((place - center[:, None, None, None]) ** 2).sum(axis=0) < 36] = label
    hu = np.choose(labels, [0, 200, -100]).astype(np.int16)
    return Case("two balls", hu, labels)


def patches(case, options=OPTIONS, count=40, seed=0):
    return PatchSampler([case], options).draw(count, np.random.default_rng(seed))


def test_it_samples_as_scipy_does():
    random = np.random.default_rng(3)
    volume = random.integers(-1000, 1000, (40, 50, 60)).astype(np.int16)
    drawn = PatchCoordinates.draw(np.array([12.0, 25, 30]), (20, 24, 28), ANISOTROPIC, random)
    inside = (drawn.positions >= 0) & (drawn.positions <= np.array(volume.shape)[:, None, None, None] - 1)
    inside = inside.all(axis=0)
    assert 0.5 < inside.mean() < 1
    expected = map_coordinates(volume.astype(float), drawn.positions, order=1)
    np.testing.assert_allclose(drawn.sample(volume, True, -1000, False)[inside], expected[inside], atol=0.1)
    nearest = drawn.sample(volume, False, -1000, False)
    assert nearest.dtype == volume.dtype
    assert (nearest == map_coordinates(volume, drawn.positions, order=0))[inside].mean() > 0.999


def test_labels_move_with_the_ct():
    drawn = patches(two_balls())
    for label, intensity in ((1, (200 + 125) / 400), (2, 25 / 400)):
        within = drawn.volumes[:, 0][drawn.labels == label]
        assert len(within) > 1000 and abs(np.median(within) - intensity) < 1e-3
        assert np.mean(np.abs(within - intensity) < 0.2) > 0.9


def test_sizes_and_angles_vary_and_left_stays_left():
    sizes, angles = [], []
    case = two_balls()
    for labels in patches(case, replace(OPTIONS, patch=(40, 40, 40), foreground_fraction=1.0), 60).labels:
        first, second = (np.argwhere(labels == label).mean(axis=0) for label in (1, 2))
        assert first[2] < second[2]
        sizes.append((labels > 0).sum() / (case.labels > 0).sum())
        angles.append(np.degrees(np.arctan2(second[1] - first[1], second[2] - first[2])))
    assert min(sizes) < 0.75 and max(sizes) > 1.3
    assert 4 < np.std(angles) < 12


def test_a_rotation_is_one_in_mm_on_anisotropic_grids():
    # Positions on a plane of constant z in the patch remain on a plane, and distances in mm change by the scales only.
    drawn = PatchCoordinates.draw(np.zeros(3), (25, 25, 25), ANISOTROPIC, np.random.default_rng(1))
    moved = drawn.positions * np.array(ANISOTROPIC)[:, None, None, None]
    for axis, size in enumerate(ANISOTROPIC):
        start, stop = ([12] * 3 for _ in range(2))
        start[axis], stop[axis] = 4, 20
        distance = np.linalg.norm(moved[(slice(None), *stop)] - moved[(slice(None), *start)])
        assert 1 / 1.5 < distance / (16 * size) < 1.5


def test_the_same_generator_draws_the_same_patch():
    first, second = (patches(two_balls(), count=5, seed=7) for _ in range(2))
    assert np.array_equal(first.volumes, second.volumes) and np.array_equal(first.labels, second.labels)
    assert not np.array_equal(first.volumes, patches(two_balls(), count=5, seed=8).volumes)


@pytest.mark.parametrize("short_scans", ["repeat", "air"])
def test_a_scan_shorter_than_the_patch(short_scans):
    case = two_balls((9, 60, 60))
    drawn = patches(case, replace(OPTIONS, short_scans=short_scans, foreground_fraction=1.0))
    ends = drawn.volumes[:, 0, [0, -1]]
    # Air is below the window; the background of the case is at 0 HU.
    assert (ends.max(axis=(1, 2, 3)) > 0.3).all() == (short_scans == "repeat")


def test_cases_without_labels_and_ignored_voxels():
    case = two_balls()
    ignored = case.labels == 2
    drawn = patches(Case("pseudo", case.hu, case.labels, ignored=ignored))
    assert drawn.ignored.dtype == bool and drawn.ignored[drawn.labels == 2].all()
    # Voxels outside of the volume are ignored, too; they are labeled as background.
    assert (drawn.labels == 2).sum() > 1000 and not drawn.ignored[drawn.labels == 1].any()
    assert patches(Case("unlabeled", case.hu, None)).labels is None


def test_it_is_off_for_the_paper_and_for_earlier_runs():
    assert not TrainingOptions.make_paper_preset().spatial_augmentation
    earlier = {key: value for key, value in OPTIONS.to_json().items() if key != "spatial_augmentation"}
    assert not TrainingOptions.from_json(earlier).spatial_augmentation
    case = two_balls()
    off = replace(OPTIONS, spatial_augmentation=False, grid=GridOptions())
    values = np.unique(patches(case, off).volumes)
    assert len(values) == 3
