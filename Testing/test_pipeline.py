"""Segmentation of a CT file to a result folder, which is complete or absent."""

from __future__ import annotations

import csv
import errno
import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.cli.segment import ORGANS, PICTURE, SCENE, SEGMENTATION
from dcaseg.errors import Cancelled, ImageError, OutputError, UserError
from dcaseg.imaging.grid import Grid
from dcaseg.inference.options import SegmentOptions
from dcaseg.inference.pipeline import EXTENSIONS, Job, is_result_file, segment_to_folder
from dcaseg.method.log_gap import Partition
from dcaseg.models.bundle import save_bundle
from dcaseg.models.metadata import Metadata
from dcaseg.organs import AMOS
from dcaseg.synthesis.phantom.case import generate
from small_model import PATCH, vivid_network

torch.set_num_threads(1)

REAL_CTS = Path(__file__).parents[2] / "shared" / "ct"
MAPS = ["dominant_expert.nrrd", "disagreement.nrrd", "entropy.nrrd"]
ATTENTION = [f"attention_{expert}_level{level}.nrrd" for expert in ("head", "medium", "tail") for level in (1, 4)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    network = vivid_network(len(AMOS))
    head, medium, tail = network.owners
    metadata = Metadata(
        name="small",
        description="Random weights.",
        vocabulary=AMOS,
        spacing=(12.0, 12.0, 12.0),
        orientation="RAS",
        hu_window=(-160.0, 240.0),
        patch=PATCH,
        partition=Partition(tuple(AMOS.by_label), tuple(range(150, 0, -10)), head, medium, tail, mode="manual"),
        training_data=(),
        limits=("It knows nothing.",),
    )
    return save_bundle(tmp_path_factory.mktemp("bundles") / "small", network, metadata)


@pytest.fixture(scope="module")
def ct_path(tmp_path_factory):
    """A tilted phantom with axes unlike those of any model."""
    path = tmp_path_factory.mktemp("ct") / "ct.nii.gz"
    sitk.WriteImage(generate(3, spacing=(7.0, 6.0, 8.0), orientation="PSL", tilt_degrees=8).ct, str(path))
    return path


@pytest.fixture
def job(ct_path, bundle, tmp_path):
    return Job(ct_path, tmp_path / "results", bundle, SegmentOptions(overlap=0.0), device="cpu")


@pytest.fixture(scope="module")
def everything(ct_path, bundle, tmp_path_factory):
    """The folder of a run with all maps, and its result."""
    folder = tmp_path_factory.mktemp("everything") / "results"
    options = SegmentOptions(
        overlap=0.0, attention_levels=(1, 4), dominant_expert=True, entropy=True, disagreement=True
    )
    return folder, segment_to_folder(Job(ct_path, folder, bundle, options, device="cpu"))


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_folder_contains_all_requested_files(everything):
    folder, _ = everything
    tables = ["expert_attention.csv", "log.txt", "request.json", "volumes.csv"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(["labels.nrrd", *MAPS, *ATTENTION, *tables])


def test_only_requested_files_are_written(job):
    segment_to_folder(job)
    names = {path.name for path in job.out.iterdir()}
    assert names == {"labels.nrrd", "log.txt", "request.json", "volumes.csv"}


def test_written_labels_have_the_geometry_of_the_ct(everything, ct_path):
    labels = sitk.ReadImage(str(everything[0] / "labels.nrrd"))
    assert Grid.from_image(labels).is_same_as(Grid.from_image(sitk.ReadImage(str(ct_path))))
    assert sitk.Hash(labels) == sitk.Hash(everything[1].labels)
    assert len(np.unique(sitk.GetArrayViewFromImage(labels))) > 5


def test_written_maps_are_those_of_the_result(everything):
    folder, result = everything
    for name, image in [
        ("entropy", result.entropy),
        ("disagreement", result.disagreement),
        ("dominant_expert", result.dominant_expert),
        ("attention_tail_level4", result.attention[4]["tail"]),
    ]:
        written = sitk.ReadImage(str(folder / f"{name}.nrrd"))
        assert sitk.Hash(written) == sitk.Hash(image)
        assert Grid.from_image(written).is_same_as(Grid.from_image(image))


def test_volumes_are_counted_in_the_written_labels(everything, ct_path):
    folder, _ = everything
    labels = sitk.ReadImage(str(folder / "labels.nrrd"))
    hu = sitk.GetArrayFromImage(sitk.ReadImage(str(ct_path)))
    array = sitk.GetArrayFromImage(labels)
    ml = float(np.prod(labels.GetSpacing())) / 1000
    table = rows(folder / "volumes.csv")
    assert [row["organ"] for row in table] == list(AMOS.by_key)
    assert any(row["note"].startswith("above the usual") for row in table)
    for row in table:
        mask = array == int(row["label"])
        assert int(row["voxels"]) == mask.sum()
        assert float(row["ml"]) == pytest.approx(mask.sum() * ml, abs=1e-3)
        if mask.any():
            assert float(row["mean_hu"]) == pytest.approx(hu[mask].mean(), abs=0.06)
        else:
            assert (row["mean_hu"], row["note"]) == ("", "not found")


def test_the_attention_table_sums_to_one_for_every_organ(everything):
    table = rows(everything[0] / "expert_attention.csv")
    assert {row["level"] for row in table} == {"1", "4"}
    for row in table:
        assert sum(float(row[expert]) for expert in ("head", "medium", "tail")) == pytest.approx(1, abs=2e-4)
        assert row["organ"] == AMOS.by_label[int(row["label"])].key


def test_the_request_suffices_to_repeat_the_run(everything, ct_path, bundle):
    request = json.loads((everything[0] / "request.json").read_text(encoding="utf-8"))
    assert request["ct"] == str(ct_path)
    assert request["ct_geometry"]["size"] == list(sitk.ReadImage(str(ct_path)).GetSize())
    assert request["bundle"]["name"] == "small"
    weights = (bundle.folder / "models" / "model.safetensors").read_bytes()
    assert request["bundle"]["sha256"] == sha256(weights).hexdigest()
    assert SegmentOptions(**{**request["options"], "attention_levels": (1, 4)}).levels_needed == (1, 4)
    assert request["versions"]["torch"] == torch.__version__


def test_the_log_contains_the_time_of_each_phase(everything):
    folder, result = everything
    log = (folder / "log.txt").read_text(encoding="utf-8")
    phases = list(result.seconds)
    assert (phases[0], phases[-1]) == ("reading", "writing")
    assert all(f"{phase}: " in log for phase in result.seconds)


def test_a_scan_smaller_than_a_window_runs_with_a_warning_in_the_log(ct_path, bundle, tmp_path):
    ct = sitk.ReadImage(str(ct_path))
    sitk.WriteImage(ct[10:30, 10:30, 10:30], str(tmp_path / "small.nrrd"))
    segment_to_folder(Job(tmp_path / "small.nrrd", tmp_path / "out", bundle, device="cpu"))
    assert "Warning: At the model's spacing" in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("extension", [".nii.gz", ".mha"])
def test_images_have_the_requested_format(job, extension, ct_path):
    job = replace(job, extension=extension)
    segment_to_folder(job)
    labels = sitk.ReadImage(str(job.out / f"labels{extension}"))
    assert Grid.from_image(labels).is_same_as(Grid.from_image(sitk.ReadImage(str(ct_path))))


def test_an_unknown_format_is_refused(job):
    with pytest.raises(UserError, match="png"):
        replace(job, extension=".png")


def test_additional_files_become_part_of_the_folder(job, ct_path):
    def note(folder, ct, result):
        (folder / "note.txt").write_text(f"{ct.GetSize()} {len(result.measurements)}", encoding="utf-8")

    segment_to_folder(job, also_write=note)
    assert (job.out / "note.txt").read_text(encoding="utf-8").endswith(" 15")


def test_an_existing_folder_is_kept_without_overwrite(job):
    segment_to_folder(job)
    mark = job.out / "labels.nrrd"
    mark.write_bytes(b"mine")
    with pytest.raises(OutputError, match="already exists"):
        segment_to_folder(job)
    assert mark.read_bytes() == b"mine"
    segment_to_folder(replace(job, overwrite=True))
    assert mark.stat().st_size > 4


def test_a_folder_of_other_things_is_never_overwritten(job):
    job.out.mkdir()
    (job.out / "thesis.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError):
        segment_to_folder(replace(job, overwrite=True))
    assert [path.name for path in job.out.iterdir()] == ["thesis.txt"]


def test_the_ct_is_never_replaced_by_its_result(job, ct_path, tmp_path):
    (tmp_path / "case").mkdir()
    (tmp_path / "case/request.json").write_text("{}")
    # Even if it has the name of a result.
    copy = shutil.copy(ct_path, tmp_path / "case/labels.nii.gz")
    (tmp_path / "link.nii.gz").symlink_to(copy)
    (tmp_path / "other").symlink_to(tmp_path / "case")
    before = Path(copy).read_bytes()
    for ct, out in ((copy, "case"), (tmp_path / "link.nii.gz", "case"), (copy, "case/../case"), (copy, "other")):
        for overwrite in (True, False):
            with pytest.raises(OutputError, match="contains the CT"):
                segment_to_folder(replace(job, ct=Path(ct), out=tmp_path / out, overwrite=overwrite))
    with pytest.raises(OutputError, match="contains the CT"):
        segment_to_folder(replace(job, files=(Path(copy),), out=tmp_path / "case", overwrite=True))
    with pytest.raises(OutputError, match="contains the CT"):
        segment_to_folder(replace(job, ct=tmp_path / "case", out=tmp_path / "case", overwrite=True))
    assert Path(copy).read_bytes() == before


def test_a_result_with_files_of_the_user_is_not_replaced(job):
    segment_to_folder(job)
    notes = job.out / "notes.txt"
    notes.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"not part of a result \(notes.txt\)"):
        segment_to_folder(replace(job, overwrite=True))
    assert notes.read_text(encoding="utf-8") == "mine"


def test_whatever_the_commands_write_can_be_replaced(everything):
    folder, _ = everything
    of_commands = [SEGMENTATION, SCENE, PICTURE, "segmentation.dcm", "report.html"]
    of_commands += [f"{ORGANS}/{organ.key}{extension}" for organ in AMOS for extension in EXTENSIONS]
    earlier = Path(__file__).with_name("earlier") / "result"
    written = [path.name for each in (folder, earlier) for path in each.iterdir()]
    for name in (*of_commands, *written):
        assert is_result_file(name), name
    for name in ("notes.txt", "ct.nii.gz", "labels_2.nrrd", "labels.nrrd.txt", "organs/notes.txt", "old/labels.nrrd"):
        assert not is_result_file(name), name


def test_progress_runs_from_reading_to_the_end(job):
    reports = []
    segment_to_folder(job, progress=lambda fraction, message: reports.append((fraction, message)))
    fractions = [fraction for fraction, _ in reports]
    assert fractions == sorted(fractions)
    assert reports[0] == (0.0, "Reading the CT")
    assert reports[-1] == (1.0, "Finished")
    assert [message for _, message in reports].count("Finished") == 1


def empty_file(folder, ct):
    (folder / "bad.nii.gz").touch()
    return folder / "bad.nii.gz"


def truncated_file(folder, ct):
    sitk.WriteImage(ct, str(folder / "bad.nrrd"))
    content = (folder / "bad.nrrd").read_bytes()
    (folder / "bad.nrrd").write_bytes(content[: len(content) // 2])
    return folder / "bad.nrrd"


def missing_file(folder, ct):
    return folder / "nowhere.nii.gz"


def image(change):
    def write(folder, ct):
        sitk.WriteImage(change(ct), str(folder / "bad.nrrd"))
        return folder / "bad.nrrd"

    return write


def with_nan(ct):
    array = sitk.GetArrayFromImage(ct).astype(np.float32)
    array[3, 4, 5] = np.nan
    return Grid.from_image(ct).make_image(array)


BAD_INPUT = {
    "an empty file": empty_file,
    "a truncated file": truncated_file,
    "a file that is not there": missing_file,
    "one slice": image(lambda ct: ct[:, :, 20:21]),
    "a 2D image": image(lambda ct: ct[:, :, 20]),
    "a 4D series": image(lambda ct: sitk.JoinSeries([ct, ct])),
    "a colored image": image(lambda ct: sitk.Compose([sitk.Cast(ct, sitk.sitkUInt8)] * 3)),
    "gray values 0 to 255": image(lambda ct: sitk.Cast(sitk.RescaleIntensity(ct, 0, 255), sitk.sitkUInt8)),
    "voxels that are no numbers": image(with_nan),
}


@pytest.mark.parametrize("kind", BAD_INPUT)
def test_bad_input_is_refused_in_one_line_and_leaves_nothing_behind(kind, job, ct_path, tmp_path):
    source = tmp_path / "input"
    source.mkdir()
    bad = BAD_INPUT[kind](source, sitk.ReadImage(str(ct_path)))
    with pytest.raises(ImageError) as caught:
        segment_to_folder(replace(job, ct=bad))
    assert caught.value.problem
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]


def test_an_unknown_organ_is_refused_before_anything_is_read(job, tmp_path):
    with pytest.raises(UserError, match="appendix"):
        segment_to_folder(replace(job, ct=tmp_path / "nowhere.nrrd", options=SegmentOptions(organs=("appendix",))))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(job, tmp_path):
    (tmp_path / "file").write_text("no folder", encoding="utf-8")
    reports = []
    with pytest.raises(OutputError):
        segment_to_folder(replace(job, out=tmp_path / "file" / "results"), progress=lambda *step: reports.append(step))
    assert reports == []


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (FileNotFoundError(errno.ENOENT, "gone", "slice7.dcm"), "slice7.dcm"),
        (ValueError("a header"), "a header"),
        (RuntimeError("Failed to allocate memory for image."), "not enough memory"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_errors_after_the_result_do_not_discard_it(job, tmp_path, error, message):
    def fail(folder, ct, result):
        raise error

    result = segment_to_folder(job, also_write=fail)
    assert {"labels.nrrd", "volumes.csv", "request.json", "log.txt"} <= {path.name for path in job.out.iterdir()}
    (warning,) = (each for each in result.warnings if message in each)
    assert warning in (job.out / "log.txt").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == [job.out.name]


@pytest.mark.parametrize("table", ["_write_volumes", "_write_attention", "_log"])
def test_a_table_that_cannot_be_written_is_left_out(job, monkeypatch, table):
    import dcaseg.inference.pipeline as module

    def fail(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, table, fail)
    result = segment_to_folder(job)
    assert (job.out / "labels.nrrd").is_file()
    assert any("disk is full" in warning for warning in result.warnings)


def test_organs_that_were_not_requested_are_in_no_table(job, tmp_path):
    only = replace(job, options=replace(job.options, organs=("liver", "spleen")), out=tmp_path / "only")
    segment_to_folder(only)
    assert [row["organ"] for row in rows(only.out / "volumes.csv")] == ["spleen", "liver"]


def test_cancelling_leaves_nothing_behind(job, tmp_path):
    with pytest.raises(Cancelled):
        segment_to_folder(job, cancelled=lambda: True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not REAL_CTS.exists(), reason="needs ../shared/ct")
@pytest.mark.parametrize("case", ["abdomen_portalvenous", "abdomen_noncontrast_labelled"])
def test_real_cts_run_to_the_end_on_their_own_grid(case, bundle, tmp_path):
    path = REAL_CTS / case / "ct.nii.gz"
    segment_to_folder(Job(path, tmp_path / "out", bundle, device="cpu"))
    labels = sitk.ReadImage(str(tmp_path / "out" / "labels.nrrd"))
    assert Grid.from_image(labels).is_same_as(Grid.from_image(sitk.ReadImage(str(path))))
