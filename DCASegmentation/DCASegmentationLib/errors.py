"""Errors a user can do something about."""

from __future__ import annotations


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


class Cancelled(Exception):  # noqa: N818 - an outcome the user asked for, not a fault
    """The user stopped the work."""
