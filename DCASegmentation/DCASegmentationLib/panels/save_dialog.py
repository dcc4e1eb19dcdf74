"""Where to save a file, as the user chooses it."""

from __future__ import annotations

from pathlib import Path

import qt


def askForFile(parent: qt.QWidget, title: str, name: str, suffix: str, kind: str) -> tuple[Path, bool] | None:
    """The path chosen, completed to end in ``suffix``, and whether a file there may be overwritten; None if cancelled.

    ``name`` without the suffix is suggested; ``kind`` describes the files, such as "CSV (*.csv)".
    """
    chosen = qt.QFileDialog.getSaveFileName(parent, title, name + suffix, kind)
    if not chosen:
        return None
    path = Path(chosen)
    # The dialog has asked about overwriting the name as typed, not about the one completed here.
    isAsTyped = path.name.endswith(suffix)
    return (path if isAsTyped else path.with_name(path.name + suffix)), isAsTyped
