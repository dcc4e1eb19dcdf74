"""A model from the network: resumed where it broke off, and taken only if its SHA-256 is the one expected.

The server is not trusted: what it sends is bounded in size and must keep coming, and it cannot lead the download from
https to anything else.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL
from pathlib import Path
from typing import Any
from urllib.parse import urldefrag, urlsplit

from ..errors import BundleError, OutputError, UserError
from .user_models import add_bundle

_CHUNK = 1 << 18  # bytes
_SECONDS_OF_SILENCE = 30
# A server that sends a few bytes now and then would never be silent.
_SECONDS_OF_SLOWNESS, _SLOWEST = 60.0, 1000.0  # bytes a second
_MOST_BYTES = 2 << 30
_MOST_ADDRESS = 2000
_ADDED = 0.98  # share of the progress after which only unpacking is left


@dataclass(frozen=True)
class Source:
    """Where a model's zip file is, and the SHA-256 it must have (64 hexadecimal digits)."""

    url: str
    sha256: str

    @classmethod
    def parse(cls, address: str) -> Source:
        """From an address that ends in ``#sha256=...``, as pip writes them. Raises UserError for any other."""
        try:
            url, fragment = urldefrag(address.strip())
            allowed = _is_allowed(url)
        # Brackets or a port that are none.
        except ValueError:
            url, fragment, allowed = address.strip()[:200], "", False
        found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        is_plain = all(33 <= ord(letter) < 127 for letter in url) and len(url) <= _MOST_ADDRESS
        if not allowed or not is_plain:
            shown = "".join(letter if letter.isprintable() else "?" for letter in url[:200]) or "Nothing"
            raise UserError(f"{shown} is no address that starts with https://.", "Copy it once more.")
        if found is None:
            raise UserError(
                "The address does not tell the file's SHA-256.",
                "Add #sha256= and the checksum that the model's author gives, 64 digits and letters.",
            )
        return cls(url, found[1].lower())


def download_bundle(source: Source, models: Path, progress: Callable[[float, str], None]) -> Path:
    """Fetch a bundle's zip file and add it to ``models``; returns its folder.

    What was fetched before an interruption is kept in ``models / ".downloads"`` and continued by the next call.
    ``progress(fraction, message)`` is called for every part. Raises UserError where the file cannot be had, has
    another checksum, or is no bundle.
    """
    part = models / ".downloads" / f"{source.sha256}.zip"
    lead_elsewhere: list[str] = []
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch(source.url, part, progress, lead_elsewhere.append)
        progress(_ADDED, "Checking the model")
        if _sha256(part) != source.sha256:
            part.unlink()
            raise BundleError(
                f"The file from {source.url} is not the one expected: its SHA-256 differs.",
                "It was deleted. Check the address, or tell the model's author.",
            )
        folder = add_bundle(part, models)
        part.unlink()
    except urllib.error.HTTPError as error:
        if lead_elsewhere:
            raise UserError(
                f"{source.url} leads to {lead_elsewhere[0][:200]}, which does not start with https://.",
                "Tell who gave you the address; the file was not fetched.",
            ) from None
        raise UserError(f"{source.url} answered: {error.code} {error.reason}.", "Check the address.") from None
    except InvalidURL as error:
        raise UserError(f"{source.url} is no address: {error}.", "Copy it once more.") from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"The download broke off: {reason}.", "Check the network and press Download again: it goes on where it was."
        ) from None
    except OSError as error:
        raise OutputError(
            f"{part.parent} cannot be written to: {error.strerror or error}.", "Free some space."
        ) from None
    return folder


def _is_allowed(url: str) -> bool:
    """Whether ``url`` is one of https, or of http on this computer. Raises ValueError where it is none."""
    parts = urlsplit(url)
    # Looking at the port checks it.
    has_host = bool(parts.hostname) and parts.port != 0
    is_local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    return has_host and (parts.scheme == "https" or (is_local and parts.scheme == "http"))


class _SameSafety(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to an address that could have been given; others are noted and end the download."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note

    def redirect_request(self, request: Any, file: Any, code: int, message: str, headers: Any, url: str) -> Any:
        try:
            schemes = (urlsplit(request.full_url).scheme, urlsplit(url).scheme)
            allowed = _is_allowed(url) and schemes != ("https", "http")
        except ValueError:
            allowed = False
        if not allowed:
            self._note(url)
            raise urllib.error.HTTPError(request.full_url, code, message, headers, file)
        return super().redirect_request(request, file, code, message, headers, url)


def _fetch(url: str, part: Path, progress: Callable[[float, str], None], note: Callable[[str], None]) -> None:
    """Bring ``part`` to its full length, from the byte it has reached; ``note`` gets an address that is refused."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        opener = urllib.request.build_opener(_SameSafety(note), urllib.request.HTTPSHandler(context=_certificates(url)))
        answer = opener.open(request, timeout=_SECONDS_OF_SILENCE)
    except urllib.error.HTTPError as error:
        # Nothing lies beyond the last byte: the file is whole already.
        if have and error.code == 416:
            return
        raise
    with answer:
        continues = answer.status == 206
        have = have if continues else 0
        if continues and not _begins_at(answer.headers.get("Content-Range"), have):
            # What would be put together is another file.
            part.unlink()
            raise ConnectionError("the server sent another part of the file than was asked for")
        left = _length(answer.headers.get("Content-Length"))
        if have + left > _MOST_BYTES:
            raise _too_large(url)
        # No more than was announced is taken, and nothing without end.
        most = have + left if left else _MOST_BYTES
        with part.open("ab" if continues else "wb") as file:
            done = have
            since, before = time.monotonic(), done
            # One read may wait for each byte of a part: what has come is given at once.
            while chunk := answer.read1(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                if done > most:
                    file.truncate(have)
                    raise _too_large(url)
                if (seconds := time.monotonic() - since) > _SECONDS_OF_SLOWNESS:
                    if done - before < _SLOWEST * seconds:
                        raise ConnectionError("the server sends too slowly")
                    since, before = time.monotonic(), done
                progress(_ADDED * done / max(have + left, done), f"Downloading: {done / 1e6:.1f} MB")
    if left and done < have + left:
        raise ConnectionError(f"{done} of {have + left} bytes came")


def _length(stated: str | None) -> int:
    """The length that a header states, 0 where there is none. Raises ConnectionError where it is no number."""
    if stated is None:
        return 0
    if not stated.strip().isdecimal() or len(stated) > 20:
        raise ConnectionError("the server does not say how long the file is")
    return int(stated)


def _begins_at(stated: str | None, byte: int) -> bool:
    """Whether a Content-Range says so; servers that leave it out are believed, as the checksum decides."""
    return stated is None or re.match(rf"bytes {byte}-", stated.strip()) is not None


def _too_large(url: str) -> UserError:
    return UserError(f"The file from {url} is larger than any model.", "Check the address.")


def _certificates(url: str) -> ssl.SSLContext | None:
    """Slicer's Python brings its own certificates along, as certifi; Python outside uses the system's."""
    if urlsplit(url).scheme != "https":
        return None
    try:
        import certifi
    except ImportError:
        return ssl.create_default_context()
    return ssl.create_default_context(cafile=os.environ.get("SSL_CERT_FILE") or certifi.where())


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
