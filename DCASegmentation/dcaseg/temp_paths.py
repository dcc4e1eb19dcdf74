"""Temporary names for unfinished results, and removal of the leftovers of killed processes.

A result is written under a hidden name in the folder of its target, and renamed when it is complete. The name
identifies the process that writes it, as in ``.labels.nrrd.partial-1f2e3d4c-4242-9a0b1c-0badcafe.nrrd``: the machine,
the process ID, the start time of that process, and a random part. The next process that writes into the folder can
thus distinguish the leftovers of a killed process from files that are still being written. ``replaced`` instead of
``partial`` marks an earlier result that is being replaced, on systems that cannot exchange two folders in one step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

_PARTIAL, _REPLACED = "partial", "replaced"
_OWNER = r"(?P<owner>(?P<machine>[0-9a-f]{8})-(?P<pid>\d{1,10})-(?P<start>[0-9a-f]{1,16}))"
_NAME = re.compile(
    rf"\.(?P<name>.+)\.(?P<kind>{_PARTIAL}|{_REPLACED})-{_OWNER}-[0-9a-f]{{8}}(\.[A-Za-z0-9.]+)?", re.DOTALL
)
_MAX_NAME_LENGTH = 150  # bytes; file systems allow 255
# The processes of another machine are not visible from here: their files are removed after this time.
_SECONDS_UNTIL_FOREIGN_IS_OLD = 7 * 24 * 3600.0
_SECONDS_BETWEEN_CLEANINGS = 60.0
_RECORD = "request.json"  # written into each result folder last

_log = logging.getLogger("dcaseg")
_cleaned: dict[Path, float] = {}  # the time.monotonic() of the last cleaning of each folder


def make_partial_path(path: Path, extension: str = "") -> Path:
    """A new hidden name, in the folder of ``path``, to write under until the result can be renamed to ``path``.

    ``extension`` is appended for libraries that choose a file format by it.
    """
    return _make_hidden_path(path, _PARTIAL, extension)


@contextmanager
def replacing(path: Path, extension: str = "") -> Iterator[Path]:
    """Yield a path from ``make_partial_path``; the file written there becomes ``path`` if the block succeeds.

    An earlier file at ``path`` stays until then, and if the block fails. Raises OSError if the file cannot be moved.
    """
    part = make_partial_path(path, extension)
    try:
        yield part
        # For writing, because Windows flushes no file that is only open for reading.
        with part.open("r+b") as stream:
            # Network file systems and file systems with quotas may report a full disk only here.
            os.fsync(stream.fileno())
        part.replace(path)
    finally:
        # The file still exists after an error, or if Ctrl+C was pressed.
        with suppress(OSError):
            part.unlink(missing_ok=True)


def make_backup_path(path: Path) -> Path:
    """A new hidden name, in the folder of ``path``, for the earlier result at ``path`` while a new one replaces it."""
    return _make_hidden_path(path, _REPLACED, "")


def process_id() -> str:
    """This process among those of all machines and times, as a record in its results states it."""
    return _get_owner_id(os.getpid())


def own_prefix(stem: str) -> str:
    """The start of the names of visible temporary folders of this process: ``stem``, then what identifies it."""
    return f"{stem}{_get_owner_id(os.getpid())}-"


def is_left_over(folder: Path, stem: str) -> bool:
    """Whether ``folder``, a name with ``own_prefix(stem)`` of any process, belongs to a process that has ended."""
    match = re.match(rf"{re.escape(stem)}{_OWNER}-", folder.name)
    return match is not None and _has_ended(folder, match)


def remove_partials(path: Path, pid: int | None = None) -> None:
    """Remove unfinished versions of ``path`` by ended processes, by this process, and by the process ``pid``.

    Files that cannot be removed are left without an error.
    """
    for entry, name in _list_hidden_entries(path.parent):
        is_own = name["machine"] == _get_machine_id() and int(name["pid"]) in (os.getpid(), pid)
        if name["kind"] == _PARTIAL and name["name"] == _shorten_name(path) and (is_own or _has_ended(entry, name)):
            _remove(entry, make_partial_path(path))


def remove_traces(out: Path, pid: int | None) -> None:
    """Remove the result ``out`` if the process ``pid`` wrote it, finished or not; results of other processes stay.

    The record in a finished result states its process. ``pid`` is None if the process never reported its ID.
    """
    remove_partials(out, pid)
    try:
        writer = json.loads((out / _RECORD).read_text(encoding="utf-8"))["process"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if pid is not None and _is_process(writer, pid) and not out.is_symlink():
        remove_folder(out)


def _is_process(stated: object, pid: int) -> bool:
    """Whether ``stated``, a ``process_id`` in a record, means the process ``pid`` of this machine, even if it ended."""
    if not isinstance(stated, str):
        # Some records state the bare number, which processes of other machines may have, too.
        return stated == pid
    match = re.fullmatch(_OWNER, stated)
    if match is None or match["machine"] != _get_machine_id() or int(match["pid"]) != pid:
        return False
    # "0" if unknown, None if it ended: the caller, who started it, then vouches for the number.
    start = _start_time(pid) if _exists(pid) else None
    return start in (None, "0", match["start"]) or match["start"] == "0"


def remove_unfinished(folder: Path, pid: int | None) -> None:
    """Remove all unfinished results of the process ``pid`` in ``folder``; nothing if ``pid`` is None.

    Files that cannot be removed are left without an error.
    """
    for entry, name in _list_hidden_entries(folder):
        if name["kind"] == _PARTIAL and name["machine"] == _get_machine_id() and int(name["pid"]) == pid:
            _remove(entry, make_partial_path(folder / name["name"]))


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` even while another thread writes files into it. Files that cannot be removed are left."""
    _remove(folder, make_partial_path(folder))


def clean(folder: Path, only_writer: bool = False) -> None:
    """Remove the leftovers of ended processes from ``folder``, and restore earlier results that they had moved aside.

    ``only_writer`` says that the caller holds a lock on the folder, so that no other process, on this machine or
    another, can still be writing there: all temporary files are then leftovers. Without it, a folder cleaned less than
    a minute ago is skipped. Restored results are logged as warnings. Files that cannot be removed are left.
    """
    folder, now = Path(folder).absolute(), time.monotonic()
    if not only_writer and now - _cleaned.get(folder, -math.inf) < _SECONDS_BETWEEN_CLEANINGS:
        return
    _cleaned[folder] = now
    entries = _list_hidden_entries(folder)
    leftovers = [(entry, name) for entry, name in entries if only_writer or _has_ended(entry, name)]
    # A process has both kinds only if it was killed between its two renames. If it was interrupted there, it may have
    # removed the unfinished one, but then the target is missing.
    interrupted = {(name["name"], name["owner"]) for _, name in leftovers if name["kind"] == _PARTIAL}
    for entry, name in leftovers:
        if name["kind"] == _PARTIAL:
            continue
        if (name["name"], name["owner"]) in interrupted or not _has(folder, name["name"]):
            _restore(entry, folder / name["name"])
        else:
            _remove(entry)
    # Last, because they show which results must be restored.
    for entry, name in leftovers:
        if name["kind"] == _PARTIAL:
            _remove(entry)


def _has(folder: Path, stem: str) -> bool:
    """Whether ``folder`` has an entry with the name that ``stem`` stands for (see ``_shorten_name``)."""
    try:
        names = os.listdir(folder)  # noqa: PTH208 - only the names are needed
    except OSError:
        return True
    return stem in names or any(stem == _shorten_name(folder / name) for name in names if len(name) > len(stem))


def _restore(hidden: Path, target: Path) -> None:
    if os.path.lexists(target):
        target = target.with_name(f"{target.name}-before-{uuid.uuid4().hex[:4]}")
    with suppress(OSError):
        hidden.rename(target)
        _log.warning("A process was killed while it replaced a result. The earlier result was restored to %s.", target)


def _make_hidden_path(path: Path, kind: str, extension: str) -> Path:
    return path.with_name(
        f".{_shorten_name(path)}.{kind}-{_get_owner_id(os.getpid())}-{uuid.uuid4().hex[:8]}{extension}"
    )


def _shorten_name(path: Path) -> str:
    """The name of ``path``, shortened if the hidden name would be too long for the file system."""
    encoded = os.fsencode(path.name)
    if len(encoded) <= _MAX_NAME_LENGTH:
        return path.name
    start = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in path.name[:40])
    return f"{start}-{hashlib.sha256(encoded).hexdigest()[:16]}"


def _list_hidden_entries(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - a folder may have many entries, and only the names are needed
    except OSError:
        return []
    return [(folder / name, match) for name in names if name[:1] == "." and (match := _NAME.fullmatch(name))]


def _remove(entry: Path, rename_to: Path | None = None) -> None:
    if entry.is_symlink() or not entry.is_dir():
        with suppress(OSError):
            entry.unlink()
        return
    if rename_to is not None:
        # After the rename, other threads can no longer add files to it.
        with suppress(OSError):
            entry.rename(rename_to)
            entry = rename_to
    shutil.rmtree(entry, ignore_errors=True)


def _has_ended(entry: Path, name: re.Match[str]) -> bool:
    """Whether the process that wrote ``entry``, according to its parsed ``name``, has ended."""
    if name["machine"] != _get_machine_id():
        try:
            return time.time() - entry.lstat().st_mtime > _SECONDS_UNTIL_FOREIGN_IS_OLD
        except OSError:
            return False
    pid = int(name["pid"])
    if not _exists(pid):
        return True
    start = _start_time(pid)
    return start is None or start not in ("0", name["start"])


@lru_cache(maxsize=4)
def _get_owner_id(pid: int) -> str:
    """The part of a hidden name that identifies this process. ``pid`` is the cache key, as a fork has another ID."""
    return f"{_get_machine_id()}-{pid}-{_start_time(pid) or '0'}"


@lru_cache(maxsize=1)
def _get_machine_id() -> str:
    """A short ID of this machine and its container: the processes of another container are not visible from here."""
    try:
        container = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path but pid:[4026531836]
    except OSError:
        container = ""
    return hashlib.sha256(f"{platform.node()} {container}".encode(errors="replace")).hexdigest()[:8]


def _start_time(pid: int) -> str | None:
    """The start time of a process as a hexadecimal number; "0" if the system does not report it, None if it ended."""
    try:
        # After the program's name, which may contain any character: the state first, the start time as 20th field.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else f"{int(fields[19]):x}"
    except (OSError, ValueError, IndexError):
        return "0"


def _exists(pid: int) -> bool:
    if sys.platform == "win32":
        return _exists_on_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        # The process belongs to another user.
        return True
    return True


def _exists_on_windows(pid: int) -> bool:
    import ctypes

    kernel: object = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    query_limited_information, still_active, access_denied = 0x1000, 259, 5
    handle = kernel.OpenProcess(query_limited_information, False, pid)  # type: ignore[attr-defined]
    if not handle:
        return bool(kernel.GetLastError() == access_denied)  # type: ignore[attr-defined]
    code = ctypes.c_ulong()
    has_code = kernel.GetExitCodeProcess(handle, ctypes.byref(code))  # type: ignore[attr-defined]
    kernel.CloseHandle(handle)  # type: ignore[attr-defined]
    return not has_code or code.value == still_active
