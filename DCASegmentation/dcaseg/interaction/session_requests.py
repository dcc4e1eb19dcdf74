"""Requests to correction sessions, as plain data: ``handle`` serves them to a warm process.

    answer = handle({"type": "open", "ct": "ct.nrrd", "labels": "labels.nrrd", "names": {"10": "pancreas"}}, sessions)
    answer = handle({"type": "stroke", "session": answer["session"], "label": 10, "points": [[-12, 40, 95]],
                     "add": None, "patch": "patch.nrrd"}, sessions)

The answer to a stroke or an undo names the file ``patch``, an image on the CT's grid with the labels of the block that
may have changed, and its ``first`` voxel (i, j, k). The caller copies the patch into its own labels to accept a change,
and sends an undo to reject it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from ..errors import UserError
from ..imaging.readers import read_ct, read_labels
from ..imaging.writers import write_image
from .session import Change, CorrectionSession
from .strokes import Stroke
from .view import Engine, crop_grid

# A session holds a CT and two label maps; the worker has no memory for many of them.
_MAX_SESSIONS = 1


@dataclass
class Sessions:
    """Open sessions by number. If there are too many, the oldest one is closed.

    ``make_engine`` creates the engine of a new session; None means the default engine.
    """

    make_engine: Callable[[], Engine] | None = None
    _open: dict[int, CorrectionSession] = field(default_factory=dict)
    _next: int = 1
    # The CT of the last session and the state of its file: a caller whose labels changed opens the same CT again.
    _ct: tuple[tuple[str, int, int], sitk.Image] | None = None

    def add(self, session: CorrectionSession) -> int:
        """Add ``session`` and return its number."""
        while len(self._open) >= _MAX_SESSIONS:
            del self._open[min(self._open)]
        number = self._next
        self._open[number] = session
        self._next += 1
        return number

    def get(self, number: object) -> CorrectionSession:
        """Return the session ``number``. Raises UserError if it is not open."""
        session = self._open.get(number) if isinstance(number, int) else None
        if session is None:
            raise UserError("The correction session is closed.", "Open the CT for correction again.")
        return session

    def close(self, number: object) -> None:
        """Close a session, if it is open."""
        if isinstance(number, int):
            self._open.pop(number, None)
        if not self._open:
            self._ct = None

    def load_ct(self, path: Path) -> sitk.Image:
        """Return the CT in the file ``path``, which is read again only if it has changed. Raises what read_ct does."""
        try:
            status = path.stat()
        except OSError:
            # read_ct has a message for this.
            return read_ct(path)
        state = (str(path), status.st_mtime_ns, status.st_size)
        if self._ct is None or self._ct[0] != state:
            # Release the other CT and the sessions that hold it: there may be no memory for two.
            self._ct = None
            self._open.clear()
            self._ct = (state, read_ct(path))
        return self._ct[1]


def handle(request: Mapping[str, Any], sessions: Sessions) -> dict[str, Any]:
    """Execute ``request`` and return the answer as plain data. Raises UserError; then nothing has changed.

    The ``type`` of the request and its fields:

    ``open``: ``ct`` and ``labels`` (paths of images on the same grid); optional ``names`` (organ keys by label),
    ``titles`` (texts for messages by label), ``locked`` (labels), ``checksum`` (of the CT's voxels). The answer
    contains ``session``. Opening another CT closes the sessions of the earlier one, even if it fails.
    ``stroke``: ``session``, ``label``, ``points`` (RAS, mm), ``add`` (true, false, or null to let the mask decide),
    ``corners`` (two points or null), ``locked`` (labels locked since), ``patch`` (path of the file to write).
    ``undo``: ``session``, ``patch``. ``close``: ``session``.
    ``rewind``: ``session``, ``strokes``; undoes strokes until no more than this number is left; writes no patch. It
    may follow strokes whose answers have not arrived yet, of which some may fail. The answers to all requests but
    ``close`` contain ``strokes``, the number of strokes in effect.
    """
    request_type = request.get("type")
    if request_type == "open":
        return _open(request, sessions)
    if request_type == "close":
        sessions.close(request.get("session"))
        return {}
    if request_type not in ("stroke", "undo", "rewind"):
        raise UserError(f"Correction requests of type '{request_type}' do not exist.", "")
    session = sessions.get(request.get("session"))
    if request_type == "rewind":
        strokes = request.get("strokes")
        if not isinstance(strokes, int) or strokes < 0:
            raise UserError("The request does not state how many strokes to keep.", "")
        while len(session.changes) > strokes:
            session.undo()
        return {"strokes": len(session.changes)}
    patch = _get_path(request, "patch")
    if request_type == "undo":
        if session.changes:
            last = session.changes[-1]
            # First, so that an error leaves the stroke in effect.
            _write(session, last.before, last, patch)
        change = session.undo()
        return _answer(session, change, patch)
    try:
        points = tuple((float(x), float(y), float(z)) for x, y, z in request["points"])
        corners = None
        if request.get("corners") is not None:
            (a, b, c), (d, e, f) = request["corners"]
            corners = ((float(a), float(b), float(c)), (float(d), float(e), float(f)))
        label, add = int(request["label"]), request.get("add")
        locked = [int(each) for each in request.get("locked", ())]
    except (KeyError, TypeError, ValueError):
        raise UserError("The description of the click is not valid.", "Click again.") from None
    session.lock(locked)
    change = session.apply(label, Stroke(points, None if add is None else bool(add)), corners)
    try:
        _write(session, session.labels[change.box], change, patch)
    except UserError:
        # The caller cannot show the change, so it is undone.
        session.undo()
        raise
    return _answer(session, change, patch)


def _open(request: Mapping[str, Any], sessions: Sessions) -> dict[str, Any]:
    names = {int(label): str(key) for label, key in dict(request.get("names") or {}).items()}
    titles = {int(label): str(title) for label, title in dict(request.get("titles") or {}).items()}
    locked = [int(each) for each in request.get("locked", ())]
    engine = sessions.make_engine() if sessions.make_engine is not None else None
    session = CorrectionSession(
        sessions.load_ct(_get_path(request, "ct")),
        read_labels(_get_path(request, "labels")),
        names,
        locked,
        engine=engine,
        checksum=request.get("checksum"),
        titles=titles,
    )
    return {"session": sessions.add(session), "size": list(session.grid.size), "strokes": 0}


def _get_path(request: Mapping[str, Any], key: str) -> Path:
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"The request does not name the file '{key}'.", "")
    return Path(value)


def _write(session: CorrectionSession, block: np.ndarray, change: Change, path: Path) -> None:
    write_image(crop_grid(session.grid, change.box).make_image(np.ascontiguousarray(block)), path)


def _answer(session: CorrectionSession, change: Change, patch: Path) -> dict[str, Any]:
    z, y, x = change.box
    return {
        "patch": str(patch),
        "first": [x.start, y.start, z.start],
        "size": [x.stop - x.start, y.stop - y.start, z.stop - z.start],
        "label": change.label,
        "adds": change.adds,
        "added": change.added,
        "removed": change.removed,
        "voxels_lost": {str(label): voxels for label, voxels in change.voxels_lost.items()},
        "engine": change.engine,
        "seconds": round(change.seconds, 3),
        "strokes": len(session.changes),
    }
