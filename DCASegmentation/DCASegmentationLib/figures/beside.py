"""One picture with another one to its left, as high as it: the module's panel beside the views."""

from __future__ import annotations

import tempfile
from pathlib import Path

from DCASegmentationLib.errors import OutputError

_DPI = 100
_TITLE, _MARGIN = 60, 12  # pixels


def height_beside(picture: Path) -> int:
    """The height in pixels that a picture must have to be put beside ``picture`` (PNG) under a title."""
    from matplotlib.image import imread

    return int(imread(picture).shape[0]) - _TITLE - _MARGIN


def put_beside(left: Path, title: str, picture: Path) -> None:
    """Put ``left`` (PNG), under ``title``, to the left of ``picture`` (PNG), which is replaced. Raises OutputError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.image import imread

    small, large = imread(left), imread(picture)
    rows, columns = large.shape[:2]
    width = columns + small.shape[1] + 2 * _MARGIN
    figure = Figure(figsize=(width / _DPI, rows / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    # Places are given in pixels from the lower left corner.
    figure.figimage(small, _MARGIN, rows - _TITLE - small.shape[0], origin="upper")
    figure.figimage(large, width - columns, 0, origin="upper")
    figure.text(_MARGIN / width, 1 - 18 / rows, title, fontsize=13, weight="bold", va="top")
    try:
        with tempfile.TemporaryDirectory(dir=picture.parent, prefix=".beside-") as folder:
            finished = Path(folder, picture.name)
            figure.savefig(finished, format="png", dpi=_DPI)
            finished.replace(picture)
    except OSError as error:
        raise OutputError(f"The picture cannot be written to {picture}: {error.strerror or error}.") from error
