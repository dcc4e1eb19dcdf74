"""The Batch section: segments many CTs, from the scene or from a folder, one after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from dcaseg.cohort.discovery import Search
from dcaseg.dicom.archive import Rules
from dcaseg.errors import UserError
from DCASegmentationLib.batch import (
    Batch,
    BatchCase,
    BatchSettings,
    State,
    createCases,
    findCasesInScene,
    loadResultInSteps,
)
from DCASegmentationLib.event_loop import StepRunner, createTimer
from DCASegmentationLib.logic import CTFiles, SegmentationLogic
from DCASegmentationLib.widgets.html import formatError
from DCASegmentationLib.widgets.result_panel import startFolder
from DCASegmentationLib.widgets.tables import makeCompact, setRows

_MAX_ROWS = 8
_SEARCH_SECONDS = 0.03  # of a step of the search
_SCENE, _FOLDER = 0, 1  # the items of resultsSelector


class BatchPanel:
    """The widgets of the Batch section.

    ``layout`` is the Qt layout that the panel is added to, ``logic`` runs the segmentations. Callbacks:
    ``getSettings(resultFolder)`` returns the choices in the Segment section and raises UserError if nothing can be
    segmented with them; ``onShow(segmentation)`` shows a result; ``onRunning(isRunning)`` is called when the batch
    starts or ends.
    """

    def __init__(
        self,
        layout: qt.QLayout,
        uiFolder: Path,
        logic: SegmentationLogic,
        getSettings: Callable[[Path | None], BatchSettings],
        onShow: Callable[[Any], None],
        onRunning: Callable[[bool], None],
    ) -> None:
        self._getSettings, self._onShow, self._onRunning = getSettings, onShow, onRunning
        self._wasRunning = False
        self._resultFolder: Path | None = None
        self._loading: BatchCase | None = None
        self._steps = StepRunner()
        self.batch = Batch(logic, self._onChanged)
        self.widget = slicer.util.loadUI(str(uiFolder / "Batch.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        makeCompact(self.ui.batchTable)
        self.ui.addSceneButton.connect("clicked()", self.onAddScene)
        self.ui.addFolderButton.connect("clicked()", self.onAddFolder)
        self.ui.resultsSelector.connect("activated(int)", self._onResultsChosen)
        self.ui.startButton.connect("clicked()", self.onStart)
        self.ui.showButton.connect("clicked()", self.onShowSelected)
        self.ui.cancelCaseButton.connect("clicked()", self.onCancelSelected)
        self.ui.retryButton.connect("clicked()", self.onRetrySelected)
        self.ui.removeButton.connect("clicked()", self.onRemoveSelected)
        self.ui.batchTable.connect("itemSelectionChanged()", self._updateButtons)
        self.ui.batchTable.connect("cellActivated(int,int)", self._onActivated)
        # Progress of a case comes often; the table is not rebuilt for it.
        self._summaryTimer = createTimer(self._updateSummary, 50)
        self._showMessage("")
        self._fill()

    @property
    def isRunning(self) -> bool:
        """Whether cases are being segmented."""
        return self.batch.isRunning

    def onAddScene(self) -> None:
        """Add the CTs in the scene that have no result yet."""
        self._steps.run(self._searchSceneInSteps(), self._updateButtons)
        self._updateButtons()

    def onAddFolder(self) -> None:
        """Ask for a folder and add its CTs; during a search, stop it instead."""
        if self._steps.isRunning:
            self._steps.stop()
            self._showMessage(_("The search was stopped."))
            self._updateButtons()
            return
        folder = qt.QFileDialog.getExistingDirectory(
            self.widget, _("Segment the CTs in a folder and its subfolders"), startFolder()
        )
        if not folder:
            return
        self._steps.run(self._searchFolderInSteps(Path(folder)), self._updateButtons)
        self._updateButtons()

    def onStart(self) -> None:
        """Segment the cases that wait; during a batch, cancel all."""
        if self.isRunning:
            self.batch.cancelAll()
            return
        try:
            settings = self._getSettings(self._resultFolder)
        except UserError as error:
            self._showMessage(formatError(error))
            return
        self._showMessage("")
        self.batch.start(settings)

    def onShowSelected(self) -> None:
        """Show the result of the selected case; a result in a folder is loaded first."""
        for case in self._getSelectedCases():
            self._show(case)
            return

    def onCancelSelected(self) -> None:
        """Cancel the selected cases."""
        for case in self._getSelectedCases():
            self.batch.cancel(case)

    def onRetrySelected(self) -> None:
        """Put selected cases that failed or were canceled back into the queue."""
        for case in self._getSelectedCases():
            self.batch.retry(case)

    def onRemoveSelected(self) -> None:
        """Remove the selected cases from the list."""
        for case in self._getSelectedCases():
            self.batch.remove(case)

    def cleanup(self) -> None:
        """Slicer is closing or the module is being reloaded: end the batch."""
        self._steps.stop()
        self._summaryTimer.stop()
        self.batch.stop()

    def _searchSceneInSteps(self) -> Iterator[None]:
        cases = []
        for case in findCasesInScene():
            cases += [case] if case is not None else []
            yield
        added = self.batch.add(cases)
        if not cases:
            self._showMessage(_("No CT in the scene is waiting to be segmented."))
        else:
            self._showMessage("" if added else _("All CTs in the scene are already in the list."))

    def _searchFolderInSteps(self, folder: Path) -> Iterator[None]:
        """Search a folder for CTs, a few files in each turn of the event loop."""
        self._showMessage(_("Searching for CTs..."))
        try:
            search = Search(folder, self._resultFolder or folder, Rules())
            until = time.monotonic() + _SEARCH_SECONDS
            for _step in search.iter_steps():
                if time.monotonic() >= until:
                    self._showMessage(_("Searching for CTs: {count} files.").format(count=search.files))
                    yield
                    until = time.monotonic() + _SEARCH_SECONDS
        except UserError as error:
            self._showMessage(formatError(error))
            return
        cases = createCases(search.found)
        added = self.batch.add([case for case in cases if case.state is State.Waiting])
        unusable = self.batch.add([case for case in cases if case.state is State.Failed])
        skipped = [each for each in search.found.rejected if each.status == "skipped"]
        message = _("1 CT was added.") if added == 1 else _("{count} CTs were added.").format(count=added)
        if unusable:
            message += " " + _("{count} cannot be used.").format(count=unusable)
        if not cases:
            message = _("No CT was found in {folder}.").format(folder=folder)
        if skipped:
            reasons = "; ".join(sorted({each.reason for each in skipped})[:3])
            text = _("{count} other series were left out ({reasons}).")
            if len(skipped) == 1:
                text = _("{count} other series was left out ({reasons}).")
            message += " " + text.format(count=len(skipped), reasons=reasons)
        self._showMessage(message)

    def _show(self, case: BatchCase) -> None:
        if case.segmentation is not None:
            self._onShow(case.segmentation)
        elif case.resultFolder is not None and not self._steps.isRunning:
            self._loading = case
            self._showMessage(_("Loading {name}...").format(name=case.name))
            self._steps.run(self._loadCaseInSteps(case), self._updateButtons)
            self._updateButtons()

    def _loadCaseInSteps(self, case: BatchCase) -> Iterator[None]:
        yield  # let the message appear first
        try:
            with slicer.util.WaitCursor():
                for _nodes in loadResultInSteps(case):
                    yield
        except UserError as error:
            self._showMessage(formatError(error))
            return
        self._showMessage("")
        if case.segmentation is not None:
            self._onShow(case.segmentation)

    def _onResultsChosen(self, index: int) -> None:
        folder = ""
        if index == _FOLDER:
            folder = qt.QFileDialog.getExistingDirectory(self.widget, _("Folder for the results"), startFolder())
        self._resultFolder = Path(folder) if folder else None
        self.ui.resultsSelector.currentIndex = _FOLDER if folder else _SCENE
        self._updateSummary()

    def _onActivated(self, row: int, column: int) -> None:
        self._show(self.batch.cases[row])

    def _onChanged(self, case: BatchCase | None) -> None:
        if case is None:
            if self._loading is not None and self._loading not in self.batch.cases:
                # The scene was closed, or the row removed, while its result was being loaded.
                self._steps.stop()
                self._loading = None
            self._fill()
        elif case in self.batch.cases:
            self._fillRow(self.batch.cases.index(case))
            self._updateButtons()
            self._summaryTimer.start()
        if self.isRunning != self._wasRunning:
            self._wasRunning = self.isRunning
            self._onRunning(self.isRunning)

    def _fill(self) -> None:
        table = self.ui.batchTable
        setRows(table, len(self.batch.cases), _MAX_ROWS)
        table.visible = bool(self.batch.cases)
        for row in range(len(self.batch.cases)):
            self._fillRow(row)
        self._updateSummary()
        self._updateButtons()

    def _fillRow(self, row: int) -> None:
        case = self.batch.cases[row]
        for column, text in enumerate((case.name, _formatCase(case))):
            item = self.ui.batchTable.item(row, column)
            if item is None:
                item = qt.QTableWidgetItem("")
                self.ui.batchTable.setItem(row, column, item)
            item.setText(text)
            item.setToolTip(case.name if column == 0 else case.message or text)

    def _getSelectedCases(self) -> list[BatchCase]:
        items = [self.ui.batchTable.item(row, 0) for row in range(len(self.batch.cases))]
        return [case for case, item in zip(self.batch.cases, items, strict=True) if item and item.isSelected()]

    def _updateButtons(self) -> None:
        selected, ui = self._getSelectedCases(), self.ui
        isSearching = self._steps.isRunning and self._loading is None
        if not self._steps.isRunning:
            self._loading = None
        ui.addFolderButton.text = _("Stop search") if isSearching else _("Add folder...")
        ui.addFolderButton.enabled = self._loading is None
        ui.addSceneButton.enabled = not self._steps.isRunning
        waiting = any(case.state is State.Waiting for case in self.batch.cases)
        ui.startButton.text = _("Cancel all") if self.isRunning else _("Start")
        ui.startButton.enabled = self.isRunning or waiting
        ui.resultsSelector.enabled = not self.isRunning
        ui.selectionFrame.visible = bool(self.batch.cases)
        canShow = len(selected) == 1 and (selected[0].segmentation or selected[0].resultFolder) is not None
        ui.showButton.enabled = canShow and selected[0].state is State.Done and not self._steps.isRunning
        ui.cancelCaseButton.enabled = any(not case.isOver for case in selected)
        ui.retryButton.enabled = any(_canRetry(case) for case in selected)
        ui.removeButton.enabled = any(case.state is not State.Running for case in selected)
        # One message in full: the cells are narrow.
        ui.caseLabel.text = _formatCase(selected[0], isLong=True) if len(selected) == 1 else ""
        ui.caseLabel.visible = bool(ui.caseLabel.text)

    def _updateSummary(self) -> None:
        cases = self.batch.cases
        counts = [(state, sum(case.state is state for case in cases)) for state in State]
        words = ", ".join(f"{count} {_formatState(state)}" for state, count in counts if count)
        self.ui.summaryLabel.text = words
        self.ui.summaryLabel.visible = bool(words)
        onDisk = [case for case in cases if isinstance(case.ct, CTFiles) and case.state is State.Waiting]
        if self._resultFolder is not None:
            note = _("CTs from a folder: results are saved in {folder}.").format(folder=self._resultFolder)
        elif onDisk:
            note = _("Each CT from the folder stays in memory with its result.")
        else:
            note = ""
        self.ui.resultsNoteLabel.text = note
        self.ui.resultsNoteLabel.visible = bool(note)
        self.ui.resultsSelector.visible = any(isinstance(case.ct, CTFiles) for case in cases)

    def _showMessage(self, message: str) -> None:
        self.ui.batchMessageLabel.text = message
        self.ui.batchMessageLabel.visible = bool(message)


def _canRetry(case: BatchCase) -> bool:
    isUsable = not isinstance(case.ct, CTFiles) or bool(case.ct.files)
    return case.state in (State.Failed, State.Cancelled) and isUsable


def _formatState(state: State) -> str:
    return {
        State.Waiting: _("waiting"),
        State.Running: _("running"),
        State.Done: _("done"),
        State.Failed: _("failed"),
        State.Cancelled: _("canceled"),
    }[state]


def _formatCase(case: BatchCase, isLong: bool = False) -> str:
    words = _formatState(case.state)
    if case.state is State.Running:
        words = _("{percent}%").format(percent=round(100 * case.fraction))
    if not isLong:
        return words
    return f"{case.name}: {words}. {case.message}" if case.message else f"{case.name}: {words}."
