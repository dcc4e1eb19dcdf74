"""One click as one call with plain data, for a process that stays warm between clicks.

    answer = handle({"type": "open", "ct": "ct.nrrd", "labels": "labels.nrrd", "names": {"10": "pancreas"}}, sessions)
    answer = handle({"type": "stroke", "session": answer["session"], "label": 10, "points": [[-12, 40, 95]],
                     "add": None, "patch": "patch.nrrd"}, sessions)

Each answer of a stroke or an undo names the file ``patch``: the labels of the block that may have changed, an image
whose origin puts it in its place on the CT's grid, and ``first`` (i, j, k), its first voxel. The caller copies it into
its own labels; what it does not copy has not happened for it, so "keep" and "drop" are the caller's copying and undo.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError
from ..imaging.reading import read_ct, read_labels
from ..imaging.writing import write_image
from .session import Change, CorrectionSession
from .strokes import Stroke
from .view import Engine, sub_grid

# A session holds a CT and two label maps; a worker beside a run has no room for many.
_MOST_SESSIONS = 1


@dataclass
class Sessions:
    """The sessions that are open, by number; the oldest goes where there are too many. ``make_engine`` gives the
    engine of a new session, None the default one."""

    make_engine: Callable[[], Engine] | None = None
    _open: dict[int, CorrectionSession] = field(default_factory=dict)
    _next: int = 1

    def add(self, session: CorrectionSession) -> int:
        """Keep ``session``; gives its number."""
        while len(self._open) >= _MOST_SESSIONS:
            del self._open[min(self._open)]
        number = self._next
        self._open[number] = session
        self._next += 1
        return number

    def get(self, number: object) -> CorrectionSession:
        """Raises UserError where that session is not open (any more)."""
        session = self._open.get(number) if isinstance(number, int) else None
        if session is None:
            raise UserError("The correction is not open any more.", "Open the CT for correction again.")
        return session

    def close(self, number: object) -> None:
        """Let go of a session; nothing where it is not open."""
        if isinstance(number, int):
            self._open.pop(number, None)


def handle(request: Mapping[str, Any], sessions: Sessions) -> dict[str, Any]:
    """Do what ``request`` asks, and answer with plain data. Raises UserError; then nothing has changed.

    ``open``: ``ct`` and ``labels`` (paths on one grid), and where known ``names`` (organ keys by label), ``locked``
    (labels), ``checksum`` (of the CT's voxels). Answers ``session``.
    ``stroke``: ``session``, ``label``, ``points`` (RAS, mm), ``add`` (true, false or null: decided by the mask),
    ``corners`` (two points or null), ``locked`` (labels locked meanwhile), ``patch`` (path of the file to write).
    ``undo``: ``session``, ``patch``. ``close``: ``session``.
    """
    kind = request.get("type")
    if kind == "open":
        return _open(request, sessions)
    if kind == "close":
        sessions.close(request.get("session"))
        return {}
    if kind not in ("stroke", "undo"):
        raise UserError(f"There is no request '{kind}' for corrections.", "")
    session = sessions.get(request.get("session"))
    patch = _path(request, "patch")
    if kind == "undo":
        change = session.undo()
        _write(session, change, patch)
        return _answer(change, patch)
    try:
        points = tuple((float(x), float(y), float(z)) for x, y, z in request["points"])
        corners = None
        if request.get("corners") is not None:
            (a, b, c), (d, e, f) = request["corners"]
            corners = ((float(a), float(b), float(c)), (float(d), float(e), float(f)))
        label, add = int(request["label"]), request.get("add")
        locked = [int(each) for each in request.get("locked", ())]
    except (KeyError, TypeError, ValueError):
        raise UserError("The click is not described as it must be.", "Click again.") from None
    session.lock(locked)
    change = session.apply(label, Stroke(points, None if add is None else bool(add)), corners)
    try:
        _write(session, change, patch)
    except UserError:
        # The caller has nothing to show: it did not happen.
        session.undo()
        raise
    return _answer(change, patch)


def _open(request: Mapping[str, Any], sessions: Sessions) -> dict[str, Any]:
    names = {int(label): str(key) for label, key in dict(request.get("names") or {}).items()}
    locked = [int(each) for each in request.get("locked", ())]
    engine = sessions.make_engine() if sessions.make_engine is not None else None
    session = CorrectionSession(
        read_ct(_path(request, "ct")),
        read_labels(_path(request, "labels")),
        names,
        locked,
        engine=engine,
        checksum=request.get("checksum"),
    )
    return {"session": sessions.add(session), "size": list(session.grid.size)}


def _path(request: Mapping[str, Any], key: str) -> Path:
    value = request.get(key)
    if not isinstance(value, str) or not value:
        raise UserError(f"The request names no file '{key}'.", "")
    return Path(value)


def _write(session: CorrectionSession, change: Change, path: Path) -> None:
    block = np.ascontiguousarray(session.labels[change.box])
    write_image(sub_grid(session.grid, change.box).image_of(block), path)


def _answer(change: Change, patch: Path) -> dict[str, Any]:
    z, y, x = change.box
    return {
        "patch": str(patch),
        "first": [x.start, y.start, z.start],
        "size": [x.stop - x.start, y.stop - y.start, z.stop - z.start],
        "label": change.label,
        "adds": change.adds,
        "added": change.added,
        "removed": change.removed,
        "given_up": {str(label): voxels for label, voxels in change.given_up.items()},
        "engine": change.engine,
        "seconds": round(change.seconds, 3),
    }
