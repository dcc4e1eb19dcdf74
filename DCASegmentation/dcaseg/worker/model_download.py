"""Downloads models on request. It does not load torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import Cancelled, UserError, root_cause
from ..models.download import Source, download_bundle
from ..types import ProgressCallback
from .protocol import Download, Downloaded


class Downloader:
    """Downloads a model and adds it to the user's own ones."""

    def answer(self, request: Download, progress: ProgressCallback, cancelled: Callable[[], bool]) -> Downloaded:
        """Carry out ``request`` (see ``server.Handler``). After an error, the part that has arrived is kept."""
        try:
            folder = download_bundle(Source.parse(request.address), Path(request.models), progress)
        except (UserError, Cancelled):
            raise
        # Servers and files fail in unforeseen ways. The user needs one sentence.
        except Exception as error:
            raise UserError(f"The download failed: {root_cause(error)}.") from error
        return Downloaded(request.id, str(folder))
