"""What changed since the automatic result, organ by organ, in a Qt table and as text."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence

import qt
from slicer.i18n import tr as _

from DCASegmentationLib.imaging.changes import OrganChange
from DCASegmentationLib.panels.compact_table import makeCompact, numberItem, setRows

_HEADER = ("organ", "name", "automatic_ml", "now_ml", "added_ml", "removed_ml", "dice", "reviewed")


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
    writer.writerow(_HEADER)
    for change, isReviewed in zip(changes, reviewed, strict=True):
        dice = "" if change.dice is None else f"{change.dice:.4f}"
        volumes = (f"{ml:.3f}" for ml in (change.before_ml, change.after_ml, change.added_ml, change.removed_ml))
        writer.writerow((change.organ.key, change.organ.name, *volumes, dice, int(isReviewed)))
    return text.getvalue()
