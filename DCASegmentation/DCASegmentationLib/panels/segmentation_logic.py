"""Segmentation without any widget, as the panel and scripts call it: in the background, or until it is there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import slicer
from slicer.i18n import tr as _

from DCASegmentationLib.errors import Cancelled, UserError
from DCASegmentationLib.panels import requirements
from DCASegmentationLib.panels.segmentation_runner import ALL_MAPS, Order, Outcome, SegmentationRunner
from DCASegmentationLib.panels.worker_python import newWorker
from DCASegmentationLib.scene.case_record import CaseNodes
from DCASegmentationLib.worker_protocol import FoundDevices


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
