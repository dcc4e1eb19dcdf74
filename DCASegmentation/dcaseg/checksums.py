"""SHA-256 checksums of files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

_CHUNK = 1 << 20


def compute_sha256(file: Path | BinaryIO) -> str:
    """Compute the SHA-256 checksum, in hexadecimal, of a file or of the rest of an open one, in little memory."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return compute_sha256(stream)
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
