"""Adding bundles from a zip file or folder to the user's own models, and removing them, without torch."""

from __future__ import annotations

import json
import shutil
import stat
import zipfile
from pathlib import Path

import pytest

from dcaseg.errors import BundleError, OutputError
from dcaseg.models.metadata_reader import read_metadata
from dcaseg.models.user_models import add_bundle, remove_bundle


def zipped(bundle: Path, target: Path, inside: str = "") -> Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(bundle.rglob("*")):
            archive.write(path, Path(inside, path.relative_to(bundle)))
    return target


@pytest.fixture
def models(tmp_path) -> Path:
    return tmp_path / "models"


@pytest.mark.parametrize("inside", ["", "folder"])
def test_a_zip_is_added_wherever_the_bundle_is_inside_it(small_bundle, models, tmp_path, inside):
    added = add_bundle(zipped(small_bundle, tmp_path / "model.zip", inside), models)
    assert added == models / "random-weights"
    assert read_metadata(added) == read_metadata(small_bundle)
    assert [path.name for path in models.iterdir()] == ["random-weights"]


def test_a_folder_is_copied_and_stays_in_place(small_bundle, models):
    added = add_bundle(small_bundle, models)
    weights = Path("models", "model.safetensors")
    assert (added / weights).read_bytes() == (small_bundle / weights).read_bytes()


def test_an_installed_model_is_not_replaced(small_bundle, models):
    add_bundle(small_bundle, models)
    with pytest.raises(BundleError, match="is already installed"):
        add_bundle(small_bundle, models)


def test_weights_that_differ_from_the_metadata_are_refused_and_nothing_is_left(small_bundle, models, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(small_bundle, changed)
    content = bytearray((changed / "models" / "model.safetensors").read_bytes())
    content[100] ^= 1
    (changed / "models" / "model.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match="SHA-256"):
        add_bundle(zipped(changed, tmp_path / "changed.zip"), models)
    assert list(models.iterdir()) == []


@pytest.mark.parametrize("name", ["../outside.txt", "/outside.txt", "a/../../outside.txt", "..\\outside.txt", "C:/out"])
def test_a_zip_that_would_write_outside_of_its_folder_is_refused(models, tmp_path, name):
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, "x")
    with pytest.raises(BundleError, match="outside of its folder"):
        add_bundle(tmp_path / "evil.zip", models)
    assert not (tmp_path / "outside.txt").exists() and list(models.iterdir()) == []


def test_a_zip_with_a_link_is_refused(models, tmp_path):
    link = zipfile.ZipInfo("configs")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(BundleError, match="outside of its folder"):
        add_bundle(tmp_path / "link.zip", models)


def test_files_that_are_not_bundles_are_refused_by_name(models, tmp_path):
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(BundleError, match=r"note\.txt is neither a folder nor a zip file"):
        add_bundle(tmp_path / "note.txt", models)
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("readme.txt", "x")
    with pytest.raises(BundleError, match=r"other\.zip does not contain a model bundle"):
        add_bundle(tmp_path / "other.zip", models)
    with pytest.raises(BundleError):
        add_bundle(tmp_path, models)


def test_a_name_in_the_metadata_cannot_lead_to_another_folder(small_bundle, models, tmp_path):
    named = tmp_path / "named"
    shutil.copytree(small_bundle, named)
    path = named / "configs" / "metadata.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "name": "../../up"}))
    assert add_bundle(named, models).parent == models


def test_only_own_models_are_deleted(small_bundle, models):
    added = add_bundle(small_bundle, models)
    with pytest.raises(BundleError, match="not one of your own"):
        remove_bundle(small_bundle, models)
    remove_bundle(added, models)
    assert small_bundle.is_dir() and not added.exists()


def test_a_folder_that_cannot_be_created_is_named(small_bundle, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        add_bundle(small_bundle, tmp_path / "file" / "models")
