"""The Review section: the places most likely wrong, what to do about each, what changed, and cases to train on."""

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
from DCASegmentationLib.event_loop import SegmentationWatch, Steps
from DCASegmentationLib.scene import editable_area
from DCASegmentationLib.scene import finding_view as place_view
from DCASegmentationLib.scene.case_record import CaseNodes, recall
from DCASegmentationLib.scene.finding_status import (
    accept_suggestion,
    follow_edits,
    mark_organ,
    organ_is_reviewed,
    organ_progress,
    organs_of,
    segment_for,
    set_status,
    take_back,
)
from DCASegmentationLib.scene.finding_view import voxels_of
from DCASegmentationLib.scene.maps import available_maps
from DCASegmentationLib.scene.organ_changes import organ_changes
from DCASegmentationLib.scene.review_record import (
    ACCEPTED,
    CORRECTED,
    FLAGGED,
    SUGGESTION,
    TO_CHECK,
    ReviewState,
    read_origin,
    read_review,
    read_state,
)
from DCASegmentationLib.scene.storage import save_table
from DCASegmentationLib.scene.surfaces import renewing_surfaces
from DCASegmentationLib.scene.training_case import CorrectedCase, case_version, require_reviewed
from DCASegmentationLib.widgets.html import errorText
from DCASegmentationLib.widgets.result_panel import askForFile
from DCASegmentationLib.widgets.tables import ChangesTable, PlacesTable, changesAsText
from DCASegmentationLib.widgets.training_set import TrainingSetWriter

_REVIEWED, _CT_ALONE = "reviewed", "ct"
_PLACE, _UNCERTAIN, _EVERYWHERE = "place", "uncertain", "everywhere"
_TRAINING_SET = "DCASegmentation/TrainingSet"


class ReviewPanel:
    """``layout`` is where the panel goes.

    ``onEdit(segmentId, makeArea)`` is asked to open the Segment Editor on a segment, limited to the volume that
    ``makeArea()`` gives (see ``editable_area``; None for everywhere), ``onLeavePlace()`` to end that,
    ``onBeforeChange()`` to save a state for the Segment Editor's undo. Everything that is decided here is
    written on the segmentation.
    """

    def __init__(
        self,
        layout: qt.QLayout,
        uiFolder: Path,
        onEdit: Callable[[str, Callable[[], Any]], None],
        onLeavePlace: Callable[[], None],
        onBeforeChange: Callable[[], None],
    ) -> None:
        self._onEdit, self._onLeavePlace, self._onBeforeChange = onEdit, onLeavePlace, onBeforeChange
        self._segmentation: Any = None
        self._places: tuple[Finding, ...] = ()
        self._current = -1
        self._changes: tuple[OrganChange, ...] = ()
        self._watch = SegmentationWatch(self._onSegmentationChanged)
        self._surfaces = Steps()
        self._writer = TrainingSetWriter(self._onAdded)
        self.widget = slicer.util.loadUI(str(uiFolder / "Review.ui"))
        layout.addWidget(self.widget)
        self.ui = slicer.util.childWidgetVariables(self.widget)
        self._table = PlacesTable(self.ui.placesTable)
        self._changesTable = ChangesTable(self.ui.changesTable, self._onOrganReviewed)
        for title, name in (
            (_("in this place"), _PLACE),
            (_("in uncertain voxels"), _UNCERTAIN),
            (_("everywhere"), _EVERYWHERE),
        ):
            self.ui.limitSelector.addItem(title, name)
        for title, name in ((_("with the reviewed organs"), _REVIEWED), (_("CT alone, without labels"), _CT_ALONE)):
            self.ui.trainingSetSelector.addItem(title, name)
        self.ui.placesTable.connect("cellClicked(int,int)", self._onCellClicked)
        self.ui.previousButton.connect("clicked()", self.goToPrevious)
        self.ui.nextButton.connect("clicked()", self.goToNext)
        self.ui.acceptButton.connect("clicked(bool)", self._onAccept)
        self.ui.suggestionButton.connect("clicked(bool)", self._onSuggestion)
        self.ui.flagButton.connect("clicked(bool)", self._onFlag)
        self.ui.editButton.connect("clicked()", self._onEditClicked)
        self.ui.changesButton.connect("toggled(bool)", self._onChangesToggled)
        self.ui.copyChangesButton.connect("clicked()", self.onCopyChanges)
        self.ui.saveChangesButton.connect("clicked()", self.onSaveChanges)
        self.ui.trainingSetButton.connect("clicked()", self.onAddToTrainingSet)
        self._shortcuts = [
            self._shortcut("Ctrl+Down", self.goToNext),
            self._shortcut("Ctrl+Up", self.goToPrevious),
            self._shortcut("Ctrl+Shift+A", self.ui.acceptButton.click),
            self._shortcut("Ctrl+Shift+F", self.ui.flagButton.click),
        ]
        self._onChangesToggled(False)
        self.setResult(None)

    def setResult(self, nodes: CaseNodes | None) -> None:
        """Review this result; None when there is none (any more)."""
        self._leave()
        self._surfaces.stop()
        self._segmentation = nodes.segmentation if nodes is not None else None
        review = read_review(nodes.segmentation) if nodes is not None else None
        self._places = review.findings if review is not None else ()
        self._watch.watch(self._segmentation)
        self._say("")
        self._table.fill(self._places, self._state)
        hint = _("Segment a CT to see the places to check first.")
        if nodes is not None:
            hint = _("Nothing suspicious was found.") if review is not None else _("No places were looked for here.")
        self.ui.reviewHintLabel.text = hint
        self.ui.reviewHintLabel.visible = not self._places
        for widget in (self.ui.placesTable, self.ui.checkedBar, self.ui.placeLabel, self.ui.previousButton,
                       self.ui.nextButton, self.ui.acceptButton, self.ui.suggestionButton, self.ui.flagButton,
                       self.ui.editButton, self.ui.limitSelector):  # fmt: skip
            widget.visible = bool(self._places)
        hasAutomatic = nodes is not None and nodes.automatic is not None
        for widget in (self.ui.changesFrame, self.ui.keepCorrectedCheckBox, self.ui.trainingSetButton,
                       self.ui.trainingSetSelector):  # fmt: skip
            widget.visible = hasAutomatic
        self.update()

    def update(self) -> None:
        """Bring statuses, buttons and what changed into line with the segmentation as it is."""
        self._updateStatuses()
        self._updateChanges()

    def enter(self) -> None:
        """The section is seen: outline the place that was left."""
        nodes = self._nodes
        if self._place is not None and nodes is not None:
            place_view.outline(nodes, self._place)

    def exit(self) -> None:
        """The section, or the module, is left: nothing of it stays in the views."""
        place_view.hide_outline()

    def cleanup(self) -> None:
        self._watch.watch(None)
        self._surfaces.stop()
        self._writer.stop()
        place_view.hide_outline()

    @property
    def _nodes(self) -> CaseNodes | None:
        """The nodes of the case that are there now: any of them can be deleted at any time."""
        return recall(self._segmentation)

    @property
    def _state(self) -> ReviewState:
        return read_state(self._segmentation) if self._segmentation is not None else ReviewState()

    @property
    def _place(self) -> Finding | None:
        return self._places[self._current] if 0 <= self._current < len(self._places) else None

    def goTo(self, row: int) -> None:
        """Show the place in this row in all views, outlined."""
        nodes = self._nodes
        if nodes is None or not 0 <= row < len(self._places):
            return
        if row != self._current:
            self._onLeavePlace()
        self._current = row
        place = self._places[row]
        self._table.select(row)
        place_view.jump_to(nodes, place)
        if place_view.outline(nodes, place) is None:
            self._say(_("The volume with the places was deleted: they can be visited, but not outlined."))
        self._updateStatuses()

    def goToNext(self) -> None:
        self.goTo(self._current + 1)

    def goToPrevious(self) -> None:
        self.goTo(self._current - 1)

    def onCopyChanges(self) -> None:
        slicer.app.clipboard().setText(changesAsText(self._changes, self._reviewed(), "\t"))
        self._say(_("The table was copied."))

    def onSaveChanges(self) -> None:
        if self._segmentation is None:
            return
        name = f"{self._segmentation.GetName()} changes"
        chosen = askForFile(self.widget, _("Save table"), name, ".csv", "CSV (*.csv)")
        if chosen is None:
            return
        path, mayOverwrite = chosen
        try:
            save_table(changesAsText(self._changes, self._reviewed()), path, mayOverwrite)
        except UserError as error:
            self._showError(error)
        else:
            self._say(_("Written to {place}.").format(place=path))

    def onAddToTrainingSet(self) -> None:
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
        chosen = qt.QFileDialog.getExistingDirectory(self.widget, title, str(before))
        if not chosen:
            return
        settings.setValue(_TRAINING_SET, chosen)
        self._addTo(Path(chosen))

    def _addTo(self, training: Path) -> None:
        nodes = self._nodes
        if nodes is None:
            return
        isAlone = self.ui.trainingSetSelector.currentData == _CT_ALONE
        version = 1 if isAlone else case_version(nodes, training)
        question = _("This CT is in the training set already. Add this as a further case of it?")
        if version > 1 and not slicer.util.confirmOkCancelDisplay(question, _("Add to training set")):
            return
        try:
            with slicer.util.WaitCursor():
                if isAlone:
                    self._writer.startUnlabelled(nodes, training)
                else:
                    self._writer.start(nodes, training, version)
        except UserError as error:
            self._showError(error)
            return
        self._setTrainingSetEnabled(False)
        self._say(_("Writing the case; this takes some seconds..."))

    def _onAdded(self, case: CorrectedCase | None, cases: int, error: UserError | None) -> None:
        self._setTrainingSetEnabled(True)
        if error is not None or case is None:
            self._showError(error or UserError(_("The case could not be written."), ""))
            return
        text = _("Added as {name}, with {organs}. Cases in the folder: {count}.")
        if not case.organs:
            text = _("Added as {name}, without labels. CTs without labels in the folder: {count}.")
        names = ", ".join(organ.name for organ in case.organs)
        text = text.format(name=case.name, organs=names, count=cases)
        if case.left_out:
            text += " " + _("Left out, as no organ of the model: {names}.").format(names=", ".join(case.left_out))
        self._say(text)

    def _setTrainingSetEnabled(self, enabled: bool) -> None:
        self.ui.trainingSetButton.enabled = self.ui.trainingSetSelector.enabled = enabled

    def _onCellClicked(self, row: int, column: int) -> None:
        self.goTo(row)

    def _onAccept(self, checked: bool) -> None:
        self._decide(ACCEPTED if checked else TO_CHECK)

    def _onFlag(self, checked: bool) -> None:
        self._decide(FLAGGED if checked else TO_CHECK)

    def _decide(self, status: str) -> None:
        nodes = self._nodes
        if nodes is not None and self._place is not None:
            set_status(nodes, self._place.rank, status)
            # Without another word of the user's, a place that was edited is a corrected one.
            follow_edits(nodes)
        self.update()

    def _onSuggestion(self, checked: bool) -> None:
        nodes = self._nodes
        if nodes is None or self._place is None:
            return
        self._onBeforeChange()
        try:
            with slicer.util.WaitCursor():
                changed = (accept_suggestion if checked else take_back)(nodes, self._place.rank)
        except UserError as error:
            self._showError(error)
        else:
            self._surfaces.run(renewing_surfaces(nodes.segmentation, changed))
        self.update()

    def _onEditClicked(self) -> None:
        nodes, place = self._nodes, self._place
        if nodes is None or place is None:
            return
        limit = self.ui.limitSelector.currentData
        if not self._canLimit(nodes, place, limit):
            self._say(_("What editing was to be limited to was deleted, or never made: choose everywhere."))
            return
        try:
            segmentId = segment_for(nodes, place.label)
        except UserError as error:
            self._showError(error)
            return
        areas: dict[str, Callable[[], Any]] = {
            _PLACE: partial(editable_area.limit_to_place, nodes, place),
            _UNCERTAIN: partial(editable_area.limit_to_uncertain, nodes),
            _EVERYWHERE: _nothing,
        }
        self._onEdit(segmentId, areas[limit])

    def _canLimit(self, nodes: CaseNodes, place: Finding, limit: str) -> bool:
        if limit == _PLACE:
            return voxels_of(nodes, place.rank) is not None
        return limit == _EVERYWHERE or "entropy" in available_maps(nodes)

    def _onSegmentationChanged(self) -> None:
        nodes = self._nodes
        if nodes is not None:
            follow_edits(nodes)
        self.update()

    def _onChangesToggled(self, opened: bool) -> None:
        # A plain frame: what starts collapsed in CTK's group box is not shown by it later.
        self.ui.changesContents.visible = opened
        self.ui.changesButton.arrowType = qt.Qt.DownArrow if opened else qt.Qt.RightArrow
        self._updateChanges()

    def _onOrganReviewed(self, key: str, isReviewed: bool) -> None:
        nodes = self._nodes
        if nodes is not None:
            mark_organ(nodes, key, isReviewed)
            self._updateStatuses()

    def _reviewed(self) -> list[bool]:
        nodes = self._nodes
        if nodes is None:
            return []
        return [organ_is_reviewed(nodes, change.organ.key) for change in self._changes]

    def _updateStatuses(self) -> None:
        state, place = self._state, self._place
        self._table.showStatuses(self._places, state)
        checked = sum(state.status(each.rank) != TO_CHECK for each in self._places)
        self.ui.checkedBar.maximum = max(len(self._places), 1)
        self.ui.checkedBar.value = checked
        status = state.status(place.rank) if place is not None else TO_CHECK
        self.ui.previousButton.enabled = self._current > 0
        self.ui.nextButton.enabled = self._current + 1 < len(self._places)
        self.ui.acceptButton.enabled = place is not None and status not in (CORRECTED, SUGGESTION)
        self.ui.acceptButton.checked = status == ACCEPTED
        self.ui.flagButton.enabled = self.ui.editButton.enabled = self.ui.limitSelector.enabled = place is not None
        self.ui.flagButton.checked = status == FLAGGED
        alternative = place.alternative if place is not None else None
        self.ui.suggestionButton.enabled = alternative is not None
        self.ui.suggestionButton.checked = status == SUGGESTION
        self.ui.suggestionButton.toolTip = (
            _("Nothing is suggested for this place.")
            if alternative is None
            else _("{what} Press again to take it back.").format(what=alternative.text)
        )
        self.ui.placeLabel.text = self._inWords(place) if place is not None else _("Click a finding, or press Next.")

    def _updateChanges(self) -> None:
        """Measured only where it is seen: it passes over the whole segmentation."""
        nodes = self._nodes
        if nodes is None or nodes.automatic is None or not self.ui.changesButton.checked:
            return
        self._changes = organ_changes(nodes)
        self._changesTable.fill(self._changes, self._reviewed(), organ_progress(nodes))
        self.ui.copyChangesButton.enabled = self.ui.saveChangesButton.enabled = bool(self._changes)

    def _inWords(self, place: Finding) -> str:
        """Reasons and suggestion of a finding, and how far each organ that it involves is checked."""
        texts = [reason.text for reason in place.reasons]
        name = place.name
        if texts and texts[0].startswith(f"{name}: "):
            # The title says it already.
            name, texts[0] = f"{name}:", texts[0].removeprefix(f"{name}: ")
        reasons = " ".join(escape(text) for text in texts)
        suggestion = f" <i>{escape(place.alternative.text)}</i>" if place.alternative is not None else ""
        nodes = self._nodes
        organs = "; ".join(organProgressInWords(nodes, place)) if nodes is not None else ""
        return f"<b>{place.rank}. {escape(name)}</b> {reasons}{suggestion}<br>{escape(organs)}"

    def _leave(self) -> None:
        """Let go of the place that was looked at."""
        self._current = -1
        self._changes = ()
        place_view.hide_outline()
        self._onLeavePlace()

    def _showError(self, error: UserError) -> None:
        self._say(errorText(error))

    def _say(self, message: str) -> None:
        self.ui.reviewMessageLabel.text = message
        self.ui.reviewMessageLabel.visible = bool(message)

    def _shortcut(self, keys: str, action: Callable[[], None]) -> qt.QShortcut:
        # Of the whole window: the mouse is in the views. Qt lets it rest while this widget is hidden.
        shortcut = qt.QShortcut(qt.QKeySequence(keys), self.widget)
        shortcut.connect("activated()", action)
        return shortcut


def _nothing() -> None:
    """No area: editing everywhere."""


def organProgressInWords(nodes: CaseNodes, place: Finding) -> list[str]:
    """Each organ that a finding involves, with how many of the findings that involve it are checked."""
    progress, vocabulary = organ_progress(nodes), _organsByKey(nodes)
    return [
        _("{organ}: {checked} of {total} checked").format(
            organ=vocabulary[key].name if key in vocabulary else key,
            checked=progress.get(key, (0, 0))[0],
            total=progress.get(key, (0, 0))[1],
        )
        for key in organs_of(place)
    ]


def _organsByKey(nodes: CaseNodes) -> Mapping[str, Organ]:
    origin = read_origin(nodes.segmentation)
    vocabulary = origin.organs() if origin is not None else None
    return vocabulary.by_key if vocabulary is not None else {}
