"""The findings in a Qt table: organ and why in a few words, size, and what became of each."""

from __future__ import annotations

from collections.abc import Sequence

import qt
from slicer.i18n import tr as _

from DCASegmentationLib.panels.compact_table import makeCompact, numberItem, setRows
from DCASegmentationLib.review_file import Place
from DCASegmentationLib.scene.review_record import ACCEPTED, CORRECTED, FLAGGED, SUGGESTION, TO_CHECK, ReviewState

_MOST_ROWS = 6
_STATUS = 2


class PlacesTable:
    """``table`` has the columns finding (organ, and below it why), ml and status; rows are in order of rank."""

    def __init__(self, table: qt.QTableWidget) -> None:
        self._table = table
        makeCompact(table, lines=2)

    def fill(self, places: Sequence[Place], state: ReviewState) -> None:
        """Show these places, none of them selected."""
        wasBlocked = self._table.blockSignals(True)
        setRows(self._table, len(places), _MOST_ROWS, lines=2)
        for row, place in enumerate(places):
            why = _kindInWords(place.reasons[0].kind) if place.reasons else ""
            finding = qt.QTableWidgetItem(f"{place.name}\n{why}" if why else place.name)
            items = (finding, numberItem(f"{place.ml:.1f}"), qt.QTableWidgetItem(""))
            for column, item in enumerate(items):
                item.setToolTip("\n".join(reason.text for reason in place.reasons))
                self._table.setItem(row, column, item)
        self._table.clearSelection()
        self._table.blockSignals(wasBlocked)
        self.showStatuses(places, state)

    def showStatuses(self, places: Sequence[Place], state: ReviewState) -> None:
        """Bring the last column up to date; what is still to check is bold, so that it is told without any color."""
        words = statusInWords()
        for row, place in enumerate(places):
            item = self._table.item(row, _STATUS)
            status = state.status(place.rank)
            item.setText(words.get(status, status))
            font = item.font()
            font.setBold(status == TO_CHECK)
            item.setFont(font)
            if status == SUGGESTION:
                item.setToolTip(_("The suggested alternative was taken."))
            elif status == ACCEPTED:
                item.setToolTip(_("Right as it was."))

    def select(self, row: int) -> None:
        """Select a row, or none for -1, without telling anyone."""
        wasBlocked = self._table.blockSignals(True)
        if row < 0:
            self._table.clearSelection()
        else:
            self._table.selectRow(row)
            self._table.scrollToItem(self._table.item(row, 0))
        self._table.blockSignals(wasBlocked)


def statusInWords() -> dict[str, str]:
    """What the panel calls each status."""
    return {
        TO_CHECK: _("To check"),
        CORRECTED: _("Corrected"),
        ACCEPTED: _("Accepted"),
        SUGGESTION: _("Accepted"),
        FLAGGED: _("Flagged"),
    }


def _kindInWords(kind: str) -> str:
    words = {
        "missing": _("not found"),
        "volume": _("unusual volume"),
        "position": _("unusual position"),
        "island": _("piece apart"),
        "hole": _("hole"),
        "cut": _("flat end"),
        "disagreement": _("experts disagree"),
        "foreign_expert": _("another expert decides"),
        "undecided": _("no expert decides"),
        "uncertain": _("uncertain"),
    }
    return words.get(kind, kind)
