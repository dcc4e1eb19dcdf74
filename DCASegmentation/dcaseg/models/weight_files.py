"""Access to the files of a bundle: regular files inside the bundle, with the size and checksum stated in its metadata.

This file does not import torch, so that Slicer can use it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..checksums import compute_sha256
from ..errors import BundleError, get_reason
from .metadata import Weights

GET_AGAIN = "Download or export the model bundle again."
"""The remedy for a damaged bundle."""


def open_regular(folder: Path, name: str) -> BinaryIO:
    """Open the file ``name`` (a path with slashes) of the bundle ``folder`` for reading.

    Raises BundleError unless it exists, is a regular file, and is reached without links. A link may lead anywhere, a
    device may never end, and a named pipe blocks.
    """
    path = folder / name
    for part in (path, *path.parents[: name.count("/")]):
        if part.is_symlink():
            raise BundleError(
                f"The bundle {folder} has a link instead of {part.relative_to(folder)}.",
                "Copy the model's files themselves into the folder.",
            )
    flags = os.O_RDONLY
    for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC"):
        flags |= getattr(os, flag, 0)
    try:
        file = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise BundleError(f"The bundle {folder} has no {name}.", GET_AGAIN) from None
        raise BundleError(
            f"{path} cannot be read: {get_reason(error)}.", "Check the file and its permissions."
        ) from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BundleError(f"{path} is not a regular file.", GET_AGAIN)
    return file


def open_described(folder: Path, weights: Weights) -> BinaryIO:
    """Open the weight file, at its start, after checking its size and checksum against the metadata.

    It is read in small parts, and only if its size is right. Raises BundleError otherwise.
    """
    path = folder / weights.file
    file = open_regular(folder, weights.file)
    try:
        size = os.fstat(file.fileno()).st_size
        if size != weights.bytes:
            raise BundleError(f"{path} has {size} bytes, not {weights.bytes}: it is incomplete.", GET_AGAIN)
        if compute_sha256(file) != weights.sha256:
            raise BundleError(
                f"{path} is not the file described in its metadata: the SHA-256 checksum differs.", GET_AGAIN
            )
        file.seek(0)
    except OSError as error:
        file.close()
        raise BundleError(
            f"{path} cannot be read: {get_reason(error)}.", "Check the file and its permissions."
        ) from None
    except BaseException:
        file.close()
        raise
    return file


def require_described(folder: Path, weights: Weights) -> None:
    """Raise BundleError unless the weight file is the one described in the metadata."""
    open_described(folder, weights).close()
