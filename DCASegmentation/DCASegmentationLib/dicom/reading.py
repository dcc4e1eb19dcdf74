"""A volume from files of one series that lie anywhere, under any name."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import ImageError
from ..imaging.writing import temporary_folder


@contextmanager
def gathered(files: Sequence[Path], name: str) -> Iterator[Path]:
    """Yields a temporary folder called ``name`` that links to ``files`` and nothing else, in their order.

    So that the one reader of DICOM folders reads them, whatever lies beside them, however long their paths are and in
    whatever encoding their names. Raises ImageError where a file is not there any more or cannot be read.
    """
    with temporary_folder("dca-series") as temporary:
        folder = temporary / (_plain(name) or "series")
        folder.mkdir()
        for number, file in enumerate(files):
            link = folder / f"{number:06d}.dcm"
            _require_readable(file)
            try:
                link.symlink_to(os.path.abspath(file))  # noqa: PTH100 - resolve() would follow the archive's own links
            except OSError:
                # Windows asks for a privilege.
                shutil.copyfile(file, link)
        yield folder


def _require_readable(file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise ImageError(
            f"{file.name} cannot be read: {error.strerror or error}.", "Check the archive and its permissions."
        ) from None


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in name)[:60].strip("_")
