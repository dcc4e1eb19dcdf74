"""The Review section: the findings, the decision on each, what changed, and adding the case to a training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import qt
import slicer
import slicer.util
from slicer.i18n import tr as _

from dcaseg.errors import UserError
from dcaseg.imaging.label_comparison import OrganChange
from dcaseg.organs import Organ
from dcaseg.review.schema import Finding
from DCASegmentationLib.event_loop import SegmentationObserver
from DCASegmentationLib.scene import editable_area, finding_view
from DCASegmentationLib.scene.case_record import CaseNodes, lacks_label_maps, read_case_nodes
from DCASegmentationLib.scene.finding_status import (
    accept_suggestion,
    compute_organ_progress,
    create_missing_findings_error,
    follow_edits,
    get_or_add_segment,
    get_organ_keys,
    is_organ_reviewed,
    mark_organ,
    mark_visited,
    set_status,
    take_back,
)
from DCASegmentationLib.scene.finding_view import get_finding_voxels
from DCASegmentationLib.scene.maps import list_available_maps
from DCASegmentationLib.scene.organ_changes import compute_organ_changes
from DCASegmentationLib.scene.review_record import (
    ACCEPTED,
    CORRECTED,
    FLAGGED,
    SUGGESTION,
    TO_CHECK,
    ReviewState,
    read_review,
    read_state,
    read_vocabulary,
)
from DCASegmentationLib.scene.segmentation import require_voxels
from DCASegmentationLib.scene.storage import save_table
from DCASegmentationLib.scene.training_case import CorrectedCase, get_next_case_version, require_reviewed
from DCASegmentationLib.surface_updater import SurfaceUpdater
from DCASegmentationLib.widgets.html import formatError
from DCASegmentationLib.widgets.result_panel import askForFile, startFolder
from DCASegmentationLib.widgets.tables import ChangesTable, FindingsTable, formatChanges
from DCASegmentationLib.widgets.training_set import TrainingSetWriter

_REVIEWED, _CT_ALONE = "reviewed", "ct"
_FINDING, _UNCERTAIN, _EVERYWHERE = "finding", "uncertain", "everywhere"
_TRAINING_SET = "DCASegmentation/TrainingSet"


class ReviewPanel:
    """The widgets of the Review section. All decisions are stored on the segmentation node.

    ``layout`` is the Qt layout that the panel is added to. Callbacks: ``onEdit(segmentId, makeArea)`` opens the Segment
    Editor on a segment, limited to the volume that ``makeArea()`` returns (see ``editable_area``; None for no limit);
    ``onLeaveFinding()`` ends that editing; ``onBeforeChange()`` saves a state for the Segment Editor's undo;
    ``onFix(organ)`` turns on the click tool for the organ with this key.
    """

    def __init__(
        self,
        layout: qt.QLayout,
        uiFolder: Path,
        onEdit: Callable[[str, Callable[[], Any]], None],
        onLeaveFinding: Callable[[], None],
        onBeforeChange: Callable[[], None],
        onFix: Callable[[str], None],
    ) -> None:
        self._onFix = onFix
        self._onEdit, self._onLeaveFinding, self._onBeforeChange = onEdit, onLeaveFinding, onBeforeChange
        self._segmentation: Any = None
        self._findings: tuple[Finding, ...] = ()
        self._current = -1
        self._changes: tuple[OrganChange, ...] = ()
        # Why the review cannot follow the segmentation; empty if it can.
        self._problem = ""
        self._watch = SegmentationObserver(self._onSegmentationChanged)
        self._surfaces = SurfaceUpdater()
        self._writer = TrainingSetWriter(self._onAdded)
        self.widget = slicer.util.loadUI(str(uiFolder / "Review.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self._table = FindingsTable(self.ui.findingsTable)
        self._changesTable = ChangesTable(self.ui.changesTable, self._onOrganReviewed)
        for title, name in (
            (_("within this finding"), _FINDING),
            (_("in uncertain voxels"), _UNCERTAIN),
            (_("everywhere"), _EVERYWHERE),
        ):
            self.ui.limitSelector.addItem(title, name)
        for title, name in ((_("with reviewed organs"), _REVIEWED), (_("CT alone, without labels"), _CT_ALONE)):
            self.ui.trainingSetSelector.addItem(title, name)
        self.ui.findingsTable.connect("cellClicked(int,int)", self._onCellClicked)
        # The arrow keys too, or a decision would go to another finding than the one that is highlighted.
        self.ui.findingsTable.connect("currentCellChanged(int,int,int,int)", self._onCurrentCellChanged)
        self.ui.previousButton.connect("clicked()", self.goToPrevious)
        self.ui.nextButton.connect("clicked()", self.goToNext)
        self.ui.acceptButton.connect("clicked(bool)", self._onAccept)
        self.ui.suggestionButton.connect("clicked(bool)", self._onSuggestion)
        self.ui.flagButton.connect("clicked(bool)", self._onFlag)
        self.ui.editButton.connect("clicked()", self._onEditClicked)
        self.ui.fixButton.connect("clicked()", self._onFixClicked)
        self.ui.changesButton.connect("toggled(bool)", self._onChangesToggled)
        self.ui.copyChangesButton.connect("clicked()", self.onCopyChanges)
        self.ui.saveChangesButton.connect("clicked()", self.onSaveChanges)
        self.ui.trainingSetButton.connect("clicked()", self.onAddToTrainingSet)
        self._shortcuts = [
            self._createShortcut("Ctrl+Down", self.goToNext),
            self._createShortcut("Ctrl+Up", self.goToPrevious),
            # Slicer's toolbars own Ctrl+Shift with A, T, Space, and arrows; a key with two owners does nothing.
            self._createShortcut("Ctrl+Shift+Return", self.ui.acceptButton.click),
            self._createShortcut("Ctrl+Shift+F", self.ui.flagButton.click),
        ]
        self._onChangesToggled(False)
        self.setResult(None)

    def setResult(self, nodes: CaseNodes | None) -> None:
        """Review this result; None if there is none."""
        self._leave()
        self._segmentation = nodes.segmentation if nodes is not None else None
        review = read_review(nodes.segmentation) if nodes is not None else None
        self._findings = review.findings if review is not None else ()
        self._watch.watch(self._segmentation)
        self._showMessage("")
        if nodes is not None and lacks_label_maps(nodes.segmentation):
            self._showError(create_missing_findings_error(nodes))
        elif nodes is not None:
            self._attempt(lambda: require_voxels(nodes.segmentation))
        self._table.fill(self._findings, self._state)
        hint = _("Segment a CT to see which findings to check first.")
        if nodes is not None:
            hint = (
                _("The review found no region that is likely to be wrong.")
                if review is not None
                else _("This result has no review.")
            )
        self.ui.reviewHintLabel.text = hint
        self.ui.reviewHintLabel.visible = not self._findings
        for widget in (self.ui.findingsTable, self.ui.checkedBar, self.ui.findingLabel, self.ui.previousButton,
                       self.ui.nextButton, self.ui.acceptButton, self.ui.suggestionButton, self.ui.flagButton,
                       self.ui.editButton, self.ui.fixButton, self.ui.limitSelector):  # fmt: skip
            widget.visible = bool(self._findings)
        hasAutomatic = nodes is not None and nodes.automatic is not None
        for widget in (self.ui.changesFrame, self.ui.trainingSetButton, self.ui.trainingSetSelector):
            widget.visible = hasAutomatic
        self.ui.keepCorrectedCheckBox.visible = nodes is not None
        self.update()

    def update(self) -> None:
        """Update statuses, buttons, and the table of changes from the segmentation as it is now."""
        self._updateStatuses()
        self._updateChanges()

    def enter(self) -> None:
        """The section becomes visible: outline the current finding again."""
        nodes = self._nodes
        if self._finding is not None and nodes is not None:
            finding_view.show_outline(nodes, self._finding)

    def onMoved(self) -> None:
        """The result was moved with a transform: outline the current finding where it is now."""
        # The area in which the Segment Editor may paint did not move.
        self._onLeaveFinding()
        nodes = self._nodes
        if self._finding is not None and nodes is not None and finding_view.is_outlined():
            finding_view.show_outline(nodes, self._finding)
        self.update()

    def exit(self) -> None:
        """The section or the module is closed: remove the outline from the views."""
        finding_view.hide_outline()

    def cleanup(self) -> None:
        """Stop all work and remove the outline."""
        self._watch.watch(None)
        self._surfaces.stop()
        self._writer.stop()
        finding_view.hide_outline()

    @property
    def _nodes(self) -> CaseNodes | None:
        """The case's nodes, looked up each time because the user can delete any of them at any time."""
        return read_case_nodes(self._segmentation)

    @property
    def _state(self) -> ReviewState:
        return read_state(self._segmentation) if self._segmentation is not None else ReviewState()

    @property
    def _finding(self) -> Finding | None:
        return self._findings[self._current] if 0 <= self._current < len(self._findings) else None

    def goTo(self, row: int) -> None:
        """Outline the finding in this row (counted from 0) and center all views on it."""
        nodes = self._nodes
        if nodes is None or not 0 <= row < len(self._findings):
            return
        if row != self._current:
            self._onLeaveFinding()
        self._current = row
        finding = self._findings[row]
        self._table.select(row)
        finding_view.jump_to(nodes, finding)
        mark_visited(nodes, finding.rank)
        if finding_view.show_outline(nodes, finding) is None:
            if lacks_label_maps(nodes.segmentation):
                self._showError(create_missing_findings_error(nodes))
            else:
                self._showMessage(
                    _("The volume with the findings was deleted. You can go to a finding, but not outline it.")
                )
        self._updateStatuses()

    def goToNext(self) -> None:
        """Go to the next finding, if there is one."""
        self.goTo(self._current + 1)

    def goToPrevious(self) -> None:
        """Go to the previous finding, if there is one."""
        self.goTo(self._current - 1)

    def onCopyChanges(self) -> None:
        """Copy the table of changes to the clipboard, separated by tabs."""
        slicer.app.clipboard().setText(formatChanges(self._changes, self._getReviewedFlags(), "\t"))
        self._showMessage(_("The table was copied."))

    def onSaveChanges(self) -> None:
        """Ask for a file and save the table of changes as CSV."""
        if self._segmentation is None:
            return
        name = f"{self._segmentation.GetName()} changes"
        chosen = askForFile(self.widget, _("Save table"), name, ".csv", "CSV (*.csv)")
        if chosen is None:
            return
        path, mayOverwrite = chosen
        try:
            save_table(formatChanges(self._changes, self._getReviewedFlags()), path, mayOverwrite)
        except UserError as error:
            self._showError(error)
        else:
            self._showMessage(_("Saved as {path}.").format(path=path))

    def onAddToTrainingSet(self) -> None:
        """Ask for the folder of the training set and add the case to it."""
        nodes = self._nodes
        if nodes is None:
            return
        try:
            if self.ui.trainingSetSelector.currentData != _CT_ALONE:
                require_reviewed(nodes)
        except UserError as error:
            self._showError(error)
            return
        settings = slicer.app.settings()
        before = settings.value(_TRAINING_SET, "") or ""
        title = _("Folder of the training set")
        chosen = qt.QFileDialog.getExistingDirectory(self.widget, title, str(before) or startFolder())
        if not chosen:
            return
        settings.setValue(_TRAINING_SET, chosen)
        self._addTo(Path(chosen))

    def _addTo(self, training: Path) -> None:
        nodes = self._nodes
        if nodes is None:
            return
        isAlone = self.ui.trainingSetSelector.currentData == _CT_ALONE
        version = 1 if isAlone else get_next_case_version(nodes, training)
        question = _("The training set already contains this CT. Add this as another case of the same CT?")
        if version > 1 and not slicer.util.confirmOkCancelDisplay(question, _("Add to training set")):
            return
        try:
            with slicer.util.WaitCursor():
                if isAlone:
                    self._writer.startUnlabeled(nodes, training)
                else:
                    self._writer.start(nodes, training, version)
        except UserError as error:
            self._showError(error)
            return
        self._setTrainingSetEnabled(False)
        self._showMessage(_("Writing the case. This takes a few seconds..."))

    def _onAdded(self, case: CorrectedCase | None, cases: int, error: UserError | None) -> None:
        self._setTrainingSetEnabled(True)
        if error is not None or case is None:
            self._showError(error or UserError(_("The case could not be written."), _("Try again.")))
            return
        text = _("Added as {name}, with {organs}. Cases in the folder: {count}.")
        if not case.organs:
            text = _("Added as {name}, without labels. CTs without labels in the folder: {count}.")
        names = ", ".join(organ.name for organ in case.organs)
        text = text.format(name=case.name, organs=names, count=cases)
        if case.left_out:
            text += " " + _("Left out because the model has no such organ: {names}.").format(
                names=", ".join(case.left_out)
            )
        self._showMessage(text)

    def _setTrainingSetEnabled(self, enabled: bool) -> None:
        self.ui.trainingSetButton.enabled = self.ui.trainingSetSelector.enabled = enabled

    def _onCellClicked(self, row: int, column: int) -> None:
        self.goTo(row)

    def _onCurrentCellChanged(self, row: int, column: int, previousRow: int, previousColumn: int) -> None:
        if row != self._current:
            self.goTo(row)

    def _onAccept(self, checked: bool) -> None:
        self._decide(ACCEPTED if checked else TO_CHECK)

    def _onFlag(self, checked: bool) -> None:
        self._decide(FLAGGED if checked else TO_CHECK)

    def _decide(self, status: str) -> None:
        nodes = self._nodes
        if nodes is not None and self._finding is not None:
            set_status(nodes, self._finding.rank, status)
            # With its decision removed, a finding that was edited counts as corrected.
            self._followEdits(nodes)
        self.update()

    def _followEdits(self, nodes: CaseNodes) -> None:
        self._attempt(lambda: follow_edits(nodes))

    def _attempt(self, action: Callable[[], Any]) -> None:
        """Show why the review cannot follow the segmentation, until it can."""
        problem = ""
        try:
            action()
        except UserError as error:
            problem = formatError(error)
        if problem or self._problem:
            self._showMessage(problem)
        self._problem = problem

    def _onSuggestion(self, checked: bool) -> None:
        nodes = self._nodes
        if nodes is None or self._finding is None:
            return
        self._onBeforeChange()
        try:
            with slicer.util.WaitCursor():
                changed = (accept_suggestion if checked else take_back)(nodes, self._finding.rank)
        except UserError as error:
            self._showError(error)
        else:
            self._surfaces.update(nodes.segmentation, changed)
        self.update()

    def _onEditClicked(self) -> None:
        nodes, finding = self._nodes, self._finding
        if nodes is None or finding is None:
            return
        limit = self.ui.limitSelector.currentData
        if not self._canLimit(nodes, finding, limit):
            self._showMessage(_("This area was deleted or never created. Select everywhere instead."))
            return
        try:
            segmentId = get_or_add_segment(nodes, finding.label)
        except UserError as error:
            self._showError(error)
            return
        areas: dict[str, Callable[[], Any]] = {
            _FINDING: partial(editable_area.limit_to_finding, nodes, finding),
            _UNCERTAIN: partial(editable_area.limit_to_uncertain, nodes),
            _EVERYWHERE: _doNothing,
        }
        self._onEdit(segmentId, areas[limit])

    def _onFixClicked(self) -> None:
        if self._finding is not None:
            self._onFix(self._finding.organ)

    def _canLimit(self, nodes: CaseNodes, finding: Finding, limit: str) -> bool:
        if limit == _FINDING:
            return get_finding_voxels(nodes, finding.rank) is not None
        return limit == _EVERYWHERE or "entropy" in list_available_maps(nodes)

    def _onSegmentationChanged(self) -> None:
        nodes = self._nodes
        if nodes is not None:
            self._followEdits(nodes)
        self.update()

    def _onChangesToggled(self, opened: bool) -> None:
        # A plain frame, because CTK's group box never shows contents that start collapsed.
        self.ui.changesContents.visible = opened
        self.ui.changesButton.arrowType = qt.Qt.DownArrow if opened else qt.Qt.RightArrow
        self._updateChanges()

    def _onOrganReviewed(self, key: str, isReviewed: bool) -> None:
        nodes = self._nodes
        if nodes is not None:
            mark_organ(nodes, key, isReviewed)
            self._updateStatuses()

    def _getReviewedFlags(self) -> list[bool]:
        nodes = self._nodes
        if nodes is None:
            return []
        return [is_organ_reviewed(nodes, change.organ.key) for change in self._changes]

    def _updateStatuses(self) -> None:
        state, finding = self._state, self._finding
        self._table.showStatuses(self._findings, state)
        checked = sum(state.is_checked(each.rank) for each in self._findings)
        self.ui.checkedBar.maximum = max(len(self._findings), 1)
        self.ui.checkedBar.value = checked
        status = state.status(finding.rank) if finding is not None else TO_CHECK
        self.ui.previousButton.enabled = self._current > 0
        self.ui.nextButton.enabled = self._current + 1 < len(self._findings)
        self.ui.acceptButton.enabled = finding is not None and status not in (CORRECTED, SUGGESTION)
        self.ui.acceptButton.checked = status == ACCEPTED
        for widget in (self.ui.flagButton, self.ui.editButton, self.ui.fixButton, self.ui.limitSelector):
            widget.enabled = finding is not None
        self.ui.flagButton.checked = status == FLAGGED
        alternative = finding.alternative if finding is not None else None
        self.ui.suggestionButton.enabled = alternative is not None
        self.ui.suggestionButton.checked = status == SUGGESTION
        self.ui.suggestionButton.toolTip = (
            _("There is no alternative for this finding.")
            if alternative is None
            else _("{alternative} Press again to undo.").format(alternative=alternative.text)
        )
        self.ui.findingLabel.text = (
            self._formatFinding(finding) if finding is not None else _("Click a finding, or press Next.")
        )

    def _updateChanges(self) -> None:
        """Fill the table of changes, only while it is visible, because that reads the whole segmentation."""
        nodes = self._nodes
        if nodes is None or nodes.automatic is None or not self.ui.changesButton.checked:
            return
        self._changes = compute_organ_changes(nodes)
        self._changesTable.fill(self._changes, self._getReviewedFlags(), compute_organ_progress(nodes))
        self.ui.copyChangesButton.enabled = self.ui.saveChangesButton.enabled = bool(self._changes)

    def _formatFinding(self, finding: Finding) -> str:
        """A finding as HTML: title, reasons, alternative, and how far its organs are checked."""
        texts = [reason.text for reason in finding.reasons]
        name = finding.name
        if texts and texts[0].startswith(f"{name}: "):
            # The title already names the organ.
            name, texts[0] = f"{name}:", texts[0].removeprefix(f"{name}: ")
        reasons = " ".join(escape(text) for text in texts)
        suggestion = f" <i>{escape(finding.alternative.text)}</i>" if finding.alternative is not None else ""
        nodes = self._nodes
        organs = "; ".join(formatOrganProgress(nodes, finding)) if nodes is not None else ""
        return f"<b>{finding.rank}. {escape(name)}</b> {reasons}{suggestion}<br>{escape(organs)}"

    def _leave(self) -> None:
        """Deselect the current finding."""
        self._current = -1
        self._changes = ()
        finding_view.hide_outline()
        self._onLeaveFinding()

    def _showError(self, error: UserError) -> None:
        self._showMessage(formatError(error))

    def _showMessage(self, message: str) -> None:
        self.ui.reviewMessageLabel.text = message
        self.ui.reviewMessageLabel.visible = bool(message)

    def _createShortcut(self, keys: str, action: Callable[[], None]) -> qt.QShortcut:
        # For the whole window, because the mouse is in the views. Qt disables it while this widget is hidden.
        shortcut = qt.QShortcut(qt.QKeySequence(keys), self.widget)
        shortcut.connect("activated()", action)
        return shortcut


def _doNothing() -> None:
    """No limit: editing is allowed everywhere."""


def formatOrganProgress(nodes: CaseNodes, finding: Finding) -> list[str]:
    """For each organ that a finding involves: how many of the findings that involve it are checked, in words."""
    progress, vocabulary = compute_organ_progress(nodes), _getOrgansByKey(nodes)
    return [
        _("{organ}: {checked} of {total} checked").format(
            organ=vocabulary[key].name if key in vocabulary else key,
            checked=progress.get(key, (0, 0))[0],
            total=progress.get(key, (0, 0))[1],
        )
        for key in get_organ_keys(finding)
    ]


def _getOrgansByKey(nodes: CaseNodes) -> Mapping[str, Organ]:
    vocabulary = read_vocabulary(nodes.segmentation)
    return vocabulary.by_key if vocabulary is not None else {}
