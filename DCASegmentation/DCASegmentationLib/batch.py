"""Segmentation of many CTs, one after another: a queue in front of the logic, without widgets.

At most one CT is computed at a time, in the worker that also serves the Apply button, so the model is loaded once. A
case that waits holds no voxels: a CT in the scene is recorded by its ID, and the worker reads a CT on the disk when its
turn comes.
"""

from __future__ import annotations

import enum
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import slicer
import slicer.util
from slicer.i18n import tr as _
from slicer.util import VTKObservationMixin

from dcaseg.cohort.case import Case
from dcaseg.cohort.discovery import Findings
from dcaseg.dicom.archive import gathered
from dcaseg.errors import UserError
from dcaseg.imaging.readers import read_ct
from dcaseg.models.metadata_reader import read_metadata
from DCASegmentationLib.event_loop import createTimer
from DCASegmentationLib.logic import ALL_MAPS, CTFiles, Outcome, SegmentationJob, SegmentationLogic
from DCASegmentationLib.scene.case_record import CaseNodes, find_cases
from DCASegmentationLib.scene.ct_export import compute_ct_checksum, looks_like_ct
from DCASegmentationLib.scene.nodes import removed_on_error
from DCASegmentationLib.scene.result_import import (
    ResultFiles,
    keep_for_review,
    show_ct_of_result,
    show_result,
    take_maps,
)
from DCASegmentationLib.scene.segmentation import list_organ_segments
from DCASegmentationLib.scene.volumes import CTPlacement

_log = logging.getLogger("DCASegmentationLib")
_MILLISECONDS_TO_WAIT = 500


class State(enum.Enum):
    """Where a case is in the queue."""

    Waiting = "waiting"
    Running = "running"
    Done = "done"
    Failed = "failed"
    Cancelled = "canceled"


@dataclass(frozen=True)
class BatchSettings:
    """What all cases have in common: model, device, options, and where results go.

    ``bundle`` is the folder of the model, ``options`` are fields of ``inference.options.SegmentOptions``. With
    ``resultFolder``, each result of a CT on the disk becomes a folder in it, and neither CT nor result is added to the
    scene. Results of CTs in the scene always go into the scene.
    """

    bundle: Path
    device: str = "auto"
    options: Mapping[str, Any] = field(default_factory=lambda: dict(ALL_MAPS))
    resultFolder: Path | None = None


@dataclass(eq=False)
class BatchCase:
    """One CT in the queue: ``ct`` is the ID of a volume node, or files.

    ``fraction`` (0 to 1) and ``message`` describe a run; later, ``message`` says what was found or what went wrong. The
    result is the segmentation node ``segmentationId``, or the folder ``resultFolder``, computed with the model
    ``bundle``.
    """

    name: str
    ct: str | CTFiles
    state: State = State.Waiting
    fraction: float = 0.0
    message: str = ""
    segmentationId: str = ""
    resultFolder: Path | None = None
    bundle: Path | None = None

    @property
    def isOver(self) -> bool:
        """Whether the case neither waits nor runs."""
        return self.state not in (State.Waiting, State.Running)

    @property
    def segmentation(self) -> Any | None:
        """The vtkMRMLSegmentationNode of the result; None if there is none, or not in the scene."""
        return slicer.mrmlScene.GetNodeByID(self.segmentationId) if self.segmentationId else None


class Batch(VTKObservationMixin):
    """A queue of CTs. ``onChanged(case)`` is called when a case changes, with None when the list changes.

    A failure of one case does not stop the others. Closing the scene ends the batch and empties the list.
    """

    def __init__(self, logic: SegmentationLogic, onChanged: Callable[[BatchCase | None], None]) -> None:
        VTKObservationMixin.__init__(self)
        self.cases: list[BatchCase] = []
        self._logic, self._onChanged = logic, onChanged
        self._settings: BatchSettings | None = None
        self._current: BatchCase | None = None
        self._next = createTimer(self._startNext)
        self._later = createTimer(self._startNext, _MILLISECONDS_TO_WAIT)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self._onSceneClosed)

    @property
    def isRunning(self) -> bool:
        """Whether cases are being segmented."""
        return self._settings is not None

    def add(self, cases: Iterable[BatchCase]) -> int:
        """Add cases to the end of the queue, except CTs that are in it already; returns how many were added.

        They are segmented even if the batch is already running.
        """
        known = {case.ct for case in self.cases}
        new = [case for case in cases if case.ct not in known]
        self.cases += new
        self._onChanged(None)
        return len(new)

    def start(self, settings: BatchSettings) -> None:
        """Segment the cases that wait, one after another."""
        if not self.isRunning and any(case.state is State.Waiting for case in self.cases):
            self._settings = settings
            self._next.start()
            self._onChanged(None)

    def cancel(self, case: BatchCase) -> None:
        """Cancel one case, whether it waits or runs; the others continue."""
        if case.state is State.Waiting:
            self._set(case, State.Cancelled, "")
        elif case is self._current:
            case.message = _("Canceling...")
            self._onChanged(case)
            self._logic.cancel()

    def cancelAll(self) -> None:
        """Cancel all cases that wait or run."""
        for case in list(self.cases):
            self.cancel(case)

    def retry(self, case: BatchCase) -> None:
        """Put a case that failed or was canceled back into the queue."""
        if case.state in (State.Failed, State.Cancelled):
            case.fraction = 0.0
            self._set(case, State.Waiting, "")

    def remove(self, case: BatchCase) -> None:
        """Remove a case from the list, unless it is running. Its result stays."""
        if case is not self._current and case in self.cases:
            self.cases.remove(case)
            self._onChanged(None)

    def stop(self) -> None:
        """End the batch without callbacks, for example when Slicer closes. The owner stops the logic."""
        self.removeObservers()
        self._next.stop()
        self._later.stop()
        self._settings = self._current = None
        self.cases = []

    def _set(self, case: BatchCase, state: State, message: str) -> None:
        case.state, case.message = state, message
        self._onChanged(case)

    def _startNext(self) -> None:
        """Start the next case that can be started, or end the batch."""
        settings = self._settings
        if settings is not None and self._logic.isRunning:
            # A run that the Apply button or a script started.
            self._later.start()
            return
        while settings is not None:
            case = next((case for case in self.cases if case.state is State.Waiting), None)
            if case is None:
                self._settings = None
                self._onChanged(None)
                return
            try:
                job = self._createJob(case, settings)
                self._current = case
                self._set(case, State.Running, "")
                self._logic.start(job, self._onProgress, self._onFinished)
                return
            except UserError as error:
                self._current = None
                self._set(case, State.Failed, str(error))
            # One case must not stop the others, whatever went wrong.
            except Exception as error:
                _log.exception("%s could not be segmented.", case.name)
                self._current = None
                reason = f"{type(error).__name__}: {error}"
                self._set(case, State.Failed, _("This CT could not be segmented ({reason}).").format(reason=reason))

    def _createJob(self, case: BatchCase, settings: BatchSettings) -> SegmentationJob:
        case.bundle, case.resultFolder, case.segmentationId = settings.bundle, None, ""
        ct: Any = case.ct
        folder = None
        if isinstance(case.ct, str):
            ct = slicer.mrmlScene.GetNodeByID(case.ct)
            if ct is None:
                raise UserError(_("The CT was removed from the scene."), _("Load it, and add it to the list again."))
        elif settings.resultFolder is not None:
            folder = _getUniquePath(settings.resultFolder, case.name)
        return SegmentationJob(
            ct, settings.bundle, settings.device, options=settings.options, resultFolder=folder, isShown=False
        )

    def _onProgress(self, fraction: float, message: str) -> None:
        case = self._current
        if case is not None and case.state is State.Running and fraction >= case.fraction:
            case.fraction, case.message = fraction, message
            self._onChanged(case)

    def _onFinished(self, outcome: Outcome) -> None:
        case, self._current = self._current, None
        if case is None:
            return
        # From the event loop: the runner is still ending this run.
        self._next.start()
        if outcome.nodes is not None:
            case.segmentationId = outcome.nodes.segmentation.GetID()
            self._set(case, State.Done, _formatSummary(outcome, len(list_organ_segments(outcome.nodes.segmentation))))
        elif outcome.folder is not None:
            case.resultFolder = outcome.folder
            self._set(case, State.Done, _formatSummary(outcome, None))
        elif outcome.cancelled:
            self._set(case, State.Cancelled, "")
        else:
            self._set(case, State.Failed, str(outcome.error))

    def _onSceneClosed(self, caller: Any, event: str) -> None:
        """The runner aborts its run by itself."""
        self._next.stop()
        self._later.stop()
        self._settings = self._current = None
        self.cases = []
        self._onChanged(None)


def _formatSummary(outcome: Outcome, organs: int | None) -> str:
    text = _("Done in {seconds:.0f} s.").format(seconds=outcome.elapsed)
    if organs is not None:
        text = _("{count} organs in {seconds:.0f} s.").format(count=organs, seconds=outcome.elapsed)
    return " ".join([text, *outcome.warnings])


def _getUniquePath(parent: Path, name: str) -> Path:
    """A path in ``parent`` that does not exist yet, named after a CT; nothing is ever replaced."""
    clean = re.sub(r"[^\w. -]+", "_", name).strip(" .")[:60] or "CT"
    number, path = 1, parent / clean
    while path.exists() or path.is_symlink():
        number += 1
        path = parent / f"{clean}-{number}"
    return path


def findCasesInScene() -> Iterator[BatchCase | None]:
    """The CTs in the scene that have no result of this module yet; yields None for every other volume.

    It takes a moment to tell whether a volume is a CT, so each is a step of its own.
    """
    for node_id in [node.GetID() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")]:
        node = slicer.mrmlScene.GetNodeByID(node_id)
        isNew = node is not None and not node.GetHideFromEditors() and not find_cases(node)
        yield BatchCase(node.GetName(), node_id) if isNew and looks_like_ct(node) else None


def createCases(found: Findings) -> list[BatchCase]:
    """The CTs that a search found on the disk; CTs that cannot be used are in the list as failed cases."""
    cases = [BatchCase(_getName(case), _getFiles(case)) for case in found.cases]
    # Series of other kinds, such as localizers or MR, are no failures.
    failed = [each for each in found.rejected if each.status == "failed"]
    return cases + [
        BatchCase(each.description or each.source, CTFiles((), each.source), State.Failed, message=each.reason)
        for each in failed
    ]


def _getName(case: Case) -> str:
    if not case.dicom:
        return Path(case.files[0]).name
    return " ".join(part for part in (case.patient, case.description or Path(case.source).name) if part)


def _getFiles(case: Case) -> CTFiles:
    files = tuple(Path(file) for file in case.files)
    return CTFiles(files, _getName(case), case.dicom, case.patient, case.study_date)


def loadResultInSteps(case: BatchCase) -> Iterator[CaseNodes | None]:
    """Add a result that was saved in a folder to the scene, with its CT, in steps; the last one yields its nodes.

    The folder does not change. Raises UserError if the CT or the result cannot be read.
    """
    source, folder, bundle = case.ct, case.resultFolder, case.bundle
    if not isinstance(source, CTFiles) or folder is None or bundle is None:
        raise UserError(_("This CT has no result in a folder."), _("Segment it first."))
    vocabulary = read_metadata(bundle).vocabulary
    files = ResultFiles(folder)
    for _step in files.read():
        yield None
    with ExitStack() as stack:
        path = source.files[0]
        if source.isDICOM:
            path = stack.enter_context(gathered(source.files, path.parent.name))
        files.ct = read_ct(path, notes=[])
    yield None
    with removed_on_error() as added:
        ct = show_ct_of_result(files, source.name, source.patient, source.study)
        added.append(ct)
        placement = CTPlacement.from_volume(ct)
        yield None
        if not slicer.mrmlScene.IsNodePresent(ct):
            raise UserError(_("The CT was removed from the scene."), _("Press Show again."))
        nodes = show_result(files, ct, vocabulary)
        added.append(nodes.segmentation)
        keep_for_review(files, nodes, vocabulary, checksum=compute_ct_checksum(ct), placement=placement)
    case.segmentationId = nodes.segmentation.GetID()
    # If the maps cannot be copied, the rest of the result is in the scene all the same.
    take_maps(files, nodes, keepFiles=True, placement=placement)
    yield nodes
