"""Correction with clicks in the worker: sessions stay open between requests."""

from __future__ import annotations

from collections.abc import Callable

from ..interaction.engines import default_engine
from ..interaction.session import Sessions, handle
from ..interaction.view import Engine
from ..types import ProgressCallback
from .protocol import Correct, Corrected


class Corrections:
    """Answers ``correct`` requests with ``default_engine``. Without PyTorch or a click network, it needs neither."""

    def __init__(self) -> None:
        self._sessions = Sessions(self._loaded_engine)
        self._engine: Engine | None = None

    def _loaded_engine(self) -> Engine:
        """Return the engine, loaded once for all sessions: the first one waits for it, before its first click."""
        if self._engine is None:
            self._engine = default_engine()
        return self._engine

    def answer(self, request: Correct, progress: ProgressCallback, cancelled: Callable[[], bool]) -> Corrected:
        """Execute the action of ``request`` (see ``server.Handler``).

        Raises UserError or any other error; then nothing has changed.
        """
        return Corrected(request.id, handle(request.action, self._sessions))
