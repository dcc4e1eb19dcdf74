"""A folder for the files of one run, where Slicer keeps its temporary files."""

from __future__ import annotations

import tempfile
from pathlib import Path

import slicer
from slicer.i18n import tr as _

from DCASegmentationLib.errors import OutputError


def newTemporaryFolder() -> Path:
    """Make one; whoever asks for it removes it. Raises OutputError where it cannot be made."""
    place = slicer.app.temporaryPath
    try:
        return Path(tempfile.mkdtemp(prefix="DCASegmentation-", dir=place))
    except OSError as error:
        raise OutputError(
            _("The temporary folder {folder} cannot be written to: {reason}.").format(
                folder=place, reason=error.strerror or error
            ),
            _("Choose another one: Edit / Application Settings / Modules / Temporary directory."),
        ) from None
