"""A model from the network: resumed where it broke off, and taken only if its SHA-256 is the one expected.

Run as ``python -m DCASegmentationLib.bundle.downloading ADDRESS`` it says how it goes on its standard output, in the
events of ``worker_protocol`` (progress, then nothing more or an error), and ends with exit code 0 when the model is
there. The module runs it so: Python's threads stand still while Slicer's own event loop waits.
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

from ..errors import BundleError, OutputError, UserError
from ..worker_protocol import Failure, Progress, encode
from .adding import add_bundle
from .finding import own_models

RUN = "download"  # the id of its events

_CHUNK = 1 << 18  # bytes
_SECONDS_OF_SILENCE = 30
_ADDED = 0.98  # share of the progress after which only unpacking is left


@dataclass(frozen=True)
class Source:
    """Where a model's zip file is, and the SHA-256 it must have (64 hexadecimal digits)."""

    url: str
    sha256: str

    @classmethod
    def parse(cls, address: str) -> Source:
        """From an address that ends in ``#sha256=...``, as pip writes them. Raises UserError for any other."""
        url, fragment = urldefrag(address.strip())
        found = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
        is_local = urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
        if urlsplit(url).scheme != "https" and not (is_local and urlsplit(url).scheme == "http"):
            raise UserError(f"{url or 'Nothing'} is no address that starts with https://.", "Copy it once more.")
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
    try:
        part.parent.mkdir(parents=True, exist_ok=True)
        _fetch(source.url, part, progress)
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
        raise UserError(f"{source.url} answered: {error.code} {error.reason}.", "Check the address.") from None
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


def _fetch(url: str, part: Path, progress: Callable[[float, str], None]) -> None:
    """Bring ``part`` to its full length, from the byte it has reached."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=_SECONDS_OF_SILENCE, context=_certificates(url))
    except urllib.error.HTTPError as error:
        # Nothing lies beyond the last byte: the file is whole already.
        if have and error.code == 416:
            return
        raise
    with answer:
        continues = answer.status == 206
        have = have if continues else 0
        left = int(answer.headers.get("Content-Length") or 0)
        with part.open("ab" if continues else "wb") as file:
            done = have
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                done += len(chunk)
                progress(_ADDED * done / max(have + left, done), f"Downloading: {done / 1e6:.1f} MB")
    if left and done < have + left:
        raise ConnectionError(f"{done} of {have + left} bytes came")


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


def main(address: str) -> int:
    """Download for a process that reads the events; returns the exit code. Ends when its standard input does."""
    threading.Thread(target=_end_with_input, daemon=True).start()

    def send(event: Progress | Failure) -> None:
        sys.stdout.buffer.write(encode(event))
        sys.stdout.buffer.flush()

    try:
        download_bundle(Source.parse(address), own_models(), lambda *how: send(Progress(RUN, *how)))
    except UserError as error:
        send(Failure(RUN, error.problem, error.remedy))
        return 1
    return 0


def _end_with_input() -> None:
    # Whoever started this may have started a launcher before it, and can end that alone.
    sys.stdin.buffer.read()
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
