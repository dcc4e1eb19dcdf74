"""The weight file as bytes: is it the one the metadata describe? Knows no torch, so that Slicer can ask too."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ..errors import BundleError
from .metadata import Weights
from .metadata_reading import GET_AGAIN


def read_checked(folder: Path, weights: Weights) -> bytes:
    """The bytes of the weight file, if they are those the metadata describe. Raises BundleError otherwise."""
    path = folder / weights.file
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BundleError(f"The bundle {folder} has no {weights.file}.", GET_AGAIN) from None
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.", "Check the file and its permissions.") from None
    if len(content) != weights.bytes:
        raise BundleError(f"{path} has {len(content)} bytes, not {weights.bytes}: it is incomplete.", GET_AGAIN)
    if hashlib.sha256(content).hexdigest() != weights.sha256:
        raise BundleError(f"{path} is not the file its metadata describe: the SHA-256 checksum differs.", GET_AGAIN)
    return content
