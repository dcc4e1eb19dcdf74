"""What an earlier version wrote stays readable: ``Testing/earlier`` was made by version 0.1.0 before the library was
called dcaseg (commit 18e7e47), from a synthetic person and networks with random weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from dcaseg.models.bundle import Bundle, verify
from dcaseg.organs import AMOS
from dcaseg.training.checkpoints import read_record
from dcaseg.training.datalist import read_datalist

EARLIER = Path(__file__).with_name("earlier")


def test_a_bundle_is_whole_and_its_network_runs():
    verification = verify(EARLIER / "bundle")
    assert verification.code == ()
    network = Bundle.load(EARLIER / "bundle").network()
    with torch.no_grad():
        assert torch.isfinite(network(torch.zeros(1, 1, 32, 32, 32))).all()


def test_a_bundle_segments(dca, tmp_path):
    done = dca(
        *("segment", EARLIER / "ct.nii.gz", "-o", tmp_path / "out", "--bundle", EARLIER / "bundle"),
        *("--device", "cpu", "--backend", "eager", "--no-scene"),
    )
    assert done.code == 0, done.err


def test_a_data_list_says_which_labels_are_unannotated():
    datalist = read_datalist(EARLIER / "list.json")
    assert [entry.unannotated for entry in datalist.training] == [(15,)]


def test_the_record_of_a_run_has_its_options_under_the_names_of_today():
    earlier = json.loads((EARLIER / "run" / "run.json").read_text())["options"]
    options = read_record(EARLIER / "run").options
    assert options.expert_stage_fraction == earlier["experts_first"] > 0
    assert options.foreground_fraction == earlier["organ_centered"] > 0
    assert options.unsup_weight_cutoff == earlier["negligible_weight"] > 0
    assert options.grad_clip_norm == earlier["gradient_limit"] > 0
    assert options.ema_decay == earlier["averaging"] > 0


@pytest.mark.slow
def test_training_continues_from_a_compact_state(dca, tmp_path, monkeypatch):
    monkeypatch.chdir(EARLIER)
    done = dca(
        *("train", "-o", tmp_path / "run", "--from-state", EARLIER / "state.pt", "--steps", 5),
        *("--device", "cpu", "--cache", tmp_path / "cases"),
    )
    assert done.code == 0, done.err
    assert "at step 5 of 5" in done.out


def test_a_result_is_corrected_and_keeps_its_map_of_the_dominant_expert(dca, tmp_path):
    result = tmp_path / "result"
    shutil.copytree(EARLIER / "result", result)
    before = sitk.ReadImage(str(result / "labels.nii.gz"))
    labels = sitk.GetArrayFromImage(before)
    organ = int(labels.max())
    z, y, x = (int(each) for each in np.argwhere(labels == organ)[0])
    lps = before.TransformIndexToPhysicalPoint((x, y, z))
    point = f"{-lps[0]},{-lps[1]},{lps[2]}"
    done = dca(
        *("correct", result, "-o", tmp_path / "corrected", "--organ", AMOS.by_label[organ].key, "--remove", point),
        *("--ct", EARLIER / "ct.nii.gz", "--no-scene"),
    )
    assert done.code == 0, done.err
    old, new, corrected = (
        sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        for path in (
            EARLIER / "result/deciding_expert.nii.gz",
            tmp_path / "corrected/deciding_expert.nii.gz",
            tmp_path / "corrected/labels.nii.gz",
        )
    )
    np.testing.assert_array_equal(new, np.where(corrected == labels, old, 0))


def test_a_report_is_made_of_a_result(dca, tmp_path):
    result = tmp_path / "result"
    shutil.copytree(EARLIER / "result", result)
    done = dca("report", result, "-o", tmp_path / "report.html", "--ct", EARLIER / "ct.nii.gz")
    assert done.code == 0, done.err
    assert "Liver" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.scene
def test_a_scene_has_its_case_with_the_dominant_expert():
    slicer = pytest.importorskip("slicer", reason="slicer-core is not installed")
    from DCASegmentationLib.scene.case_record import find_cases_in_scene
    from DCASegmentationLib.scene.headless import boot

    boot()
    slicer.mrmlScene.Clear(0)
    slicer.mrmlScene.ReadFromMRB(str(EARLIER / "result" / "scene.mrb"), False)
    (nodes,) = find_cases_in_scene()
    assert nodes.dominant_expert is not None and nodes.ct is not None
    assert nodes.automatic is not None and nodes.finding_ranks is not None
    slicer.mrmlScene.Clear(0)
