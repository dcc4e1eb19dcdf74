"""Reading of one series from a folder of DICOM files, and reasons why a folder is not one volume."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import ImageError
from dcaseg.imaging.codestreams import require_stated_size
from dcaseg.imaging.itk_environment import captured_stderr
from dcaseg.imaging.readers import read_ct

pydicom = pytest.importorskip("pydicom")
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
CORONAL = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]


def hu_of(index: int) -> np.ndarray:
    """Six rows of five voxels; the values identify the slice."""
    return (np.arange(30).reshape(6, 5) + 100 * index - 1000).astype(np.int16)


def write_series(
    folder: Path,
    *,
    slices: int = 8,
    position: Callable[[int], list[float]] = lambda index: [-10.0, -20.0, 3.0 * index],
    axes: list[float] = AXIAL,
    uid: str | None = None,
    change: Callable[[Dataset, int], None] = lambda dataset, index: None,
    **attributes: object,
) -> str:
    """Write a series as a scanner would, but with file names and instance numbers in arbitrary order."""
    folder.mkdir(exist_ok=True)
    uid = uid or generate_uid()
    for index in range(slices):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
        dataset.SOPClassUID = CTImageStorage
        dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
        dataset.SeriesInstanceUID = uid
        dataset.StudyInstanceUID = "1.2.3"
        dataset.Modality = "CT"
        dataset.SeriesDescription = "Abdomen 3 mm"
        dataset.InstanceNumber = slices - index
        dataset.ImagePositionPatient = position(index)
        dataset.ImageOrientationPatient = axes
        dataset.PixelSpacing = [0.8, 0.7]
        dataset.Rows, dataset.Columns = 6, 5
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.PixelData = (hu_of(index) + 1024).astype(np.uint16).tobytes()
        for name, value in attributes.items():
            setattr(dataset, name, value)
        change(dataset, index)
        dataset.save_as(folder / f"{uid[-6:]}_{(5 * index) % slices:03d}.dcm", enforce_file_format=True)
    return uid


def refused(folder: Path, problem: str, series: str | None = None) -> ImageError:
    with pytest.raises(ImageError, match=problem) as caught:
        read_ct(folder, series)
    assert "\n" not in caught.value.problem
    assert caught.value.remedy and "\n" not in caught.value.remedy
    return caught.value


def test_a_series_becomes_a_volume_in_hu(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    ct = read_ct(tmp_path / "ct")
    assert ct.GetPixelID() == sitk.sitkInt16
    assert ct.GetSize() == (5, 6, 8)
    assert ct.GetSpacing() == pytest.approx((0.7, 0.8, 3.0))
    assert ct.GetOrigin() == (-10.0, -20.0, 0.0)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), np.stack([hu_of(index) for index in range(8)]))


def test_slices_are_ordered_by_position_and_agree_with_gdcm(tmp_path: Path) -> None:
    # Coronal slices, the first one at the back: positions decrease along the normal (0, 1, 0).
    write_series(tmp_path / "ct", axes=CORONAL, position=lambda index: [5.0, 60.0 - 2.0 * index, 7.0])
    ct = read_ct(tmp_path / "ct")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(ct), np.stack([hu_of(7 - index) for index in range(8)]))
    np.testing.assert_allclose(ct.TransformIndexToPhysicalPoint((0, 0, 7)), [5.0, 60.0, 7.0])

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path / "ct")))
    gdcm = reader.Execute()
    assert gdcm.GetOrigin() == pytest.approx(ct.GetOrigin())
    assert gdcm.GetDirection() == pytest.approx(ct.GetDirection())
    np.testing.assert_array_equal(sitk.GetArrayFromImage(gdcm), sitk.GetArrayFromImage(ct))


def test_an_oblique_series_keeps_its_direction(tmp_path: Path) -> None:
    row, column = np.array([np.cos(0.2), np.sin(0.2), 0.0]), np.array([-np.sin(0.2), np.cos(0.2), 0.0])
    write_series(tmp_path / "ct", axes=[*row, *column])
    direction = np.reshape(read_ct(tmp_path / "ct").GetDirection(), (3, 3))
    np.testing.assert_allclose(direction, np.stack([row, column, [0, 0, 1]], axis=1), atol=1e-6)


def test_values_with_a_fractional_slope_become_float32(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", RescaleSlope=0.5)
    ct = read_ct(tmp_path / "ct")
    assert ct.GetPixelID() == sitk.sitkFloat32
    assert ct[1, 0, 0] == pytest.approx(0.5 * 25 - 1024)


def test_values_beyond_32_bits_do_not_wrap(tmp_path: Path) -> None:
    def as_unsigned_32_bits(dataset: Any, index: int) -> None:
        stored = np.frombuffer(dataset.PixelData, "<u2").astype("<u4")
        stored[0] = 2**32 - 1
        dataset.BitsAllocated = dataset.BitsStored = 32
        dataset.HighBit, dataset.PixelData = 31, stored.tobytes()

    write_series(tmp_path, change=as_unsigned_32_bits)
    voxels = sitk.GetArrayFromImage(read_ct(tmp_path))
    assert (voxels[:, 0, 0] == np.float32(2**32 - 1025)).all()
    np.testing.assert_array_equal(voxels[:, 1:], np.stack([hu_of(index) for index in range(8)])[:, 1:])


def test_other_files_in_the_folder_are_skipped(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    (tmp_path / "ct" / "README.txt").write_text("Exported by the PACS.")
    (tmp_path / "ct" / "empty").touch()
    assert read_ct(tmp_path / "ct").GetSize() == (5, 6, 8)


def test_several_series_are_listed_and_one_can_be_selected(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", uid="1.2.3.1")
    write_series(tmp_path / "ct", uid="1.2.3.2", slices=3, SeriesDescription="Topogram")
    problem = refused(tmp_path / "ct", "2 series").problem
    assert "[1] CT, Abdomen 3 mm, 8 slices, UID 1.2.3.1" in problem
    assert "[2] CT, Topogram, 3 slices, UID 1.2.3.2" in problem
    assert read_ct(tmp_path / "ct", series="1").GetDepth() == 8
    assert read_ct(tmp_path / "ct", series="2").GetDepth() == 3
    assert read_ct(tmp_path / "ct", series="1.2.3.2").GetDepth() == 3
    assert "1.2.3.1" in refused(tmp_path / "ct", "no series 9", series="9").problem


def test_two_patients_with_one_series_uid_are_listed_and_selected_by_number(tmp_path: Path) -> None:
    write_series(tmp_path, uid="1.2.3.4", PatientID="A")
    for number, file in enumerate(sorted(tmp_path.iterdir())):
        file.rename(tmp_path / f"A{number}")
    # Where the first scan ends, so that both could be one volume.
    write_series(tmp_path, uid="1.2.3.4", PatientID="B", position=lambda index: [-10.0, -20.0, 24.0 + 3.0 * index])
    error = refused(tmp_path, "contains 2 series: .*patient A, UID 1.2.3.4.*patient B")
    assert "--series" in error.remedy
    assert "by its number" in refused(tmp_path, "1.2.3.4 is the UID of 2 series", "1.2.3.4").remedy
    for number, height in (("1", 0.0), ("2", 24.0)):
        ct = read_ct(tmp_path, number)
        assert ct.GetDepth() == 8 and ct.GetOrigin()[2] == height


def test_a_folder_without_dicom_is_refused_and_a_subfolder_with_dicom_is_named(tmp_path: Path) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "notes.txt").write_text("nothing here")
    refused(tmp_path / "study", "contains no DICOM images")
    write_series(tmp_path / "study" / "series1")
    assert str(tmp_path / "study" / "series1") in refused(tmp_path / "study", "subfolder series1").remedy


def test_the_message_for_a_single_dicom_file_names_its_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    file = next((tmp_path / "ct").iterdir())
    assert str(tmp_path / "ct") in refused(file, "a single DICOM slice").remedy


def test_the_working_directory_is_named_in_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_series(tmp_path / "mr", Modality="MR")
    monkeypatch.chdir(tmp_path / "mr")
    refused(Path("."), "series in mr is not CT")  # noqa: PTH201 - what a user gives


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root and Windows may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    file = next((tmp_path / "ct").iterdir())
    file.chmod(0)
    refused(tmp_path / "ct", f"{file.name} cannot be read")


def test_a_single_slice_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", slices=1)
    refused(tmp_path / "ct", "only one slice")


def test_missing_slices_are_counted(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", position=lambda index: [0.0, 0.0, 3.0 * (index + 2 * (index > 4))])
    refused(tmp_path / "ct", r"is missing 2 slices \(first gap after slice 5\)")


def test_uneven_slices_are_refused_and_rounded_positions_are_not(tmp_path: Path) -> None:
    write_series(tmp_path / "uneven", position=lambda index: [0.0, 0.0, 3.0 * index + 1.3 * (index > 4)])
    refused(tmp_path / "uneven", "unevenly spaced")
    write_series(tmp_path / "rounded", position=lambda index: [0.0, 0.0, round(index * 10 / 3, 2)])
    assert read_ct(tmp_path / "rounded").GetSpacing()[2] == pytest.approx(10 / 3, abs=0.01)


def test_duplicate_positions_are_reported_as_several_time_points(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", position=lambda index: [0.0, 0.0, 3.0 * (index // 2)])
    refused(tmp_path / "ct", "same positions")


def test_a_tilted_gantry_is_recognized_with_its_angle(tmp_path: Path) -> None:
    shift = 3.0 * float(np.tan(np.radians(12.0)))
    write_series(tmp_path / "ct", position=lambda index: [0.0, shift * index, 3.0 * index])
    assert "--resample" in refused(tmp_path / "ct", "tilted by 12.0 degrees").remedy


def test_slices_that_are_not_parallel_are_refused(tmp_path: Path) -> None:
    def turn(dataset: Dataset, index: int) -> None:
        if index % 2:
            dataset.ImageOrientationPatient = CORONAL

    write_series(tmp_path / "ct", change=turn)
    refused(tmp_path / "ct", "not parallel")


def test_slices_of_different_size_are_refused(tmp_path: Path) -> None:
    def enlarge_the_last(dataset: Dataset, index: int) -> None:
        if index == 7:
            dataset.Rows, dataset.PixelData = 12, dataset.PixelData * 2

    write_series(tmp_path / "ct", change=enlarge_the_last)
    refused(tmp_path / "ct", "different size")


@pytest.mark.parametrize("tag", ["ImagePositionPatient", "ImageOrientationPatient"])
def test_slices_without_a_position_are_refused(tag: str, tmp_path: Path) -> None:
    write_series(tmp_path / "ct", change=lambda dataset, index: delattr(dataset, tag))
    refused(tmp_path / "ct", f"no {tag}")


def test_another_modality_is_named(tmp_path: Path) -> None:
    write_series(tmp_path / "mr", Modality="MR")
    refused(tmp_path / "mr", "is not CT but MR")


def test_a_multi_frame_file_without_positions_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "ct", slices=1, NumberOfFrames=4, PixelData=bytes(4 * 60))
    refused(tmp_path / "ct", "multi-frame")


def test_color_pictures_are_refused(tmp_path: Path) -> None:
    write_series(
        tmp_path / "ct",
        SamplesPerPixel=3,
        PhotometricInterpretation="RGB",
        PlanarConfiguration=0,
        BitsAllocated=8,
        BitsStored=8,
        HighBit=7,
        PixelData=bytes(90),
    )
    refused(tmp_path / "ct", "color pictures")


@pytest.mark.parametrize("lost", [1, 20, 65])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_truncated_file_is_refused(lost: int, syntax: UID, tmp_path: Path) -> None:
    def use_the_syntax(dataset: Dataset, index: int) -> None:
        dataset.file_meta.TransferSyntaxUID = syntax

    write_series(tmp_path / "ct", change=use_the_syntax)
    assert read_ct(tmp_path / "ct").GetSize() == (5, 6, 8)
    file = sorted((tmp_path / "ct").iterdir())[3]
    file.write_bytes(file.read_bytes()[:-lost])
    refused(tmp_path / "ct", f"{file.name} in ct is an incomplete or damaged")


@pytest.mark.parametrize("kept", [0.5, 0.98])
def test_a_compressed_slice_whose_end_is_missing_is_refused(kept: float, tmp_path: Path) -> None:
    """The file itself is whole: only the compressed image in it ends too early."""
    from pydicom.encaps import encapsulate, generate_frames
    from pydicom.uid import JPEG2000Lossless

    from dicom_archive import write_ct_series

    ct = sitk.GetImageFromArray(np.random.default_rng(1).integers(-1000, 1000, (6, 16, 16)).astype(np.int16))
    write_ct_series(tmp_path / "in", ct, syntax=JPEG2000Lossless)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_ct(tmp_path / "in")), sitk.GetArrayFromImage(ct))
    file = sorted((tmp_path / "in").iterdir())[3]
    dataset = dcmread(file)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([frame[: int(kept * len(frame))]])
    dataset.save_as(file)
    refused(tmp_path / "in", "damaged|incomplete")


def test_a_fragment_longer_than_its_file_is_refused_in_little_memory(tmp_path: Path) -> None:
    """GDCM would allocate the 4 GB that the fragment is said to have."""
    import resource

    from pydicom.uid import RLELossless

    from dicom_archive import write_ct_series

    ct = sitk.GetImageFromArray(np.random.default_rng(1).integers(-1000, 1000, (6, 16, 16)).astype(np.int16))
    write_ct_series(tmp_path / "in", ct, syntax=RLELossless)
    file = sorted((tmp_path / "in").iterdir())[3]
    content = bytearray(file.read_bytes())
    # The second item, after the empty table of offsets.
    first = content.index(b"\xfe\xff\x00\xe0")
    second = content.index(b"\xfe\xff\x00\xe0", first + 4)
    content[second + 4 : second + 8] = b"\xf0\xff\xff\xff"
    file.write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "in", "damaged|incomplete")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_fragment_followed_by_something_else_is_refused_in_little_memory(tmp_path: Path) -> None:
    """GDCM would take the bytes after a fragment that is said to be too short for the length of another: up to 4 GB."""
    program = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        import SimpleITK as sitk
        from dcaseg.errors import ImageError
        from dcaseg.imaging.readers import read_ct
        sys.path.insert(0, sys.argv[2])
        from dicom_archive import write_ct_series

        folder = Path(sys.argv[1]) / "in"
        ct = sitk.GetImageFromArray(np.random.default_rng(1).integers(-1000, 1000, (6, 16, 16)).astype(np.int16))
        write_ct_series(folder, ct, syntax="1.2.840.10008.1.2.5")
        file = sorted(folder.iterdir())[3]
        content = bytearray(file.read_bytes())
        # The item after the table of offsets, made 14 bytes shorter than it is.
        first = content.index(b"\\xfe\\xff\\x00\\xe0")
        second = content.index(b"\\xfe\\xff\\x00\\xe0", first + 4)
        length = int.from_bytes(content[second + 4 : second + 8], "little")
        content[second + 4 : second + 8] = (length - 14).to_bytes(4, "little")
        end = second + 8 + length
        content[end - 14 : end - 6] = b"\\x11\\x22\\x33\\x44\\xf0\\xff\\xff\\xff"
        file.write_bytes(content)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            read_ct(folder)
        except ImageError as error:
            print(error)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path), str(Path(__file__).parent)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "compressed voxels are damaged or incomplete" in run.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is captured on Windows")
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda frame: frame[: len(frame) * 2 // 3] + b"\xff\xd9", id="the end is missing"),
        # The decoder loses its place in the code and reaches the last voxel before the last byte.
        pytest.param(lambda frame: frame[:131] + bytes(64) + frame[195:], id="zeros"),
    ],
)
def test_a_damaged_jpeg_is_refused_in_one_line(damage: Callable[[bytes], bytes], tmp_path: Path, capfd: Any) -> None:
    """The decoder fills in other values, and only its line on standard error shows that."""
    pytest.importorskip("pydicom.pixels")
    from pydicom.encaps import encapsulate, generate_frames

    from dicom_archive import write_ct_series

    ct = sitk.GetImageFromArray(np.random.default_rng(1).integers(-1000, 1000, (6, 16, 16)).astype(np.int16))
    write_ct_series(tmp_path / "in", ct, syntax="1.2.840.10008.1.2.4.70")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_ct(tmp_path / "in")), sitk.GetArrayFromImage(ct))
    file = sorted((tmp_path / "in").iterdir())[3]
    dataset = dcmread(file)
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
    dataset.PixelData = encapsulate([damage(frame)])
    dataset.save_as(file)
    refused(tmp_path / "in", "cannot be decoded")
    assert capfd.readouterr().err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is captured on Windows")
def test_what_a_decoder_prints_is_captured_and_standard_error_works_again(capfd: Any) -> None:
    with captured_stderr() as said:
        os.write(2, b"Corrupt JPEG data\n")
    os.write(2, b"after\n")
    assert said == ["Corrupt JPEG data\n"]
    assert capfd.readouterr().err == "after\n"


_JPEG_LOSSLESS, _JPEG_2000 = "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.4.90"


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize(
    ("syntax", "marker", "size"),
    [
        (_JPEG_LOSSLESS, b"\xff\xc3", (5, ">HH", (20_000, 20_000))),
        (_JPEG_2000, b"\xff\x51", (6, ">II", (2**31 - 1, 2**31 - 1))),
        (_JPEG_2000, b"\xff\x51", (22, ">II", (1, 1))),
    ],
)
def test_a_compressed_slice_that_states_a_huge_size_is_refused(
    syntax: str, marker: bytes, size: tuple[int, str, tuple[int, int]], split: bool, tmp_path: Path
) -> None:
    """Three kilobytes took 11 GB: decoders trust the size in the stream, not that in the DICOM header."""
    import resource

    from pydicom.encaps import encapsulate, generate_frames

    from dicom_archive import write_ct_series

    ct = sitk.GetImageFromArray(np.random.default_rng(1).integers(-1000, 1000, (6, 64, 64)).astype(np.int16))
    write_ct_series(tmp_path / "in", ct, syntax=syntax)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_ct(tmp_path / "in")), sitk.GetArrayFromImage(ct))
    file = sorted((tmp_path / "in").iterdir())[3]
    dataset = dcmread(file)
    frame = bytearray(next(generate_frames(dataset.PixelData, number_of_frames=1)))
    at, form, numbers = size
    start = frame.index(marker) + at
    frame[start : start + struct.calcsize(form)] = struct.pack(form, *numbers)
    # In two fragments, the first of which is too short to show what it is.
    dataset.PixelData = encapsulate([bytes(frame)], fragments_per_frame=len(frame) // 2 if split else 1)
    dataset.save_as(file)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "in", "another size than its header")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


@pytest.mark.parametrize("syntax", [_JPEG_LOSSLESS, _JPEG_2000])
def test_a_compressed_slice_in_several_fragments_is_read(syntax: str, tmp_path: Path) -> None:
    from pydicom.encaps import encapsulate, generate_frames

    from dicom_archive import write_ct_series

    ct = sitk.GetImageFromArray(np.random.default_rng(1).integers(-1000, 1000, (6, 64, 64)).astype(np.int16))
    write_ct_series(tmp_path / "in", ct, syntax=syntax)
    for file in (tmp_path / "in").iterdir():
        dataset = dcmread(file)
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = encapsulate([frame], fragments_per_frame=3)
        dataset.save_as(file)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(read_ct(tmp_path / "in")), sitk.GetArrayFromImage(ct))


def _siz(width: int, height: int) -> bytes:
    return b"\xff\x4f\xff\x51" + struct.pack(">HH8I", 41, 0, width, height, 0, 0, width, height, 0, 0)


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I4s", len(content) + 8, kind) + content


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(
            b"\xff\xd8\xff\xfe\0\x0b\xff\xc3\0\x0b\x10\0\x40\0\x40\xff\xc3\0\x0b\x10\xff\0\xff\0", id="comment"
        ),
        pytest.param(
            b"\xff\xd8\xff\x01\xff\xc3\0\x0b\x10\xff\0\xff\0\xff\xc3\0\x0b\x10\0\x40\0\x40", id="marker alone"
        ),
        pytest.param(b"\xff\xd8\xff\xd9", id="no frame"),
        pytest.param(
            _box(b"jP  ", b"\r\n\x87\n") + _box(b"xml ", _siz(64, 64)) + _box(b"jp2c", _siz(2**30, 2**30)), id="box"
        ),
        pytest.param(_box(b"jP  ", b"\r\n\x87\n") + _siz(64, 64), id="no box"),
        pytest.param(b"\xff\xff\xd8" + bytes(64), id="unknown"),
    ],
)
def test_a_size_hidden_from_the_check_is_not_accepted(stream: bytes) -> None:
    """The first size in these bytes is not the one that a decoder takes."""
    with pytest.raises(ValueError, match="another size"):
        require_stated_size(stream, 64, 64, may_continue=False)
    boxes = _box(b"jP  ", b"\r\n\x87\n") + _box(b"xml ", _siz(1, 1)) + _box(b"jp2c", _siz(64, 64))
    require_stated_size(boxes, 64, 64, may_continue=False)
