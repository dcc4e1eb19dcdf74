"""Data lists: created from downloaded folders, read and written, and rejected if they are invalid."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dcaseg.errors import UserError
from dcaseg.imaging.readers import read_labels
from dcaseg.imaging.writers import write_image
from dcaseg.organs import AMOS as AMOS_ORGANS
from dcaseg.training import datasets as layouts
from dcaseg.training import published_splits as splits
from dcaseg.training.datalist import Datalist, Entry, read_datalist, require_files, write_datalist
from dcaseg.training.datasets import check_files
from dcaseg.training.options import GridOptions
from dcaseg.training.training_set import make_training_set


def touch(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


@pytest.fixture(scope="module")
def amos_folder(tmp_path_factory) -> Path:
    """The folder of AMOS22 with the ids of its public splits and some more; the files are empty."""
    folder = tmp_path_factory.mktemp("amos22")
    named = {number for split in splits.AMOS.values() for number in (*split.labeled, *split.validation)}
    training = [f"amos_{number:04d}.nii.gz" for number in sorted(named | {4, 5, 600})]
    test = [f"amos_{number:04d}.nii.gz" for number in (8, 13, 18, 544, 598)]
    for part, names in (("Tr", training), ("Va", test)):
        touch(folder / f"images{part}", names)
        touch(folder / f"labels{part}", names)
    return folder


@pytest.fixture(scope="module")
def synapse_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("synapse")
    touch(folder / "img", [f"img{number:04d}.nii.gz" for number in splits.SYNAPSE_IDS])
    touch(folder / "label", [f"label{number:04d}.nii.gz" for number in splits.SYNAPSE_IDS])
    return folder


@pytest.fixture
def own_folder(tmp_path, coarse_phantom) -> Path:
    """Four CTs, three of them with label maps, with nnU-Net's file names."""
    folder = tmp_path / "own"
    for name in "abcd":
        (folder / "imagesTr").mkdir(parents=True, exist_ok=True)
        (folder / "imagesTr" / f"{name}_0000.nii.gz").symlink_to(coarse_phantom / "ct.nii.gz")
        if name != "d":
            (folder / "labelsTr").mkdir(exist_ok=True)
            (folder / "labelsTr" / f"{name}.nii.gz").symlink_to(coarse_phantom / "labels.nii.gz")
    return folder


def numbers(entries: tuple[Entry, ...]) -> list[int]:
    return [int(entry.image.name[-11:-7]) for entry in entries]


@pytest.mark.parametrize("name", splits.SYNAPSE)
def test_every_synapse_split_divides_the_thirty_cases(synapse_folder, name):
    built = layouts.create_synapse_datalist(synapse_folder, name).datalist
    groups = [numbers(entries) for _, entries in built.iter_groups()]
    assert sorted(number for group in groups for number in group) == sorted(splits.SYNAPSE_IDS)
    assert [len(group) for group in groups[2:]] == [4, 6]


@pytest.mark.parametrize("name", splits.AMOS)
def test_no_amos_split_trains_on_its_validation_cases_or_on_mri(amos_folder, name):
    built = layouts.create_amos_datalist(amos_folder, name).datalist
    training = {*numbers(built.training), *numbers(built.unlabeled)}
    assert not training & set(splits.AMOS[name].validation)
    assert max(training | {*numbers(built.validation), *numbers(built.test)}) <= splits.LAST_CT_OF_AMOS
    assert [entry.label for entry in built.training if entry.label is None] == []


def test_the_caveats_of_amos_splits(amos_folder):
    five = layouts.create_amos_datalist(amos_folder, "5p")
    assert len(five.datalist.training) == 7 and any("514, 548, 578" in caveat for caveat in five.caveats)
    twenty = layouts.create_amos_datalist(amos_folder, "20p")
    assert len(set(splits.AMOS["20p"].labeled) & set(splits.AMOS["20p"].validation)) == 3
    assert any("66, 349, 381" in caveat for caveat in twenty.caveats)
    assert len(layouts.create_amos_datalist(amos_folder, "5p", with_mri=True).datalist.training) == 10


def test_a_folder_without_cases_of_the_split_is_rejected(synapse_folder, tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        layouts.create_amos_datalist(tmp_path, "5p")
    with pytest.raises(UserError, match=r"'7p' is not a known split.*2p, 5p"):
        layouts.create_amos_datalist(tmp_path, "7p")
    touch(tmp_path / "img", ["img0001.nii.gz"])
    touch(tmp_path / "label", ["label0001.nii.gz"])
    with pytest.raises(UserError, match="29 cases of the split not found"):
        layouts.create_synapse_datalist(tmp_path, "galoss-20p")


def test_a_folder_of_cts_becomes_a_list_and_cases(dca, own_folder, tmp_path):
    out = own_folder / "list.json"
    made = dca("dataset", "folder", own_folder, "-o", out, "--validation", 1, "--name", "mine")
    assert made.code == 0, made.err
    datalist = read_datalist(out)
    assert [len(entries) for _, entries in datalist.iter_groups()] == [2, 1, 1, 0]
    assert json.loads(out.read_text())["unlabelled"] == [{"image": "imagesTr/d_0000.nii.gz"}]
    labeled, unlabeled, validation = make_training_set(datalist).cases(
        tmp_path, GridOptions(spacing=(14.0, 14.0, 14.0))
    )
    assert len(labeled) == 2 and len(validation) == 1 and unlabeled[0].labels is None


def test_labels_of_unlabeled_cases_are_used_only_for_full_supervision(own_folder, tmp_path):
    cohort = make_training_set(layouts.create_folder_datalist(own_folder, AMOS_ORGANS, 0, 0, labeled=2).datalist)
    grid = GridOptions(spacing=(14.0, 14.0, 14.0))
    labeled, unlabeled, _ = cohort.cases(tmp_path, grid)
    assert [len(labeled), len(unlabeled)] == [2, 2] and all(case.labels is None for case in unlabeled)
    every = cohort.to_fully_labeled().cases(tmp_path, grid)[0]
    # One of the four CTs has no label map at all.
    assert sorted(case.labels is None for case in every) == [False, False, False, True]


def test_monai_reads_the_list(own_folder, tmp_path):
    from monai.data import load_decathlon_datalist

    datalist = layouts.create_folder_datalist(own_folder, AMOS_ORGANS, 1, 0).datalist
    write_datalist(datalist, own_folder / "list.json")
    items = load_decathlon_datalist(str(own_folder / "list.json"), True, "training")
    assert [set(item) for item in items] == [{"image", "label"}] * 2
    assert all(Path(item["image"]).exists() for item in items)


def test_a_label_map_without_a_ct_is_rejected(own_folder):
    (own_folder / "labelsTr" / "z.nii.gz").touch()
    with pytest.raises(UserError, match=r"z\.nii\.gz has no CT with the same name"):
        layouts.create_folder_datalist(own_folder, AMOS_ORGANS, 0, 0)


def test_too_few_labeled_cases_give_a_caveat_or_an_error(own_folder):
    few = layouts.create_folder_datalist(own_folder, AMOS_ORGANS, 1, 0, labeled=1)
    assert any("only 1 labeled case" in caveat for caveat in few.caveats)
    assert len(few.datalist.unlabeled) == 2
    with pytest.raises(UserError, match="none is left"):
        layouts.create_folder_datalist(own_folder, AMOS_ORGANS, 2, 1)


@pytest.fixture
def write_list(tmp_path):
    def write(**content: object) -> Path:
        path = tmp_path / "list.json"
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no list 'training'"),
        ({"training": [{"label": "a.nii.gz"}]}, r"training\[0\].*no 'image'"),
        ({"training": [{"image": "a.nii.gz"}]}, "no 'label'"),
        ({"training": [{"image": "a", "label": "b", "unknown": [16]}]}, "label 16.*not an organ of AMOS"),
        ({"training": [{"image": "a", "label": "b", "label_map": {"52": 99}}]}, "label 99"),
        ({"training": [{"image": "a", "label": "b", "label_map": [1]}]}, "label_map is a list of 1, not an object"),
        ({"training": [{"image": "a", "label": "b"}], "unlabelled": ["a"]}, "in training and in unlabelled"),
        ({"training": [], "vocabulary": "BTCV"}, "Synapse"),
    ],
)
def test_an_invalid_list_is_rejected(write_list, content, said):
    with pytest.raises(UserError, match=said):
        read_datalist(write_list(**content))


def test_missing_files_are_reported(write_list):
    datalist = read_datalist(write_list(training=[{"image": "a.nii.gz", "label": "b.nii.gz"}]))
    with pytest.raises(UserError, match=r"do not exist: .*a\.nii\.gz, .*b\.nii\.gz"):
        require_files(datalist)


def test_a_list_round_trip(tmp_path):
    entry = Entry(tmp_path / "a.nii.gz", tmp_path / "b.nii.gz", unannotated=(14, 15), label_map={52: 8})
    datalist = Datalist(AMOS_ORGANS, (entry,), (Entry(Path("/elsewhere/c.nii.gz")),), name="n", licence="l", source="s")
    write_datalist(datalist, tmp_path / "list.json")
    assert read_datalist(tmp_path / "list.json") == datalist


def test_checking_reports_every_unusable_file(own_folder, tmp_path):
    datalist = layouts.create_folder_datalist(own_folder, AMOS_ORGANS, 0, 0).datalist
    labels = read_labels(own_folder / "labelsTr" / "a.nii.gz")
    other_grid, out_of_range = sitk.Image(labels), sitk.Cast(labels, sitk.sitkUInt8)
    other_grid.SetOrigin((5.0, 0.0, 0.0))
    out_of_range[10, 10, 10] = 40
    for name, image in (("a", other_grid), ("b", out_of_range)):
        (own_folder / "labelsTr" / f"{name}.nii.gz").unlink()
        write_image(image, own_folder / "labelsTr" / f"{name}.nii.gz")
    (own_folder / "imagesTr" / "c_0000.nii.gz").unlink()
    checked = check_files(datalist)
    assert len(checked.errors) == 3
    assert "does not lie on the grid of a_0000" in checked.errors[0]
    assert "label 40" in checked.errors[1] and "There is no file" in checked.errors[2]


def test_checking_counts_voxels_with_a_label_map(own_folder):
    image, label = own_folder / "imagesTr" / "a_0000.nii.gz", own_folder / "labelsTr" / "a.nii.gz"
    liver_only = check_files(Datalist(AMOS_ORGANS, (Entry(image, label, label_map={6: 7}),)))
    counts = np.bincount(sitk.GetArrayFromImage(read_labels(label)).ravel())
    assert liver_only.voxels[7] == counts[6] and not any(liver_only.voxels[label] for label in (1, 6))
    assert any("Liver" in warning and "tail" in warning for warning in liver_only.warnings)
    checked = check_files(Datalist(AMOS_ORGANS, (Entry(image, label, unannotated=(6,)),)))
    assert "listed as unannotated" in checked.errors[0]


def test_the_list_of_corrected_cases_has_unannotated_labels(coarse_phantom, tmp_path):
    from dcaseg.imaging.readers import read_ct
    from dcaseg.training.corrections import add_corrected_case
    from dcaseg.training.datalist import FOLDERS_LIST as LIST

    ct, labels = read_ct(coarse_phantom / "ct.nii.gz"), read_labels(coarse_phantom / "labels.nii.gz")
    add_corrected_case(tmp_path, "one", ct, labels, AMOS_ORGANS, ["liver", "spleen"], ("a model", "0" * 64))
    datalist = read_datalist(tmp_path / LIST)
    require_files(datalist)
    assert datalist.training[0].unannotated == tuple(label for label in range(1, 16) if label not in (1, 6))
    case = make_training_set(datalist).cases(tmp_path, GridOptions(spacing=(14.0, 14.0, 14.0)))[0][0]
    assert case.unannotated == datalist.training[0].unannotated and set(np.unique(case.labels)) == {0, 1, 6}


def test_american_spelling_is_read(write_list):
    case = {"image": "a.nii.gz", "label": "b.nii.gz"}
    datalist = read_datalist(write_list(training=[case], unlabeled=[{"image": "c.nii.gz"}], license="CC BY 4.0"))
    assert [entry.image.name for entry in datalist.unlabeled] == ["c.nii.gz"] and datalist.licence == "CC BY 4.0"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"unlabeled": [], "unlabelled": []}, "mean the same"),
        ({"validate": [{"image": "c.nii.gz", "label": "d.nii.gz"}]}, "'validate' in .* would not be used"),
    ],
)
def test_cases_that_would_be_ignored_are_rejected(write_list, extra, message):
    with pytest.raises(UserError, match=message):
        read_datalist(write_list(training=[{"image": "a.nii.gz", "label": "b.nii.gz"}], **extra))
