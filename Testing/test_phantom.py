"""The phantom as a scan: the same person on any grid and in any phase, with correct geometry, noise and labels."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import Cancelled
from dcaseg.organs import AMOS
from dcaseg.synthesis.phantom.anatomy import Anatomy
from dcaseg.synthesis.phantom.case import Phantom, _build_anatomy, generate
from dcaseg.synthesis.phantom.person import Contrast
from dcaseg.synthesis.phantom.rendering import add_noise, paint, paint_labels
from dcaseg.synthesis.phantom.scan import Scan

COARSE = (6.0, 6.0, 6.0)
SEED = 3


@cache
def scan(**options: object) -> Phantom:
    return generate(SEED, **{"spacing": COARSE, "noise_hu": 0.0, **options})  # type: ignore[arg-type]


def hu_inside(phantom: Phantom, key: str) -> np.ndarray:
    """CT numbers of an organ's voxels whose face neighbors are all in the organ."""
    inside = sitk.GetArrayViewFromImage(phantom.labels) == AMOS.by_key[key].label
    for axis in range(3):
        inside = inside & np.roll(inside, 1, axis) & np.roll(inside, -1, axis)
    return sitk.GetArrayViewFromImage(phantom.ct)[inside]


def centroid(phantom: Phantom, key: str) -> np.ndarray:
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(phantom.labels)
    return np.array(shape.GetCentroid(AMOS.by_key[key].label))


def test_ct_and_labels_share_a_grid_and_have_the_documented_types() -> None:
    phantom = scan()

    assert phantom.ct.GetPixelID() == sitk.sitkInt16
    assert phantom.labels.GetPixelID() == sitk.sitkUInt8
    assert phantom.ct.GetSize() == phantom.labels.GetSize()
    assert phantom.ct.GetOrigin() == phantom.labels.GetOrigin()
    assert phantom.ct.GetDirection() == phantom.labels.GetDirection()
    assert phantom.ct.GetSpacing() == COARSE


@pytest.mark.slow
def test_the_same_seed_gives_the_same_voxels() -> None:
    first = generate(SEED, spacing=(8, 8, 8), noise_hu=12)
    _build_anatomy.cache_clear()
    second = generate(SEED, spacing=(8, 8, 8), noise_hu=12)

    assert np.array_equal(sitk.GetArrayViewFromImage(first.ct), sitk.GetArrayViewFromImage(second.ct))
    assert np.array_equal(sitk.GetArrayViewFromImage(first.labels), sitk.GetArrayViewFromImage(second.labels))


@pytest.mark.parametrize(("orientation", "spacing"), [("LPS", (6.0, 6.0, 6.0)), ("SAL", (8.0, 6.0, 7.0))])
def test_axes_follow_the_orientation_and_the_person_stays_the_same(orientation: str, spacing: tuple) -> None:
    phantom = scan(orientation=orientation, spacing=spacing)

    code = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(phantom.ct.GetDirection())
    assert code == orientation
    assert phantom.ct.GetSpacing() == spacing
    for key in ("liver", "spleen", "left_kidney", "bladder"):
        assert np.allclose(centroid(phantom, key), centroid(scan(), key), atol=1.5), key


def test_a_tilted_scan_has_oblique_axes_and_the_same_person() -> None:
    phantom = scan(tilt_degrees=15.0)
    direction = np.array(phantom.ct.GetDirection()).reshape(3, 3)

    assert np.allclose(direction @ direction.T, np.eye(3))
    assert np.abs(direction).max() < 0.99
    for key in ("liver", "spleen", "right_kidney", "bladder"):
        assert np.allclose(centroid(phantom, key), centroid(scan(), key), atol=1.5), key


@pytest.mark.slow
def test_a_finer_scan_shows_the_same_person_in_more_detail() -> None:
    """Voxels that are longer along one axis are sampled and labeled in another way, but with the same labels."""
    fine = scan(spacing=(6.0, 6.0, 3.0))
    coarse = scan()

    assert fine.person == coarse.person
    resampled = sitk.Resample(fine.labels, coarse.labels, sitk.Transform(), sitk.sitkNearestNeighbor)
    same = sitk.GetArrayViewFromImage(resampled) == sitk.GetArrayViewFromImage(coarse.labels)
    organs = sitk.GetArrayViewFromImage(coarse.labels) > 0
    assert same[organs].mean() > 0.93


def test_labels_of_thick_slices_are_taken_at_the_voxel_centers() -> None:
    """Thick slices are sampled three times per voxel for the CT; the labels are those of the middle samples."""
    anatomy = Anatomy.from_person(scan().person)
    grid = Scan.from_anatomy(anatomy, (6.0, 6.0, 18.0), "RAS", 0.0)

    _, labels = paint(grid, anatomy, Contrast.from_person(scan().person, "none"), lambda _: None)

    assert np.array_equal(labels, paint_labels(grid, anatomy, lambda _: None))


@pytest.mark.parametrize(
    ("phase", "ranges"),
    [
        ("none", {"liver": (45, 72), "aorta": (30, 55), "left_kidney": (20, 50), "spleen": (35, 58)}),
        ("arterial", {"liver": (55, 85), "aorta": (240, 390), "spleen": (95, 160)}),
        ("portal_venous", {"liver": (95, 135), "aorta": (125, 185), "left_kidney": (140, 220), "spleen": (105, 150)}),
    ],
)
def test_organs_enhance_according_to_the_phase(phase: str, ranges: dict[str, tuple[float, float]]) -> None:
    for key, (low, high) in ranges.items():
        assert low < np.median(hu_inside(scan(phase=phase), key)) < high, key


def test_the_body_has_air_fat_soft_tissue_bone_and_lung() -> None:
    hu = sitk.GetArrayFromImage(scan().ct)
    share = {
        "air": (hu < -980).mean(),
        "lung": ((hu > -930) & (hu < -750)).mean(),
        "fat": ((hu > -125) & (hu < -85)).mean(),
        "soft tissue": ((hu > 20) & (hu < 140)).mean(),
        "bone": (hu > 250).mean(),
    }

    assert share["air"] > 0.2
    assert share["lung"] > 0.02
    assert share["fat"] > 0.05
    assert share["soft tissue"] > 0.2
    assert 0.005 < share["bone"] < 0.08


def test_noise_has_the_given_standard_deviation_and_does_not_change_the_labels() -> None:
    clean, noisy = scan(), scan(noise_hu=15.0)
    difference = sitk.GetArrayFromImage(noisy.ct).astype(float) - sitk.GetArrayFromImage(clean.ct)
    inside = sitk.GetArrayViewFromImage(clean.ct) > -900  # air is cut off at -1024

    assert difference[inside].std() == pytest.approx(15.0, rel=0.02)
    assert abs(difference[inside].mean()) < 0.2
    assert np.array_equal(sitk.GetArrayViewFromImage(noisy.labels), sitk.GetArrayViewFromImage(clean.labels))


def test_noise_of_fine_voxels_is_correlated() -> None:
    noise = add_noise(np.zeros((40, 80, 80), np.float32), (0.9, 0.9, 3.0), 10.0, np.random.default_rng(0))

    along_x = np.corrcoef(noise[:, :, :-1].ravel(), noise[:, :, 1:].ravel())[0, 1]
    assert noise.std() == pytest.approx(10.0, rel=0.03)
    assert along_x > 0.4


def test_progress_reaches_the_end_and_generation_can_be_canceled() -> None:
    reported: list[float] = []
    generate(SEED, spacing=(8, 8, 8), progress=lambda fraction, _: reported.append(fraction))

    assert reported == sorted(reported)
    assert reported[-1] == 1.0
    with pytest.raises(Cancelled):
        generate(SEED, spacing=(8, 8, 8), cancelled=lambda: True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"orientation": "RAR"}, "orientation"),
        ({"orientation": "RA"}, "orientation"),
        ({"spacing": (1.0, 0.0, 1.0)}, "spacing"),
        ({"phase": "venous"}, "phase"),
        ({"tilt_degrees": 80.0}, "tilt"),
        ({"seed": -1}, "seed"),
    ],
)
def test_invalid_arguments_are_rejected(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(**{"seed": SEED, **options})
