"""For every kind of unusable file, one line says what is wrong and one line says what to do."""

from __future__ import annotations

import gzip
import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import ImageError
from dcaseg.imaging.readers import read_ct
from dcaseg.imaging.writers import write_image

FORMATS = [".nii", ".nii.gz", ".nrrd", ".mha"]
NRRD = "type: short\ndimension: 3\nsizes: 6 5 4\nencoding: raw\nendian: little\n"
MHA = "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nDimSize = 6 5 4\n"


def a_ct() -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(0).integers(-1024, 1500, (40, 50, 60)).astype(np.int16))
    image.SetSpacing((1.0, 2.0, 3.0))
    return image


def nifti_with(path: Path, *changes: tuple[str, int, list[float]]) -> Path:
    """A valid NIfTI file with some header fields (struct format, byte offset, values) overwritten."""
    sitk.WriteImage(a_ct(), str(path.with_suffix(".nii")))
    raw = bytearray(path.with_suffix(".nii").read_bytes())
    for form, offset, values in changes:
        struct.pack_into(form, raw, offset, *values)
    path.write_bytes(raw)
    return path


def nrrd_with(path: Path, header: str) -> Path:
    path.write_bytes(f"NRRD0004\n{NRRD}{header}\n\n".encode() + bytes(240))
    return path


def mha_with(path: Path, header: str) -> Path:
    path.write_bytes(f"{MHA}{header}ElementType = MET_SHORT\nElementDataFile = LOCAL\n".encode() + bytes(240))
    return path


def refused(path: Path, problem: str, capfd: pytest.CaptureFixture[str] | None = None) -> ImageError:
    with pytest.raises(ImageError, match=problem) as caught:
        read_ct(path)
    error = caught.value
    assert error.problem and "\n" not in error.problem
    assert error.remedy and "\n" not in error.remedy
    if capfd is not None:
        assert capfd.readouterr().err == ""
    return error


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for name in ("ct.nii.gz", "ct", "ct.xyz"):
        assert str(tmp_path / name) in refused(tmp_path / name, "There is no file").problem


@pytest.mark.parametrize("extension", [*FORMATS, ".nhdr", ".mhd"])
def test_an_empty_file_is_called_empty(extension: str, tmp_path: Path) -> None:
    (tmp_path / f"ct{extension}").touch()
    refused(tmp_path / f"ct{extension}", "is empty")


@pytest.mark.parametrize("extension", FORMATS)
@pytest.mark.parametrize("kept", [0.002, 0.5, 0.999])
def test_a_truncated_file_is_called_incomplete(
    extension: str, kept: float, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"ct{extension}"
    sitk.WriteImage(a_ct(), str(path), extension != ".nii")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    refused(path, "incomplete", capfd)


@pytest.mark.parametrize(("extension", "data"), [(".nhdr", ".raw.gz"), (".mhd", ".zraw")])
def test_a_missing_data_file_is_named(extension: str, data: str, tmp_path: Path) -> None:
    sitk.WriteImage(a_ct(), str(tmp_path / f"ct{extension}"), True)
    (tmp_path / f"ct{data}").unlink()
    refused(tmp_path / f"ct{extension}", f"ct{data}, which is missing")


@pytest.mark.parametrize("extension", FORMATS)
def test_a_file_with_other_content_is_called_damaged(
    extension: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / f"ct{extension}").write_bytes(b"This is a letter, not a CT.\n" * 100)
    refused(tmp_path / f"ct{extension}", "damaged or not a", capfd)


def test_a_flipped_byte_in_a_compressed_file_is_found(tmp_path: Path) -> None:
    sitk.WriteImage(a_ct(), str(tmp_path / "ct.nii.gz"))
    raw = bytearray((tmp_path / "ct.nii.gz").read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    (tmp_path / "ct.nii.gz").write_bytes(raw)
    refused(tmp_path / "ct.nii.gz", "damaged")


@pytest.mark.parametrize("voxel", [0, 1000, -1])
def test_a_voxel_that_does_not_match_the_checksum_is_found(voxel: int, tmp_path: Path) -> None:
    path = tmp_path / "ct.nii.gz"
    sitk.WriteImage(a_ct(), str(path))
    content = gzip.decompress(path.read_bytes())
    # Stored without compression, the data can be unpacked whatever they are.
    raw = bytearray(gzip.compress(content, compresslevel=0))
    stored = raw.index(content[-2:], len(raw) - 16) if voxel < 0 else raw.index(content[352:368]) + 2 * voxel
    raw[stored] ^= 1
    path.write_bytes(raw)
    refused(path, "damaged")


def test_the_message_for_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "ct.png").write_bytes(b"\x89PNG")
    assert ".nii.gz" in refused(tmp_path / "ct.png", "not supported").remedy


@pytest.mark.parametrize("extension", FORMATS)
def test_images_of_another_dimension_are_refused(extension: str, tmp_path: Path) -> None:
    path = tmp_path / f"ct{extension}"
    sitk.WriteImage(a_ct()[:, :, 3], str(path))
    refused(path, r"2D image \(60 x 50\)")
    sitk.WriteImage(a_ct()[:, :, 3:4], str(path))
    refused(path, r"single slice \(60 x 50 x 1\)")
    sitk.WriteImage(sitk.JoinSeries([a_ct()] * 3), str(path))
    assert "time point" in refused(path, "4D series of 3 volumes").remedy


@pytest.mark.parametrize("extension", FORMATS)
def test_color_images_are_refused(extension: str, tmp_path: Path) -> None:
    sitk.WriteImage(sitk.Compose([sitk.Cast(a_ct(), sitk.sitkUInt8)] * 3), str(tmp_path / f"ct{extension}"))
    refused(tmp_path / f"ct{extension}", "3 values per voxel")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("extension", FORMATS)
def test_non_finite_voxels_are_counted(extension: str, value: float, tmp_path: Path) -> None:
    image = sitk.Cast(a_ct(), sitk.sitkFloat32)
    image[3, 4, 5] = value
    image[9, 9, 9] = value
    sitk.WriteImage(image, str(tmp_path / f"ct{extension}"))
    refused(tmp_path / f"ct{extension}", "2 voxels without a finite value")


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), 1e-6, 1e6])
def test_an_impossible_spacing_in_nifti_is_refused(spacing: float, tmp_path: Path) -> None:
    refused(nifti_with(tmp_path / "ct.nii", ("<f", 88, [spacing])), "impossible voxel spacing")


@pytest.mark.parametrize("spacing", ["0", "-1", "nan", "1e-6", "1e6"])
def test_an_impossible_spacing_in_metaimage_is_refused(spacing: str, tmp_path: Path) -> None:
    path = mha_with(tmp_path / "ct.mha", f"ElementSpacing = {spacing} 1 1\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n")
    refused(path, "impossible voxel spacing")


@pytest.mark.parametrize("first", ["(0,0,0)", "(1e-6,0,0)", "(1e6,0,0)", "(nan,0,0)"])
def test_an_impossible_spacing_in_nrrd_is_refused(first: str, tmp_path: Path) -> None:
    path = nrrd_with(tmp_path / "ct.nrrd", f"space: LPS\nspace directions: {first} (0,1,0) (0,0,1)")
    refused(path, "impossible voxel spacing")


def test_a_nifti_file_without_orientation_is_refused(tmp_path: Path) -> None:
    path = nifti_with(tmp_path / "ct.nii", ("<2h", 252, [0, 0]))
    refused(path, "qform and sform codes are both 0")
    compressed = tmp_path / "ct.nii.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    refused(compressed, "qform and sform codes are both 0")


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("", "the size of its voxels"),
        ("spacings: 1 2 3", "no 'space directions'"),
        ("space dimension: 3\nspace directions: (1,0,0) (0,1,0) (0,0,1)", "no anatomical 'space'"),
        ("space: scanner-xyz\nspace directions: (1,0,0) (0,1,0) (0,0,1)", "no anatomical 'space'"),
    ],
)
def test_a_nrrd_file_without_geometry_is_refused(header: str, problem: str, tmp_path: Path) -> None:
    refused(nrrd_with(tmp_path / "ct.nrrd", header), problem)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ("TransformMatrix = 1 0 0 0 1 0 0 0 1\n", "no 'ElementSpacing'"),
        ("ElementSpacing = 1 1 1\n", "no 'TransformMatrix'"),
    ],
)
def test_a_metaimage_without_geometry_is_refused(header: str, problem: str, tmp_path: Path) -> None:
    refused(mha_with(tmp_path / "ct.mha", header), problem)


def test_the_handwritten_headers_of_these_tests_are_otherwise_valid(tmp_path: Path) -> None:
    assert read_ct(nifti_with(tmp_path / "ct.nii")).GetSpacing() == (1.0, 2.0, 3.0)
    read_ct(nrrd_with(tmp_path / "ct.nrrd", "space: LPS\nspace directions: (1,0,0) (0,1,0) (0,0,1)"))
    read_ct(mha_with(tmp_path / "ct.mha", "ElementSpacing = 1 1 1\nTransformMatrix = 1 0 0 0 1 0 0 0 1\n"))


def test_sheared_axes_are_refused_in_every_format(tmp_path: Path) -> None:
    # There is no qform, and in the first row of the sform, x also increases with the third index.
    refused(nifti_with(tmp_path / "ct.nii", ("<h", 252, [0]), ("<4f", 280, [-1.0, 0.0, -0.9, 0.0])), "right angles")
    sheared = "space: LPS\nspace directions: (1,0,0) (0,1,0) (0.9,0,1)"
    refused(nrrd_with(tmp_path / "ct.nrrd", sheared), "right angles")
    matrix = "ElementSpacing = 1 1 1\nTransformMatrix = 1 0 0 0 1 0 0.9 0 1\n"
    refused(mha_with(tmp_path / "ct.mha", matrix), "right angles")


def test_a_series_can_be_selected_only_in_dicom_folders(tmp_path: Path) -> None:
    sitk.WriteImage(a_ct(), str(tmp_path / "ct.nrrd"))
    with pytest.raises(ImageError, match="not a folder of DICOM files"):
        read_ct(tmp_path / "ct.nrrd", series="1")


@pytest.mark.parametrize("name", ["ct.nrrd", "ct.mha"])
def test_damaged_compressed_voxels_are_never_read_as_other_values(name: str, tmp_path: Path) -> None:
    """ITK reads some of these files, with arbitrary voxels, and without an error."""
    dice = np.random.default_rng(1)
    ct = sitk.GetImageFromArray(dice.integers(-1000, 1000, (24, 24, 24)).astype(np.int16))
    sitk.WriteImage(ct, str(tmp_path / name), True)
    whole = (tmp_path / name).read_bytes()
    voxels = sitk.GetArrayFromImage(read_ct(tmp_path / name, notes=[]))
    start = whole.index(b"LOCAL\n") + 6 if name == "ct.mha" else whole.index(b"\n\n") + 2
    places = [start, start + 1, *dice.integers(start, len(whole), 40).tolist(), len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(dice.integers(8))
        (tmp_path / name).write_bytes(damaged)
        try:
            read = sitk.GetArrayFromImage(read_ct(tmp_path / name, notes=[]))
        except ImageError:
            continue
        # A flag or a date in the header of gzip.
        assert np.array_equal(read, voxels), place


def test_a_compressed_metaimage_without_its_size_is_refused(tmp_path: Path) -> None:
    sitk.WriteImage(a_ct(), str(tmp_path / "ct.mha"), True)
    lines = (tmp_path / "ct.mha").read_bytes().split(b"\n")
    (tmp_path / "ct.mha").write_bytes(b"\n".join(line for line in lines if not line.startswith(b"CompressedDataSize")))
    refused(tmp_path / "ct.mha", "damaged")


@pytest.mark.parametrize("number", ["1e999", "-inf", "nan", "1_0"])
@pytest.mark.parametrize("name", ["Offset", "CenterOfRotation", "ElementSpacing"])
def test_a_number_that_itk_cannot_read_is_refused_in_one_line(name, number, tmp_path, capfd):
    path = tmp_path / "ct.mha"
    sitk.WriteImage(a_ct(), str(path))
    lines = path.read_bytes().split(b"\n")
    at = next(index for index, line in enumerate(lines) if line.startswith(name.encode()))
    lines[at] = f"{name} = {number} 1 1".encode()
    path.write_bytes(b"\n".join(lines))
    refused(path, "damaged|spacing|origin")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e999"])
def test_an_origin_that_is_no_place_is_refused(number, tmp_path):
    for name, field in (("ct.nrrd", b"space origin"), ("ct.mha", b"Offset")):
        path = tmp_path / name
        sitk.WriteImage(a_ct(), str(path))
        content = path.read_bytes()
        at = content.index(field)
        end = content.index(b"\n", at)
        value = f"space origin: ({number},1,1)" if name == "ct.nrrd" else f"Offset = {number} 1 1"
        path.write_bytes(content[:at] + value.encode() + content[end:])
        refused(path, "origin|damaged")
    path = tmp_path / "ct.nii"
    sitk.WriteImage(a_ct(), str(path))
    content = bytearray(path.read_bytes())
    for at in (268, 292):
        content[at : at + 4] = struct.pack("<f", float(number))
    path.write_bytes(content)
    refused(path, "origin|damaged")


NRRD_LINES = {
    "no field": "{}",
    "unknown field": "{}: x",
    "known field": "kinds: domain domain {}",
    "number": "space origin: ({},0,0)",
    "a field that contains :=": "type: {}:=x",
    "content without a space": "content:{}",
}


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("name", NRRD_LINES)
def test_a_long_line_of_an_nrrd_header_does_not_crash(name, tmp_path):
    """ITK quotes it in a message for which it has 1,000 bytes."""
    path = tmp_path / "ct.nrrd"
    sitk.WriteImage(a_ct(), str(path))
    header, _, voxels = path.read_bytes().partition(b"\n\n")
    for length in (300, 650, 900, 1000, 1100, 5000, 100_000):
        line = NRRD_LINES[name].format("1" * length)
        kept = [each for each in header.split(b"\n") if each.split(b":")[0].decode() != line.split(":")[0]]
        path.write_bytes(b"\n".join([*kept, line.encode()]) + b"\n\n" + voxels)
        assert _in_a_process(lambda: read_ct(path)) in ("read", "refused")


@pytest.mark.parametrize("line", ["# {}", "content: {}", "Segment0_Tags:={}: x", "{}:=v"])
def test_long_lines_that_itk_never_quotes_are_read(line, tmp_path):
    path = tmp_path / "ct.nrrd"
    sitk.WriteImage(a_ct(), str(path))
    header, _, voxels = path.read_bytes().partition(b"\n\n")
    path.write_bytes(header + b"\n" + line.format("a" * 5000).encode() + b"\n\n" + voxels)
    assert read_ct(path).GetSize() == a_ct().GetSize()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have shorter paths")
@pytest.mark.parametrize("extension", [".nrrd", ".nii.gz", ".mha"])
def test_files_at_a_very_long_path_are_written_read_and_refused(extension, tmp_path):
    """ITK's NRRD library puts the path into its messages, too."""
    folder = tmp_path.joinpath(*["d" * 200] * 15)
    folder.mkdir(parents=True)
    path = folder / f"ct{extension}"
    write_image(a_ct(), path)
    assert read_ct(path).GetSize() == a_ct().GetSize()
    path.write_bytes(path.read_bytes()[:1000])
    assert _in_a_process(lambda: read_ct(path)) == "refused"


def _in_a_process(read: Callable[[], object]) -> str:
    """How reading ended in a process of its own: read, refused, or the number of a signal or exit code."""
    process = os.fork()
    if process == 0:
        code = 70
        try:
            read()
            code = 0
        except ImageError:
            code = 2
        finally:
            os._exit(code)
    status = os.waitpid(process, 0)[1]
    return {0: "read", 2 << 8: "refused"}.get(status, str(status))
