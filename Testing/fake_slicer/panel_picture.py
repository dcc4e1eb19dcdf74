"""Draws the module's panel after a real run, as shown next to the views by ``dca demo``.

Run: python Testing/fake_slicer/panel_picture.py CT PICTURE HEIGHT [BUNDLE]

This loads the CT into a scene, presses Apply, waits for the real worker, and draws the panel HEIGHT pixels high.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_slicer.panel_run import WIDTH, as_high_as_its_contents, panel_in_fake_slicer, segment


def draw_panel(ct: Path, picture: Path, height: int) -> None:
    """Segment ``ct`` through the panel and write a picture of the panel. Exits with the panel's message on failure."""
    from dcaseg.imaging.readers import read_ct
    from DCASegmentationLib.scene.volumes import show_ct

    with panel_in_fake_slicer() as (panel, fake):
        QtWidgets.QApplication.setStyle("Fusion")
        show_ct(read_ct(ct), "CT")
        fake.process_events(0.1)
        segment(panel, fake)
        write(panel.widget.window(), picture, height)


def write(widget: Any, path: Path, height: int) -> None:
    """Draw the widget at its natural height, scaled to ``height`` pixels."""
    scale = height / as_high_as_its_contents(widget)
    image = QtGui.QImage(round(WIDTH * scale), height, QtGui.QImage.Format.Format_RGB32)
    image.setDevicePixelRatio(scale)
    widget.render(image, QtCore.QPoint(0, 0))
    if not image.save(str(path)):
        raise SystemExit(f"{path} cannot be written.")


if __name__ == "__main__":
    if len(sys.argv) > 4:
        os.environ["DCA_MODELS"] = sys.argv[4]
    draw_panel(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
