"""Invalid input: one line says what is wrong and what to do, and no incomplete files are left."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shlex
import shutil
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk


@pytest.fixture
def inputs(tmp_path) -> Path:
    folder = tmp_path / "inputs"
    folder.mkdir()
    return folder


@pytest.fixture
def outputs(tmp_path) -> Path:
    folder = tmp_path / "outputs"
    folder.mkdir()
    return folder


@pytest.fixture
def refused(dca, outputs):
    """Run a command that must fail: exit code 2, one line of error, no traceback, no output. Returns that line."""

    def run(*arguments: object, code: int = 2) -> str:
        before = sorted(outputs.rglob("*"))
        result = dca(*arguments)
        assert result.code == code, result.err
        assert result.out == ""
        lines = result.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("Error: "), result.err
        assert "Traceback" not in result.err and "Errno" not in result.err
        assert lines[0].rstrip().endswith((".", ")")), "the line says what to do"
        assert sorted(outputs.rglob("*")) == before
        return lines[0]

    return run


@pytest.fixture
def refuses_ct(refused, outputs, small_bundle):
    """Segment a file that is not a usable CT. Returns the line of error."""
    return lambda path, *more: refused("segment", path, "-o", outputs / "result", "--bundle", small_bundle, *more)


@pytest.fixture
def hu(coarse_phantom) -> sitk.Image:
    return sitk.ReadImage(str(coarse_phantom / "ct.nii.gz"))


def written(image: sitk.Image, path: Path) -> Path:
    sitk.WriteImage(image, str(path))
    return path


def like(image: sitk.Image, array: np.ndarray) -> sitk.Image:
    changed = sitk.GetImageFromArray(array)
    changed.CopyInformation(image)
    return changed


# --- CTs ---------------------------------------------------------------------------------------------------------


def test_a_missing_file(refuses_ct, inputs):
    assert "There is no file" in refuses_ct(inputs / "nothing.nii.gz")


def test_an_empty_file(refuses_ct, inputs):
    (inputs / "ct.nii.gz").touch()
    assert "is empty" in refuses_ct(inputs / "ct.nii.gz")


@pytest.mark.parametrize("extension", [".nii", ".nii.gz", ".nrrd", ".mha"])
def test_a_truncated_file(refuses_ct, inputs, hu, extension):
    path = written(hu, inputs / f"ct{extension}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    line = refuses_ct(path)
    assert "incomplete" in line or "damaged" in line


def test_a_file_of_unsupported_format(refuses_ct, inputs):
    (inputs / "report.pdf").write_bytes(b"%PDF-1.7 no image")
    assert "format that is not supported" in refuses_ct(inputs / "report.pdf")


def test_a_folder_without_dicom_files(refuses_ct, inputs):
    assert "DICOM" in refuses_ct(inputs)


def test_a_2d_image(refuses_ct, inputs, hu):
    assert "2D image" in refuses_ct(written(hu[:, :, 20], inputs / "ct.mha"))


def test_a_single_slice(refuses_ct, inputs, hu):
    assert "single slice" in refuses_ct(written(hu[:, :, 20:21], inputs / "ct.nii.gz"))


def test_a_4d_series(refuses_ct, inputs, hu):
    assert "4D series of 2 volumes" in refuses_ct(written(sitk.JoinSeries([hu, hu]), inputs / "ct.nii.gz"))


def test_an_rgb_image(refuses_ct, inputs, hu):
    gray = sitk.Cast(hu, sitk.sitkUInt8)
    assert "3 values per voxel" in refuses_ct(written(sitk.Compose(gray, gray, gray), inputs / "ct.nrrd"))


def test_a_gray_picture_from_0_to_255(refuses_ct, inputs, hu):
    array = np.clip((sitk.GetArrayFromImage(hu) + 200) / 2, 0, 255).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 3, array.shape).astype(np.uint8)
    assert "grayscale picture" in refuses_ct(written(like(hu, np.maximum(array, noise)), inputs / "ct.nii.gz"))


def test_an_mr(refuses_ct, inputs, hu):
    random = np.random.default_rng(0)
    tissue = np.abs(sitk.GetArrayFromImage(hu).astype(float) + 1000) * 0.35
    mr = np.abs(tissue + random.normal(0, 25, tissue.shape)).astype(np.int16)
    assert "looks like an MR" in refuses_ct(written(like(hu, mr), inputs / "ct.nii.gz"))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_voxels_that_are_not_finite(refuses_ct, inputs, hu, value):
    array = sitk.GetArrayFromImage(hu).astype(np.float32)
    array[10, 20, 30] = value
    line = refuses_ct(written(like(hu, array), inputs / "ct.nii.gz"))
    assert "NaN" in line or "infinite" in line


def test_spacing_zero(refuses_ct, inputs, hu):
    path = written(hu, inputs / "ct.nii")
    raw = bytearray(path.read_bytes())
    # pixdim[1] to [3] of the NIfTI header.
    struct.pack_into("<3f", raw, 80, 0.0, 0.0, 0.0)
    path.write_bytes(raw)
    assert "spacing" in refuses_ct(path)


def test_missing_geometry(refuses_ct, inputs, hu):
    path = written(hu, inputs / "ct.nii")
    raw = bytearray(path.read_bytes())
    # qform_code and sform_code: zero means that the orientation is unknown.
    struct.pack_into("<2h", raw, 252, 0, 0)
    path.write_bytes(raw)
    assert "does not state the orientation" in refuses_ct(path)


def test_a_volume_too_small_to_hold_organs(refuses_ct, inputs, hu):
    assert "too small" in refuses_ct(written(hu[30:36, 30:36, 20:24], inputs / "ct.nii.gz"))


def test_a_series_of_what_is_no_folder(refuses_ct, coarse_phantom):
    assert "not a folder of DICOM files" in refuses_ct(coarse_phantom / "ct.nii.gz", "--series", "2")


# --- options of segment ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--organs", "liver,splen"), "Did you mean 'spleen'?"),
        (("--organs", ","), "No organ is selected"),
        (("--overlap", "1"), "The option overlap is 1.0, not a number from 0 to below 1"),
        (("--attention-levels", "5"), "The option attention_levels[0] is 5, not a number from 1 to 4"),
        (("--attention-levels", "fine"), "--attention-levels 'fine'"),
        (("--device", "abacus"), "'abacus' is not the name of a device"),
        (("--device", "cuda:99"), "cuda:99"),
        (("--format", ".png"), "'.png'"),
        (("--weighting", "flat"), "--weighting"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_impossible_option_value(refuses_ct, coarse_phantom, options, problem):
    assert problem in refuses_ct(coarse_phantom / "ct.nii.gz", *options)


def test_a_missing_argument(refused):
    assert "Missing" in refused("segment")


def test_a_command_that_does_not_exist(refused):
    assert "No such command" in refused("segmnt")


# --- output folders -------------------------------------------------------------------------------------


@pytest.fixture
def segment_to(refused, coarse_phantom, small_bundle):
    ct = coarse_phantom / "ct.nii.gz"
    return lambda out, *more: refused("segment", ct, "-o", out, "--bundle", small_bundle, "--overlap", 0, *more)


def test_an_output_folder_that_cannot_be_created(segment_to, outputs):
    (outputs / "file").write_text("not a folder")
    assert "cannot be written" in segment_to(outputs / "file" / "result")
    assert "is not a folder" in segment_to(outputs / "file")


def test_an_output_folder_that_is_not_writable(segment_to, outputs):
    outputs.chmod(0o555)
    try:
        if not _is_writable(outputs):
            assert "not writable" in segment_to(outputs / "result")
        # No user can create folders here, not even root.
        assert "writable" in segment_to("/sys/kernel/result") or "cannot be written" in segment_to("/sys/kernel/result")
    finally:
        outputs.chmod(0o755)


def _is_writable(folder: Path) -> bool:
    try:
        (folder / "probe").mkdir()
    except PermissionError:
        return False
    (folder / "probe").rmdir()
    return True


def test_a_folder_that_is_not_a_result_is_never_replaced(segment_to, outputs):
    (outputs / "thesis").mkdir()
    (outputs / "thesis" / "chapter1.txt").write_text("years of work")
    assert "already exists" in segment_to(outputs / "thesis")
    assert "not an earlier result" in segment_to(outputs / "thesis", "--overwrite")
    assert (outputs / "thesis" / "chapter1.txt").read_text() == "years of work"


@pytest.fixture
def full_disk():
    """Limit the files of this process to 20 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_while_labels_are_written(segment_to, outputs, full_disk):
    assert "full" in segment_to(outputs / "result", "--no-scene")


@pytest.mark.scene
@pytest.mark.skipif(find_spec("slicer") is None, reason="slicer-core is not installed")
def test_a_full_disk_while_the_scene_is_written_keeps_the_labels(
    dca, coarse_phantom, small_bundle, outputs, monkeypatch
):
    import DCASegmentationLib.scene.scene_builder as session

    build, limits = session.build_scene, resource.getrlimit(resource.RLIMIT_FSIZE)

    def build_then_fill_the_disk(*arguments, **options):
        nodes = build(*arguments, **options)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))
        return nodes

    monkeypatch.setattr(session, "build_scene", build_then_fill_the_disk)
    try:
        ct, out = coarse_phantom / "ct.nii.gz", outputs / "result"
        result = dca("segment", ct, "-o", out, "--bundle", small_bundle, "--overlap", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.code == 0, result.err
    assert "Note: scene.mrb or segmentation.seg.nrrd was not written: " in result.err
    assert "ree space. The rest of the result is complete." in result.err
    assert sitk.ReadImage(str(out / "labels.nrrd")).GetSize() == sitk.ReadImage(str(ct)).GetSize()
    assert not (out / "scene.mrb").exists() and not (out / "segmentation.seg.nrrd").exists()
    assert [entry.name for entry in outputs.iterdir()] == ["result"]


def test_a_full_disk_while_a_phantom_is_written(refused, outputs, full_disk):
    assert "full" in refused("phantom", "--seed", 3, "-o", outputs / "case", "--spacing", "6,6,8")


# --- bundles -----------------------------------------------------------------------------------------------------


@pytest.fixture
def bundle(small_bundle, inputs) -> Path:
    """A copy of a bundle, to be damaged by a test."""
    return Path(shutil.copytree(small_bundle, inputs / "bundle"))


def change_metadata(bundle: Path, change) -> None:
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    change(metadata["dca"])
    path.write_text(json.dumps(metadata))


@pytest.fixture
def refuses_bundle(refused, coarse_phantom, outputs, bundle):
    """Check that both commands reject the damaged bundle with the same line. Returns that line."""

    def run() -> str:
        line = refused("bundle", "verify", bundle)
        ct = coarse_phantom / "ct.nii.gz"
        assert refused("segment", ct, "-o", outputs / "result", "--bundle", bundle) == line
        return line

    return run


def test_a_folder_that_is_not_a_bundle(refuses_bundle, bundle):
    shutil.rmtree(bundle / "configs")
    assert "metadata.json" in refuses_bundle()


def test_a_bundle_of_a_newer_format(refuses_bundle, bundle):
    change_metadata(bundle, lambda dca: dca.update(format=99))
    assert "format 99" in refuses_bundle()


def test_a_bundle_without_its_spacing(refuses_bundle, bundle):
    change_metadata(bundle, lambda dca: dca.pop("spacing_mm"))
    assert "spacing_mm" in refuses_bundle()


def test_weights_that_were_changed(refuses_bundle, bundle):
    path = bundle / "models" / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    assert "checksum" in refuses_bundle()


def test_weights_that_can_contain_code(refuses_bundle, bundle):
    (bundle / "models" / "model.safetensors").rename(bundle / "models" / "model.pt")
    change_metadata(bundle, lambda dca: dca["weights"].update(file="models/model.pt"))
    assert "which can contain code. It was not opened" in refuses_bundle()


def test_a_bundle_that_does_not_exist(refused):
    assert "no model bundle 'nothing'" in refused("bundle", "info", "nothing")


def test_without_any_model_the_error_says_how_to_add_one(refused, monkeypatch):
    monkeypatch.setattr("dcaseg.models.store._get_shipped_folders", lambda: [])
    assert "dca bundle add" in refused("bundle", "info")


# --- the other commands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--spacing", "1.5"), "is not 3 numbers"),
        (("--spacing", "1,1,0"), "not a voxel spacing"),
        (("--spacing", "99,99,99"), "spacing"),
        (("--orientation", "LPX"), "orientation"),
        (("--phase", "midnight"), "--phase"),
        (("--tilt", "80"), "--tilt"),
        (("--noise", "-1"), "--noise"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_a_phantom_that_cannot_be_made(refused, outputs, options, problem):
    assert problem in refused("phantom", "-o", outputs / "case", *options)


def test_a_label_map_of_another_vocabulary(refused, coarse_phantom):
    labels = coarse_phantom / "labels.nii.gz"
    assert "the labels of Synapse end at 13" in refused("partition", labels, "--vocabulary", "Synapse")


def test_a_ct_instead_of_a_label_map(refused, coarse_phantom):
    assert "ct.nii.gz" in refused("partition", coarse_phantom / "ct.nii.gz")


def test_label_maps_without_an_organ(refused, hu, inputs):
    empty = sitk.Image(hu.GetSize(), sitk.sitkUInt8)
    empty.CopyInformation(hu)
    assert "contain no organ" in refused("partition", written(empty, inputs / "labels.nii.gz"))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--mode", "manual"), "needs three groups"),
        (("--mode", "manual", "--groups", "1,2"), "is not three groups"),
        (("--mode", "manual", "--groups", "1/2/x"), "whole numbers"),
        (("--mode", "fixed", "--thresholds", "0.1,0.5"), "not valid"),
        (("--mode", "largest"), "--mode"),
        (("-o", "/proc/nowhere/partition.json"), "cannot be created"),
    ],
)
def test_an_impossible_partition(refused, coarse_phantom, options, problem):
    assert problem in refused("partition", coarse_phantom / "labels.nii.gz", *options)


def test_an_existing_file_is_kept(refused, coarse_phantom, outputs):
    (outputs / "partition.json").write_text("mine")
    line = refused("partition", coarse_phantom / "labels.nii.gz", "-o", outputs / "partition.json")
    assert "already exists" in line and "--overwrite" in line
    assert (outputs / "partition.json").read_text() == "mine"


@pytest.mark.parametrize("patch", ["20", "0", "32,32", "big"])
def test_a_patch_that_does_not_fit_the_network(refused, patch):
    assert "--patch" in refused("model", "--patch", patch)


def test_a_label_map_on_another_grid_than_its_ct(refused, coarse_phantom, inputs, small_bundle):
    labels = sitk.ReadImage(str(coarse_phantom / "labels.nii.gz"))
    shifted = written(labels[:, :, 1:], inputs / "labels.nii.gz")
    pair = ("--ct", coarse_phantom / "ct.nii.gz", "--labels", shifted)
    assert "does not lie on the grid" in refused("evaluate", "--bundle", small_bundle, *pair)
    assert "one --labels for each --ct" in refused("evaluate", "--bundle", small_bundle, *pair[:2])


def test_demo_does_not_write_into_an_existing_folder(refused, outputs):
    (outputs / "dca-demo").mkdir()
    (outputs / "dca-demo" / "notes.txt").write_text("mine")
    assert "already exists" in refused("demo", "-o", outputs / "dca-demo")


def test_a_missing_run_cannot_be_resumed_or_exported(refused, outputs):
    assert "not the folder of a training run" in refused("train", "-o", outputs / "run", "--resume")
    assert "not the folder of a training run" in refused("bundle", "export", outputs / "run", "-o", outputs / "model")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs /dev/full")
@pytest.mark.parametrize("how", ["2>/dev/full", "2>&-", "2>/dev/null"])
def test_a_broken_standard_error_does_not_fail_the_command(small_bundle, how):
    command = f"{shlex.quote(sys.executable)} -m dcaseg.cli bundle verify {shlex.quote(str(small_bundle))}"
    done = subprocess.run(f"{command} {how}", shell=True, stdout=subprocess.PIPE, text=True)
    # The metadata has no scores, so that a note is printed on standard error.
    assert (done.returncode, "is a valid bundle." in done.stdout) == (0, True)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EROFS, "Read-only file system", "/cd/out"), "/cd/out is read-only"),
        (OSError(errno.ENOSPC, "No space left on device"), "The disk is full"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"), "not enough memory"),
        (MemoryError(), "not enough memory"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_lack_of_resources_is_one_line(error, said, dca, monkeypatch):
    from dcaseg.models import store as finding

    def fail(*_):
        raise error

    monkeypatch.setattr(finding, "find_bundles", fail)
    run = dca("bundle", "list")
    assert (run.code, said in run.err, len(run.err.splitlines())) == (2, True, 1)


def test_names_that_no_file_system_has_are_refused(refused, outputs):
    assert "too long" in refused("segment", "a" * 5000, "-o", outputs / "out")


@pytest.mark.parametrize(
    "command",
    [
        ("report", "nothing", "-o", "OUT/report.html"),
        ("train", "-o", "OUT/run", "--data", "nothing.json"),
        ("synthesize", "nothing", "-o", "OUT/ct"),
        ("fit-clicks", "--synthetic", "nothing", "-o", "OUT/fit"),
        ("evaluate-clicks", "--ct", "nothing.nii.gz", "--labels", "nothing.nii.gz", "-o", "OUT/clicks"),
        ("cohort", "nothing", "-o", "OUT/cohort"),
        ("cohort", "INPUTS", "--pseudonymize", "--pseudonym-key", "nothing", "-o", "OUT/cohort"),
        ("bundle", "export", "nothing", "-o", "OUT/model"),
        ("dataset", "check", "nothing.json"),
    ],
    ids=" ".join,
)
def test_an_input_that_does_not_exist_leaves_no_output(refused, inputs, outputs, command):
    arguments = [part.replace("OUT", str(outputs)).replace("INPUTS", str(inputs)) for part in command]
    assert "nothing" in refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("partition", "MAP", "--spacing", "6,nan,6"), "not 3 numbers"),
        (("partition", "MAP", "--spacing", "inf,6,6"), "not 3 numbers"),
        (("partition", "MAP", "--groups", "1/2/3"), "Add --mode manual"),
        (("partition", "MAP", "--thresholds", "0.1,0.01"), "Add --mode fixed"),
        (("partition", "MAP", "--no-second-gap", "error"), "Add --mode sequential"),
        (("partition", "MAP", "-o", "OUT/x", "--plot", "OUT/x"), "name the same file"),
        (("evaluate", "--phantoms", "1", "-o", "OUT/s.csv", "--table", "OUT/s.csv"), "name the same file"),
        (("train", "-o", "MAP", "--steps", "1"), "is a file, not a folder"),
        (("train", "-o", "OUT/run", "--steps", "1", "--export-state", "MAP"), "already exists"),
        (("train-clicks", "-o", "OUT/run", "--phantoms", "1", "--bundle", "MAP"), "already exists"),
        (("benchmark", "backends", "MAP", "--backends", ""), "names no backend"),
        (("benchmark", "inference", "-o", "OUT/b", "--only", "nope"), "Unknown pipeline"),
        (("benchmark", "inference", "-o", "OUT/b", "--resume"), "no measurement to continue"),
        (("benchmark", "memory", "--only", "nope"), "Unknown pipeline"),
        (("experiment", "learning", "-o", "OUT/e", "--seeds", "0,0"), "repeats a seed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_that_cannot_work_are_refused_before_the_work(refused, outputs, coarse_phantom, arguments, said):
    places = {"MAP": str(coarse_phantom / "labels.nii.gz"), "OUT": str(outputs)}
    found = [re.sub("MAP|OUT", lambda match: places[match[0]], part) for part in arguments]
    assert said in refused(*found)


def test_a_pipe_is_no_model(refused, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a zip file" in refused("bundle", "add", tmp_path / "pipe")
