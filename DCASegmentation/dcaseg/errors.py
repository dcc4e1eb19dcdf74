"""Errors a user can do something about."""

from __future__ import annotations

import errno


class UserError(Exception):
    """Something the user gave or has cannot be used.

    ``problem`` says in one line what is wrong, ``remedy`` in one line what to do about it. The command line and the
    panel show both; nothing else of the program's inside is shown.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem} {remedy}".strip())

    def __reduce__(self) -> tuple[type[UserError], tuple[str, str]]:
        # Exception pickles its one formatted argument; a worker process needs both back.
        return type(self), (self.problem, self.remedy)


class ImageError(UserError):
    """The image cannot be read or is no CT volume this program can segment."""


class BundleError(UserError):
    """The model bundle is damaged, of another format, or not to be trusted."""


class OutputError(UserError):
    """The results cannot be written where they should go."""


def how_to_install(*packages: str) -> str:
    """The command that installs these packages of the Python Package Index, for the remedy of an error."""
    return f"pip install {' '.join(packages)}"


class Cancelled(Exception):  # noqa: N818 - an outcome the user asked for, not a fault
    """The user stopped the work."""


_OUT_OF_MEMORY = (
    *("out of memory", "not enough memory", "bad_alloc", "bad allocation", "can't allocate memory"),
    *("cannot allocate memory", "failed to allocate memory", "unable to allocate", "could not allocate memory"),
)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether ``error``, or the error that it was raised from, is the computer or a device running out of memory.

    torch's CPU allocator, MPS and ITK raise a plain RuntimeError that only its text tells apart; a library that no
    longer fits into memory fails to load with an ImportError or OSError.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        text = str(error).lower()
        may_be = isinstance(error, RuntimeError | OSError | ImportError | SystemError)
        if may_be and any(sign in text for sign in _OUT_OF_MEMORY):
            return True
        error = error.__cause__
    return False


def require_memory(error: BaseException) -> None:
    """Raise MemoryError if ``error`` is memory running out: for handlers that would take it for a damaged file."""
    if is_out_of_memory(error):
        raise MemoryError(str(error)) from error


def root_cause(error: BaseException) -> str:
    """The first error of the chain that led to ``error``, as its name and the first line of its text."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".removesuffix(": ")


def is_disk_full(error: BaseException) -> bool:
    """Whether ``error`` is a disk, or the user's share of it, without room."""
    if isinstance(error, OutputError):
        return "disk is full" in error.problem
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def in_a_line(error: BaseException) -> str:
    """What ``error`` says, as a sentence a user can read."""
    if isinstance(error, UserError):
        return " ".join(str(error).split())
    if is_out_of_memory(error):
        return "there was not enough memory."
    if is_disk_full(error):
        return "the disk is full."
    if isinstance(error, FileNotFoundError):
        return f"there is no file {error.filename} any more."
    if isinstance(error, OSError):
        return f"{error.filename or 'it'}: {error.strerror or error}."
    return f"something unexpected happened ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})."
