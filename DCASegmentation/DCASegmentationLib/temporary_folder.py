"""A folder for the files of one run, where Slicer keeps its temporary files."""

from __future__ import annotations

from pathlib import Path

import slicer
from slicer.i18n import tr as _

from dcaseg.errors import OutputError
from dcaseg.temp_paths import clean, partial_name


def newTemporaryFolder() -> Path:
    """Make one; whoever asks for it removes it. Raises OutputError where it cannot be made.

    Those of a Slicer that was killed, with CTs in them, are removed first.
    """
    place = slicer.app.temporaryPath
    try:
        clean(Path(place))
        folder = partial_name(Path(place) / "DCASegmentation")
        folder.mkdir(mode=0o700)
        return folder
    except OSError as error:
        raise OutputError(
            _("The temporary folder {folder} cannot be written to: {reason}.").format(
                folder=place, reason=error.strerror or error
            ),
            _("Choose another one: Edit / Application Settings / Modules / Temporary directory."),
        ) from None
