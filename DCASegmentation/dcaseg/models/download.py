"""Download of a model. It resumes after an interruption, and the file is accepted only if its SHA-256 is as expected.

The server is not trusted: the size and the duration of its answers are bounded, and it cannot redirect the download
from https to anything else.
"""

from __future__ import annotations

import os
import queue
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urlsplit

from ..checksums import compute_sha256
from ..errors import BundleError, OutputError, UserError, get_reason
from .user_models import add_bundle

_CHUNK = 1 << 18  # bytes
_SECONDS_OF_SILENCE = 30
# A server that sends a few bytes from time to time would never be silent.
_SECONDS_OF_SLOWNESS, _MIN_BYTES_PER_SECOND = 60.0, 1000.0  # bytes a second
_MAX_BYTES = 2 << 30
_MAX_ADDRESS_LENGTH = 2000
_ADDED = 0.98  # the fraction of the progress that downloading takes; the rest is unpacking


@dataclass(frozen=True)
class Source:
    """The address of a model's zip file, and the SHA-256 it must have (64 hexadecimal digits)."""

    url: str
    sha256: str

    @classmethod
    def parse(cls, address: str) -> Source:
        """Parse an address that ends in ``#sha256=...``, as in pip. Raises UserError for any other."""
        try:
            url, fragment = urldefrag(address.strip())
            allowed = _is_allowed(url)
        # Invalid brackets or an invalid port.
        except ValueError:
            url, fragment, allowed = address.strip()[:200], "", False
        found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        is_plain = all(33 <= ord(letter) < 127 for letter in url) and len(url) <= _MAX_ADDRESS_LENGTH
        if not allowed or not is_plain:
            shown = "".join(letter if letter.isprintable() else "?" for letter in url[:200]) or "Nothing"
            raise UserError(f"{shown} is not a URL that starts with https://.", "Copy the URL again.")
        if found is None:
            raise UserError(
                "The URL does not include the file's SHA-256.",
                "Add #sha256= and the checksum published by the model's author (64 digits and letters).",
            )
        return cls(url, found[1].lower())


def download_bundle(source: Source, models: Path, progress: Callable[[float, str], None]) -> Path:
    """Download a bundle's zip file and add it to ``models``; returns the folder of the bundle.

    After an interruption, the downloaded part is kept in ``models / ".downloads"`` and the next call resumes it.
    ``progress(fraction, message)`` is called for every part. Raises UserError if the file cannot be downloaded, has
    another checksum, or is not a bundle, and OutputError if it cannot be written.
    """
    part = models / ".downloads" / f"{source.sha256}.zip"
    refused_redirects: list[str] = []
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch(source.url, part, progress, refused_redirects.append)
        progress(_ADDED, "Checking the model")
        if compute_sha256(part) != source.sha256:
            part.unlink()
            raise BundleError(
                f"The file from {source.url} is not the expected one: its SHA-256 differs.",
                "It was deleted. Check the URL, or contact the model's author.",
            )
        folder = add_bundle(part, models)
        part.unlink()
    except urllib.error.HTTPError as error:
        if refused_redirects:
            raise UserError(
                f"{source.url} redirects to {refused_redirects[0][:200]}, which does not start with https://.",
                "The file was not downloaded. Ask the person who gave you the URL for another one.",
            ) from None
        raise UserError(f"{source.url} returned an error: {error.code} {error.reason}.", "Check the URL.") from None
    except InvalidURL as error:
        raise UserError(f"{source.url} is not a URL: {error}.", "Copy the URL again.") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"The download was interrupted: {reason}.",
            "Check the network connection and start the download again; it resumes where it stopped.",
        ) from None
    except OSError as error:
        raise OutputError(f"{part.parent} cannot be written to: {get_reason(error)}.", "Free some space.") from None
    return folder


def _is_allowed(url: str) -> bool:
    """Whether ``url`` is an https address, or http on this computer. Raises ValueError if it is not a URL."""
    parts = urlsplit(url)
    # Accessing the port validates it.
    has_host = bool(parts.hostname) and parts.port != 0
    is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return has_host and (parts.scheme == "https" or (is_local and parts.scheme == "http"))


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects only to addresses that ``Source`` allows; others are reported and end the download."""

    def __init__(self, refused: Callable[[str], None]) -> None:
        self._refused = refused

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        """The request for ``url``. Raises HTTPError if the address is not allowed."""
        try:
            schemes = (urlsplit(request.full_url).scheme, urlsplit(url).scheme)
            allowed = _is_allowed(url) and schemes != ("https", "http")
        except ValueError:
            allowed = False
        if not allowed:
            self._refused(url)
            raise urllib.error.HTTPError(request.full_url, code, message, headers, file)
        return super().redirect_request(request, file, code, message, headers, url)


def _fetch(url: str, part: Path, progress: Callable[[float, str], None], refused: Callable[[str], None]) -> None:
    """Download the missing bytes of ``part``; ``refused`` is called with the address of a refused redirect."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        https = urllib.request.HTTPSHandler(context=_create_ssl_context(url))
        opener = urllib.request.build_opener(_SafeRedirects(refused), https)
        answer = _get_response(lambda: opener.open(request, timeout=_SECONDS_OF_SILENCE))
    except urllib.error.HTTPError as error:
        # The server has no bytes beyond these: the file is complete.
        if have and error.code == 416:
            return
        raise
    with answer:
        continues = answer.status == 206
        have = have if continues else 0
        if continues and not _starts_at(answer.headers.get("Content-Range"), have):
            # The parts would not form the file.
            part.unlink()
            raise ConnectionError("the server sent another part of the file than requested")
        left = _parse_content_length(answer.headers.get("Content-Length"))
        if have + left > _MAX_BYTES:
            raise _make_size_error(url)
        # Accepts no more than was announced, and a bounded number of bytes in any case.
        most = have + left if left else _MAX_BYTES
        with part.open("ab" if continues else "wb") as file:
            done = have
            since, before = time.monotonic(), done
            # A normal read would wait until the whole chunk has arrived; read1 returns what is available.
            while chunk := answer.read1(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if done > most:
                    file.truncate(have)
                    raise _make_size_error(url)
                if (seconds := time.monotonic() - since) > _SECONDS_OF_SLOWNESS:
                    if done - before < _MIN_BYTES_PER_SECOND * seconds:
                        raise ConnectionError("the server is too slow")
                    since, before = time.monotonic(), done
                progress(_ADDED * done / max(have + left, done), f"Downloading: {done / 1e6:.1f} MB")
    if left and done < have + left:
        raise ConnectionError(f"only {done} of {have + left} bytes arrived")


def _get_response(ask: Callable[[], Any]) -> Any:
    """The answer of the server, up to its headers, which it may send so slowly that it is never silent for long."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def wait() -> None:
        try:
            answers.put(ask())
        # It is raised again below.
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=wait, daemon=True).start()
    try:
        answer = answers.get(timeout=_SECONDS_OF_SLOWNESS)
    except queue.Empty:
        raise TimeoutError("the server responds too slowly") from None
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _parse_content_length(stated: str | None) -> int:
    """The length stated in a header, 0 if there is none. Raises ConnectionError if it is not a number."""
    if stated is None:
        return 0
    if not stated.strip().isdecimal() or len(stated) > 20:
        raise ConnectionError("the server does not report the size of the file")
    return int(stated)


def _starts_at(stated: str | None, byte: int) -> bool:
    """Whether a Content-Range starts at ``byte``. A missing one is accepted, as the checksum decides."""
    return stated is None or re.match(rf"bytes {byte}-", stated.strip()) is not None


def _make_size_error(url: str) -> UserError:
    return UserError(f"The file from {url} is larger than any model.", "Check the URL.")


def _create_ssl_context(url: str) -> ssl.SSLContext | None:
    """The certificates: certifi's if it is installed, as in Slicer's Python, else the system's."""
    if urlsplit(url).scheme != "https":
        return None
    try:
        import certifi
    except ImportError:
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())
