"""The files of a bundle as bytes: regular files in the bundle itself, of the size and checksum that its metadata state.

Knows no torch, so that Slicer can ask too.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import BundleError
from .metadata import Weights

GET_AGAIN = "Get the model bundle again."
_CHUNK = 1 << 20


def open_regular(folder: Path, name: str) -> BinaryIO:
    """The file ``name`` (a path with slashes) of the bundle ``folder``, open to be read.

    Raises BundleError unless it is there, a regular file, and reached without a link: a link may lead anywhere, a
    device never ends, a named pipe waits.
    """
    path = folder / name
    for part in (path, *path.parents[: name.count("/")]):
        if part.is_symlink():
            raise BundleError(
                f"The bundle {folder} has a link in the place of {part.relative_to(folder)}.",
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
        raise BundleError(f"{path} cannot be read: {error.strerror}.", "Check the file and its permissions.") from None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BundleError(f"{path} is no regular file.", GET_AGAIN)
    return file


def open_described(folder: Path, weights: Weights) -> BinaryIO:
    """The weight file, open at its start, if size and checksum are those that the metadata state.

    It is read in small parts and only if its size is right. Raises BundleError otherwise.
    """
    path = folder / weights.file
    file = open_regular(folder, weights.file)
    try:
        size = os.fstat(file.fileno()).st_size
        if size != weights.bytes:
            raise BundleError(f"{path} has {size} bytes, not {weights.bytes}: it is incomplete.", GET_AGAIN)
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
        if digest.hexdigest() != weights.sha256:
            raise BundleError(f"{path} is not the file its metadata describe: the SHA-256 checksum differs.", GET_AGAIN)
        file.seek(0)
    except OSError as error:
        file.close()
        raise BundleError(f"{path} cannot be read: {error.strerror}.", "Check the file and its permissions.") from None
    except BaseException:
        file.close()
        raise
    return file


def require_described(folder: Path, weights: Weights) -> None:
    """Raises BundleError unless the weight file is the one that the metadata describe."""
    open_described(folder, weights).close()
