"""Correction with clicks, without widgets: sends strokes to the worker, previews changes, and keeps or drops them."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from slicer.i18n import tr as _

from dcaseg.errors import OutputError, UserError
from dcaseg.imaging.itk_environment import no_itk_warnings
from dcaseg.worker.protocol import Corrected, Failure
from DCASegmentationLib.event_loop import StepRunner
from DCASegmentationLib.scene.case_record import CaseNodes, read_case_nodes
from DCASegmentationLib.scene.click_labels import (
    ClickChange,
    ClickLabels,
    Target,
    create_click_labels,
    get_accepted_labels,
    get_ct_state,
    get_segmentation_state,
    require_correctable,
    write_change,
)
from DCASegmentationLib.scene.click_preview import hide_preview, show_preview
from DCASegmentationLib.scene.ct_export import CT_FILE, export_ct
from DCASegmentationLib.scene.storage import create_temporary_folder, write_nrrd
from DCASegmentationLib.scene.volumes import get_ijk_to_world, get_relative_box, merge_boxes
from DCASegmentationLib.surface_updater import SurfaceUpdater

Point = tuple[float, float, float]
Answer = Corrected | Failure

_log = logging.getLogger("DCASegmentationLib")


@dataclass(frozen=True)
class ClickWorker:
    """How to reach the worker.

    ``correct(action, onAnswer)`` sends a request of ``interaction.session_requests.handle`` (see
    ``WorkerProcess.correct``), ``pid()`` is the worker's process ID or None, and ``isBusy()`` says whether a
    segmentation is in progress.
    """

    correct: Callable[[Mapping[str, Any], Callable[[Answer], None]], None]
    pid: Callable[[], int | None]
    isBusy: Callable[[], bool]


@dataclass
class _Stroke:
    target: Target
    points: tuple[Point, ...]
    adds: bool
    corners: tuple[Point, Point] | None = None
    label: int = 0
    isDropped: bool = False
    isRepeated: bool = False


class ClickCorrection:
    """Corrects one case at a time with clicks; see :meth:`start`, :meth:`addStroke`, :meth:`keep`, and :meth:`drop`.

    The scene does not change before :meth:`keep`. ``onChanged()`` is called when the state or the message has changed,
    ``onBeforeKeep()`` before each kept click, to save an undo state. ``lastKept`` is the ID of the segment that the
    last kept click changed. No method waits for the worker.
    """

    def __init__(self, worker: ClickWorker, onChanged: Callable[[], None], onBeforeKeep: Callable[[], None]) -> None:
        self._worker, self._onChanged, self._onBeforeKeep = worker, onChanged, onBeforeKeep
        self._segmentation: Any = None
        self._folder: Path | None = None
        self._opening, self._surfaces = StepRunner(), SurfaceUpdater()
        self._number = 0
        self.message = ""
        self.error: UserError | None = None
        self.lastKept = ""
        self._close()

    def _close(self) -> None:
        """Forget the session, the preview, and everything that waits for an answer."""
        self._session: int | None = None
        self._isOpening = False
        # Answers to requests of an earlier session are ignored.
        self._generation = object()
        self._labels: ClickLabels | None = None
        self._sessionState: tuple[object, ...] = ()
        self._ctState: tuple[object, ...] = ()
        self._pid: int | None = None
        self._locked: set[int] = set()
        self._keptStrokes = 0
        self._previewed: list[ClickChange] = []
        self._queued: list[_Stroke] = []
        self._sent: list[_Stroke] = []

    @property
    def isOn(self) -> bool:
        """Whether a case is being corrected."""
        return self._segmentation is not None

    @property
    def isWaiting(self) -> bool:
        """Whether the case is being opened or a click is being computed."""
        return self._isOpening or self.isComputing

    @property
    def isComputing(self) -> bool:
        """Whether a click has not been answered yet."""
        return bool(self._queued) or any(not each.isDropped for each in self._sent)

    @property
    def hasPreview(self) -> bool:
        """Whether a change is waiting to be kept or dropped."""
        return any(each.gained or each.lost for each in self._previewed)

    def start(self, nodes: CaseNodes) -> None:
        """Start correcting a case: export it to the worker, so that the first click is answered as fast as others."""
        self.stop()
        self._segmentation = nodes.segmentation
        if self._worker.isBusy():
            self._fail(_createBusyError())
            return
        self._open()

    def stop(self) -> None:
        """Drop the preview and stop correcting."""
        if self._session is not None and self._pid == self._worker.pid():
            self._worker.correct({"type": "close", "session": self._session}, _ignore)
        self._opening.stop()
        hide_preview()
        self._close()
        self._segmentation = None
        self.message, self.error = "", None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def cleanup(self) -> None:
        """Stop everything, before the owner is destroyed."""
        self.stop()
        self._surfaces.stop()

    def refresh(self) -> None:
        """Follow changes by other tools now rather than at the next click; drops the preview if there were any."""
        nodes = read_case_nodes(self._segmentation)
        if nodes is not None and not self._isOpening and not self._worker.isBusy() and not self._isCurrent(nodes):
            self._open()

    def addStroke(
        self, target: Target, points: tuple[Point, ...], adds: bool, corners: tuple[Point, Point] | None = None
    ) -> None:
        """Correct ``target`` with a click or a scribble through ``points`` (RAS, mm, world); the preview follows.

        Nothing changes outside the box with opposite ``corners`` (RAS, mm, world).
        """
        nodes = read_case_nodes(self._segmentation)
        if nodes is None:
            return
        if self._worker.isBusy():
            self._fail(_createBusyError())
            return
        if not self._isOpening and not self._isCurrent(nodes):
            wasDropped = self.hasPreview
            self._open()
            if wasDropped:
                self._say(_("The segmentation was edited meanwhile, so the preview was discarded."))
        self._queued.append(_Stroke(target, points, adds, corners))
        if self._session is not None:
            self._sendQueued()
        self._onChanged()

    def keep(self) -> None:
        """Write the previewed clicks into the segmentation, each with an undo state of its own."""
        nodes = read_case_nodes(self._segmentation)
        if nodes is None or self._labels is None or self.isWaiting or not self.hasPreview:
            return
        if get_segmentation_state(nodes) != self._sessionState or get_ct_state(nodes) != self._ctState:
            self._close()
            hide_preview()
            self._fail(
                UserError(_("The segmentation was edited meanwhile, so the preview was discarded."), _("Click again."))
            )
            return
        changed: set[str] = set()
        for change in self._previewed:
            if change.gained or change.lost:
                self._onBeforeKeep()
                changed |= write_change(nodes, self._labels, change)
                self.lastKept = self._labels.segments[change.label]
        self._keptStrokes = self._previewed[-1].strokes
        self._previewed = []
        self._sessionState = get_segmentation_state(nodes)
        hide_preview()
        self._surfaces.update(nodes.segmentation, changed)
        self._say(_("Kept. Undo in the Segment Editor reverts one click at a time."))

    def drop(self) -> None:
        """Drop the preview and all clicks that have not been answered yet."""
        if not self._previewed and not self.isWaiting:
            return
        self._queued.clear()
        for stroke in self._sent:
            stroke.isDropped = True
        self._takeBack(0)
        self._rewind(self._keptStrokes)
        self._say(_("Preview discarded. Nothing was changed."))

    def dropLast(self) -> None:
        """Drop the last click of the preview; waits for no answer, so it does nothing while a click is computed."""
        if self.isWaiting or not self._previewed:
            return
        strokes = self._previewed[-1].strokes - 1
        self._takeBack(len(self._previewed) - 1)
        self._rewind(strokes)
        self._say(self._formatChanges() if self.hasPreview else _("Preview discarded. Nothing was changed."))

    def _takeBack(self, count: int) -> None:
        """Take the previewed changes after the first ``count`` out of the labels and the views."""
        assert self._labels is not None or not self._previewed
        while len(self._previewed) > count:
            change = self._previewed.pop()
            if self._labels is not None:
                self._labels.voxels[change.box] = change.before
        self._showPreview()

    def _rewind(self, strokes: int) -> None:
        if self._session is None:
            return
        generation = self._generation

        def onAnswer(answer: Answer) -> None:
            if isinstance(answer, Failure) and generation is self._generation:
                # The worker no longer knows the session, so the next click opens another one.
                self._session = None

        if self._pid == self._worker.pid():
            action = {"type": "rewind", "session": self._session, "strokes": strokes}
            self._worker.correct(action, onAnswer)

    def _isCurrent(self, nodes: CaseNodes) -> bool:
        """Whether the worker's session has the CT, the segments, and the locks of the scene."""
        return (
            self._labels is not None
            and self._session is not None
            and self._pid == self._worker.pid()
            and self._sessionState == get_segmentation_state(nodes)
            and self._ctState == get_ct_state(nodes)
            and self._locked <= get_accepted_labels(nodes, self._labels)
        )

    def _open(self) -> None:
        isSameCT, state = self._folder is not None, self._ctState
        self._close()
        hide_preview()
        self._ctState = state if isSameCT else ()
        self._isOpening = True
        self._opening.run(self._openInSteps())
        self._say(_("Preparing the CT..."))

    def _openInSteps(self) -> Iterator[None]:
        """Export the case and open a session, in steps that each take a fraction of a second."""
        try:
            nodes = read_case_nodes(self._segmentation)
            if nodes is None:
                raise UserError(_("The result is no longer in the scene."), _("Segment the CT again."))
            require_correctable(nodes)
            yield
            if self._folder is None:
                self._folder = create_temporary_folder()
            if get_ct_state(nodes) != self._ctState:
                export_ct(nodes.ct, self._folder)
                self._ctState = get_ct_state(nodes)
            yield
            self._sessionState = get_segmentation_state(nodes)
            labels = create_click_labels(nodes)
            yield
            path = self._folder / "labels.nrrd"
            self._write(nodes, labels, path)
            self._labels, self._locked = labels, get_accepted_labels(nodes, labels)
            self._requestSession(self._folder / CT_FILE, path, labels)
        except UserError as error:
            self._queued.clear()
            self._isOpening = False
            self._fail(error)
        except Exception:
            self._isOpening = False
            raise

    def _requestSession(self, ct: Path, path: Path, labels: ClickLabels) -> None:
        """Ask the worker for a session. Raises UserError if the worker cannot be started."""
        request = {
            "type": "open",
            "ct": str(ct),
            "labels": str(path),
            "names": {str(label): key for label, key in labels.keys.items()},
            "titles": {str(label): title for label, title in labels.titles.items()},
            "locked": sorted(self._locked),
        }
        generation = self._generation

        def onAnswer(answer: Answer) -> None:
            if generation is self._generation:
                self._onOpened(answer)

        self._worker.correct(request, onAnswer)

    @staticmethod
    def _write(nodes: CaseNodes, labels: ClickLabels, path: Path) -> None:
        try:
            write_nrrd(labels.voxels, np.diag([-1.0, -1.0, 1.0, 1.0]) @ get_ijk_to_world(nodes.ct), path)
        except OSError:
            raise OutputError(
                _("The labels could not be written to {folder}.").format(folder=path.parent),
                _("Free some space, or choose another temporary folder in Slicer's application settings (Modules)."),
            ) from None

    def _onOpened(self, answer: Answer) -> None:
        if isinstance(answer, Failure):
            self._queued.clear()
            self._close()
            self._fail(_createError(answer))
            return
        self._session, self._pid, self._isOpening = int(answer.answer["session"]), self._worker.pid(), False
        nodes, queued = read_case_nodes(self._segmentation), self._queued
        if nodes is not None and not self._isCurrent(nodes):
            # Something was edited meanwhile.
            self._open()
            self._queued = queued
            return
        self._say("")
        self._sendQueued()

    def _sendQueued(self) -> None:
        nodes = read_case_nodes(self._segmentation)
        strokes, self._queued = self._queued, []
        for stroke in strokes:
            try:
                if nodes is not None:
                    self._send(nodes, stroke)
            except UserError as error:
                self._fail(error)

    def _send(self, nodes: CaseNodes, stroke: _Stroke) -> None:
        assert self._labels is not None and self._folder is not None
        label = self._labels.get_label(stroke.target)
        if label is None:
            raise UserError(_("The segment was deleted."), _("Choose another organ."))
        self._locked |= get_accepted_labels(nodes, self._labels)
        if label in self._locked:
            raise UserError(
                _("{organ} is accepted, so clicks do not change it.").format(organ=self._labels.titles[label]),
                _("Undo its acceptance under Review, or set another status in the Segment Editor's list."),
            )
        stroke.label = label
        self._number += 1
        patch = self._folder / f"patch{self._number}.nrrd"
        action = {
            "type": "stroke",
            "session": self._session,
            "label": label,
            "points": [list(point) for point in stroke.points],
            "add": stroke.adds,
            "corners": None if stroke.corners is None else [list(corner) for corner in stroke.corners],
            "locked": sorted(self._locked),
            "patch": str(patch),
        }
        generation = self._generation

        def onAnswer(answer: Answer) -> None:
            if generation is self._generation:
                self._sent.remove(stroke)
                if not stroke.isDropped:
                    self._onStrokeAnswered(stroke, answer, patch)
            patch.unlink(missing_ok=True)

        self._sent.append(stroke)
        self.error, self.message = None, _("Computing...")
        self._worker.correct(action, onAnswer)

    def _onStrokeAnswered(self, stroke: _Stroke, answer: Answer, patch: Path) -> None:
        if isinstance(answer, Failure):
            if self._pid != self._worker.pid() and not self._previewed and not stroke.isRepeated:
                # The worker was replaced, for example because a run was canceled; the new one has no session.
                stroke.isRepeated = True
                self._open()
                self._queued = [stroke]
                return
            self._fail(_createError(answer))
            return
        try:
            change = self._read(stroke, answer.answer, patch)
        except (RuntimeError, ValueError, KeyError) as error:
            # The worker has applied the stroke, so its session no longer agrees with the preview.
            self._close()
            hide_preview()
            self._fail(
                UserError(
                    _("The result of the click could not be read ({reason}).").format(reason=error), _("Click again.")
                )
            )
            return
        assert self._labels is not None
        self._labels.voxels[change.box] = change.after
        if not self._previewed and not change.gained and not change.lost:
            self._keptStrokes = change.strokes
        else:
            self._previewed.append(change)
        self._showPreview()
        if change.gained or change.lost:
            self._say(self._formatChanges())
        else:
            self._say(_("The click agrees with the segment, so nothing changes."))

    def _read(self, stroke: _Stroke, answer: Mapping[str, Any], patch: Path) -> ClickChange:
        assert self._labels is not None
        with no_itk_warnings():
            after = sitk.GetArrayFromImage(sitk.ReadImage(str(patch)))
        i, j, k = answer["first"]
        depth, height, width = after.shape
        box = (slice(k, k + depth), slice(j, j + height), slice(i, i + width))
        before = self._labels.voxels[box].copy()
        if before.shape != after.shape:
            raise ValueError("it has another size")
        return ClickChange(stroke.label, stroke.adds, box, before, after.astype(before.dtype), int(answer["strokes"]))

    def _showPreview(self) -> None:
        nodes = read_case_nodes(self._segmentation)
        if nodes is None or nodes.ct is None or self._labels is None or not self.hasPreview:
            hide_preview()
            return
        whole = merge_boxes(*(change.box for change in self._previewed))
        after = self._labels.voxels[whole]
        before = after.copy()
        for change in reversed(self._previewed):
            before[get_relative_box(change.box, whole)] = change.before
        show_preview(nodes, whole, before, after)

    def _formatChanges(self) -> str:
        """What the previewed clicks change, by segment, in ml."""
        nodes, labels = read_case_nodes(self._segmentation), self._labels
        if nodes is None or nodes.ct is None or labels is None:
            return ""
        ml = float(np.prod(nodes.ct.GetSpacing())) / 1000
        amounts: dict[int, list[int]] = {}
        for change in self._previewed:
            gained = amounts.setdefault(change.label, [0, 0])
            gained[0] += change.gained
            gained[1] += change.lost
            for label, count in change.voxels_lost.items():
                amounts.setdefault(label, [0, 0])[1] += count
        parts = [
            f"{labels.titles.get(label, '?')}: " + ", ".join(
                f"{sign}{count * ml:.1f} ml" for sign, count in zip("+\N{MINUS SIGN}", counts, strict=True) if count
            )
            for label, counts in amounts.items() if any(counts)
        ]  # fmt: skip
        return _("{changes}. Press Enter to keep the change, Escape to discard it.").format(changes="; ".join(parts))

    def _say(self, message: str) -> None:
        self.message, self.error = message, None
        self._onChanged()

    def _fail(self, error: UserError) -> None:
        self.message, self.error = "", error
        self._onChanged()


def _createError(failure: Failure) -> UserError:
    """The error to show for a failed request."""
    if not failure.details:
        return UserError(failure.problem, failure.remedy)
    # Unexpected: the worker's advice is about segmenting.
    _log.error("%s\n%s", failure.problem, failure.details)
    return UserError(failure.problem, _("Click again. If the error persists, report it together with the log."))


def _createBusyError() -> UserError:
    return UserError(_("A CT is being segmented."), _("Click again when it has finished."))


def _ignore(answer: Answer) -> None:
    """Nothing depends on the answer."""
