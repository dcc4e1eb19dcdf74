"""Small tables of names and numbers, shown whole: the panel scrolls already."""

from __future__ import annotations

import qt

_ROW, _HEADER, _FRAME = 22, 26, 4  # pixels
_MOST_ROWS = 20


def makeCompact(table: qt.QTableWidget) -> None:
    """The first column takes the room that the numbers leave; rows are low."""
    header = table.horizontalHeader()
    header.setSectionResizeMode(qt.QHeaderView.ResizeToContents)
    header.setSectionResizeMode(0, qt.QHeaderView.Stretch)
    header.setFixedHeight(_HEADER)
    table.verticalHeader().setMinimumSectionSize(_ROW)
    table.verticalHeader().setDefaultSectionSize(_ROW)


def setRows(table: qt.QTableWidget, count: int, most: int = _MOST_ROWS) -> None:
    """As many rows, all of them in sight up to ``most``."""
    table.setRowCount(count)
    table.setFixedHeight(_ROW * min(max(count, 1), most) + _HEADER + _FRAME)


def numberItem(text: str) -> qt.QTableWidgetItem:
    """A cell whose text is aligned to the right."""
    item = qt.QTableWidgetItem(text)
    item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
    return item
