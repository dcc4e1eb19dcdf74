"""Results onto the disk, whole or not at all.

Everything is written under a temporary name beside its target and renamed when complete; whatever goes wrong, the
temporary file or folder is removed and what was there before stays.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import SimpleITK as sitk

from ..errors import ImageError, OutputError, require_memory
from ..home import home_folder
from ..partials import partial_name
from . import nifti_checks
from .itk_warnings import no_itk_warnings

_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ANOTHER_FOLDER = "Choose an output folder you may write to."
_MORE_ROOM = "Free some space, or choose an output folder on another disk."


def write_image(image: sitk.Image, path: Path) -> None:
    """Writes ``image``, compressed except for .nii, in the format of the extension: .nrrd, .nii.gz, .nii or .mha.

    NRRD keeps origin, spacing and direction to 64-bit rounding, NIfTI to 32-bit. An existing file is replaced.

    Raises OutputError where the folder is missing or not writable, the disk is full, or the extension is another.
    """
    extension = next((known for known in _EXTENSIONS if path.name.lower().endswith(known)), None)
    if extension is None:
        raise OutputError(f"{path.name}: images cannot be written in that format.", f"Use {', '.join(_EXTENSIONS)}.")

    def write(temporary: Path) -> None:
        with no_itk_warnings():
            sitk.WriteImage(image, str(temporary), extension != ".nii")
        if extension in (".nii", ".nii.gz"):
            # ITK reports a full disk for every format but this one.
            nifti_checks.check_content(temporary)
            nifti_checks.check_voxels(temporary, image)

    _write_atomically(path, extension, write)


def write_text(text: str, path: Path) -> None:
    """Writes ``text`` as UTF-8, replacing an existing file. Raises OutputError as ``write_image`` does."""
    _write_atomically(path, path.suffix, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(content: object, path: Path) -> None:
    """Writes ``content`` as indented JSON, replacing an existing file. Raises OutputError as ``write_image`` does."""
    write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


@contextmanager
def new_folder(
    path: Path, overwrite: bool = False, recognized_by: str | None = None, private: bool = False
) -> Iterator[Path]:
    """Yields a temporary folder beside ``path`` that becomes ``path`` when the block succeeds and vanishes otherwise.

    An existing folder with anything in it is replaced only with ``overwrite``, and then as a whole. ``recognized_by``
    names a file by which an earlier result is known: a folder without it is never replaced. Nor is, ever, a mount point
    or a folder the working or home directory lies in. A ``private`` one can be read by its owner alone, as what holds
    a patient's data should be.

    Raises OutputError before the block where ``path`` may not be replaced or its parent is missing or not writable, and
    for an OSError within the block that tells of a full disk or missing permission.
    """
    path = Path(path).absolute()
    _require_replaceable(path, overwrite, recognized_by)
    temporary = partial_name(path)
    try:
        temporary.mkdir(mode=0o700 if private else 0o777)
    except OSError as error:
        raise _output_error(error, path) from None
    try:
        try:
            yield temporary
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise _output_error(error, path) from error
        if private:
            make_private(temporary)
        _require_replaceable(path, overwrite, recognized_by)
        try:
            _replace_folder(temporary, path)
        except OSError as error:
            raise _output_error(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_private(path: Path) -> None:
    """Let nobody but the owner read ``path``: 0700 for folders, with all that is in them, 0600 for files. Links are not
    followed; what the file system does not let be changed stays as it is."""
    inside = [Path(folder, name) for folder, folders, files in os.walk(path) for name in (*folders, *files)]
    for each in [path, *inside]:
        if not each.is_symlink():
            with suppress(OSError):
                each.chmod(0o700 if each.is_dir() else 0o600)


def _write_atomically(path: Path, extension: str, write: Callable[[Path], object]) -> None:
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", "Choose another file name.")
    temporary = partial_name(path, extension)
    try:
        # Created here first: the operating system says why it refuses, ITK does not.
        temporary.touch(exist_ok=False)
        write(temporary)
        with temporary.open("rb") as stream:
            # Network and quota file systems tell of a full disk only now.
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _output_error(error, path) from None
    except (RuntimeError, ImageError) as error:
        require_memory(error)
        # The file could be created but not filled.
        raise OutputError(f"{path} could not be written completely: the disk is probably full.", _MORE_ROOM) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _require_replaceable(path: Path, overwrite: bool, recognized_by: str | None) -> None:
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_dir() or path.is_symlink():
        raise OutputError(f"{path} exists and is no folder.", "Choose another output folder.")
    if not any(path.iterdir()):
        return
    if not overwrite:
        raise OutputError(f"The folder {path} exists already.", "Choose another one, or allow it to be overwritten.")
    if path.is_mount() or any(path in (each, *each.parents) for each in _used_folders()):
        raise OutputError(f"The folder {path} holds more than results and is not replaced.", "Choose another one.")
    if recognized_by is not None and not (path / recognized_by).is_file():
        raise OutputError(
            f"The folder {path} is no earlier result (it has no {recognized_by}) and is not replaced.",
            "Choose another one, or remove it yourself.",
        )


def _used_folders() -> Iterator[Path]:
    """The working folder and, where there is one, the home folder."""
    yield Path.cwd().absolute()
    home = home_folder()
    if home is not None:
        yield home.absolute()


def _replace_folder(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    old = path.with_name(f".{path.name}.replaced-{uuid.uuid4().hex[:8]}")
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _output_error(error: OSError, path: Path) -> OutputError:
    """What an operating system error while writing ``path`` means for the user."""
    if error.errno in _FULL:
        return OutputError(f"The disk is full: {path} could not be written.", _MORE_ROOM)
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return OutputError(f"There is no folder {path.parent}.", "Create it first.")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return OutputError(f"The folder {path.parent} is not writable.", _ANOTHER_FOLDER)
    return OutputError(f"{path} cannot be written: {error.strerror or error}.", _ANOTHER_FOLDER)
