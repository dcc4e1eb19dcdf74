"""Plots onto the disk, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from ...errors import OutputError

FORMATS = (".png", ".pdf", ".svg")


def save_figure(figure: Figure, path: Path) -> None:
    """Write ``figure`` as .png, .pdf or .svg, replacing what is there.

    Raises OutputError for another format or a path that cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path.name}: plots cannot be written in that format.", f"Use {', '.join(FORMATS)}.")
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}.", "Choose another place.") from None
    finally:
        temporary.unlink(missing_ok=True)
