"""An error as the panel shows it."""

from __future__ import annotations

from html import escape

from DCASegmentationLib.errors import UserError


def errorText(error: UserError) -> str:
    """What is wrong, in bold, and what to do, as text for a label."""
    return f"<b>{escape(error.problem)}</b> {escape(error.remedy)}"
