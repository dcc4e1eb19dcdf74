"""Errors that a user can act on, and what other errors mean to a user."""

from __future__ import annotations

import errno
import zipfile
import zlib


class UserError(Exception):
    """An input, a file or the computer cannot be used as the user asked.

    ``problem`` says in one line what is wrong, ``remedy`` in one line what to do about it. The command line and the
    panel show both, and no internal detail such as a traceback.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        # Exception pickles only its one formatted argument; errors from other processes must keep both parts.
        return type(self), (self.problem, self.remedy)


class ImageError(UserError):
    """The image cannot be read, or is not a CT volume that can be segmented."""


class BundleError(UserError):
    """The model bundle is damaged, has another format, or cannot be trusted."""


class OutputError(UserError):
    """The results cannot be written to the chosen folder or file."""


def format_install_command(*packages: str) -> str:
    """The command that installs these packages of the Python Package Index, for the remedy of an error."""
    return f"pip install {' '.join(packages)}"


class Cancelled(Exception):  # noqa: N818 - an outcome the user asked for, not a fault
    """The user stopped the work."""


DAMAGED_NPZ = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What ``numpy.load`` and its result raise for a damaged file, such as NotImplementedError for an unknown zip."""

_OUT_OF_MEMORY = (
    *("out of memory", "not enough memory", "bad_alloc", "bad allocation", "can't allocate memory"),
    *("cannot allocate memory", "failed to allocate memory", "unable to allocate", "could not allocate memory"),
    *("failed to map segment from shared object", "could not create a primitive"),
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether the computer or a device ran out of memory: ``error`` itself, or an error that caused it, says so.

    torch's CPU allocator, MPS and ITK raise a plain RuntimeError that can be recognized only by its text. A library
    that no longer fits into memory fails to load with an ImportError or OSError.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        # oneDNN's "could not create a primitive" is a failed allocation; with "descriptor", it is an unsupported layer.
        text = str(error).lower().replace("primitive descriptor", "")
        is_candidate = isinstance(error, RuntimeError | OSError | ImportError | SystemError)
        if is_candidate and any(phrase in text for phrase in _OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False


def require_memory(error: BaseException) -> None:
    """Raise MemoryError if ``error`` means that memory ran out.

    Call it in handlers that would otherwise report a damaged file.
    """
    if is_out_of_memory(error):
        raise MemoryError(str(error)) from error


def get_reason(error: BaseException) -> str:
    """Why something failed, for use after a colon or in parentheses: without error numbers and class names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error)


def describe_root_cause(error: BaseException) -> str:
    """The first error in the chain that caused ``error``, as its class name and the first line of its text."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error`` means that the disk is full, or that the user's quota is used up."""
    if isinstance(error, OutputError):
        return "disk is full" in error.problem
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def summarize_error(error: BaseException) -> str:
    """``error`` as one sentence for the user, in lower case for use after a colon (a UserError keeps its own text)."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if is_out_of_memory(error):
        return "there was not enough memory."
    if is_disk_full(error):
        return "the disk is full."
    if isinstance(error, FileNotFoundError):
        return f"the file {error.filename} no longer exists."
    if isinstance(error, OSError):
        return f"{error.filename or 'it'}: {get_reason(error)}."
    return f"an unexpected error occurred ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})."
