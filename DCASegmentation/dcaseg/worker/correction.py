"""Correction with clicks in the worker: sessions stay open between requests."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .protocol import Correct, Corrected

if TYPE_CHECKING:
    from ..interaction.session import Sessions


class Corrections:
    """Answers ``correct`` requests. It needs SimpleITK and NumPy, but neither PyTorch nor a model."""

    def __init__(self) -> None:
        self._sessions: Sessions | None = None

    def answer(self, request: Correct) -> Corrected:
        """Execute the action of ``request``. Raises UserError or any other error; then nothing has changed."""
        # Imported late: this file is loaded before the standard streams are safe from what libraries print.
        from ..interaction.session import Sessions, handle

        if self._sessions is None:
            self._sessions = Sessions()
        return Corrected(request.id, handle(request.action, self._sessions))
