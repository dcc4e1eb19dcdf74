"""Adding a model bundle to the user's own models, and removing it. Without torch: Slicer does it in its own process."""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from ..errors import BundleError, OutputError
from .finding import own_models
from .metadata import METADATA
from .metadata_reading import GET_AGAIN, read_metadata
from .weight_file import read_checked

_MOST_FILES = 1000
_MOST_BYTES = 8 << 30


def add_bundle(source: Path, models: Path | None = None) -> Path:
    """Copy the bundle in ``source`` (a folder or a zip file) into ``models``, checked; returns its new folder.

    ``models`` is the folder of the user's own models (~/.dca/models) if not given. The bundle may lie in the zip file
    itself or in the one folder there. Nothing is left behind when it is refused.

    Raises BundleError for what is no whole bundle (checksum included) or is there already, OutputError where it cannot
    be written.
    """
    models = own_models() if models is None else models
    try:
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".adding-", dir=models) as temporary:
            bundle = _taken_in(source, Path(temporary))
            metadata = read_metadata(bundle)
            read_checked(bundle, metadata.weights)
            target = models / (re.sub(r"[^\w.-]+", "-", metadata.name).strip(".-") or "model")
            if target.exists():
                raise BundleError(
                    f"A model named {metadata.name} is there already.", "Delete it first if you want to replace it."
                )
            bundle.replace(target)
    except OSError as error:
        raise OutputError(
            f"The model could not be copied to {models}: {error.strerror or error}.",
            "Free some space, or check the folder's permissions.",
        ) from None
    return target


def remove_bundle(folder: Path, models: Path | None = None) -> None:
    """Delete a bundle of the user's own models. Raises BundleError for any other folder, OutputError on failure."""
    models = own_models() if models is None else models
    if folder.parent.resolve() != models.resolve() or not (folder / METADATA).is_file():
        raise BundleError(f"{folder} is none of your own models.", f"Only models in {models} can be deleted here.")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise OutputError(f"{folder} could not be deleted: {error.strerror or error}.", "Delete it yourself.") from None


def _taken_in(source: Path, temporary: Path) -> Path:
    """A copy of the bundle in ``source`` below ``temporary``."""
    if source.is_dir():
        # Read first: a folder that is no bundle may be as large as a disk.
        read_metadata(source)
        copy = temporary / "bundle"
        shutil.copytree(source, copy)
        return copy
    if not zipfile.is_zipfile(source):
        raise BundleError(f"{source} is neither a folder nor a zip file.", "Choose a model bundle, as a folder or zip.")
    unpacked = temporary / "unpacked"
    unpacked.mkdir()
    try:
        with zipfile.ZipFile(source) as archive:
            for entry in _safe_entries(archive, source):
                archive.extract(entry, unpacked)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError):
        raise BundleError(f"{source} is damaged or encrypted.", GET_AGAIN) from None
    inner = [unpacked, *(path for path in unpacked.iterdir() if path.is_dir())]
    for folder in inner:
        if (folder / METADATA).is_file():
            return folder
    raise BundleError(f"{source} holds no model bundle: there is no {METADATA} in it.", "Choose another file.")


def _safe_entries(archive: zipfile.ZipFile, source: Path) -> list[zipfile.ZipInfo]:
    """All entries, if none of them would be written outside of its folder, is a link, or fills the disk."""
    entries = archive.infolist()
    if len(entries) > _MOST_FILES or sum(entry.file_size for entry in entries) > _MOST_BYTES:
        raise BundleError(f"{source} is larger than any model bundle.", "Choose another file.")
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        leaves = name.is_absolute() or ".." in name.parts or ":" in name.parts[0] if name.parts else True
        if leaves or stat.S_ISLNK(entry.external_attr >> 16):
            raise BundleError(
                f"{source} was not unpacked: '{entry.filename}' in it would leave its folder.",
                "Do not use this file unless you trust who made it.",
            )
    return entries
