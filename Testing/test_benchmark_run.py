"""``dca benchmark`` and the programs that it compares, on a coarse CT with tiny networks."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.benchmark.accuracy import LabeledCase, compare, compute_mean_dice_drop
from dcaseg.benchmark.inputs import create_random_bundle
from dcaseg.benchmark.peers import monai_reference
from dcaseg.imaging.readers import read_ct, read_labels
from dcaseg.inference.options import SegmentOptions


@pytest.fixture(scope="module")
def case(coarse_phantom) -> LabeledCase:
    return LabeledCase("phantom", read_ct(coarse_phantom / "ct.nii.gz"), read_labels(coarse_phantom / "labels.nii.gz"))


@pytest.mark.slow
def test_the_plain_pipeline_and_ours_agree(case, tmp_path):
    # 13 mm, since a grid twice as coarse would have ties halfway between two voxels.
    bundle = create_random_bundle(tmp_path, 13.0, n_filters=2, norm="instance", patch=(32, 32, 32))
    reported = []
    found = compare(bundle, [case], {"whole": SegmentOptions(keep_islands=True, body_box=False)}, reported.append)
    assert reported == found
    assert found[0].same > 0.99
    assert compute_mean_dice_drop(found) == pytest.approx(0, abs=0.01)
    unannotated = LabeledCase("one organ", case.ct, case.truth, unannotated=tuple(range(2, 16)))
    one = compare(bundle, [unannotated])[0]
    assert np.isfinite(one.ours)
    assert one.ours != found[0].ours


def test_monais_pipeline_runs_our_network_and_counts_its_windows(small_bundle, coarse_phantom, tmp_path):
    costs = monai_reference.segment(coarse_phantom / "ct.nii.gz", tmp_path / "labels.nii.gz", small_bundle, 2)
    labels = sitk.ReadImage(str(tmp_path / "labels.nii.gz"))
    assert labels.GetSize() == sitk.ReadImage(str(coarse_phantom / "ct.nii.gz")).GetSize()
    assert labels.GetPixelID() == sitk.sitkUInt8
    assert costs.total > 2
    assert len(costs.cpu_s) == 2


def test_the_random_model_is_created_once(tmp_path):
    bundle = create_random_bundle(tmp_path, 12.0, n_filters=2, patch=(32, 32, 32))
    written = (bundle.folder / "models" / "model.safetensors").stat().st_mtime_ns
    again = create_random_bundle(tmp_path, 12.0, n_filters=2, patch=(32, 32, 32))
    assert (again.folder / "models" / "model.safetensors").stat().st_mtime_ns == written
    assert (bundle.metadata.spacing, bundle.metadata.patch) == ((12.0, 12.0, 12.0), (32, 32, 32))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--windows", "some"), "not a number of windows"),
        (("--only", "nnunett"), "Unknown pipeline: 'nnunett'"),
        (("--ct", "ct.nrrd"), "not a NIfTI file"),
        (("--resume",), "no measurement to continue"),
    ],
)
def test_invalid_options_are_rejected(dca, coarse_phantom, tmp_path, arguments, message):
    ct = () if "--ct" in arguments else ("--ct", coarse_phantom / "ct.nii.gz")
    result = dca("benchmark", "inference", "-o", tmp_path / "out", *ct, *arguments)
    assert result.code == 2
    assert message in result.err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ours_and_monai_are_measured_and_a_missing_peer_is_reported(dca, coarse_phantom, tmp_path, monkeypatch):
    pytest.importorskip("psutil")
    from dcaseg.benchmark import pipelines

    found = pipelines.find_spec
    monkeypatch.setattr(pipelines, "find_spec", lambda name: None if name == "nnunetv2" else found(name))
    out = tmp_path / "new" / "out"
    given = ("-o", out, "--ct", coarse_phantom / "ct.nii.gz", "--cache", tmp_path / "cache", "--only")
    tiny = ("ours,nnunet,monai", "--filters", 2, "--patch", 32, "--spacing", "8,14", "--windows", 1)
    result = dca("benchmark", "inference", *given, *tiny, "--rounds", 1)
    assert result.code == 0, result.err
    assert "nnunet was skipped: nnunetv2 is not installed." in result.err
    with (out / "runs.csv").open() as file:
        rows = {row["key"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"ours", "monai"}
    assert rows["monai"]["extrapolated"] == "yes"
    assert float(rows["monai"]["cpu_s"]) > 1 < float(rows["ours"]["cpu_s"])
    text = (out / "benchmark.md").read_text()
    assert "skipped: nnunetv2 is not installed" in text
    assert "| CPU time, 1.5 mm, our defaults / nnU-Net | ≤ 0.1 |  | not measured |" in text
    assert (out / "benchmark.png").stat().st_size > 10_000
    # With --resume and nothing left to measure, the same command writes table and plot again.
    (out / "benchmark.md").unlink()
    again = dca("benchmark", "inference", *given, *tiny, "--rounds", 1, "--resume")
    assert again.code == 0, again.err
    assert (out / "benchmark.md").exists()
    other = dca("benchmark", "inference", *given, *tiny, "--rounds", 1, "--resume", "--threads", 2)
    assert other.code == 2
    assert "has different settings: threads." in other.err


@pytest.mark.slow
def test_the_cost_of_a_training_step_is_reported(dca, tmp_path):
    out = tmp_path / "training.json"
    options = ("--preset", "small", "--filters", 1, "--patch", 32, "--threads", 1, "--steps", 2, "--rounds", 1)
    result = dca("benchmark", "training", *options, "--device", "cpu", "-o", out)
    assert result.code == 0, result.err
    assert "Steps wait for data" in result.out
    assert "GiB of tensors" in result.out
    assert '"data_loading"' in out.read_text()
