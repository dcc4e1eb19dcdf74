"""Fixtures for tests in the fake Slicer. They skip the test if slicer-core or PySide6 is not installed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def _fake_slicer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("slicer", reason="slicer-core is not installed")
    pytest.importorskip("PySide6", reason="PySide6-Essentials is not installed")
    from fake_slicer.fake_slicer import FakeSlicer

    return FakeSlicer(tmp_path_factory.mktemp("slicer"))


@pytest.fixture
def fake_slicer(_fake_slicer: Any) -> Iterator[Any]:
    """The installed fake Slicer with an empty scene.

    A test fails if a slot raises an error, which Qt would only print, or if Slicer's log is not empty; a test that
    expects log lines must remove them with ``log.clear()``.
    """
    from fake_slicer.fake_slicer import installed

    with installed(_fake_slicer) as fake:
        yield fake
        fake.process_events()
        assert not fake.slot_errors, f"Slots raised: {fake.slot_errors}"
        assert not fake.log.lines, f"Slicer's log contains: {fake.log.lines}"
        assert not fake.dialogs.unused_answers(), "The module did not ask every question that the test answers"


@pytest.fixture
def module(fake_slicer: Any) -> Any:
    """``DCASegmentation.py``, imported unmodified."""
    return fake_slicer.load_module()


@pytest.fixture
def module_widget(fake_slicer: Any, module: Any) -> Iterator[Any]:
    """The module's widget, set up, entered, and shown."""
    widget = fake_slicer.make_widget(module)
    yield widget
    widget.exit()
    widget.cleanup()
    widget.parent.close()
    fake_slicer.process_events()


@pytest.fixture
def module_panel(module_widget: Any) -> Any:
    """The panel in the module's widget."""
    return module_widget.panel


@pytest.fixture
def screenshot(tmp_path: Path) -> Callable[..., Path]:
    """``screenshot(widget, name, style)`` writes a PNG into the folder DCA_SCREENSHOTS, or a temporary one."""
    from fake_slicer.screenshot import screenshot as write

    folder = Path(os.environ.get("DCA_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return lambda widget, name, style="light": write(widget, folder / f"{name}.png", style)
