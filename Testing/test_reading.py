"""Volumes are read from every format with their voxels, their geometry and the smallest type that fits."""

from __future__ import annotations

import gzip
import itertools
import struct
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import ImageError
from dcaseg.imaging.grid import Grid, make_model_grid
from dcaseg.imaging.readers import read_ct, read_labels
from dcaseg.imaging.resampling import resample
from dcaseg.imaging.writers import write_image

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha"]
REAL_CTS = Path(__file__).resolve().parents[1] / "../shared/ct"


def axis_orientations() -> list[np.ndarray]:
    """All 48 ways to align index axes with the patient's axes."""
    return [
        np.eye(3)[list(order)] * signs
        for order in itertools.permutations(range(3))
        for signs in itertools.product([1, -1], repeat=3)
    ]


def a_ct(direction: np.ndarray | None = None) -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1024, 1500, (3, 4, 5)).astype(np.int16))
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-120.25, 33.5, -801.125))
    if direction is not None:
        image.SetDirection(direction.ravel().tolist())
    return image


def oblique() -> np.ndarray:
    a, b = np.radians(12.0), np.radians(-7.0)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    return about_x @ about_z


@pytest.mark.parametrize("extension", FORMATS)
def test_all_48_orientations_come_back_from_every_format(extension: str, tmp_path: Path) -> None:
    for direction in [*axis_orientations(), oblique()]:
        ct = a_ct(direction)
        write_image(ct, tmp_path / f"ct{extension}")
        read = read_ct(tmp_path / f"ct{extension}")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(ct))
        # NIfTI stores its geometry in 32 bits.
        tolerance = 1e-4 if extension.startswith(".nii") else 1e-9
        assert Grid.from_image(read).is_same_as(Grid.from_image(ct), tolerance)


@pytest.mark.parametrize("extension", FORMATS)
def test_labels_come_back_on_exactly_the_input_grid(extension: str, tmp_path: Path) -> None:
    write_image(a_ct(oblique()), tmp_path / f"ct{extension}")
    ct = read_ct(tmp_path / f"ct{extension}")
    on_model_grid = resample(ct, make_model_grid(ct, (1.1, 1.2, 1.3))) > 0
    labels = resample(on_model_grid, Grid.from_image(ct), "nearest")
    assert Grid.from_image(labels) == Grid.from_image(ct)
    write_image(labels, tmp_path / f"labels{extension}")
    assert Grid.from_image(read_labels(tmp_path / f"labels{extension}")).is_same_as(Grid.from_image(ct), 1e-6)


@pytest.mark.parametrize("extension", [".nhdr", ".mhd"])
def test_a_header_with_a_separate_data_file_is_read(extension: str, tmp_path: Path) -> None:
    sitk.WriteImage(a_ct(), str(tmp_path / f"ct{extension}"), True)
    read = read_ct(tmp_path / f"ct{extension}")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(a_ct()))


@pytest.mark.parametrize(
    "stored", [sitk.sitkInt32, sitk.sitkInt64, sitk.sitkFloat32, sitk.sitkFloat64], ids=["int32", "int64", "f32", "f64"]
)
def test_whole_numbers_become_int16_whatever_type_they_are_stored_in(stored: int, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Cast(a_ct(), stored), str(tmp_path / "ct.nrrd"))
    read = read_ct(tmp_path / "ct.nrrd")
    assert read.GetPixelID() == sitk.sitkInt16
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(a_ct()))


def test_fractions_and_values_beyond_int16_become_float32(tmp_path: Path) -> None:
    for offset in (0.25, 40000.0):
        sitk.WriteImage(sitk.Cast(a_ct(), sitk.sitkFloat64) + offset, str(tmp_path / "ct.nrrd"))
        read = read_ct(tmp_path / "ct.nrrd")
        assert read.GetPixelID() == sitk.sitkFloat32
        np.testing.assert_allclose(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(a_ct()) + offset)


def test_nifti_scaling_is_applied(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    stored = nibabel.Nifti1Image(np.full((4, 5, 6), 1064, np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    stored.header.set_slope_inter(1.0, -1024.0)
    nibabel.save(stored, tmp_path / "ct.nii.gz")
    # nibabel resets the scaling when it saves arrays, so it is written to the header afterwards.
    raw = bytearray(gzip.decompress((tmp_path / "ct.nii.gz").read_bytes()))
    struct.pack_into("<2f", raw, 112, 1.0, -1024.0)
    (tmp_path / "ct.nii.gz").write_bytes(gzip.compress(bytes(raw)))
    read = read_ct(tmp_path / "ct.nii.gz")
    assert read.GetPixelID() == sitk.sitkInt16
    assert read[0, 0, 0] == 40


def test_nifti_with_two_gzip_members_is_read_completely(tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(a_ct(), str(path))
    content = gzip.decompress(path.read_bytes())
    path.write_bytes(gzip.compress(content[:5000]) + gzip.compress(content[5000:]))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_ct(path)), sitk.GetArrayFromImage(a_ct()))


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_header_is_read_whatever_the_encoding_of_its_text(encoding: str, tmp_path: Path) -> None:
    ct = a_ct()
    sitk.WriteImage(ct, str(tmp_path / "ct.nrrd"))
    header, voxels = (tmp_path / "ct.nrrd").read_bytes().split(b"\n\n", 1)
    (tmp_path / "ct.nrrd").write_bytes(header + "\n# Gerät Süd\n\n".encode(encoding) + voxels)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_ct(tmp_path / "ct.nrrd")), sitk.GetArrayFromImage(ct))


@pytest.mark.parametrize("sizes", ["1 5 4 3", "5 4 3 1"])
@pytest.mark.parametrize("kind", ["list", "vector"])
def test_a_nrrd_axis_of_length_one_that_is_not_in_space_is_dropped(sizes: str, kind: str, tmp_path: Path) -> None:
    ct = a_ct(oblique())
    steps = [ct.TransformContinuousIndexToPhysicalPoint(np.eye(3)[axis].tolist()) for axis in range(3)]
    axes = [f"({','.join(repr(a - b) for a, b in zip(step, ct.GetOrigin(), strict=True))})" for step in steps]
    kinds = ["domain"] * 3
    at = 0 if sizes.startswith("1") else 3
    axes.insert(at, "none")
    kinds.insert(at, kind)
    header = (
        f"NRRD0004\ntype: int16\ndimension: 4\nspace: left-posterior-superior\nsizes: {sizes}\n"
        f"space directions: {' '.join(axes)}\nkinds: {' '.join(kinds)}\nendian: little\nencoding: raw\n"
        f"space origin: ({','.join(map(repr, ct.GetOrigin()))})\n\n"
    )
    (tmp_path / "ct.nrrd").write_bytes(header.encode() + sitk.GetArrayFromImage(ct).tobytes())
    read = read_ct(tmp_path / "ct.nrrd")
    assert read.GetPixelID() == sitk.sitkInt16 and Grid.from_image(read).is_same_as(Grid.from_image(ct))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read), sitk.GetArrayFromImage(ct))
    assert read_labels(labels_like(tmp_path / "labels.nrrd", header)).GetPixelID() == sitk.sitkUInt8


def labels_like(path: Path, header: str) -> Path:
    path.write_bytes(header.replace("int16", "uint8").encode() + np.arange(60, dtype=np.uint8).tobytes())
    return path


@pytest.mark.parametrize("extension", [".mha", ".nii.gz"])
def test_a_fourth_axis_of_length_one_is_dropped(extension: str, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.JoinSeries([a_ct()]), str(tmp_path / f"ct{extension}"))
    read = read_ct(tmp_path / f"ct{extension}")
    assert read.GetSize() == a_ct().GetSize()
    assert Grid.from_image(read).is_same_as(Grid.from_image(a_ct()))


def test_label_maps_are_uint8_or_uint16(tmp_path: Path) -> None:
    for highest, stored, expected in [
        (15, sitk.sitkFloat64, sitk.sitkUInt8),
        (255, sitk.sitkInt16, sitk.sitkUInt8),
        (699, sitk.sitkInt32, sitk.sitkUInt16),
    ]:
        array = np.zeros((3, 4, 5))
        array[1, 2, 3] = highest
        sitk.WriteImage(sitk.Cast(Grid.from_image(a_ct()).make_image(array), stored), str(tmp_path / "labels.nrrd"))
        labels = read_labels(tmp_path / "labels.nrrd")
        assert labels.GetPixelID() == expected
        assert labels[3, 2, 1] == highest


@pytest.mark.parametrize("bad", [-1.0, 0.5, 70000.0])
def test_images_that_are_not_label_maps_are_refused(bad: float, tmp_path: Path) -> None:
    array = np.zeros((3, 4, 5))
    array[1, 2, 3] = bad
    sitk.WriteImage(Grid.from_image(a_ct()).make_image(array), str(tmp_path / "labels.nrrd"))
    with pytest.raises(ImageError, match="not a label map"):
        read_labels(tmp_path / "labels.nrrd")


@pytest.mark.skipif(not REAL_CTS.is_dir(), reason="the shared CTs are not here")
@pytest.mark.parametrize(
    ("case", "size"),
    [
        ("abdomen_noncontrast_labelled", (122, 101, 112)),
        ("abdomen_portalvenous", (360, 360, 75)),
        ("chest_upper_abdomen", (301, 301, 102)),
    ],
)
def test_real_cts_are_read_as_int16(case: str, size: tuple[int, int, int]) -> None:
    ct = read_ct(REAL_CTS / case / "ct.nii.gz")
    assert ct.GetPixelID() == sitk.sitkInt16
    assert ct.GetSize() == size
