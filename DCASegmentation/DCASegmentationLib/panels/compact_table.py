"""Small tables of names and numbers, shown whole: the panel scrolls already; and check boxes in lists."""

from __future__ import annotations

import qt
import slicer

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
