"""Results onto the disk, whole or not at all.

Everything is written under a temporary name beside its target and renamed when complete; whatever goes wrong, the
temporary file or folder is removed and what was there before stays. A folder takes the place of an earlier one in one
step where the system can exchange the two (Linux, macOS); elsewhere, and on file systems that cannot, it takes two, and
the next process that writes there brings the earlier one back if this one was killed between them.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import SimpleITK as sitk

from ..errors import ImageError, OutputError, require_memory
from ..temp_paths import clean, partial_name, replaced_name
from ..user_folders import home_folder
from . import nifti as nifti_checks
from .itk_environment import no_itk_warnings

_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The disk, or the network behind it, is gone or broken.
_LOST = {errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO, getattr(errno, "ESTALE", errno.EIO)}
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
    or a folder the working or home directory lies in. What a killed process left next to ``path`` is removed first. A
    ``private`` one can be read by its owner alone, as what holds a patient's data should be.

    Missing parent folders are made. Raises OutputError before the block where ``path`` may not be replaced or its
    parent is not writable, and
    for an OSError within the block that is about the folder: a full disk, a missing permission, a disk that is gone.
    """
    path = Path(path).absolute()
    if path.parent.is_dir():
        clean(path.parent)
    _require_replaceable(path, overwrite, recognized_by)
    temporary = partial_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir(mode=0o700 if private else 0o777)
    except OSError as error:
        raise _output_error(error, path) from None
    try:
        try:
            yield temporary
        except OSError as error:
            if not _is_about(temporary, error):
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


@contextmanager
def temporary_folder(stem: str, parent: Path | None = None) -> Iterator[Path]:
    """Yields a new hidden folder in ``parent``, or in the system's temporary folder, and removes it afterwards.

    Only its owner can look into it. What killed processes left there is removed first. Raises OutputError where it
    cannot be made.
    """
    try:
        place = Path(tempfile.gettempdir() if parent is None else parent)
        clean(place)
        folder = partial_name(place / stem)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise _temporary_error(error, parent) from None
    try:
        yield folder
    except OSError as error:
        if error.filename is None or not _is_about(folder, error):
            raise
        raise _temporary_error(error, parent) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary_error(error: OSError, parent: Path | None) -> OutputError:
    if parent is None:
        return OutputError(
            f"Temporary files cannot be written: {error.strerror or error}.",
            "Free some space on the system's disk, or set TMPDIR to a folder on another one.",
        )
    remedy = _MORE_ROOM if error.errno in _FULL else _ANOTHER_FOLDER
    return OutputError(f"{parent} cannot be written to: {error.strerror or error}.", remedy)


def _write_atomically(path: Path, extension: str, write: Callable[[Path], object]) -> None:
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", "Choose another file name.")
    clean(path.parent)
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
    if not os.path.lexists(path):
        return
    if not path.is_dir() or path.is_symlink():
        raise OutputError(f"{path} exists and is no folder.", "Choose another output folder.")
    try:
        if not any(path.iterdir()):
            return
    except OSError as error:
        raise _output_error(error, path) from None
    if not overwrite:
        raise _there_already(path)
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
    elif exchange(temporary, path):
        # The earlier result has the temporary name now.
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        old = replaced_name(path)
        path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two files or folders of one file system in one step; False where the system cannot, and did nothing.

    Raises OSError where it could but is refused. See renameat2(2) of Linux and renamex_np(2) of macOS.
    """
    here, exchange_both, swap = -100, ctypes.c_uint(2), ctypes.c_uint(2)
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(first, second, swap)
        elif sys.platform == "linux":
            failed = library.renameat2(here, first, here, second, exchange_both)
        else:
            return False
    except (OSError, TypeError, AttributeError):
        # A system of another kind, or a C library from before 2018.
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _is_about(temporary: Path, error: OSError) -> bool:
    """Whether an error while a folder is filled is about that folder, and not about a file that was read for it."""
    if error.filename is None:
        return error.errno in _FULL | _LOST
    named = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    return any(Path(os.fsdecode(name)).is_relative_to(temporary) for name in named)


def _there_already(path: Path) -> OutputError:
    return OutputError(f"The folder {path} exists already.", "Choose another one, or allow it to be overwritten.")


def _output_error(error: OSError, path: Path) -> OutputError:
    """What an operating system error while writing ``path`` means for the user."""
    if error.errno in _FULL:
        return OutputError(f"The disk is full: {path} could not be written.", _MORE_ROOM)
    if error.errno == errno.EROFS:
        return OutputError(f"{path} cannot be written: its disk is read-only.", _ANOTHER_FOLDER)
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return OutputError(f"There is no folder {path.parent}.", "Create it first.")
    if isinstance(error, PermissionError):
        return OutputError(f"The folder {path.parent} is not writable.", _ANOTHER_FOLDER)
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and path.is_dir():
        # Another program made it in the meantime.
        return _there_already(path)
    return OutputError(f"{path} cannot be written: {error.strerror or error}.", _ANOTHER_FOLDER)
