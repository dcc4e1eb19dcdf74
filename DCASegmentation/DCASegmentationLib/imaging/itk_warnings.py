"""ITK's warnings, which would end on stderr between the lines meant for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import SimpleITK as sitk


@contextmanager
def no_itk_warnings() -> Iterator[None]:
    """Keeps ITK's warnings off stderr; the errors raised by this package say what matters about a file."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)
