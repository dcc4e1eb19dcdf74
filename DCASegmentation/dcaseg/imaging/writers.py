"""Writing of results, completely or not at all.

Everything is written under a temporary name in the folder of its target and renamed when it is complete. If anything
goes wrong, the temporary file or folder is removed and the earlier result stays. A folder replaces an earlier one in
one step where the system can exchange two folders (Linux, macOS). On other systems and file systems it takes two steps,
and if the process is killed between them, the next process that writes there restores the earlier result.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import SimpleITK as sitk

from ..errors import ImageError, OutputError, get_reason, require_memory
from ..temp_paths import clean, make_backup_path, make_partial_path, replacing
from ..user_folders import get_home_folder
from . import nifti as nifti_checks
from .itk_environment import no_itk_warnings, short_path

_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".mha")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# The disk, or the network connection to it, is gone or broken.
_LOST = {errno.EROFS, errno.EIO, errno.ENODEV, errno.ENXIO, getattr(errno, "ESTALE", errno.EIO)}
_OF_FILE_BROWSERS = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.directory", re.DOTALL)
_MAX_NAMED = 3
_ANOTHER_FOLDER = "Choose an output folder that you may write to."
_MORE_ROOM = "Free some space, or choose an output folder on another disk."


def write_image(image: sitk.Image, path: Path, compress: bool = True) -> None:
    """Write ``image`` in the format of the extension (.nrrd, .nii.gz, .nii or .mha).

    It is compressed except as .nii, and as .nrrd or .mha without ``compress``.

    NRRD stores origin, spacing and direction with 64-bit precision, NIfTI with 32-bit. An existing file is replaced.

    Raises OutputError if the folder is missing or not writable, the disk is full, or the extension is not supported.
    """
    _require_text_name(path.absolute())
    extension = next((known for known in _EXTENSIONS if path.name.lower().endswith(known)), None)
    if extension is None:
        raise OutputError(f"{path.name}: images cannot be written in that format.", f"Use {', '.join(_EXTENSIONS)}.")

    def write(temporary: Path) -> None:
        with short_path(temporary) as short, no_itk_warnings():
            sitk.WriteImage(image, str(short), compress and extension != ".nii")
        if extension in (".nii", ".nii.gz"):
            # For NIfTI only, ITK does not report a full disk.
            nifti_checks.check_content(temporary)
            nifti_checks.check_voxels(temporary, image)

    _write_atomically(path, extension, write)


def write_text(text: str, path: Path) -> None:
    """Write ``text`` as UTF-8, replacing an existing file. Raises OutputError as ``write_image`` does.

    Half a surrogate pair, which file names and JSON may contain but UTF-8 cannot, becomes a question mark.
    """
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace"))


def write_json(content: object, path: Path) -> None:
    """Write ``content`` as indented JSON, replacing an existing file. Raises OutputError as ``write_image`` does."""
    write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", path)


def write_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write(temporary)`` write a file, and rename it to ``path``, replacing an existing file.

    The temporary file has the extension of ``path``. Raises OutputError as ``write_image`` does.
    """
    _write_atomically(path, path.suffix, write)


@contextmanager
def new_folder(
    path: Path,
    overwrite: bool = False,
    recognized_by: str | None = None,
    is_own: Callable[[str], bool] | None = None,
    private: bool = False,
    keep_finished: bool = False,
) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to ``path`` if the block succeeds and removed otherwise.

    An existing folder that is not empty is replaced only with ``overwrite``, and then as a whole. ``recognized_by``
    names a file that identifies an earlier result: a folder without it is never replaced. ``is_own`` says whether a
    file, by its path in the folder (with slashes), is part of a result (default: the new folder has such a file,
    too): a folder with any other file, which would be lost, is never replaced either. Neither is a mount point, or a
    folder that contains the working or home directory, even if it is empty. Leftovers of killed processes are removed
    from the parent folder first. With ``private``, only the owner can read the folder, as is right for patient data.

    If the block succeeds but the folder can then not get its name, it is removed. With ``keep_finished``, it is kept
    under another name instead, which the error states.

    Missing parent folders are made. Raises OutputError before the block if ``path`` may not be replaced or its parent
    is not writable, and for an OSError in the block that concerns the folder: a full disk, a missing permission, a lost
    disk.
    """
    path = Path(path).absolute()
    _require_text_name(path)
    if path.parent.is_dir():
        clean(path.parent)
    _require_replaceable(path, overwrite, recognized_by, is_own)
    temporary = make_partial_path(path)
    # Ctrl+C can come as soon as the folder exists.
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir(mode=0o700 if private else 0o777)
        except OSError as error:
            raise _make_output_error(error, path) from None
        try:
            yield temporary
        except OSError as error:
            if not _concerns(temporary, error):
                raise
            raise _make_output_error(error, path) from error
        if private:
            make_private(temporary)
        try:
            _require_replaceable(
                path, overwrite, recognized_by, is_own or (lambda name: os.path.lexists(temporary / name))
            )
            _replace_folder(temporary, path)
        except (OSError, OutputError) as error:
            reason = error if isinstance(error, OutputError) else _make_output_error(error, path)
            # Without is_own, the user's files in the old folder are noticed only now.
            if (keep_finished or (overwrite and is_own is None)) and (
                kept := _keep_result(temporary, path)
            ) is not None:
                raise OutputError(reason.problem, f"The finished result is in {kept}.") from error
            raise reason from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_private(path: Path) -> None:
    """Make ``path`` readable only by its owner: mode 0700 for folders and everything in them, 0600 for files.

    Links are not followed. Modes that the file system does not let us change stay as they are.
    """
    contents = [Path(folder, name) for folder, folders, files in os.walk(path) for name in (*folders, *files)]
    for entry in [path, *contents]:
        if not entry.is_symlink():
            with suppress(OSError):
                entry.chmod(0o700 if entry.is_dir() else 0o600)


def is_private(path: Path) -> bool:
    """Whether only its owner can access ``path``. False if the file system has no such modes, as on Windows."""
    try:
        return not path.stat().st_mode & 0o077
    except OSError:
        return False


@contextmanager
def temporary_folder(stem: str, parent: Path | None = None) -> Iterator[Path]:
    """Yield a new hidden folder in ``parent``, or in the system's temporary folder, and remove it afterwards.

    Only its owner can access it. Leftovers of killed processes are removed from the parent folder first. Raises
    OutputError if the folder cannot be created.
    """
    try:
        location = Path(tempfile.gettempdir() if parent is None else parent)
        clean(location)
        folder = make_partial_path(location / stem)
    except OSError as error:
        raise _make_temporary_error(error, parent) from None
    # Ctrl+C can come as soon as the folder exists.
    try:
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise _make_temporary_error(error, parent) from None
        yield folder
    except OSError as error:
        if error.filename is None or not _concerns(folder, error):
            raise
        raise _make_temporary_error(error, parent) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _make_temporary_error(error: OSError, parent: Path | None) -> OutputError:
    if parent is None:
        return OutputError(
            f"Temporary files cannot be written: {get_reason(error)}.",
            "Free some space on the system's disk, or set TMPDIR to a folder on another one.",
        )
    remedy = _MORE_ROOM if error.errno in _FULL else _ANOTHER_FOLDER
    return OutputError(f"{parent} cannot be written to: {get_reason(error)}.", remedy)


def _write_atomically(path: Path, extension: str, write: Callable[[Path], object]) -> None:
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", "Choose another file name.")
    clean(path.parent)
    try:
        with replacing(path, extension) as temporary:
            # Created here first, because the operating system gives the reason for a refusal and ITK does not.
            temporary.touch(exist_ok=False)
            write(temporary)
    except OSError as error:
        raise _make_output_error(error, path) from None
    except (RuntimeError, ImageError) as error:
        require_memory(error)
        # The file could be created but not written.
        raise OutputError(f"{path} could not be written completely: the disk is probably full.", _MORE_ROOM) from None


def _require_text_name(path: Path) -> None:
    """Raise OutputError if ``path`` is not valid Unicode, which file systems allow but which ends SimpleITK."""
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        shown = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raise OutputError(
            f"{shown} cannot be written: its name or path is not valid UTF-8.", "Choose another folder or file name."
        ) from None


def _require_replaceable(
    path: Path, overwrite: bool, recognized_by: str | None, is_own: Callable[[str], bool] | None
) -> None:
    if not os.path.lexists(path):
        return
    if path.is_symlink():
        raise OutputError(f"{path} is a link, which is not replaced.", "Choose another output folder.")
    if not path.is_dir():
        raise OutputError(f"{path} exists and is not a folder.", "Choose another output folder.")
    try:
        is_empty = not any(path.iterdir())
    except OSError as error:
        raise _make_output_error(error, path) from None
    if not is_empty and not overwrite:
        raise _exists_already(path)
    if is_mount(path) or _is_in_use(path):
        if not is_empty:
            problem = f"The folder {path} contains more than results and is not replaced."
            raise OutputError(problem, "Choose another one.")
        # Renaming the result to it would fail, or the user's shell would stay behind in a removed folder.
        problem = f"The folder {path} is in use as the working folder, the home folder or a mounted disk."
        raise OutputError(problem, f"Choose a new folder inside it, such as {path / 'result'}.")
    if is_empty:
        return
    if recognized_by is not None and not (path / recognized_by).is_file():
        raise OutputError(
            f"The folder {path} is not an earlier result (it has no {recognized_by}) and is not replaced.",
            "Choose another one, or remove it yourself.",
        )
    others = [] if is_own is None else _find_other_files(path, is_own)
    if others:
        what = "a file that is" if len(others) == 1 else f"{len(others)} files that are"
        named = ", ".join(others[:_MAX_NAMED]) + (", …" if len(others) > _MAX_NAMED else "")
        shown = named.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        raise OutputError(
            f"The folder {path} contains {what} not part of a result ({shown}) and is not replaced.",
            f"Move {'it' if len(others) == 1 else 'them'} elsewhere, or choose another output folder.",
        )


def _find_other_files(folder: Path, is_own: Callable[[str], bool]) -> list[str]:
    """The files in ``folder`` and its subfolders that are neither ``is_own`` nor made by a file browser, sorted."""

    def fail(error: OSError) -> None:
        raise _make_output_error(error, folder)

    clean(folder)
    others = []
    for place, folders, files in os.walk(folder, onerror=fail):
        for entry in (Path(place, name) for name in (*folders, *files)):
            name = entry.relative_to(folder).as_posix()
            is_file = entry.is_symlink() or not entry.is_dir()
            if is_file and not is_own(name) and not _OF_FILE_BROWSERS.fullmatch(entry.name):
                others.append(name)
    return sorted(others)


def is_mount(path: Path) -> bool:
    """Whether a disk or a folder is mounted at ``path``.

    ``Path.is_mount`` does not see a folder that is mounted from the same file system (``mount --bind``).
    """
    if path.is_mount():
        return True
    try:
        mounts = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return False
    # Spaces, tabs, line breaks and backslashes are written as \040 and so on.
    names = {re.sub(rb"\\([0-7]{3})", lambda code: bytes([int(code[1], 8)]), line.split()[4]) for line in mounts}
    return os.fsencode(path.resolve()) in names


def _is_in_use(path: Path) -> bool:
    """Whether ``path``, however it is spelled, is or contains the working directory or the home folder."""
    for folder in _list_used_folders():
        for each in (folder, *folder.parents):
            with suppress(OSError):
                if each.samefile(path):
                    return True
    return False


def _list_used_folders() -> Iterator[Path]:
    """The working directory and, if there is one, the home folder."""
    with suppress(OSError):
        # It may have been removed.
        yield Path.cwd().resolve()
    home = get_home_folder()
    if home is not None:
        yield home.resolve()


def _keep_result(temporary: Path, path: Path) -> Path | None:
    """Rename a finished result that cannot get the name ``path`` to a free one. None if that fails, too."""
    kept = path.with_name(f"{path.name[:100]}-new-{uuid.uuid4().hex[:4]}")
    try:
        temporary.rename(kept)
    except OSError:
        return None
    return kept


def _replace_folder(temporary: Path, path: Path) -> None:
    if not path.exists() or (os.name == "posix" and not any(path.iterdir())):
        # POSIX lets an empty folder be replaced, also one of a container's image, which cannot be exchanged.
        temporary.rename(path)
    elif exchange(temporary, path):
        # The earlier result now has the temporary name.
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        old = make_backup_path(path)
        try:
            path.rename(old)
            temporary.rename(path)
        except BaseException:
            # Ctrl+C can also come between the two, or before the first one returns.
            if os.path.lexists(old) and not os.path.lexists(path):
                old.rename(path)
            raise
        shutil.rmtree(old, ignore_errors=True)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two files or folders of one file system in one step. Returns False if the system does not support it.

    Raises OSError if the system refuses the exchange. See renameat2(2) of Linux and renamex_np(2) of macOS.
    """
    at_cwd, exchange_flag, swap_flag = -100, ctypes.c_uint(2), ctypes.c_uint(2)
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = library.renamex_np(first, second, swap_flag)
        elif sys.platform == "linux":
            failed = library.renameat2(at_cwd, first, at_cwd, second, exchange_flag)
        else:
            return False
    except (OSError, TypeError, AttributeError):
        # Another operating system, or a C library from before 2018.
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EXDEV):
        return False
    raise OSError(code, os.strerror(code), str(one), None, str(other))


def _concerns(temporary: Path, error: OSError) -> bool:
    """Whether an error while a folder is filled concerns that folder, and not a file that was read for it."""
    if error.filename is None:
        return error.errno in _FULL | _LOST
    named = [name for name in (error.filename, error.filename2) if isinstance(name, str | bytes | os.PathLike)]
    return any(Path(os.fsdecode(name)).is_relative_to(temporary) for name in named)


def _exists_already(path: Path) -> OutputError:
    return OutputError(
        f"The folder {path} already exists.", "Choose another one, or add --overwrite if the command has it."
    )


def _make_output_error(error: OSError, path: Path) -> OutputError:
    """What an operating system error while writing ``path`` means to the user."""
    if error.errno in _FULL:
        return OutputError(f"The disk is full: {path} could not be written.", _MORE_ROOM)
    if error.errno == errno.EROFS:
        return OutputError(f"{path} cannot be written: its disk is read-only.", _ANOTHER_FOLDER)
    if isinstance(error, FileNotFoundError) and not path.parent.exists():
        return OutputError(f"There is no folder {path.parent}.", "Create it first.")
    if isinstance(error, PermissionError):
        return OutputError(f"The folder {path.parent} is not writable.", _ANOTHER_FOLDER)
    if error.errno in (errno.ENOTEMPTY, errno.EEXIST) and path.is_dir():
        # Another program created it in the meantime.
        return _exists_already(path)
    return OutputError(f"{path} cannot be written: {get_reason(error)}.", _ANOTHER_FOLDER)
