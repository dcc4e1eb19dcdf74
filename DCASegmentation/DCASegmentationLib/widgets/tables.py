"""The tables of the panel: findings, changes, and mean attention."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

import qt
import slicer
from slicer.i18n import tr as _

from dcaseg.imaging.label_comparison import OrganChange
from dcaseg.rendering.layout import EXPERTS
from dcaseg.review.schema import Finding
from DCASegmentationLib.scene.expert_attention import SegmentAttention
from DCASegmentationLib.scene.review_record import ACCEPTED, CORRECTED, FLAGGED, SUGGESTION, TO_CHECK, ReviewState

_ROW, _LINE, _HEADER, _FRAME = 22, 16, 26, 4  # pixels
_MOST_ROWS = 20
_DARK = 128  # of the lightness, 0 to 255


def makeCompact(table: qt.QTableWidget, lines: int = 1) -> None:
    """The first column takes the room that the numbers leave; rows are as low as ``lines`` of text allow."""
    header = table.horizontalHeader()
    header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
    header.setFixedHeight(_HEADER)
    table.verticalHeader().setMinimumSectionSize(_rowHeight(lines))
    table.verticalHeader().setDefaultSectionSize(_rowHeight(lines))


def setRows(table: qt.QTableWidget, count: int, most: int = _MOST_ROWS, lines: int = 1) -> None:
    """As many rows, all of them in sight up to ``most``."""
    table.setRowCount(count)
    table.setFixedHeight(_rowHeight(lines) * min(max(count, 1), most) + _HEADER + _FRAME)


def numberItem(text: str) -> qt.QTableWidgetItem:
    """A cell whose text is aligned to the right."""
    item = qt.QTableWidgetItem(text)
    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    return item


def _rowHeight(lines: int) -> int:
    return _ROW + _LINE * (lines - 1)


def letBoxesBeSeen(widget: qt.QWidget) -> None:
    """In dark colors the style draws the frame of a check box darker than the window, and nobody sees an empty one.

    It takes the color of the frame from that of the window, which a list, a table or a check box shows nowhere else.
    """
    colors = slicer.app.palette()
    isDark = colors.color(qt.QPalette.Window).lightness() < _DARK
    palette = widget.palette
    palette.setColor(qt.QPalette.Window, colors.color(qt.QPalette.Text if isDark else qt.QPalette.Window))
    widget.setPalette(palette)


class AttentionTable:
    """``table`` has the columns organ, head, medium and tail."""

    def __init__(self, table: qt.QTableWidget) -> None:
        self._table = table
        makeCompact(table)

    def fill(self, rows: list[SegmentAttention]) -> None:
        """Show these rows; the largest mean of an organ is bold, so that it can be told without any color."""
        setRows(self._table, len(rows))
        for row, attention in enumerate(rows):
            self._table.setItem(row, 0, qt.QTableWidgetItem(attention.name))
            largest = max(attention.means, key=lambda expert: attention.means[expert], default=None)
            for column, (_label, expert, _color) in enumerate(EXPERTS, start=1):
                mean = attention.means.get(expert)
                item = numberItem("\N{EN DASH}" if mean is None else f"{mean:.2f}")
                font = item.font()
                font.setBold(expert == largest)
                item.setFont(font)
                self._table.setItem(row, column, item)


_COLUMN_NAMES = ("organ", "name", "automatic_ml", "now_ml", "added_ml", "removed_ml", "dice", "reviewed")


class ChangesTable:
    """``table`` has the columns organ (with a check box), findings checked, ml now and Dice.

    ``onReviewed(key, isReviewed)`` is called when the user ticks an organ or takes the tick away.
    """

    def __init__(self, table: qt.QTableWidget, onReviewed: Callable[[str, bool], None]) -> None:
        self._table, self._onReviewed = table, onReviewed
        makeCompact(table)
        table.connect("itemChanged(QTableWidgetItem*)", self._onItemChanged)

    def fill(
        self, changes: Sequence[OrganChange], reviewed: Sequence[bool], progress: Mapping[str, tuple[int, int]]
    ) -> None:
        """Show these changes; organs that changed are bold.

        ``progress``: for each organ's key how many of the findings that involve it are checked, and how many there are.
        """
        table = self._table
        wasBlocked = table.blockSignals(True)
        setRows(table, len(changes))
        for row, (change, isReviewed) in enumerate(zip(changes, reviewed, strict=True)):
            organ = qt.QTableWidgetItem(change.organ.name)
            organ.setData(qt.Qt.UserRole, change.organ.key)
            organ.setFlags(qt.Qt.ItemIsSelectable | qt.Qt.ItemIsEnabled | qt.Qt.ItemIsUserCheckable)
            organ.setCheckState(qt.Qt.Checked if isReviewed else qt.Qt.Unchecked)
            dice = "\N{EN DASH}" if change.dice is None else f"{change.dice:.3f}"
            checked, total = progress.get(change.organ.key, (0, 0))
            findings = _("{checked} of {total}").format(checked=checked, total=total) if total else "\N{EN DASH}"
            texts = (findings, f"{change.after_ml:.1f}", dice)
            numbers = [numberItem(text) for text in texts]
            for column, item in enumerate((organ, *numbers)):
                font = item.font()
                font.setBold(change.changed)
                item.setFont(font)
                item.setToolTip(
                    _("{name}: {before:.1f} ml before, {added:.1f} ml added, {removed:.1f} ml removed").format(
                        name=change.organ.name,
                        before=change.before_ml,
                        added=change.added_ml,
                        removed=change.removed_ml,
                    )
                )
                table.setItem(row, column, item)
        table.blockSignals(wasBlocked)

    def _onItemChanged(self, item: qt.QTableWidgetItem) -> None:
        if item.column() == 0:
            self._onReviewed(item.data(qt.Qt.UserRole), item.checkState() == qt.Qt.Checked)


def changesAsText(changes: Sequence[OrganChange], reviewed: Sequence[bool], delimiter: str = ",") -> str:
    """The table with a header line: CSV, or with tabs what a spreadsheet takes from the clipboard."""
    text = io.StringIO()
    writer = csv.writer(text, delimiter=delimiter, lineterminator="\n")
    writer.writerow(_COLUMN_NAMES)
    for change, isReviewed in zip(changes, reviewed, strict=True):
        dice = "" if change.dice is None else f"{change.dice:.4f}"
        volumes = (f"{ml:.3f}" for ml in (change.before_ml, change.after_ml, change.added_ml, change.removed_ml))
        writer.writerow((change.organ.key, change.organ.name, *volumes, dice, int(isReviewed)))
    return text.getvalue()


_MAX_FINDING_ROWS = 6
_STATUS = 2


class PlacesTable:
    """``table`` has the columns finding (organ, and below it why), ml and status; rows are in order of rank."""

    def __init__(self, table: qt.QTableWidget) -> None:
        self._table = table
        makeCompact(table, lines=2)

    def fill(self, places: Sequence[Finding], state: ReviewState) -> None:
        """Show these places, none of them selected."""
        wasBlocked = self._table.blockSignals(True)
        setRows(self._table, len(places), _MAX_FINDING_ROWS, lines=2)
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

    def showStatuses(self, places: Sequence[Finding], state: ReviewState) -> None:
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
