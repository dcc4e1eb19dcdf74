"""Temporary names for unfinished results, and the removal of what ended processes left behind.

A result is written under a hidden name beside its target and renamed when it is complete. The name says which process
writes it, as in ``.labels.nrrd.partial-1f2e3d4c-4242-9a0b1c-0badcafe.nrrd``: the machine, the process, when that
process started, and a random part. So the next process that writes into the folder can tell what a killed process left
from what another one is writing at this moment. ``replaced`` instead of ``partial`` marks an earlier result that is
being replaced, on systems that cannot exchange two folders in one step.
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
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

_PARTIAL, _REPLACED = "partial", "replaced"
_NAME = re.compile(
    rf"\.(?P<name>.+)\.(?P<kind>{_PARTIAL}|{_REPLACED})-"
    r"(?P<owner>(?P<machine>[0-9a-f]{8})-(?P<pid>\d{1,10})-(?P<start>[0-9a-f]{1,16}))-[0-9a-f]{8}(\.[A-Za-z0-9.]+)?",
    re.DOTALL,
)
_LONGEST_NAME = 150  # bytes; file systems allow 255
# The processes of another machine cannot be seen from here: what they left is removed after this time.
_SECONDS_UNTIL_FOREIGN_IS_OLD = 7 * 24 * 3600.0
_SECONDS_BETWEEN_CLEANINGS = 60.0
_RECORD = "request.json"  # what ``job`` writes into each result, last of all

_log = logging.getLogger("dcaseg")
_cleaned: dict[Path, float] = {}  # when, in the seconds of time.monotonic


def partial_name(path: Path, extension: str = "") -> Path:
    """A new hidden name beside ``path`` for what becomes ``path`` when complete."""
    return _hidden_name(path, _PARTIAL, extension)


def replaced_name(path: Path) -> Path:
    """A new hidden name beside ``path`` for the earlier result there, until the new one has its place."""
    return _hidden_name(path, _REPLACED, "")


def remove_partials(path: Path, pid: int | None = None) -> None:
    """Remove what was to become ``path``: of processes that have ended, of this process, and of the process ``pid``.

    What cannot be removed stays.
    """
    for entry, found in _hidden_entries(path.parent):
        is_own = found["machine"] == _machine() and int(found["pid"]) in (os.getpid(), pid)
        if found["kind"] == _PARTIAL and found["name"] == _stem(path) and (is_own or _has_ended(entry, found)):
            _remove(entry, partial_name(path))


def remove_traces(out: Path, pid: int | None) -> None:
    """Remove what the process ``pid`` made of the result ``out``, finished or not; what others made stays.

    A finished result says in its record who made it. None stands for a process that never said its number.
    """
    remove_partials(out, pid)
    try:
        maker = json.loads((out / _RECORD).read_text(encoding="utf-8"))["process"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    if pid is not None and maker == pid and not out.is_symlink():
        remove_folder(out)


def remove_folder(folder: Path) -> None:
    """Remove ``folder`` even while another thread still writes files into it; what cannot be removed stays."""
    _remove(folder, partial_name(folder))


def clean(folder: Path, only_writer: bool = False) -> None:
    """Remove what ended processes left in ``folder``, and bring back earlier results that they had moved aside.

    With ``only_writer``, the caller holds a lock on the folder: whatever another process has begun there, on this
    machine or another one, it will not finish. Otherwise a folder cleaned less than a minute ago is left alone. What is
    brought back is logged as a warning; what cannot be removed stays.
    """
    folder, now = Path(folder).absolute(), time.monotonic()
    if not only_writer and now - _cleaned.get(folder, -math.inf) < _SECONDS_BETWEEN_CLEANINGS:
        return
    _cleaned[folder] = now
    entries = _hidden_entries(folder)
    ended = [(entry, found) for entry, found in entries if only_writer or _has_ended(entry, found)]
    # Both are there only where a process was ended between its two renames.
    interrupted = {(found["name"], found["owner"]) for _, found in ended if found["kind"] == _PARTIAL}
    for entry, found in ended:
        if found["kind"] == _REPLACED and (found["name"], found["owner"]) in interrupted:
            _bring_back(entry, folder / found["name"])
        elif found["kind"] == _REPLACED:
            _remove(entry)
    # Last, as they are the sign of what is to be brought back.
    for entry, found in ended:
        if found["kind"] == _PARTIAL:
            _remove(entry)


def _bring_back(hidden: Path, target: Path) -> None:
    if os.path.lexists(target):
        target = target.with_name(f"{target.name}-before-{uuid.uuid4().hex[:4]}")
    with suppress(OSError):
        hidden.rename(target)
        _log.warning("A process was ended while it replaced a result. The earlier result is in %s again.", target)


def _hidden_name(path: Path, kind: str, extension: str) -> Path:
    return path.with_name(f".{_stem(path)}.{kind}-{_owner(os.getpid())}-{uuid.uuid4().hex[:8]}{extension}")


def _stem(path: Path) -> str:
    """The name of ``path``, shortened where the hidden name would be too long for a file system."""
    encoded = os.fsencode(path.name)
    if len(encoded) <= _LONGEST_NAME:
        return path.name
    start = "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in path.name[:40])
    return f"{start}-{hashlib.sha256(encoded).hexdigest()[:16]}"


def _hidden_entries(folder: Path) -> list[tuple[Path, re.Match[str]]]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - of folders with many entries, only the names are needed
    except OSError:
        return []
    return [(folder / name, found) for name in names if name[:1] == "." and (found := _NAME.fullmatch(name))]


def _remove(entry: Path, doomed: Path | None = None) -> None:
    if entry.is_symlink() or not entry.is_dir():
        with suppress(OSError):
            entry.unlink()
        return
    if doomed is not None:
        # Under its new name no further file can appear in it.
        with suppress(OSError):
            entry.rename(doomed)
            entry = doomed
    shutil.rmtree(entry, ignore_errors=True)


def _has_ended(entry: Path, found: re.Match[str]) -> bool:
    """Whether the process that a hidden name names is gone."""
    if found["machine"] != _machine():
        try:
            return time.time() - entry.lstat().st_mtime > _SECONDS_UNTIL_FOREIGN_IS_OLD
        except OSError:
            return False
    pid = int(found["pid"])
    if not _exists(pid):
        return True
    start = _start(pid)
    return start is None or start not in ("0", found["start"])


@lru_cache(maxsize=4)
def _owner(pid: int) -> str:
    """This process, in the words of a hidden name; by its number, as a fork has another."""
    return f"{_machine()}-{pid}-{_start(pid) or '0'}"


@lru_cache(maxsize=1)
def _machine() -> str:
    """Names this machine, and the container on it: the processes of another container cannot be seen from here."""
    try:
        container = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - no path: pid:[4026531836]
    except OSError:
        container = ""
    return hashlib.sha256(f"{platform.node()} {container}".encode(errors="replace")).hexdigest()[:8]


def _start(pid: int) -> str | None:
    """When a process started, as a hexadecimal number; "0" where the system does not say, None if it has ended."""
    try:
        # After the name of the program, which may hold anything: the state, and as the 20th field the start.
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
        # It belongs to another user.
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
    known = kernel.GetExitCodeProcess(handle, ctypes.byref(code))  # type: ignore[attr-defined]
    kernel.CloseHandle(handle)  # type: ignore[attr-defined]
    return not known or code.value == still_active
