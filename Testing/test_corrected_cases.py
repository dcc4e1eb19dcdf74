"""A folder of corrected cases: readable by MONAI, and safe with concurrent writers."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import SimpleITK as sitk
from monai.data import load_decathlon_datalist

from dcaseg.errors import ImageError, OutputError, UserError
from dcaseg.imaging.grid import Grid
from dcaseg.organs import AMOS, SYNAPSE
from dcaseg.training.corrections import CheckedFinding, OrganClicks, add_corrected_case, read_dataset

GRID = Grid((10, 9, 8), (2.0, 2.0, 3.0), (1.0, 2.0, 3.0), (1, 0, 0, 0, -1, 0, 0, 0, 1))
LIVER, SPLEEN, BLADDER = (AMOS.by_key[key].label for key in ("liver", "spleen", "bladder"))
MODEL = ("dca-synthetic", "ab" * 32)


def ct():
    image = GRID.make_image(np.arange(720, dtype=np.int16).reshape(GRID.shape))
    image.SetMetaData("0010|0010", "Doe^Jane")
    return image


def labels():
    array = np.zeros(GRID.shape, np.uint8)
    array[2:5], array[5:7], array[7] = LIVER, SPLEEN, BLADDER
    return GRID.make_image(array)


def add(folder, name="case-1", **changes):
    arguments = {"vocabulary": AMOS, "reviewed": ("liver", "bladder", "gallbladder"), "model": MODEL} | changes
    image, label_map = arguments.pop("ct", ct()), arguments.pop("labels", labels())
    return add_corrected_case(folder, name, image, label_map, **arguments)


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_added_case_is_read_back(tmp_path):
    add(tmp_path, places=(CheckedFinding(3, "liver", "corrected"),))
    (case,) = read_dataset(tmp_path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(case.image))), sitk.GetArrayFromImage(ct()))
    assert Grid.from_image(sitk.ReadImage(str(case.label))).is_same_as(GRID)
    assert (case.model, case.model_sha256) == MODEL
    assert case.reviewed == ("gallbladder", "liver", "bladder")
    assert case.places == (CheckedFinding(3, "liver", "corrected"),)


def test_a_case_states_the_clicks_of_each_organ_and_one_without_them_is_still_read(tmp_path):
    case = add(tmp_path, clicks=(OrganClicks("liver", 2, 1),))
    assert case.clicks == (OrganClicks("liver", 2, 1),)
    path = case.image.parent / "case.json"
    content = json.loads(path.read_text())
    assert content["clicks"] == [{"organ": "liver", "added": 2, "removed": 1}]
    del content["clicks"]
    path.write_text(json.dumps(content))
    (earlier,) = read_dataset(tmp_path)
    assert earlier.clicks == ()


def test_organs_that_were_not_reviewed_are_unannotated(tmp_path):
    case = add(tmp_path)
    assert set(case.unannotated) == set(AMOS.by_label) - {LIVER, BLADDER, AMOS.by_key["gallbladder"].label}
    written = sitk.GetArrayFromImage(sitk.ReadImage(str(case.label)))
    assert set(np.unique(written)) == {0, LIVER, BLADDER}
    assert (written[5:7] == 0).all(), "the spleen was not reviewed"


def test_monai_reads_the_list(tmp_path):
    add(tmp_path)
    (entry,) = load_decathlon_datalist(str(tmp_path / "dataset.json"), is_segmentation=True)
    case = read_dataset(tmp_path)[0]
    assert (entry["image"], entry["label"]) == (str(case.image), str(case.label))
    assert tuple(entry["unannotated"]) == case.unannotated


def test_no_personal_data_is_written(tmp_path):
    case = add(tmp_path)
    image = sitk.ReadImage(str(case.image))
    assert not any("Doe" in image.GetMetaData(key) for key in image.GetMetaDataKeys())
    for name, content in tree(tmp_path).items():
        assert b"Doe" not in content
        if name.endswith(".json"):
            assert str(tmp_path).encode() not in content


def test_a_case_is_never_replaced(tmp_path):
    add(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="already exists"):
        add(tmp_path, reviewed=("spleen",))
    assert tree(tmp_path) == before


def test_concurrent_writers_lose_nothing(tmp_path):
    names = [f"case-{number}" for number in range(12)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: add(tmp_path, name), names))
    assert [case.name for case in read_dataset(tmp_path)] == sorted(names)
    listed = json.loads((tmp_path / "dataset.json").read_text())
    assert len(listed["training"]) == listed["numTraining"] == len(names)


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"reviewed": ()}, UserError, "No organ"),
        ({"reviewed": ("heart",)}, UserError, "no organ 'heart'"),
        ({"name": "../elsewhere"}, UserError, "not a valid case name"),
        ({"name": ""}, UserError, "not a valid case name"),
        ({"labels": GRID.make_image(np.full(GRID.shape, 16, np.uint8))}, UserError, "contain 16"),
        ({"labels": sitk.Image(10, 9, 8, sitk.sitkUInt8)}, ImageError, "grid"),
    ],
    ids=["nothing reviewed", "unknown organ", "a way out", "no name", "unknown label", "other grid"],
)
def test_invalid_cases_are_rejected(wrong, error, said, tmp_path):
    with pytest.raises(error, match=said) as caught:
        add(tmp_path, **wrong)
    assert caught.value.remedy
    assert tree(tmp_path) == {}


def test_a_folder_has_one_vocabulary(tmp_path):
    add(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(UserError, match="the vocabulary AMOS"):
        add(
            tmp_path,
            "other",
            vocabulary=SYNAPSE,
            reviewed=("liver",),
            labels=GRID.make_image(np.zeros(GRID.shape, np.uint8)),
        )
    assert tree(tmp_path) == before


def test_entries_added_by_hand_are_kept(tmp_path):
    add(tmp_path)
    path = tmp_path / "dataset.json"
    content = json.loads(path.read_text())
    held_back = content["training"].pop()
    content |= {"validation": [held_back], "unlabelled": [{"image": "more/ct.nii.gz"}], "licence": "CC0-1.0"}
    content["training"] = [{"image": "own/ct.nii.gz", "label": "own/labels.nii.gz"}]
    path.write_text(json.dumps(content))
    add(tmp_path, "case-2")
    after = json.loads(path.read_text())
    assert [entry["image"] for entry in after["training"]] == ["own/ct.nii.gz", "cases/case-2/ct.nii.gz"]
    assert {key: after[key] for key in ("validation", "unlabelled", "licence")} == {
        key: content[key] for key in ("validation", "unlabelled", "licence")
    }


def test_a_damaged_list_is_not_overwritten(tmp_path):
    add(tmp_path)
    (tmp_path / "dataset.json").write_text('{"training": [')
    before = tree(tmp_path)
    with pytest.raises(UserError, match="is damaged"):
        add(tmp_path, "case-2")
    assert tree(tmp_path) == before


def test_a_changed_file_is_detected(tmp_path):
    case = add(tmp_path)
    case.label.write_bytes(case.image.read_bytes())
    with pytest.raises(UserError, match="has changed since it was written"):
        read_dataset(tmp_path)


def test_a_damaged_case_is_reported_and_nothing_is_added(tmp_path):
    case = add(tmp_path)
    case.label.unlink()
    before = tree(tmp_path)
    with pytest.raises(UserError, match="case-1 is damaged"):
        add(tmp_path, "case-2")
    assert tree(tmp_path) == before
