"""Runs a real segmentation through the module's panel, for pictures of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PySide6 import QtWidgets

from fake_slicer.fake_slicer import FakeSlicer, installed

WIDTH = 360
_MAX_SECONDS = 900


@contextmanager
def panel_in_fake_slicer() -> Iterator[tuple[Any, FakeSlicer]]:
    """The panel of the unmodified module in a new fake Slicer with an empty scene."""
    with tempfile.TemporaryDirectory() as folder, installed(FakeSlicer(Path(folder))) as fake:
        panel = fake.make_widget(fake.load_module()).panel
        try:
            yield panel, fake
        finally:
            panel.cleanup()


def segment(panel: Any, fake: FakeSlicer) -> None:
    """Press Apply, wait for the worker, and show the dominant-expert map. Exits with the panel's message on failure."""
    panel.segmentPanel.ui.applyButton.click()
    fake.wait_for(lambda: not panel.logic.isRunning, _MAX_SECONDS)
    if panel.parameters.resultSegmentation is None:
        raise SystemExit(panel.segmentPanel.ui.messageLabel.text)
    panel.parameters.expertMap = "deciding"
    fake.process_events(1.0)


def as_high_as_its_contents(window: Any) -> int:
    """Make ``window`` as wide as a panel and as high as its contents; returns the height in pixels."""
    window.resize(WIDTH, 100)
    QtWidgets.QApplication.processEvents()
    height = max(window.sizeHint().height(), window.minimumSizeHint().height())
    window.resize(WIDTH, height)
    QtWidgets.QApplication.processEvents()
    return int(height)
