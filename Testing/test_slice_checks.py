"""Slices that are out of order, missing or blank are noted, and unusual but correct CTs are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.imaging.readers import read_ct
from dcaseg.imaging.slice_checks import check_slices
from dcaseg.synthesis.phantom.case import generate

SHARED = Path(__file__).parents[2] / "shared" / "ct"
REAL_CTS = [
    "abdomen_noncontrast_labelled",
    "abdomen_noncontrast_woman",
    "abdomen_portalvenous",
    "chest_upper_abdomen",
    "slab_noncontrast_labelled",
    "upper_abdomen_portalvenous_woman",
]
OUT_OF_ORDER, ABRUPT = "out of order or mirrored", "changes abruptly"


def like(array: np.ndarray, image: sitk.Image, spacing: float | None = None) -> sitk.Image:
    """``array`` with the geometry of ``image``, but with slices ``spacing`` mm apart."""
    result = sitk.GetImageFromArray(array)
    result.SetOrigin(image.GetOrigin())
    result.SetSpacing((*image.GetSpacing()[:2], spacing or image.GetSpacing()[2]))
    result.SetDirection(image.GetDirection())
    return result


def thin_and_noisy(image: sitk.Image, sigma_hu: float) -> sitk.Image:
    """``image`` with four times as many slices, each with noise of its own."""
    x, y, z = image.GetSize()
    step = image.GetSpacing()[2] / 4
    thin = sitk.Resample(
        image,
        [x, y, 4 * z],
        sitk.Transform(),
        sitk.sitkLinear,
        image.GetOrigin(),
        [*image.GetSpacing()[:2], step],
        image.GetDirection(),
        -1000.0,
    )
    array = sitk.GetArrayFromImage(thin)
    return like(array + np.random.default_rng(0).normal(0, sigma_hu, array.shape), image, step)


def cut_out(image: sitk.Image, mm: float) -> sitk.Image:
    """``image`` without ``mm`` of its slices in the middle."""
    middle, count = image.GetDepth() // 2, max(1, round(mm / image.GetSpacing()[2]))
    array = sitk.GetArrayFromImage(image)
    return like(np.delete(array, slice(middle - count // 2, middle - count // 2 + count), axis=0), image)


def alternately_mirrored(image: sitk.Image) -> sitk.Image:
    array = sitk.GetArrayFromImage(image)
    array[::2] = array[::2, :, ::-1]
    return like(array, image)


def shuffled(image: sitk.Image) -> sitk.Image:
    return like(np.random.default_rng(0).permutation(sitk.GetArrayFromImage(image)), image)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared CTs are not here")
@pytest.mark.parametrize("case", REAL_CTS)
def test_a_real_ct_is_noted_only_if_its_slices_are_wrong(case: str) -> None:
    ct = read_ct(SHARED / case / "ct.nii.gz")
    thin = thin_and_noisy(ct, 60.0)
    for right in (ct, ct[:, :, ::2], thin, sitk.DICOMOrient(ct, "PIR")):
        assert check_slices(right) == ()
    for image in (ct, thin):
        (note,) = check_slices(alternately_mirrored(image))
        assert OUT_OF_ORDER in note
    # Of a few thick slices, many orders look alike.
    if ct.GetDepth() * ct.GetSpacing()[2] > 100:
        for image in (ct, thin):
            (note,) = check_slices(shuffled(image))
            assert OUT_OF_ORDER in note
        (note,) = check_slices(cut_out(ct, 60.0))
        assert ABRUPT in note


@pytest.mark.slow
def test_phantoms_are_not_noted() -> None:
    for seed in range(4):
        assert check_slices(generate(seed, spacing=(6.0, 6.0, 8.0), orientation="LPS").ct) == ()


def test_the_place_of_a_gap_is_named_in_patient_coordinates_however_the_ct_is_stored() -> None:
    ct = generate(3, spacing=(6.0, 6.0, 8.0), orientation="LPS").ct
    ct.SetOrigin((-150.0, -140.0, 800.0))
    broken = like(np.delete(sitk.GetArrayFromImage(ct), slice(20, 32), axis=0), ct)
    for stored in (broken, sitk.DICOMOrient(broken, "PIR"), sitk.DICOMOrient(broken, "LAI")):
        (note,) = check_slices(stored)
        assert "between S = 952 and 960 mm" in note


def test_blank_slices_are_noted_at_an_end_if_they_are_a_quarter() -> None:
    ct = generate(3, spacing=(6.0, 6.0, 8.0), orientation="LPS").ct
    array = sitk.GetArrayFromImage(ct)
    few, many = array.copy(), array.copy()
    few[-5:] = 0
    many[-20:] = 0
    assert check_slices(like(few, ct)) == ()
    first, last = len(array) - 19, len(array)
    assert check_slices(like(many, ct)) == (
        f"Slices {first} to {last} are blank: parts of the scan may be missing. Export the CT again.",
    )


def test_slices_that_resampling_repeated_are_not_noted_as_copies() -> None:
    """Beyond the center of the last slice, linear interpolation repeats it."""
    assert check_slices(thin_and_noisy(generate(3, spacing=(6.0, 6.0, 8.0), orientation="LPS").ct, 0.0)) == ()


def test_slices_may_be_few_small_or_all_blank() -> None:
    for shape in ((1, 40, 40), (3, 40, 40), (12, 3, 3), (12, 40, 40)):
        image = sitk.GetImageFromArray(np.zeros(shape, np.int16))
        image.SetSpacing((5.0, 5.0, 5.0))
        assert check_slices(image) == ()


def test_few_thin_slices_between_blank_ones_are_compared_without_an_error() -> None:
    hu = np.full((80, 60, 60), -1000, np.int16)
    hu[40:48] = np.random.default_rng(0).integers(-120, 100, (8, 60, 60))
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((4.0, 4.0, 0.5))
    (note,) = check_slices(image)
    assert "Slices 1 to 40, 49 to 80 are blank" in note
