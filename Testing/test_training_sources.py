"""Sources of training cases: phantoms and files, their cache, description and record."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import ImageError
from dcaseg.training.options import GridOptions
from dcaseg.training.sources import CTFile, CTFiles, Phantoms
from dcaseg.training.training_set import TrainingSet

GRID = GridOptions(spacing=(12.0, 12.0, 12.0))


@pytest.fixture
def labeled_ct(coarse_phantom: Path) -> CTFile:
    return CTFile(str(coarse_phantom / "ct.nii.gz"), str(coarse_phantom / "labels.nii.gz"))


def files(*entries: CTFile) -> CTFiles:
    return CTFiles("Some CTs", "CC-BY-SA-4.0", "a hospital", entries)


def test_a_ct_from_a_file_is_on_the_model_grid(labeled_ct, tmp_path):
    [case] = files(labeled_ct).cases(tmp_path, GRID, labeled=True)
    assert case.hu.shape == case.labels.shape and case.hu.min() < -900 < 100 < case.hu.max()
    assert set(np.unique(case.labels)) >= {0, 1, 6, 7}


def test_labels_are_left_out_of_unlabeled_cases(labeled_ct, tmp_path):
    [case] = files(labeled_ct).cases(tmp_path, GRID, labeled=False)
    assert case.labels is None


def test_a_label_map_with_other_numbers_is_converted(labeled_ct, tmp_path):
    renamed = CTFile(labeled_ct.image, labeled_ct.labels, ids={6: 1, 1: 6}, unannotated=(5,))
    [plain] = files(labeled_ct).cases(tmp_path, GRID, labeled=True)
    [case] = files(renamed).cases(tmp_path, GRID, labeled=True)
    assert set(np.unique(case.labels)) == {0, 1, 6} and case.unannotated == (5,)
    assert np.array_equal(case.labels == 1, plain.labels == 6)


def test_a_cached_case_is_used_until_its_file_changes(labeled_ct, tmp_path):
    copy = tmp_path / "ct.nii.gz"
    copy.write_bytes(Path(labeled_ct.image).read_bytes())
    source = files(CTFile(str(copy)))
    source.cases(tmp_path / "cache", GRID, labeled=False)
    [prepared] = (tmp_path / "cache").rglob("*.npz")
    made = prepared.stat().st_mtime_ns
    source.cases(tmp_path / "cache", GRID, labeled=False)
    assert prepared.stat().st_mtime_ns == made
    os.utime(copy, ns=(1, 1))
    source.cases(tmp_path / "cache", GRID, labeled=False)
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2


def test_cases_on_another_grid_are_cached_separately(labeled_ct, tmp_path):
    [coarse] = files(labeled_ct).cases(tmp_path, GridOptions(spacing=(20.0, 20.0, 20.0)), labeled=False)
    [fine] = files(labeled_ct).cases(tmp_path, GRID, labeled=False)
    assert fine.hu.size > 3 * coarse.hu.size


def test_a_label_map_on_another_grid_is_rejected(labeled_ct, tmp_path):
    small = tmp_path / "labels.nrrd"
    sitk.WriteImage(sitk.Image(20, 20, 20, sitk.sitkUInt8), str(small))
    with pytest.raises(ImageError, match="grid"):
        files(CTFile(labeled_ct.image, str(small))).cases(tmp_path, GRID, labeled=True)


def test_a_training_set_json_round_trip(labeled_ct):
    mixed = TrainingSet(
        (Phantoms(5, 2), files(CTFile(labeled_ct.image, labeled_ct.labels, {3: 1}, (2,)))), (files(labeled_ct),)
    )
    assert TrainingSet.from_json(json.loads(json.dumps(mixed.to_json()))) == mixed


def test_a_training_set_lists_each_source_once(labeled_ct):
    mixed = TrainingSet((Phantoms(5, 2), files(labeled_ct)), (files(labeled_ct, labeled_ct),), (Phantoms(9, 1),))
    phantoms, cts = mixed.training_data
    assert phantoms.synthetic and (phantoms.labeled, phantoms.unlabeled) == (2, 0)
    assert not cts.synthetic and (cts.labeled, cts.unlabeled, cts.licence) == (1, 2, "CC-BY-SA-4.0")
