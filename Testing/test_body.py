"""The region around the body excludes air, cuts no anatomy, and skipping windows changes nothing in the body."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.imaging.grid import Grid, make_model_grid
from dcaseg.imaging.resampling import resample
from dcaseg.inference.region import find_body
from dcaseg.inference.segmenter import Segmenter, SegmentOptions
from dcaseg.inference.sliding_window import compute_window_positions
from small_model import PATCH, SmallModel, vivid_network

torch.set_num_threads(1)

SPACING = (4.0, 4.0, 4.0)
SHAPE = (50, 110, 120)
AIR, TISSUE, LUNG, TABLE = -1000.0, 40.0, -850.0, -100.0
REAL_CT = Path(__file__).parents[2] / "shared" / "ct"


def ellipse(center, radii, shape=SHAPE):
    """A mask (z, y, x) of an elliptic cylinder along z; center and radii (y, x) in voxels."""
    y, x = np.mgrid[: shape[1], : shape[2]]
    inside = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1
    return np.broadcast_to(inside, shape)


def scanned(body, noise=0.0, shape=SHAPE):
    hu = np.where(body, TISSUE, AIR).astype(np.float32)
    if noise:
        hu += np.random.default_rng(1).normal(scale=noise, size=shape).astype(np.float32)
    return hu


def assert_nothing_is_cut(hu, body):
    """Check that each voxel of ``body`` lies in the region, and that each window with such a voxel is run."""
    found = find_body(hu, SPACING)
    region = found.compute_bounding_box(PATCH)
    outside = body.copy()
    outside[region] = False
    assert not outside.any()
    size = [side.stop - side.start for side in region]
    padded = [max(length, side) for length, side in zip(size, PATCH, strict=True)]
    for position in compute_window_positions(padded, PATCH, 0.5):
        first = [at + side.start for at, side in zip(position, region, strict=True)]
        part = tuple(slice(at, at + side) for at, side in zip(first, PATCH, strict=True))
        assert found.touches(first, PATCH) or not body[part].any()
    return region


def share(region):
    return np.prod([side.stop - side.start for side in region]) / np.prod(SHAPE)


TRUNK = ellipse((55, 60), (28, 40))
ARMS = ellipse((60, 11), (9, 8)) | ellipse((60, 109), (9, 8))


def test_air_around_the_body_is_excluded():
    assert share(assert_nothing_is_cut(scanned(TRUNK), TRUNK)) < 0.75


def test_arms_next_to_the_trunk_belong_to_the_body():
    body = TRUNK | ARMS
    region = assert_nothing_is_cut(scanned(body), body)
    assert region[2].stop - region[2].start > 110


@pytest.mark.parametrize(
    "radii", [(14, 20), (54, 59), (10, 13)], ids=["thin adult", "obese, to the edge of the field of view", "infant"]
)
def test_thin_and_obese_bodies_are_kept_whole(radii):
    body = ellipse((55, 60), radii)
    assert_nothing_is_cut(scanned(body), body)


@pytest.mark.parametrize("center", [(10, 60), (55, 115), (105, 5)], ids=["above", "right", "corner"])
def test_a_body_cut_by_the_field_of_view_is_kept_up_to_the_edge(center):
    body = ellipse(center, (28, 40))
    region = assert_nothing_is_cut(scanned(body), body)
    touched = np.argwhere(body)
    for axis in (1, 2):
        if touched[:, axis].min() == 0:
            assert region[axis].start == 0
        if touched[:, axis].max() == SHAPE[axis] - 1:
            assert region[axis].stop == SHAPE[axis]


def test_lungs_within_the_body_are_run_too():
    lungs = ellipse((50, 42), (18, 14)) | ellipse((50, 78), (18, 14))
    hu = scanned(TRUNK)
    hu[lungs] = LUNG
    assert_nothing_is_cut(hu, TRUNK)


def test_a_scanner_table_and_its_parts_do_not_widen_the_box():
    hu = scanned(TRUNK)
    alone = find_body(hu, SPACING).compute_bounding_box(PATCH)
    # A curved top of two shells of a few mm around foam, with rails below.
    hu[:, 88, 5:115] = hu[:, 94, 5:115] = TABLE
    hu[:, 89:94, 5:115] = -920.0
    hu[:, 100:102, 20:24] = 300.0
    with_table = assert_nothing_is_cut(hu, TRUNK)
    assert with_table[2] == alone[2]
    assert with_table[1].stop - alone[1].stop <= 8


def test_noise_and_specks_outside_do_not_widen_the_box():
    alone = find_body(scanned(TRUNK), SPACING).compute_bounding_box(PATCH)
    hu = scanned(TRUNK, noise=150.0)
    specks = np.random.default_rng(2).random(SHAPE) < 0.002
    hu[specks] = 500.0
    noisy = assert_nothing_is_cut(hu, TRUNK)
    assert all(abs(a.start - b.start) <= 2 and abs(a.stop - b.stop) <= 2 for a, b in zip(noisy, alone, strict=True))


def test_a_volume_without_a_body_is_kept_whole():
    region = find_body(np.full(SHAPE, AIR, np.float32), SPACING).compute_bounding_box(PATCH)
    assert [(side.start, side.stop) for side in region] == [(0, length) for length in SHAPE]


def test_the_region_is_never_smaller_than_a_window_or_larger_than_the_volume():
    for z, y, x in product((0, 12, 24), (0, 40, 100), (0, 50, 110)):
        body = np.zeros(SHAPE, bool)
        body[z : z + 14, y : y + 14, x : x + 14] = True
        region = assert_nothing_is_cut(scanned(body), body)
        for side, length, least in zip(region, SHAPE, PATCH, strict=True):
            assert 0 <= side.start < side.stop <= length
            assert side.stop - side.start >= min(least, length)


def test_no_organ_of_a_phantom_is_cut(coarse_phantom):
    ct, labels = (sitk.ReadImage(str(coarse_phantom / f"{name}.nii.gz")) for name in ("ct", "labels"))
    assert_no_organ_is_cut(ct, labels)


@pytest.mark.skipif(not REAL_CT.is_dir(), reason="needs the shared CTs")
def test_no_organ_of_a_real_ct_is_cut():
    folder = REAL_CT / "abdomen_noncontrast_labelled"
    ct, labels = (sitk.ReadImage(str(folder / f"{name}.nii.gz")) for name in ("ct", "labels"))
    assert_no_organ_is_cut(ct, labels)


def assert_no_organ_is_cut(ct, labels):
    grid = make_model_grid(ct, SPACING)
    organs = sitk.GetArrayFromImage(resample(labels, grid, "nearest")) > 0
    assert organs.any()
    assert_nothing_is_cut(sitk.GetArrayFromImage(resample(ct, grid)), organs)


@pytest.fixture(scope="module")
def bent_ct():
    """A body along two edges of the volume: its box is the whole volume, and windows in one corner hold none of it."""
    rng = np.random.default_rng(4)
    hu = np.full((36, 72, 72), AIR)
    body = np.zeros(hu.shape, bool)
    body[:, :, :20] = body[:, :20] = True
    hu[body] = rng.normal(scale=200, size=int(body.sum()))
    ct = sitk.GetImageFromArray(hu.astype(np.int16))
    ct.SetSpacing(SPACING)
    ct.SetDirection((-1, 0, 0, 0, -1, 0, 0, 0, 1))
    return ct, body


@pytest.mark.slow
def test_skipping_windows_changes_nothing_in_the_body(bent_ct):
    ct, body = bent_ct
    assert Grid.from_image(ct).is_same_as(make_model_grid(ct, SPACING, "RAS"))
    segmenter = Segmenter(SmallModel(vivid_network()), "cpu")
    counts = []
    results = []
    for body_box in (False, True):
        messages = []
        options = SegmentOptions(
            body_box=body_box, entropy=True, disagreement=True, attention_levels=(4,), keep_islands=True, overlap=0.25
        )
        results.append(segmenter.segment(ct, options, lambda _, text, messages=messages: messages.append(text)))
        counts.append(int(next(text for text in messages if "window" in text).split()[-1]))
    plain, boxed = results
    assert counts[1] < counts[0]
    for name in ("labels", "entropy", "disagreement"):
        ours, theirs = (sitk.GetArrayFromImage(getattr(each, name)) for each in (boxed, plain))
        np.testing.assert_allclose(ours[body], theirs[body], atol=2e-3, err_msg=name)
    corner = (slice(None), slice(-16, None), slice(-16, None))
    assert sitk.GetArrayFromImage(boxed.labels)[corner].max() == 0
    assert sitk.GetArrayFromImage(boxed.entropy)[corner].max() == 0
    assert sum(sitk.GetArrayFromImage(each)[corner].max() for each in boxed.attention[4].values()) == 0
    sums = sum(sitk.GetArrayFromImage(each)[body] for each in boxed.attention[4].values())
    np.testing.assert_allclose(sums, 1, atol=4e-5)


@pytest.mark.parametrize("review", [False, True])
def test_a_small_body_in_much_air_takes_few_windows_and_all_planes_are_filled(review):
    hu = np.full((60, 100, 100), AIR)
    hu[20:44, 40:66, 30:56] = np.random.default_rng(4).normal(scale=200, size=(24, 26, 26))
    ct = sitk.GetImageFromArray(hu.astype(np.int16))
    ct.SetSpacing(SPACING)
    messages = []
    result = Segmenter(SmallModel(vivid_network()), "cpu").segment(
        ct, SegmentOptions(overlap=0.25, review=review, entropy=True), lambda _, text: messages.append(text)
    )
    total = int(next(text for text in messages if "window" in text).split()[-1])
    assert total <= 8
    assert Grid.from_image(result.labels).is_same_as(Grid.from_image(ct))
    assert sitk.GetArrayFromImage(result.labels)[20:44, 40:66, 30:56].any()
    assert (result.review is not None) == review
