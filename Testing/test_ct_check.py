"""Which images pass as CTs in HU, and which do not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import ImageError
from dcaseg.imaging.ct_checks import check_ct
from dcaseg.imaging.readers import read_ct, read_labels

SHARED = Path(__file__).resolve().parents[1] / "../shared/ct"
REAL_CTS = ["abdomen_noncontrast_labelled", "abdomen_portalvenous", "chest_upper_abdomen"]
needs_real_cts = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared CTs are not here")


def an_abdomen() -> np.ndarray:
    """HU of a round body in air: skin fat, muscle, organs, a vertebra, gas, and noise. Shape (20, 48, 48)."""
    rng = np.random.default_rng(0)
    _, y, x = np.indices((20, 48, 48))
    radius = np.hypot(y - 23.5, x - 23.5)
    hu = np.full(radius.shape, -1000.0)
    hu[radius < 22] = -100
    hu[radius < 18] = 55
    hu[radius < 12] = 110
    hu[(np.abs(y - 38) < 3) & (np.abs(x - 24) < 3)] = 400
    hu[:, 10:14, 20:24] = -900
    return hu + rng.normal(0, 12, hu.shape)


def an_image(hu: np.ndarray, spacing: float = 4.0) -> sitk.Image:
    image = sitk.GetImageFromArray(np.rint(hu).astype(np.int16))
    image.SetSpacing([spacing] * 3)
    return image


def padded(value: int) -> Callable[[np.ndarray], np.ndarray]:
    def outside_the_field_of_view(hu: np.ndarray) -> np.ndarray:
        _, y, x = np.indices(hu.shape)
        return np.where(np.hypot(y - 23.5, x - 23.5) > 23, value, hu)

    return outside_the_field_of_view


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda hu: hu, id="whole"),
        pytest.param(padded(-1024), id="padded -1024"),
        pytest.param(padded(-2000), id="padded -2000"),
        pytest.param(padded(-3024), id="padded -3024"),
        pytest.param(lambda hu: np.clip(hu, -200, 300), id="clipped to -200..300"),
        pytest.param(lambda hu: np.clip(hu, -1000, 1000), id="clipped to -1000..1000"),
        pytest.param(lambda hu: hu[:, 6:42, 6:42], id="cut tight, a rim of fat, no air around"),
        pytest.param(lambda hu: np.where(hu > 350, 20000, hu), id="with metal"),
        pytest.param(lambda hu: np.pad(hu, ((0, 0), (60, 60), (60, 60)), constant_values=-1024), id="a wide table"),
    ],
)
def test_cts_pass(change: Callable[[np.ndarray], np.ndarray]) -> None:
    check_ct(an_image(change(an_abdomen())))


def an_mr(hu: np.ndarray) -> np.ndarray:
    """MR-like values: fat is bright, air is dark, and nothing is negative."""
    bright = np.interp(hu, [-1000, -500, -100, 60, 110, 400], [10, 40, 900, 300, 450, 100])
    return np.abs(bright + np.random.default_rng(1).normal(0, 60, hu.shape))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(an_mr, "MR or another modality", id="MR"),
        pytest.param(lambda hu: np.interp(hu, [-200, 300], [0, 255]), "grayscale picture", id="0 to 255"),
        pytest.param(lambda hu: hu + 1100, r"HU \+ 1024", id="an offset, never negative"),
        pytest.param(lambda hu: np.clip(hu, -1024, None) + 1024, r"HU \+ 1024", id="HU + 1024"),
        pytest.param(lambda hu: np.clip(hu, -1000, None) + 1000, r"HU \+ 1024", id="HU + 1000"),
        pytest.param(lambda hu: np.full(hu.shape, -1000), "same value", id="constant"),
        pytest.param(lambda hu: (hu - hu.mean()) / hu.std(), "normalized", id="z-scores"),
        pytest.param(lambda hu: np.interp(hu, [-200, 300], [0, 1]), "normalized", id="0 to 1"),
        pytest.param(lambda hu: hu - 1024, "exactly once", id="rescaled twice"),
        pytest.param(lambda hu: np.digitize(hu, [-500, 0, 80, 250]) * 30, "label map", id="a label map"),
        pytest.param(lambda hu: np.clip(hu, 0, None), "neither fat nor air", id="clipped at water"),
    ],
)
def test_images_that_are_not_cts_are_named_and_can_be_accepted(
    change: Callable[[np.ndarray], np.ndarray], problem: str
) -> None:
    image = an_image(change(an_abdomen()))
    with pytest.raises(ImageError, match=problem) as caught:
        check_ct(image)
    assert "\n" not in caught.value.problem
    assert caught.value.remedy and "\n" not in caught.value.remedy
    check_ct(image, strict=False)


@pytest.mark.parametrize("strict", [True, False])
def test_a_volume_too_small_for_organs_is_refused_whatever_its_values(strict: bool) -> None:
    for image in (an_image(an_abdomen()[:7]), an_image(an_abdomen(), spacing=1.0)):
        with pytest.raises(ImageError, match="too small"):
            check_ct(image, strict)


@needs_real_cts
@pytest.mark.parametrize("case", REAL_CTS)
def test_real_cts_pass_whole_and_cropped_to_the_middle_of_the_body(case: str) -> None:
    ct = read_ct(SHARED / case / "ct.nii.gz")
    check_ct(ct)
    x, y, z = ct.GetSize()
    check_ct(ct[x * 2 // 5 : x * 3 // 5, y * 2 // 5 : y * 3 // 5, z // 4 : z * 3 // 4])


@needs_real_cts
@pytest.mark.parametrize("case", ["abdomen_noncontrast_labelled", "labels_torso_male", "labels_spl_atlas"])
def test_real_label_maps_are_recognized_as_label_maps(case: str) -> None:
    with pytest.raises(ImageError, match="label map"):
        check_ct(read_labels(SHARED / case / "labels.nii.gz"))
