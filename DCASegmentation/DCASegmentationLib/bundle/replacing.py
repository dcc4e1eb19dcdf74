"""A new model in the place of an old one, which stays beside it under another name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from ..errors import OutputError
from ..imaging.writing import exchange, new_folder
from .loading import Bundle
from .metadata import METADATA

_BEFORE = "before"


@contextmanager
def replacing(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yields a folder to make the new bundle in and the name that the old one, ``folder``, will have.

    When the block succeeds the new bundle takes the name ``folder``; where it raises, everything is as it was. Raises
    OutputError where the folders cannot be renamed; then, too, the old bundle is in its place.
    """
    folder = folder.resolve()
    kept = _free_name(folder)
    new = folder.with_name(f"{folder.name}-new-{kept.name.rpartition(_BEFORE)[2].strip('-')}")
    with new_folder(new, recognized_by=METADATA) as temporary:
        yield temporary, kept
    Bundle.load(new)
    try:
        if exchange(new, folder):
            # The name is never without a model.
            new.rename(kept)
            return
        folder.rename(kept)
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be renamed ({error.strerror}); the new model is in {new}.", "Close what uses the old one."
        ) from None
    try:
        new.rename(folder)
    except OSError as error:
        kept.rename(folder)
        raise OutputError(f"{folder} cannot be replaced ({error.strerror}).", f"The new model is in {new}.") from None


def _free_name(folder: Path) -> Path:
    """``folder`` with the day in its name, and a number where there is one of that day."""
    today = f"{folder.name}-{_BEFORE}-{datetime.now(timezone.utc):%Y-%m-%d}"
    names = [today, *(f"{today}-{number}" for number in range(2, 1000))]
    return next(folder.with_name(name) for name in names if not folder.with_name(name).exists())
