"""What goes wrong in a run, told to the user in one line of problem and one of remedy."""

from __future__ import annotations

import errno
import traceback

from ..errors import UserError, is_out_of_memory
from ..worker_protocol import Failure

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class LibraryError(UserError):
    """A library that the worker needs is missing or cannot be loaded."""

    @classmethod
    def of(cls, error: BaseException) -> LibraryError:
        """For what the import of the program's libraries raised."""
        if isinstance(error, ModuleNotFoundError) and error.name:
            library = error.name.split(".")[0]
            return cls(f"The Python package '{library}' is missing.", "Install what is missing under Setup.")
        # A package whose binary files do not fit the computer raises anything.
        return cls(
            f"A Python package cannot be loaded ({type(error).__name__}: {_first_line(error)}).",
            "Install the packages again under Setup.",
        )


def failure_of(run_id: str, error: BaseException) -> Failure:
    """The answer to the run ``run_id`` that ``error`` ended; a traceback is added where a developer needs it."""
    if isinstance(error, LibraryError):
        return Failure(run_id, error.problem, error.remedy, _traceback(error.__cause__ or error))
    if isinstance(error, UserError):
        return Failure(run_id, error.problem, error.remedy)
    if is_out_of_memory(error):
        return Failure(
            run_id,
            "There is not enough memory for this CT.",
            "Close other programs, or segment a part of the CT.",
            _traceback(error),
        )
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return Failure(run_id, "The disk is full.", "Free some space, or choose a folder on another disk.")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return Failure(run_id, f"{error.filename or 'The disk'} is read-only.", "Choose another folder.")
    if isinstance(error, PermissionError):
        return Failure(run_id, f"{error.filename} may not be written or read.", "Check its permissions.")
    return Failure(
        run_id,
        f"Something unexpected happened ({type(error).__name__}: {_first_line(error)}).",
        "Apply again; if it happens again, report it with the log.",
        _traceback(error),
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "")


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))
