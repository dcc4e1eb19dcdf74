"""Temporary folders in Slicer's own temporary directory, one for each run."""

from __future__ import annotations

from pathlib import Path

import slicer
from slicer.i18n import tr as _

from dcaseg.errors import OutputError
from dcaseg.temp_paths import clean, partial_name


def newTemporaryFolder() -> Path:
    """Create a temporary folder; the caller must remove it.

    This first removes folders left behind by a Slicer process that was killed, because they contain CTs. Raises
    OutputError if the folder cannot be created.
    """
    parent = slicer.app.temporaryPath
    try:
        clean(Path(parent))
        folder = partial_name(Path(parent) / "DCASegmentation")
        folder.mkdir(mode=0o700)
        return folder
    except OSError as error:
        raise OutputError(
            _("The temporary folder {folder} cannot be written to: {reason}.").format(
                folder=parent, reason=error.strerror or error
            ),
            _("Choose another folder under Edit / Application Settings / Modules / Temporary directory."),
        ) from None
