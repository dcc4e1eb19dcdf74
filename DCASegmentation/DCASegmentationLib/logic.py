"""Segmentation without any widget, as the panel and scripts call it, and one CT's way through the worker and back."""

from __future__ import annotations

import logging
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

from dcaseg.errors import Cancelled, UserError
from dcaseg.models.metadata_reader import read_metadata
from dcaseg.models.store import default_bundle
from dcaseg.organs import Vocabulary
from dcaseg.worker.protocol import Done, Failure, FoundDevices, Segment
from DCASegmentationLib import requirements
from DCASegmentationLib.event_loop import newTimer
from DCASegmentationLib.scene.case_record import CaseNodes, recall
from DCASegmentationLib.scene.ct_export import Region, ct_checksum, export_ct, require_ct
from DCASegmentationLib.scene.organ_changes import NOTHING_KEPT, Kept, kept_organs
from DCASegmentationLib.scene.result_import import ResultFiles, keep_for_review, show_result, take_maps
from DCASegmentationLib.scene.segmentation import require_target
from DCASegmentationLib.temporary_folder import newTemporaryFolder
from DCASegmentationLib.worker_client import WorkerProcess, newWorker

# What the sections Experts and Review show.
ALL_MAPS: Mapping[str, Any] = {
    "attention_levels": [1, 2, 3, 4],
    "dominant_expert": True,
    "entropy": True,
    "disagreement": True,
    "review": True,
}
# Shares of the progress: writing the CT comes before what the worker does, showing the results after it.
_EXPORTED, _COMPUTED = 0.02, 0.95


@dataclass(frozen=True)
class Order:
    """What to segment: the CT node, the model's folder (None for the default), the device, and where it goes.

    ``segmentation`` is an existing vtkMRMLSegmentationNode or None for a new one, ``roi`` a vtkMRMLMarkupsROINode or
    None for the whole CT, ``options`` fields of ``inference.options.SegmentOptions``. Organs of ``segmentation`` that
    were corrected or accepted stay as they are, unless ``keepCorrected`` is false.
    """

    ct: Any
    bundle: Path | None = None
    device: str = "auto"
    segmentation: Any | None = None
    roi: Any | None = None
    options: Mapping[str, Any] = field(default_factory=lambda: dict(ALL_MAPS))
    keepCorrected: bool = True


@dataclass(frozen=True)
class Outcome:
    """How a run ended: with ``nodes``, with an ``error`` (and ``details`` for the log), or ``cancelled``.

    ``device`` in words, ``seconds`` of each phase of the worker, ``elapsed`` seconds of the whole run, ``warnings``.
    """

    nodes: CaseNodes | None = None
    error: UserError | None = None
    cancelled: bool = False
    details: str = ""
    device: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    elapsed: float = 0.0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Run:
    id: str
    order: Order
    folder: Path
    region: Region
    vocabulary: Vocabulary
    onProgress: Callable[[float, str], None]
    onFinished: Callable[[Outcome], None]
    started: float = field(default_factory=time.monotonic)


class SegmentationRunner:
    """Runs one order at a time, in a worker that ``newWorker()`` gives when it is first needed.

    The scene is changed only when a result is complete. The run is given up when its CT is removed or the scene is
    closed. Temporary files are gone when ``onFinished`` is called, however the run ended.
    """

    def __init__(self, newWorker: Callable[[], WorkerProcess]) -> None:
        self._newWorker = newWorker
        self._worker: WorkerProcess | None = None
        self._run: _Run | None = None
        self._givenUp: UserError | None = None
        self._observations: list[int] = []
        self._showing: Iterator[Outcome | None] | None = None
        self._isCancelled = False
        self._checksum = ""
        self._checksumTimer = newTimer(self._takeChecksum)
        self._showTimer = newTimer(self._continueShowing)

    @property
    def isRunning(self) -> bool:
        return self._run is not None

    def start(
        self,
        order: Order,
        onProgress: Callable[[float, str], None],
        onFinished: Callable[[Outcome], None],
    ) -> None:
        """Export the CT and hand it to the worker; everything later is told by the callbacks.

        ``onProgress(fraction, message)``; ``onFinished(outcome)`` is called once. Raises UserError, with nothing begun,
        for an order that cannot be carried out, and OutputError where the temporary folder cannot be written.
        """
        if self._run is not None:
            raise UserError(_("A CT is being segmented already."), _("Wait until it is finished, or cancel it."))
        require_ct(order.ct)
        if order.segmentation is not None:
            require_target(order.segmentation, order.ct)
        if self._worker is None:
            self._worker = self._newWorker()
        bundle = default_bundle() if order.bundle is None else order.bundle
        vocabulary = read_metadata(bundle).vocabulary
        folder = newTemporaryFolder()
        try:
            onProgress(0.0, _("Exporting the CT"))
            path, region = export_ct(order.ct, folder, order.roi)
            run = _Run(uuid.uuid4().hex, order, folder, region, vocabulary, onProgress, onFinished)
            request = Segment(run.id, str(path), str(folder / "result"), str(bundle), order.device, dict(order.options))
            self._run, self._givenUp, self._isCancelled = run, None, False
            self._observe()
            self._worker.segment(request, self._onProgress, self._onDone, self._onError, self._onCancelled)
            self._checksum = ""
            self._checksumTimer.start()
        except BaseException:
            self._clear()
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def findDevices(self, onFound: Callable[[FoundDevices | None], None]) -> None:
        """Ask the worker, which starts if need be, what there is to compute on: see ``WorkerProcess.findDevices``.

        Raises UserError if no worker can be started.
        """
        if self._worker is None:
            self._worker = self._newWorker()
        self._worker.findDevices(onFound)

    def cancel(self) -> None:
        """Stop the run, if there is one; ``onFinished`` tells when it has ended."""
        self._isCancelled = True
        if self._run is not None and self._worker is not None:
            self._worker.cancel()

    def stop(self) -> None:
        """End run and worker at once, as when Slicer closes; nothing is called back."""
        run = self._run
        self._clear()
        if self._worker is not None:
            self._worker.stop()
        if run is not None:
            shutil.rmtree(run.folder, ignore_errors=True)

    def _takeChecksum(self) -> None:
        """Of the CT that was exported; in a turn of the event loop of its own, so that Slicer never stands."""
        run = self._run
        if run is not None and slicer.mrmlScene.IsNodePresent(run.order.ct):
            self._checksum = ct_checksum(run.order.ct)

    def _onProgress(self, fraction: float, message: str) -> None:
        if self._run is not None:
            self._run.onProgress(_EXPORTED + (_COMPUTED - _EXPORTED) * fraction, message)

    def _onDone(self, done: Done) -> None:
        run = self._run
        if run is None:
            return
        run.onProgress(_COMPUTED, _("Showing the result"))
        self._showing = self._show(run, done)
        self._continueShowing()

    def _continueShowing(self) -> None:
        """One step of showing the result; the next one follows from the event loop, so that Slicer never stands."""
        if self._showing is None:
            return
        try:
            outcome = next(self._showing)
        except UserError as error:
            outcome = Outcome(error=error)
        # Whatever else goes wrong: the run must end, or no other could start.
        except Exception as error:
            problem = _("The result could not be shown ({reason}).").format(reason=f"{type(error).__name__}: {error}")
            remedy = _("Apply again. If it happens again, report it with the log.")
            outcome = Outcome(error=UserError(problem, remedy), details=traceback.format_exc())
        if outcome is not None:
            self._finish(outcome)
        else:
            self._showTimer.start()

    def _show(self, run: _Run, done: Done) -> Iterator[Outcome | None]:
        """Read and show the result in steps, each giving None but the last one. The scene is changed in one step."""
        files = ResultFiles(Path(done.folder))
        for _step in files.read():
            yield None
        # The user had time to close the scene, delete the CT or press Cancel.
        if self._givenUp is not None or not slicer.mrmlScene.IsNodePresent(run.order.ct):
            yield Outcome(error=self._givenUp or _ctRemoved())
        elif self._isCancelled:
            yield Outcome(cancelled=True)
        else:
            segmentation = run.order.segmentation
            if segmentation is not None and not slicer.mrmlScene.IsNodePresent(segmentation):
                # Deleted meanwhile: the result is still worth having.
                segmentation = None
            kept = kept_organs(recall(segmentation)) if run.order.keepCorrected else NOTHING_KEPT
            nodes = show_result(files, run.order.ct, run.vocabulary, run.region, segmentation, kept)
            yield None
            if slicer.mrmlScene.IsNodePresent(nodes.segmentation) and slicer.mrmlScene.IsNodePresent(run.order.ct):
                keep_for_review(files, nodes, run.vocabulary, run.region, kept, self._checksum)
                yield None
                take_maps(files, nodes)
            warnings = (*done.warnings, *_keptInWords(kept, run.vocabulary))
            yield Outcome(nodes, device=done.device, seconds=done.seconds, warnings=warnings)

    def _onError(self, failure: Failure) -> None:
        self._finish(
            Outcome(error=self._givenUp or UserError(failure.problem, failure.remedy), details=failure.details)
        )

    def _onCancelled(self) -> None:
        if self._givenUp is not None:
            self._finish(Outcome(error=self._givenUp))
        else:
            self._finish(Outcome(cancelled=True))

    def _finish(self, outcome: Outcome) -> None:
        run = self._run
        if run is None:
            return
        self._clear()
        shutil.rmtree(run.folder, ignore_errors=True)
        run.onFinished(replace(outcome, elapsed=time.monotonic() - run.started))

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
        if self._run is not None and not slicer.mrmlScene.IsNodePresent(self._run.order.ct):
            self._giveUp(_ctRemoved())

    def _onSceneClosed(self, caller: Any, event: str) -> None:
        self._giveUp(
            UserError(_("The scene was closed while its CT was being segmented."), _("Load the CT and apply again."))
        )

    def _giveUp(self, reason: UserError) -> None:
        if self._givenUp is None:
            self._givenUp = reason
            self.cancel()


def _keptInWords(kept: Kept, vocabulary: Vocabulary) -> list[str]:
    """Which organs stayed as they were corrected or accepted, in a sentence; none if none did."""
    names = [vocabulary.by_key[key].name if key in vocabulary.by_key else key for key in kept.segments.values()]
    names += [
        _("{organ} (removed)").format(organ=vocabulary.by_key[key].name)
        for key in kept.removed
        if key in vocabulary.by_key
    ]
    return [_("Kept as corrected or accepted: {organs}.").format(organs=", ".join(names))] if names else []


def _ctRemoved() -> UserError:
    return UserError(_("The CT was removed while it was being segmented."), _("Load the CT and apply again."))


class SegmentationLogic:
    """One run at a time, in a worker process that starts when it is first needed; ``onLog`` gets what it says."""

    def __init__(self, onLog: Callable[[str], None] = logging.info) -> None:
        # Slicer's base class may come after this one.
        super().__init__()
        self._runner = SegmentationRunner(lambda: newWorker(onLog))

    @property
    def isRunning(self) -> bool:
        return self._runner.isRunning

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
    ) -> CaseNodes | None:
        """Segment a CT (vtkMRMLScalarVolumeNode in HU) and show the result in the scene.

        ``bundleFolder`` is the model (the default one if None), ``device`` auto, cuda, mps or cpu. The organs go into
        ``outputSegmentation``, of which only organs from earlier runs are replaced, or into a new segmentation.
        ``roi`` (vtkMRMLMarkupsROINode) limits what is computed. ``options`` are fields of
        ``inference.options.SegmentOptions``. With ``keepCorrected``, organs of ``outputSegmentation`` that were
        corrected or accepted stay as they are.

        With ``wait`` it returns the nodes of the result when they are there, while Slicer stays responsive, and raises
        Cancelled when the run is cancelled. Without, it returns None at once and ``onFinished(outcome)`` tells later.
        ``onProgress(fraction, message)`` is called meanwhile. Raises UserError, with ``problem`` and ``remedy``, for
        what cannot be segmented; the scene is then as it was.
        """
        if requirements.torchVersion() is None:
            raise UserError(_("PyTorch is not installed in Slicer."), _("Install it under Setup in the panel."))
        order = Order(
            ctNode,
            None if bundleFolder is None else Path(bundleFolder),
            device,
            outputSegmentation,
            roi,
            dict(options),
            keepCorrected,
        )
        outcomes: list[Outcome] = []

        def finished(outcome: Outcome) -> None:
            outcomes.append(outcome)
            onFinished(outcome)

        self._runner.start(order, onProgress, finished)
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

    def findDevices(self, onFound: Callable[[FoundDevices | None], None]) -> None:
        """Ask what this computer has to compute on; ``onFound(devices)`` tells later, with None if it is not known.

        ``devices.found`` names what ``segment`` takes as ``device``, ``devices.missing`` says why the others are not
        there. It waits for a run that goes on. Raises UserError if Slicer's Python is not found.
        """
        self._runner.findDevices(onFound)

    def cancel(self) -> None:
        """Stop the run, if there is one; its ``onFinished`` is called when it has ended."""
        self._runner.cancel()

    def stop(self) -> None:
        """End the worker process and what it does; it starts again when it is needed."""
        self._runner.stop()
