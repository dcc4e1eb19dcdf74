"""UnusualInput inputs other than a single CT: label maps, cohorts, other locales, and geometry that is corrected."""

from __future__ import annotations

import gzip
import itertools
import json
import locale
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("nibabel")
pytest.importorskip("highdicom", reason="the extra cohort is not installed")

from dcaseg.cohort.discovery import find
from dcaseg.dicom.archive import Rules
from dcaseg.dicom.ct_folder import find_one_ct
from dcaseg.errors import ImageError, UserError
from dcaseg.imaging.ct_checks import check_ct
from dcaseg.imaging.geometry import copy_geometry_if_close
from dcaseg.imaging.grid import Grid
from dcaseg.imaging.intensity import compute_voxel_checksum
from dcaseg.imaging.readers import read_ct, read_labels
from dcaseg.imaging.size_limits import MAX_VOXELS
from dcaseg.inference.pipeline import get_geometry
from dcaseg.inference.plausibility import check_plausibility
from dcaseg.inference.result_ct import read_result_ct
from dcaseg.interaction.result_correction import open_session, read_result
from dcaseg.organs import AMOS
from dcaseg.synthesis.phantom.case import generate
from dcaseg.training.datalist import Datalist, Entry, write_datalist
from dcaseg.training.datasets import check_files
from dcaseg.training.options import GridOptions
from dcaseg.training.sources import CTFile, CTFiles
from dicom_archive import moved, write_ct_series
from unusual_inputs import bomb, ct, monochrome1, series, tilted, uneven

PHANTOM = generate(3, spacing=(6.0, 6.0, 8.0), orientation="LPS")


def turned(image: sitk.Image, order: tuple[int, ...], signs: tuple[int, ...]) -> sitk.Image:
    """The same image with its voxels stored along other axes, as its header states."""
    return sitk.Flip(sitk.PermuteAxes(image, order), [sign < 0 for sign in signs])


def orientations() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return list(itertools.product(itertools.permutations(range(3)), itertools.product((1, -1), repeat=3)))


# Neighbors


def test_a_label_map_is_read_whatever_other_files_are_in_its_folder(tmp_path: Path) -> None:
    sitk.WriteImage(PHANTOM.labels, str(tmp_path / "labels.nii.gz"))
    sitk.WriteImage(PHANTOM.labels * 0, str(tmp_path / "labels.nii"))
    read = read_labels(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(PHANTOM.labels))


def test_two_files_with_the_same_name_are_two_cases_of_a_cohort(tmp_path: Path) -> None:
    sitk.WriteImage(ct(), str(tmp_path / "ct.nii.gz"))
    sitk.WriteImage(ct() + 100, str(tmp_path / "ct.nii"))
    cases = find(tmp_path, tmp_path / "out", Rules()).cases
    means = {case.source: float(sitk.GetArrayFromImage(read_ct(Path(case.files[0]))).mean()) for case in cases}
    assert means["ct.nii"] == pytest.approx(means["ct.nii.gz"] + 100)


@pytest.mark.slow
def test_a_cohort_reads_files_without_meta_header_and_enhanced_images(tmp_path: Path) -> None:
    from unusual_inputs import data_set_alone, enhanced, rewritten

    for name, write in (("bare", rewritten(data_set_alone(True))), ("enhanced", enhanced)):
        (tmp_path / name).mkdir()
        write(tmp_path / name)
    cases = {case.source: case for case in find(tmp_path, tmp_path / "out", Rules()).cases}
    assert len(cases["bare/ct"].files) == ct().GetDepth()
    assert len(cases["enhanced/ct"].files) == 1


def test_a_cohort_reports_what_it_left_out(tmp_path: Path) -> None:
    from unusual_inputs import with_page

    with_page()(tmp_path)
    (case,) = find(tmp_path, tmp_path / "out", Rules()).cases
    assert "1 duplicate slice was left out." in case.notes
    series(change=lambda dataset, index: setattr(dataset, "SeriesInstanceUID", f"1.2.{index + 1}"))(tmp_path / "apart")
    notes = [note for each in find(tmp_path / "apart", tmp_path / "out", Rules()).cases for note in each.notes]
    assert any("different series UIDs" in note for note in notes)


# Locales


@pytest.fixture(scope="session")
def comma_locale(tmp_path_factory) -> Path:
    """A folder for LOCPATH with a locale that has a decimal comma."""
    folder = tmp_path_factory.mktemp("locales")
    try:
        command = ["localedef", "-i", "de_DE", "-f", "UTF-8", str(folder / "de_DE.UTF-8")]
        made = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        made = False
    if not made:
        try:
            locale.setlocale(locale.LC_NUMERIC, "de_DE.UTF-8")
        except locale.Error:
            pytest.skip("this system cannot have a locale with a decimal comma")
        finally:
            locale.setlocale(locale.LC_NUMERIC, "C")
    return folder


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.nhdr", "ct.mha", "ct.nii.gz", "ct"])
def test_a_locale_with_decimal_comma_changes_no_number(name: str, comma_locale: Path, tmp_path: Path) -> None:
    image = ct()[:, :, :12]
    image.SetSpacing((6.25, 6.75, 8.5))
    if name == "ct":
        write_ct_series(tmp_path / name, image)
    else:
        sitk.WriteImage(image, str(tmp_path / name))
    script = (
        "import json, locale, sys\n"
        "from pathlib import Path\n"
        "from dcaseg.imaging.readers import read_ct\n"
        "from dcaseg.imaging.writers import write_image\n"
        "locale.setlocale(locale.LC_NUMERIC, 'de_DE.UTF-8')\n"
        "assert locale.localeconv()['decimal_point'] == ','\n"
        "image = read_ct(Path(sys.argv[1]))\n"
        "write_image(image, Path(sys.argv[2]))\n"
        "assert locale.localeconv()['decimal_point'] == ','\n"
        "print(json.dumps([image.GetSpacing(), image.GetOrigin()]))\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / name), str(tmp_path / "again.nrrd")]
    environment = {**os.environ, "LOCPATH": str(comma_locale)}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    spacing, origin = json.loads(run.stdout)
    assert spacing == pytest.approx((6.25, 6.75, 8.5))
    assert origin == pytest.approx(image.GetOrigin())
    assert Grid.from_image(read_ct(tmp_path / "again.nrrd")).is_same_as(Grid.from_image(image))


# Header and anatomy


@pytest.mark.parametrize(("order", "signs"), orientations())
def test_correct_orientations_give_no_note(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    image, labels = turned(PHANTOM.ct, order, signs), turned(PHANTOM.labels, order, signs)
    assert check_ct(image) == ()
    hu = sitk.GetArrayViewFromImage(image)
    assert check_plausibility(sitk.GetArrayViewFromImage(labels), Grid.from_image(labels), AMOS, hu=hu) == []


def test_a_ct_cropped_within_the_body_gives_no_note_on_its_proportions() -> None:
    image = PHANTOM.ct
    x, y, _ = image.GetSize()
    for part in (image[: x // 2], image[x // 2 :], image[:, : y // 2], image[:, y // 2 :]):
        assert check_ct(part) == ()


@pytest.mark.parametrize(("order", "signs"), orientations()[1:])
def test_every_wrong_orientation_gives_a_note(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    """The labels are the true ones; the test is whether the wrong header is detected."""
    labels = sitk.Image(PHANTOM.labels)
    labels.SetDirection((np.eye(3)[:, list(order)] * signs).ravel().tolist())
    (note,) = check_plausibility(sitk.GetArrayViewFromImage(labels), Grid.from_image(labels), AMOS)
    assert "orientation" in note


def test_a_mirrored_ct_is_detected_even_if_the_labels_have_the_usual_sides() -> None:
    """Our networks do this, as they have learned the position of the liver."""
    hu = np.ascontiguousarray(sitk.GetArrayFromImage(PHANTOM.ct)[:, :, ::-1])
    labels = sitk.GetArrayFromImage(PHANTOM.labels)
    (note,) = check_plausibility(labels, Grid.from_image(PHANTOM.labels), AMOS, hu=hu)
    assert "the left side of the body has more soft tissue" in note


def test_a_mirrored_short_scan_is_detected_though_little_of_the_liver_was_found() -> None:
    liver = AMOS.by_key["liver"].label
    labels = sitk.GetArrayFromImage(PHANTOM.labels)
    middle = int(np.nonzero((labels == liver).any(axis=(1, 2)))[0].mean())
    slab = slice(middle - 2, middle + 2)
    hu = np.ascontiguousarray(sitk.GetArrayFromImage(PHANTOM.ct)[slab, :, ::-1])
    few = labels[slab].copy()
    few[:, :, ::2] = 0
    few[:, ::2] = 0
    grid = Grid.from_image(PHANTOM.labels[:, :, slab])
    assert (few == liver).sum() * grid.volume_ml_per_voxel < 0.3 * AMOS.by_key["liver"].volume_ml[0]
    assert any("the left side of the body" in note for note in check_plausibility(few, grid, AMOS, hu=hu))
    assert not any(
        "the left side of the body" in note
        for note in check_plausibility(few, grid, AMOS, hu=np.ascontiguousarray(hu[:, :, ::-1]))
    )


@pytest.mark.parametrize("scale", [0.1, 0.4, 2.5])
def test_a_wrong_scale_is_detected_in_the_volumes(scale: float) -> None:
    labels = sitk.Image(PHANTOM.labels)
    labels.SetSpacing([step * scale for step in labels.GetSpacing()])
    notes = check_plausibility(sitk.GetArrayViewFromImage(labels), Grid.from_image(labels), AMOS)
    assert any("volumes that are unusual in adults" in note for note in notes)


@pytest.mark.parametrize(
    ("stretch", "words"),
    [
        ((1, 1, 3), "longer than usual in adults"),
        ((1, 1, 2), "longer than usual in adults"),
        ((1, 1, 0.5), "the kidneys are not longest from head to feet"),
    ],
)
def test_one_wrong_spacing_is_detected_in_the_shape_of_the_organs(stretch: tuple[float, ...], words: str) -> None:
    labels = sitk.Image(PHANTOM.labels)
    labels.SetSpacing([step * factor for step, factor in zip(labels.GetSpacing(), stretch, strict=True)])
    notes = check_plausibility(sitk.GetArrayViewFromImage(labels), Grid.from_image(labels), AMOS)
    assert any(words in note for note in notes), notes


def test_a_result_without_any_organ_is_reported() -> None:
    nothing = np.zeros(PHANTOM.labels.GetSize()[::-1], np.uint8)
    (note,) = check_plausibility(nothing, Grid.from_image(PHANTOM.labels), AMOS)
    assert "No organ was found" in note
    assert check_plausibility(nothing, Grid.from_image(PHANTOM.labels), AMOS, {AMOS.by_key["bladder"].label}) == []


def test_organs_that_were_not_requested_are_not_reported_missing() -> None:
    array = sitk.GetArrayFromImage(PHANTOM.labels)
    liver = AMOS.by_key["liver"].label
    assert check_plausibility(np.where(array == liver, array, 0), Grid.from_image(PHANTOM.labels), AMOS, {liver}) == []


# Geometry that is corrected


def as_it_was(image: sitk.Image) -> np.ndarray:
    """The values of ``image`` at the voxels of the true CT that lie well inside both."""
    return sitk.GetArrayFromImage(
        sitk.Resample(image, ct(), sitk.Transform(), sitk.sitkLinear, -1024.0, sitk.sitkFloat32)
    )


def test_a_tilted_gantry_is_corrected_to_the_true_positions(tmp_path: Path) -> None:
    """Slices are written at the positions of a tilted gantry, then read and compared with the original."""
    truth = sitk.SmoothingRecursiveGaussian(sitk.Cast(ct(), sitk.sitkFloat32), 8.0)
    shear = np.tan(np.radians(12.0)) * 8.0
    grid = Grid.from_image(truth)
    planes = []
    for index in range(grid.size[2]):
        x, y, z = truth.TransformIndexToPhysicalPoint((0, 0, index))
        plane = sitk.Resample(
            truth, (grid.size[0], grid.size[1], 1), sitk.Transform(), sitk.sitkLinear,
            (x, y + shear * index, z), grid.spacing, grid.direction, -1000.0,
        )  # fmt: skip
        planes.append(sitk.GetArrayFromImage(plane)[0])
    scanned = grid.make_image(np.rint(planes).astype(np.int16))
    write_ct_series(tmp_path / "ct", scanned, change=moved(1, lambda index: float(shear * index)))
    notes: list[str] = []
    read = read_ct(tmp_path / "ct", notes=notes, resample=True)
    found, wanted = as_it_was(read), sitk.GetArrayFromImage(truth)
    # The tilt moved the upper slices out of the body, where nothing was scanned.
    inside = found > -900
    assert inside.sum() > 50_000
    assert np.abs(found - wanted)[inside].mean() < 5
    np.testing.assert_allclose(np.reshape(read.GetDirection(), (3, 3)), np.eye(3), atol=1e-6)
    assert "12.0 degrees" in notes[0]


def test_uneven_slices_are_resampled_to_their_true_positions(tmp_path: Path) -> None:
    read = read_ct(uneven(tmp_path), notes=[], resample=True)
    assert read.GetSpacing()[2] == pytest.approx(8.0, abs=0.1)
    top = read.TransformIndexToPhysicalPoint((0, 0, read.GetDepth() - 1))[2]
    assert top == pytest.approx(811.0 + 8.0 * (ct().GetDepth() - 1) + 3.0)
    first = sitk.GetArrayFromImage(read)[0]
    np.testing.assert_allclose(first, sitk.GetArrayFromImage(ct())[0], atol=1e-3)


def test_uneven_slices_are_interpolated_between_their_true_positions(tmp_path: Path) -> None:
    """The values of each slice are ten times its height, which linear interpolation keeps."""

    def height(index: int) -> float:
        return 8.0 * index + 3.0 * (index > 9) + 2.0 * (index > 30)

    slices = [np.full(ct().GetSize()[1::-1], 10 * height(index), np.int16) for index in range(ct().GetDepth())]
    rising = Grid.from_image(ct()).make_image(np.stack(slices))
    write_ct_series(tmp_path / "ct", rising, change=moved(2, lambda index: height(index) - 8.0 * index))
    read = read_ct(tmp_path / "ct", notes=[], resample=True)
    heights = [read.TransformIndexToPhysicalPoint((0, 0, index))[2] - 811.0 for index in range(read.GetDepth())]
    np.testing.assert_allclose(sitk.GetArrayFromImage(read)[:, 0, 0], 10 * np.array(heights), atol=0.1)


def test_slices_are_never_half_a_slice_from_their_stated_positions(tmp_path: Path) -> None:
    """The spacing grows by less than the tolerance of a gap; over the slices, this adds up to 5 mm."""
    heights = [8.0 * index + 0.39 * max(0, index - 27) for index in range(ct().GetDepth())]
    # The values of each slice are ten times its height, which linear interpolation keeps.
    slices = [np.full(ct().GetSize()[1::-1], 10 * height, np.int16) for height in heights]
    rising = Grid.from_image(ct()).make_image(np.stack(slices))
    write_ct_series(tmp_path / "ct", rising, change=moved(2, lambda index: heights[index] - 8.0 * index))
    with pytest.raises(ImageError, match="unevenly spaced slices") as caught:
        read_ct(tmp_path / "ct")
    assert "--resample" in caught.value.remedy
    read = read_ct(tmp_path / "ct", notes=[], resample=True)
    found = [read.TransformIndexToPhysicalPoint((0, 0, index))[2] - 811.0 for index in range(read.GetDepth())]
    np.testing.assert_allclose(sitk.GetArrayFromImage(read)[:, 0, 0], 10 * np.array(found), atol=1)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (tilted(10), "right-angled grid"),
        (series(change=moved(2, lambda index: 30.0 * (index > 9))), "evenly spaced slices"),
    ],
)
def test_the_limit_on_voxels_applies_to_a_ct_that_is_resampled(write, words, tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path)
    monkeypatch.setenv(MAX_VOXELS, str(ct().GetNumberOfPixels()))
    with pytest.raises(ImageError, match=f"{words}.*more than the limit") as caught:
        read_ct(path, resample=True)
    assert "Check the" in caught.value.remedy and MAX_VOXELS in caught.value.remedy


def test_errors_on_tilted_and_uneven_slices_name_the_option(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as caught:
        read_ct(tilted(10)(tmp_path))
    assert "--resample" in caught.value.remedy


def test_the_library_logs_notes_if_no_list_is_given(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from unusual_inputs import with_page

    read_ct(with_page()(tmp_path))
    assert "1 duplicate slice was left out." in caplog.text


def test_compressed_monochrome1_is_read_from_a_temporary_copy(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    read_ct(monochrome1(True, "1.2.840.10008.1.2.5")(tmp_path))
    assert list((tmp_path / "temporary").iterdir()) == []


# Label maps


def labels_off_by(mm: float) -> sitk.Image:
    labels = sitk.Image(PHANTOM.labels)
    labels.CopyInformation(ct())
    labels.SetOrigin([value + mm for value in labels.GetOrigin()])
    return labels


def test_labels_off_by_rounding_are_aligned_with_the_ct_with_a_note() -> None:
    labels, notes = labels_off_by(0.005), []
    copy_geometry_if_close(labels, "labels.nii.gz", ct(), "ct.nii.gz", notes)
    assert Grid.from_image(labels) == Grid.from_image(ct())
    assert notes == ["labels.nii.gz is 0.005 mm off the grid of ct.nii.gz; it was aligned with it voxel by voxel."]


def test_labels_off_by_more_than_a_tenth_of_a_voxel_are_refused() -> None:
    with pytest.raises(ImageError, match="voxels apart"):
        copy_geometry_if_close(labels_off_by(0.7), "labels.nii.gz", ct(), "ct.nii.gz")


def test_a_list_with_unusual_labels_reports_what_was_done(tmp_path: Path) -> None:
    entries = []
    for number in range(2):
        image, label = tmp_path / f"ct{number}.nii.gz", tmp_path / f"labels{number}.nii.gz"
        sitk.WriteImage(ct(), str(image))
        sitk.WriteImage(labels_off_by(0.005), str(label))
        entries.append(Entry(image, label, label_map={6: 6, 1: 1}))
    checked = check_files(Datalist(AMOS, tuple(entries)))
    assert checked.errors == ()
    warnings = " ".join(checked.warnings)
    kidney = int((sitk.GetArrayViewFromImage(PHANTOM.labels) == 2).sum())
    assert f"2 ({2 * kidney} voxels in 2 cases)" in warnings
    assert "labels0.nii.gz is 0.005 mm off the grid" in warnings


# Limits


def test_more_voxels_can_be_allowed(tmp_path: Path, monkeypatch) -> None:
    path = bomb(tmp_path)
    with pytest.raises(ImageError) as caught:
        read_ct(path)
    assert MAX_VOXELS in caught.value.remedy
    monkeypatch.setenv(MAX_VOXELS, "6e9")
    with pytest.raises(ImageError, match=r"is incomplete|GiB of memory"):
        read_ct(path)
    monkeypatch.setenv(MAX_VOXELS, "1000")
    with pytest.raises(ImageError, match="more than the limit"):
        read_ct(series()(tmp_path))
    monkeypatch.setenv(MAX_VOXELS, "many")
    with pytest.raises(ImageError, match="not a number"):
        read_ct(path)


def test_a_gzip_of_a_bomb_is_refused_without_its_memory(tmp_path: Path) -> None:
    """The process has 1 GiB of address space beyond what it needs to start."""
    (tmp_path / "ct.nrrd").write_bytes(
        b"NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 1000 1000 1000\n"
        b"space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nencoding: gzip\nendian: little\n\n"
        + gzip.compress(bytes(1000))
    )
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from dcaseg.imaging.readers import read_ct\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, used + 2**30))\n"
        "try:\n"
        "    read_ct(Path(sys.argv[1]))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__)\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("Linux only")
    command = [sys.executable, "-c", script, str(tmp_path / "ct.nrrd")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.stdout.strip() in ("ImageError", "MemoryError"), run.stderr


# Commands that read CTs and label maps other than to segment them


def labeled_case(folder: Path) -> Path:
    """A list of one CT with back and front swapped, and labels that are off by rounding and not all in label_map."""
    image, label = sitk.Image(ct()), sitk.Image(PHANTOM.labels)
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))
    label.CopyInformation(image)
    label.SetOrigin([value + 0.005 for value in image.GetOrigin()])
    sitk.WriteImage(image, str(folder / "ct.nii.gz"))
    sitk.WriteImage(label, str(folder / "labels.nii.gz"))
    entry = Entry(folder / "ct.nii.gz", folder / "labels.nii.gz", label_map={6: 6, 1: 1})
    write_datalist(Datalist(AMOS, (), test=(entry,)), folder / "list.json")
    return folder / "list.json"


def test_evaluate_shows_the_notes_on_its_files(dca, small_bundle, tmp_path: Path) -> None:
    run = dca(
        "evaluate", "--bundle", small_bundle, "--data", labeled_case(tmp_path), "--group", "test", "--device", "cpu"
    )
    assert run.code == 0, run.err
    err = " ".join(run.err.split())
    assert "Note: labels.nii.gz is 0.005 mm off the grid of ct.nii.gz" in err
    assert "Note: labels.nii.gz: " in err and "that are not in label_map count as background" in err
    assert "Note: ct.nii.gz: According to the header, the spine lies in the front of the body" in err


def test_preparing_a_training_case_logs_the_notes_on_its_ct(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    labeled_case(tmp_path)
    file = CTFile(str(tmp_path / "ct.nii.gz"), str(tmp_path / "labels.nii.gz"), {6: 6, 1: 1})
    CTFiles("own", "CC0-1.0", "nowhere", (file,)).cases(tmp_path / "cache", GridOptions((12.0, 12.0, 12.0)), True)
    assert "ct.nii.gz: According to the header, the spine lies in the front" in caplog.text
    assert "that are not in label_map count as background" in caplog.text


@pytest.mark.slow
def test_a_result_finds_its_ct_again_among_other_series_and_resampled(dca, small_bundle, tmp_path: Path) -> None:
    """``dca report`` and ``dca correct`` read the slices that were segmented, as they were read then."""
    tilted(10)(tmp_path)
    write_ct_series(tmp_path / "ct", ct(), stem="MR", Modality="MR")
    result = tmp_path / "out"
    quick = ("--no-scene", "--no-dicom-seg", "--attention-levels", "none", "--device", "cpu", "--bundle", small_bundle)
    run = dca("segment", tmp_path / "ct", "-o", result, "--resample", *quick)
    assert run.code == 0, run.err
    run = dca("report", result)
    assert run.code == 0, run.err
    _, image = open_session(read_result(result))
    assert get_geometry(image) == json.loads((result / "request.json").read_text())["ct_geometry"]
    # The same CT at another path.
    (tmp_path / "ct").rename(tmp_path / "moved")
    run = dca("report", result, "--overwrite")
    assert run.code == 2 and "no longer at" in run.err
    run = dca("report", result, "--overwrite", "--ct", tmp_path / "moved")
    assert run.code == 0, run.err


def test_a_result_finds_its_ct_in_a_moved_folder_with_other_cts(tmp_path: Path) -> None:
    """Two phases of the same geometry, and a third series with fewer slices."""
    write_ct_series(tmp_path / "study/arterial", ct() + 20)
    write_ct_series(tmp_path / "study/venous", ct())
    write_ct_series(tmp_path / "study/thin", ct()[:, :, :30])
    image = read_ct(tmp_path / "study/venous")
    files = [str(file) for file in sorted((tmp_path / "study/venous").iterdir())]
    checksum = compute_voxel_checksum(sitk.GetArrayViewFromImage(image))
    record = {"ct": files, "ct_geometry": get_geometry(image), "ct_checksum": checksum, "resample": False}
    (tmp_path / "study").rename(tmp_path / "moved")
    found = read_result_ct(record, tmp_path / "out", tmp_path / "moved")
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found), sitk.GetArrayViewFromImage(image))
    with pytest.raises(UserError, match="does not contain the CT that was segmented"):
        read_result_ct({**record, "ct_checksum": "0"}, tmp_path / "out", tmp_path / "moved")
    with pytest.raises(UserError, match="its voxels have changed"):
        read_result_ct(record, tmp_path / "out", tmp_path / "moved/arterial")
    # A record without a checksum cannot tell them apart; the commands have no option --series.
    del record["ct_checksum"]
    with pytest.raises(ImageError, match="contains 3 series") as caught:
        read_result_ct(record, tmp_path / "out", tmp_path / "moved")
    assert caught.value.remedy == "Specify a folder with only that CT."
    found = read_result_ct(record, tmp_path / "out", tmp_path / "moved/venous")
    np.testing.assert_array_equal(sitk.GetArrayViewFromImage(found), sitk.GetArrayViewFromImage(image))


def test_a_report_is_not_written_about_the_ct_of_somebody_else(dca, small_bundle, tmp_path: Path) -> None:
    sitk.WriteImage(ct(), str(tmp_path / "ct.nrrd"))
    sitk.WriteImage(ct() + 1, str(tmp_path / "other.nrrd"))
    quick = ("--no-scene", "--attention-levels", "none", "--device", "cpu", "--bundle", small_bundle)
    assert dca("segment", tmp_path / "ct.nrrd", "-o", tmp_path / "out", *quick).code == 0
    run = dca("report", tmp_path / "out", "--ct", tmp_path / "other.nrrd")
    assert run.code == 2 and "its voxels have changed" in run.err
    assert not (tmp_path / "out/report.html").exists()


def test_a_short_memory_while_a_slice_is_decoded_is_not_reported_as_damage(tmp_path: Path, monkeypatch) -> None:
    monochrome1(True, "1.2.840.10008.1.2.5")(tmp_path)

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError(
            "Exception thrown in SimpleITK ImageFileReader_Execute: Failed to allocate memory for image."
        )

    monkeypatch.setattr("dcaseg.imaging.dicom_slices.sitk.ReadImage", fail)
    with pytest.raises(MemoryError):
        read_ct(tmp_path / "ct")


# Cohorts


def test_a_cohort_reports_files_that_look_like_lost_slices_without_their_names(tmp_path: Path) -> None:
    write_ct_series(tmp_path, ct(), stem="Meier")
    (tmp_path / "Meier99999").write_bytes(b"")
    (case,) = find(tmp_path, tmp_path / "out", Rules()).cases
    (note,) = (note for note in case.notes if "slices may be missing" in note)
    assert "Meier" not in note


def test_a_cohort_splits_acquisitions_whose_slices_alternate(tmp_path: Path) -> None:
    from unusual_inputs import alternating

    alternating(AcquisitionNumber=("1", "2"))(tmp_path)
    cases = find(tmp_path, tmp_path / "out", Rules()).cases
    assert sorted(len(case.files) for case in cases) == [ct().GetDepth() // 2, (ct().GetDepth() + 1) // 2]
    assert all("of 2 in one series" in " ".join(case.notes) for case in cases)


def test_the_only_series_is_used_with_a_note_if_it_may_not_be_a_usual_ct(tmp_path: Path) -> None:
    series(ImageType=["DERIVED", "PRIMARY", "IODINE"])(tmp_path)
    found = find_one_ct(tmp_path / "ct", None, tmp_path / "out")
    assert any("may not be a usual CT: dual-energy map (IODINE)" in note for note in found.notes)
