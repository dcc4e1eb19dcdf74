"""The panel's tables: findings, changes, and mean attention, with their common look."""

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
_MAX_ROWS = 20
_DARK = 128  # of the lightness, 0 to 255


def makeCompact(table: qt.QTableWidget, lines: int = 1) -> None:
    """Stretch the first column over the free width, and make rows as low as ``lines`` of text allow."""
    header = table.horizontalHeader()
    header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
    header.setFixedHeight(_HEADER)
    table.verticalHeader().setMinimumSectionSize(_computeRowHeight(lines))
    table.verticalHeader().setDefaultSectionSize(_computeRowHeight(lines))


def setRows(table: qt.QTableWidget, count: int, most: int = _MAX_ROWS, lines: int = 1) -> None:
    """Set the number of rows, and a height that shows all of them, up to ``most``."""
    table.setRowCount(count)
    table.setFixedHeight(_computeRowHeight(lines) * min(max(count, 1), most) + _HEADER + _FRAME)


def createNumberItem(text: str) -> qt.QTableWidgetItem:
    """A table cell with right-aligned text."""
    item = qt.QTableWidgetItem(text)
    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    return item


def _computeRowHeight(lines: int) -> int:
    return _ROW + _LINE * (lines - 1)


def makeCheckBoxesVisible(widget: qt.QWidget) -> None:
    """Make unchecked boxes visible in a dark color scheme.

    There the style draws the frame of a check box darker than the window, so that an unchecked box disappears. The
    style derives the frame color from the window color, which a list, a table, or a check box uses nowhere else.
    """
    colors = slicer.app.palette()
    isDark = colors.color(qt.QPalette.Window).lightness() < _DARK
    palette = widget.palette
    palette.setColor(qt.QPalette.Window, colors.color(qt.QPalette.Text if isDark else qt.QPalette.Window))
    widget.setPalette(palette)


class AttentionTable:
    """Mean attention by organ; ``table`` has the columns organ, head, medium, and tail."""

    def __init__(self, table: qt.QTableWidget) -> None:
        self._table = table
        makeCompact(table)

    def fill(self, rows: list[SegmentAttention]) -> None:
        """Show these rows, with the largest mean of each organ in bold, which needs no color to be seen."""
        setRows(self._table, len(rows))
        for row, attention in enumerate(rows):
            self._table.setItem(row, 0, qt.QTableWidgetItem(attention.name))
            largest = max(attention.means, key=lambda expert: attention.means[expert], default=None)
            for column, (_label, expert, _color) in enumerate(EXPERTS, start=1):
                mean = attention.means.get(expert)
                item = createNumberItem("\N{EN DASH}" if mean is None else f"{mean:.2f}")
                font = item.font()
                font.setBold(expert == largest)
                item.setFont(font)
                self._table.setItem(row, column, item)


_COLUMN_NAMES = ("organ", "name", "automatic_ml", "now_ml", "added_ml", "removed_ml", "dice", "reviewed")


class ChangesTable:
    """The automatic result compared with the segments as they are now.

    ``table`` has the columns organ (with a check box), findings checked, current volume (ml), and Dice.
    ``onReviewed(key, isReviewed)`` is called when the user changes the check box of an organ.
    """

    def __init__(self, table: qt.QTableWidget, onReviewed: Callable[[str, bool], None]) -> None:
        self._table, self._onReviewed = table, onReviewed
        makeCompact(table)
        table.connect("itemChanged(QTableWidgetItem*)", self._onItemChanged)

    def fill(
        self, changes: Sequence[OrganChange], reviewed: Sequence[bool], progress: Mapping[str, tuple[int, int]]
    ) -> None:
        """Show these changes, with organs that changed in bold.

        ``reviewed`` has one entry per change. ``progress`` maps the key of an organ to how many of the findings that
        involve it are checked, and how many there are.
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
            numbers = [createNumberItem(text) for text in texts]
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


def formatChanges(changes: Sequence[OrganChange], reviewed: Sequence[bool], delimiter: str = ",") -> str:
    """The changes as text with a header line: CSV, or separated by tabs for pasting into a spreadsheet."""
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


class FindingsTable:
    """The findings in order of rank; ``table`` has the columns finding (organ and reason), volume (ml), and status."""

    def __init__(self, table: qt.QTableWidget) -> None:
        self._table = table
        makeCompact(table, lines=2)

    def fill(self, findings: Sequence[Finding], state: ReviewState) -> None:
        """Show these findings and select none."""
        wasBlocked = self._table.blockSignals(True)
        setRows(self._table, len(findings), _MAX_FINDING_ROWS, lines=2)
        for row, finding in enumerate(findings):
            reason = _formatKind(finding.reasons[0].kind) if finding.reasons else ""
            title = qt.QTableWidgetItem(f"{finding.name}\n{reason}" if reason else finding.name)
            items = (title, createNumberItem(f"{finding.ml:.1f}"), qt.QTableWidgetItem(""))
            for column, item in enumerate(items):
                item.setToolTip("\n".join(each.text for each in finding.reasons))
                self._table.setItem(row, column, item)
        self._table.clearSelection()
        self._table.blockSignals(wasBlocked)
        self.showStatuses(findings, state)

    def showStatuses(self, findings: Sequence[Finding], state: ReviewState) -> None:
        """Update the status column, with findings still to check in bold, which needs no color to be seen."""
        words = getStatusTexts()
        for row, finding in enumerate(findings):
            item = self._table.item(row, _STATUS)
            status, isChecked = state.status(finding.rank), state.is_checked(finding.rank)
            isUnseen = status == CORRECTED and not isChecked
            item.setText(_("Changed") if isUnseen else words.get(status, status))
            font = item.font()
            font.setBold(not isChecked)
            item.setFont(font)
            if status == SUGGESTION:
                item.setToolTip(_("The alternative was accepted."))
            elif status == ACCEPTED:
                item.setToolTip(_("The segmentation was accepted as is."))
            elif isUnseen:
                item.setToolTip(_("Changed, but not checked yet: click the finding to look at it."))
            else:
                item.setToolTip("\n".join(each.text for each in finding.reasons))

    def select(self, row: int) -> None:
        """Select a row, or none for -1, without emitting signals."""
        wasBlocked = self._table.blockSignals(True)
        if row < 0:
            self._table.clearSelection()
        else:
            self._table.selectRow(row)
            self._table.scrollToItem(self._table.item(row, 0))
        self._table.blockSignals(wasBlocked)


def getStatusTexts() -> dict[str, str]:
    """The panel's text for each status."""
    return {
        TO_CHECK: _("To check"),
        CORRECTED: _("Corrected"),
        ACCEPTED: _("Accepted"),
        SUGGESTION: _("Accepted"),
        FLAGGED: _("Flagged"),
    }


def _formatKind(kind: str) -> str:
    words = {
        "missing": _("not found"),
        "volume": _("unusual volume"),
        "position": _("unusual position"),
        "island": _("separate piece"),
        "hole": _("hole"),
        "cut": _("flat end"),
        "disagreement": _("experts disagree"),
        "foreign_expert": _("unexpected dominant expert"),
        "undecided": _("no dominant expert"),
        "uncertain": _("uncertain"),
    }
    return words.get(kind, kind)
