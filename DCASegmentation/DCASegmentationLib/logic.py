"""Segmentation without widgets, for the panel and for scripts: export the CT, run the worker, show the result."""

from __future__ import annotations

import shutil
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from dcaseg.errors import Cancelled, OutputError, UserError
from dcaseg.models.metadata_reader import read_metadata
from dcaseg.models.store import find_default_bundle
from dcaseg.organs import Vocabulary
from dcaseg.worker.protocol import Answer, Correct, Corrected, Devices, Done, Failure, FoundDevices, Segment
from DCASegmentationLib import requirements
from DCASegmentationLib.event_loop import createTimer
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.scene.ct_export import CT_FILE, Region, compute_ct_checksum, export_ct, require_ct
from DCASegmentationLib.scene.nodes import removed_on_error
from DCASegmentationLib.scene.organ_changes import NO_KEPT_ORGANS, KeptOrgans, find_kept_organs
from DCASegmentationLib.scene.partial_run import get_earlier_review, get_requested_organs
from DCASegmentationLib.scene.result_import import (
    ResultFiles,
    keep_for_review,
    show_ct_of_result,
    show_result,
    take_maps,
)
from DCASegmentationLib.scene.segmentation import require_target
from DCASegmentationLib.scene.storage import create_temporary_folder
from DCASegmentationLib.scene.view_setup import is_in_views
from DCASegmentationLib.scene.volumes import CTPlacement
from DCASegmentationLib.worker_client import WorkerProcess, createWorker

# Everything that the Experts and Review sections show.
ALL_MAPS: Mapping[str, Any] = {
    "attention_levels": [1, 2, 3, 4],
    "dominant_expert": True,
    "entropy": True,
    "disagreement": True,
    "review": True,
}
# On Windows, a file that a virus scanner has open cannot be deleted at once.
_MILLISECONDS_TO_DELETE, _ATTEMPTS_TO_DELETE = 500, 20
# Progress (0 to 1) after exporting the CT and after the worker has finished; the remainder is for showing the result.
_EXPORTED, _COMPUTED = 0.02, 0.95


@dataclass(frozen=True)
class CTFiles:
    """A CT on the disk: one image file, or the ``files`` of a DICOM series, called ``name``.

    ``patient`` (the ID) and ``study`` (a description or date) are its place in the subject hierarchy; they may be
    empty.
    """

    files: tuple[Path, ...]
    name: str
    isDICOM: bool = False
    patient: str = ""
    study: str = ""


@dataclass(frozen=True)
class SegmentationJob:
    """What to segment, and how.

    ``ct`` is a vtkMRMLScalarVolumeNode in HU, or CTFiles: then the worker reads the CT, and it is added to the scene
    with its result, unless ``resultFolder`` names a new folder, which then holds the result instead of the scene.
    ``bundle`` is the folder of the model (None for the default), ``device``
    "auto", "cuda", "mps", or "cpu". The organs go into ``segmentation``, an existing vtkMRMLSegmentationNode, or None
    for a new one. ``roi`` is a vtkMRMLMarkupsROINode, or None for the whole CT. ``options`` are fields of
    ``inference.options.SegmentOptions``. Organs of ``segmentation`` that were corrected or accepted stay as they are
    unless ``keepCorrected`` is False. Without ``isShown``, a result appears in the views only if they show its CT.
    ``onBeforeReplace(segmentation)`` is called before organs of an existing segmentation are replaced.
    """

    ct: Any
    bundle: Path | None = None
    device: str = "auto"
    segmentation: Any | None = None
    roi: Any | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: dict(ALL_MAPS))
    keepCorrected: bool = True
    resultFolder: Path | None = None
    isShown: bool = True
    onBeforeReplace: Callable[[Any], None] = lambda segmentation: None

    @property
    def isCTGone(self) -> bool:
        """Whether the CT node was removed from the scene."""
        return not isinstance(self.ct, CTFiles) and not slicer.mrmlScene.IsNodePresent(self.ct)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with ``nodes``, with a result ``folder`` that was asked for instead, with an ``error`` (and
    ``details`` for the log), or ``cancelled``.

    ``device`` is the device used, in words; ``seconds`` the time of each phase in the worker; ``elapsed`` the time of
    the whole run in seconds; ``warnings`` are messages for the user.
    """

    nodes: CaseNodes | None = None
    error: UserError | None = None
    cancelled: bool = False
    details: str = ""
    device: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    elapsed: float = 0.0
    warnings: tuple[str, ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class _Run:
    id: str
    job: SegmentationJob
    folder: Path
    region: Region | None
    # Where the CT was when it was exported; None if the worker reads it from files.
    placement: CTPlacement | None
    vocabulary: Vocabulary
    onProgress: Callable[[float, str], None]
    onFinished: Callable[[Outcome], None]
    started: float = field(default_factory=time.monotonic)


class SegmentationLogic:
    """Segments one CT at a time, in a worker process that starts when it is first needed.

    The scene changes only when a result is complete. If the CT is removed or the scene is closed, the run is aborted.
    Temporary files are deleted before ``onFinished`` is called, no matter how the run ended.
    """

    def __init__(self) -> None:
        # Slicer's base class may follow this one in the method resolution order.
        super().__init__()
        self._worker: WorkerProcess | None = None
        self._run: _Run | None = None
        self._abortReason: UserError | None = None
        self._observations: list[int] = []
        self._showing: Iterator[Outcome | None] | None = None
        self._isCancelled = False
        self._checksum = ""
        self._checksumTimer = createTimer(self._takeChecksum)
        self._showTimer = createTimer(self._continueShowing)
        # The temporary folders still to delete, and how often that has been tried.
        self._leftOver: dict[Path, int] = {}
        self._deleteTimer = createTimer(self._deleteLeftOver, _MILLISECONDS_TO_DELETE)

    @property
    def isRunning(self) -> bool:
        """Whether a run is in progress."""
        return self._run is not None

    def start(
        self,
        job: SegmentationJob,
        onProgress: Callable[[float, str], None],
        onFinished: Callable[[Outcome], None],
    ) -> None:
        """Start a job, as :meth:`segment` does without ``wait``: export the CT, pass it to the worker, and return.

        ``onProgress(fraction, message)`` is called during the run, ``onFinished(outcome)`` once at its end. Raises
        UserError before anything starts if the job cannot be carried out, and OutputError if the temporary folder
        cannot be written to.
        """
        requirements.requireTorch()
        if self._run is not None:
            raise UserError(_("Another CT is still being segmented."), _("Wait until it is finished, or cancel it."))
        if not isinstance(job.ct, CTFiles):
            require_ct(job.ct)
        if job.segmentation is not None:
            require_target(job.segmentation, job.ct)
        worker = self._getWorker()
        bundle = find_default_bundle() if job.bundle is None else job.bundle
        vocabulary = read_metadata(bundle).vocabulary
        folder = create_temporary_folder()
        try:
            region: Region | None = None
            files: tuple[str, ...] = ()
            copy = placement = None
            if isinstance(job.ct, CTFiles):
                path = job.ct.files[0]
                files = tuple(str(file) for file in job.ct.files) if job.ct.isDICOM else ()
                copy = CT_FILE if job.resultFolder is None else None
            else:
                onProgress(0.0, _("Exporting the CT"))
                path, region = export_ct(job.ct, folder, job.roi)
                placement = CTPlacement.from_volume(job.ct)
            run = _Run(uuid.uuid4().hex, job, folder, region, placement, vocabulary, onProgress, onFinished)
            out = job.resultFolder or folder / "result"
            request = Segment(
                run.id,
                str(path),
                str(out),
                str(bundle),
                job.device,
                dict(job.options),
                files=files,
                ct_copy=copy,
            )
            self._run, self._abortReason, self._isCancelled = run, None, False
            self._observe()
            worker.send(request, self._onAnswer, self._onProgress)
            self._checksum = ""
            if region is not None:
                self._checksumTimer.start()
        except BaseException:
            self._clear()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def findDevices(self, onFound: Callable[[FoundDevices | None], None]) -> None:
        """Find the devices of this computer; ``onFound(devices)`` is called later, with None if that failed.

        ``devices.found`` lists the values that :meth:`segment` accepts as ``device``; ``devices.missing`` says why the
        other devices are not available. The answer comes after the current run, if there is one. Raises UserError if
        Slicer's Python interpreter is not found.
        """

        def onAnswer(answer: Answer) -> None:
            onFound(answer if isinstance(answer, FoundDevices) else None)

        self._getWorker().send(Devices(uuid.uuid4().hex), onAnswer)

    def _getWorker(self) -> WorkerProcess:
        if self._worker is None:
            self._worker = createWorker()
        return self._worker

    @property
    def workerPid(self) -> int | None:
        """The process ID of the worker; None if there is no worker or it is starting."""
        return self._worker.pid if self._worker is not None else None

    def correct(self, action: Mapping[str, Any], onAnswer: Callable[[Corrected | Failure], None]) -> None:
        """Send a request of ``interaction.session_requests.handle`` to the worker, and start the worker if necessary.

        ``onAnswer`` is called once, after the current run; answers come in the order of the requests. If the worker
        ends, all waiting requests fail. Raises UserError if Slicer's Python interpreter is not found.
        """

        def onWorkerAnswer(answer: Answer) -> None:
            assert isinstance(answer, Corrected | Failure), "a correction is never canceled"
            onAnswer(answer)

        self._getWorker().send(Correct(uuid.uuid4().hex, action), onWorkerAnswer)

    def cancel(self) -> None:
        """Cancel the run, if there is one; its ``onFinished`` is called when it has ended."""
        self._isCancelled = True
        if self._run is not None and self._worker is not None:
            self._worker.cancel(self._run.id)

    def stop(self) -> None:
        """Stop the run and the worker at once without any callback, for example when Slicer closes.

        The worker starts again when it is needed.
        """
        run = self._run
        self._clear()
        if self._worker is not None:
            self._worker.stop()
        if run is not None:
            self._delete(run.folder)
        self._deleteTimer.stop()

    def _takeChecksum(self) -> None:
        """Compute the checksum of the exported CT, in its own turn of the event loop to keep Slicer responsive."""
        run = self._run
        if run is not None and not run.job.isCTGone:
            self._checksum = compute_ct_checksum(run.job.ct)

    def _onProgress(self, fraction: float, message: str) -> None:
        if self._run is not None:
            self._run.onProgress(_EXPORTED + (_COMPUTED - _EXPORTED) * fraction, message)

    def _onAnswer(self, answer: Answer) -> None:
        run = self._run
        if run is None:
            return
        if isinstance(answer, Done):
            run.onProgress(_COMPUTED, _("Showing the result"))
            self._showing = self._show(run, answer)
            self._continueShowing()
        elif isinstance(answer, Failure):
            error = self._abortReason or UserError(answer.problem, answer.remedy)
            self._finish(Outcome(error=error, details=answer.details))
        elif self._abortReason is not None:
            self._finish(Outcome(error=self._abortReason))
        else:
            self._finish(Outcome(cancelled=True))

    def _continueShowing(self) -> None:
        """Do one step of showing the result; the event loop runs the next one, so that Slicer stays responsive."""
        if self._showing is None:
            return
        try:
            outcome = next(self._showing)
        except UserError as error:
            outcome = Outcome(error=error)
        # Catch everything else too: the run must end, or no other run could start.
        except Exception as error:
            problem = _("The result could not be shown ({reason}).").format(reason=f"{type(error).__name__}: {error}")
            remedy = _("Press Apply again. If the error persists, report it together with the log.")
            outcome = Outcome(error=UserError(problem, remedy), details=traceback.format_exc())
        if outcome is not None:
            self._finish(outcome)
        else:
            self._showTimer.start()

    def _show(self, run: _Run, done: Done) -> Iterator[Outcome | None]:
        """Read and show the result in steps. Yields None after each step and the outcome after the last one."""
        if run.job.resultFolder is not None:
            yield Outcome(device=done.device, seconds=done.seconds, warnings=done.warnings, folder=Path(done.folder))
            return
        files = ResultFiles(Path(done.folder))
        for _step in files.read():
            yield None
        # Meanwhile the user may have closed the scene, deleted the CT, or pressed Cancel.
        if self._abortReason is not None or run.job.isCTGone:
            yield Outcome(error=self._abortReason or _createCTRemovedError())
        elif self._isCancelled:
            yield Outcome(cancelled=True)
        else:
            with removed_on_error() as added:
                yield from self._addToScene(run, done, files, added)

    def _addToScene(self, run: _Run, done: Done, files: ResultFiles, added: list[Any]) -> Iterator[Outcome | None]:
        """The last steps of :meth:`_show`, which change the scene. ``added`` receives the nodes that are new in it."""
        ct, placement, warnings = run.job.ct, run.placement, list(done.warnings)
        if isinstance(ct, CTFiles):
            ct = show_ct_of_result(files, ct.name, ct.patient, ct.study, done.warnings)
            added.append(ct)
            placement = CTPlacement.from_volume(ct)
            yield None
            self._checksum = compute_ct_checksum(ct) if slicer.mrmlScene.IsNodePresent(ct) else ""
            yield None
            # The scene may have been closed between two steps.
            if not slicer.mrmlScene.IsNodePresent(ct):
                yield Outcome(error=self._abortReason or _createCTRemovedError())
                return
        segmentation = run.job.segmentation
        if segmentation is not None and (problem := _findTargetProblem(segmentation, ct)):
            # Deleted or changed meanwhile.
            warnings.append(_("The organs are in a new segmentation: {problem}").format(problem=problem))
            segmentation = None
        requested = get_requested_organs(run.job.options.get("organs"), run.vocabulary)
        kept = find_kept_organs(segmentation, requested) if run.job.keepCorrected else NO_KEPT_ORGANS
        earlier = get_earlier_review(segmentation, ct)
        if segmentation is not None:
            run.job.onBeforeReplace(segmentation)
        nodes = show_result(files, ct, run.vocabulary, run.region, segmentation, kept, requested)
        if segmentation is None:
            added.append(nodes.segmentation)
        if not run.job.isShown and not is_in_views(ct):
            nodes.segmentation.GetDisplayNode().SetVisibility(False)
        yield None
        if slicer.mrmlScene.IsNodePresent(nodes.segmentation) and slicer.mrmlScene.IsNodePresent(ct):
            try:
                keep_for_review(
                    files, nodes, run.vocabulary, run.region, kept, self._checksum, requested, earlier, placement
                )
            except Exception:
                added.extend(nodes.list_label_maps())
                raise
            yield None
            try:
                take_maps(files, nodes, placement=placement)
            except OutputError as error:
                # The organs are of use without the maps.
                warnings.append(str(error))
        warnings += _formatKeptOrgans(kept, run.vocabulary)
        yield Outcome(nodes, device=done.device, seconds=done.seconds, warnings=tuple(warnings))

    def _finish(self, outcome: Outcome) -> None:
        run = self._run
        if run is None:
            return
        self._clear()
        self._delete(run.folder)
        run.onFinished(replace(outcome, elapsed=time.monotonic() - run.started))

    def _delete(self, folder: Path) -> None:
        """Delete a temporary folder, which may contain the CT, now or as soon as its files are no longer open."""
        self._leftOver[folder] = 0
        self._deleteLeftOver()

    def _deleteLeftOver(self) -> None:
        for folder in self._leftOver:
            shutil.rmtree(folder, ignore_errors=True)
        left = {folder: attempts + 1 for folder, attempts in self._leftOver.items() if folder.exists()}
        self._leftOver = {folder: attempts for folder, attempts in left.items() if attempts < _ATTEMPTS_TO_DELETE}
        if self._leftOver:
            self._deleteTimer.start()

    def _observe(self) -> None:
        scene = slicer.mrmlScene
        self._observations = [
            scene.AddObserver(slicer.vtkMRMLScene.NodeRemovedEvent, self._onNodeRemoved),
            scene.AddObserver(slicer.vtkMRMLScene.StartCloseEvent, self._onSceneClosed),
        ]

    def _clear(self) -> None:
        for observation in self._observations:
            slicer.mrmlScene.RemoveObserver(observation)
        self._observations = []
        self._run = self._showing = None
        self._checksumTimer.stop()
        self._showTimer.stop()

    def _onNodeRemoved(self, caller: Any, event: str) -> None:
        if self._run is not None and self._run.job.isCTGone:
            self._abort(_createCTRemovedError())

    def _onSceneClosed(self, caller: Any, event: str) -> None:
        self._abort(
            UserError(
                _("The scene was closed while its CT was being segmented."), _("Load the CT and press Apply again.")
            )
        )

    def _abort(self, reason: UserError) -> None:
        if self._abortReason is None:
            self._abortReason = reason
            self.cancel()

    def segment(
        self,
        ctNode: Any,
        bundleFolder: str | Path | None = None,
        device: str = "auto",
        outputSegmentation: Any | None = None,
        roi: Any | None = None,
        options: Mapping[str, Any] = ALL_MAPS,
        wait: bool = True,
        keepCorrected: bool = True,
        onProgress: Callable[[float, str], None] = lambda fraction, message: None,
        onFinished: Callable[[Outcome], None] = lambda outcome: None,
        onBeforeReplace: Callable[[Any], None] = lambda segmentation: None,
    ) -> CaseNodes | None:
        """Segment a CT (vtkMRMLScalarVolumeNode in HU) and show the result in the scene.

        ``bundleFolder`` is the folder of the model (None for the default), ``device`` "auto", "cuda", "mps", or "cpu".
        The organs go into ``outputSegmentation``, where they replace the same organs from earlier runs, or into a new
        segmentation. ``roi`` (vtkMRMLMarkupsROINode) limits the segmentation to a part of the CT; outside it, organs of
        ``outputSegmentation`` stay as they are. ``options`` are fields of ``inference.options.SegmentOptions``. With
        ``keepCorrected``, organs of ``outputSegmentation`` that were corrected or accepted stay as they are.
        ``onBeforeReplace(segmentation)`` is called before organs in ``outputSegmentation`` are replaced.

        With ``wait``, this returns the nodes of the result once they are in the scene, while Slicer stays responsive,
        and raises Cancelled if the run is canceled. Without it, this returns None at once and ``onFinished(outcome)``
        is called at the end. ``onProgress(fraction, message)`` is called during the run. Raises UserError, with
        ``problem`` and ``remedy``, if the CT cannot be segmented; the scene is then unchanged.
        """
        job = SegmentationJob(
            ctNode,
            None if bundleFolder is None else Path(bundleFolder),
            device,
            outputSegmentation,
            roi,
            dict(options),
            keepCorrected,
            onBeforeReplace=onBeforeReplace,
        )
        outcomes: list[Outcome] = []

        def finished(outcome: Outcome) -> None:
            outcomes.append(outcome)
            onFinished(outcome)

        self.start(job, onProgress, finished)
        if not wait:
            return None
        try:
            while not outcomes:
                slicer.app.processEvents()
                time.sleep(0.01)
        except BaseException:
            self.cancel()
            raise
        if outcomes[0].cancelled:
            raise Cancelled
        if outcomes[0].error is not None:
            raise outcomes[0].error
        return outcomes[0].nodes


def _formatKeptOrgans(kept: KeptOrgans, vocabulary: Vocabulary) -> list[str]:
    """A sentence that names the organs that were kept as corrected or accepted; empty if there are none."""
    names = [vocabulary.by_key[key].name if key in vocabulary.by_key else key for key in kept.segments.values()]
    names += [
        _("{organ} (removed)").format(organ=vocabulary.by_key[key].name)
        for key in kept.removed
        if key in vocabulary.by_key
    ]
    return [_("Kept because corrected or accepted: {organs}.").format(organs=", ".join(names))] if names else []


def _findTargetProblem(segmentation: Any, ct: Any) -> str:
    """Why the organs of the CT can no longer be put into this vtkMRMLSegmentationNode; empty if they can."""
    if not slicer.mrmlScene.IsNodePresent(segmentation):
        return _("{name} was deleted.").format(name=segmentation.GetName())
    try:
        require_target(segmentation, ct)
    except UserError as error:
        return error.problem
    return ""


def _createCTRemovedError() -> UserError:
    return UserError(_("The CT was removed while it was being segmented."), _("Load the CT and press Apply again."))
