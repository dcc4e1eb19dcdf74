"""Download of models, tested with a server on this computer."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import urllib.error
import urllib.request
import zipfile

import pytest

from dcaseg.errors import BundleError, UserError
from dcaseg.models import download as downloading
from dcaseg.models.download import Source, download_bundle
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


def test_an_interrupted_download_is_resumed(archive, tmp_path):
    with serving(archive) as server:
        server.breaks_off_after = len(archive) // 3
        with pytest.raises(UserError, match="was interrupted"):
            download_bundle(Source.parse(server.address), tmp_path, silent)
        (part,) = (tmp_path / ".downloads").iterdir()
        assert part.stat().st_size == len(archive) // 3
        download_bundle(Source.parse(server.address), tmp_path, silent)
    assert server.ranges == [None, f"bytes={len(archive) // 3}-"]
    assert (tmp_path / "random-weights").is_dir()


def test_a_complete_file_is_not_downloaded_again(archive, tmp_path):
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


def test_a_missing_server_is_reported_as_an_interrupted_download(archive, tmp_path):
    with serving(archive) as server:
        source = Source.parse(server.address)
    with pytest.raises(UserError, match="was interrupted"):
        download_bundle(source, tmp_path, silent)


@pytest.mark.parametrize(
    "address",
    [
        "",
        "https://example.org/model.zip",
        "https://example.org/model.zip#sha256=12",
        "http://example.org/model.zip#sha256=" + "0" * 64,
        "file:///model.zip#sha256=" + "0" * 64,
        "https://[example.org/model.zip#sha256=" + "0" * 64,
        "https://example.org:port/model.zip#sha256=" + "0" * 64,
        "https:///model.zip#sha256=" + "0" * 64,
        "http://127.0.0.1:99999/model.zip#sha256=" + "0" * 64,
        "https://example.org/a b.zip#sha256=" + "0" * 64,
        "https://example.org/\x1b[31m.zip#sha256=" + "0" * 64,
        "https://example.org/" + "a" * 3000 + "#sha256=" + "0" * 64,
    ],
)
def test_addresses_without_checksum_or_encryption_are_refused(address):
    with pytest.raises(UserError):
        Source.parse(address)


@pytest.mark.parametrize("stated", ["many", "-5", "1e3", "9" * 30, ""])
def test_an_invalid_content_length_is_reported_in_one_line(archive, tmp_path, stated):
    with serving(archive) as server:
        server.headers = {"Content-Length": stated}
        with pytest.raises(UserError, match=r"was interrupted|larger than any model"):
            download_bundle(Source.parse(server.address), tmp_path, silent)


def test_a_file_announced_larger_than_any_model_is_not_downloaded(archive, tmp_path):
    with serving(archive) as server:
        server.headers = {"Content-Length": str(1 << 40)}
        with pytest.raises(UserError, match="larger than any model"):
            download_bundle(Source.parse(server.address), tmp_path, silent)
    assert [path.stat().st_size for path in (tmp_path / ".downloads").iterdir()] == []


def test_a_download_that_never_ends_is_stopped(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, "_MAX_BYTES", len(archive) // 2)
    with serving(archive) as server:
        server.headers = {"Content-Length": None}
        with pytest.raises(UserError, match="larger than any model"):
            download_bundle(Source.parse(server.address), tmp_path, silent)
    assert sum(path.stat().st_size for path in (tmp_path / ".downloads").iterdir()) <= len(archive) // 2


def test_a_download_from_a_very_slow_server_is_stopped(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, "_SECONDS_OF_SLOWNESS", 0.5)
    with serving(archive) as server:
        server.trickles = 0.05
        with pytest.raises(UserError, match="is too slow"):
            download_bundle(Source.parse(server.address), tmp_path, silent)
        (part,) = (tmp_path / ".downloads").iterdir()
        # The downloaded part is kept, and the next call resumes from there.
        assert 0 < part.stat().st_size < 1000
        server.trickles = None
        download_bundle(Source.parse(server.address), tmp_path, silent)
    assert (tmp_path / "random-weights").is_dir()


def test_a_download_from_a_silent_server_is_stopped(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(downloading, "_SECONDS_OF_SILENCE", 0.5)
    with serving(archive) as server:
        server.waits_after = 1000
        with pytest.raises(UserError, match="was interrupted"):
            download_bundle(Source.parse(server.address), tmp_path, silent)


@pytest.mark.parametrize("target", ["http://example.org/model.zip", "file:///etc/passwd", "ftp://example.org/m.zip"])
def test_a_redirect_to_a_less_safe_address_is_not_followed(archive, tmp_path, target):
    with serving(archive) as server:
        server.leads_to = target
        with pytest.raises(UserError, match=r"redirects to|returned an error: 302"):
            download_bundle(Source.parse(server.address), tmp_path, silent)


def test_https_is_not_redirected_to_http_even_on_this_computer():
    refused: list[str] = []
    handler = downloading._SafeRedirects(refused.append)
    request = urllib.request.Request("https://example.org/model.zip")
    with pytest.raises(urllib.error.HTTPError):
        handler.redirect_request(request, None, 302, "Found", {}, "http://127.0.0.1:80/model.zip")
    assert refused == ["http://127.0.0.1:80/model.zip"]
    assert handler.redirect_request(request, None, 302, "Found", {}, "https://cdn.example.org/model.zip") is not None


def test_another_part_of_the_file_than_requested_is_refused(archive, tmp_path):
    with serving(archive) as server:
        source = Source.parse(server.address)
        (tmp_path / ".downloads").mkdir()
        (tmp_path / ".downloads" / f"{source.sha256}.zip").write_bytes(archive[:1000])
        server.headers = {"Content-Range": "bytes 5-9/10"}
        with pytest.raises(UserError, match="another part"):
            download_bundle(source, tmp_path, silent)
        server.headers = {}
        download_bundle(source, tmp_path, silent)
    assert (tmp_path / "random-weights").is_dir()


def test_a_server_whose_headers_never_end_is_given_up(tmp_path, monkeypatch):
    """It is never silent, so a limit of silence does not help."""
    monkeypatch.setattr(downloading, "_SECONDS_OF_SLOWNESS", 1.0)
    closing = threading.Event()

    def send_headers(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not closing.wait(0.05):
                connection.sendall(b"X")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=send_headers, args=(listener,))
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/model.zip#sha256={'0' * 64}"
        try:
            with pytest.raises(UserError, match="was interrupted: the server responds too slowly"):
                download_bundle(Source.parse(address), tmp_path, silent)
        finally:
            closing.set()
            thread.join()
