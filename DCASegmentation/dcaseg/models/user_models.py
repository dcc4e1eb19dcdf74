"""Adds bundles to the user's own models and removes them, without torch, as Slicer does this in its own process."""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from ..errors import BundleError, OutputError, get_reason
from ..imaging.writers import temporary_folder
from .metadata import METADATA, Metadata
from .metadata_reader import GET_AGAIN, MAX_METADATA_BYTES, parse_metadata, read_metadata
from .store import find_shipped_bundles, get_user_models_folder
from .weight_files import require_described

_MAX_FILES = 1000
_MAX_DEPTH = 8  # folders within each other
# For what a bundle may contain besides its weights: figures, curves, a paper.
_MAX_OTHER_BYTES = 200 << 20
_CHUNK = 1 << 18
_MAX_PART_BYTES = 4 << 20


def add_bundle(source: Path, models: Path | None = None) -> Path:
    """Check the bundle in ``source`` (a folder or a zip file) and copy it into ``models``; returns its new folder.

    ``models`` is by default the folder of the user's own models (~/.dca/models). In a zip file, the bundle may be at
    the top or in the one folder there. The metadata are read, and the number and sizes of the files are compared with
    them, before anything is copied. If the bundle is refused, nothing is left behind.

    Raises BundleError if it is not a complete bundle (checksum included), is already installed or has the name of a
    model shipped with the program, and OutputError if it cannot be written.
    """
    models = get_user_models_folder() if models is None else models
    try:
        models.mkdir(parents=True, exist_ok=True)
        with temporary_folder("adding", models) as temporary:
            bundle, metadata = _copy_bundle(source, temporary)
            require_described(bundle, metadata.weights)
            target = models / (re.sub(r"[^\w.-]+", "-", metadata.name)[:100].strip(".-") or "model")
            if target.name in {shipped.name for shipped in find_shipped_bundles()}:
                raise BundleError(
                    f"A model named {metadata.name} is shipped with the program, and would be hidden by this one.",
                    "Export it under another name (dca bundle export --name), or ask its author to do so.",
                )
            if os.path.lexists(target):
                raise BundleError(
                    f"A model named {metadata.name} is already installed.", "Delete it first if you want to replace it."
                )
            bundle.replace(target)
    except OSError as error:
        raise OutputError(
            f"The model could not be copied to {models}: {get_reason(error)}.",
            "Free some space, or check the folder's permissions.",
        ) from None
    return target


def remove_bundle(folder: Path, models: Path | None = None) -> None:
    """Delete one of the user's own models. Raises BundleError for any other folder, OutputError if it fails."""
    models = get_user_models_folder() if models is None else models
    if folder.parent.resolve() != models.resolve() or not (folder / METADATA).is_file():
        raise BundleError(f"{folder} is not one of your own models.", f"Only models in {models} can be deleted here.")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(
            f"{folder} could not be deleted: {get_reason(error)}.", "Delete the folder by hand."
        ) from None


def _copy_bundle(source: Path, temporary: Path) -> tuple[Path, Metadata]:
    """A copy of the bundle in ``source`` in the folder ``temporary``, and its metadata."""
    copy = temporary / "bundle"
    if source.is_dir():
        # The metadata first: a folder that is not a bundle may be as large as a disk.
        metadata = read_metadata(source)
        sizes = _list_regular_files(source)
        _require_bounded(sizes, metadata, source)
        for name in sizes:
            with _open_without_links(source / name) as file:
                _copy(file, copy / name, sizes[name])
        return copy, metadata
    # A pipe would never end.
    if not source.is_file() or not zipfile.is_zipfile(source):
        raise BundleError(f"{source} is neither a folder nor a zip file.", "Choose a model bundle, as a folder or zip.")
    try:
        with source.open("rb") as file, zipfile.ZipFile(_BoundedFile(file)) as archive:
            entries = _list_safe_entries(archive, source)
            inside, metadata = _find_bundle(archive, entries, source)
            selected = {name.removeprefix(inside): entry for name, entry in entries.items() if name.startswith(inside)}
            _require_bounded({name: entry.file_size for name, entry in selected.items()}, metadata, source)
            for name, entry in selected.items():
                with archive.open(entry) as content:
                    _copy(content, copy / name, entry.file_size)
    # zlib.error is not one of zipfile's own errors.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error):
        raise BundleError(f"{source} is damaged or encrypted.", GET_AGAIN) from None
    return copy, metadata


def _list_regular_files(folder: Path) -> dict[str, int]:
    """The names and sizes of all files in ``folder``. Raises BundleError for links, devices, and too many files."""
    sizes: dict[str, int] = {}
    pending = [(folder, 0)]
    while pending:
        subfolder, depth = pending.pop()
        with os.scandir(subfolder) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(folder).as_posix()
                if entry.is_dir(follow_symlinks=False) and depth < _MAX_DEPTH:
                    pending.append((Path(entry.path), depth + 1))
                elif entry.is_file(follow_symlinks=False):
                    sizes[name] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise BundleError(
                        f"{folder} was not copied: '{name}' in it is a link, a device, or a deeply nested folder.",
                        "Choose a folder that contains the model's files themselves.",
                    )
                if len(sizes) + len(pending) > _MAX_FILES:
                    raise BundleError(f"{folder} has more files than any model bundle.", "Choose another folder.")
    return sizes


def _require_bounded(sizes: dict[str, int], metadata: Metadata, source: Path) -> None:
    """Raise BundleError unless the weights have the size stated in the metadata and the other files are small."""
    weights = metadata.weights
    if sizes.get(weights.file, weights.bytes) != weights.bytes:
        raise BundleError(
            f"{weights.file} in {source} has {sizes[weights.file]} bytes, not {weights.bytes}: it is incomplete.",
            GET_AGAIN,
        )
    if sum(sizes.values()) - weights.bytes > _MAX_OTHER_BYTES:
        raise BundleError(f"{source} is larger than any model bundle.", "Choose another file.")


def _list_safe_entries(archive: zipfile.ZipFile, source: Path) -> dict[str, zipfile.ZipInfo]:
    """All files by name. Raises BundleError if one is a link or would be written outside of the target folder."""
    entries = archive.infolist()
    if len(entries) > _MAX_FILES:
        raise BundleError(f"{source} has more files than any model bundle.", "Choose another file.")
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        is_outside = name.is_absolute() or ".." in name.parts or ":" in name.parts[0] if name.parts else True
        if is_outside or "\0" in entry.filename or stat.S_ISLNK(entry.external_attr >> 16):
            raise BundleError(
                f"{source} was not unpacked: '{entry.filename}' in it would be written outside of its folder.",
                "Do not use this file unless you trust who made it.",
            )
        # With other compression types, a few bytes may expand to any number at once.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotImplementedError
    return {entry.filename.replace("\\", "/"): entry for entry in entries if not entry.is_dir()}


def _find_bundle(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], source: Path) -> tuple[str, Metadata]:
    """The folder in the zip file that contains the bundle ("" or "folder/"), and its metadata."""
    candidates = [name.removesuffix(METADATA) for name in entries if name.endswith(METADATA)]
    for inside in sorted(candidates, key=len):
        if inside.count("/") <= 1 and (not inside or inside.endswith("/")):
            if entries[inside + METADATA].file_size > MAX_METADATA_BYTES:
                raise BundleError(f"The metadata in {source} is larger than that of any model.", GET_AGAIN)
            return inside, parse_metadata(archive.read(entries[inside + METADATA]), source)
    raise BundleError(f"{source} does not contain a model bundle: it has no {METADATA}.", "Choose another file.")


def _open_without_links(path: Path) -> IO[bytes]:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "rb")


def _copy(source: IO[bytes], target: Path, size: int) -> None:
    """Copy ``size`` bytes, even if ``source`` has more."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while size and (chunk := source.read(min(size, _CHUNK))):
            file.write(chunk)
            size -= len(chunk)


class _BoundedFile:
    """A file that refuses to read more bytes at once than the directory and headers of a bundle's zip file need.

    ``zipfile`` reads the directory of a zip file as a whole, however large the file claims it is.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, count: int = -1) -> bytes:
        """Read ``count`` bytes. Raises BadZipFile if they exceed the limit."""
        if count > _MAX_PART_BYTES:
            raise zipfile.BadZipFile("too large a part")
        content = self._file.read(_MAX_PART_BYTES + 1 if count < 0 else count)
        if len(content) > _MAX_PART_BYTES:
            raise zipfile.BadZipFile("too large a part")
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position in the file, as ``io.IOBase.seek``."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The position in the file."""
        return self._file.tell()

    def seekable(self) -> bool:
        """True."""
        return True
