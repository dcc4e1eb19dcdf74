"""The Slicer module's panel beside the views in the demo's picture, where the checkout and Qt are there to draw it."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

# The bench on which the module runs outside Slicer is part of the repository, not of the package.
_PROGRAM = Path(__file__).resolve().parents[3] / "Testing" / "bench" / "panel_picture.py"
_SECONDS = 600
_TITLE = "The module's panel"


def add_panel(picture: Path, ct: Path, bundle: str | None) -> str:
    """Segment ``ct`` once more through the module's panel and put the panel beside ``picture``.

    Returns why it could not be done, in one line; empty when it was.
    """
    if not _PROGRAM.is_file():
        return "The picture is without the module's panel, which is drawn from a checkout of the repository only."
    if find_spec("PySide6") is None or find_spec("slicer") is None:
        return 'The picture is without the module\'s panel. To have it: pip install -e ".[bench]"'
    from ..figures.beside import height_beside, put_beside

    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder, "panel.png")
        command = [sys.executable, str(_PROGRAM), str(ct), str(drawn), str(height_beside(picture)), *_model(bundle)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            return "The picture is without the module's panel, which took too long to draw."
        if run.returncode != 0 or not drawn.is_file():
            last = (run.stderr.strip().splitlines() or [f"exit code {run.returncode}"])[-1]
            return f"The picture is without the module's panel, which could not be drawn: {last}"
        put_beside(drawn, _TITLE, picture)
    return ""


def _model(bundle: str | None) -> list[str]:
    from ..bundle.finding import find_bundle

    return [] if bundle is None else [str(find_bundle(bundle).resolve())]
