"""The environment in which ITK reads and writes files: no text on stderr, and numbers with a decimal point."""

from __future__ import annotations

import ctypes
import errno
import locale
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import SimpleITK as sitk

# ITK's setting applies to the whole process: the first thread to enter clears it, the last one to leave restores it.
_lock = threading.Lock()
_MAX_PATH_LENGTH = 500
_stderr_lock = threading.Lock()
_inside = 0
_display_before = True


@contextmanager
def no_itk_warnings() -> Iterator[None]:
    """Keep ITK's warnings off stderr and use the C locale for numbers while files are read or written.

    The errors raised by this package already report what matters about a file. If the process has a locale with a
    decimal comma, as Qt sets it, ITK would truncate NRRD spacings and origins to whole numbers, and write commas.
    """
    global _inside, _display_before
    with _lock:
        if _inside == 0:
            _display_before = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.SetGlobalWarningDisplay(False)
        _inside += 1
    try:
        with decimal_point():
            yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                sitk.ProcessObject.SetGlobalWarningDisplay(_display_before)


@contextmanager
def captured_stderr() -> Iterator[list[str]]:
    """Keep what libraries in C print to standard error off it; the list holds it, as one text, after the block.

    Decoders of JPEG report damage in no other way. The standard error of the whole process is redirected, so the block
    must be short. On Windows, or if standard error is closed, nothing is captured. Only the first 64 KB are kept.
    """
    said: list[str] = []
    with _stderr_lock, ExitStack() as stack:
        try:
            if sys.platform == "win32":
                raise OSError
            original = os.dup(2)
            stack.callback(os.close, original)
            reader, writer = os.pipe()
            stack.callback(os.close, reader)
        except OSError:
            yield said
            return
        # What does not fit into the pipe is dropped.
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        os.dup2(writer, 2)
        os.close(writer)
        try:
            yield said
        finally:
            os.dup2(original, 2)
            with suppress(BlockingIOError):
                said.append(os.read(reader, 1 << 16).decode(errors="replace"))


@contextmanager
def short_path(path: Path) -> Iterator[Path]:
    """A path of at most a few hundred bytes for the file ``path``, to read or write it with ITK.

    ITK's NRRD library puts the path into its error messages, and a message of more than 1,000 bytes overwrites other
    memory. Raises OSError if there is no folder ``path.parent``, or (where the system has no /proc) no short path.
    """
    if len(os.fsencode(path)) <= _MAX_PATH_LENGTH:
        yield path
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        short = Path(f"/proc/self/fd/{folder}")
        if not short.is_dir():
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
        yield short / path.name
    finally:
        os.close(folder)


@contextmanager
def decimal_point() -> Iterator[None]:
    """Make C code in this thread read and write numbers with a decimal point; other threads keep their locale."""
    if locale.localeconv()["decimal_point"] == ".":
        yield
    elif sys.platform == "win32":
        with _windows_thread_locale():
            yield
    else:
        library, numbers_in_c = _get_posix_locale()
        before = library.uselocale(numbers_in_c)
        try:
            yield
        finally:
            library.uselocale(before)


@lru_cache(maxsize=1)
def _get_posix_locale() -> tuple[ctypes.CDLL, int]:
    """The C library, and the "C" locale for ``uselocale``. It is created once and never freed."""
    library = ctypes.CDLL(None)
    library.newlocale.restype = ctypes.c_void_p
    library.newlocale.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p]
    library.uselocale.restype = ctypes.c_void_p
    library.uselocale.argtypes = [ctypes.c_void_p]
    # In both glibc and macOS, the mask of a category is 1 shifted by the category's number.
    return library, library.newlocale(1 << locale.LC_NUMERIC, b"C", None)


@contextmanager
def _windows_thread_locale() -> Iterator[None]:
    runtime = ctypes.CDLL("ucrtbase")
    per_thread = runtime._configthreadlocale(1)
    before = locale.setlocale(locale.LC_NUMERIC)
    locale.setlocale(locale.LC_NUMERIC, "C")
    try:
        yield
    finally:
        locale.setlocale(locale.LC_NUMERIC, before)
        runtime._configthreadlocale(per_thread)
