"""Which bundle is used if none is selected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dcaseg.errors import BundleError
from dcaseg.models import store as finding
from dcaseg.models.store import find_bundle, find_bundles, find_default_bundle, find_hidden_bundle, find_shipped_bundles

SHIPPED = "DCASegmentation/dcaseg/models/shipped"


@pytest.fixture
def computer(tmp_path, monkeypatch) -> Path:
    """A computer without bundles; its home and the program's folder are in ``tmp_path``."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DCA_MODELS", raising=False)
    monkeypatch.setattr(finding, "__file__", str(tmp_path / "DCASegmentation/dcaseg/models/store.py"))
    return tmp_path


def put_bundle(folder: Path) -> Path:
    (folder / "configs").mkdir(parents=True)
    (folder / "configs" / "metadata.json").write_text("{}")
    return folder


def test_without_any_bundle_the_message_says_where_to_put_one(computer):
    assert find_bundles() == []
    with pytest.raises(BundleError, match=r"No model bundle was found\. .*DCA_MODELS"):
        find_default_bundle()


def test_the_users_bundles_precede_the_shipped_ones(computer, monkeypatch):
    shipped = put_bundle(computer / SHIPPED / "shipped")
    assert find_bundles() == [shipped]

    in_home = put_bundle(computer / "home" / ".dca" / "models" / "mine")
    named = put_bundle(computer / "elsewhere" / "named")
    monkeypatch.setenv("DCA_MODELS", str(computer / "elsewhere"))

    assert find_bundles() == [named, in_home, shipped]
    assert find_default_bundle() == named


def test_the_variable_may_name_several_folders_and_bundles(computer, monkeypatch):
    one = put_bundle(computer / "one")
    two = put_bundle(computer / "more" / "two")
    monkeypatch.setenv("DCA_MODELS", os.pathsep.join([str(one), str(two.parent)]))

    assert find_bundles() == [one, two]


def test_a_variable_with_a_missing_folder_is_an_error(computer, monkeypatch):
    put_bundle(computer / SHIPPED / "shipped")
    monkeypatch.setenv("DCA_MODELS", str(computer / "typo"))

    with pytest.raises(BundleError, match="which is not a folder"):
        find_default_bundle()


def test_a_bundle_is_found_by_name_or_folder(computer):
    shipped = put_bundle(computer / SHIPPED / "shipped")
    own = put_bundle(computer / "own")

    assert find_bundle("shipped") == shipped
    assert find_bundle(str(own)) == own
    with pytest.raises(BundleError, match=r"no model bundle 'shiped'\. Known models: shipped"):
        find_bundle("shiped")


def test_of_two_bundles_with_the_same_name_the_users_is_used(computer):
    put_bundle(computer / SHIPPED / "abdomen")
    newer = put_bundle(computer / "home" / ".dca" / "models" / "abdomen")

    assert find_bundles() == [newer]


def test_a_bundle_that_hides_a_shipped_one_is_reported(computer, dca, monkeypatch):
    shipped = put_bundle(computer / SHIPPED / "abdomen")
    other = put_bundle(computer / SHIPPED / "other")
    newer = put_bundle(computer / "home" / ".dca" / "models" / "abdomen")
    monkeypatch.setenv("HOME", str(computer / "home"))

    assert (find_hidden_bundle(newer), find_hidden_bundle(shipped), find_hidden_bundle(other)) == (shipped, None, None)
    assert find_shipped_bundles() == [shipped, other]
    listed = dca("bundle", "list").out.replace("\n", "")
    assert f"abdomen  (default; hides {shipped}; {newer})" in listed
    assert "which hides the model of the same name" in " ".join(dca("bundle", "info", "abdomen").err.split())
