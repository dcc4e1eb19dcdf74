"""Correction with clicks in the worker: sessions stay open between requests."""

from __future__ import annotations

from collections.abc import Callable

from ..interaction.session import Sessions, handle
from ..types import ProgressCallback
from .protocol import Correct, Corrected


class Corrections:
    """Answers ``correct`` requests. It needs SimpleITK and NumPy, but neither PyTorch nor a model."""

    def __init__(self) -> None:
        self._sessions = Sessions()

    def answer(self, request: Correct, progress: ProgressCallback, cancelled: Callable[[], bool]) -> Corrected:
        """Execute the action of ``request`` (see ``server.Handler``).

        Raises UserError or any other error; then nothing has changed.
        """
        return Corrected(request.id, handle(request.action, self._sessions))
