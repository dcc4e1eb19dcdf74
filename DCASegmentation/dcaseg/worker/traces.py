"""Removal of what a request has written if the worker stops before it answers. Used by the worker and by its caller."""

from __future__ import annotations

from pathlib import Path

from .. import temp_paths
from .protocol import AddCorrectedCase, AddUnlabeledCT, Download, Segment, Work


def remove_traces(request: Work, pid: int | None) -> None:
    """Remove what the process ``pid`` wrote for ``request``, but no files of other programs.

    ``pid`` is None if the process never reported its ID, and so has written nothing. The part of a download that has
    arrived stays: the next download resumes it. A training case that was complete stays.
    """
    if isinstance(request, Segment):
        temp_paths.remove_traces(Path(request.out), pid)
    elif isinstance(request, Download):
        temp_paths.remove_unfinished(Path(request.models), pid)
    elif isinstance(request, AddCorrectedCase | AddUnlabeledCT):
        # Imported here because it loads SimpleITK, which the worker does only for requests that need it.
        from ..training.corrections import CASES, UNLABELED

        folder = Path(request.folder)
        for each in (folder, folder / CASES, folder / UNLABELED):
            temp_paths.remove_unfinished(each, pid)
