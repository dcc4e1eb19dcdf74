"""Unlabeled CTs in a folder of corrected cases: command line, concurrent writers, and training."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import ImageError, UserError
from dcaseg.imaging.grid import Grid
from dcaseg.imaging.writers import write_image
from dcaseg.organs import AMOS, SYNAPSE
from dcaseg.synthesis.phantom.case import generate
from dcaseg.training.corrections import AlreadyThereError, add_corrected_case, add_unlabeled_ct, read_unlabeled_cts
from dcaseg.training.datalist import read_datalist, require_files

MODEL = ("dca-synthetic", "ab" * 32)


@pytest.fixture(scope="module")
def phantoms():
    return [generate(seed, spacing=(8.0, 8.0, 10.0)) for seed in (1, 2, 3)]


def add_corrected(folder, phantom, name, vocabulary=AMOS):
    labels = phantom.labels if vocabulary is AMOS else phantom.labels * 0
    return add_corrected_case(folder, name, phantom.ct, labels, vocabulary, ("liver",), MODEL)


def listed(folder):
    return json.loads((folder / "dataset.json").read_text())


def test_an_unlabeled_ct_is_listed_with_the_corrected_cases(phantoms, tmp_path):
    add_corrected(tmp_path, phantoms[0], "case-1")
    path = add_unlabeled_ct(tmp_path, phantoms[1].ct)
    datalist = read_datalist(tmp_path / "dataset.json")
    require_files(datalist)
    assert [entry.image for entry in datalist.unlabeled] == [path] == read_unlabeled_cts(tmp_path)
    assert len(datalist.training) == 1
    written = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(phantoms[1].ct))
    assert Grid.from_image(written).is_same_as(Grid.from_image(phantoms[1].ct), 1e-2)


def test_no_header_metadata_is_kept(phantoms, tmp_path):
    ct = sitk.Image(phantoms[0].ct)
    ct.SetMetaData("0010|0010", "Doe^Jane")
    image = sitk.ReadImage(str(add_unlabeled_ct(tmp_path, ct)))
    assert not any("Doe" in image.GetMetaData(key) for key in image.GetMetaDataKeys())


def test_a_folder_keeps_its_vocabulary(phantoms, tmp_path):
    add_corrected(tmp_path, phantoms[0], "case-1", SYNAPSE)
    add_unlabeled_ct(tmp_path, phantoms[1].ct)
    assert listed(tmp_path)["vocabulary"] == "Synapse"


def test_the_same_ct_is_not_added_twice(phantoms, tmp_path):
    add_unlabeled_ct(tmp_path, phantoms[0].ct)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(AlreadyThereError, match="without labels"):
        add_unlabeled_ct(tmp_path, phantoms[0].ct)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_image_that_is_not_a_ct_is_rejected(phantoms, tmp_path):
    with pytest.raises(ImageError, match="looks like a label map"):
        add_unlabeled_ct(tmp_path, phantoms[0].labels * 20)
    assert list(tmp_path.iterdir()) == []


def test_concurrent_writers_lose_nothing(phantoms, tmp_path):
    def add(number):
        if number % 2:
            return add_corrected(tmp_path, phantoms[0], f"case-{number}")
        ct = sitk.Image(phantoms[1].ct)
        ct[0, 0, 0] = -1000 + number
        return add_unlabeled_ct(tmp_path, ct)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(8)))
    assert len(listed(tmp_path)["training"]) == len(listed(tmp_path)["unlabelled"]) == 4


def test_entries_added_by_hand_are_kept_once(phantoms, tmp_path):
    path = add_unlabeled_ct(tmp_path, phantoms[0].ct)
    content = listed(tmp_path)
    own = {"image": path.relative_to(tmp_path).as_posix(), "label": "mine/labels.nii.gz"}
    content |= {"unlabelled": ["more/ct.nii.gz"], "validation": [own]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    add_unlabeled_ct(tmp_path, phantoms[1].ct)
    after = listed(tmp_path)
    assert after["validation"] == [own]
    assert len(after["unlabelled"]) == 2 and after["unlabelled"][0] == "more/ct.nii.gz"


def test_a_damaged_ct_is_reported_and_nothing_is_added(phantoms, tmp_path):
    path = add_unlabeled_ct(tmp_path, phantoms[0].ct)
    write_image(phantoms[1].ct, path)
    with pytest.raises(UserError, match="has changed since it was written"):
        read_unlabeled_cts(tmp_path)
    path.unlink()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="is damaged"):
        add_unlabeled_ct(tmp_path, phantoms[1].ct)
    with pytest.raises(UserError, match="is damaged"):
        add_corrected(tmp_path, phantoms[1], "case-1")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_adds_files_and_reports_failures(dca, phantoms, tmp_path):
    files = [tmp_path / f"patient-doe-{number}.nii.gz" for number in range(3)]
    write_image(phantoms[0].ct, files[0])
    write_image(phantoms[0].labels, files[1])
    write_image(phantoms[1].ct, files[2])
    folder = tmp_path / "training"
    run = dca("dataset", "add", folder, *files)
    assert run.code == 2 and "1 of 3 CTs could not be added" in run.err
    assert "patient-doe-1" in run.err and f"CTs without labels in {folder}: 2" in run.out
    assert not any("doe" in str(path) for path in folder.rglob("*"))
    again = dca("dataset", "add", folder, files[0], files[2])
    assert again.code == 0 and again.out.count("This CT is already in") == 2


@pytest.mark.slow
def test_training_with_corrected_and_unlabeled_cases(dca, small_bundle, phantoms, tmp_path):
    folder, file = tmp_path / "training", tmp_path / "ct.nii.gz"
    add_corrected(folder, phantoms[0], "case-1")
    write_image(phantoms[1].ct, file)
    assert dca("dataset", "add", folder, file).code == 0
    few = ("--steps", 2, "--batch", 1, "--device", "cpu")
    run = dca("train", "-o", tmp_path / "run", "--init", small_bundle, "--data", folder, *few)
    assert run.code == 0, run.err
    steps = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    cohort = json.loads((tmp_path / "run" / "run.json").read_text())["cohort"]
    assert len(steps) == 2 and "no unlabeled case" not in run.err
    assert [len(cohort[group]) for group in ("labelled", "unlabelled")] == [1, 1]
