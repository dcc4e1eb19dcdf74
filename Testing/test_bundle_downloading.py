"""Models from the network, tried with a server on this computer."""

from __future__ import annotations

import io
import zipfile

import pytest
from DCASegmentationLib.bundle.downloading import Source, download_bundle
from DCASegmentationLib.errors import BundleError, UserError
from model_server import serving


@pytest.fixture(scope="module")
def archive(small_bundle) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as target:
        for path in small_bundle.rglob("*"):
            target.write(path, path.relative_to(small_bundle))
    return content.getvalue()


def silent(fraction: float, message: str) -> None:
    assert 0 <= fraction <= 1 and message


def test_a_model_is_downloaded_checked_and_added(archive, tmp_path):
    with serving(archive) as server:
        folder = download_bundle(Source.parse(server.address), tmp_path, silent)
    assert folder == tmp_path / "random-weights" and (folder / "models" / "model.safetensors").is_file()
    assert list((tmp_path / ".downloads").iterdir()) == []


def test_a_broken_download_goes_on_where_it_was(archive, tmp_path):
    with serving(archive) as server:
        server.breaks_off_after = len(archive) // 3
        with pytest.raises(UserError, match="broke off"):
            download_bundle(Source.parse(server.address), tmp_path, silent)
        (part,) = (tmp_path / ".downloads").iterdir()
        assert part.stat().st_size == len(archive) // 3
        download_bundle(Source.parse(server.address), tmp_path, silent)
    assert server.ranges == [None, f"bytes={len(archive) // 3}-"]
    assert (tmp_path / "random-weights").is_dir()


def test_a_file_that_had_come_whole_is_not_fetched_again(archive, tmp_path):
    with serving(archive) as server:
        source = Source.parse(server.address)
        (tmp_path / ".downloads").mkdir()
        (tmp_path / ".downloads" / f"{source.sha256}.zip").write_bytes(archive)
        download_bundle(source, tmp_path, silent)
    assert (tmp_path / "random-weights").is_dir()


def test_a_file_with_another_checksum_is_refused_and_deleted(archive, tmp_path):
    with serving(archive) as server:
        source = Source.parse(server.address)
        server.content = archive[:-1] + b"?"
        with pytest.raises(BundleError, match="SHA-256 differs"):
            download_bundle(source, tmp_path, silent)
    assert list(tmp_path.rglob("*.zip")) == [] and not (tmp_path / "random-weights").exists()


def test_a_wrong_address_is_named(archive, tmp_path):
    with serving(archive) as server:
        wrong = server.address.replace("model.zip", "no.zip")
        with pytest.raises(UserError, match="404"):
            download_bundle(Source.parse(wrong), tmp_path, silent)


def test_no_server_is_told_as_a_broken_download(archive, tmp_path):
    with serving(archive) as server:
        source = Source.parse(server.address)
    with pytest.raises(UserError, match="broke off"):
        download_bundle(source, tmp_path, silent)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://example.org/model.zip",
        "https://example.org/model.zip#sha256=12",
        "http://example.org/model.zip#sha256=" + "0" * 64,
        "file:///model.zip#sha256=" + "0" * 64,
    ],
)
def test_addresses_without_checksum_or_encryption_are_refused(address):
    with pytest.raises(UserError):
        Source.parse(address)
