"""Adding a model bundle to the user's own models, and removing it. Without torch: Slicer does it in its own process."""

from __future__ import annotations

import os
import re
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO

from ..errors import BundleError, OutputError
from ..imaging.writers import temporary_folder
from .metadata import METADATA, Metadata
from .metadata_reader import GET_AGAIN, MOST_METADATA_BYTES, parse_metadata, read_metadata
from .store import own_models, shipped_bundles
from .weight_files import require_described
from .weight_headers import Bounded

_MOST_FILES = 1000
_DEEPEST = 8  # folders within each other
# What a bundle may hold beside its weights: figures, curves, a paper.
_MOST_OTHER_BYTES = 200 << 20
_CHUNK = 1 << 18


def add_bundle(source: Path, models: Path | None = None) -> Path:
    """Copy the bundle in ``source`` (a folder or a zip file) into ``models``, checked; returns its new folder.

    ``models`` is the folder of the user's own models (~/.dca/models) if not given. The bundle may lie in the zip file
    itself or in the one folder there. Before anything is copied, its metadata are read, and the number and sizes of
    its files compared with them. Nothing is left behind when it is refused.

    Raises BundleError for what is no whole bundle (checksum included), is there already or has the name of a model
    that came with the program, OutputError where it cannot be written.
    """
    models = own_models() if models is None else models
    try:
        models.mkdir(parents=True, exist_ok=True)
        with temporary_folder("adding", models) as temporary:
            bundle, metadata = _taken_in(source, temporary)
            require_described(bundle, metadata.weights)
            target = models / (re.sub(r"[^\w.-]+", "-", metadata.name)[:100].strip(".-") or "model")
            if target.name in {shipped.name for shipped in shipped_bundles()}:
                raise BundleError(
                    f"A model named {metadata.name} came with the program, and would be hidden by this one.",
                    "Ask for a model of another name, or change the name in its metadata.",
                )
            if os.path.lexists(target):
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


def _taken_in(source: Path, temporary: Path) -> tuple[Path, Metadata]:
    """A copy of the bundle in ``source`` below ``temporary``, and its metadata."""
    copy = temporary / "bundle"
    if source.is_dir():
        # Read first: a folder that is no bundle may be as large as a disk.
        metadata = read_metadata(source)
        sizes = _regular_files(source)
        _require_bounded(sizes, metadata, source)
        for name in sizes:
            with _open_no_link(source / name) as file:
                _copy(file, copy / name, sizes[name])
        return copy, metadata
    if not zipfile.is_zipfile(source):
        raise BundleError(f"{source} is neither a folder nor a zip file.", "Choose a model bundle, as a folder or zip.")
    try:
        with source.open("rb") as file, zipfile.ZipFile(Bounded(file)) as archive:
            entries = _safe_entries(archive, source)
            inside, metadata = _described(archive, entries, source)
            chosen = {name.removeprefix(inside): entry for name, entry in entries.items() if name.startswith(inside)}
            _require_bounded({name: entry.file_size for name, entry in chosen.items()}, metadata, source)
            for name, entry in chosen.items():
                with archive.open(entry) as content:
                    _copy(content, copy / name, entry.file_size)
    # zlib.error is none of zipfile's own.
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error):
        raise BundleError(f"{source} is damaged or encrypted.", GET_AGAIN) from None
    return copy, metadata


def _regular_files(folder: Path) -> dict[str, int]:
    """Names and sizes of all files in ``folder``. Raises BundleError for links and devices, and for very many files."""
    found: dict[str, int] = {}
    waiting = [(folder, 0)]
    while waiting:
        place, depth = waiting.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(folder).as_posix()
                if entry.is_dir(follow_symlinks=False) and depth < _DEEPEST:
                    waiting.append((Path(entry.path), depth + 1))
                elif entry.is_file(follow_symlinks=False):
                    found[name] = entry.stat(follow_symlinks=False).st_size
                else:
                    raise BundleError(
                        f"{folder} was not copied: '{name}' in it is a link, a device, or a folder far within others.",
                        "Choose a folder with the model's files themselves.",
                    )
                if len(found) + len(waiting) > _MOST_FILES:
                    raise BundleError(f"{folder} has more files than any model bundle.", "Choose another folder.")
    return found


def _require_bounded(sizes: dict[str, int], metadata: Metadata, source: Path) -> None:
    """Raises BundleError unless the weights have the size that the metadata state, and the rest a sane one."""
    weights = metadata.weights
    if sizes.get(weights.file, weights.bytes) != weights.bytes:
        raise BundleError(
            f"{weights.file} in {source} has {sizes[weights.file]} bytes, not {weights.bytes}: it is incomplete.",
            GET_AGAIN,
        )
    if sum(sizes.values()) - weights.bytes > _MOST_OTHER_BYTES:
        raise BundleError(f"{source} is larger than any model bundle.", "Choose another file.")


def _safe_entries(archive: zipfile.ZipFile, source: Path) -> dict[str, zipfile.ZipInfo]:
    """All files by name, if none of them would be written outside of its folder, is a link, or is packed unusually."""
    entries = archive.infolist()
    if len(entries) > _MOST_FILES:
        raise BundleError(f"{source} has more files than any model bundle.", "Choose another file.")
    for entry in entries:
        name = PurePosixPath(entry.filename.replace("\\", "/"))
        leaves = name.is_absolute() or ".." in name.parts or ":" in name.parts[0] if name.parts else True
        if leaves or "\0" in entry.filename or stat.S_ISLNK(entry.external_attr >> 16):
            raise BundleError(
                f"{source} was not unpacked: '{entry.filename}' in it would leave its folder.",
                "Do not use this file unless you trust who made it.",
            )
        # Of the others, a few bytes may become any number at once.
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotImplementedError
    return {entry.filename.replace("\\", "/"): entry for entry in entries if not entry.is_dir()}


def _described(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], source: Path) -> tuple[str, Metadata]:
    """The folder of the zip file that the bundle lies in ("" or "folder/"), and its metadata."""
    places = [name.removesuffix(METADATA) for name in entries if name.endswith(METADATA)]
    for inside in sorted(places, key=len):
        if inside.count("/") <= 1 and (not inside or inside.endswith("/")):
            if entries[inside + METADATA].file_size > MOST_METADATA_BYTES:
                raise BundleError(f"The metadata in {source} are larger than those of any model.", GET_AGAIN)
            return inside, parse_metadata(archive.read(entries[inside + METADATA]), source)
    raise BundleError(f"{source} holds no model bundle: there is no {METADATA} in it.", "Choose another file.")


def _open_no_link(path: Path) -> IO[bytes]:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "rb")


def _copy(source: IO[bytes], target: Path, size: int) -> None:
    """Copy ``size`` bytes, and no more however many come."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while size and (chunk := source.read(min(size, _CHUNK))):
            file.write(chunk)
            size -= len(chunk)
